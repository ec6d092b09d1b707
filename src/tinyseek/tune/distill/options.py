"""The settings of distillation: answers of a teacher, pairs out of them, learning from a teacher's probabilities. No torch here."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tinyseek.llm.open import is_remote
from tinyseek.llm.options import RemoteSettings
from tinyseek.model.presets import from_preset
from tinyseek.settings import StageSettings, no_effect, taken_from
from tinyseek.tune.options import SftSettings, data_key, located
from tinyseek.tune.rl.options import RewardOptions, reward_files

Keep = Literal["correct", "best", "all"]
Rule = Literal["right_over_wrong", "shorter_over_longer", "reward_margin", "format"]


class CollectSettings(StageSettings):
    """Answers of a teacher to prompts, checked and cleaned: what a student is fine-tuned on, and rejection sampling."""

    teacher: str = taken_from(
        "sft",
        "who answers: a model's folder, a stage, a pulled name; or a server: http://host:port, deepseek, openai:MODEL, ollama:...",
    )
    data: list[str] = taken_from(
        ["tasks"], "prompts: tasks folders, files with a prompt or a conversation a record, names of data sets"
    )

    n: int = Field(4, ge=1, le=1000, description="answers to each prompt")
    limit: int | None = Field(None, ge=1, description="only so many prompts, evenly spread over the data")
    system: str = Field("", description="a system message put before each prompt that has none")
    temperature: float | None = Field(
        1.0, ge=0, le=10, description="of the drawing; none for the teacher's own default"
    )
    top_p: float | None = Field(None, gt=0, le=1, description="draw among the likeliest that together are so likely")
    top_k: int | None = Field(None, ge=1, description="draw among so many; not every server knows it")
    max_tokens: int = Field(512, ge=1, description="tokens of an answer, its reasoning included")
    thinking: bool | None = Field(None, description="ask for reasoning or for none; none leaves it to the teacher")
    seed: int | None = Field(
        0, ge=0, lt=2**31, description="each answer draws by a seed made of it; none sends no seed"
    )
    ask_again: int | None = Field(
        None,
        ge=0,
        le=10,
        description="how often to ask again for an answer that came blank, cut off or refused; if none, 2 times of a server and "
        "never of a model here",
    )

    rewards: dict[str, float | RewardOptions] = Field(
        {"exact_answer": 1.0},
        description="name -> weight, or {weight, args}, of what judges the answers: exact_answer, format, length, repetition, "
        "tool_calls, judge, reward_model, file.py:name; the first says whether an answer is right. {} for nothing",
    )
    on_reward_error: Literal["skip", "stop"] = Field(
        "skip", description="a reward that raises or takes too long: leave out what it did not tell, or end the run"
    )
    reward_seconds: float = no_effect(60.0, "longest that one reward may take for 256 answers", gt=0, le=86_400)
    right_from: float = Field(1.0, description="an answer is right if the first reward gives it so much")
    keep: Keep = Field(
        "correct",
        description="answers to learn from: the right ones, the best of each prompt by the rewards' sum, or all",
    )
    most: int | None = Field(
        None,
        ge=1,
        description="of each prompt at most so many, by the rewards' sum, then the shortest; if none, 1 of the best",
    )
    reasoning: Literal["any", "required", "none"] = Field(
        "any", description="drop answers without reasoning (required), or with it (none)"
    )
    longest: int | None = Field(None, ge=1, description="drop answers of more tokens")
    duplicates: Literal["keep", "equal", "near"] = Field(
        "equal", description="drop what repeats another answer to its prompt: word for word, or nearly"
    )
    near: float = Field(
        0.8, gt=0, le=1, description="share of runs of five words in common that makes answers nearly the same"
    )
    refusals: list[str] = Field([], description="more expressions (regular ones) by which a refusal is told")

    model: str | None = Field(None, description="which of a server's models; none for its only or first one")
    server: RemoteSettings = no_effect(
        RemoteSettings(),
        "how a server is spoken to; server.prices.prompt, .cached, .completion: money for a million tokens",
    )
    budget: float | None = no_effect(None, "money, in the prices' currency, beyond which nothing more is asked", gt=0)
    requests_per_minute: float | None = no_effect(None, "at most so many requests in any minute", gt=0)
    tokens_per_minute: float | None = no_effect(
        None, "at most so many tokens, of prompts and answers, in any minute", gt=0
    )
    at_once: int = no_effect(
        64,
        "texts that a model here writes at a time; a quarter as many requests to a server are under way",
        ge=1,
        le=4096,
    )
    unfinished: Literal["stop", "accept"] = no_effect(
        "stop",
        "when the budget is used up, or answers could not be had: stop, to go on later by the same command; or be content with "
        "those that came",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = no_effect("auto", "where a model here computes")
    quantize: Literal["none", "int8", "int4"] = Field("none", description="a model here in fewer bits, on a CPU")

    @field_validator("refusals")
    @classmethod
    def _expressions(cls, expressions: list[str]) -> list[str]:
        for expression in expressions:
            try:
                re.compile(expression)
            except re.error as error:
                raise ValueError(f"{expression!r} is no regular expression ({error})") from None
        return expressions

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.keep != "all" and not self.rewards:
            raise ValueError(f"keep={self.keep} needs rewards to tell by; name some, or say keep=all")
        if self.budget is not None and self.server.prices is None:
            raise ValueError(
                "a budget needs prices to count by: server.prices.prompt=..., server.prices.completion=..."
            )
        return self

    def reward_options(self) -> dict[str, RewardOptions]:
        """Every reward with its options written out."""
        return {
            name: entry if isinstance(entry, RewardOptions) else RewardOptions(weight=entry)
            for name, entry in self.rewards.items()
        }

    @property
    def at_server(self) -> bool:
        """Whether the teacher is behind a server."""
        return is_remote(self.teacher)

    def located(self, role: str, source: str) -> str | None:
        """A server, a pulled model or a data set, by its name."""
        return source if role == "teacher" and is_remote(source) else located(role, source)

    def input_key(self, role: str, source: str) -> str | None:
        """Of a server its address and model; of a named data set its content."""
        if role == "teacher" and is_remote(source):
            text = json.dumps([source.rstrip("/"), self.model])
            return f"server:{hashlib.sha256(text.encode()).hexdigest()[:32]}"
        return data_key(role, source) or super().input_key(role, source)

    def essence(self) -> dict[str, Any]:
        """With the server's address, by which the manifest names it; which reward comes first; the content of the files that
        rewards are in; and the budget, where that decides what is made."""
        server = self.teacher.partition("://")[2] or self.teacher
        essence = super().essence() | ({"teacher": server} if self.at_server else {})
        if self.rewards:
            essence["judged_by"] = next(iter(self.rewards))
        if files := reward_files(self.reward_options()):
            essence["reward_files"] = files
        return essence | ({"unfinished": "accept", "budget": self.budget} if self.unfinished == "accept" else {})


class DistillSettings(SftSettings):
    """A student learns the probabilities that a teacher gives to every token, and not only what it said."""

    teacher: str = taken_from("sft", "whose probabilities are learned: a model's folder, a stage, a pulled name")
    student: dict[str, Any] | None = Field(
        None,
        description="a student with fresh weights, in the place of `model`: what its shape differs from the teacher's in, "
        "{num_hidden_layers: 2}, or {preset: mini} and what differs from that",
    )

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = Field(
        "forward_kl",
        description="forward_kl: the student covers all that the teacher might say; reverse_kl: it says only what the teacher "
        "would; jsd: between the two (GKD's generalised Jensen-Shannon divergence)",
    )
    beta: float = Field(0.5, gt=0, lt=1, description="jsd: towards 0 as forward_kl, towards 1 as reverse_kl")
    temperature: float = Field(
        1.0, gt=0.01, le=100, description="divides the logits of both; the divergence counts times its square"
    )
    ce_weight: float = Field(
        0.1, ge=0, le=1, description="share of cross-entropy on the data's own tokens; the divergence has the rest"
    )
    top_k: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="compute the teacher's so many likeliest tokens once, before training, and all others as one; none asks the "
        "teacher at each step",
    )
    on_policy: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the batches in which the student answers the prompts itself and the teacher scores that (GKD's "
        "lambda); a batch then counts conversations",
    )
    max_completion_length: int = Field(
        256, ge=1, description="on_policy: tokens of the longest answer; longer ones are cut"
    )
    sampling_temperature: float = Field(1.0, gt=0.01, le=10, description="on_policy: of the student's drawing")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if is_remote(self.teacher):
            raise ValueError(
                f"teacher={self.teacher}: a server does not tell the probabilities of all tokens; learn from its answers: collect, "
                "then sft"
            )
        if self.student is not None and self.lora is not None:
            raise ValueError(
                "a student with fresh weights has nothing to lay an adapter on; leave out lora, or give model"
            )
        if self.student is not None and self.freeze:
            raise ValueError("a student with fresh weights learns all of them; leave out freeze, or give model")
        if self.on_policy and self.top_k is not None:
            raise ValueError(
                "top_k keeps what the teacher says to the data; with on_policy it is asked anyway: leave out one"
            )
        if self.ce_weight == 1 and not self.on_policy:
            raise ValueError("ce_weight=1 learns nothing from the teacher; lower it, or use sft")
        return self

    def taken(self) -> dict[str, str]:
        """With a fresh student there is no model to start from."""
        return {role: source for role, source in super().taken().items() if role != "model" or self.student is None}

    def essence(self) -> dict[str, Any]:
        """With a preset written out, so that one that changes makes another key."""
        essence = super().essence()
        if self.student is not None and "preset" in self.student:
            changes = {name: value for name, value in self.student.items() if name != "preset"}
            essence["student"] = from_preset(str(self.student["preset"]), changes).plain()
        return essence


class PairsSettings(StageSettings):
    """Preference pairs out of collected answers."""

    answers: list[str] = taken_from(["collect"], "collect folders, or samples.jsonl files of such")

    rules: list[Rule] = Field(
        ["right_over_wrong"],
        min_length=1,
        description="right_over_wrong; shorter_over_longer, both right; reward_margin, by the rewards' sum; format, by the reward "
        "of that name",
    )
    per_prompt: int = Field(2, ge=1, description="pairs of each prompt and rule, at most")
    margin: float = Field(0.5, gt=0, description="reward_margin: least difference of the rewards' sums")
    shorter_by: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="shorter_over_longer: how much shorter the chosen one is, as a share of the other's tokens",
    )
    most: int | None = Field(None, ge=1, description="pairs in all, drawn evenly")
    seed: int = Field(0, ge=0, lt=2**63, description="of what is drawn where there are more")
