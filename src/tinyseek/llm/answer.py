"""An answer taken apart while it is written: reasoning, content, tool calls.

Models mark the parts of an answer in a few known ways, by tokens of their own where the vocabulary has them, else by text:

    <think>REASONING</think>CONTENT                                 R1 and all after it; the prompt may have opened it already
    CALLS_BEGIN  CALL_BEGIN NAME SEP ARGUMENTS CALL_END ... CALLS_END                                          V3.1, and ours
    ...CALL_BEGIN function SEP NAME (line end) ```json (line end) ARGUMENTS (line end) ``` CALL_END ...               V3, R1
    <tool_call>{"name": NAME, "arguments": ARGUMENTS}</tool_call>                                               Hermes, Qwen
    <｜DSML｜function_calls> <｜DSML｜invoke name="NAME">                                                                V3.2
        <｜DSML｜parameter name="KEY" string="true|false">VALUE</｜DSML｜parameter> ...
    </｜DSML｜invoke> ... </｜DSML｜function_calls>

A tool call ends the reasoning. What only looks like a call and cannot be read comes back as content; no text is lost. The pieces
put together are `text.chat.decode_answer` of the whole (a test holds them equal).
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyseek.llm.base import ToolCallDelta

if TYPE_CHECKING:
    from tinyseek.text.tokenizer import Tokenizer

THINK, THOUGHT = "<think>", "</think>"
CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, SEP, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
HERMES_BEGIN, HERMES_END = "<tool_call>", "</tool_call>"
DSML = "｜DSML｜"
DSML_BEGIN, DSML_END = f"<{DSML}function_calls>", f"</{DSML}function_calls>"
MARKS = (THINK, THOUGHT, CALLS_BEGIN, CALLS_END, CALL_BEGIN, SEP, CALL_END, HERMES_BEGIN, HERMES_END)

# {"name": "NAME", "arguments": {   - from the brace on the arguments stream
_HERMES_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_LONGEST_HEAD = 2048  # characters in which it is looked for; a call that begins otherwise is read when it is whole
_FENCED_HEAD = re.compile(r"\s*(\S[^\n]*)\n\s*```[a-z]*[ \t]*\n")  # NAME and the opening of V3's fence
_FENCE = re.compile(r"\s*`{0,3}\s*\Z")  # what may be its end
_INVOKE_BEGIN, _INVOKE_END = f"<{DSML}invoke", f"</{DSML}invoke>"
_INVOKE = re.compile(rf'\s*<{DSML}invoke name="([^"]+)">(.*?)</{DSML}invoke>', re.DOTALL)
_PARAMETER = re.compile(
    rf'\s*<{DSML}parameter name="([^"]+)" string="(true|false)">(.*?)</{DSML}parameter>\s*', re.DOTALL
)


@dataclass(frozen=True)
class Parts:
    """What is new in an answer."""

    reasoning: str = ""
    content: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.tool_calls)


class Splitter:
    """Text and marks in, parts out. What may turn out to be the beginning of a mark is held back until that is certain.

    Attributes:
        part: where the text stands: "reasoning", "content" or "tool_calls".
        calls: tool calls begun so far.
        calls_ended: of these, those that are complete.
    """

    def __init__(
        self,
        text_marks: Collection[str] = (THINK, THOUGHT, HERMES_BEGIN, HERMES_END),
        *,
        thinking: bool = False,
        answering: bool = False,
        tools: bool = True,
    ) -> None:
        """Begin an answer.

        Args:
            text_marks: marks that are looked for in the text, since the vocabulary has no tokens for them.
            thinking: the prompt had opened the reasoning already.
            answering: the prompt had closed it, or begun the content: what comes is content.
            tools: read tool calls; without it they are content.
        """
        self._text_marks = set(text_marks)
        self._tools = tools
        self._state = "reasoning" if thinking else "content" if answering else "start"
        self._held = ""  # the end of the text, if it may begin a mark
        self._space = ""  # white space after the content: dropped if a Hermes call follows, or went before
        self._after_call = False
        self._raw: list[
            tuple[str, bool]
        ] = []  # around calls: pieces that would be content if they are none; is it a mark
        self._body = ""  # of what is read as a whole: a call's head, a call that does not stream
        self._lead = ""  # white space before a Hermes call, or a block of V3.2's
        self._in_block = 0  # calls of that block so far
        self._fenced = False
        self._json = _Json()
        self._name = ""
        self.calls = 0
        self.calls_ended = 0
        self._new: tuple[list[str], list[str], list[ToolCallDelta]] = ([], [], [])

    @property
    def part(self) -> str:
        if self._state in ("start", "content"):
            return "content"
        return "reasoning" if self._state == "reasoning" else "tool_calls"

    # ---- what comes in

    def text(self, text: str) -> None:
        """More text."""
        text, self._held = self._held + text, ""
        while text:
            text = self._consume(text)

    def mark(self, mark: str) -> None:
        """A mark that came as a token of its own."""
        self._let_go()
        self._meet(mark)

    def end(self) -> None:
        """The answer is over: what was held back comes out."""
        self._let_go()
        if self._state == "hermes":
            self._end_hermes("")
        elif self._state in ("args", "fenced"):
            self._end_call()
        elif self._state == "hermes args":
            self.calls_ended += 1
        elif self._state == "hermes tail":
            self._end_tail()
        elif self._state == "dsml":
            self._end_dsml()
        if self._state == "head" and not self.calls:  # after calls it is only the beginning of one more, cut off
            self._raw.append((self._body, False))
        self._settle()
        if not self._after_call:
            self._new[1].append(self._space)
        self._space = ""

    def taken(self) -> Parts:
        """What is new since the last time."""
        parts = Parts("".join(self._new[0]), "".join(self._new[1]), tuple(self._new[2]))
        self._new = ([], [], [])
        return parts

    def _let_go(self) -> None:
        """Text that was held back as the beginning of a mark is no mark."""
        held, self._held = self._held, ""
        if held:
            self._state = "content" if self._state == "start" else self._state
            self._plain(held)

    # ---- text

    def _consume(self, text: str) -> str:
        """Take some of the text in; returns the rest."""
        state = self._state
        if state == "start":
            if THINK in self._text_marks and text.startswith(THINK):
                self._meet(THINK)
                return text[len(THINK) :]
            if THINK in self._text_marks and THINK.startswith(text):
                self._held = text
                return ""
            self._state = "content"
            return text
        if state == "reasoning":
            return self._consume_until(text, THOUGHT, HERMES_BEGIN, DSML_BEGIN)
        if state == "content":
            return self._consume_until(text, HERMES_BEGIN, DSML_BEGIN)
        if state == "hermes":
            return self._consume_hermes(text)
        if state == "hermes args":
            end = self._json.value_end(text)
            self._argue(text[:end])
            if self._json.done:
                self._state, self._body = "hermes tail", ""
            return text[end:]
        if state == "hermes tail":
            return self._consume_until(text, HERMES_END)
        if state == "dsml":
            return self._consume_dsml(text)
        self._plain(text)
        return ""

    def _consume_until(self, text: str, *marks: str) -> str:
        """Take in the text up to the first of these marks, and the mark."""
        wanted = [mark for mark in marks if mark in self._text_marks and (self._tools or mark == THOUGHT)]
        found = min(((at, mark) for mark in wanted if (at := text.find(mark)) >= 0), default=None)
        if found is None:
            keep = max((_overlap(text, mark) for mark in wanted), default=0)
            self._plain(text[: len(text) - keep])
            self._held = text[len(text) - keep :]
            return ""
        at, mark = found
        self._plain(text[:at])
        self._meet(mark)
        return text[at + len(mark) :]

    def _consume_hermes(self, text: str) -> str:
        known = len(self._body)
        self._body += text
        head = _HERMES_HEAD.match(self._body) if known < _LONGEST_HEAD else None
        name = _string(head[1]) if head else None
        end = self._body.find(HERMES_END, max(0, known - len(HERMES_END))) if HERMES_END in self._text_marks else -1
        if head and name and not 0 <= end < head.end():
            rest = self._body[head.end() :]
            self._open_call(name)
            self._state, self._json = "hermes args", _Json()
            return rest
        if end < 0:
            return ""
        rest, self._body = self._body[end + len(HERMES_END) :], self._body[:end]
        self._end_hermes(HERMES_END)
        return rest

    def _consume_dsml(self, text: str) -> str:
        """Calls in V3.2's markup, each told when it is whole."""
        rest = self._body + text
        while _INVOKE_END in rest[-len(text) - len(_INVOKE_END) :]:
            call = _INVOKE.match(rest)
            arguments = _arguments(call[2]) if call else None
            if call is None or arguments is None:
                break
            rest = rest[call.end() :]
            self._open_call(call[1])
            self._argue(arguments)
            self.calls_ended += 1
            self._in_block += 1
        self._body, ahead = rest, rest.lstrip()
        if ahead.startswith(DSML_END):
            self._state, self._after_call, self._space = "content", True, ""
            return ahead[len(DSML_END) :]
        wanted = (DSML_END, _INVOKE_BEGIN)
        if _INVOKE_END in rest or not any(mark.startswith(ahead[: len(mark)]) for mark in wanted):
            self._end_dsml()
        return ""

    def _end_dsml(self) -> None:
        """A block that was cut off, or cannot be read: content, but for the beginning of one more call."""
        body, self._state = self._body, "content"
        if not self._in_block:
            self._say(f"{self._lead}{DSML_BEGIN}{body}")
        elif not body.lstrip().startswith(_INVOKE_BEGIN) or _INVOKE_END in body:
            self._say(body)

    def _plain(self, text: str) -> None:
        """Text without marks, where it belongs."""
        if not text:
            return
        if self._state == "reasoning":
            self._new[0].append(text)
        elif self._state == "content":
            self._say(text)
        elif self._state == "args":
            self._argue(text)
        elif self._state == "fenced":
            self._body += text
            head = _FENCED_HEAD.match(self._body)
            if self._body.lstrip()[:1] == "{":  # V3.1, and a function that is really called "function"
                body, self._state = self._body, "args"
                self._open_call("function")
                self._argue(body)
            elif head:
                rest, self._state = self._body[head.end() :], "args"
                self._open_call(head[1].strip())
                self._body, self._fenced = "", True
                self._argue(rest)
        elif self._state in ("calls", "after"):
            self._raw.append((text, False))
        elif self._state == "hermes args":
            self._argue(text)
        else:
            self._body += text

    # ---- marks

    def _meet(self, mark: str) -> None:
        if self._state == "start":
            self._state = "reasoning" if mark == THINK else "content"
            if mark == THINK:
                return
        state = self._state
        if state in ("reasoning", "content"):
            if mark == THOUGHT and state == "reasoning":
                self._state = "content"
            elif mark == CALLS_BEGIN and self._tools:
                self._state = "calls"
                self._raw.append((mark, True))
            elif mark == HERMES_BEGIN and self._tools:
                self._state, self._body = "hermes", ""
                self._lead, self._space = self._space, ""
            elif mark == DSML_BEGIN and self._tools:
                self._state, self._body, self._in_block = "dsml", "", 0
                self._lead, self._space = self._space, ""
            else:
                self._plain(mark)
        elif state in ("calls", "head", "after"):
            if state == "head" and mark == SEP and self._body.strip():
                self._name, self._body = self._body.strip(), ""
                self._state = "fenced" if self._name == "function" else "args"
                if self._state == "args":
                    self._open_call(self._name)
                return
            if state == "head":
                self._raw.append((self._body, False))
            self._raw.append((mark, True))
            self._body = ""
            if mark == CALLS_END:
                self._state = "after"
            elif mark in (CALLS_BEGIN, CALL_END):
                self._state = "calls"
            elif mark == CALL_BEGIN and state != "after":
                self._state = "head"
        elif state in ("args", "fenced") and mark in (CALL_END, CALLS_END):
            self._end_call()
            self._state = "calls" if mark == CALL_END else "after"
        elif state == "hermes" and mark == HERMES_END:
            self._end_hermes(mark)
        elif state == "hermes args" and mark == HERMES_END:
            self._end_hermes_call()
        elif state == "hermes tail" and mark == HERMES_END:
            self._end_tail()
        else:
            self._plain(mark)

    # ---- calls

    def _open_call(self, name: str) -> None:
        self._settle()
        self._new[2].append(ToolCallDelta(self.calls, f"call_{uuid.uuid4().hex[:24]}", name))
        self.calls += 1
        self._body, self._fenced = "", False

    def _argue(self, text: str) -> None:
        """A piece of the arguments of the last call."""
        if self._fenced:
            text = self._body + text
            keep = _FENCE.search(text)
            cut = keep.start() if keep else len(text)
            text, self._body = text[:cut], text[cut:]
        if text:
            self._new[2].append(ToolCallDelta(self.calls - 1, arguments=text))

    def _end_call(self) -> None:
        if self._state == "fenced":  # neither a fence nor an object: as it came
            body = self._body
            self._open_call("function")
            self._argue(body)
        elif self._fenced and not self._body.strip(" \n\t`"):
            self._body, self._fenced = "", False
        self.calls_ended += 1

    def _end_hermes(self, mark: str) -> None:
        """A whole Hermes call that did not stream: the arguments first, or as a text, or no call at all."""
        self._state = "content"
        try:
            call = json.loads(self._body)
            name, arguments = call["name"], call.get("arguments", call.get("parameters", {}))
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            name, arguments = None, None
        if not isinstance(name, str) or not name or not isinstance(arguments, dict | str):
            self._say(f"{self._lead}{HERMES_BEGIN}{self._body}{mark}")
            return
        self._open_call(name)
        self._argue(arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))
        self._end_hermes_call()

    def _end_tail(self) -> None:
        """After a call's arguments a brace should have come; more than that is content."""
        tail = self._body.strip().removeprefix("}").strip()
        self._end_hermes_call()
        if tail:
            self._say(tail)

    def _end_hermes_call(self) -> None:
        self.calls_ended += 1
        self._state, self._after_call, self._space = "content", True, ""

    def _say(self, text: str) -> None:
        """Content. White space at its end waits, in case that a call follows."""
        text = self._space + text
        said = text.rstrip() if self._tools else text
        self._space = text[len(said) :]
        if said:
            self._after_call = False
            self._new[1].append(said)

    def _settle(self) -> None:
        """What stood around calls: all of it is content if there was no call, else only what is neither marks nor space."""
        raw, self._raw = self._raw, []
        called = self.calls > 0 or self._state in ("args", "fenced")
        text = "".join(piece for piece, is_mark in raw if not (called and is_mark))
        if text and (not called or text.strip()):
            self._new[1].append(self._space + text)
            self._space = ""


