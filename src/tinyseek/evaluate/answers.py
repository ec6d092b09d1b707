"""Many prompts asked of one model at once: greedily, and several times by chance, all in full batches of one engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyseek.errors import UserError

if TYPE_CHECKING:
    from tinyseek.engine.params import SamplingParams
    from tinyseek.engine.request import Request
    from tinyseek.model.transformer import CausalLM
    from tinyseek.text.tokenizer import Tokenizer

THINK, THOUGHT = "<think>", "</think>"
_READ_AT_ONCE = 2048  # tokens of prompts in one step


@dataclass(frozen=True)
class Asked:
    """What a model answered to one prompt, once.

    Attributes:
        text: with control tokens as text, since </think> is one; without the end token.
        tokens: how many it has, the end token not counted.
        ended: it ended by itself and was not cut off.
        formed: it is an answer in form: ended by itself, thought at most once and first and to the end, and something said after.
        thought: it thought before it answered.
    """

    text: str
    tokens: int
    ended: bool
    formed: bool
    thought: bool


def in_form(text: str, ended: bool, opened: bool = False) -> bool:
    """Whether an answer is in form; see `Asked`. `opened`: its prompt had opened the thought already."""
    text = (THINK if opened else "") + text.lstrip()
    if not ended or text.count(THINK) > 1 or text.count(THINK) != text.count(THOUGHT):
        return False
    thought, closed, final = text.partition(THOUGHT)
    if closed and not thought.startswith(THINK):
        return False
    return bool((final if closed else text).strip())


@dataclass(frozen=True)
class Written:
    """A text that the engine wrote: its tokens, what they say without special tokens, and whether it ended by itself."""

    ids: list[int]
    text: str
    ended: bool


def write(
    model: CausalLM,
    tokenizer: Tokenizer | None,
    jobs: Sequence[tuple[Sequence[int], SamplingParams]],
    *,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[list[Written]]:
    """The texts of each job, a prompt and how to go on from it, in the jobs' order; `batch_size` texts are written at a time.

    Args:
        tokenizer: without one there are tokens and no text, which is faster; what ends a text is then `stop_ids` alone.
        progress: told how many jobs are done with.
    Raises:
        UserError: a prompt leaves no room for an answer in the model's context.
    """
    from dataclasses import replace

    from tinyseek.engine.engine import Engine
    from tinyseek.engine.options import EngineSettings

    context = model.config.max_position_embeddings
    if any(len(prompt) >= context for prompt, _ in jobs):
        raise UserError(f"a task's prompt fills the model's whole context of {context} tokens")
    lengths = [min(len(prompt) + params.max_tokens, context) for prompt, params in jobs]
    size = 16
    settings = EngineSettings(
        block_size=size,
        cache_tokens=-(-max(lengths, default=1) // size) * batch_size * size,
        max_sequences=batch_size,
        max_batch_tokens=max(_READ_AT_ONCE, batch_size),
        max_waiting=sum(params.n for _, params in jobs),
    )
    found: list[list[Written]] = [[] for _ in jobs]
    was_training = model.training
    model.eval()
    try:
        engine = Engine(model, tokenizer, settings)
        requests: list[tuple[int, Request]] = []
        for index in sorted(range(len(jobs)), key=lambda i: len(jobs[i][0])):  # of about one length: little padding
            prompt, params = jobs[index]
            own = replace(params, max_tokens=min(params.max_tokens, context - len(prompt)))
            requests.append((index, engine.submit(prompt, own)))
        for done, (index, request) in enumerate(requests, 1):
            found[index] = _read(request)
            if progress:
                progress(done)
    finally:
        model.train(was_training)
    return found


def _read(request: Request) -> list[Written]:
    """The texts of a request, stepping the engine meanwhile."""
    ids: list[list[int]] = [[] for _ in range(request.params.n)]
    texts: list[list[str]] = [[] for _ in ids]
    ended = [False] * len(ids)
    for piece in request:
        ids[piece.index] += piece.ids
        texts[piece.index].append(piece.text)
        if piece.error is not None:
            raise RuntimeError(f"the engine failed: {piece.error}")
        if piece.finish is not None:
            ended[piece.index] = piece.finish == "stop"
    return [Written(own, "".join(parts), whole) for own, parts, whole in zip(ids, texts, ended, strict=True)]


def ask(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    draws: Sequence[SamplingParams],
    *,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[list[list[Asked]]]:
    """Answers by draw, prompt and sample: `found[draw][prompt][sample]`.

    Args:
        prompts: token ids, each ending where the model speaks.
        draws: how to answer, each of them for every prompt, `n` times; with a seed, prompt `i` draws by one of its own. Beside its
            own, the tokenizer's stop tokens end a text.
        progress: told how many prompts are done with, of `len(draws) * len(prompts)`.
    Raises:
        UserError: a prompt leaves no room for an answer in the model's context.
    """
    from dataclasses import replace

    from tinyseek.engine.params import LARGEST_SEED

    jobs = []
    for draw in draws:
        for index, prompt in enumerate(prompts):
            seed = None if draw.seed is None else (draw.seed + 1_000_003 * index) % LARGEST_SEED
            jobs.append((prompt, replace(draw, seed=seed, stop_ids=draw.stop_ids | frozenset(tokenizer.stop_ids))))
    written = write(model, None, jobs, batch_size=batch_size, progress=progress)
    opened = [_opened(prompt, tokenizer) for prompt in prompts]
    count = len(prompts)
    return [
        [[_asked(text, tokenizer, opened[index]) for text in written[number * count + index]] for index in range(count)]
        for number in range(len(draws))
    ]


def _asked(written: Written, tokenizer: Tokenizer, opened: bool) -> Asked:
    text = tokenizer.decode(written.ids)
    thought = opened or text.lstrip().startswith(THINK)
    return Asked(text, len(written.ids), written.ended, in_form(text, written.ended, opened), thought)


def _opened(prompt: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether a prompt ends inside the thought, which its template opened (a line end or two may follow the mark)."""
    think, thought = tokenizer.token_id(THINK), tokenizer.token_id(THOUGHT)
    tail = list(prompt[-4:])
    last = max((at for at, token in enumerate(tail) if token == think), default=-1) if think is not None else -1
    return last >= 0 and thought not in tail[last:]
