"""A recipe's stages in order, skipping what is already built from the same inputs and settings.

There is no state of its own: what is built is what the stages' folders say of themselves (artifact.py), so a run that was stopped,
killed or changed simply runs again, does what is missing, and says of each stage why.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tinyseek import artifact
from tinyseek.artifact import Manifest
from tinyseek.errors import UserError
from tinyseek.recipe import KINDS, Recipe, kind_of
from tinyseek.settings import StageSettings
from tinyseek.train.options import TrainSettings


@dataclass(frozen=True)
class Outcome:
    """What became of one stage."""

    stage: str
    folder: Path
    why_built: str  # empty when it was built already
    seconds: float  # of this run
    manifest: Manifest


def run(recipe: Recipe, until: str | None = None, say: Callable[[str], None] = print) -> list[Outcome]:
    """Bring every stage up to date.

    Args:
        until: the last stage to do; all when None.
        say: is given one line when a stage starts, is skipped, is done.
    Raises:
        UserError: something that a stage needs is missing, another run is at work here, or what a stage raises.
    """
    if _processes() > 1:
        raise UserError(
            "torchrun is for one training stage (torchrun ... -m tinyseek sft OUT ...); run a recipe without it"
        )
    if until is not None and until not in recipe.stages:
        raise UserError(f'this recipe has no stage "{until}"; there are: {", ".join(recipe.stages)}')
    _check_paths(recipe)
    outcomes: list[Outcome] = []
    with only_run_in(recipe.folder):
        text = yaml.safe_dump(recipe.plain(), sort_keys=False, allow_unicode=True, width=120)
        artifact.write_text(recipe.folder / "recipe.yaml", text)
        for number, name in enumerate(recipe.stages, 1):
            title = f"[{number}/{len(recipe.stages)}] {name}"
            outcomes.append(bring_up_to_date(recipe.resolved(name), recipe.folder / name, say, title))
            if name == until:
                break
    return outcomes


def bring_up_to_date(settings: StageSettings, folder: Path, say: Callable[[str], None], title: str) -> Outcome:
    """Build one stage if its folder is not what it would be made into now.

    Args:
        settings: with real paths as inputs (`Recipe.resolved`).
        title: what the lines that it says begin with.
    Raises:
        UserError: what the stage raises; several processes for one that trains nothing.
    """
    stage = folder.name
    if _processes() > 1 and not isinstance(settings, TrainSettings):
        raise UserError(f"torchrun is for stages that train; make {folder} without it")
    artifact.recover(folder)
    artifact.refuse_foreign(folder)  # now, not after hours of work
    why = why_build(settings, folder)
    if not why:
        manifest = artifact.read(folder)
        say(f"{title}: kept, built from the same settings and inputs on {manifest.created[:16].replace('T', ' ')}")
        return Outcome(stage, folder, "", 0.0, manifest)
    going_on = ", going on from where it stopped" if folder.with_name(f"{stage}.work").is_dir() else ""
    say(f"{title}: building ({why}){going_on}")
    started = time.monotonic()
    KINDS[kind_of(settings)].build_function()(settings, folder)
    seconds = time.monotonic() - started
    give_back_memory()
    say(f"{title}: done in {clock(seconds)}")
    return Outcome(stage, folder, why, seconds, artifact.read(folder))


def give_back_memory() -> None:
    """Return what a stage has freed to the system, or the next stage's need would stand on top of it."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc has no such call
            ctypes.CDLL(None).malloc_trim(0)


def why_build(settings: StageSettings, folder: Path) -> str:
    """Why a stage must be built, in a few words; empty when its folder is what would be made now.

    Args:
        settings: with real paths as inputs (`Recipe.resolved`).
    """
    artifact.recover(folder)
    if not (folder / artifact.MANIFEST).is_file():
        return "not built yet"
    try:
        manifest = artifact.read(folder)
    except UserError:
        return "its manifest is damaged"
    kind = kind_of(settings)
    if manifest.kind != kind:
        return f"the folder held a stage of kind {manifest.kind}"
    inputs = input_keys(settings)
    if manifest.key == artifact.make_key(kind, settings.essence(), inputs):
        return ""
    changes = changed_settings(manifest.settings, settings.essence())
    old = {role: entry.key for role, entry in manifest.inputs.items()}
    changes += [f"{role} changed" for role in inputs if role in old and old[role] != inputs[role]]
    changes += [f"{role} is new" for role in inputs if role not in old]
    changes += [f"{role} is gone" for role in old if role not in inputs]
    return "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "") or "its key changed"


def input_keys(settings: StageSettings) -> dict[str, str]:
    """The key of everything that a stage is made from, by its role: earlier stages, files, the raw text's content."""
    keys = {
        role: settings.input_key(role.partition(".")[0], path) or artifact.key_of(Path(path))
        for role, path in settings.taken().items()
    }
    if hasattr(settings, "corpus"):
        from tinyseek.text.sources import SourceSettings, corpus_key

        assert isinstance(settings, SourceSettings)
        keys["corpus"] = corpus_key(settings)
    return keys


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`["steps was 400, is 800"]`."""
    changes = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += changed_settings(before, after, f"{prefix}{key}.")
        elif before != after:
            changes.append(f"{prefix}{key} was {before!s:.40}, is {after!s:.40}")
    return changes


def _check_paths(recipe: Recipe) -> None:
    """What a late stage needs from outside must be there before an early one works for hours."""
    for name, stage in recipe.stages.items():
        for role, source in stage.taken().items():
            known = source in recipe.stages or Path(source).exists() or stage.located(role.partition(".")[0], source)
            if not known:
                raise UserError(f"{name}.{role}: {source}: no such file or folder")


def _processes() -> int:
    """How many processes torchrun has started to train together (train/parallel.py)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process alone. The lock dies with its process, so a killed run leaves none.

    Raises:
        UserError: another process is running in it, named by its number.
    """
    file = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); give another folder with out=") from None
    descriptor = artifact.lock(file)
    if descriptor is None:
        who = file.read_text(encoding="utf-8").strip()
        raise UserError(
            f"{folder}: another run is at work here{f' (process {who})' if who else ''}; wait for it, or stop it"
        )
    try:
        file.write_text(f"{os.getpid()}\n", encoding="utf-8")
        yield
    finally:
        if descriptor:
            os.close(descriptor)


def clock(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
