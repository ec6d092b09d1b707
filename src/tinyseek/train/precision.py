"""Which number format is faster here: measured, because a guess costs a factor of five.

On a CPU with matrix units (AMX) or on a GPU bfloat16 wins by far; on a CPU without them it is emulated: 60 GFLOP/s where
float32 reached 300 on two AVX-512 cores (docs/log.md).
"""

from __future__ import annotations

import functools
import time

import torch


def matmul_flops(dtype: torch.dtype, device: torch.device, budget: float = 0.1) -> float:
    """FLOP/s of a matrix product of a training batch's size, the best of the runs that fit in `budget` seconds."""
    rows = 2048 if device.type == "cpu" else 8192
    a = torch.randn(rows, 512, device=device, dtype=dtype)
    b = torch.randn(512, 512, device=device, dtype=dtype)
    best, start = float("inf"), time.perf_counter()
    a @ b
    while best == float("inf") or time.perf_counter() - start < budget:  # once at least, however busy the machine is
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * rows * 512 * 512 / best


@functools.cache
def faster_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where its products are clearly faster than float32's here, else float32."""
    return max(
        (torch.float32, torch.bfloat16),
        key=lambda dtype: matmul_flops(dtype, device) * (1.0 if dtype == torch.bfloat16 else 1.2),
    )
