"""The settings of the engine. No torch here."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tinyseek.settings import Settings


class EngineSettings(Settings):
    """Where and how a model runs, and how much it does at once."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="where to compute; auto is cuda where there is one, else cpu"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="number format of weights and cache; auto is bfloat16 on cuda, else float32"
    )
    quantize: Literal["none", "int8", "int4"] = Field("none", description="weights in fewer bits, on a CPU")
    cache_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens that the key/value cache holds over all texts; if none, what fits into a quarter of the free memory "
        "(at most 2 GB of a CPU's, 70 % of a GPU's), the model's context at least",
    )
    block_size: int = Field(
        16, ge=1, le=4096, description="tokens a block, the unit that the cache is given out and shared in"
    )
    max_sequences: int = Field(32, ge=1, le=4096, description="texts written at a time; others wait")
    max_batch_tokens: int = Field(
        512, ge=1, description="tokens of one step: one of each running text, then of prompts, cut into chunks"
    )
    max_waiting: int = Field(256, ge=0, description="texts that may wait for their turn; more are refused")
    prefix_cache: bool = Field(
        True, description="keep the blocks of what was read and written, for prompts that begin alike"
    )
    speculate: Literal["none", "mtp", "lookup"] = Field(
        "none",
        description="guess tokens ahead and check them in one step: by the model's MTP module, or by looking into the text",
    )
    draft_tokens: int = Field(3, ge=1, le=16, description="tokens guessed ahead")

    @model_validator(mode="after")
    def _room_for_all(self) -> Self:
        if self.max_batch_tokens < self.max_sequences:
            raise ValueError(
                f"max_batch_tokens={self.max_batch_tokens} leaves no token for each of max_sequences={self.max_sequences}; "
                "raise the one or lower the other"
            )
        return self
