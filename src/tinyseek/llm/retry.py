"""When to ask a server again, and when to give up."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from tinyseek.llm.base import ChatError
from tinyseek.llm.options import RemoteSettings

# Busy or broken for a while: too many requests, an error inside, or something in between that got no answer.
PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}


class PassingError(ChatError):
    """A failure that may be gone at the next try.

    Attributes:
        retry_after: seconds that the server asks to wait, if it does.
    """

    def __init__(self, message: str, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, status)
        self.retry_after = retry_after


def wait_before(attempt: int, error: PassingError, settings: RemoteSettings) -> float:
    """Seconds to wait after the failed try number `attempt` (from 0), before the next one.

    Exponential with jitter, so that clients that failed together do not come back together; what the server asks for goes first.

    Raises:
        PassingError: there are no more tries.
        ChatError: the server asks for too long a wait.
    """
    tries = f" (asked {attempt + 1} times)" if attempt else ""
    if attempt >= settings.retries:
        raise PassingError(f"{error}{tries}", error.status, error.retry_after) from None
    if error.retry_after is not None:
        if error.retry_after > settings.longest_wait_seconds:
            raise ChatError(f"{error}; it asks to wait {error.retry_after:.0f} seconds{tries}", error.status) from None
        return error.retry_after + random.uniform(0, settings.backoff_seconds)
    wait: float = settings.backoff_seconds * 2**attempt * random.uniform(0.5, 1)
    return min(wait, settings.longest_wait_seconds)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After` says, in seconds from now; None without it or where it says nothing that can be read."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            when = parsedate_to_datetime(text)
        except (ValueError, TypeError):
            return None
        seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()
    return max(0.0, seconds) if seconds == seconds else None  # not NaN
