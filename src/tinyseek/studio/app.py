"""The chat page put onto a server, and beside it, where there are documents to ask, the knowledge page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import nicegui
from fastapi import FastAPI, Request
from nicegui import ui

from tinyseek.llm.base import ChatModel
from tinyseek.studio import site
from tinyseek.studio.chat_page import ChatPage
from tinyseek.studio.options import StudioSettings
from tinyseek.studio.shared import Shared

if TYPE_CHECKING:
    from tinyseek.knowledge.shelf import Shelf


def mount(
    app: FastAPI,
    chat: ChatModel,
    settings: StudioSettings | None = None,
    beside: Sequence[ChatModel] = (),
    knowledge: Shelf | None = None,
) -> Shared:
    """Put the chat page on an application, at `/` and below, after all of its own routes. Once in a process: NiceGUI's own limit.

    Args:
        beside: further models that a conversation may be had with.
        knowledge: collections of documents; with them there is the knowledge page at `/kb`.
    Raises:
        UserError: the store of conversations cannot be opened.
    """
    shared = Shared(chat, settings or StudioSettings(), beside)
    version = site.version()

    async def page(request: Request, place: str | None = None) -> None:
        owner, words, theme = site.begin(request, shared.chats, shared.settings, version)
        ChatPage(shared, owner, words, theme, place, knowledge is not None)

    async def chosen(request: Request, place: str) -> None:
        await page(request, place)

    nicegui.app.on_shutdown(shared.close)
    ui.page("/")(page)
    ui.page("/c/{place}")(chosen)
    if knowledge is not None:
        from tinyseek.studio.kb_app import declare

        declare(knowledge, shared.chats, shared.settings, with_chat=True)
    site.run(app)
    return shared
