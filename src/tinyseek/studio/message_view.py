"""One message on the page. An answer that grows is sent block by block: only the last blocks change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nicegui import ui

from tinyseek.evaluate.page import Html, el, join
from tinyseek.studio import pieces
from tinyseek.studio.chats import Message
from tinyseek.studio.live import markup
from tinyseek.studio.markdown import blocks
from tinyseek.studio.words import Words

_DOTS = el("div", el("i"), el("i"), el("i"), class_="dots")


class MessageView:
    """Draws a message again and again from what it is now, and touches only what became otherwise."""

    def __init__(self, message: Message, siblings: Sequence[int], words: Words, looks: bool) -> None:
        """Build it, empty; needs NiceGUI's slot.

        Args:
            siblings: the versions of this message.
            looks: whether an answer can be looked into.
        """
        self.message, self.siblings, self._words, self._looks = message, siblings, words, looks
        self.tokens: Html | None = None  # in place of the prose, when it is looked into
        self._thought: ui.element | None = None
        self._label = self._thinking = self._calls = self._bar = self._tokens = None  # type: ui.html | None
        self._blocks: list[ui.html] = []
        self.article = ui.element("article").classes(f"message {message.role}")
        with self.article:
            if message.role == "user":
                self._whole = markup("")
            else:
                self._before = ui.element("div")
                self._prose = ui.element("div").classes("prose")
                self._tokens = markup("")
                self._calls = markup("")
                self._bar = markup("", "bar")

    def show(self, results: Mapping[str, str], last: bool) -> None:
        """The message as it is now.

        Args:
            results: what tools gave back, by the call's id.
            last: nothing follows, so a tool's result may still be typed.
        """
        if self.message.role == "user":
            self._show_question()
        elif self.message.role == "assistant":
            self._show_answer(results, last)

    def edit(self) -> None:
        """A text box in place of the question."""
        self._whole.content = pieces.editor(self.message, self._words)

    def _show_question(self) -> None:
        said = el("div", self.message.content, class_="said")
        kind = "bar branches" if len(self.siblings) > 1 else "bar"
        self._whole.content = join(
            said, el("div", pieces.user_bar(self.message, self.siblings, self._words), class_=kind)
        )

    def _show_answer(self, results: Mapping[str, str], last: bool) -> None:
        message, words = self.message, self._words
        writing = message.state == "writing"
        self.article.classes(**{"add" if writing else "remove": "writing"})
        if message.reasoning:
            self._show_thought()
        self._before.set_visibility(self.tokens is None)
        self._prose.set_visibility(self.tokens is None)
        assert self._tokens is not None and self._calls is not None and self._bar is not None  # noqa: PT018
        self._tokens.content = self.tokens or ""
        self._show_blocks(blocks(message.content) if message.content else [])
        below: list[str] = []
        if message.calls:
            below.append(pieces.calls(message, results, words, asks=last and not writing))
        if message.state == "failed":
            below.append(pieces.failed(message, words))
        if writing and message.empty:
            below.append(_DOTS)
        if not writing and message.empty and message.state == "whole":
            below.append(el("p", words("The model said nothing."), class_="note"))
        self._calls.content = join(*below)
        self._bar.content = pieces.answer_bar(message, self.siblings, words, self._looks, self.tokens is not None)

    def _show_thought(self) -> None:
        """What the model thought, folded; opened, it stays open while the thought grows."""
        if self._thought is None:
            with self._before, ui.element("details").classes("thought") as self._thought:
                self._label = markup("", tag="summary")
                self._thinking = markup("", "inner prose")
        assert self._label is not None
        assert self._thinking is not None
        thinks = self.message.state == "writing" and not self.message.content and not self.message.calls
        self._thought.classes(**{"add" if thinks else "remove": "now"})
        self._label.content = pieces.thought_label(self.message, self._words)
        self._thinking.content = el("div", Html("".join(blocks(self.message.reasoning))))

    def _show_blocks(self, shown: list[str]) -> None:
        """A message that is complete when it is first shown is one element; one that grows, an element a block."""
        if not self._blocks and self.message.state != "writing":
            shown = ["".join(shown)] if shown else []
        for element in self._blocks[len(shown) :]:
            element.delete()
        del self._blocks[len(shown) :]
        for number, block in enumerate(shown):
            if number < len(self._blocks):
                self._blocks[number].content = block
            else:
                with self._prose:
                    self._blocks.append(markup(block))
