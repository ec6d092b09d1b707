"""Talking to a model in the terminal: one prompt continued (`generate`), or a conversation (`chat`) with any chat model."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tinyseek.errors import UserError
from tinyseek.llm.base import ChatDelta, ChatError, ChatModel, ChatOptions, Collector, ContextError, Message
from tinyseek.settings import Settings

if TYPE_CHECKING:
    from tinyseek.engine.options import EngineSettings

LEAST_ROOM = 32  # tokens of context that an answer must have, before old turns are dropped to make room


class TalkSettings(Settings):
    """How tokens are drawn, and where."""

    max_tokens: int = Field(256, ge=1, description="at most this many new tokens; the model's context is a limit too")
    temperature: float = Field(0.0, ge=0, le=100, description="0 takes the likeliest token; about 0.7 is lively")
    top_k: int | None = Field(None, ge=1, description="draw among the k likeliest tokens; none for all")
    top_p: float = Field(1.0, gt=0, le=1, description="draw among the likeliest that hold this much probability")
    seed: int | None = Field(None, ge=0, description="the same seed draws the same tokens; none for new ones")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to compute")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="number format of the weights")
    quantize: Literal["none", "int8", "int4"] = Field("none", description="weights in fewer bits, on a CPU")

    def engine(self) -> EngineSettings:
        """For a local model."""
        from tinyseek.engine.options import EngineSettings

        return EngineSettings(device=self.device, dtype=self.dtype, quantize=self.quantize)


class ChatSettings(TalkSettings):
    """How tokens are drawn, and what the model is told first. What is none is left to the model or its server."""

    max_tokens: int | None = Field(None, ge=1, description="longest answer; none for as long as the context allows")  # type: ignore[assignment]
    temperature: float | None = Field(  # type: ignore[assignment]
        None,
        ge=0,
        le=100,
        description="0 takes the likeliest token, which is a local model's own choice; about 0.7 is lively",
    )
    top_p: float | None = Field(  # type: ignore[assignment]
        None, gt=0, le=1, description="draw among the likeliest that hold this much probability"
    )
    system: str = Field("", description="instructions that stand before the conversation")
    thinking: bool | None = Field(None, description="whether the model thinks before it answers")
    model: str | None = Field(None, description="which of a server's models; none for its first")

    def options(self) -> ChatOptions:
        """For a chat model."""
        return ChatOptions(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            seed=self.seed,
            thinking=self.thinking,
        )


def model_folder(path: str) -> Path:
    """The folder of a model: the one given, of a run the model that was made last, or that of a pulled name or a .gguf file.

    Raises:
        UserError: there is none.
    """
    from tinyseek.model.hub import find_model

    return find_model(path, lambda text: print(text, file=sys.stderr))


def continuation(where: str, prompt: str, settings: TalkSettings) -> Iterator[str]:
    """The text after `prompt`, piece by piece. The prompt is plain text: no template, no control tokens.

    Raises:
        UserError: no model, or a prompt that its context does not hold.
    """
    from tinyseek.engine.engine import Engine
    from tinyseek.engine.params import SamplingParams

    engine = Engine.load(model_folder(where), settings.engine())
    params = SamplingParams(
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        seed=settings.seed,
    )
    for piece in engine.submit(engine.tokenizer.begin_ids + engine.tokenizer.encode(prompt), params):
        if piece.error:
            raise UserError(piece.error)
        yield piece.text


# ---- a conversation --------------------------------------------------------------------------------------------------------------


@dataclass
class Conversation:
    """What was said so far, and with whom."""

    chat: ChatModel
    options: ChatOptions = field(default_factory=ChatOptions)
    system: str = ""
    messages: list[Message] = field(default_factory=list)  # without the instructions
    forgotten: int = 0  # messages that the last answer had no room for

    def ask(self, question: str) -> None:
        """Add a question, in place of one that was never answered."""
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()
        self.messages.append({"role": "user", "content": question})

    def all(self, messages: list[Message] | None = None) -> list[Message]:
        """The messages with the instructions before them."""
        messages = self.messages if messages is None else messages
        return [{"role": "system", "content": self.system}, *messages] if self.system else list(messages)

    def answer(self) -> Iterator[ChatDelta]:
        """The answer to the last message, which becomes part of the conversation: also one that was stopped.

        Where the context is full the oldest turns are dropped.

        Raises:
            UserError: the last message alone is too long, or the model cannot answer; the conversation stays as it was.
        """
        collector, kept, self.forgotten = Collector(), self.messages, 0
        try:
            while True:
                kept = self._fitting(kept)
                try:
                    for delta in self.chat.stream(self.all(kept), self.options):
                        collector.push(delta)
                        yield delta
                    break
                except ChatError as error:  # only the server knows its context
                    shorter = _without_oldest(kept)
                    if collector.answers() or error.status != 400 or "context" not in str(error) or not shorter:
                        raise
                    kept = shorter
        finally:
            answers = collector.answers()
            if answers and (answers[0].content or answers[0].reasoning or answers[0].tool_calls):
                self.forgotten = len(self.messages) - len(kept)
                self.messages = [*kept, answers[0].message]

    def _fitting(self, messages: list[Message]) -> list[Message]:
        """The newest turns that leave room for an answer, where the model's context is known."""
        context = self.chat.context
        while (tokens := self.chat.count_tokens(self.all(messages), self.options)) is not None and context:
            if tokens + min(LEAST_ROOM, context // 4) <= context:
                break
            shorter = _without_oldest(messages)
            if not shorter:
                raise ContextError(tokens, context)
            messages = shorter
        return messages

    def take_back(self) -> bool:
        """Take the last answer back, so that the question can be asked again. False if there is no question."""
        while self.messages and self.messages[-1]["role"] != "user":
            self.messages.pop()
        return bool(self.messages)

    def save(self, file: Path) -> None:
        """Add the conversation to a JSONL file, as `tinyseek sft data=[FILE]` reads it.

        Raises:
            UserError: the file cannot be written.
        """
        try:
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"messages": self.all()}, ensure_ascii=False) + "\n")
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: cannot be written ({error})") from None


