"""`tinyseek label`: texts in, their classes out; or how good answers are, by a reward model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tinyseek.commands import Parser, say, settings_text
from tinyseek.errors import UserError
from tinyseek.settings import Settings

_AT_ONCE = 256  # lines read before they are labelled


class LabelSettings(Settings):
    """Which classes, and how a chat model is asked; a trained classifier knows its classes and takes none of these."""

    labels: list[str] = Field([], description="the classes; if empty, those of the examples")
    examples: str = Field("", description="a file or data set of text and label, of which some are shown in the prompt")
    shots: int = Field(2, ge=0, le=64, description="examples of each class that are shown")
    background: str = Field("", description="what the texts are and where they come from")
    need: str = Field("", description="what is to be told of a text; if empty, which of the classes it belongs to")
    language: Literal["en", "zh"] = Field("en", description="of the prompt")
    seed: int = Field(0, ge=0, description="which examples are shown")


def label(arguments: list[str]) -> int:
    """Each text's class and the probability of every class, a line of JSON each."""

    parser = Parser(
        "label",
        "Tell what class texts are of: JSON lines of text, label and probabilities. MODEL is what tinyseek classify made, or any\n"
        "...ForSequenceClassification folder; or a chat model that is asked, with labels=[...] or examples=FILE. A reward model\n"
        "(tinyseek reward) takes a file of conversations and tells how good each last answer is.\n"
        "TEXT is a text; FILE has one on each line, or, as .jsonl, .csv, .tsv, .parquet, in its column text; - reads lines.",
        settings_text(lambda: LabelSettings),
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("texts", metavar="TEXT|FILE|-")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek.settings import nested

    settings = LabelSettings.read(nested(chosen.settings), "command line")
    if settings.labels or settings.examples:
        lines = asked(chosen.model, texts_of(chosen.texts), settings)
    else:
        lines = read(chosen.model, chosen.texts)
    for line in lines:
        print(json.dumps(line, ensure_ascii=False), flush=True)
    return 0


def texts_of(word: str) -> Iterator[str]:
    """The texts that a word of the command line means.

    Raises:
        UserError: a file that cannot be read, or has no column text.
    """
    path = Path(word)
    if word == "-":
        return (line.rstrip("\r\n") for line in _decoded(sys.stdin, "standard input"))
    if not _is_file(path):
        return iter([word])
    if path.suffix in (".txt", ""):
        return (line.rstrip("\r\n") for line in _decoded(path.open(encoding="utf-8-sig"), str(path)))
    return _column(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a text that is too long for a name, or has a zero byte
        return False


def _decoded(stream: Iterable[str], where: str) -> Iterator[str]:
    try:
        yield from stream
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8 text; convert it") from None


def _column(path: Path) -> Iterator[str]:
    from tinyseek.text.records import read_records

    for where, record in read_records(path):
        if isinstance(record, Exception):
            raise UserError(f"{path}, {where}: {record}")
        text = record.get("text") if isinstance(record, dict) else record
        if not isinstance(text, str):
            found = ", ".join(map(str, list(record)[:8])) if isinstance(record, dict) else type(record).__name__
            raise UserError(f'{path}, {where}: no column "text" with a text in it (found {found})')
        yield text


def _groups(texts: Iterator[str]) -> Iterator[list[str]]:
    while group := list(islice(texts, _AT_ONCE)):
        yield group


def read(model: str, word: str) -> Iterator[dict[str, Any]]:
    """By a trained head: classes of texts, or rewards of conversations."""
    from tinyseek.model import heads
    from tinyseek.model.hub import find_model

    folder = find_model(model, say)
    head = heads.read_head(folder)
    if head is None:
        raise UserError(
            f"{folder}: has no head for classes; train one (tinyseek classify), or have it asked as a chat model by labels=[a,b]"
        )
    return rewarded(folder, word) if len(head.labels) == 1 else labelled(folder, word)


def labelled(folder: Path, word: str) -> Iterator[dict[str, Any]]:
    """Each text with its class and the probability of every class; an empty text has none."""
    from tinyseek.tune.classify.stage import Labeller

    labeller = Labeller(folder)
    empty = 0
    for group in _groups(texts_of(word)):
        for text, row in zip(group, labeller.probabilities(group), strict=True):
            if not text.strip():
                empty += 1
                yield {"text": text, "label": None, "probabilities": None}
                continue
            shares = {name: round(float(share), 6) for name, share in zip(labeller.labels, row, strict=True)}
            yield {"text": text, "label": labeller.labels[int(row.argmax())], "probabilities": shares}
    if empty:
        say(f"note: {empty:,} empty texts have no label")
    if labeller.cut:
        say(f"note: {labeller.cut:,} texts were longer than {labeller.longest:,} tokens; only so much of them was read")


def rewarded(folder: Path, word: str) -> Iterator[dict[str, Any]]:
    """Each conversation of a file with its reward."""
    from tinyseek.text.datasets import find_data
    from tinyseek.tune.reward import RewardModel

    if not _is_file(Path(word)):
        raise UserError(f"{folder}: is a reward model; give it a file of conversations that end with an answer")
    judge = RewardModel(folder)
    conversations = find_data(word).examples("chat")
    while group := list(islice(conversations, _AT_ONCE)):
        rewards = judge.score([messages[:-1] for messages in group], [messages[-1:] for messages in group])
        for messages, reward in zip(group, rewards, strict=True):
            yield {"messages": messages, "reward": round(reward, 6)}
    if conversations.bad:
        say(f"warning: {conversations.bad:,} records could not be read: {'; '.join(conversations.problems[:3])}")


def asked(model: str, texts: Iterator[str], settings: LabelSettings) -> Iterator[dict[str, Any]]:
    """By a chat model that is asked."""
    from tinyseek.llm.base import ChatModel
    from tinyseek.text.datasets import find_data
    from tinyseek.tune.classify.few_shot import FewShot, examples_of
    from tinyseek.tune.classify.options import FewShotSettings
    from tinyseek.tune.classify.texts import in_order

    shown = list(find_data(settings.examples).examples("label")) if settings.examples else []
    labels = list(settings.labels) or in_order(example.label for example in shown)
    few = FewShotSettings(
        model=model,
        shots=settings.shots if shown else 0,
        background=settings.background,
        need=settings.need,
        language=settings.language,
        seed=settings.seed,
    )
    with ChatModel.open(model) as chat:
        asks = FewShot(chat, labels, examples_of(shown, labels, few), few)
        for group in _groups(texts):
            there = [text for text in group if text.strip()]
            told = iter(asks.label(there))
            for text in group:
                answer = next(told) if text.strip() else None
                line: dict[str, Any] = {"text": text, "label": answer.label if answer else None}
                yield line | ({"unclear": True} if answer and answer.unclear else {})
