"""From what a user writes to a chat model: a folder, a pulled name, a GGUF file, a service's name, or a server's address."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tinyseek.errors import UserError

if TYPE_CHECKING:
    from tinyseek.engine.options import EngineSettings
    from tinyseek.llm.base import ChatModel
    from tinyseek.llm.local import LocalChat
    from tinyseek.llm.options import RemoteSettings
    from tinyseek.llm.remote import RemoteChat
    from tinyseek.llm.sending import Kind

DEEPSEEK_MODEL = "deepseek-chat"
WHERE = (
    "a model's or a run's folder, a pulled model's name, a .gguf file, deepseek, deepseek:MODEL, openai:MODEL, ollama:MODEL, "
    "or http://host:port of any OpenAI-compatible server"
)


def is_remote(where: str) -> bool:
    """Whether `where` names a server rather than something on this disk."""
    service = where.partition(":")[0]
    return where.startswith(("http://", "https://")) or (
        service in ("deepseek", "openai", "ollama") and not Path(where).exists()
    )


def open_chat(
    where: str,
    *,
    model: str | None = None,
    engine: EngineSettings | None = None,
    remote: RemoteSettings | None = None,
) -> ChatModel:
    """See `ChatModel.open`."""
    if is_remote(where):
        try:
            import httpx2  # noqa: F401
        except ImportError:
            raise UserError("to speak to a server, install httpx2: pip install 'tinyseek[serve]'") from None
        if where.startswith(("http://", "https://")):
            return _at_address(where, model, remote)
        return _service(where, model, remote)
    if model is not None:
        raise UserError(f"model={model}: only a server has several models; {where} is one on this disk")
    from tinyseek.llm.local import LocalChat
    from tinyseek.model.hub import find_model

    folder = find_model(where)
    chat = LocalChat.load(folder, engine, _called(where, folder))
    chat.engine.start()  # so that a reader that is interrupted leaves no step half done
    return chat


def open_with_adapters(
    where: str,
    adapters: Mapping[str, str],
    engine: EngineSettings | None = None,
    name: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[LocalChat]:
    """A model of this disk and adapters over it: one engine, a chat model for the base and for each adapter.

    Args:
        where: a model, or an adapter, which is then run beside its base.
        adapters: further ones, by the names that they are to have; wherever `find_model` finds one.
        name: what to call the model that `where` means; none for its folder's name.
        say: is told of what is not as one might think.
    Returns:
        What `where` means, first; the base second where that is an adapter; then the others.
    Raises:
        UserError: nothing there; an adapter of another base, or that cannot share it; two of one name.
    """
    from tinyseek.engine.adapters import why_merged
    from tinyseek.llm.local import LocalChat
    from tinyseek.model.adapter import find_base, is_adapter
    from tinyseek.model.hub import find_model

    folder = find_model(where)
    called = name or _called(where, folder)
    beside = is_adapter(folder)
    if beside and (why := why_merged(folder)):
        say(f"{folder}: {why}, so it is served merged with its base, alone")
        beside = False
    base = find_base(folder) if beside else folder
    plain = _called(str(base), base) if beside else called
    folders = {called: folder} if beside else {}
    for own, place in adapters.items():
        found = find_model(place)
        if not is_adapter(found):
            raise UserError(f"adapters.{own}: {found} is a model, no adapter; serve it by itself")
        if own in (called, plain):
            raise UserError(
                f'adapters.{own}: "{own}" is the name of {folder if own == called else base}; give it another'
            )
        folders[own] = found
    if plain in folders:
        raise UserError(
            f'"{plain}" is the name of both {folder} and its base {base}; give the adapter another: name=...'
        )
    chat = LocalChat.load(base, engine, plain, folders)
    chat.engine.start()  # so that a reader that is interrupted leaves no step half done
    over = {own: chat.over(own) for own in folders}
    return [over.pop(called), chat, *over.values()] if beside else [chat, *over.values()]


def _called(where: str, folder: Path) -> str:
    """What a model is called that was found by what someone wrote."""
    path = Path(where)
    return path.stem if path.is_file() else _name(folder) if path.exists() else where


def _name(folder: Path) -> str:
    """What to call the model of a folder: by its folder, and by its run where that is only the name of a stage."""
    from tinyseek import artifact

    folder = folder.resolve()
    manifest = artifact.read(folder) if (folder / artifact.MANIFEST).is_file() else None
    return f"{folder.parent.name}-{folder.name}" if manifest and manifest.kind == folder.name else folder.name


def _service(where: str, model: str | None, settings: RemoteSettings | None) -> RemoteChat:
    from tinyseek.llm.remote import server

    service, _, named = where.partition(":")
    if named and model and named != model:
        raise UserError(f"{where}: the model is named twice, {named} and {model}")
    kind: Kind = "deepseek" if service == "deepseek" else "openai" if service == "openai" else "ollama"
    chosen = named or model or (DEEPSEEK_MODEL if kind == "deepseek" else "")
    chat = server(kind, chosen, settings)
    if not chosen and kind == "openai":
        chat.close()
        raise UserError("openai: which model? Write openai:MODEL")
    return chat if chosen else _with_first_model(chat)


def _at_address(where: str, model: str | None, settings: RemoteSettings | None) -> RemoteChat:
    from tinyseek.llm.remote import RemoteChat

    try:
        parts = urlsplit(where)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"{where}: no address of a server ({error}); write http://host:port") from None
    if not host:
        raise UserError(f"{where}: no address of a server; write http://host:port")
    if parts.username or parts.password:
        raise UserError("a key does not belong into an address, where it is shown; put it into TINYSEEK_API_KEY")
    kind: Kind = "other"
    for name in ("deepseek", "openai"):
        if host.endswith(f"{name}.com"):
            kind = "deepseek" if name == "deepseek" else "openai"
    if port == 11434:
        kind = "ollama"
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    path = path or ("" if kind == "deepseek" else "/v1")
    chat = RemoteChat(f"{parts.scheme}://{parts.netloc}{path}", model or "", kind=kind, settings=settings)
    return chat if model else _with_first_model(chat)


def _with_first_model(chat: RemoteChat) -> RemoteChat:
    """The server's only or first model, for one who did not say which."""
    try:
        names = chat.models()
    except UserError:
        chat.close()
        raise
    if not names:
        chat.close()
        raise UserError(f"{chat.url}: the server names no models; say which: model=NAME")
    chat.model = chat.name = names[0]
    return chat
