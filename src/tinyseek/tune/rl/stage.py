"""Both ways of learning from rewards as a stage: what is read, checked, trained and written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torch import nn

from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.train import loop, metrics, parallel, state
from tinyseek.tune.learner import check_fits, learner
from tinyseek.tune.rl.asking import Asking, Questions, read_questions
from tinyseek.tune.rl.options import RlSettings
from tinyseek.tune.rl.policy import frozen_start
from tinyseek.tune.rl.rewards import RewardSet
from tinyseek.tune.sft import inputs_of

S = TypeVar("S", bound=RlSettings)
Make = Callable[
    [CausalLM, Tokenizer, Questions, RewardSet, S, Path, CausalLM | None, state.Checkpoint | None],
    tuple[nn.Module, Asking[S]],
]


def train(settings: S, folder: Path, kind: str, make: Make[S], *, reference: bool) -> None:
    """Train a model, or an adapter for it, by the rewards of its own answers. A run that was stopped goes on from `FOLDER.work`.

    Args:
        make: the module to train, which is the model or has it as its trunk, and the objective.
        reference: hold the model that training starts from beside it, where it does not lie under an adapter.
    Raises:
        UserError: no prompts, a reward that is not there or fails and should end the run, a tokenizer that does not fit.
        StoppedError, DivergedError: see `loop.train`.
    """
    base = Path(settings.model)
    tokenizer = Tokenizer.load(base)
    inputs, keys = inputs_of(settings)
    made_from = {"settings": settings.essence(), "inputs": keys}
    work = folder.with_name(folder.name + ".work")
    with (
        state.held(work),
        RewardSet.of(settings.reward_options(), settings.reward_seconds, settings.on_reward_error) as rewards,
    ):
        resume = loop.resumable(work, made_from, settings)
        questions = read_questions(settings, tokenizer)
        rewards.check(questions.columns())
        learns = learner(settings, base, folder, resume)
        check_fits(learns.model, tokenizer, base, settings.seq_len)
        before = frozen_start(settings, base) if reference else None
        module, objective = make(
            learns.model, tokenizer, questions, rewards, settings, parallel.own(work), before, resume
        )
        objective.begin_samples(resume.folder if resume else None)

        def write(target: Path) -> None:
            learns.write(target)
            objective.keep(target)

        outcome = loop.train(
            module,
            objective,
            settings.model_copy(update={"compile": False}),  # batches of many shapes are no food for a compiler
            work,
            made_from=made_from,
            resume=resume,
            flops_per_token=learns.flops * metrics.training_flops(learns.model.config, settings.seq_len),
            title=folder.name,
            write=write,
        )
        figures = {**questions.figures(), **rewards_of(work)}
        loop.finish(outcome, work, folder, kind, settings, inputs, keys, tokenizer, figures)


def rewards_of(work: Path) -> dict[str, float]:
    """The mean reward of the first tenth of a run's steps, and of the last."""
    rewards = [record["reward"] for record in metrics.read_records(work / metrics.METRICS) if "reward" in record]
    tenth = max(1, len(rewards) // 10)
    parts = {"reward_at_first": rewards[:tenth], "reward_at_last": rewards[-tenth:]}
    return {name: round(sum(part) / len(part), 4) for name, part in parts.items() if part}
