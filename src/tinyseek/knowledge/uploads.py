"""An upload on its way in: taken to a file of the collection's as it comes, counted, never held whole.

It lies under `incoming`, beside the collection's own files, so that it is moved in by a rename. What a killed process left there is
swept away a day later.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
import weakref
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from tinyseek.errors import UserError

PIECE = 1 << 20  # bytes that are in memory at once
_ABANDONED = 86_400  # seconds after which an upload that stopped half-way is forgotten


class Incoming:
    """A file that is being written; gone when it is left, unless it was moved away."""

    def __init__(self, folder: Path, name: str, most_mb: float) -> None:
        """Begin.

        Args:
            folder: the collection's. name: of the upload, for what is said of it.
            most_mb: megabytes that it may have.
        Raises:
            UserError: it cannot be written.
        """
        self._name, self._most, self._size = name, most_mb, 0
        self.path = folder / "incoming" / f"{uuid.uuid4().hex}.part"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            sweep(self.path.parent)
            self._stream: BinaryIO = os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", 0)
        except OSError as error:
            raise _unwritable(name, error) from None
        self._away = weakref.finalize(self, _away, self._stream, self.path)  # also where nobody comes to close it

    def write(self, piece: bytes) -> None:
        """What has come.

        Raises:
            UserError: it is too much, or the disk is full.
        """
        self._size += len(piece)
        check_size(self._name, self._size, self._most)
        try:
            left = memoryview(piece)
            while left:
                left = left[self._stream.write(left) :]
        except OSError as error:
            raise _unwritable(self._name, error) from None

    def write_all(self, stream: BinaryIO) -> None:
        """All of another stream.

        Raises:
            UserError: it is too much, or the disk is full.
        """
        while piece := stream.read(PIECE):
            self.write(piece)

    def close(self) -> None:
        """Away with what was not moved in."""
        self._away()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def check_size(name: str, size: int, most_mb: float) -> None:
    """See that an upload is not too large.

    Raises:
        UserError: it is.
    """
    if size > most_mb * 1e6:
        raise UserError(f"{name}: is {size / 1e6:,.0f} MB, more than {most_mb:,.0f} MB; split it")


def move_in(file: Path, place: Path) -> None:
    """Move a file to its place, whole or not at all.

    Raises:
        UserError: it cannot be written there; the file is where it was.
    """
    aside = place.with_name(f".{uuid.uuid4().hex}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _flush(file)
        try:
            file.replace(place)
        except OSError as error:
            if error.errno != errno.EXDEV:  # it lies on another disk
                raise
            shutil.copyfile(file, aside)
            _flush(aside)
            aside.replace(place)
            file.unlink(missing_ok=True)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise _unwritable(str(place), error) from None


def sweep(folder: Path) -> None:
    """Forget uploads that stopped half-way."""
    for file in folder.iterdir():
        try:
            if file.stat().st_mtime < time.time() - _ABANDONED:
                file.unlink(missing_ok=True)
        except FileNotFoundError:  # another one swept it
            continue


def _away(stream: BinaryIO, file: Path) -> None:
    stream.close()
    file.unlink(missing_ok=True)


def _flush(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _unwritable(name: str, error: OSError) -> UserError:
    return UserError(f"{name}: cannot be written ({error.strerror})")
