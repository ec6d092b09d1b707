"""What a teacher says to a data set, computed once and kept beside the checkpoints: its likeliest tokens at each answer's token.

`teacher/{split}.ids.bin` and `.logps.bin` hold K ids and K + 1 log-probabilities (the last of all other tokens together) for each
token that is learned, in the order of the token file; both are memory-mapped. `progress.json` says how many documents are done: it
is written after what it speaks of is on the disk, so a run that is killed goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tinyseek import artifact
from tinyseek.model.transformer import CausalLM
from tinyseek.text.progress import progress
from tinyseek.text.shards import IGNORED, EndToEnd, TokenFile
from tinyseek.train.objective import on_device
from tinyseek.tune.distill.divergence import likeliest

PROGRESS = "progress.json"
_AT_ONCE = 2048  # positions a forward pass
_BLOCK = 256  # positions whose logits are held
_SAVE_EVERY = 5.0  # seconds


@dataclass(frozen=True)
class Stored:
    """A split's, by the number of the learned token in the file."""

    ids_MK: NDArray[Any]
    logps_MJ: NDArray[np.float32]
    numbers: NDArray[np.int64]  # place in the token file -> number of the learned token there

    def flush(self) -> None:
        """Put it onto the disk."""
        for array in (self.ids_MK, self.logps_MJ):
            if isinstance(array, np.memmap):
                array.flush()


def learned(file: TokenFile) -> NDArray[np.bool_]:
    """Which ids of a file are targets: all but each document's first, or as the mask says."""
    kept = np.ones(len(file), np.bool_) if file.mask is None else file.mask.astype(np.bool_)
    kept[0] = False
    kept[file.ends[:-1]] = False
    return kept


def precompute(
    folder: Path,
    of: str,
    files: Mapping[str, TokenFile],
    load: Callable[[], CausalLM],
    kept: int,
    temperature: float,
    vocab_size: int,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> dict[str, Stored]:
    """The teacher's `kept` likeliest tokens at every learned token, by split; what is there already is not computed again.

    Args:
        folder: where they are kept.
        of: what they depend on besides the tokens; those of anything else are thrown away.
        load: gives the teacher, where there is anything to compute.
        vocab_size: the student's: tokens beyond it are none of the teacher's.
    """
    digest = hashlib.sha256(json.dumps([of, kept, temperature, vocab_size]).encode())
    for file in files.values():
        for array in (file.ids, file.ends, file.mask):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    identity = digest.hexdigest()
    done = _done(folder, identity)
    found = {split: _opened(folder, split, file, kept, vocab_size, fresh=not done) for split, file in files.items()}
    filling: _Filling | None = None
    for split, file in files.items():
        document, saved = done.get(split, 0), time.monotonic()
        if document == file.documents:
            continue
        filling = filling or _Filling(load(), temperature, vocab_size, autocast)
        with progress(f"teacher on {split}", int(file.ends[-1])) as update:
            while document < file.documents:
                last = _together(file, document)
                filling.fill(found[split], file, document, last)
                document = last
                update(int(file.ends[document - 1]), "")
                if document == file.documents or time.monotonic() - saved > _SAVE_EVERY:
                    found[split].flush()
                    done[split], saved = document, time.monotonic()
                    _save(folder, identity, done)
    return found


def _done(folder: Path, of: str) -> dict[str, int]:
    """How many documents of each split are done, if they are of the same."""
    try:
        values = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        return dict(values["documents"]) if values["of"] == of else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _save(folder: Path, of: str, done: Mapping[str, int]) -> None:
    artifact.write_text(folder / PROGRESS, json.dumps({"of": of, "documents": dict(done)}) + "\n")


def _opened(folder: Path, split: str, file: TokenFile, kept: int, vocab_size: int, fresh: bool) -> Stored:
    """A split's files, of their full size."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = learned(file)
    count = int(targets.sum())
    dtype = np.dtype("<u2" if vocab_size <= 65536 else "<u4")

    def mapped(name: str, kind: np.dtype[Any], width: int) -> NDArray[Any]:
        path = folder / f"{split}.{name}.bin"
        size = count * width * kind.itemsize
        there = path.is_file() and path.stat().st_size == size and not fresh
        return np.memmap(path, kind, "r+" if there else "w+", shape=(count, width))

    ids_MK, logps_MJ = mapped("ids", dtype, kept), mapped("logps", np.dtype("<f4"), kept + 1)
    return Stored(ids_MK, logps_MJ, np.cumsum(targets) - 1)


@dataclass(frozen=True)
class _Filling:
    """How a split's numbers come about."""

    teacher: CausalLM
    temperature: float
    vocab_size: int
    autocast: Callable[[], AbstractContextManager[Any]]

    @torch.no_grad()
    def fill(self, stored: Stored, file: TokenFile, first: int, last: int) -> None:
        """Compute those of the documents from `first` up to `last`."""
        begin, end = int(file.ends[first - 1]) if first else 0, int(file.ends[last - 1])
        mask = None if file.mask is None else file.mask[begin:end]
        part = TokenFile(file.path, file.vocab_size, file.ids[begin:end], file.ends[first:last] - begin, mask, None)
        rows = EndToEnd(part)
        if not len(rows):
            return
        batch, device = rows[np.arange(len(rows))], self.teacher.device
        assert batch.documents_BT is not None
        places_N = on_device(np.flatnonzero(batch.targets_BT[0] != IGNORED), device)
        at = int(stored.numbers[begin]) + 1  # a document's first id is no target, so these are the targets before it
        with self.autocast():
            hidden_1TD, _, _ = self.teacher.hidden(
                on_device(batch.ids_BT, device), on_device(batch.documents_BT, device)
            )
            for block_nD in hidden_1TD[0].index_select(0, places_N).split(_BLOCK):
                logits_nV = self.teacher.lm_head(block_nD)[:, : self.vocab_size]
                ids_nK, logps_nJ = likeliest(logits_nV, stored.ids_MK.shape[1], self.temperature)
                here = slice(at, at + len(block_nD))
                stored.ids_MK[here], stored.logps_MJ[here] = ids_nK.cpu().numpy(), logps_nJ.cpu().numpy()
                at += len(block_nD)


def _together(file: TokenFile, first: int) -> int:
    """Up to which document a forward pass goes that begins with `first`."""
    begin = int(file.ends[first - 1]) if first else 0
    return max(first + 1, int(np.searchsorted(file.ends, begin + _AT_ONCE, "right")))
