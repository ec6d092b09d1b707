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
        draws: how to answer, each of them for every prompt, `n` times; with a seed, prompt `i` draws by one of its own.
        batch_size: texts written at a time.
        progress: told how many prompts are done with, of `len(draws) * len(prompts)`.
    Raises:
        UserError: a prompt leaves no room for an answer in the model's context.
    """
    from dataclasses import replace

    from tinyseek.engine.engine import Engine
    from tinyseek.engine.options import EngineSettings
    from tinyseek.engine.params import LARGEST_SEED

    context = model.config.max_position_embeddings
    longest = max(map(len, prompts), default=0)
    if longest >= context:
        raise UserError(f"a task's prompt fills the model's whole context of {context} tokens")
    wanted = max((draw.max_tokens for draw in draws), default=1)
    size = 16
    blocks = -(-min(context, longest + wanted) // size)
    settings = EngineSettings(
        block_size=size,
        cache_tokens=max(1, blocks * batch_size) * size,
        max_sequences=batch_size,
        max_batch_tokens=max(_READ_AT_ONCE, batch_size),
        max_waiting=len(prompts) * sum(draw.n for draw in draws),
    )
    found: list[list[list[Asked]]] = [[[] for _ in prompts] for _ in draws]
    was_training = model.training
    model.eval()
    try:
        engine = Engine(model, tokenizer, settings)
        requests: list[tuple[int, int, Request]] = []
        for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):  # of about one length: little padding
            for number, draw in enumerate(draws):
                seed = None if draw.seed is None else (draw.seed + 1_000_003 * index) % LARGEST_SEED
                asked = replace(draw, seed=seed, max_tokens=min(draw.max_tokens, context - len(prompts[index])))
                requests.append((number, index, engine.submit(prompts[index], asked)))
        for done, (number, index, request) in enumerate(requests, 1):
            found[number][index] = _read(request, tokenizer)
            if progress:
                progress(done)
    finally:
        model.train(was_training)
    return found


def _read(request: Request, tokenizer: Tokenizer) -> list[Asked]:
    """The texts of a request, stepping the engine meanwhile."""
    ids: list[list[int]] = [[] for _ in range(request.params.n)]
    ended = [False] * len(ids)
    for piece in request:
        ids[piece.index] += piece.ids
        if piece.error is not None:
            raise RuntimeError(f"the engine failed: {piece.error}")
        if piece.finish is not None:
            ended[piece.index] = piece.finish == "stop"
    opened = _opened(request.prompt, tokenizer)
    made = []
    for own, whole in zip(ids, ended, strict=True):
        text = tokenizer.decode(own)
        thought = opened or text.lstrip().startswith(THINK)
        made.append(Asked(text, len(own), whole, in_form(text, whole, opened), thought))
    return made


def _opened(prompt: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether a prompt ends inside the thought, which its template opened (a line end or two may follow the mark)."""
    think, thought = tokenizer.token_id(THINK), tokenizer.token_id(THOUGHT)
    tail = list(prompt[-4:])
    last = max((at for at, token in enumerate(tail) if token == think), default=-1) if think is not None else -1
    return last >= 0 and thought not in tail[last:]
