"""The settings of fine-tuning: what every kind of it has, then what each adds. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tinyseek.model.lora_config import LoraConfig
from tinyseek.settings import taken_from
from tinyseek.train.options import TrainSettings


class TuneSettings(TrainSettings):
    """A model that is there already learns more: all of it, parts of it, or an adapter beside it."""

    model: str = taken_from("pretrain", "model to start from: a folder, a stage, or a pulled model's name")

    lora: LoraConfig | None = Field(
        None, description="train an adapter and leave the model as it is; lora={} takes the defaults of LoRA"
    )
    freeze: list[str] = Field(
        [],
        description="patterns of weights that stay as they are, where there is no adapter: embed_tokens, layers.0; "
        "[*, !layers.5, !lm_head] trains only what is taken back",
    )

    lr: float = Field(3e-4, gt=0, le=10, description="highest learning rate")
    weight_decay: float = Field(0.0, ge=0, le=10, description="pull of matrices to zero")
    validate_every: int = Field(100, ge=0, description="steps between validations; 0 for one at the end")

    @field_validator("lora", mode="before")
    @classmethod
    def _switched(cls, value: Any) -> Any:
        return {} if value is True else None if value is False else value

    @model_validator(mode="after")
    def _one_way_to_freeze(self) -> Self:
        if self.lora is not None and self.freeze:
            raise ValueError("lora leaves all weights as they are already; choose what it changes by lora.targets")
        return self

    def located(self, role: str, source: str) -> str | None:
        """A pulled model, or a data set, by its name."""
        return located(role, source)

    def input_key(self, role: str, source: str) -> str | None:
        """Of a named data set: its content, and how it is read."""
        return data_key(role, source) or super().input_key(role, source)


DATA = ("data", "val", "test")  # the roles of what is learned from, or held out


def located(role: str, source: str) -> str | None:
    """Where a pulled model lies; or a data set's name, if there is one of it.

    Raises:
        UserError: a model that is known, and not here yet.
    """
    if role in DATA:
        from tinyseek.text.datasets import is_named

        return source if is_named(source) else None
    from tinyseek.errors import UserError
    from tinyseek.model.hub import find_model

    try:
        return str(find_model(source))
    except UserError as error:
        if "tinyseek pull" in str(error):
            raise
        return None


def data_key(role: str, source: str) -> str | None:
    """The key of a named data set; none of anything else."""
    if role not in DATA or Path(source).exists():
        return None
    from tinyseek.text.datasets import find_data

    return find_data(source).key()


class SftSettings(TuneSettings):
    """Supervised fine-tuning: a base model learns to answer, from conversations."""

    data: list[str] = taken_from(
        ["tasks"],
        "conversations: tasks folders; alpaca, sharegpt, OpenAI-messages files (json, jsonl); names of data sets",
    )

    epochs: float = Field(3.0, gt=0, description="passes over the conversations, where `steps` is none")
    val_fraction: float = Field(0.02, ge=0, le=0.5, description="share of the conversations held out to validate on")
    too_long: Literal["drop", "truncate"] = Field(
        "drop", description="what becomes of a conversation longer than seq_len"
    )
    packing: bool = Field(
        True,
        description="fill rows of seq_len with whole conversations, none seeing another; false makes batch_size count "
        "conversations, in batches without padding",
    )
    learn: Literal["answers", "last", "all"] = Field(
        "answers",
        description="what is learned of a conversation: each answer, the last answer alone, or the prompts too",
    )
    neftune: float = Field(
        0.0,
        ge=0,
        le=100,
        description="noise on the embeddings while training (NEFTune's alpha, often 5; arXiv 2310.05914)",
    )
