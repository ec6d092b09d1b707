"""Answers sampled from the model that is being trained, by our own engine over the very same weights.

The engine's loops read the trained parameters where they lie, and optimizers change them in place: no copy is made, none need be
kept up to date. Of an adapter the changes are merged for as long as sampling takes, and taken out again bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tinyseek.engine.cache import bytes_per_token, default_tokens
from tinyseek.engine.engine import Engine
from tinyseek.engine.options import EngineSettings
from tinyseek.engine.params import LARGEST_SEED, MOST_TEXTS, SamplingParams
from tinyseek.engine.together import SIZE, Together, Written, is_compiled
from tinyseek.model import lora
from tinyseek.model.transformer import CausalLM
from tinyseek.text.chat import decode_answer
from tinyseek.text.tokenizer import Tokenizer

READ_AT_ONCE = 4096  # tokens of prompts that a step reads
MOST_AT_ONCE = 4096  # texts; more wait for their turn

Answer = Written  # its `logps` are the engine's, at temperature 1; NaN where it tells none


class Rollouts:
    """Samples answers of a model that changes.

    Attributes:
        model: is trained between calls. It is sampled from in eval mode, and left in the mode that it was in.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int | None = None,
    ) -> None:
        """Sample answers of at most `max_tokens` tokens."""
        self.model, self.tokenizer = model, tokenizer
        self.max_tokens, self.temperature, self.top_p, self.top_k = max_tokens, temperature, top_p, top_k
        self._engine: Engine | Together | None = None
        self._room = (0, 0)  # texts and tokens that it has room for

    def sample(
        self, prompts: Sequence[Sequence[int]], each: int, seeds: Sequence[int], *, greedy: bool = False
    ) -> list[list[Answer]]:
        """`each` answers to every prompt, all at once.

        Args:
            seeds: a prompt's answers follow from its own and the weights alone.
        Raises:
            RuntimeError: the engine failed: the weights are not finite, say.
        """
        if not prompts:
            return []
        seeds = [seed % LARGEST_SEED for seed in seeds]
        with self._ready(prompts, each) as engine:
            if isinstance(engine, Together):
                return engine.write(prompts, each, self._params(1, 0, greedy), seeds)
            return self._by_requests(engine, prompts, each, seeds, greedy)

    def _by_requests(
        self, engine: Engine, prompts: Sequence[Sequence[int]], each: int, seeds: Sequence[int], greedy: bool
    ) -> list[list[Answer]]:
        """The general way, for models and devices that the loops do not serve."""
        requests = []
        for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            for first in range(0, each, MOST_TEXTS):
                params = self._params(min(MOST_TEXTS, each - first), seed + first, greedy)
                requests.append((number, engine.submit(prompt, params)))
        answers: list[list[Answer]] = [[] for _ in prompts]
        for number, request in requests:
            texts = [Answer() for _ in range(request.params.n)]
            for piece in request:
                text = texts[piece.index]
                text.ids += piece.ids
                text.logps += [told.logprob for told in piece.logprobs]
                if piece.error is not None:
                    raise RuntimeError(f"the engine failed while sampling: {piece.error}")
                if piece.finish == "stop" and isinstance(piece.stop, int):
                    text.ids.append(piece.stop)
                    text.logps.append(float("nan"))
                    text.finished = True
            answers[number] += texts
        return answers

    def _params(self, each: int, seed: int, greedy: bool) -> SamplingParams:
        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=0.0 if greedy else self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=seed % LARGEST_SEED,
            stop_ids=frozenset(self.tokenizer.stop_ids),
            n=each,
            logprobs=0,
        )

    @contextmanager
    def _ready(self, prompts: Sequence[Sequence[int]], each: int) -> Iterator[Engine | Together]:
        """The engine over the weights as they are now."""
        model, was_training = self.model, self.model.training
        model.eval()
        adapted = lora.is_adapted(model)
        merged = lora.merge(model) if adapted else []
        try:
            texts = min(MOST_AT_ONCE, len(prompts) * each)
            longest = min(max(map(len, prompts)) + self.max_tokens, model.config.max_position_embeddings)
            tokens = (texts + len(prompts)) * (-(-longest // SIZE) + 1) * SIZE
            if self._engine is None or adapted or texts > self._room[0] or tokens > self._room[1]:
                self._engine = None  # its memory goes first
                self._engine = make_engine(model, texts, tokens)
                self._room = texts, tokens
            elif isinstance(self._engine, Engine):
                self._engine.forget()
            yield self._engine
        finally:
            if adapted:
                self._engine = None
                lora.unmerge(merged)
            model.train(was_training)


def make_engine(model: CausalLM, texts: int, tokens: int) -> Engine | Together:
    """An engine with room for so many texts, of so many tokens together, as far as memory goes."""
    per_token = bytes_per_token(model.config, torch.float32, model.config.num_hidden_layers)
    tokens = min(tokens, default_tokens(model.config, per_token, model.device, 2 * texts))
    if is_compiled(model):
        return Together(model, tokens)
    settings = EngineSettings(
        block_size=SIZE,
        cache_tokens=tokens,
        max_sequences=texts,
        max_batch_tokens=max(READ_AT_ONCE, texts),
        max_waiting=max(256, MOST_TEXTS * texts),
    )
    return Engine(model, None, settings)  # texts are not asked for piece by piece


def message_of(tokenizer: Tokenizer, answer: Answer, opened: bool = False) -> dict[str, Any]:
    """An answer as the assistant's message: all that was written as its content, `<think>` tags included, and the calls of tools
    taken out of it.

    Args:
        opened: the prompt had opened the reasoning already.
    """
    ids = answer.ids[:-1] if answer.finished else answer.ids
    calls = decode_answer(tokenizer, ids, thinking=opened).tool_calls
    if calls:
        ids = ids[: ids.index(tokenizer.token_id("<｜tool▁calls▁begin｜>"))]  # type: ignore[arg-type]
    content = ("<think>" if opened else "") + tokenizer.decode(ids)
    message: dict[str, Any] = {"role": "assistant", "content": content}
    return message | {"tool_calls": calls} if calls else message