class _Json:
    """Finds where a JSON object ends, piece by piece."""

    _TOKEN = re.compile(r'["\\{}\[\]]')

    def __init__(self) -> None:
        self.done = False
        self._depth = 0
        self._quoted = False
        self._escaped = False

    def value_end(self, text: str) -> int:
        """How much of `text` belongs to the value."""
        at = 0
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            found = self._TOKEN.search(text, at)
            if found is None:
                return len(text)
            at, char = found.end(), found.group()
            if self._quoted:
                self._quoted = char != '"'
                self._escaped = char == "\\"
            elif char == '"':
                self._quoted = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self.done = True
                    return at
        return len(text)


class TokenSplitter:
    """Token ids in, parts out."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        thinking: bool = False,
        answering: bool = False,
        tools: bool = True,
        hermes: bool = False,
        dsml: bool = False,
    ) -> None:
        """Begin an answer; as `Splitter`.

        Args:
            tokenizer: the one that the ids are of.
            thinking: the prompt had opened the reasoning already.
            answering: the prompt had closed it, or begun the content.
            tools: read tool calls.
            hermes: look for Hermes calls in the text, if the vocabulary has no tokens for them.
            dsml: look for V3.2's calls in the text.
        """
        self._marks = {tokenizer.controls[mark]: mark for mark in MARKS if mark in tokenizer.controls}
        wanted = [mark for mark in MARKS if mark in (THINK, THOUGHT) or (hermes and mark in (HERMES_BEGIN, HERMES_END))]
        in_text = [mark for mark in wanted if mark not in tokenizer.controls] + ([DSML_BEGIN] if dsml else [])
        self._splitter = Splitter(in_text, thinking=thinking, answering=answering, tools=tools)
        self._controls = {index: text for text, index in tokenizer.controls.items()}
        self._decoder = tokenizer.stream(skip_specials=True)
        self.labels: list[str] = []

    @property
    def calls(self) -> int:
        """Tool calls begun so far."""
        return self._splitter.calls

    @property
    def calls_ended(self) -> int:
        """Tool calls that are complete."""
        return self._splitter.calls_ended

    def push(self, ids: Iterable[int]) -> Parts:
        """What these ids bring. Afterwards `labels` says of each where it stands: "reasoning", "content", "tool_calls", "mark"."""
        splitter = self._splitter
        self.labels = []
        for index in ids:
            if index in self._marks:
                splitter.text(self._decoder.flush())
                before = splitter.part
                splitter.mark(self._marks[index])
                self.labels.append("mark" if splitter.part != before or before == "tool_calls" else before)
                continue
            shown = self._controls.get(index)
            if shown is not None and (splitter.part == "tool_calls" or shown == DSML):  # in arguments all is shown
                splitter.text(self._decoder.flush() + shown)
            else:
                splitter.text(self._decoder.push(index))
            self.labels.append(splitter.part)
        return splitter.taken()

    def push_text(self, text: str) -> Parts:
        """Text that came without tokens: the part of one before a stop string. Bytes that waited for more are in it."""
        self._decoder.flush()
        self._splitter.text(text)
        return self._splitter.taken()

    def end(self) -> Parts:
        """The answer is over: what was held back."""
        self._splitter.text(self._decoder.flush())
        self._splitter.end()
        return self._splitter.taken()


def split_text(pieces: Sequence[str], *, thinking: bool = False, tools: bool = True) -> Parts:
    """A whole answer in text, from a server that left the marks in."""
    splitter = Splitter(thinking=thinking, tools=tools)
    for piece in pieces:
        splitter.text(piece)
    splitter.end()
    return splitter.taken()


def _arguments(body: str) -> str | None:
    """The arguments of a call in V3.2's markup as JSON; none where it cannot be read."""
    values, at = {}, 0
    while found := _PARAMETER.match(body, at):
        name, is_text, value = found.groups()
        try:
            values[name] = value if is_text == "true" else json.loads(value)
        except (ValueError, RecursionError):
            return None
        at = found.end()
    return None if body[at:].strip() else json.dumps(values, ensure_ascii=False)


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` begin `mark`."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)


def _string(literal: str) -> str | None:
    try:
        value = json.loads(literal)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
