"""Collecting: a teacher answers prompts; what is right, clean and new becomes data to learn from. With `sft`, rejection sampling.

    samples.jsonl   every answer, with its rewards and, if it is not learned from, why
    train.jsonl     conversations to learn from, as a tasks folder has them

An answer is known by the hash of all that decides it: the teacher, the conversation, how it is drawn, its number. It is asked for
once: what a killed run had, and what the folder had before other settings, is taken from there. So a change of how answers are
judged asks nothing, and four answers to each prompt become eight by asking for four more.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.llm.base import Message
from tinyseek.text.datasets import find_data
from tinyseek.train import StoppedError, state
from tinyseek.train.metrics import duration, say
from tinyseek.tune.distill.journal import Journal, records
from tinyseek.tune.distill.options import CollectSettings
from tinyseek.tune.distill.teacher import Ask, Got, Outcome, Teacher
from tinyseek.tune.distill.verify import Sample, choose, is_right, judge, share
from tinyseek.tune.rl.rewards import RewardSet

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

JOURNAL, SAMPLES, TRAIN = "answers.jsonl", "samples.jsonl", "train.jsonl"
_CARRIED = ("answer", "kind", "lang")  # columns that train.jsonl keeps, as a tasks folder has them
_EVERY = 10.0  # seconds between plain lines of progress
Records = dict[str, dict[str, Any]]  # by the answer's key


@dataclass
class Prompts:
    """What is asked."""

    messages: list[list[Message]] = field(default_factory=list)
    columns: list[dict[str, Any]] = field(default_factory=list)
    repeated: int = 0  # prompts that were there before, left out
    unreadable: int = 0
    problems: list[str] = field(default_factory=list)


def build(settings: CollectSettings, folder: Path) -> None:
    """Collect, judge and clean. A run that was stopped goes on from `FOLDER.work`.

    Raises:
        UserError: no prompts, a reward that cannot judge them, no such teacher, a key that the server refuses.
        StoppedError: the budget is used up, or answers could not be had; what came is kept.
    """
    inputs, keys = inputs_of(settings)
    prompts = read_prompts(settings)
    work = folder.with_name(folder.name + ".work")
    rewards = RewardSet.of(settings.reward_options(), settings.reward_seconds, settings.on_reward_error)
    with rewards, state.held(work):
        rewards.check(sorted({name for columns in prompts.columns for name in columns}))
        tell(prompts, settings)
        teacher = Teacher(settings, keys["teacher"])
        try:
            asks = list(wanted(settings, prompts, teacher.identity))
            known, tried, spent = already(work / JOURNAL, folder / SAMPLES, {ask.key for ask in asks})
            got = collected(teacher, asks, known, tried, spent, settings, work)
        finally:
            teacher.close()
        samples = list(samples_of(asks, got, prompts))
        judge(samples, rewards)
        dropped = choose(samples, settings)
        figures = figures_of(samples, dropped, prompts, settings, teacher.name, work / JOURNAL)
        with artifact.writing(folder, "collect", settings.essence(), inputs, keys) as (partial, measured):
            write_samples(partial / SAMPLES, samples)
            write_train(partial / TRAIN, samples)
            measured |= figures
        shutil.rmtree(work)
    tell_outcome(figures, settings)


# ---- what is asked ---------------------------------------------------------------------------------------------------------------


def inputs_of(settings: CollectSettings) -> tuple[dict[str, Path], dict[str, str]]:
    """Path and key of what the stage is made from, by role; a server has a key alone."""
    paths, keys = {}, {}
    for role, source in settings.taken().items():
        name = role.partition(".")[0]
        key = settings.input_key(name, source)
        if name == "data":
            paths[role] = Path(source) if Path(source).exists() else find_data(source).files[0]
        elif not settings.at_server:
            paths[role] = Path(source)
        keys[role] = key or artifact.key_of(paths[role])
    return paths, keys


def read_prompts(settings: CollectSettings) -> Prompts:
    """The prompts, each once, at most `limit` of them, evenly spread.

    Raises:
        UserError: a source without any prompt.
    """
    found = Prompts()
    seen: set[str] = set()
    for source in settings.data:
        examples = find_data(source).examples("prompt")
        for prompt in examples:
            text = json.dumps(prompt.messages, sort_keys=True)
            if text in seen:
                found.repeated += 1
                continue
            seen.add(text)
            found.messages.append(prompt.messages)
            found.columns.append(prompt.columns)
        found.unreadable += examples.bad
        found.problems += examples.problems
    count = len(found.messages)
    if settings.limit is not None and settings.limit < count:
        chosen = [at * count // settings.limit for at in range(settings.limit)]
        found.messages = [found.messages[at] for at in chosen]
        found.columns = [found.columns[at] for at in chosen]
    return found


def tell(prompts: Prompts, settings: CollectSettings) -> None:
    """Say what is asked and what is not."""
    count = len(prompts.messages)
    say(f"{count:,} prompts, {settings.n} answers to each: {count * settings.n:,} answers")
    if prompts.repeated:
        say(f"note: {prompts.repeated:,} prompts are in the data more than once and are asked once")
    if prompts.unreadable:
        say(f"warning: {prompts.unreadable:,} records could not be read and were left out: {prompts.problems[0]}")


def wanted(settings: CollectSettings, prompts: Prompts, teacher: str) -> Iterator[Ask]:
    """Every answer that is wanted: the first to all prompts, the second to all, and so on, so that a run that ends early has
    asked all prompts alike."""
    drawn = settings.model_dump(
        include={"temperature", "top_p", "top_k", "max_tokens", "thinking", "seed", "quantize"}, mode="json"
    )
    asked = [with_system(messages, settings.system) for messages in prompts.messages]
    for number in range(settings.n):
        for row, messages in enumerate(asked):
            tools = messages[0].get("tools") if messages[0]["role"] == "system" else None
            plain = [{name: value for name, value in message.items() if name != "tools"} for message in messages]
            plain = [m for m in plain if m["role"] != "system" or m["content"]]
            text = json.dumps([teacher, plain, tools, drawn, number], sort_keys=True, ensure_ascii=False)
            yield Ask(hashlib.blake2b(text.encode(errors="replace"), digest_size=16).hexdigest(), row, plain, tools)


def with_system(messages: Sequence[Message], system: str) -> list[Message]:
    """A prompt with a system message, if it has none that says anything."""
    if not system:
        return list(messages)
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    if not messages[0]["content"]:
        return [messages[0] | {"content": system}, *messages[1:]]
    return list(messages)


# ---- asking --------------------------------------------------------------------------------------------------------------------


def already(journal: Path, samples: Path, wanted_keys: set[str]) -> tuple[Records, Counter[str], float]:
    """What is there: the answers that need not be asked for, how often others were tried, and the money spent in this run."""
    known: Records = {}
    tried: Counter[str] = Counter()
    spent = 0.0
    for record in records(samples):
        if record.get("key") in wanted_keys:
            known[record["key"]] = {**record, "message": record.get("completion"), "from": "folder"}
    for record in records(journal):
        spent += record.get("cost") or 0.0
        if record.get("key") not in wanted_keys:
            continue
        if record.get("last"):
            known[record["key"]] = record
        else:
            tried[record["key"]] += 1
    return known, tried, spent


def collected(
    teacher: Teacher,
    asks: Sequence[Ask],
    known: Records,
    tried: Mapping[str, int],
    spent: float,
    settings: CollectSettings,
    work: Path,
) -> Records:
    """Ask for what is missing, and put every answer into the journal as it comes.

    Raises:
        UserError: what is wrong with all requests: the key, the address, the model's name.
        StoppedError: the budget is used up, or answers could not be had, and that is not to be accepted.
    """
    todo = [
        Ask(ask.key, ask.row, ask.messages, ask.tools, tried.get(ask.key, 0)) for ask in asks if ask.key not in known
    ]
    if known and todo:
        say(f"{len(known):,} answers are there already; asking for {len(todo):,}")
    if not todo:
        return known
    name = teacher.name
    with Journal(work / JOURNAL) as journal, Progress("answers", len(known), len(asks), spent, settings) as shown:

        def record(ask: Ask, got: Got) -> None:
            entry = entry_of(ask, got, name)
            journal.add(entry)
            if got.last:
                known[ask.key] = entry
            shown.add(entry)

        outcome = teacher.ask(todo, spent, record)
    missing = sum(ask.key not in known for ask in asks)
    if missing or outcome.fatal:
        end_early(outcome, missing, len(asks), settings)
    return known


def entry_of(ask: Ask, got: Got, model: str) -> dict[str, Any]:
    """An answer as the journal has it."""
    usage = got.usage
    entry: dict[str, Any] = {"key": ask.key, "row": ask.row, "outcome": got.kind, "message": got.message}
    entry |= {"finish": got.finish, "last": got.last, "model": model}
    entry |= {"tokens": usage.completion_tokens, "prompt_tokens": usage.prompt_tokens}
    entry |= {"cached_tokens": usage.cached_tokens} if usage.cached_tokens else {}
    entry |= {"cost": usage.cost} if usage.cost is not None else {}
    return entry | ({"error": got.error} if got.error else {})


def end_early(outcome: Outcome, missing: int, count: int, settings: CollectSettings) -> None:
    """Say why answers are missing, and stop if that is not to be accepted."""
    have = f"{count - missing:,} of {count:,} answers are kept"
    again = "the same command goes on from there"
    if outcome.fatal:
        raise UserError(f"{outcome.fatal}; {have}, and {again}" if missing < count else str(outcome.fatal))
    why = outcome.stopped or f"{missing:,} answers could not be had: {outcome.failed[-1] if outcome.failed else ''}"
    if settings.unfinished == "accept" and missing < count:
        say(f"warning: {why}; going on with the {count - missing:,} of {count:,} answers that came")
        return
    how = f"raise budget (now {settings.budget:g}) and {again}" if outcome.reason == "budget" else again
    raise StoppedError(f"{why}; {have}: {how}, or unfinished=accept is content with these")


class Progress:
    """How far it is, how fast, for how much: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, title: str, done: int, count: int, spent: float, settings: CollectSettings) -> None:
        self._title, self._done, self._count = title, done, count
        self._first, self._spent, self._tokens = done, spent, 0
        self._kinds: Counter[str] = Counter()
        prices = settings.server.prices
        self._currency = None if prices is None or not settings.at_server else prices.note
        self._began = self._said = time.monotonic()
        self._bar: Bar | None = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
            self._bar = Progress(*columns, TextColumn("{task.fields[text]}"), console=Console(stderr=True))
            self._task = self._bar.add_task(self._title, total=self._count, completed=self._done, text="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._done > self._first:
            say(f"{self._title}: {self._done:,} of {self._count:,}{self._text(ended=True)}")

    def add(self, entry: Mapping[str, Any]) -> None:
        """One answer came."""
        self._done += bool(entry["last"])
        self._tokens += entry["tokens"]
        self._spent += entry.get("cost") or 0.0
        if entry["outcome"] != "answered":
            self._kinds[entry["outcome"]] += 1
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, text=self._text())
        elif now - self._said >= _EVERY:
            self._said = now
            say(f"{self._title}: {self._done:,} of {self._count:,}{self._text()}")

    def _text(self, ended: bool = False) -> str:
        seconds = max(1e-6, time.monotonic() - self._began)
        done = self._done - self._first
        parts = [f"{self._tokens / seconds:,.0f} tokens/s"]
        parts += (
            [] if self._currency is None else [f"{self._spent:.4f} spent{' ' * bool(self._currency)}{self._currency}"]
        )
        parts += [f"{count:,} {kind}" for kind, count in sorted(self._kinds.items())]
        if done > 0 and self._done < self._count and not ended:
            parts.append(f"{duration(seconds / done * (self._count - self._done))} left")
        return "".join(f", {part}" for part in parts)


