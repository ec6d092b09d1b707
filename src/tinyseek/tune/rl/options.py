"""The settings of learning from rewards: what both ways have, then what GRPO and PPO add. No torch here.

Names that TRL has for a thing are TRL's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tinyseek.artifact import key_of
from tinyseek.settings import Settings, no_effect, taken_from
from tinyseek.tune.options import TuneSettings

Loss = Literal["grpo", "dr_grpo", "dapo", "bnpo"]


class RewardOptions(Settings):
    """How one reward counts."""

    weight: float = Field(1.0, description="what it is multiplied by in the sum of all")
    args: dict[str, Any] = Field({}, description="named arguments of the function, for example {limit: 200} of length")


def reward_files(rewards: Mapping[str, RewardOptions]) -> dict[str, str]:
    """The hash of each file that a reward comes from, and of each model folder that judges: another one makes another model.
    What a file imports is not seen."""
    files = {name.rpartition(":")[0] for name in rewards}
    files |= {str(entry.args.get("model", "")) for entry in rewards.values()}
    return {file: key_of(Path(file)) for file in sorted(files) if file and Path(file).exists()}


class RlSettings(TuneSettings):
    """A model answers prompts, and learns which of its answers are rewarded."""

    data: list[str] = taken_from(
        ["tasks"],
        "prompts with columns for the rewards: tasks folders, conversations (their last answer is left out), files with prompt "
        "or messages and more columns; names of data sets",
    )
    rewards: dict[str, float | RewardOptions] = Field(
        {"exact_answer": 1.0},
        min_length=1,
        description="name -> weight, or {weight, args}: exact_answer, format, length, repetition, tool_calls, judge, reward_model, "
        "or a function of yours as file.py:name; f(completions, **columns) -> list of numbers or none, as in TRL",
    )
    on_reward_error: Literal["skip", "stop"] = Field(
        "skip", description="a reward that raises or takes too long: leave out what it did not tell, or end the run"
    )
    reward_seconds: float = no_effect(60.0, "longest that one reward may take for one batch", gt=0, le=86_400)

    batch_size: int = Field(16, ge=1, le=4096, description="prompts that one step asks")
    num_generations: int = Field(8, ge=1, le=128, description="answers sampled after each prompt")
    max_completion_length: int = Field(256, ge=1, description="tokens of the longest answer; longer ones are cut")
    seq_len: int = Field(512, ge=2, description="tokens of prompt and answer together; longer prompts are dropped")
    temperature: float = Field(
        1.0, gt=0.01, le=10, description="of sampling; log-probabilities are those at this temperature"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="sample among the likeliest that hold this much probability")
    top_k: int | None = Field(None, ge=1, description="sample among the k likeliest; none for all")
    thinking: Literal["auto", True, False] = Field(
        "auto", description="whether the prompt opens the reasoning; auto leaves it to the model, or its template"
    )
    minibatches: int = Field(
        1, ge=1, description="updates that one pass over a batch of answers is cut into, by whole prompts"
    )

    tokens_at_once: int = no_effect(
        8192,
        "tokens of prompts and answers that are worked through at a time; lower it when memory runs out, the update stays the same",
        ge=1,
    )

    epochs: float = Field(1.0, gt=0, description="passes over the prompts, where `steps` is none")
    lr: float = Field(1e-4, gt=0, le=10, description="highest learning rate; a large model wants a hundredth of it")
    spike_sigma: float = Field(
        0.0, ge=0, description="as in other training; off, since the loss here tells nothing of how it goes"
    )
    val_fraction: float = Field(
        0.02, ge=0, le=0.5, description="share of the prompts held out, answered once sampled and once greedily"
    )
    val_batches: int = Field(4, ge=1, description="held-out batches of batch_size prompts that one validation asks")
    save_every: int = no_effect(50, "steps between checkpoints, from which a stopped run goes on; 0 for one at the end")
    show_every: int = no_effect(
        20, "steps between tables of a few answers; samples.jsonl in the work folder has more", ge=0
    )

    @model_validator(mode="after")
    def _room_for_prompts(self) -> Self:
        if self.max_completion_length >= self.seq_len:
            raise ValueError(
                f"max_completion_length={self.max_completion_length} leaves no room for a prompt in seq_len={self.seq_len}"
            )
        if self.minibatches > self.batch_size:
            raise ValueError(f"minibatches={self.minibatches} of whole prompts, of which batch_size={self.batch_size}")
        return self

    @property
    def texts(self) -> int:
        """Answers a step."""
        return self.batch_size * self.num_generations

    def reward_options(self) -> dict[str, RewardOptions]:
        """Every reward with its options written out."""
        return {
            name: entry if isinstance(entry, RewardOptions) else RewardOptions(weight=entry)
            for name, entry in self.rewards.items()
        }

    @cached_property
    def _reward_files(self) -> dict[str, str]:
        """As they are when first asked for: one that is edited while a run is under way is another run's."""
        return reward_files(self.reward_options())

    def essence(self) -> dict[str, Any]:
        """With the content of the files that rewards are in."""
        return super().essence() | ({"reward_files": self._reward_files} if self._reward_files else {})


