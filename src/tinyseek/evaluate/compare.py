"""The same prompts to several models, side by side: what each says, which is right, and who wins how often.

A model is anything that `ChatModel.open` takes: a folder, a stage, a pulled name, a server. One is held in memory at a time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyseek.errors import UserError
from tinyseek.evaluate.estimates import Mean, gain, mean_over_prompts
from tinyseek.evaluate.options import CompareSettings
from tinyseek.evaluate.progress import counted
from tinyseek.llm.base import ChatError, ChatModel, ChatOptions, ContextError, Message
from tinyseek.text.datasets import find_data
from tinyseek.text.examples import Prompt
from tinyseek.text.tasks import read_tasks

# Scores of answers to prompts, by one model: a number each, or none where the judge has nothing to say.
Judge = Callable[[Sequence[Prompt], Sequence[Message]], list[float | None]]
_PREFERRED = (
    "heldout",
    "test",
    "val",
    "validation",
)  # of a data folder, which file is asked: rather what nobody learned from


@dataclass(frozen=True)
class Reply:
    """One model's answer to one prompt."""

    content: str
    reasoning: str = ""
    tokens: int | None = None
    cut: bool = False  # it did not end by itself
    error: str | None = None
    score: float | None = None

    @property
    def message(self) -> Message:
        thought = {"reasoning_content": self.reasoning} if self.reasoning else {}
        return {"role": "assistant", "content": self.content, **thought}

    def plain(self) -> dict[str, Any]:
        told = {"tokens": self.tokens, "cut": self.cut, "error": self.error, "score": self.score}
        return {**self.message, **{name: value for name, value in told.items() if value not in (None, False)}}


@dataclass
class Side:
    """A model, its answers in the prompts' order, and how long it took for all of them."""

    name: str
    replies: list[Reply] = field(default_factory=list)
    seconds: float = 0.0

    def scored(self) -> list[float]:
        return [reply.score for reply in self.replies if reply.score is not None]

    @property
    def mean(self) -> Mean | None:
        """The mean score of those that have one."""
        scores = self.scored()
        return mean_over_prompts(scores, shares=all(0 <= score <= 1 for score in scores)) if scores else None

    @property
    def tokens(self) -> float | None:
        """Mean tokens an answer."""
        counts = [reply.tokens for reply in self.replies if reply.tokens is not None]
        return sum(counts) / len(counts) if counts else None

    def count(self, what: Callable[[Reply], bool]) -> int:
        return sum(map(what, self.replies))


@dataclass(frozen=True)
class Duel:
    """One model against another on the same prompts."""

    wins: int
    losses: int
    ties: int
    gain: Mean | None
    shorter: int
    longer: int
    same: int  # word for word, thoughts aside


@dataclass
class Comparison:
    """Prompts and every model's answers to them."""

    source: str
    prompts: list[Prompt]
    sides: list[Side]
    judged_by: str | None = None

    def duel(self, other: int, over: int = 0) -> Duel:
        """The model of one number against that of another."""
        mine, theirs = self.sides[other].replies, self.sides[over].replies
        pairs = [(a.score, b.score) for a, b in zip(mine, theirs, strict=True)]
        judged = [(a, b) for a, b in pairs if a is not None and b is not None]
        lengths = [(a.tokens, b.tokens) for a, b in zip(mine, theirs, strict=True)]
        counted = [(a, b) for a, b in lengths if a is not None and b is not None]
        return Duel(
            wins=sum(a > b for a, b in judged),
            losses=sum(a < b for a, b in judged),
            ties=sum(a == b for a, b in judged),
            gain=gain([b for _, b in judged], [a for a, _ in judged]) if judged else None,
            shorter=sum(a < b for a, b in counted),
            longer=sum(a > b for a, b in counted),
            same=sum(
                a.error is None and b.error is None and a.content.strip() == b.content.strip()
                for a, b in zip(mine, theirs, strict=True)
            ),
        )


# ---- asking ----------------------------------------------------------------------------------------------------------------------


