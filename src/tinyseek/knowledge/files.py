"""Which files a person means by a path: a file, or what is worth reading in a folder. Nothing outside it is touched.

A link that leads out of its folder is refused, so that a folder someone else filled cannot show files of its reader's.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tinyseek.errors import UserError
from tinyseek.knowledge.documents import kinds

_LEFT_OUT = {"__pycache__", "node_modules"}  # folders that hold no documents
_LONGEST_NAME = 200  # characters of an upload's name


@dataclass(frozen=True)
class Found:
    """A file to be added."""

    file: Path  # absolute
    name: str  # its path in the folder that was given
    folder: str = ""  # that folder


@dataclass
class Search:
    """What a search for files found."""

    files: list[Found] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)  # names, and why
    folders: list[Path] = field(default_factory=list)  # that were looked through
    left_out: Counter[str] = field(default_factory=Counter)  # endings of files of no known kind

    def told(self) -> str:
        """What was left out, in words; nothing if nothing was."""
        if not self.left_out:
            return ""
        most = ", ".join(f"{ending} {count}" for ending, count in self.left_out.most_common(5))
        return f"{self.left_out.total():,} files of no known kind were left out ({most})"


def find(paths: Iterable[Path | str]) -> Search:
    """The files of these paths, each once, folders in the order of names."""
    found = Search()
    seen: set[Path] = set()
    for path in paths:
        file = absolute(path)
        if file.is_dir():
            found.folders.append(file)
            entries: Iterable[Found] = _inside(file, found)
        elif file.exists():
            entries = [Found(file, file.name)]
        else:
            found.refused.append((str(path), "no such file or folder"))
            continue
        for entry in entries:
            if entry.file not in seen and _is_named(entry, found):
                seen.add(entry.file)
                found.files.append(entry)
    return found


def absolute(path: Path | str) -> Path:
    """A path from the root, without `..`; links are left as they are, since people know files by them."""
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100


def _inside(folder: Path, found: Search) -> Iterator[Found]:
    root = folder.resolve()

    def failed(error: OSError) -> None:
        found.refused.append((str(error.filename), f"cannot be looked into ({error.strerror})"))

    for place, folders, names in os.walk(folder, onerror=failed):
        here = Path(place)
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = sorted(n for n in folders if n not in links and n not in _LEFT_OUT and not n.startswith("."))
        for name in sorted([*names, *links]):
            file = here / name
            shown = file.relative_to(folder).as_posix()
            if name.startswith((".", "~$")):
                continue
            if file.is_symlink():
                if not file.resolve().is_relative_to(root):
                    found.refused.append((shown, "is a link that leads out of its folder; add what it points to"))
                continue  # what it points to is here under its own name
            if kinds.by_name(name) is None:
                found.left_out[Path(name).suffix.lower() or "no ending"] += 1
                continue
            yield Found(file, shown, str(folder))


def _is_named(entry: Found, found: Search) -> bool:
    """Whether the file's name is text: one that is not could not be found again."""
    try:
        str(entry.file).encode()
    except UnicodeEncodeError:
        shown = entry.name.encode(errors="replace").decode()
        found.refused.append((shown, "its name is no UTF-8; rename it"))
        return False
    return True


def is_plain(file: Path) -> bool:
    """Whether a file is still there as a file of its own."""
    try:
        return stat.S_ISREG(file.lstat().st_mode)
    except OSError:
        return False


def hash_of(file: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def upload_name(name: str) -> PurePosixPath:
    """A name that an upload brings, checked: a plain relative path.

    Raises:
        UserError: it leads elsewhere, or is none.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    plain = name.isprintable() and name.strip() and len(name) <= _LONGEST_NAME and len(path.name.encode()) <= 240
    if not plain or path.is_absolute() or not path.name or {"..", "."} & set(path.parts) or ":" in path.parts[0]:
        raise UserError(f"{name[:_LONGEST_NAME]!r}: is no name for a file; give a plain one, like report.pdf")
    return path


def write_whole(file: Path, data: bytes) -> None:
    """Write a file aside and rename it.

    Raises:
        UserError: it cannot be written; nothing stays behind.
    """
    aside = file.with_name(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with aside.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(file)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UserError(f"{file}: cannot be written ({error.strerror})") from None
