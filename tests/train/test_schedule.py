"""Schedules at their borders, and against torch's own where torch has one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tinyseek.errors import UserError
from tinyseek.train.options import TrainSettings
from tinyseek.train.schedule import factor

NAMES = ["constant", "cosine", "exponential", "multi_step", "wsd"]


def course(steps: int, **settings: object) -> list[float]:
    made = TrainSettings.read(settings)
    return [factor(step, steps, made) for step in range(steps)]


@pytest.mark.parametrize("schedule", NAMES)
def test_warm_up_rises_evenly_to_exactly_one_and_nothing_exceeds_it(schedule: str) -> None:
    values = course(100, schedule=schedule, warmup_steps=10)
    assert values[:10] == pytest.approx([(step + 1) / 10 for step in range(10)], abs=0)
    assert values[10] == pytest.approx(1.0, abs=1e-12)
    assert max(values) <= 1.0
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(values[9:]))


@pytest.mark.parametrize("schedule", ["cosine", "exponential", "wsd"])
def test_the_last_rate_is_the_ratio(schedule: str) -> None:
    settings = TrainSettings(schedule=schedule, warmup_steps=10, min_lr_ratio=0.05)
    assert factor(1000, 1000, settings) == pytest.approx(0.05, rel=1e-12)
    assert 0.05 < factor(999, 1000, settings) < 0.1


def test_cosine_and_exponential_are_torchs() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    for schedule, make in (
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=60, eta_min=0.1)),
        ("exponential", lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma=0.1 ** (1 / 60))),
    ):
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        reference = make(optimizer)
        ours = course(60, schedule=schedule, warmup_steps=0, min_lr_ratio=0.1)
        for value in ours:
            assert value == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
            optimizer.step()
            reference.step()


def test_multi_step_is_deepseeks() -> None:
    values = course(1000, schedule="multi_step", warmup_steps=20)
    assert values[799] == 1.0
    assert values[800] == values[899] == pytest.approx(math.sqrt(0.1))  # 31.6 % from 80 % of the run on
    assert values[900] == values[999] == pytest.approx(0.1)  # 10 % from 90 % on


def test_wsd_is_stable_until_its_decay() -> None:
    values = course(100, schedule="wsd", warmup_steps=5, decay_fraction=0.25, min_lr_ratio=0.0)
    assert set(values[4:76]) == {1.0}
    assert values[76] == pytest.approx(1 - math.sqrt(1 / 25))


def test_a_short_run_has_a_short_warm_up() -> None:
    assert [TrainSettings().warmup(steps) for steps in (1, 19, 40, 10_000, 10**6)] == [0, 0, 2, 500, 500]
    assert course(1) == [1.0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": "exponential", "min_lr_ratio": 0},
        {"steps": 10, "warmup_steps": 10},
        {"milestones": [0.9, 0.8]},
        {"batch_size": 6, "accumulate": 4},
        {"early_stop": 2, "validate_every": 0},
        {"betas": [0.9, 1.0]},
        {"lr": 0},
        {"steps": 0},
        {"schedul": "cosine"},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="|".join(wrong)):
        TrainSettings.read(wrong)
