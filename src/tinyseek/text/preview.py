"""How data will be learned from: examples as the model will read them, with the trained tokens in colour."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Literal

from tinyseek.errors import UserError
from tinyseek.text.chat import encode_completion, encode_examples, encode_prompt
from tinyseek.text.conversations import Message
from tinyseek.text.datasets import Data
from tinyseek.text.examples import Kind, Labelled, Pair, Prompt, Thumb
from tinyseek.text.show import cell

if TYPE_CHECKING:
    from rich.text import Text

    from tinyseek.text.tokenizer import Tokenizer

TRAINED, READ, CONTROL = "black on bright_green", "", "bold red"
OPENING, CLOSING = "⟦", "⟧"  # around what is trained, where there are no colours
MEASURED = 200  # examples whose lengths are taken
Learn = Literal["answers", "last", "all"]


@dataclass(frozen=True)
class Block:
    """One example, or one side of a pair: a line about it, and its tokens."""

    title: str
    ids: list[int]
    mask: list[bool]
    plain: list[Message]  # the messages, for whoever has no tokenizer
    more: dict[str, Any]  # what lies beside: a label, columns for rewards


def blocks(example: Any, number: int, tokenizer: Tokenizer | None, learn: Learn = "answers") -> list[Block]:
    """An example as what training will see of it.

    Raises:
        UserError: a chat template that refuses it.
    """
    name = f"example {number}"
    if isinstance(example, Pair):
        sides = (("chosen", example.chosen), ("rejected", example.rejected))
        return [_side(f"{name}, {side}", example.prompt, said, tokenizer) for side, said in sides]
    if isinstance(example, Thumb):
        return [
            _side(f"{name}, {'liked' if example.good else 'not liked'}", example.prompt, example.completion, tokenizer)
        ]
    if isinstance(example, Prompt):
        ids = [] if tokenizer is None else encode_prompt(tokenizer, example.messages)
        return [Block(name, ids, [False] * len(ids), example.messages, example.columns)]
    if isinstance(example, Labelled):
        ids = [] if tokenizer is None else tokenizer.encode(example.text)
        said = [{"role": "text", "content": example.text}]
        return [Block(name, ids, [False] * len(ids), said, {"label": example.label})]
    if tokenizer is None:
        return [Block(name, [], [], example, {})]
    parts = encode_examples(tokenizer, example, learn)
    names = [name] if len(parts) == 1 else [f"{name}, part {part}" for part in range(1, len(parts) + 1)]
    return [Block(title, ids, mask, example, {}) for title, (ids, mask) in zip(names, parts, strict=True)]


def _side(title: str, prompt: list[Message], said: list[Message], tokenizer: Tokenizer | None) -> Block:
    ids, mask = ([], []) if tokenizer is None else encode_completion(tokenizer, prompt, said)
    return Block(title, ids, mask, [*prompt, *said], {})


def render(block: Block, tokenizer: Tokenizer | None, colours: bool = True) -> Text:
    """A block for the terminal: a title, the tokens (trained ones coloured), what lies beside.

    Args:
        colours: without, what is trained stands between ⟦ and ⟧.
    """
    from rich.text import Text

    counted = f": {len(block.ids):,} tokens, {sum(block.mask):,} trained" if tokenizer is not None else ""
    line = Text(f"── {block.title}{counted}\n", style="bold")
    if tokenizer is None:
        for message in block.plain:
            line.append(f"{message['role']}: ", style="bold")
            line.append(f"{_said(message)}\n", style=TRAINED if colours and message["role"] == "assistant" else "")
    else:
        line.append_text(_tokens(block, tokenizer, colours))
        line.append("\n")
    for name, value in block.more.items():
        line.append(f"{name}: ", style="bold")
        line.append(f"{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)}\n")
    return line


def _tokens(block: Block, tokenizer: Tokenizer, colours: bool) -> Text:
    """The tokens of one colour together, so that a character of several tokens is one."""
    from rich.text import Text

    controls = {index: name for name, index in tokenizer.controls.items()}
    line, before = Text(), False
    pairs = zip(block.ids, block.mask, strict=True)
    for (trained, control), run in groupby(pairs, key=lambda pair: (pair[1], pair[0] in controls)):
        if not colours and trained != before:
            line.append(OPENING if trained else CLOSING)
        before = trained
        data = b"".join(controls[index].encode() if control else tokenizer.token_bytes(index) for index, _ in run)
        for part in data.splitlines(keepends=True):
            line.append_text(cell(part, TRAINED if trained else CONTROL if control else READ))
            if part.endswith(b"\n"):
                line.append("\n")
    if before and not colours:
        line.append(CLOSING)
    return line


def _said(message: Message) -> str:
    thought = f"<think>{message['reasoning_content']}</think>" if message.get("reasoning_content") else ""
    calls = "".join(
        f" {call['function']['name']}({call['function']['arguments']})" for call in message.get("tool_calls", ())
    )
    return f"{thought}{message.get('content') or ''}{calls}"


@dataclass(frozen=True)
class Summary:
    """What a whole source holds."""

    kind: Kind
    good: int
    bad: int
    problems: Sequence[str]
    unfilled: int
    lengths: Sequence[int]  # tokens of the first `MEASURED` examples
    trained: int  # among those


def preview(
    data: Data, count: int, tokenizer: Tokenizer | None, kind: Kind | None = None, learn: Learn = "answers"
) -> tuple[list[Block], Summary]:
    """The first examples of a source as blocks, and what there is in all.

    Raises:
        UserError: nothing usable in it; a tokenizer without a chat template, for what needs one.
    """
    kind = kind or data.kind()
    if tokenizer is not None and tokenizer.chat_template is None and kind != "label":
        raise UserError("this tokenizer has no chat template; leave --tokenizer out to see the messages as they are")
    found = data.examples(kind)
    shown: list[Block] = []
    lengths: list[int] = []
    trained = 0
    for number, example in enumerate(islice(found, max(count, MEASURED)), 1):
        made: Iterable[Block] = ()
        if number <= count or tokenizer is not None:
            made = blocks(example, number, tokenizer, learn)
        if number <= count:
            shown += made
        if tokenizer is not None:
            lengths += [len(block.ids) for block in made]
            trained += sum(sum(block.mask) for block in made)
    for _ in found:  # to the end, for the counts
        pass
    return shown, Summary(kind, found.good, found.bad, found.problems, found.unfilled, lengths, trained)