def _without_oldest(messages: list[Message]) -> list[Message]:
    """The messages without their oldest turn; empty if there is no other."""
    later = [number for number, message in enumerate(messages) if message["role"] == "user"][1:]
    return messages[later[0] :] if later else []


@dataclass
class Screen:
    """Where an answer is shown: on a terminal the thoughts are dimmed, elsewhere they stand in <think> marks."""

    colour: bool
    thinking: bool = False

    def show(self, text: str, thinking: bool) -> None:
        """Print a piece of the answer; an empty piece only ends the thought."""
        if thinking != self.thinking and (text or not thinking):
            marks = ("\x1b[2m", "\x1b[0m\n") if self.colour else ("<think>", "</think>")
            print(marks[0] if thinking else marks[1], end="")
            self.thinking = thinking
        print(text, end="", flush=True)

    def delta(self, delta: ChatDelta) -> None:
        """Print a piece of an answer; a call is shown as it would be written."""
        if delta.reasoning:
            self.show(delta.reasoning, True)
        if delta.content:
            self.show(delta.content, False)
        for call in delta.tool_calls:
            self.show((f"\n{call.name} " if call.name else "") + call.arguments, False)


HELP = """\
/reset            forget the conversation
/system TEXT      begin a new one with these instructions; without TEXT, with none
/retry            answer the last question again
/think on|off     let the model think before it answers, or not; /think auto leaves it to the model
/save FILE        add the conversation to a file of conversations (JSONL)
/help             this
/quit, Ctrl-D     leave; Ctrl-C stops an answer"""


