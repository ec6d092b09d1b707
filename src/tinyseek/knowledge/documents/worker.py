"""The process that files are read in, so that one that hangs, swells or crashes harms nothing but itself.

    python -m tinyseek.knowledge.documents.worker

A line of JSON comes in ({"do": "parse", "file": ..., "name": ..., "limits": {...}}), a line of JSON goes out. The process limits
itself before each file (memory, seconds of computing, no core file, no writing); the clock is kept by who asked (read.py).
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import queue
import resource
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.blocks import Document
from tinyseek.knowledge.documents.kinds import KINDS, kind_of
from tinyseek.knowledge.documents.limits import Limits
from tinyseek.knowledge.documents.wire import plain_document

_IDLE = 300.0  # seconds without a file after which a worker goes home; it is begun anew when it is needed

Parser = Callable[[Path, Limits], Document]


def parser_of(kind: str) -> Parser:
    """The function that reads files of a kind: `parse` of its module."""
    parse: Parser = importlib.import_module(KINDS[kind][0]).parse
    return parse


def restrain(limits: Limits) -> None:
    """Bound this process for one file. What the system has no such limit for is left to who watches from outside."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + limits.cpu_seconds) + 1
    _bound(resource.RLIMIT_CPU, seconds)
    _bound(resource.RLIMIT_CORE, 0)
    _bound(resource.RLIMIT_FSIZE, 1 << 30)  # until all is imported: Python keeps what it compiled
    _bound(resource.RLIMIT_DATA, limits.memory_mb << 20)


def _bound(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    try:
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    except (OSError, ValueError):  # a system that has no such limit
        return


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """What is to be said to a question.

    Raises:
        UserError: what is wrong with the file, without its name.
    """
    file, limits = Path(asked["file"]), Limits.read(asked["limits"])
    restrain(limits)
    if asked["do"] == "parse":
        parse = parser_of(kind_of(file, asked["name"]))
        _bound(resource.RLIMIT_FSIZE, 0)
        return {"document": plain_document(checked(parse(file, limits), limits))}
    from tinyseek.knowledge.documents import pdf

    if asked["do"] == "render":
        return {"png": base64.b64encode(pdf.render_page(file, asked["page"], asked["scale"])).decode()}
    if asked["do"] == "find":
        from tinyseek.knowledge.documents.pdf_find import find_text

        return {"boxes": find_text(file, asked["page"], asked["text"], asked["near"])}
    raise ValueError(asked["do"])


def checked(document: Document, limits: Limits) -> Document:
    """The document, if its text is within limits.

    Raises:
        UserError: it is too long.
    """
    if sum(len(block.text) for block in document.blocks) > limits.characters:
        raise UserError(
            f"holds more than {limits.characters:,} characters of text; split it, or raise limits.characters"
        )
    return document


def told(error: Exception) -> str:
    """An error that no parser foresaw, in a line, with the place in our own code where it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).parent == Path(__file__).parent]
    place = f" ({Path(ours[-1].filename).name}, line {ours[-1].lineno})" if ours else ""
    message = " ".join(str(error).split())
    return f"cannot be read: {type(error).__name__}: {message[:200]}{place}"


def main() -> None:
    """Answer until nothing is asked any more. When who asked is gone, end at once, in the midst of a file too."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")  # a file may hold halves of characters
    os.dup2(2, 1)  # what a library prints must not come between
    questions: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            questions.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        try:
            asked = json.loads(questions.get(timeout=_IDLE))
        except queue.Empty:
            return
        try:
            said = answer(asked)
        except UserError as error:
            said = {"error": str(error)}
        except MemoryError:
            said = {"error": _memory(asked), "end": True}
        except RecursionError:
            said = {"error": "is nested too deeply to be read"}
        except Exception as error:
            said = {"error": told(error)}
        answers.write(json.dumps(said, ensure_ascii=False, separators=(",", ":")) + "\n")
        answers.flush()


def _memory(asked: dict[str, Any]) -> str:
    return f"needs more than {asked['limits']['memory_mb']:,} MB of memory; split it, or raise limits.memory_mb"


if __name__ == "__main__":
    main()
