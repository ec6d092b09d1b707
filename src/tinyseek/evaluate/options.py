"""The settings of `eval` (our own scores, and lm-eval's) and of `report`. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from tinyseek.settings import Settings, StageSettings, no_effect, taken_from


class EvalSettings(StageSettings):
    """What to score, on what."""

    models: list[str] = taken_from(["pretrain", "sft"], "model folders to compare, in the order of their making")
    data: str | None = taken_from(
        "data", "text to score: a data folder (its val.jsonl), a .jsonl or a text file; none to skip"
    )
    tasks: str | None = taken_from(
        "tasks", "tasks to ask: a tasks folder (its heldout.jsonl) or a .jsonl of such; none to skip"
    )

    max_bytes: int = Field(
        400_000, ge=1, description="bytes of text that are scored; of more, an even choice of documents"
    )
    seq_len: int | None = Field(
        None, ge=2, description="tokens the model sees at once; if none, what it was trained with"
    )
    stride: int | None = Field(
        None,
        ge=1,
        description="tokens from one window to the next; smaller gives more context; if none, half of seq_len",
    )
    max_tasks: int = Field(1000, ge=1, description="tasks that are asked, the first ones of the file")
    max_tokens: int = Field(120, ge=1, description="tokens an answer may have, its thought included")
    samples: int = Field(
        0,
        ge=0,
        le=128,
        description="answers drawn a task and seed, for pass@1 and pass@k; 0 for the greedy answer alone",
    )
    temperature: float = Field(1.0, gt=0, le=100, description="at which these answers are drawn")
    seeds: int = Field(
        1,
        ge=1,
        le=20,
        description="how often the samples are drawn, by another seed each; several give an error over seeds",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="the first of these seeds")
    k: list[int] = Field(
        [2, 4, 8, 16, 32, 64, 128],
        max_length=20,
        description="for pass@k, the chance that one of k samples is right; those above samples * seeds are left out",
    )
    batch_size: int = no_effect(64, "tasks answered at a time: lower it when memory runs out", ge=1)
    device: Literal["auto", "cpu", "cuda", "mps"] = no_effect(
        "auto", "where to compute; auto is cuda where there is one, else cpu"
    )

    @field_validator("k")
    @classmethod
    def _at_least_one(cls, k: list[int]) -> list[int]:
        if any(number < 1 for number in k):
            raise ValueError("pass@k needs k of at least 1")
        return sorted({*k} - {1})


class HarnessSettings(Settings):
    """How lm-eval runs its tasks on a model of ours."""

    chat: bool = Field(False, description="ask in the model's chat template, examples as earlier turns")
    system: str | None = Field(None, description="with chat: instructions that stand before the conversation")
    fewshot: int | None = Field(None, ge=0, description="examples before each question; if none, as the task says")
    limit: int | None = Field(
        None, ge=1, description="questions a task, the first ones, for a quick look; if none, all"
    )
    drop_thought: bool = Field(
        True, description="of generated answers, score what follows </think>; only where the vocabulary has that token"
    )
    max_length: int | None = Field(
        None, ge=2, description="tokens that the model sees at once; if none, as many as it was made for"
    )
    max_tokens: int = Field(256, ge=1, description="longest generated answer where the task does not say")
    batch_size: int = Field(32, ge=1, description="answers written at a time: lower it when memory runs out")
    seed: int = Field(0, ge=0, lt=2**31, description="of the choice of examples, and of what is drawn by chance")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="where to compute; auto is cuda where there is one, else cpu"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="number format of the weights; auto is bfloat16 on cuda, else float32"
    )


class CompareSettings(Settings):
    """How models are asked the same, side by side."""

    count: int = Field(100, ge=1, description="prompts that are asked, an even choice of all there are")
    shown: int = Field(
        60, ge=0, description="prompts on the page, those first in which the models differ; all are in the .jsonl"
    )
    reward: str | None = Field(
        None,
        description="what judges the answers: a reward's name (exact_answer, format, length ...) or file.py:function; if none, "
        "whether they are the known answer, where the prompts have one",
    )
    system: str | None = Field(None, description="instructions that stand before every prompt that has none")
    max_tokens: int = Field(512, ge=1, description="longest answer, its thought included")
    temperature: float = Field(0.0, ge=0, le=100, description="0 takes the likeliest token")
    seed: int = Field(0, ge=0, lt=2**31, description="of the draws, where temperature is above 0")
    thinking: bool | None = Field(
        None, description="whether the models think before they answer; if none, as each chooses"
    )
    batch_size: int = Field(32, ge=1, le=1024, description="prompts that a local model answers at a time")
    requests: int = Field(4, ge=1, le=256, description="prompts that a server is asked at a time")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where local models compute")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="number format of local models' weights")
    language: Literal["en", "zh"] = Field("en", description="of the page's own words")
    title: str = Field("", max_length=200, description="heading of the page; if empty, the models' names")


class ReportSettings(StageSettings):
    """What the page shows, in which language."""

    of: list[str] = taken_from(["eval"], "what to report on; everything that these were made from comes in by itself")
    language: Literal["en", "zh"] = Field("en", description="of the page's own words")
    title: str = Field("", max_length=200, description="heading of the page; if empty, the name of the run's folder")
    samples: int = Field(
        16, ge=0, le=1000, description="questions and answers shown side by side, spread over the kinds"
    )


def model_names(paths: Sequence[Path]) -> list[str]:
    """Each model's folder name, with its parent's where two are alike."""
    names = [path.name for path in paths]
    names = [n if names.count(n) == 1 else f"{p.parent.name}/{n}" for n, p in zip(names, paths, strict=True)]
    return [n if names.count(n) == 1 else f"{n} ({i + 1})" for i, n in enumerate(names)]
