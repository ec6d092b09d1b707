"""What all pages of one server share: the model, the store, the answers that are being written, and who has a page open."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tinyseek.errors import UserError
from tinyseek.llm.base import ChatModel
from tinyseek.studio.answering import Answering, conversation, shortened
from tinyseek.studio.chats import Chats, Conversation, Message
from tinyseek.studio.inside import Look
from tinyseek.studio.options import StudioSettings, Talk

if TYPE_CHECKING:
    from tinyseek.engine.engine import Stats
    from tinyseek.llm.local import LocalChat

Listener = Callable[[str | None], None]  # is told which conversation changed, or none for the list alone


class BusyError(UserError):
    """As many answers as are allowed are being written already."""


class Shared:
    """One for each server."""

    def __init__(self, chat: ChatModel, settings: StudioSettings, beside: Sequence[ChatModel] = ()) -> None:
        """Open the store.

        Args:
            chat: who answers where nobody chose; beside: further models to choose among.
        Raises:
            UserError: it cannot be opened.
        """
        self.chat, self.settings = chat, settings
        self.models = {one.name: one for one in (chat, *beside)}
        self.chats = Chats(settings.folder() / "chats.db")
        self.answers: dict[str, Answering] = {}  # by conversation
        self._owners: dict[str, str] = {}  # of these conversations
        self._listeners: dict[str, set[Listener]] = {}

    def chat_of(self, talk: Talk) -> ChatModel:
        """Who answers in a conversation; one that is no longer here is stood in for by the first."""
        return self.models.get(talk.model, self.chat)

    def local(self, talk: Talk) -> LocalChat | None:
        """The model of a conversation, if it runs here and can be looked into."""
        from tinyseek.llm.local import LocalChat

        chat = self.chat_of(talk)
        return chat if isinstance(chat, LocalChat) else None

    def stats(self) -> Stats | None:
        """What the engine, which all models here share, is doing."""
        local = self.local(Talk())
        return local.engine.stats() if local else None

    def answer(self, place: Conversation, parent: Message, talk: Talk) -> Answering:
        """Begin to answer after `parent`, which may have other answers already.

        Raises:
            BusyError: too many answers of this visitor, or one in this conversation, are being written.
        """
        if place.id in self.answers or list(self._owners.values()).count(place.owner) >= self.settings.answers:
            raise BusyError("answers are being written")
        message = self.chats.add(place, parent.id, "assistant", state="writing")
        before = self.chats.path(place, parent.id)
        answering = Answering(self.chat_of(talk), self.chats, message, before, talk)
        self.answers[place.id], self._owners[place.id] = answering, place.owner
        answering.task.add_done_callback(functools.partial(self._ended, place))
        return answering

    def _ended(self, place: Conversation, _task: asyncio.Task[None]) -> None:
        self.answers.pop(place.id, None)
        self._owners.pop(place.id, None)
        self.tell(place.owner, None)

    async def close(self) -> None:
        """Stop what is being written, keep it, and close the store."""
        tasks = [answering.task for answering in self.answers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.chats.close()

    # ---- several pages of one visitor ----

    def listen(self, owner: str, listener: Listener) -> None:
        """Be told when another page of the same visitor changes something."""
        self._listeners.setdefault(owner, set()).add(listener)

    def leave(self, owner: str, listener: Listener) -> None:
        """Be told no more."""
        listeners = self._listeners.get(owner, set())
        listeners.discard(listener)
        if not listeners:
            self._listeners.pop(owner, None)

    def tell(self, owner: str, place: str | None, but: Listener | None = None) -> None:
        """Tell the visitor's pages, all `but` one, that a conversation (or only the list) changed."""
        for listener in list(self._listeners.get(owner, ())):
            if listener != but:
                listener(place)

    # ---- looking inside ----

    async def look(self, place: Conversation, message: Message) -> Look:
        """Read an answer once more, together with what stood before it, and keep what went on inside.

        Raises:
            UserError: the model does not run here, or the text is too long.
        """
        talk = Talk.kept(message.facts.get("talk") or {})  # as it was when this was written
        local = self.local(talk)
        if local is None:
            raise UserError("only a model that runs here can be looked into")
        said = conversation(self.chats.path(place, message.parent), talk)
        prompt = local.prompt(shortened(said, int(message.facts.get("forgotten") or 0)), talk.options()).ids
        answer = message.ids or local.tokenizer.encode(message.content)
        seen = await asyncio.to_thread(local.inspect, [*prompt, *answer])
        return Look(message.id, local.tokenizer, seen, len(prompt))
