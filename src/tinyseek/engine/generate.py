"""Generation in one call, over an Engine of its own: one prompt as a stream, or many at once. And the plain way, uncached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from tinyseek.engine.engine import Engine
from tinyseek.engine.options import EngineSettings
from tinyseek.engine.params import LARGEST_SEED, SamplingParams
from tinyseek.engine.request import Request
from tinyseek.errors import UserError
from tinyseek.model.transformer import CausalLM

__all__ = ["SamplingParams", "generate", "recompute", "stream"]

CHUNK = 2048  # tokens of prompts that are read in one step


def stream(model: CausalLM, prompt: Sequence[int], params: SamplingParams) -> Iterator[int]:
    """New tokens after one prompt, each as soon as it is drawn.

    Raises:
        UserError: an empty prompt, a token beyond the vocabulary, or a prompt that leaves no room in the context.
    """
    engine = _engine(model, [prompt], params, 1)
    yield from _tokens(engine.submit(prompt, params))


def generate(
    model: CausalLM, prompts: Sequence[Sequence[int]], params: SamplingParams, batch_size: int = 64
) -> list[list[int]]:
    """New tokens after each prompt, in the prompts' order; `batch_size` of them are written at a time.

    With a seed each prompt draws by one of its own, so that the same prompt twice gives two texts.

    Raises:
        UserError: as `stream`.
    """
    engine = _engine(model, prompts, params, batch_size)
    requests = []
    for index, prompt in enumerate(prompts):
        seed = None if params.seed is None else (params.seed + index) % LARGEST_SEED
        requests.append(engine.submit(prompt, replace(params, seed=seed)))
    return [list(_tokens(request)) for request in requests]


@torch.inference_mode()
def recompute(model: CausalLM, prompt: Sequence[int], params: SamplingParams) -> list[int]:
    """The likeliest tokens after a prompt, the whole text run anew for each: what every cleverer way must give."""
    ids = list(prompt)
    limit = min(len(ids) + params.max_tokens, model.config.max_position_embeddings)
    while len(ids) < limit:
        hidden_1TD, _, _ = model.hidden(torch.tensor([ids], device=model.device))
        token = int(model.lm_head(hidden_1TD[0, -1]).float().argmax())
        if token in params.stop_ids:
            break
        ids.append(token)
    return ids[len(prompt) :]


def _engine(model: CausalLM, prompts: Sequence[Sequence[int]], params: SamplingParams, most: int) -> Engine:
    """An engine with room for the longest `most` of these at once."""
    if params.n != 1:
        raise UserError(f"one text a prompt is written here, not n={params.n}; repeat the prompt")
    context, size = model.config.max_position_embeddings, 16
    lengths = sorted((min(len(prompt) + params.max_tokens, context) for prompt in prompts), reverse=True)
    blocks = sum(-(-length // size) for length in lengths[:most])
    settings = EngineSettings(
        block_size=size,
        cache_tokens=max(blocks, 1) * size,
        max_sequences=most,
        max_batch_tokens=max(CHUNK, most),
        max_waiting=len(prompts),
    )
    return Engine(model, None, settings)


def _tokens(request: Request) -> Iterator[int]:
    for piece in request:
        yield from piece.ids
        if piece.error is not None:
            raise RuntimeError(f"the engine failed: {piece.error}")
