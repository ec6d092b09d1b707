"""Classification by asking: a prompt of background, need and form of the answer, examples, and an answer held to the labels.

The answer is constrained to be one of the labels while it is decoded, so that nothing need be searched for in what a model says.
Servers without that constraint (OpenAI's, Ollama, DeepSeek) are held to JSON with a label in it. One that keeps to neither is read
for the only label in its answer; if there is none, the answer counts as the first label and as unclear.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from tinyseek.errors import UserError
from tinyseek.llm.base import Answer, ChatError, ChatModel, ChatOptions, ContextError, Message
from tinyseek.text.examples import Labelled
from tinyseek.tune.classify.options import FewShotSettings

# Background, need, form of the answer: what the course calls the three parts of a prompt.
_TEMPLATES: dict[str, dict[str, str]] = {
    "en": {
        "background": "Background: {background}",
        "no_background": "the texts below are all of one kind, and each belongs to exactly one class.",
        "need": "Task: {need}",
        "no_need": "tell which class a text belongs to. The classes are: {labels}.",
        "form": "Answer with the name of one class and nothing else: no explanation, no quotation marks.",
        "text": "Text: {text}\nClass:",
    },
    "zh": {
        "background": "背景：{background}",
        "no_background": "下面的文本属于同一类数据，每条文本恰好属于一个类别。",
        "need": "需求：{need}",
        "no_need": "判断文本属于哪个类别。类别有：{labels}。",
        "form": "输出格式：只输出一个类别的名称，不要解释，不要引号。",
        "text": "文本：{text}\n类别：",
    },
}
_LONGEST = 2000  # characters of a text that are shown
_AT_ONCE = 8  # questions under way: a local engine works on them as one batch


@dataclass(frozen=True)
class Told:
    """What was answered about a text."""

    label: str
    unclear: bool = False  # no label in the answer: the server kept to no constraint
    prompt_tokens: int = 0
    completion_tokens: int = 0


def examples_of(texts: Iterable[Labelled], labels: Sequence[str], settings: FewShotSettings) -> list[Labelled]:
    """Examples to show: `shots` of each class, in turn, chosen by the seed; short ones before long ones of the same draw."""

    def drawn(text: Labelled) -> bytes:
        return hashlib.blake2b(f"{settings.seed} {text.text}".encode(errors="replace"), digest_size=8).digest()

    groups: dict[str, list[Labelled]] = {label: [] for label in labels}
    for text in texts:
        if text.label in groups:
            groups[text.label].append(text)
    for group in groups.values():
        group.sort(key=drawn)
    rounds = [[group[turn] for group in groups.values() if turn < len(group)] for turn in range(settings.shots)]
    return [text for turn in rounds for text in turn]


class FewShot:
    """A chat model as a classifier."""

    def __init__(
        self, chat: ChatModel, labels: Sequence[str], examples: Sequence[Labelled], settings: FewShotSettings
    ) -> None:
        """Make ready.

        Raises:
            UserError: fewer than two labels, or examples of others.
        """
        if len(labels) < 2:
            raise UserError("to tell classes apart, name two labels at least")
        strange = sorted({example.label for example in examples} - set(labels))
        if strange:
            raise UserError(f'examples have the label "{strange[0]}", which is none of {", ".join(labels)}')
        self.chat, self.labels, self.settings = chat, list(labels), settings
        self._opening = self._dialogue(examples)
        # The constraint ends the answer where the label ends; the limit is for servers that know none.
        longest = 8 + max(len(label.encode()) for label in labels)
        self._options = ChatOptions(
            temperature=0.0, max_tokens=longest, choice=self.labels, thinking=False, seed=settings.seed
        )
        form = {"name": "class", "schema": _schema(self.labels), "strict": True}
        self._as_json = replace(
            self._options,
            choice=None,
            max_tokens=longest + 24,
            response_format={"type": "json_schema", "json_schema": form},
        )
        self._knows_choice = True

    def _dialogue(self, examples: Sequence[Labelled]) -> list[Message]:
        words, settings = _TEMPLATES[self.settings.language], self.settings
        comma = "、" if settings.language == "zh" else ", "
        need = settings.need or words["no_need"].format(labels=comma.join(self.labels))
        parts = [words["background"].format(background=settings.background or words["no_background"])]
        parts += [words["need"].format(need=need), words["form"]]
        messages: list[Message] = [{"role": "system", "content": "\n".join(parts)}]
        for example in examples:
            messages += [self._question(example.text), {"role": "assistant", "content": example.label}]
        return messages

    def _question(self, text: str) -> Message:
        words = _TEMPLATES[self.settings.language]
        return {"role": "user", "content": words["text"].format(text=" ".join(text.split())[:_LONGEST])}

    def prompt(self, text: str) -> list[Message]:
        """What is asked about a text."""
        return [*self._opening, self._question(text)]

    def label(self, texts: Sequence[str]) -> list[Told]:
        """The label of each text.

        Raises:
            UserError: the model cannot be asked, or the examples alone are longer than its context.
        """
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(self._ask, texts))

    def _ask(self, text: str) -> Told:
        try:
            answer = self._answer(self.prompt(text))
        except ContextError as error:
            raise UserError(f"{error}. Show fewer examples (shots={self.settings.shots}), or shorter ones") from None
        usage = answer.usage
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        found = read_label(answer.content, self.labels)
        return Told(found or self.labels[0], found is None, *tokens)

    def _answer(self, messages: list[Message]) -> Answer:
        if self._knows_choice:
            try:
                return self.chat.complete(messages, self._options)
            except (ChatError, ContextError):
                raise
            except UserError:  # this kind of server has no `choice`
                self._knows_choice = False
        return self.chat.complete(messages, self._as_json)


def _schema(labels: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"class": {"type": "string", "enum": list(labels)}},
        "required": ["class"],
        "additionalProperties": False,
    }


def read_label(said: str, labels: Sequence[str]) -> str | None:
    """The label that an answer is, or the only one that stands in it; none where it is none, or several."""
    try:
        values = json.loads(said)
        said = str(values.get("class", said)) if isinstance(values, dict) else said
    except ValueError:
        pass
    bare = said.strip().strip("\"'“”「」.。 ")
    for same in (lambda word: word, str.casefold):
        exact = [label for label in labels if same(label) == same(bare)]
        if len(exact) == 1:
            return exact[0]
    inside = [label for label in labels if label.casefold() in bare.casefold()]
    # Where one label holds another ("spam" in "no spam"), the longer one was said.
    inside = [label for label in inside if not any(label != other and label in other for other in inside)]
    return inside[0] if len(inside) == 1 else None
