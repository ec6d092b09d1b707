"""The application: a model, or several over one base, behind OpenAI's and Ollama's HTTP APIs; documents beside it, or alone.

    app = make_app(chat, ServeSettings())      # any ASGI server runs it; `tinyseek serve` does it with uvicorn
    app = make_kb_app(shelf, ServeSettings())  # documents alone: `tinyseek kb serve`

`/` is left to the chat page. Whatever is mounted on the application is behind the same guard.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from tinyseek import __version__
from tinyseek.errors import UserError
from tinyseek.knowledge.shelf import Shelf
from tinyseek.serve import kb, kb_routes, ollama, openai, responses
from tinyseek.serve.errors import ApiError, as_api_error, explain, json_response
from tinyseek.serve.guard import Guard
from tinyseek.serve.kb_served import ServedKnowledge
from tinyseek.serve.metrics import Metrics
from tinyseek.serve.options import ServeSettings
from tinyseek.serve.replies import ERRORS, Health
from tinyseek.serve.served import Served

if TYPE_CHECKING:
    from tinyseek.llm.local import LocalChat

_log = logging.getLogger(__name__)


def make_app(
    chat: LocalChat,
    settings: ServeSettings | None = None,
    beside: Sequence[LocalChat] = (),
    shelf: Shelf | None = None,
) -> FastAPI:
    """An application that serves a model.

    The engine is started when the application starts, and closed when it stops: by then the server has let what runs end.

    Args:
        chat: the model.
        settings: who may come in and how much is taken; what they say of the engine is for whoever loads it.
        beside: further models over the same engine: adapters, their base.
        shelf: documents to be asked, too; closed with the application.
    Raises:
        UserError: two models of one name.
    """
    served = Served.all([chat, *beside], settings or ServeSettings(), Metrics())

    knowledge = ServedKnowledge(shelf, served.settings, served.metrics) if shelf is not None else None
    app = _application(served.settings, served.metrics, served, knowledge)
    app.state.served = served
    app.include_router(openai.routes(served, knowledge))
    app.include_router(responses.routes(served))
    app.include_router(ollama.routes(served))
    app.include_router(_own_routes(served))
    return app


def make_kb_app(shelf: Shelf, settings: ServeSettings | None = None) -> FastAPI:
    """An application that serves documents, and no model but those that write the shelf's answers.

    Args:
        shelf: the collections; closed with the application.
    """
    settings, metrics = settings or ServeSettings(), Metrics()
    knowledge = ServedKnowledge(shelf, settings, metrics)
    app = _application(settings, metrics, None, knowledge)
    app.include_router(kb_routes.routes(knowledge))
    return app


def _application(
    settings: ServeSettings, metrics: Metrics, served: Served | None, knowledge: ServedKnowledge | None
) -> FastAPI:
    """Without the routes of models."""
    mcp = None
    if knowledge is not None and importlib.util.find_spec("mcp") is not None:
        from tinyseek.serve.mcp import http_server

        mcp = http_server(knowledge)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if served is not None:
                served.engine.start()
                stack.callback(served.engine.close)
            if knowledge is not None:
                stack.callback(knowledge.close)
            if mcp is not None:
                await stack.enter_async_context(mcp.run())
            yield

    app = FastAPI(
        title="tinyseek",
        version=__version__,
        description="A model behind OpenAI's and Ollama's APIs.",
        lifespan=lifespan,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "auto_configure": False,
        },  # nothing is told to anyone
    )
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    if knowledge is not None:
        app.include_router(kb.routes(knowledge))
    if mcp is not None:
        app.router.routes.append(Route("/mcp", endpoint=mcp, include_in_schema=False))

    async def fail(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code == 404 and error.detail == "Not Found":
            error = ApiError(404, f"there is nothing at {request.url.path[:200]}")
        known = as_api_error(error, metrics.answer_seconds)
        assert known is not None
        return known.response(request.url.path)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return explain(error.errors()).response(request.url.path)

    for kind in (UserError, HTTPException):  # all others are bugs, which the guard answers
        app.add_exception_handler(kind, fail)
    app.add_exception_handler(RequestValidationError, invalid)
    return app


def _own_routes(served: Served) -> APIRouter:
    router = APIRouter()

    @router.get("/health", responses={200: {"model": Health}, 503: ERRORS[503]})
    async def health() -> Response:
        """Whether the model can be asked."""
        if not served.engine.threaded:
            raise ApiError(503, "the model is not running")
        return json_response(Health(status="ok", model=served.name))

    @router.get(
        "/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **{401: ERRORS[401]}}
    )
    async def metrics() -> Response:
        """Counts in Prometheus' text format."""
        text = served.metrics.text(served.engine.stats())
        return Response(text, media_type="text/plain; version=0.0.4")

    return router
