"""The settings of classification. No torch here."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tinyseek.settings import Settings, no_effect, taken_from
from tinyseek.tune.options import TuneSettings


class FewShotSettings(Settings):
    """Asking a chat model for the class, with a few examples in the prompt."""

    model: str = Field(
        min_length=1,
        description="who is asked: a chat model's folder, a pulled model's name, deepseek, a server's address",
    )
    shots: int = Field(2, ge=0, le=64, description="examples of each class that the prompt shows; 0 shows none")
    background: str = Field("", description="what the texts are and where they come from, in the prompt's words")
    need: str = Field("", description="what is to be told of a text; if empty, which of the classes it belongs to")
    language: Literal["en", "zh"] = Field("en", description="of the prompt")
    limit: int = Field(
        200, ge=1, description="texts of the test that are asked, spread evenly over it; each is one request"
    )
    seed: int = Field(0, ge=0, description="which examples are shown")


class ClassifySettings(TuneSettings):
    """A head over a model learns what class a text is of, from labelled texts."""

    data: list[str] = taken_from(
        ["texts"], "labelled texts: files with text and label (csv, tsv, json, jsonl, parquet); names of data sets"
    )
    val: list[str] | None = taken_from(None, "texts to validate on; if none, a share of data (val_fraction)")
    test: list[str] | None = taken_from(None, "texts to test on at the end; if none, a share of data (test_fraction)")

    val_fraction: float = Field(0.1, ge=0, le=0.5, description="share of each class's texts held out to validate on")
    test_fraction: float = Field(0.2, ge=0, le=0.8, description="share of each class's texts held out for the test")
    balance: bool = Field(False, description="take as many texts of each class as there are of the rarest")
    class_weights: Literal["none", "balanced"] | dict[str, float] = Field(
        "none",
        description="what a class's loss is multiplied by: balanced gives each class the same sum, {spam: 3} triples one",
    )
    too_long: Literal["truncate", "drop"] = Field(
        "truncate",
        description="what becomes of a text longer than seq_len: its end is cut, or it is left out; in the test it is always cut",
    )
    last_layers: int | None = Field(
        None, ge=0, description="train only the head, the last norm and so many of the last blocks; 0 is the head alone"
    )
    few_shot: FewShotSettings | None = Field(
        None, description="also ask a chat model about the test's texts, to hold its score beside: few_shot.model=NAME"
    )

    batch_size: int = Field(16, ge=1, description="texts that one optimiser step sees")
    seq_len: int = Field(256, ge=2, description="tokens a text may have")
    epochs: float = Field(4.0, gt=0, description="passes over the texts, where `steps` is none")
    lr: float = Field(
        1e-4, gt=0, le=10, description="highest learning rate; an adapter or a head alone takes ten times as much"
    )
    weight_decay: float = Field(0.01, ge=0, le=10, description="pull of matrices to zero")
    val_batches: int = Field(
        64, ge=1, description="batches that one validation looks at, spread over the held-out texts"
    )
    compile: Literal["auto", True, False] = no_effect(False, "batches have every length here: not compiled")

    @field_validator("few_shot", mode="before")
    @classmethod
    def _switched_off(cls, value: Any) -> Any:
        return None if value is False else value

    @field_validator("class_weights")
    @classmethod
    def _above_zero(cls, value: Any) -> Any:
        if isinstance(value, dict) and not all(weight > 0 for weight in value.values()):
            raise ValueError("weights should be above 0")
        return value

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        if self.last_layers is not None and (self.lora is not None or self.freeze):
            raise ValueError("last_layers, freeze and lora are three ways to choose what is trained; take one")
        if (0 if self.val else self.val_fraction) + (0 if self.test else self.test_fraction) > 0.9:
            raise ValueError("val_fraction and test_fraction leave too little to learn from")
        return self