class GrpoSettings(RlSettings):
    """Group relative policy optimisation: an answer is as good as it is better than the others to its prompt."""

    loss: Loss = Field(
        "grpo",
        description="what the sum over tokens is divided by: grpo each answer's length, then the answers; dapo (and bnpo, the same "
        "where a batch is one update) all tokens; dr_grpo answers times max_completion_length",
    )
    epsilon: float = Field(0.2, ge=0, lt=1, description="how far below 1 a token's ratio of probabilities may fall")
    epsilon_high: float | None = Field(
        None, ge=0, description="how far above 1; none for the same. DAPO's clip-higher takes 0.28"
    )
    beta: float = Field(
        0.0,
        ge=0,
        description="weight of the KL divergence (k3) from the model it started as, which is held beside it, or lies under the "
        "adapter; 0 for none",
    )
    use_bias_correction_kl: bool = Field(
        True,
        description="multiply the divergence by the ratio, so that its gradient is that of the reverse KL (DeepSeek-V3.2, arXiv "
        "2512.02556); without, the plain k3 of DeepSeekMath",
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group",
        description="whose standard deviation divides an advantage: of the prompt's answers, of all, or none (Dr. GRPO)",
    )
    mask_truncated_completions: bool = Field(
        False, description="learn nothing from answers that were cut at max_completion_length"
    )
    dynamic_sampling: int = Field(
        0,
        ge=0,
        le=20,
        description="times that other prompts are asked in the place of those whose answers are all rewarded alike (DAPO)",
    )
    num_iterations: int = Field(1, ge=1, le=100, description="passes over each batch of answers")

    @model_validator(mode="after")
    def _a_group_has_several(self) -> Self:
        if self.num_generations < 2:
            raise ValueError(
                "num_generations=1: an answer is measured by the others to its prompt; take at least 2, or ppo"
            )
        return self

    @property
    def clip_range(self) -> tuple[float, float]:
        """How far below and above 1 a ratio may be."""
        return self.epsilon, self.epsilon if self.epsilon_high is None else self.epsilon_high


class PpoSettings(RlSettings):
    """Proximal policy optimisation: a value head tells what to expect at each token, an answer is as good as it beats that."""

    num_generations: int = Field(4, ge=1, le=128, description="answers sampled after each prompt")
    num_ppo_epochs: int = Field(2, ge=1, le=100, description="passes over each batch of answers")
    cliprange: float = Field(0.2, ge=0, lt=1, description="how far from 1 a token's ratio of probabilities may go")
    cliprange_value: float = Field(0.2, gt=0, description="how far from what it was a value may go in one batch")
    vf_coef: float = Field(0.1, ge=0, description="weight of the value head's loss")
    gamma: float = Field(1.0, gt=0, le=1, description="what a reward a token later is worth")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of generalised advantage estimation (arXiv 1506.02438)")
    kl_coef: float = Field(
        0.02, ge=0, description="what a nat of divergence from the model it started as costs, taken from the rewards"
    )
    kl_estimator: Literal["k1", "k3"] = Field("k1", description="of that divergence, at the token sampled")
    whiten_rewards: bool = Field(False, description="bring the tokens' rewards to unit variance")
    missing_eos_penalty: float = Field(0.0, ge=0, description="taken from the score of an answer that was cut")
