"""What a run computes on: device, threads, number format, compiler; settled once, by a short measurement where asked."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tinyseek.errors import UserError
from tinyseek.train.options import TrainSettings
from tinyseek.train.precision import faster_dtype, matmul_flops

# Seconds of work at the machine's peak from which a compilation is repaid. On two CPU cores it took minutes and made a step 12 %
# faster (docs/log.md); on a GPU it takes about one minute and gains far more.
COMPILE_PAYS_AFTER = {"cpu": 3600.0, "cuda": 120.0, "mps": math.inf}


@dataclass(frozen=True)
class Setup:
    """What was settled. A checkpoint records it, since each part can change the last bits of a result."""

    device: str  # cpu, cuda, mps
    precision: str  # float32 or bfloat16
    compiled: bool
    threads: int
    accumulate: int
    torch: str
    peak: float  # FLOP/s of a large matrix product in that precision, measured

    def plain(self) -> dict[str, Any]:
        """As recorded: without the measurement, which differs from run to run."""
        return {key: value for key, value in asdict(self).items() if key != "peak"}

    def differences(self, recorded: Mapping[str, Any]) -> list[str]:
        """`name: before -> now` for each part that is not as recorded."""
        return [f"{k}: {recorded[k]} -> {v}" for k, v in self.plain().items() if k in recorded and recorded[k] != v]


def choose_device(asked: str) -> torch.device:
    """The device to compute on.

    Raises:
        UserError: a device that is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if asked == "auto":
        asked = next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[asked]:
        raise UserError(f"device={asked}: this machine (or this build of torch) has none; use device=auto")
    return torch.device(asked)


def compiler_missing(device: torch.device) -> str | None:
    """What `torch.compile` lacks here, if anything."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        return "no C++ compiler (g++ or clang++) was found"
    if device.type == "cuda":
        try:
            import triton  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
        except ImportError:
            return "triton is not installed"
    return "compilation is not for mps" if device.type == "mps" else None


def settle(
    settings: TrainSettings, recorded: Mapping[str, Any] | None, work_flops: float, say: Callable[[str], None]
) -> Setup:
    """Settle what the settings leave to be measured; a resumed run keeps what its checkpoint recorded.

    Args:
        recorded: `Setup.plain()` of the checkpoint that the run goes on from.
        work_flops: floating-point operations of the whole run, by which compiling is judged worth its wait.
        say: called with a line worth telling.
    """
    device = choose_device(settings.device)
    wanted: str = settings.precision
    if wanted == "auto" and recorded:
        wanted = recorded["precision"]
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads or before)
    if wanted == "auto":
        wanted = str(faster_dtype(device)).removeprefix("torch.")
    peak = matmul_flops(getattr(torch, wanted), device)
    torch.set_num_threads(before)
    compiled = settings.compile
    missing = compiler_missing(device)
    if compiled == "auto":
        worth = work_flops / peak > COMPILE_PAYS_AFTER[device.type]
        compiled = bool(recorded["compiled"]) if recorded else (worth and missing is None)
    if compiled and missing:
        say(f"not compiled: {missing}; going on without")
        compiled = False
    return Setup(
        device=device.type,
        precision=wanted,
        compiled=bool(compiled),
        threads=settings.threads or before,
        accumulate=settings.accumulate,
        torch=torch.__version__,
        peak=peak,
    )
