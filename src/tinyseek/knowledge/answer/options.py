"""The settings of searching and answering. Nothing heavy here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tinyseek.settings import Settings

How = Literal["hybrid", "lexical", "dense"]
Rerank = Literal["none", "sentences", "model"]


class AnswerSettings(Settings):
    """How a question is answered."""

    how: How = Field("hybrid", description="find passages by words (lexical), by meaning (dense), or by both (hybrid)")
    rerank: Rerank = Field(
        "none",
        description="order what was found anew: by the meaning of single sentences, or by asking the model; both take time",
    )
    passages: int = Field(6, ge=1, le=50, description="how many passages an answer is written from")
    prompt_tokens: int = Field(
        3000, ge=200, le=1_000_000, description="most tokens that these passages take of the model's context"
    )
    max_tokens: int = Field(1024, ge=16, le=100_000, description="most tokens of an answer, its reasoning included")
    temperature: float | None = Field(None, ge=0, le=2, description="of the model; none for its own default")
    found_from: float = Field(
        0.5,
        ge=0,
        le=1,
        description="answer only if the passages hold the answer with at least this probability (with a model, which reads them, "
        "0.4 times it is enough); 0 answers always",
    )
    rewrite: bool = Field(
        True, description="make a question that leans on the conversation stand alone before searching"
    )
    follow_ups: int = Field(3, ge=0, le=10, description="questions to go on with that are proposed after an answer")
    citations: Literal["auto", "number", "deepseek"] = Field(
        "auto",
        description="what the model is asked to cite like: [1]; [citation:1], as DeepSeek-R1 learnt it; auto by the model's name. "
        "Both are understood, and shown as [1]",
    )
