"""What goes wrong, as clients of OpenAI's and Ollama's servers expect to be told."""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from tinyseek.engine.request import QueueFullError
from tinyseek.errors import UserError
from tinyseek.llm.base import ChatError, ContextError

_TYPES = {
    401: ("authentication_error", "invalid_api_key"),
    403: ("permission_error", None),
    404: ("invalid_request_error", "not_found"),
    408: ("timeout_error", "request_timeout"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    499: ("cancelled", "client_closed_request"),
    500: ("server_error", "internal_error"),
    503: ("server_error", "unavailable"),
    504: ("timeout_error", "timeout"),
}
# JSON leaves them as they are, and some clients take them for the end of a line of the stream (httpx's iter_lines does).
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


_log = logging.getLogger(__name__)


class ApiError(HTTPException):
    """An answer that is an error.

    Attributes:
        param: the field of the request that is wrong.
        code: OpenAI's short name of what is wrong.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers) if headers else None)
        self.message = message
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """OpenAI's shape."""
        kind, code = _TYPES.get(
            self.status_code, ("server_error" if self.status_code >= 500 else "invalid_request_error", None)
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code or code}}

    def response(self, path: str) -> Response:
        """The whole answer; below /api/ in Ollama's shape."""
        body = {"error": self.message} if path.startswith("/api/") else self.body()
        return json_response(body, self.status_code, self.headers)


class ClientGoneError(ApiError):
    """The client has hung up: nobody waits for the answer, which is sent to nobody."""

    def __init__(self) -> None:
        super().__init__(499, "the client has hung up")


def refused(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request cannot be served as it is."""
    return ApiError(400, message, param=param, code=code)


def fault(error: BaseException, where: str) -> ApiError:
    """500 for a bug: a number to ask by, under which the log has the story that the client is not told."""
    number = uuid.uuid4().hex[:12]
    _log.error("request %s: %s failed", number, where, exc_info=error)
    return ApiError(500, f"the server failed; its log says why under request {number}")


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON as an answer."""
    return Response(to_json(body), status, headers, "application/json")


def to_json(body: Any) -> bytes:
    """Compact JSON in UTF-8, on one line for any reader; `?` for a lone surrogate, which no UTF-8 can hold."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    if not text.isascii():
        text = text.translate(_LINE_ENDS)
    return text.encode("utf-8", "replace")


def as_api_error(error: BaseException, retry_after: float = 1.0) -> ApiError | None:
    """The answer to an exception that a request can cause; None for a bug.

    Args:
        error: what was raised.
        retry_after: seconds after which a full queue has probably moved.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", headers={"Retry-After": str(max(1, round(retry_after)))})
    if isinstance(error, ChatError):
        return ApiError(error.status if error.status in (500, 503) else 502, str(error))
    if isinstance(error, ContextError):
        return refused(str(error), "messages", "context_length_exceeded")
    if isinstance(error, UserError):
        return refused(str(error))
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    return None


def explain(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """400 for what pydantic found: the first wrong field, in words.

    Args:
        problems: pydantic's errors; their first place is "body", "path" or "query".
    """
    found: dict[str, list[str]] = {}
    for problem in problems:
        param = _param(problem["loc"])
        message = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input ")
        message = re.sub(r"a valid dictionary or instance of \w+", "an object", message[:1].lower() + message[1:])
        found.setdefault(param, [])
        if message not in found[param]:
            found[param].append(message)
    param, messages = next(iter(found.items()))
    if not param:
        return refused("a JSON object is required as the body", code="invalid_json")
    if messages == ["field required"]:
        return refused(f"{param} is required", param, "missing_required_parameter")
    return refused(f"{param}: {', or '.join(messages)}"[:1000], param, "invalid_value")


def _param(place: Sequence[int | str]) -> str:
    """`messages[0].content` out of a place in pydantic's words, which also names the branches of unions."""
    name = ""
    for part in place[1:]:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "float", "bool", "dict", "list") and part[:1].islower():
            name += f".{part}" if name else part
        else:
            break
    return name
