"""Training checkpoints: all that a run needs to go on as if it had never stopped.

`WORK/step-000400/` is a Hugging Face model folder, or an adapter's, plus `optimizer.safetensors` and `state.json`. It is written
aside, flushed to disk and renamed, so a folder of that name is whole; `state.json` also lists the sizes of the files, by which a
copy that was cut short is told.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.train import parallel
from tinyseek.train.optim import Optimizer

STATE, OPTIMIZER = "state.json", "optimizer.safetensors"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass
class Progress:
    """How far a run is, in plain JSON."""

    step: int = 0
    tokens: int = 0  # positions seen
    seconds: float = 0.0  # of work, over all the sittings
    val_loss: float | None = None  # the last one measured
    best_loss: float | None = None
    best_step: int = 0
    waited: int = 0  # validations since the best
    loss_mean: float = 0.0  # running figures by which a spike is told
    loss_var: float = 0.0
    loss_seen: int = 0
    streak: int = 0  # steps in a row above them
    sampler: dict[str, int] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)  # what the objective wants to find again
    changed: list[str] = field(default_factory=list)  # settings that changed on the way (resume=changed)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    folder: Path
    progress: Progress
    made_from: dict[str, Any]  # settings and input keys of the run
    setup: dict[str, Any]  # threads, precision ... (`device.Setup.plain`)
    rng: dict[str, Any]
    val_loss: float | None  # measured on exactly these weights, if it was


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of the random generators as JSON, bytes in hexadecimal."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": bytes(torch.get_rng_state().numpy()).hex(),
        "numpy": {
            "keys": np.asarray(keys, dtype="<u4").tobytes().hex(),
            "position": int(position),
            "gauss": float(gauss) if has_gauss else None,
        },
    }
    if device.type == "cuda":
        state["cuda"] = bytes(torch.cuda.get_rng_state(device).numpy()).hex()
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Take back what `random_state` gave."""
    torch.set_rng_state(_byte_tensor(state["torch"]))
    numpy = state["numpy"]
    keys = np.frombuffer(bytes.fromhex(numpy["keys"]), dtype="<u4")
    np.random.set_state(("MT19937", keys, numpy["position"], int(numpy["gauss"] is not None), numpy["gauss"] or 0.0))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(_byte_tensor(state["cuda"]), device)


def _byte_tensor(digits: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(digits), dtype=torch.uint8).clone()


def own_memory(model: nn.Module) -> None:
    """Put every weight into contiguous memory that torch's allocator chose, as fresh weights are.

    Loaded ones may be views of a file's mapping or transposed; a matrix product over memory that lies otherwise may add in another
    order and differ in the last bit, and a resumed run would not be exact.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)


def save(
    work: Path,
    write: Callable[[Path], object],
    optimizer: Optimizer,
    progress: Progress,
    made_from: Mapping[str, Any],
    setup: Mapping[str, Any],
    device: torch.device,
    val_loss: float | None,
) -> Path:
    """Write the checkpoint of `progress.step`; of several processes the first does.

    Args:
        write: puts what is trained into a folder: a whole model, or an adapter alone.
    Raises:
        UserError: the disk is full or cannot be written; earlier checkpoints stay.
    """
    folder = work / f"step-{progress.step:06d}"
    if not parallel.is_first():
        parallel.wait()
        return folder
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        tensors = {name: tensor.detach().contiguous() for name, tensor in optimizer.state_dict().items()}
        save_file(tensors, partial / OPTIMIZER)
        values = {
            "progress": asdict(progress),
            "val_loss": val_loss,
            "made_from": dict(made_from),
            "setup": dict(setup),
            "rng": random_state(device),
            "files": {str(p.relative_to(partial)): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file()},
        }
        artifact.write_text(partial / STATE, json.dumps(values) + "\n")
        artifact.sync_tree(partial)
        artifact.replace_folder(partial, folder)
        sync_folder(work)
    except (OSError, SafetensorError, UserError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        last = max((c for _, c in _numbered(work)), default=None, key=lambda path: path.name)
        kept = f"the last one kept is {last}" if last else "none was kept before"
        raise UserError(
            f"{folder}: this checkpoint cannot be written ({error}); {kept}. Free some space and run again"
        ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    parallel.wait()
    return folder


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names, so that a rename in it survives a power cut (where the system can)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows has no such handle, and orders these itself
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(folder: Path) -> Checkpoint:
    """A checkpoint, whole.

    Raises:
        UserError: cut short, or damaged otherwise.
    """
    try:
        values = json.loads((folder / STATE).read_text(encoding="utf-8"))
        for name, size in values["files"].items():
            there = (folder / name).stat().st_size if (folder / name).is_file() else None
            if there != size:
                what = "is missing" if there is None else f"has {there} bytes, not {size}"
                raise UserError(f"{folder}: {name} {what}")
        return Checkpoint(
            folder=folder,
            progress=Progress(**values["progress"]),
            made_from=values["made_from"],
            setup=values["setup"],
            rng=values["rng"],
            val_loss=values["val_loss"],
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{folder}: {STATE} cannot be read ({error})") from None


def _numbered(work: Path) -> list[tuple[int, Path]]:
    """Step and folder of every checkpoint, the newest first."""
    if not work.is_dir():
        return []
    found = [
        (int(match[1]), path) for path in work.iterdir() if (match := _NAME.fullmatch(path.name)) and path.is_dir()
    ]
    return sorted(found, reverse=True)


def newest(work: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint of a work folder; one that was cut short is named and passed over."""
    for _, folder in _numbered(work):
        try:
            return read(folder)
        except UserError as error:
            say(f"warning: {error}; passing over this checkpoint")
    return None


