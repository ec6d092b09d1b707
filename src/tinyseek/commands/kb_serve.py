"""`tinyseek kb serve|mcp`: the knowledge base for other programs."""

from __future__ import annotations

import importlib.util
import json
import shlex
import threading
import webbrowser
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from tinyseek.commands import Parser, say, settings_text
from tinyseek.commands.kb import home_of, parsed, parser_for
from tinyseek.commands.kb_ask import AskSettings, open_model
from tinyseek.commands.serve import CommandSettings, check_installed, open_shelf, serve_model, tell_knowledge
from tinyseek.errors import UserError
from tinyseek.knowledge.answer.options import AnswerSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tinyseek.knowledge.shelf import Shelf
    from tinyseek.llm.base import ChatModel


class KnowledgeServeSettings(CommandSettings):
    """The server of documents."""

    kb: bool = Field(True, description="always, here")
    model: str = Field(
        "",
        description="who writes answers: ollama:NAME, deepseek, http://host:port, or a model's folder, which is then served itself "
        "too; if none, the documents are quoted",
    )


def serve(arguments: list[str]) -> int:
    """Serve until stopped."""
    parser = Parser(
        "kb serve",
        "Serve the knowledge base: /v1/kb, OpenAI's API with the model name kb, MCP at /mcp, the page at /kb. No model is needed.",
        settings_text(lambda: KnowledgeServeSettings),
    )
    parser.add_argument("settings", nargs="*", metavar="key=value")
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek.llm.open import is_remote
    from tinyseek.settings import nested

    settings = KnowledgeServeSettings.read(nested(chosen.settings), "command line")
    if settings.model and not is_remote(settings.model):
        serve_model(settings.model, settings)
        return 0
    check_installed()
    from tinyseek.serve import server
    from tinyseek.serve.app import make_kb_app
    from tinyseek.serve.server import address_of, listen

    with ExitStack() as stack:
        bound = stack.enter_context(listen(settings))
        model = stack.enter_context(open_model(settings.model))
        shelf = open_shelf(settings, [model] if model else [])
        app = make_kb_app(shelf, settings)
        page = settings.page and _mount_page(app, shelf, model, settings)
        _tell(shelf, settings, address_of(bound), page)
        if page and settings.browser:  # the socket listens already: what asks too early waits
            threading.Thread(target=webbrowser.open, args=[f"{address_of(bound)}/kb"], daemon=True).start()
        server.serve(app, settings, bound)
    say("stopped")
    return 0


def _mount_page(app: FastAPI, shelf: Shelf, model: ChatModel | None, settings: CommandSettings) -> bool:
    """Put the knowledge page at /kb, and with a model the chat page at /. False where what they need is not installed."""
    if importlib.util.find_spec("nicegui") is None:
        say("(no page: install nicegui, or tinyseek[serve])")
        return False
    if model is not None:
        from tinyseek.studio.app import mount

        mount(app, model, settings.studio, knowledge=shelf)
    else:
        from tinyseek.studio.kb_app import mount_kb

        mount_kb(app, shelf, settings.studio)
    return True


def _tell(shelf: Shelf, settings: KnowledgeServeSettings, address: str, page: bool) -> None:
    """What is served where, and a line to try."""
    from tinyseek.knowledge.base import collections

    names = collections(shelf.home, shelf.settings)
    writer = next(iter(shelf.models), "") or "nobody: documents are quoted (model=ollama:NAME for written ones)"
    print(f"collections: {', '.join(names) or 'none yet'}; answers by {writer}")
    tell_knowledge(settings, address, page)
    key = " -H 'Authorization: Bearer YOUR_KEY'" if settings.api_keys else ""
    body = json.dumps({"question": "What is this about?"})
    print(f"try it: curl {address}/v1/kb/ask{key} -d {shlex.quote(body)}", flush=True)


def mcp(arguments: list[str]) -> int:
    """Answer MCP on standard input and output until it ends."""
    parser = parser_for(
        "mcp",
        "An MCP server over standard input and output, for programs that start it themselves. With -c it shows that collection\n"
        'alone. In their settings: {"mcpServers": {"documents": {"command": "tinyseek", "args": ["kb", "mcp"]}}}',
        [AskSettings],
    )
    parser.add_argument("words", nargs="*", metavar="key=value")
    parser.set_defaults(collection="")
    chosen, settings = parsed(parser, arguments, AskSettings)
    assert settings is not None
    if chosen.words:
        raise UserError(f'"{chosen.words[0]}" is no setting; write key=value')
    if importlib.util.find_spec("mcp") is None:
        raise UserError("to speak MCP, install what it needs: pip install 'tinyseek[knowledge]'")
    import anyio

    from tinyseek.knowledge.shelf import Shelf
    from tinyseek.serve.mcp import serve_stdio

    own = AnswerSettings.model_validate(settings.model_dump(exclude={"model"}))
    home: Path | None = home_of(chosen.options)
    with open_model(settings.model) as model:
        shelf = Shelf(home, chosen.settings(), [model] if model else [], read_only=True)
        try:
            anyio.run(serve_stdio, shelf, own, (chosen.options.collection,) if chosen.options.collection else ())
        finally:
            shelf.close()
    return 0
