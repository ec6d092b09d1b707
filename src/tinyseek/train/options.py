"""The settings of training: what every run has, then what pre-training and fine-tuning add. No torch here."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tinyseek.errors import UserError
from tinyseek.model.config import ModelConfig
from tinyseek.model.presets import from_preset
from tinyseek.settings import StageSettings, no_effect, taken_from

OptimizerName = Literal["adamw", "muon", "adam", "sgd", "momentum", "adagrad", "rmsprop"]
ScheduleName = Literal["constant", "cosine", "exponential", "multi_step", "wsd"]
Precision = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda", "mps"]


class TrainSettings(StageSettings):
    """What the loop obeys, whatever it trains."""

    steps: int | None = Field(None, ge=1, description="optimiser steps; if none, `epochs` decides")
    epochs: float = Field(1.0, gt=0, description="passes over the data, where `steps` is none; fractions are fine")
    batch_size: int = Field(8, ge=1, description="sequences that one optimiser step sees")
    seq_len: int = Field(512, ge=2, description="tokens a sequence")
    accumulate: int = no_effect(
        1,
        "micro-batches that each step's sequences are worked through in: raise it when memory runs out; the gradient "
        "stays that of the whole batch",
        ge=1,
    )

    optimizer: OptimizerName = Field(
        "adamw", description="update rule; muon takes the hidden matrices and adamw the rest"
    )
    lr: float = Field(
        1e-3, gt=0, le=10, description="highest learning rate; muon's is scaled so that adamw's value fits"
    )
    betas: tuple[float, float] = Field(
        (0.9, 0.95), description="adam, adamw: decay of the two moving averages, each in [0, 1)"
    )
    eps: float = Field(1e-8, gt=0, le=1, description="adam, adamw, adagrad, rmsprop: added to the denominator")
    momentum: float = Field(0.95, ge=0, lt=1, description="muon, momentum, rmsprop: decay of the velocity")
    weight_decay: float = Field(
        0.1, ge=0, le=10, description="pull of matrices to zero; norms, biases, embeddings have none"
    )
    clip: float = Field(1.0, ge=0, description="largest norm of the gradient; 0 for no limit")

    schedule: ScheduleName = Field("cosine", description="course of the learning rate after the warm-up")
    warmup_steps: int | None = Field(
        None, ge=0, description="steps of linear rise; if none, a twentieth of the run, 500 at most"
    )
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="cosine, exponential, wsd: the last rate over the highest")
    milestones: list[float] = Field([0.8, 0.9], description="multi_step: where the rate drops, as fractions of the run")
    milestone_ratio: float = Field(
        math.sqrt(0.1), gt=0, le=1, description="multi_step: what each drop multiplies the rate by"
    )
    decay_fraction: float = Field(0.2, gt=0, le=1, description="wsd: the last part of the run, in which the rate falls")

    validate_every: int = Field(200, ge=0, description="steps between validations; 0 for one at the end")
    val_batches: int = Field(
        16, ge=1, description="batches that one validation looks at, spread over the held-out data"
    )
    early_stop: int = Field(
        0, ge=0, description="validations without a better loss before stopping at the best; 0 to never"
    )
    spike_sigma: float = Field(
        6.0, ge=0, description="standard deviations above the recent mean that count as a spike; 0 for off"
    )
    spike_steps: int = Field(10, ge=1, description="steps in a row above it after which the run stops")
    precision: Precision = Field(
        "auto", description="number format of the products; auto measures which is faster here"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of the initial weights and the order of the data")

    save_every: int = no_effect(
        200, "steps between checkpoints, from which a stopped run goes on; 0 for one at the end", ge=0
    )
    keep_last: int = no_effect(2, "checkpoints kept beside the best one", ge=1)
    resume: Literal["auto", "fresh", "changed"] = no_effect(
        "auto",
        "a run that was stopped: auto goes on and refuses changed settings, fresh starts again, changed goes on with them",
    )
    device: Device = no_effect("auto", "where to compute; auto is cuda, else mps, else cpu")
    threads: int = no_effect(
        0, "CPU threads; 0 for one a core. A resumed run is bit-for-bit the same only with as many", ge=0
    )
    compile: Literal["auto", True, False] = no_effect(
        "auto", "compile the model's blocks, with a C++ compiler; auto does in runs long enough to repay it"
    )
    tensorboard: bool = no_effect(False, "also write TensorBoard's event files")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be split into accumulate={self.accumulate} equal parts"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)} must lie in [0, 1)")
        if any(not 0 < at <= 1 for at in self.milestones) or sorted(self.milestones) != self.milestones:
            raise ValueError(f"milestones {self.milestones} must rise and lie in (0, 1]")
        if self.schedule == "exponential" and self.min_lr_ratio == 0:
            raise ValueError("schedule=exponential never reaches 0; set min_lr_ratio above it")
        if self.steps is not None and self.warmup_steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} leaves nothing of {self.steps} steps")
        if self.early_stop and not self.validate_every:
            raise ValueError("early_stop needs validations on the way; set validate_every")
        return self

    def total_steps(self, sequences: int) -> int:
        """Optimiser steps of the whole run over data of `sequences` sequences."""
        return self.steps or max(1, round(self.epochs * sequences / self.batch_size))

    def warmup(self, steps: int) -> int:
        """Steps of warm-up in a run of `steps`."""
        return min(500, steps // 20) if self.warmup_steps is None else self.warmup_steps


class PretrainSettings(TrainSettings):
    """A model from random weights, or on from given ones, over plain text."""

    tokens: str = taken_from("tokens", "tokens folder to learn from")
    tokenizer: str = taken_from("tokenizer", "tokenizer folder; its vocabulary gives the model's size")
    model: dict[str, Any] = Field(
        default={"preset": "quickstart"},
        description="`preset` and what to change in it, for example {preset: mini, num_hidden_layers: 4}",
    )
    stride: int | None = Field(None, ge=1, description="tokens from one window's start to the next; if none, seq_len")

    mask_documents: bool = Field(
        False, description="keep attention within each document of a window; slower, and the context shorter"
    )

    @model_validator(mode="after")
    def _model_fits(self) -> Self:
        config = self.model_config_for(None)
        if self.seq_len > config.max_position_embeddings:
            raise ValueError(
                f"seq_len {self.seq_len} is longer than the model's context; lower it or set "
                f"model.max_position_embeddings (now {config.max_position_embeddings})"
            )
        return self

    def model_config_for(self, vocab_size: int | None) -> ModelConfig:
        """The model's shape; `vocab_size` is the tokenizer's, none for the preset's own.

        Raises:
            UserError: unknown preset or setting, numbers that do not fit together, another vocabulary asked for.
        """
        overrides = dict(self.model)
        preset = overrides.pop("preset", "quickstart")
        asked = overrides.get("vocab_size")
        if vocab_size is not None:
            if asked is not None and asked < vocab_size:
                raise UserError(
                    f"model.vocab_size={asked} is smaller than the tokenizer's {vocab_size}; leave it out to take the tokenizer's"
                )
            overrides["vocab_size"] = asked or vocab_size
        return from_preset(str(preset), overrides)

    def essence(self) -> dict[str, Any]:
        """With the preset written out, so that a preset that changes makes another key."""
        written_out = self.model_config_for(None).plain()
        if "vocab_size" not in self.model:
            del written_out["vocab_size"]
        return super().essence() | {"model": written_out}
