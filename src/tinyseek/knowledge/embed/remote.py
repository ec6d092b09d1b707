"""An embedder behind a server: OpenAI's /v1/embeddings, as Ollama, vLLM, llama.cpp and tinyseek itself have it too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinyseek.errors import UserError
from tinyseek.knowledge.embed.base import Embedder
from tinyseek.knowledge.embed.windows import unit
from tinyseek.llm.open import open_chat
from tinyseek.llm.options import RemoteSettings
from tinyseek.llm.remote import RemoteChat

# What a model's own documentation wants in front of a question and of a passage, by a part of its name; servers add nothing.
_PREFIXES = (
    ("e5-mistral", "Instruct: Given a question, retrieve passages that answer it\nQuery: ", ""),
    ("-instruct", "Instruct: Given a question, retrieve passages that answer it\nQuery: ", ""),
    ("e5-", "query: ", "passage: "),
    ("nomic-embed", "search_query: ", "search_document: "),
    ("mxbai-embed", "Represent this sentence for searching relevant passages: ", ""),
    ("embeddinggemma", "task: search result | query: ", "title: none | text: "),
    ("qwen3-embedding", "Instruct: Given a question, retrieve passages that answer it\nQuery:", ""),
)
_LIMIT = 512  # tokens that any of today's embedders takes; what a server's own does with more is not known


class RemoteEmbedder(Embedder):
    """A model behind a server. Asked as by `RemoteChat`: in batches, and again where the server is busy or broken for a while."""

    def __init__(self, chat: RemoteChat) -> None:
        """Embeds a word, to know how wide vectors are.

        Args:
            chat: the server, with the name of its embedder.
        Raises:
            UserError: no vectors come from there.
        """
        self._chat = chat
        name = chat.model.lower()
        self._query, self._passage = next(((q, p) for part, q, p in _PREFIXES if part in name), ("", ""))
        self.name, self.limit, self.width = f"remote:{chat.model}", _LIMIT, 0
        self.width = self._vectors(["width"]).shape[1]

    def queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._vectors([self._query + text for text in texts])

    def passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._vectors([self._passage + text for text in texts])

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """A guess, rather too high: the server's tokenizer is not known."""
        return [sum(map(_guess, text.split())) for text in texts]

    def close(self) -> None:
        self._chat.close()

    def _vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        # OpenAI's API refuses an empty text, and with it all of its batch.
        rows = self._chat.embed([text if text.strip() else "-" for text in texts])
        widths = {len(row) for row in rows} | ({self.width} if self.width else set())
        if not texts:
            return np.empty((0, self.width), np.float32)
        if len(widths) > 1 or 0 in widths:
            raise UserError(
                f"{self._chat.url}: {self._chat.model} gave vectors of {' and '.join(map(str, sorted(widths)))} numbers; "
                "an index wants one width: is it the same model still?"
            )
        found = np.array(rows, np.float32)
        if not np.isfinite(found).all() or not found.any(1).all():
            raise UserError(f"{self._chat.url}: {self._chat.model} gave vectors that are no numbers, or all zeros")
        return unit(found)


def _guess(word: str) -> int:
    """Tokens of a word: four letters each, and each character of a script that is written without spaces."""
    wide = sum(character > "\u2e7f" for character in word)
    return wide + -(-(len(word) - wide) // 4)


def open_remote(where: str, settings: RemoteSettings | None = None) -> RemoteEmbedder:
    """The embedder at an address: `http://host:port/v1#MODEL`, `ollama:MODEL`, `openai:MODEL`.

    Without a model's name it is the server's only one that is called like an embedder, or its only one.

    Raises:
        UserError: no such server, none or several such models, or no vectors from it.
    """
    address, _, model = where.partition("#")
    chat = open_chat(address, model=model or None, remote=settings)
    if not isinstance(chat, RemoteChat):
        raise UserError(f"{where}: no address of a server; write http://host:port/v1#MODEL")
    try:
        if not model and address.startswith(("http://", "https://")):
            chat.model = chat.name = _only(chat.models(), chat.url)
        return RemoteEmbedder(chat)
    except BaseException:
        chat.close()
        raise


def _only(names: Sequence[str], url: str) -> str:
    likely = [
        name for name in names if any(part in name.lower() for part in ("embed", "e5-", "bge-", "minilm", "gte-"))
    ]
    for found in (likely, names):
        if len(found) == 1:
            return found[0]
    raise UserError(f"{url}: which of its models embeds? Write it behind the address: {url}#{(likely or names)[0]}")
