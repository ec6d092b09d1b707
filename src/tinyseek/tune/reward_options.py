"""The settings of training a reward model. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tinyseek.settings import no_effect
from tinyseek.tune.preferences.options import PreferenceSettings


class RewardSettings(PreferenceSettings):
    """A head with one output learns which of two answers people prefer (arXiv 2203.02155, section 3.5)."""

    margin: float = Field(
        0.0,
        ge=0,
        le=100,
        description="how much more the better answer's reward should be, where the data has no column margin (arXiv 2307.09288)",
    )
    center_rewards_coefficient: float = Field(
        0.0,
        ge=0,
        le=100,
        description="weight of the squared sum of a pair's rewards, which keeps them around 0 (arXiv 2312.09244); often 0.01",
    )
    last_layers: int | None = Field(
        None, ge=0, description="train only the head, the last norm and so many of the last blocks; 0 is the head alone"
    )

    batch_size: int = Field(8, ge=1, description="pairs that one optimiser step sees")
    lr: float = Field(
        1e-5, gt=0, le=10, description="highest learning rate; an adapter or a head alone takes ten times as much"
    )
    val_fraction: float = Field(0.05, ge=0, le=0.5, description="share of the prompts held out to validate on")
    val_batches: int = Field(
        64, ge=1, description="batches that one validation looks at, spread over the held-out pairs"
    )
    compile: Literal["auto", True, False] = no_effect(False, "batches have every length here: not compiled")
