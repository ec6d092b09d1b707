"""A checkpoint folder's tensors one at a time: read when they are asked for, and written as they come, so that a model need never
be whole in memory to be converted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tinyseek.artifact import write_text
from tinyseek.errors import UserError
from tinyseek.model import checkpoint

Shape = tuple[int, ...]


class FolderWeights:
    """The tensors of a folder by their names on disk, without those of `mtp/`."""

    def __init__(self, folder: Path) -> None:
        """Read the headers.

        Raises:
            UserError: no safetensors in the folder, or damaged ones.
        """
        aside = folder / "mtp"
        self.files = {name: file for name, file in checkpoint.weight_files(folder).items() if file.parent != aside}
        self.shapes: dict[str, Shape] = {}
        for file in dict.fromkeys(self.files.values()):
            try:
                with safe_open(file, framework="pt") as tensors:
                    for name in tensors.keys():  # noqa: SIM118  (no mapping)
                        self.shapes[name] = tuple(tensors.get_slice(name).get_shape())
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file}: missing, cut short or damaged ({error}); copy or build it again") from None
        missing = next((name for name in self.files if name not in self.shapes), None)
        if missing:
            raise UserError(f"{folder}: the checkpoint lacks the tensor {missing}, which its index names")

    def tensor(self, name: str) -> Tensor:
        """One tensor as it lies on disk."""
        with safe_open(self.files[name], framework="pt") as tensors:
            found: Tensor = tensors.get_tensor(name)
        return found

    def numbers(self, name: str) -> NDArray[np.float32]:
        """One tensor as float32."""
        out: NDArray[np.float32] = self.tensor(name).float().numpy()
        return out


def write_weights(
    folder: Path,
    shapes: Mapping[str, Shape],
    make: Callable[[str], Tensor],
    dtype: torch.dtype,
    done: Callable[[int], None] = lambda _: None,
    shard_bytes: int = checkpoint.SHARD_BYTES,
) -> None:
    """Write model.safetensors, or shards and their index, holding one shard in memory at a time.

    Args:
        shapes: of every tensor, by its name on disk, in the order in which they are written.
        make: a tensor by its name; asked once.
        dtype: of the weights on disk; routing biases stay float32.
        done: is told the bytes written so far.
    Raises:
        UserError: a file cannot be written.
    """
    kinds = {name: torch.float32 if name.endswith(checkpoint.FLOAT32_ALWAYS) else dtype for name in shapes}
    sizes = {name: int(np.prod(shape, dtype=np.int64)) * kinds[name].itemsize for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    weight_map: dict[str, str] = {}
    written = 0
    for number, names in enumerate(shards, start=1):
        single = len(shards) == 1
        file = "model.safetensors" if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        held: dict[str, Tensor] = {}
        for name in names:
            held[name] = make(name).to(kinds[name]).contiguous()
            written += sizes[name]
            done(written)
        checkpoint.write_file(held, folder / file)
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
