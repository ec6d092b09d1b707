"""Learning-rate schedules: pure functions from the step to a factor of the highest rate.

`step` counts from 0 and is the step about to be taken, so a warm-up of W steps ends with factor 1 at step W - 1, and what
follows would reach its last value at step `steps`, one past the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tinyseek.train.options import TrainSettings


def progress(step: int, steps: int, warmup: int) -> float:
    """How much of the run after its warm-up is done, in [0, 1]."""
    return min(1.0, max(0.0, (step - warmup) / max(1, steps - warmup)))


def cosine(done: float, last: float) -> float:
    """Half a cosine from 1 to `last`. Source: Loshchilov & Hutter, arXiv 1608.03983, eq. 5, without restarts."""
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * done))


def exponential(done: float, last: float) -> float:
    """The same ratio at every step, from 1 to `last`."""
    return math.exp(done * math.log(last))


def multi_step(step: int, steps: int, milestones: Sequence[float], ratio: float) -> float:
    """Constant, then a drop at each milestone (a fraction of the whole run).

    Source: DeepSeek LLM, arXiv 2401.02954, section 2.3: 31.6 % from 80 % of the tokens on, 10 % from 90 % on.
    """
    return math.prod(ratio for at in milestones if step >= at * steps)


def wsd(step: int, steps: int, fraction: float, last: float) -> float:
    """Warm-up, stable, decay: constant, then from 1 to `last` as 1 - sqrt in the last `fraction` of the run.

    Source: MiniCPM, arXiv 2404.06395; the square root's shape from Hägele et al., arXiv 2405.18392, section 3.
    """
    length = fraction * steps
    done = min(1.0, max(0.0, (step - (steps - length)) / length))
    return 1 - (1 - last) * math.sqrt(done)


def factor(step: int, steps: int, settings: TrainSettings) -> float:
    """The learning rate of `step` over the highest one."""
    warmup = settings.warmup(steps)
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    done = progress(step, steps, warmup)
    match settings.schedule:
        case "constant":
            fall = 1.0
        case "cosine":
            fall = cosine(done, settings.min_lr_ratio)
        case "exponential":
            fall = exponential(done, settings.min_lr_ratio)
        case "multi_step":
            fall = multi_step(step, steps, settings.milestones, settings.milestone_ratio)
        case "wsd":
            fall = wsd(step, steps, settings.decay_fraction, settings.min_lr_ratio)
    return rise * fall
