"""Server-sent events, as chat servers write them, out of bytes in any pieces.

Lines end in LF, CR LF or CR; `: comments` (keep-alive) and fields other than `data` are passed over; a character may be cut in two.
Source: the WHATWG HTML standard, section 9.2.6.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

LONGEST_EVENT = 16 << 20  # characters; a server that sends more without an end is broken
_LINE_END = re.compile("\r\n|\n|\r")


class EventReader:
    """Bytes in, the data of whole events out."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
        self._line = ""  # that is not complete
        self._after_cr = False  # the last line ended in CR: a LF that comes first belongs to it
        self._data: list[str] = []

    def push(self, chunk: bytes) -> Iterator[str]:
        """The data of every event that `chunk` completes.

        Raises:
            ValueError: an event without end.
        """
        text = self._decoder.decode(chunk)
        if not text:
            return
        if self._after_cr:
            text = text.removeprefix("\n")
        self._after_cr = text.endswith("\r")
        first, *others = _LINE_END.split(text)
        lines = [self._line + first, *others]
        self._line = lines.pop()
        for line in lines:
            yield from self._take(line)
        if len(self._line) + sum(map(len, self._data)) > LONGEST_EVENT:
            raise ValueError("the server sends an event without end")

    def end(self) -> Iterator[str]:
        """The connection is closed: an event whose empty line did not come counts all the same."""
        for line in (self._line + self._decoder.decode(b"", final=True), ""):
            yield from self._take(line)
        self._line = ""

    def _take(self, line: str) -> Iterator[str]:
        if not line:
            if self._data:
                yield "\n".join(self._data)
            self._data = []
            return
        name, _, value = line.partition(":")
        if name == "data":
            self._data.append(value.removeprefix(" "))
