"""What every route of the knowledge base needs: the shelf, the threads that it is asked in, and who asks."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

from fastapi import Request

from tinyseek.errors import UserError
from tinyseek.knowledge.shelf import FIRST, Shelf
from tinyseek.serve import steps
from tinyseek.serve.errors import ApiError
from tinyseek.serve.metrics import Metrics
from tinyseek.serve.options import KnowledgeDoorSettings
from tinyseek.serve.streaming import Pump

if TYPE_CHECKING:
    from tinyseek.knowledge.base import KnowledgeBase
    from tinyseek.knowledge.documents.blocks import Place
    from tinyseek.knowledge.index.base import StoredDocument
    from tinyseek.llm.base import ChatModel

T = TypeVar("T")
MODEL = "kb"  # the name of the knowledge base among the models
QUOTES = "quotes"  # the name of the writer that is no model


class ServedKnowledge:
    """A shelf behind HTTP."""

    def __init__(self, shelf: Shelf, settings: KnowledgeDoorSettings, metrics: Metrics) -> None:
        self.shelf, self.settings, self.metrics = shelf, settings, metrics
        self.created = int(time.time())
        self.closing: list[Callable[[], None]] = []  # what else is to be closed at the end
        self.threads = ThreadPoolExecutor(settings.kb_threads, thread_name_prefix="kb")

    def close(self) -> None:
        """Give up what is asked, close what is open."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        for close in self.closing:
            close()
        self.shelf.close()

    # ---- who asks what ----

    def collections(self, request: Request) -> list[str]:
        """The names of those that a request's key sees."""
        return self.shelf.collections(key_of(request))

    async def base(self, request: Request, collection: str) -> KnowledgeBase:
        """A collection that the request's key sees. ApiError 404 for any other."""
        try:
            return await self.call(self.shelf.base, key_of(request), collection)
        except UserError as error:
            if collection in await self.call(self.collections, request):
                raise
            raise ApiError(404, str(error), param="collection", code="collection_not_found") from None

    def check_writable(self) -> None:
        """ApiError 403 where the server only answers questions."""
        if self.shelf.read_only:
            raise ApiError(
                403, "this server only answers questions; nothing is added or changed here", code="read_only"
            )

    def models_of(self, request: Request) -> dict[str, str]:
        """The collections that a request's key sees, by their names as models: `kb` and `kb:NAME`."""
        return {model_name(name): name for name in self.collections(request)}

    def collection_of(self, request: Request, model: str) -> str | None:
        """The collection that a model's name means. None: it is no name of ours. ApiError 404 for one that is not there."""
        wanted = model.removesuffix(":latest")
        if wanted != MODEL and not wanted.startswith(f"{MODEL}:"):
            return None
        known = self.models_of(request)
        name = wanted.partition(":")[2] or FIRST
        if name in known.values():
            return name
        there = ", ".join(f'"{own}"' for own in known)
        raise ApiError(
            404,
            f'the model "{model[:80]}" is not served here; there are: {there}',
            param="model",
            code="model_not_found",
        )

    def writer(self, name: str | None = None) -> ChatModel | None:
        """Who writes answers; None: nobody, they are quoted. ApiError 404 for a name that is not there."""
        models = self.shelf.models
        if name == QUOTES:
            return None
        if name is None:
            return next(iter(models.values()), None)
        if name not in models:
            there = ", ".join(f'"{own}"' for own in (*models, QUOTES))
            raise ApiError(
                404,
                f'the model "{name[:80]}" writes no answers here; there are: {there}',
                param="model",
                code="model_not_found",
            )
        return models[name]

    # ---- work ----

    async def call(self, function: Callable[..., T], *args: Any, **named: Any) -> T:
        """A function's result, computed in a thread of the knowledge base's."""
        return await steps.call(self.threads, function, *args, **named)

    def pump(self, source: Iterator[T] | AsyncIterator[T], request: Request) -> Pump[T]:
        """An answer to wait for, under the server's time limits; an iterator is stepped in threads."""
        if not isinstance(source, AsyncIterator):
            source = steps.steps(self.threads, source)
        settings = self.settings
        return Pump(source, request.receive, self.metrics, beat=settings.beat_seconds, limit=settings.request_seconds)


def key_of(request: Request) -> bytes:
    """The API key that came with a request; b"" where the server has none."""
    found: bytes = request.scope.get("tinyseek.key", b"")
    return found


def model_name(collection: str) -> str:
    """What a collection is called among the models."""
    return MODEL if collection == FIRST else f"{MODEL}:{collection}"


def link(request: Request, collection: str, document: StoredDocument, places: Iterable[Place] = ()) -> str:
    """Where a browser sees a place in a document: its page with the boxes marked; the file itself for what has no pages."""
    base = f"{str(request.base_url).rstrip('/')}/v1/kb/documents/{document.id}"
    found = [place for place in places if place.page is not None]
    asked: list[tuple[str, str]] = [] if collection == FIRST else [("collection", collection)]
    if document.kind != "pdf":
        return f"{base}/file" + (f"?{urlencode(asked)}" if asked else "")
    page = found[0].page if found else 1
    boxes = [box for place in found if place.page == page for box in place.boxes]
    asked += [("box", ",".join(f"{edge:.0f}" for edge in box)) for box in boxes[:16]]
    return f"{base}/pages/{page}.png" + (f"?{urlencode(asked, safe=',')}" if asked else "")
