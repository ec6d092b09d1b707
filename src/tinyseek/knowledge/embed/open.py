"""From what a user writes to an embedder: the built-in one, a folder, or a server."""

from __future__ import annotations

from pathlib import Path

from tinyseek.errors import UserError
from tinyseek.knowledge.embed.base import Embedder
from tinyseek.llm.open import is_remote

BUILT_IN = "e5"
WHERE = (
    "e5 (multilingual-e5-small, built in), a sentence-transformers folder, http://host:port/v1#MODEL of any server that has "
    "/v1/embeddings, ollama:MODEL or openai:MODEL"
)


def open_embedder(where: str = BUILT_IN) -> Embedder:
    """The embedder that `where` means (`WHERE`). Only a server's address lets anything go over a network.

    Raises:
        UserError: there is none such; what it needs is not installed or damaged; the server cannot be reached.
    """
    if where == BUILT_IN:
        from tinyseek.knowledge.embed.carried import CarriedEmbedder

        return CarriedEmbedder()
    if is_remote(where):
        from tinyseek.knowledge.embed.remote import open_remote

        return open_remote(where)
    folder = Path(where).expanduser()
    if not folder.is_dir():
        raise UserError(f"{where}: no embedder; write {WHERE}")
    from tinyseek.knowledge.embed.folder import FolderEmbedder

    return FolderEmbedder(folder)
