"""Several processes train one model: each works through its share of every batch, and the gradients are added up.

    torchrun --nproc-per-node 2 -m tinyseek sft OUT model=... data=...

torchrun tells each process who it is through the environment. Each holds the whole model and makes the same update; the first
alone writes files and speaks. Since losses are shares of the whole batch's mean (objective.py), sums are all that is exchanged, and
the gradient is that of one process up to the order of adding.
"""

from __future__ import annotations

import atexit
import datetime
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_PATIENCE = datetime.timedelta(hours=2)  # that processes wait for each other: one may precompute, or draw its picture


def rank() -> int:
    """This process's number; 0 is the one that writes and speaks."""
    return int(os.environ.get("RANK", "0")) if size() > 1 else 0


def size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process writes and speaks."""
    return rank() == 0


def own(work: Path) -> Path:
    """Where this process may keep what it makes for itself: the work folder, or one beside it."""
    return work if is_first() else work.with_name(f"{work.name}-{rank()}")


def join(device: torch.device) -> None:
    """Meet the other processes, if there are any and they have not met yet."""
    if size() == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    atexit.register(dist.destroy_process_group)


def wait() -> None:
    """Go on when all have come here."""
    if dist.is_initialized():
        dist.barrier()


def share(items: Any) -> Any:
    """This process's part of a sequence or an array of items."""
    return items[rank() :: size()] if dist.is_initialized() else items


def total(numbers: Sequence[float], device: torch.device | str = "cpu") -> list[float]:
    """The sum of each number over all processes."""
    if not dist.is_initialized():
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return [float(number) for number in sums.tolist()]


def add_up(tensor: Tensor) -> Tensor:
    """A tensor's sum over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def first(values: dict[str, Any], device: torch.device | str = "cpu") -> dict[str, Any]:
    """The first process's values, plain JSON, for all: what was measured must not differ between them."""
    if not dist.is_initialized():
        return values
    text = json.dumps(values).encode()
    length = torch.tensor([len(text)], device=device)
    dist.broadcast(length, 0)
    letters = torch.zeros(int(length), dtype=torch.uint8, device=device)
    if is_first():
        letters.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    dist.broadcast(letters, 0)
    said: dict[str, Any] = json.loads(bytes(letters.cpu().numpy()).decode())
    return said


def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add every process's gradients. A weight that nobody has a gradient for is left without."""
    if not dist.is_initialized():
        return
    parameters = list(parameters)
    if not parameters:
        return
    device = parameters[0].device
    has = add_up(torch.tensor([float(p.grad is not None) for p in parameters], device=device)).tolist()
    held = [parameter for parameter, owners in zip(parameters, has, strict=True) if owners]
    for parameter in held:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for dtype in {parameter.dtype for parameter in held}:
        gradients = [p.grad for p in held if p.dtype == dtype and p.grad is not None]
        flat = add_up(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))