def best(work: Path) -> Checkpoint | None:
    """The whole checkpoint with the lowest validation loss."""
    whole = []
    for _, folder in _numbered(work):
        try:
            whole.append(read(folder))
        except UserError:
            continue
    measured = [(checkpoint.val_loss, checkpoint) for checkpoint in whole if checkpoint.val_loss is not None]
    return min(measured, key=lambda pair: pair[0])[1] if measured else None


def prune(work: Path, keep_last: int) -> None:
    """Delete all checkpoints but the newest `keep_last` and the best."""
    if not parallel.is_first():
        return
    top = best(work)
    for _, folder in _numbered(work)[keep_last:]:
        if top is None or folder != top.folder:
            gone = folder.with_name(
                folder.name + ".partial"
            )  # renamed first: half a deletion must not look like a checkpoint
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def copy_model(checkpoint: Path, target: Path) -> None:
    """Copy what a checkpoint has of the model, without what only training needs."""
    shutil.copytree(checkpoint, target, ignore=shutil.ignore_patterns(STATE, OPTIMIZER), dirs_exist_ok=True)


def restore_optimizer(optimizer: Optimizer, checkpoint: Checkpoint) -> None:
    """Give an optimiser the memory that a checkpoint holds.

    Raises:
        UserError: the file is damaged.
    """
    try:
        optimizer.load_state_dict(load_file(checkpoint.folder / OPTIMIZER))
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{checkpoint.folder / OPTIMIZER}: damaged ({error}); delete this checkpoint and run again"
        ) from None


def differences(checkpoint: Checkpoint, made_from: Mapping[str, Any]) -> list[str]:
    """`setting: before -> now` for every setting or input that is not the checkpoint's."""

    def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    before, now = dict(flat(checkpoint.made_from)), dict(flat(json.loads(json.dumps(made_from))))
    names = sorted({*before, *now})
    return [f"{name}: {before.get(name)} -> {now.get(name)}" for name in names if before.get(name) != now.get(name)]


@contextmanager
def held(work: Path) -> Iterator[None]:
    """Hold a work folder for this process alone, or for those that train together.

    Raises:
        UserError: another run is training in it.
    """
    if not parallel.is_first():
        try:
            parallel.own(work).mkdir(parents=True, exist_ok=True)
            yield
        finally:
            shutil.rmtree(parallel.own(work), ignore_errors=True)
        return
    file = work / "lock"
    try:
        work.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise UserError(f"{work}: cannot be written ({error.strerror})") from None
    descriptor = artifact.lock(file)
    if descriptor is None:
        raise UserError(f"{work}: another run is training here; wait for it, or stop it (tinyseek ps)")
    try:
        for leftover in work.glob("*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        if not _numbered(work) and not any(
            work.glob("*.jsonl")
        ):  # stopped by an error before it began: nothing to go on from
            shutil.rmtree(work, ignore_errors=True)
        if descriptor:
            os.close(descriptor)
