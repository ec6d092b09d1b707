"""What the server counts, in Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/).

A few counters and one histogram: they are written out here in fewer lines than a library would need to be told.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinyseek.engine.engine import Stats

_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds until the first token


class Metrics:
    """The server's own counts. Used in the event loop alone."""

    def __init__(self) -> None:
        self._answers: Counter[tuple[str, int]] = Counter()
        self._broken: Counter[int] = Counter()
        self._first_tokens = [0] * (len(_BOUNDS) + 1)
        self._first_sum = 0.0
        self.answer_seconds = 1.0  # of recent answers, a moving average

    def answered(self, path: str, status: int) -> None:
        """Count an answer."""
        self._answers[path, status] += 1

    def broken(self, code: int) -> None:
        """Count a stream that did not come to its end."""
        self._broken[code] += 1

    def first_token(self, seconds: float) -> None:
        """Count how long a client waited for the first token."""
        self._first_tokens[bisect.bisect_left(_BOUNDS, seconds)] += 1
        self._first_sum += seconds

    def took(self, seconds: float) -> None:
        """Count how long an answer took."""
        self.answer_seconds += 0.1 * (seconds - self.answer_seconds)

    def text(self, stats: Stats | None) -> str:
        """Everything, the engine's figures included; None where there is no engine."""
        return "\n".join([*self._server(), *(_engine(stats) if stats is not None else ()), ""])

    def _server(self) -> Iterator[str]:
        yield from _family("requests_total", "counter", "HTTP requests by path and status")
        for (path, status), count in sorted(self._answers.items()):
            yield _line("requests_total", count, {"path": path, "code": str(status)})
        errors: Counter[int] = Counter()
        for (_, status), count in self._answers.items():
            if status >= 400:
                errors[status] += count
        errors.update(self._broken)
        yield from _family(
            "errors_total", "counter", "requests that failed, by status; streams that broke off included"
        )
        for status, count in sorted(errors.items()):
            yield _line("errors_total", count, {"code": str(status)})
        name = "time_to_first_token_seconds"
        yield from _family(name, "histogram", "from a request to the first piece of its answer")
        running = 0
        for bound, count in zip([*map(str, _BOUNDS), "+Inf"], self._first_tokens, strict=True):
            running += count
            yield _line(f"{name}_bucket", running, {"le": bound})
        yield _line(f"{name}_sum", self._first_sum)
        yield _line(f"{name}_count", running)


def _engine(stats: Stats) -> Iterator[str]:
    blocks = {
        "used": stats.blocks_used,
        "cached": stats.blocks_cached,
        "free": stats.blocks - stats.blocks_used - stats.blocks_cached,
    }
    yield from _family("cache_blocks", "gauge", "blocks of the key/value cache by what they are for")
    for state, count in blocks.items():
        yield _line("cache_blocks", count, {"state": state})
    yield from _family("texts_finished_total", "counter", "texts by why they ended")
    for reason, count in sorted(stats.finished.items()):
        yield _line("texts_finished_total", count, {"reason": reason})
    for name, kind, meaning, value in (
        ("running", "gauge", "texts being written", stats.running),
        ("waiting", "gauge", "texts whose turn has not come", stats.waiting),
        ("tokens_per_second", "gauge", "tokens generated a second, lately", stats.tokens_per_second),
        ("prompt_tokens_total", "counter", "tokens of all prompts", stats.prompt_tokens),
        ("cached_tokens_total", "counter", "tokens of prompts that the prefix cache had", stats.cached_tokens),
        ("generated_tokens_total", "counter", "tokens generated", stats.generated_tokens),
        ("preemptions_total", "counter", "texts put back because the cache was full", stats.preemptions),
        ("drafted_tokens_total", "counter", "tokens guessed ahead", stats.drafted),
        ("accepted_tokens_total", "counter", "tokens guessed right", stats.accepted),
    ):
        yield from _family(name, kind, meaning)
        yield _line(name, value)


def _family(name: str, kind: str, meaning: str) -> tuple[str, str]:
    return f"# HELP tinyseek_{name} {meaning}", f"# TYPE tinyseek_{name} {kind}"


def _line(name: str, value: float, labels: Mapping[str, str] | None = None) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in (labels or {}).items())
    return f"tinyseek_{name}{'{' + inside + '}' if inside else ''} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
