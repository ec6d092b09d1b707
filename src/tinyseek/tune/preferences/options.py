"""The settings of learning from preferences. Names are TRL's, where TRL has one. No torch here."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tinyseek.settings import taken_from
from tinyseek.tune.options import TuneSettings

LossName = Literal["sigmoid", "ipo", "hinge", "simpo", "orpo"]
FREE = ("simpo", "orpo")  # losses that need no reference


class PreferenceSettings(TuneSettings):
    """What learning from pairs and from thumbs have in common."""

    model: str = taken_from("sft", "model to start from: a folder, a stage, or a pulled model's name")
    data: list[str] = taken_from(
        ["pairs"],
        "pairs folders, or files: prompt with chosen and rejected, or with completion and label; names of data sets",
    )

    lr: float = Field(1e-5, gt=0, le=10, description="highest learning rate; an adapter wants ten times as much")
    seq_len: int = Field(512, ge=2, description="tokens of prompt and answer together")
    epochs: float = Field(1.0, gt=0, description="passes over the data, where `steps` is none")
    val_fraction: float = Field(0.02, ge=0, le=0.5, description="share of the prompts held out to validate on")
    too_long: Literal["drop", "keep_start", "keep_end"] = Field(
        "drop",
        description="what becomes of a prompt and answer longer than seq_len: left out with its pair, or cut at the answer's end "
        "(keep_start) or at the prompt's beginning (keep_end)",
    )


class DpoSettings(PreferenceSettings):
    """Direct preference optimisation and its kin: of two answers to a prompt, the better one becomes likelier."""

    batch_size: int = Field(8, ge=1, description="pairs that one optimiser step sees")
    loss: LossName = Field(
        "sigmoid",
        description="sigmoid is DPO (arXiv 2305.18290), ipo 2310.12036, hinge SLiC 2305.10425; without a reference: simpo "
        "2405.14734, orpo 2403.07691",
    )
    beta: float | None = Field(
        None,
        gt=0,
        le=100,
        description="what log-ratios are multiplied by, IPO's tau, ORPO's lambda: the larger, the nearer DPO stays to the "
        "reference; if none, 0.1, and 2 for simpo",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="sigmoid, simpo: share of the pairs that may be the wrong way round"
    )
    simpo_gamma: float = Field(0.5, ge=0, le=100, description="simpo: the margin that chosen should win by")
    rpo_alpha: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="weight of the chosen answers' own loss, -log p a token (arXiv 2404.19733): keeps them likely; orpo has it "
        "with weight 1",
    )
    reference: Literal["auto", "precomputed", "base", "none"] = Field(
        "auto",
        description="what sigmoid, ipo and hinge compare with, the model as it was: precomputed once before training and kept, or "
        "base, computed at each step by the model under the adapter (without one, by a second copy); auto is precomputed, and none "
        "for simpo and orpo",
    )

    @model_validator(mode="after")
    def _fits_the_loss(self) -> Self:
        if self.loss not in FREE and self.reference == "none":
            raise ValueError(f"loss={self.loss} compares with a reference; losses without one are {', '.join(FREE)}")
        if self.loss in FREE and self.reference in ("precomputed", "base"):
            raise ValueError(f"loss={self.loss} has no reference; leave reference out")
        if self.label_smoothing and self.loss not in ("sigmoid", "simpo"):
            raise ValueError(f"label_smoothing means nothing to loss={self.loss}; it is for sigmoid and simpo")
        if self.rpo_alpha and self.loss == "orpo":
            raise ValueError("orpo has the chosen answers' own loss already, with weight 1; beta weighs the other part")
        if self.reference == "base" and self.lora is not None and self.lora.save:
            raise ValueError(
                "lora.save trains modules whole, so that no base is left under the adapter; take reference=precomputed"
            )
        return self

    @property
    def strength(self) -> float:
        """`beta`, or what it is if none."""
        return self.beta if self.beta is not None else 2.0 if self.loss == "simpo" else 0.1

    @property
    def compared_with(self) -> Literal["precomputed", "base", "none"]:
        """`reference`, with auto settled."""
        if self.loss in FREE:
            return "none"
        return "precomputed" if self.reference == "auto" else self.reference


class KtoSettings(PreferenceSettings):
    """Kahneman-Tversky optimisation (arXiv 2402.01306): single answers that were liked, or not. Pairs are taken apart."""

    batch_size: int = Field(
        8,
        ge=2,
        description="answers that one optimiser step sees; KL is estimated from each prompt with another's answer",
    )
    beta: float = Field(0.1, gt=0, le=100, description="the larger, the nearer the model stays to what it was")
    desirable_weight: float = Field(
        1.0,
        ge=0,
        le=1000,
        description="of the answers that were liked; the paper wants the weights times their numbers at 1:1 to 4:3",
    )
    undesirable_weight: float = Field(1.0, ge=0, le=1000, description="of those that were not")
