"""What every stage leaves behind: a folder with a manifest.

A folder is written aside (`NAME.partial`) and renamed, so one that exists is whole. Its `key` is the hash of what it was made
from: the kind, the settings, and the keys of its inputs. Two folders with one key hold the same thing, and a stage whose key is
already there need not run again. A writer that is killed leaves what was there before: see `recover`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tinyseek import __version__
from tinyseek.errors import UserError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Input:
    """One thing that an artefact was made from: a folder of ours, or a raw file or corpus."""

    key: str  # the other artefact's key, or "sha256:..." of raw files
    path: str  # where it lay, for people; beside the artefact a relative path; of a corpus the words that named it


@dataclass
class Manifest:
    """Where a folder came from, and what was measured when it was made."""

    kind: str
    key: str
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Input] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    seconds: float = 0.0


def make_key(kind: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The hash of everything that decides what a stage makes.

    Args:
        kind: the stage's kind.
        settings: plain JSON values with every default written out, the seed among them.
        inputs: the key of each input by its role.
    """
    canonical = json.dumps([kind, settings, inputs], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def file_key(path: Path) -> str:
    """`sha256:...` of a file's bytes, or of a folder's files in name order."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    try:
        for file in files:
            if path.is_dir():
                digest.update(str(file.relative_to(path)).encode() + b"\0")
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read ({error.strerror})") from None
    return f"sha256:{digest.hexdigest()}"


def read(folder: Path) -> Manifest:
    """The manifest of a finished folder.

    Raises:
        UserError: no such folder, or none that a stage of ours finished.
    """
    file = folder / MANIFEST
    try:
        values = json.loads(_manifest_text(folder))
        values["inputs"] = {role: Input(**entry) for role, entry in values["inputs"].items()}
        return Manifest(**values)
    except (FileNotFoundError, NotADirectoryError):
        why = f"no {MANIFEST} in it, so no stage of tinyseek finished it" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {why}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file}: damaged ({error}); delete the folder and build it again") from None


def _manifest_text(folder: Path) -> str:
    """The manifest as written, also while a writer is replacing the folder: the name is then away for a moment."""
    for wait in (0.0, 0.01, 0.1):
        time.sleep(wait)
        recover(folder)
        try:
            return (folder / MANIFEST).read_text(encoding="utf-8")
        except FileNotFoundError:
            if not _beside(folder, "old").exists() and not _beside(folder, "partial").exists():
                raise
    return (folder / MANIFEST).read_text(encoding="utf-8")


def key_of(folder: Path) -> str:
    """The key of an artefact folder, or of a raw file or any other folder the hash of its content."""
    recover(folder)
    return read(folder).key if (folder / MANIFEST).is_file() else file_key(folder)


@contextmanager
def writing(
    folder: Path,
    kind: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Path] | None = None,
    keys: Mapping[str, str] | None = None,
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Write an artefact aside, then put it in place in one step.

    Yields:
        The folder to write into, and a dict for the figures worth keeping. When the block ends well the manifest is added, all
        is flushed to disk, and the folder takes its final name (an older one of that name is replaced); when it raises, nothing
        is left behind and what was built before stays.

    Args:
        folder: the final name.
        kind, settings: see `make_key`.
        inputs: role -> path of each input; its key is looked up or computed.
        keys: role -> key, for inputs that are no files (a package's corpus) or were hashed already.
    Raises:
        UserError: the disk is full or may not be written to, another process is writing this folder, or the name belongs to
            a folder that is not ours to replace.
    """
    started = time.monotonic()
    partial = _beside(folder, "partial")
    figures: dict[str, Any] = {}
    try:
        recover(folder)
        refuse_foreign(folder)
        with _claimed(partial):
            entries = {
                role: Input((keys or {}).get(role) or key_of(path), _shown(path, folder))
                for role, path in (inputs or {}).items()
            }
            entries |= {
                role: Input(key, str(settings.get(role, role)))
                for role, key in (keys or {}).items()
                if role not in entries
            }
            yield partial, figures
            manifest = Manifest(
                kind=kind,
                key=make_key(kind, settings, {role: entry.key for role, entry in entries.items()}),
                settings=dict(settings),
                inputs=entries,
                figures=figures,
                versions={"tinyseek": __version__, "python": platform.python_version(), **_library_versions()},
                created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                seconds=round(time.monotonic() - started, 3),
            )
            text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False, default=_plain)
            write_text(partial / MANIFEST, text + "\n")
            sync_tree(partial)
            replace_folder(partial, folder)
    except Exception as error:
        told = _user_error(error, folder)
        if told is None:
            raise
        raise told from error


def _beside(folder: Path, what: str) -> Path:
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    return folder.with_name(f"{folder.name}.{what}")


def _plain(value: Any) -> Any:
    """NumPy's and torch's single numbers as Python's, so that a stage may note a figure as it computed it."""
    return value.item() if hasattr(value, "item") else str(value)