# ---- what comes of it ------------------------------------------------------------------------------------------------------------


def samples_of(asks: Sequence[Ask], got: Records, prompts: Prompts) -> Iterator[Sample]:
    """The answers that came, prompt by prompt."""
    for ask in sorted(asks, key=lambda ask: ask.row):  # stable: by number within each
        record = got.get(ask.key)
        if record is not None:
            row = ask.row
            yield Sample(
                row,
                prompts.messages[row],
                prompts.columns[row],
                record.get("message"),
                record["outcome"],
                record["tokens"],
                record,
            )


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Every answer, with what it was rewarded and what became of it."""
    with path.open("w", encoding="utf-8", errors="replace") as stream:
        for sample in samples:
            record = sample.record
            line: dict[str, Any] = {"prompt": sample.prompt, "completion": sample.message, "rewards": sample.rewards}
            line |= {"total": sample.total, "dropped": sample.dropped, "answer": sample.columns.get("answer")}
            line |= {"tokens": sample.tokens, "finish": record.get("finish"), "model": record.get("model")}
            line |= {"row": sample.row, "outcome": sample.kind, "key": record["key"]}
            kept = ("prompt_tokens", "cached_tokens", "cost", "error")
            line |= {name: record[name] for name in kept if record.get(name) is not None}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def write_train(path: Path, samples: Sequence[Sample]) -> None:
    """The conversations to learn from."""
    with path.open("w", encoding="utf-8", errors="replace") as stream:
        for sample in samples:
            if sample.dropped is None:
                carried = {name: sample.columns[name] for name in _CARRIED if sample.columns.get(name) is not None}
                line = {"messages": [*sample.prompt, sample.message], **carried}
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def figures_of(
    samples: Sequence[Sample],
    dropped: Mapping[str, int],
    prompts: Prompts,
    settings: CollectSettings,
    teacher: str,
    journal: Path,
) -> dict[str, Any]:
    """What the manifest says of it."""
    right = [is_right(sample, settings) if sample.is_said else False for sample in samples]
    solved = {sample.row for sample, is_one in zip(samples, right, strict=True) if is_one}
    kept = [sample for sample in samples if sample.dropped is None]
    figures: dict[str, Any] = {
        "prompts": len(prompts.messages),
        "answers": len(samples),
        "kept": len(kept),
        "prompts_kept": len({sample.row for sample in kept}),
        "dropped": dict(sorted(dropped.items())),
        "teacher": teacher,
        "repeated_prompts": prompts.repeated,
        "unreadable_records": prompts.unreadable,
    }
    if settings.rewards:
        figures |= {"right": share(right), "prompts_right_once": round(len(solved) / max(1, len(prompts.messages)), 4)}
        named = {name for sample in samples for name in sample.rewards}
        for name in sorted(named):
            told = [score for sample in samples if (score := sample.rewards.get(name)) is not None]
            figures[f"reward_{name}"] = round(sum(told) / len(told), 4) if told else None
    again = [record for record in records(journal) if not record.get("last")]
    figures["asked_again"] = len(again)
    everything = [sample.record for sample in samples] + again
    figures["tokens"] = {
        "completion": sum(record["tokens"] for record in everything),
        "prompt": sum(record.get("prompt_tokens") or 0 for record in everything),
        "cached": sum(record.get("cached_tokens") or 0 for record in everything),
    }
    if settings.at_server and settings.server.prices is not None:
        figures["cost"] = round(sum(record.get("cost") or 0.0 for record in everything), 6)
        figures["currency"] = settings.server.prices.note
    return figures


def tell_outcome(figures: Mapping[str, Any], settings: CollectSettings) -> None:
    """What came of it, in a line or two."""
    why = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in figures["dropped"].items())
    say(
        f"{figures['kept']:,} of {figures['answers']:,} answers kept, to {figures['prompts_kept']:,} of "
        f"{figures['prompts']:,} prompts{f'; left out: {why}' if why else ''}"
    )
    if figures.get("right") is not None:
        say(
            f"right: {figures['right']:.1%} of the answers, {figures['prompts_right_once']:.1%} of the prompts at least once"
        )
    if not figures["kept"]:
        say(f"warning: nothing is left to learn from with keep={settings.keep}")
