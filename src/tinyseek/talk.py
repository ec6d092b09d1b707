"""Talking to a model in the terminal: one prompt continued (`generate`), or a conversation (`chat`)."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tinyseek.errors import UserError
from tinyseek.model.hub import find_model
from tinyseek.settings import Settings

if TYPE_CHECKING:
    from tinyseek.engine.sampler import SamplingParams
    from tinyseek.model.transformer import CausalLM
    from tinyseek.text.tokenizer import Tokenizer

LEAST_ROOM = 32  # tokens of context that an answer must have, before old turns are dropped to make room


class TalkSettings(Settings):
    """How tokens are drawn."""

    max_tokens: int = Field(256, ge=1, description="at most this many new tokens; the model's context is a limit too")
    temperature: float = Field(0.0, ge=0, le=100, description="0 takes the likeliest token; about 0.7 is lively")
    top_k: int | None = Field(None, ge=1, description="draw among the k likeliest tokens; none for all")
    top_p: float = Field(1.0, gt=0, le=1, description="draw among the likeliest that hold this much probability")
    seed: int | None = Field(None, ge=0, description="the same seed draws the same tokens; none for new ones")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to compute")


class ChatSettings(TalkSettings):
    """How tokens are drawn, and what the model is told first."""

    system: str = Field("", description="instructions that stand before the conversation")


def model_folder(path: str) -> Path:
    """The folder of a model: see `hub.find_model`, which says what is slow on stderr here."""
    return find_model(path, lambda line: print(line, file=sys.stderr, flush=True))


@dataclass
class Speaker:
    """A model, its tokenizer, and how it draws."""

    model: CausalLM
    tokenizer: Tokenizer
    settings: TalkSettings
    folder: Path

    @classmethod
    def load(cls, path: str, settings: TalkSettings) -> Speaker:
        """Load a model folder with its tokenizer.

        Raises:
            UserError: no model, a damaged one, or a tokenizer with tokens that the model does not know.
        """
        folder = model_folder(path)
        import torch

        from tinyseek.model.transformer import CausalLM
        from tinyseek.text.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(folder)
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            model = CausalLM.load(folder, device=device).eval()
        except (RuntimeError, AssertionError) as error:
            if device == "cpu":
                raise
            raise UserError(f"device={device} cannot be used here: {str(error).splitlines()[0]}") from None
        if tokenizer.vocab_size > model.config.vocab_size:
            raise UserError(
                f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens, its model {model.config.vocab_size}: they do not "
                "belong together; put back the tokenizer that the model was trained with"
            )
        return cls(model, tokenizer, settings, folder)

    @property
    def context(self) -> int:
        return self.model.config.max_position_embeddings

    def params(self) -> SamplingParams:
        from tinyseek.engine.sampler import SamplingParams

        chosen = self.settings
        return SamplingParams(
            max_tokens=chosen.max_tokens,
            temperature=chosen.temperature,
            top_k=chosen.top_k,
            top_p=chosen.top_p,
            seed=chosen.seed,
            stop_ids=frozenset(self.tokenizer.stop_ids),
        )

    def continuation(self, prompt: str) -> Iterator[str]:
        """The text after `prompt`, piece by piece. The prompt is plain text: no template, no control tokens."""
        from tinyseek.engine.generate import stream

        start = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        decoder = self.tokenizer.stream()
        for token in stream(self.model, start + self.tokenizer.encode(prompt), self.params()):
            yield decoder.push(token)
        yield decoder.flush()

    def answer(self, messages: list[dict[str, Any]], said: list[int]) -> Iterator[tuple[str, bool]]:
        """The answer to a conversation: pieces of text, each with whether the model is thinking.

        Args:
            messages: where they fill the context, the oldest turns are dropped from the list.
            said: is given each token of the answer.
        Raises:
            UserError: the last message alone is longer than the context allows.
        """
        from tinyseek.engine.generate import stream

        prompt = self.prompt(messages)
        begin, end = self.tokenizer.token_id("<think>"), self.tokenizer.token_id("</think>")
        thinking = begin is not None and begin in prompt[-2:]  # some templates open the thought themselves
        decoder = self.tokenizer.stream()
        for token in stream(self.model, prompt, self.params()):
            said.append(token)
            if token in (begin, end):
                yield decoder.flush(), thinking
                thinking = token == begin
            else:
                yield decoder.push(token), thinking
        yield decoder.flush(), thinking

    def prompt(self, messages: list[dict[str, Any]]) -> list[int]:
        """A conversation's ids up to where the model speaks. What people write is never a control token."""
        from tinyseek.text.chat import encode_prompt

        room = min(LEAST_ROOM, self.context // 4)
        while True:
            ids = encode_prompt(self.tokenizer, messages)
            if len(ids) + room <= self.context:
                return ids
            first = 1 if messages[0]["role"] == "system" else 0
            if len(messages) <= first + 1:
                raise UserError(
                    f"the prompt has {len(ids)} tokens, but the model's context is {self.context}; shorten it"
                )
            del messages[first : first + 2]


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


HELP = (
    "/reset forgets the conversation, /system TEXT sets instructions, /quit (or Ctrl-D) leaves; Ctrl-C stops an answer"
)


def chat(speaker: Speaker, system: str) -> None:
    """A conversation on the terminal, or with the lines of standard input as prompts where that is no terminal.

    Raises:
        UserError: the model has no chat template; a line does not fit into the context (without a terminal).
    """
    if speaker.tokenizer.chat_template is None:
        raise UserError(
            f"{speaker.folder}: has no chat template, so it was not taught to chat; use `tinyseek generate`"
        )
    person = sys.stdin.isatty()
    opening: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    if person:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - line editing and history in input()
        print(f"{speaker.folder}: {HELP}", file=sys.stderr)
    for line in _lines(person):
        command, _, rest = line.partition(" ")
        if command in ("/quit", "/exit"):
            return
        if command == "/help":
            print(HELP)
        elif command == "/reset":
            messages = list(opening)
            print("(forgotten)")
        elif command == "/system":
            opening = [{"role": "system", "content": rest.strip()}] if rest.strip() else []
            messages = list(opening)
            print(
                "(a new conversation with these instructions)"
                if opening
                else "(a new conversation without instructions)"
            )
        elif command.startswith("/") and command[1:].isalpha():
            print(f"no command {command}; {HELP}")
        else:
            if not person:
                print(f"> {line}")
            messages.append({"role": "user", "content": line})
            _answer(speaker, messages, person)


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


def _answer(speaker: Speaker, messages: list[dict[str, Any]], person: bool) -> None:
    """Show the answer to the last message and add it to the conversation; Ctrl-C keeps what was said so far."""
    from tinyseek.text.chat import decode_answer

    screen = Screen(person and sys.stdout.isatty())
    turns = len(messages)
    said: list[int] = []
    try:
        for text, thinking in speaker.answer(messages, said):
            screen.show(text, thinking)
        screen.show("", False)
    except KeyboardInterrupt:
        if not person:
            raise
        screen.show(" (stopped)", False)
    except UserError as error:
        if not person:
            raise
        messages.pop()
        print(f"({error})")
        return
    if person and len(messages) < turns:
        print("\n(the oldest turns were forgotten: the context is full)", end="")
    messages.append(decode_answer(speaker.tokenizer, said).message())
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
