"""What every stage leaves behind: a folder with a manifest.

A folder is written aside (`NAME.partial`) and renamed, so one that exists is whole. Its `key` is the hash of what it was made
from: the kind, the settings, and the keys of its inputs. Two folders with one key hold the same thing, and a stage whose key is
already there need not run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
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

    key: str  # the other artefact's key, or "sha256:..." of a raw file
    path: str  # where it lay, for people; relative to the artefact where both lie in one run


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
    if not file.is_file():
        missing = (
            "no such folder" if not folder.exists() else f"no {MANIFEST} in it, so no stage of tinyseek finished it"
        )
        raise UserError(f"{folder}: {missing}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        values["inputs"] = {role: Input(**entry) for role, entry in values["inputs"].items()}
        return Manifest(**values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file}: damaged ({error}); delete the folder and build it again") from None


def key_of(folder: Path) -> str:
    """The key of an artefact folder, or of a raw file or any other folder the hash of its content."""
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
    """
    started = time.monotonic()
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    figures: dict[str, Any] = {}
    try:
        partial.mkdir(parents=True)
        entries = {
            role: Input((keys or {}).get(role) or key_of(path), _shown(path, folder))
            for role, path in (inputs or {}).items()
        }
        entries |= {role: Input(key, role) for role, key in (keys or {}).items() if role not in entries}
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
        write_text(partial / MANIFEST, json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n")
        sync_tree(partial)
        replace_folder(partial, folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); nothing was changed"
        ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _shown(path: Path, folder: Path) -> str:
    try:
        return (
            os.path.relpath(path, folder.parent)
            if path.resolve().is_relative_to(folder.parent.resolve())
            else str(path)
        )
    except (OSError, ValueError):
        return str(path)


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
    """Flush every file below `folder` to disk, so that a rename that survives a power cut points at whole files."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def replace_folder(source: Path, target: Path) -> None:
    """Give `source` the name `target`. Renames only: at no moment is `target` half-written.

    A folder cannot be renamed over a full one, so an old `target` steps aside first and is deleted last.
    """
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def lineage(folder: Path) -> list[tuple[int, str, Path, Manifest | None]]:
    """A folder's ancestors, depth first: (depth, role, path, manifest or None for raw input)."""
    rows: list[tuple[int, str, Path, Manifest | None]] = []

    def walk(path: Path, role: str, depth: int) -> None:
        manifest = read(path) if (path / MANIFEST).is_file() else None
        rows.append((depth, role, path, manifest))
        for name, entry in (manifest.inputs if manifest else {}).items():
            walk(path.parent / entry.path if not Path(entry.path).is_absolute() else Path(entry.path), name, depth + 1)

    read(folder)
    walk(folder, "", 0)
    return rows