def chat(conversation: Conversation) -> None:
    """A conversation on the terminal, or with the lines of standard input as prompts where that is no terminal.

    Raises:
        UserError: without a terminal, whatever goes wrong.
    """
    person = sys.stdin.isatty()
    conversation.chat.count_tokens(
        [{"role": "user", "content": "?"}]
    )  # a model that was not taught to chat says so at once
    if person:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - line editing and history in input()
        print(
            f"{conversation.chat.name}: /help tells the commands, Ctrl-C stops an answer, Ctrl-D leaves",
            file=sys.stderr,
        )
    for line in _lines(person):
        command, _, rest = line.partition(" ")
        if command in ("/quit", "/exit"):
            return
        try:
            if command.startswith("/") and command[1:].isalpha():
                told = _obey(conversation, command, rest.strip())
                if person or command == "/help":
                    print(told or "", end="\n" if told else "", flush=True)
                if command != "/retry" or told:
                    continue
            else:
                conversation.ask(line)
            if not person:
                print(f"> {conversation.messages[-1]['content']}")
            answer(conversation, person)
        except UserError as error:
            if not person:
                raise
            print(f"({error})")


def _obey(conversation: Conversation, command: str, rest: str) -> str:
    """Do a command; returns what to tell the person, nothing if an answer should follow.

    Raises:
        UserError: no such command, or it cannot be done.
    """
    if command == "/help":
        return HELP
    if command == "/reset":
        conversation.messages.clear()
        return "(forgotten)"
    if command == "/system":
        conversation.system = rest
        conversation.messages.clear()
        return f"(a new conversation {'with these' if rest else 'without'} instructions)"
    if command == "/retry":
        if not conversation.take_back():
            return "(there is no question yet)"
        if conversation.options.seed is not None:  # the same seed would say the same
            conversation.options = dataclasses.replace(conversation.options, seed=conversation.options.seed + 1)
        return ""
    if command == "/think":
        if rest not in ("on", "off", "auto"):
            raise UserError("/think on, /think off or /think auto")
        thinking = {"on": True, "off": False, "auto": None}[rest]
        conversation.options = dataclasses.replace(conversation.options, thinking=thinking)
        return f"(thinking: {rest})"
    if command == "/save":
        if not conversation.messages:
            return "(nothing was said yet)"
        file = Path(rest or f"chat-{datetime.now():%Y%m%d-%H%M%S}.jsonl").expanduser()
        conversation.save(file)
        return f"(saved to {file})"
    raise UserError(f"no command {command}; /help tells them")


def _lines(person: bool) -> Iterator[str]:
    """What is typed, or the lines of standard input; without the empty ones."""
    while True:
        try:
            line = input("\n> " if person else "").strip()
        except EOFError:
            if person:
                print()
            return
        except KeyboardInterrupt:
            if not person:
                raise
            print("\n(/quit or Ctrl-D leaves)")
            continue
        except UnicodeDecodeError:
            raise UserError("standard input is not UTF-8 text") from None
        if line:
            yield line


def answer(conversation: Conversation, person: bool) -> None:
    """Show the answer to the last message; Ctrl-C stops it and keeps what was said so far.

    Raises:
        UserError: there is no answer; the question is taken out of the conversation.
    """
    screen = Screen(person and sys.stdout.isatty())
    deltas = conversation.answer()
    try:
        with contextlib.closing(deltas):  # type: ignore[type-var]  # a generator
            for delta in deltas:
                screen.delta(delta)
        screen.show("", False)
    except KeyboardInterrupt:
        if not person:
            raise
        screen.show(" (stopped)", False)
    except UserError:
        screen.show("", False)
        if conversation.messages[-1]["role"] == "user":
            conversation.messages.pop()
        raise
    if person and conversation.forgotten:
        print("\n(the oldest turns were forgotten: the context is full)", end="")
    print()


def samples(folder: Path, most: int) -> list[tuple[str, str, str]]:
    """Questions, answers and right-or-wrong of an eval folder's last model, spread over the kinds of task.

    Returns:
        Rows of (question, answer, mark).
    """
    try:
        records = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    kinds: dict[Any, list[dict[str, Any]]] = {}
    for record in records:
        kinds.setdefault((record.get("kind"), record.get("lang")), []).append(record)
    chosen = [group[turn] for turn in range(most) for group in kinds.values() if turn < len(group)][:most]
    rows = []
    for record in chosen:
        if record.get("outputs"):
            name = list(record["outputs"])[-1]
            rows.append(
                (record["prompt"], record["outputs"][name].strip(), "right" if record["right"].get(name) else "wrong")
            )
    return rows