def read_prompts(source: str, count: int) -> list[Prompt]:
    """An even choice of the prompts of a text file (one a line), a data file or folder, or a data set known by name.

    What a folder holds out is taken before what was learned from.

    Raises:
        UserError: there is no such thing, or no prompt in it.
    """
    path = Path(source)
    if path.is_dir():
        held_out = [path / f"{name}.jsonl" for name in _PREFERRED if (path / f"{name}.jsonl").is_file()]
        path = held_out[0] if held_out else path
        source = str(path)
    if path.suffix == ".txt" and path.is_file():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None
        prompts = [Prompt([{"role": "user", "content": line.strip()}], {}) for line in lines if line.strip()]
    else:
        prompts = _tasks(path) or list(find_data(source).examples("prompt"))
    if not prompts:
        raise UserError(f"{source}: no prompt in it; write one a line")
    if len(prompts) <= count:
        return prompts
    return [prompts[number * len(prompts) // count] for number in range(count)]


def _tasks(path: Path) -> list[Prompt]:
    """Tasks as prompts whose column `reply` is their own answer in full; none if the file is not of tasks."""
    if path.suffix != ".jsonl" or not path.is_file():
        return []
    try:
        records = read_tasks(path)
    except UserError:
        return []
    return [
        Prompt(
            r["messages"][:-1],
            {k: v for k, v in r.items() if k != "messages"} | {"reply": r["messages"][-1]["content"]},
        )
        for r in records
        if len(r["messages"]) > 1
    ]


def compare(
    models: Mapping[str, str],
    source: str,
    settings: CompareSettings,
    judge: Judge | None = None,
    open_model: Callable[[str], ChatModel] | None = None,
) -> Comparison:
    """Ask every model every prompt, one model after the other.

    Args:
        models: what to call each -> where it is.
        source: see `read_prompts`.
        judge: scores answers; none for no scores.
        open_model: in place of `ChatModel.open`.
    Raises:
        UserError: no prompts; a model that is not there, is no chat model, or answers nothing at all.
    """
    prompts = read_prompts(source, settings.count)
    sides = [_ask(name, where, prompts, settings, open_model or _opener(settings)) for name, where in models.items()]
    if judge is not None:
        for side in sides:
            scores = judge(prompts, [reply.message for reply in side.replies])
            side.replies = [_with_score(reply, score) for reply, score in zip(side.replies, scores, strict=True)]
    return Comparison(source, prompts, sides)


def _with_score(reply: Reply, score: float | None) -> Reply:
    from dataclasses import replace

    return reply if reply.error is not None else replace(reply, score=score)


def _opener(settings: CompareSettings) -> Callable[[str], ChatModel]:
    from tinyseek.engine.options import EngineSettings

    engine = EngineSettings(
        device=settings.device,
        dtype=settings.dtype,
        max_sequences=settings.batch_size,
        max_batch_tokens=max(512, settings.batch_size),
    )
    return lambda where: ChatModel.open(where, engine=engine)


def _ask(
    name: str, where: str, prompts: Sequence[Prompt], settings: CompareSettings, open_model: Callable[[str], ChatModel]
) -> Side:
    """Every prompt to one model, several at a time."""
    from tinyseek.llm.open import is_remote

    workers = settings.requests if is_remote(where) else settings.batch_size
    side = Side(name)
    with open_model(where) as model, counted(f"{name}: answering", len(prompts)) as update:
        began = time.monotonic()

        def one(prompt: Prompt) -> Reply:
            return _reply(model, prompt, settings)

        with ThreadPoolExecutor(max_workers=max(1, min(workers, len(prompts)))) as pool:
            for done, reply in enumerate(pool.map(one, prompts), 1):
                side.replies.append(reply)
                update(done)
        side.seconds = time.monotonic() - began
    failed = [reply.error for reply in side.replies if reply.error is not None]
    if len(failed) == len(prompts):
        raise UserError(f"{where}: answered none of {len(prompts)} prompts; the first failure: {failed[0]}")
    return side


def _reply(model: ChatModel, prompt: Prompt, settings: CompareSettings) -> Reply:
    messages = list(prompt.messages)
    if settings.system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": settings.system})
    options = ChatOptions(
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        seed=settings.seed,
        thinking=settings.thinking,
    )
    try:
        answer = model.complete(messages, options)
    except (ChatError, ContextError) as error:
        return Reply("", error=str(error))
    tokens = answer.usage.completion_tokens if answer.usage else None
    return Reply(answer.content, answer.reasoning, tokens, answer.finish not in ("stop", "tool_calls"))


def write_answers(comparison: Comparison, file: Path) -> None:
    """All prompts with all answers, one a line."""
    lines = []
    for number, prompt in enumerate(comparison.prompts):
        answers = {side.name: side.replies[number].plain() for side in comparison.sides}
        line = {"prompt": prompt.messages, **{key: prompt.columns[key] for key in prompt.columns}, "answers": answers}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    file.write_text("".join(lines), encoding="utf-8", errors="replace")
