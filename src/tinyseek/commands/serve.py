"""`tinyseek serve`: a model behind OpenAI's and Ollama's HTTP APIs, and the chat page."""

from __future__ import annotations

import importlib.util
import json
import shlex
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from tinyseek.commands import Parser, say, settings_text
from tinyseek.errors import UserError
from tinyseek.serve.options import ServeSettings
from tinyseek.studio.options import StudioSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinyseek.knowledge.shelf import Shelf
    from tinyseek.llm.base import ChatModel
    from tinyseek.llm.local import LocalChat


class CommandSettings(ServeSettings):
    """The server, with or without the chat page."""

    page: bool = Field(True, description="serve the chat page at /")
    browser: bool = Field(False, description="open the chat page in this computer's browser")
    studio: StudioSettings = StudioSettings()


def serve(arguments: list[str]) -> int:
    """Serve until stopped."""
    parser = Parser(
        "serve",
        "Serve a model: OpenAI's and Ollama's APIs and the chat page on one port. Ctrl-C, or SIGTERM, lets running answers end.",
        settings_text(lambda: CommandSettings),
    )
    parser.add_argument(
        "model", metavar="MODEL", help="the folder of a model, or of a run; a pulled model; a .gguf file"
    )
    parser.add_argument("settings", nargs="*", metavar="key=value")
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek.settings import nested

    serve_model(chosen.model, CommandSettings.read(nested(chosen.settings), "command line"))
    return 0


def serve_model(where: str, settings: CommandSettings) -> None:
    """Serve a model of this disk, and what the settings say beside it."""
    check_installed()
    from tinyseek.serve.server import address_of, listen

    with listen(settings) as bound:  # before the model is loaded, which takes longer than to find the port taken
        chats = _load(where, settings)
        from tinyseek.serve import server
        from tinyseek.serve.app import make_app

        shelf = open_shelf(settings, [chat for chat in chats if _talks(chat)]) if settings.kb else None
        app = make_app(chats[0], settings, chats[1:], shelf)
        page = settings.page and _mount_page(app, where, chats, settings, shelf)
        _tell(chats, settings, address_of(bound), page)
        if page and settings.browser:  # the socket listens already: what asks too early waits
            threading.Thread(target=webbrowser.open, args=[address_of(bound)], daemon=True).start()
        server.serve(app, settings, bound)
    say("stopped")


def check_installed() -> None:
    """UserError where what a server needs is not installed."""
    if importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None:
        raise UserError("to serve, install what it needs: pip install 'tinyseek[serve]'")


def _load(where: str, settings: CommandSettings) -> list[LocalChat]:
    from tinyseek.llm.open import is_remote, open_with_adapters

    if is_remote(where):
        raise UserError(f"{where}: is served already; only a model on this disk can be served here")
    return open_with_adapters(where, settings.adapters, settings, settings.name, say)


def open_shelf(settings: CommandSettings, models: Sequence[ChatModel]) -> Shelf:
    """The collections that are to be served, and who writes answers from them.

    Args:
        models: that are served; settings.kb_model may name another.
    """
    from tinyseek.knowledge.shelf import Shelf
    from tinyseek.llm.base import ChatModel
    from tinyseek.serve.kb_served import QUOTES

    if settings.kb_model == QUOTES:
        models = []
    elif settings.kb_model:
        models = [ChatModel.open(settings.kb_model, engine=settings), *models]
    home = Path(settings.kb_home) if settings.kb_home else None
    return Shelf(home, settings.knowledge, models, settings.access, settings.kb_read_only, answers=settings.answers)


def _talks(chat: LocalChat) -> bool:
    return chat.tokenizer.chat_template is not None


def _mount_page(
    app: object, where: str, chats: list[LocalChat], settings: CommandSettings, shelf: Shelf | None
) -> bool:
    """Put the chat page at /. False where what it needs is not installed, or no model was taught to chat."""
    talking = [chat for chat in chats if _talks(chat)]
    if not talking:
        return False
    if importlib.util.find_spec("nicegui") is None:
        say("(no chat page: install nicegui, or tinyseek[serve])")
        return False
    from fastapi import FastAPI

    from tinyseek.model.hub import find_model
    from tinyseek.studio.app import mount
    from tinyseek.studio.examples import examples

    assert isinstance(app, FastAPI)
    studio = settings.studio
    if not studio.examples:
        studio = studio.model_copy(update={"examples": examples(find_model(where))})
    mount(app, talking[0], studio, talking[1:], knowledge=shelf)
    return True


def tell_knowledge(settings: CommandSettings, address: str, page: bool) -> None:
    """Where documents are asked."""
    if page:
        print(f"  documents   {address}/kb")
    print(f"  documents'  {address}/v1/kb, the model name kb, MCP at {address}/mcp")
    if settings.kb_access:
        print(f"  (each of {len(settings.kb_access)} keys sees its own collections)")


def _tell(chats: list[LocalChat], settings: CommandSettings, address: str, page: bool) -> None:
    """What is served where, and a line to try."""
    from tinyseek.model.counts import count
    from tinyseek.terminal import amount

    chat, engine = chats[0], chats[0].engine
    name, size = settings.name or chat.name, amount(count(engine.model.config).total)
    base = next(one for one in chats if one.adapter is None)
    print(f"{name if chat is base else base.name}: {size} parameters, context {engine.context:,} tokens")
    for one in chats:
        if (adapter := engine.adapter(one.adapter)) is not None:
            print(f"  + {one.name}: an adapter, {adapter.nbytes / 1e6:.1f} MB")
    if page:
        print(f"  chat page   {address}/")
    print(f"  OpenAI API  {address}/v1")
    print(f"  Ollama API  {address}")
    if settings.kb:
        tell_knowledge(settings, address, page)
    if not settings.is_local:
        print(
            f"  (from other computers by any name in allowed_hosts, or by this one's address, at port {address.rpartition(':')[2]})"
        )
    talks = chat.tokenizer.chat_template is not None
    asked = {"messages": [{"role": "user", "content": "Who are you?"}]} if talks else {"prompt": "In the beginning"}
    body = json.dumps({"model": name, **asked}, ensure_ascii=False)
    path = "/v1/chat/completions" if talks else "/v1/completions"
    key = " -H 'Authorization: Bearer YOUR_KEY'" if settings.api_keys else ""
    print(f"try it: curl {address}{path}{key} -d {shlex.quote(body)}", flush=True)