def refuse_foreign(folder: Path) -> None:
    """Replacing deletes, so only a folder that a stage wrote may be replaced: never a home folder given by mistake.

    Raises:
        UserError: `folder` is a file, or holds files and no manifest.
    """
    if folder.is_dir() and not (folder / MANIFEST).is_file() and any(folder.iterdir()):
        raise UserError(
            f"{folder}: has files in it that no stage of tinyseek wrote; choose another name for the output"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose another name for the output folder")


@contextmanager
def _claimed(partial: Path) -> Iterator[None]:
    """Make `partial` empty and ours. The lock is on the folder itself and dies with its process, so a killed writer's remains
    are taken over and a living one's are not; on the way out what is still there is removed."""
    while True:
        partial.mkdir(parents=True, exist_ok=True)
        descriptor = lock(partial)
        if descriptor is None:
            raise UserError(f"{partial}: another process is writing it; wait for it, or stop it")
        if _is_still(partial, descriptor):
            break
        os.close(descriptor)  # its writer put it in place between our mkdir and our lock
    try:
        for left in partial.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        yield
    finally:
        if _is_still(partial, descriptor):
            shutil.rmtree(partial, ignore_errors=True)
        if descriptor:
            os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    """Does the name still mean the folder that we opened?"""
    try:
        return not descriptor or os.fstat(descriptor).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def lock(path: Path) -> int | None:
    """A descriptor that holds the file or folder `path` alone, or None when another process does; closing it lets go."""
    if sys.platform == "win32":  # folders cannot be locked there; the run's own lock still stands
        return 0
    import fcntl

    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than this disk or shell allows",
    errno.EROFS: "the disk is read-only",
}


def _user_error(error: Exception, folder: Path) -> UserError | None:
    """The failure to write `folder` in the user's words, or None when `error` is something else."""
    number = disk_trouble(error)
    if number:
        return UserError(f"{folder}: {_DISK[number]}; nothing was changed. Make room and run the same command again")
    if isinstance(error, OSError) and error.filename and error.strerror:
        touched, partial = Path(os.fsdecode(error.filename)).resolve(), _beside(folder, "partial").resolve()
        if touched == folder.resolve() or touched.is_relative_to(partial) or partial.is_relative_to(touched):
            return UserError(f"{folder}: cannot be written ({error.strerror}); nothing was changed")
    return None


def disk_trouble(error: BaseException) -> int | None:
    """The errno of a disk that takes no more, also out of libraries that keep only the words; else None."""
    if isinstance(error, OSError) and error.errno in _DISK:
        return error.errno
    foreign = not isinstance(error, UserError | OSError) or (isinstance(error, OSError) and error.errno is None)
    return errno.ENOSPC if foreign and ("No space left" in str(error) or "(os error 28)" in str(error)) else None


def _shown(path: Path, folder: Path) -> str:
    """Relative for what lies beside the artefact, so that a run can be moved as a whole; else from the root."""
    full, home = path.resolve(), folder.resolve().parent
    return str(full.relative_to(home)) if full.is_relative_to(home) else str(full)


def _library_versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "tokenizers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_text(path: Path, text: str) -> None:
    """Write a file aside and rename it, so that a reader sees the old text or the new one, never half."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(path)


def sync_tree(folder: Path) -> None:
    """Flush all that is in `folder` to disk, so that a rename that survives a power cut points at whole files."""
    for path in [*folder.rglob("*"), folder]:
        if os.name == "nt" and path.is_dir():  # folders cannot be opened there
            continue
        descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_folder(source: Path, target: Path) -> None:
    """Give `source`, which must be whole and flushed, the name `target`. Renames only: at no moment is `target` half-written.

    A folder cannot be renamed over a full one, so an old `target` steps aside to `target.old` first and is deleted last. Between
    the two renames there is no `target`; whoever comes by then, after a kill or at the same time, finishes it (`recover`).
    """
    old = _beside(target, "old")
    if target.exists() and source.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    _finish(source, target)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Put right what a writer killed between two renames left: no `folder`, but its old state aside.

    `folder.partial` with a manifest beside `folder.old` is whole, because the old folder steps aside only after the new one was
    flushed; so it takes its place. Without one the old folder comes back. Any number of processes may do this at once.
    """
    old, partial = _beside(folder, "old"), _beside(folder, "partial")
    if folder.exists() or not old.is_dir():
        return
    if (partial / MANIFEST).is_file():
        _finish(partial, folder)
    else:
        _finish(old, folder)


def _finish(source: Path, target: Path) -> None:
    """Rename, content if another process has just done it."""
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def lineage(folder: Path) -> list[tuple[int, str, Path, Manifest | None]]:
    """A folder's ancestors, depth first: (depth, role, path, manifest or None for raw input)."""
    rows: list[tuple[int, str, Path, Manifest | None]] = []

    def walk(path: Path, role: str, depth: int) -> None:
        manifest = read(path) if (path / MANIFEST).is_file() else None
        rows.append((depth, role, path, manifest))
        for name, entry in (manifest.inputs if manifest else {}).items():
            beside = path.parent / entry.path
            walk(beside if beside.exists() else Path(entry.path), name, depth + 1)

    read(folder)
    walk(folder, "", 0)
    return rows
