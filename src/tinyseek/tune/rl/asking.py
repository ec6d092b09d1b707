"""What GRPO and PPO share: prompts are asked, the answers are sampled, scored and told about, and laid out as batches.

A batch depends on the weights, so the loop draws it after their last update. What is sampled for a prompt follows from the run's
seed, the number of the batch and the prompt, so that a resumed run, or one in several processes, asks and hears the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tinyseek.errors import UserError
from tinyseek.model.transformer import CausalLM
from tinyseek.text.chat import encode_prompt
from tinyseek.text.conversations import Message
from tinyseek.text.datasets import find_data
from tinyseek.text.examples import Prompt
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.train import metrics, parallel
from tinyseek.train.objective import Objective, on_device
from tinyseek.train.options import TrainSettings
from tinyseek.tune.rl.losses import Floats, Spread
from tinyseek.tune.rl.options import RlSettings
from tinyseek.tune.rl.rewards import RewardSet
from tinyseek.tune.rl.rollouts import Answer, Rollouts, message_of

SAMPLES = "samples.jsonl"
_SHOWN_CHARACTERS = 300  # of an answer in the table


# ---- prompts ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A prompt, as ids too."""

    messages: list[Message]
    columns: dict[str, Any]
    ids: list[int]
    opened: bool  # it ends in the reasoning that the model is to write


@dataclass
class Questions:
    """Prompts by split, and what became of the rest."""

    train: list[Question] = field(default_factory=list)
    val: list[Question] = field(default_factory=list)
    too_long: int = 0
    unreadable: int = 0
    problems: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, int]:
        """Counts for the manifest."""
        return {
            "train_prompts": len(self.train),
            "val_prompts": len(self.val),
            "dropped_too_long": self.too_long,
            "unreadable_records": self.unreadable,
        }

    def columns(self) -> list[str]:
        """Every column that any prompt has."""
        return list(dict.fromkeys(name for question in [*self.train, *self.val] for name in question.columns))


def read_questions(settings: RlSettings, tokenizer: Tokenizer) -> Questions:
    """The prompts of files, tasks folders and named data sets. Which are held out is decided by their content.

    Raises:
        UserError: a source that is missing or has no prompt in it; none that leaves room for an answer.
    """
    found = Questions()
    longest = settings.seq_len - settings.max_completion_length
    thinking = None if settings.thinking == "auto" else settings.thinking
    for source in settings.data:
        data = find_data(source)
        prompts = data.examples("prompt")
        for prompt in prompts:
            assert isinstance(prompt, Prompt)
            ids = encode_prompt(tokenizer, prompt.messages, thinking=thinking)
            if len(ids) > longest:
                found.too_long += 1
                continue
            opened = tokenizer.decode(ids[-4:]).rstrip().endswith("<think>")
            digest = hashlib.blake2b(repr(ids).encode(), digest_size=8).digest()
            held = int.from_bytes(digest, "little") / 2**64 < settings.val_fraction
            (found.val if held else found.train).append(Question(prompt.messages, prompt.columns, ids, opened))
        found.unreadable += prompts.bad
        found.problems += prompts.problems
    report(found, settings)
    return found


def report(found: Questions, settings: RlSettings) -> None:
    """Say what is asked and what is not.

    Raises:
        UserError: nothing is left to ask.
    """
    longest = settings.seq_len - settings.max_completion_length
    if found.unreadable:
        shown = "; ".join(found.problems[:3])
        metrics.say(f"warning: {found.unreadable:,} records could not be read and were left out: {shown}")
    if found.too_long:
        metrics.say(
            f"warning: {found.too_long:,} prompts longer than {longest} tokens (seq_len - max_completion_length) were dropped"
        )
    if not found.train:
        raise UserError(
            f"{', '.join(settings.data)}: no prompt is left to ask; {found.too_long:,} are longer than {longest} tokens, "
            f"{found.unreadable:,} could not be read, {len(found.val):,} are held out"
        )
    metrics.say(f"{len(found.train):,} prompts to ask, {len(found.val):,} held out to validate on")


# ---- asking ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heard:
    """P prompts, G answers to each, K rewards of every answer."""

    questions: list[Question]
    answers: list[list[Answer]]
    messages: list[list[Message]]
    scores_PGK: Floats
    rewards_PG: Floats  # the weighted sums; NaN where no reward said anything

    def chosen(self, prompts: Iterable[int]) -> Heard:
        """Of these prompts alone."""
        rows = list(prompts)
        return Heard(
            [self.questions[p] for p in rows],
            [self.answers[p] for p in rows],
            [self.messages[p] for p in rows],
            self.scores_PGK[rows],
            self.rewards_PG[rows],
        )

    def joined(self, other: Heard) -> Heard:
        """With another's prompts after these."""
        return Heard(
            [*self.questions, *other.questions],
            [*self.answers, *other.answers],
            [*self.messages, *other.messages],
            np.concatenate((self.scores_PGK, other.scores_PGK)),
            np.concatenate((self.rewards_PG, other.rewards_PG)),
        )


@dataclass(frozen=True)
class Lesson:
    """One answer to learn from: what follows its prompt, and a number or an array over its tokens of each kind."""

    prompt: list[int]
    answer: Answer
    per_token: dict[str, Floats]  # each [tokens]


@dataclass
class Micro:
    """Several answers after their prompts, end to end in one row of T positions; M of them predict an answer's token.

    Attributes:
        at_M: figures of each such token by name: its advantage, its weight, what the engine made of it ...
    """

    ids_1T: Tensor
    documents_1T: Tensor
    places_M: Tensor
    targets_M: Tensor
    owners_M: Tensor  # which answer of the row
    at_M: dict[str, Tensor]


def lay_out(lessons: Sequence[Lesson], names: Sequence[str], device: torch.device) -> Micro:
    """Answers as a micro-batch. There may be none: then nothing is learned from it."""
    ids, documents, places, targets, owners = ([np.zeros(0, np.int64)] for _ in range(5))
    position = 0
    for number, lesson in enumerate(lessons):
        said = np.asarray(lesson.answer.ids, np.int64)
        row = np.concatenate((np.asarray(lesson.prompt, np.int64), said[:-1]))  # the last token is only ever a target
        ids.append(row)
        documents.append(np.full(len(row), number))
        places.append(position + np.arange(len(lesson.prompt) - 1, len(row)))
        targets.append(said)
        owners.append(np.full(len(said), number))
        position += len(row)
    empty = [np.zeros(0)]
    at = {name: np.concatenate([*empty, *(lesson.per_token[name] for lesson in lessons)]) for name in names}
    whole = [np.concatenate(parts) for parts in (ids, documents, places, targets, owners)]
    tensors = [on_device(array, device) for array in whole]
    figures = {name: on_device(values.astype(np.float32), device) for name, values in at.items()}
    return Micro(tensors[0][None], tensors[1][None], tensors[2], tensors[3], tensors[4], figures)


def in_pieces(lessons: Sequence[Lesson], parts: int, most: int) -> list[list[Lesson]]:
    """Lessons in at least `parts` pieces where there are so many, none of more than `most` positions but for a single lesson."""
    sizes = [len(lesson.prompt) + len(lesson.answer.ids) for lesson in lessons]
    limit = min(most, -(-sum(sizes) // parts)) if lessons else most
    pieces: list[list[Lesson]] = [[]]
    room = limit
    for lesson, size in zip(lessons, sizes, strict=True):
        if pieces[-1] and size > room:
            pieces.append([])
            room = limit
        pieces[-1].append(lesson)
        room -= size
    return pieces


S = TypeVar("S", bound=RlSettings)


class Asking(Objective, Generic[S]):
    """The half of an objective that asks, scores, tells and validates."""

    on_policy: ClassVar[bool] = True
    shown: ClassVar[str] = "reward"
    label: ClassVar[str] = "mean reward of an answer"

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        questions: Questions,
        rewards: RewardSet,
        settings: S,
        work: Path,
    ) -> None:
        """Ask `model`, which the loop trains."""
        self.tokenizer, self.questions, self.rewards, self.settings = tokenizer, questions, rewards, settings
        self.rollouts = Rollouts(
            model,
            tokenizer,
            max_tokens=settings.max_completion_length,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
        )
        self.batches = 0
        self.seconds = {"sampling": 0.0, "rewards": 0.0}
        self._samples = work / SAMPLES
        self.held_out = self if questions.val else None  # `validate` below asks those that are held out

    def __len__(self) -> int:
        return len(self.questions.train)

    def state(self) -> dict[str, Any]:
        """The number of batches so far, on which the draws depend."""
        return {"batches": self.batches}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self.batches = int(state["batches"])

    def keep(self, target: Path) -> None:
        """Put the samples so far into a checkpoint, and whatever else the model's own files do not hold."""
        if self._samples.is_file():
            shutil.copyfile(self._samples, target / SAMPLES)

    def begin_samples(self, checkpoint: Path | None) -> None:
        """Go on from those of a checkpoint; without one, from none."""
        self._samples.unlink(missing_ok=True)
        if checkpoint is not None and (checkpoint / SAMPLES).is_file():
            shutil.copyfile(checkpoint / SAMPLES, self._samples)

    # ---- asking ----

    def ask(self, questions: Sequence[Question], seeds: Sequence[int], each: int, *, greedy: bool = False) -> Heard:
        """Sample `each` answers to every question, and score them.

        Raises:
            UserError: a reward failed and should end the run.
        """
        started = time.perf_counter()
        answers = self.rollouts.sample([question.ids for question in questions], each, seeds, greedy=greedy)
        between = time.perf_counter()
        messages = [
            [message_of(self.tokenizer, answer, question.opened) for answer in group]
            for question, group in zip(questions, answers, strict=True)
        ]
        shape = len(questions), each, len(self.rewards.names)
        scores_PGK, rewards_PG = np.zeros(shape), np.zeros(shape[:2])
        if questions:
            scores_NK = self.rewards(
                [question.messages for question in questions for _ in range(each)],
                [[message] for group in messages for message in group],
                [question.columns for question in questions for _ in range(each)],
                [answer.ids for group in answers for answer in group],
            )
            scores_PGK, rewards_PG = scores_NK.reshape(shape), self.rewards.total(scores_NK).reshape(shape[:2])
        self.seconds["sampling"] += between - started
        self.seconds["rewards"] += time.perf_counter() - between
        return Heard(list(questions), answers, messages, scores_PGK, rewards_PG)

    def seeds_of(self, indices: Iterable[int], salt: int = 0) -> list[int]:
        """A seed for each prompt of this batch; a prompt that comes twice has two."""
        met: Counter[int] = Counter()
        seeds = []
        for index in indices:
            key = f"{self.settings.seed} {self.batches} {salt} {index} {met[index]}"
            met[index] += 1
            seeds.append(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "little"))
        return seeds

    def asked(self, indices: NDArray[np.int64]) -> Heard:
        """This process's share of a new batch."""
        self.batches += 1
        self.seconds = {"sampling": 0.0, "rewards": 0.0}
        numbers = [int(index) for index in indices]
        questions = [self.questions.train[number] for number in numbers]
        return self.ask(questions, self.seeds_of(numbers), self.settings.num_generations)

    # ---- telling ----

    def figures(self, heard: Heard) -> dict[str, float]:
        """What a batch was like, by TRL's names; over all processes."""
        lengths = [float(len(answer.ids)) for group in heard.answers for answer in group]
        ended = [float(len(answer.ids)) for group in heard.answers for answer in group if answer.finished]
        failed = self.rewards.take_errors()
        names = self.rewards.names
        spreads = [Spread.of(heard.rewards_PG), *(Spread.of(heard.scores_PGK[:, :, k]) for k in range(len(names)))]
        sums = [len(lengths), sum(lengths), len(ended), sum(ended), *(failed.get(name, 0) for name in names)]
        for spread in spreads:
            sums += [spread.count, spread.total, spread.squares]
        count, total, finished, finished_total, *rest = parallel.total([float(number) for number in sums])
        errors, parts = rest[: len(names)], rest[len(names) :]
        spreads = [Spread(*parts[at : at + 3]) for at in range(0, len(parts), 3)]
        figures = {"reward": spreads[0].mean, "reward_std": spreads[0].deviation}
        for name, spread, bad in zip(names, spreads[1:], errors, strict=True):
            figures |= {f"rewards/{name}/mean": spread.mean, f"rewards/{name}/std": spread.deviation}
            figures |= {f"rewards/{name}/errors": bad} if bad else {}
        figures |= {
            "completions/mean_length": total / max(1.0, count),
            "completions/max_length": max(lengths, default=0.0),
            "completions/clipped_ratio": 1 - finished / max(1.0, count),
            "completions/mean_terminated_length": finished_total / max(1.0, finished),
        }
        return figures | {f"seconds/{name}": round(value, 4) for name, value in self.seconds.items()}

    def tell(self, heard: Heard, advantages_PG: Floats | None = None) -> None:
        """Write the first prompt's answers down, and show them now and then."""
        if not parallel.is_first() or not heard.questions:
            return
        question, names = heard.questions[0], self.rewards.names
        asked = str(question.messages[-1].get("content") or "")
        records = []
        for at, (answer, message) in enumerate(zip(heard.answers[0], heard.messages[0], strict=True)):
            records.append(
                {
                    "step": self.batches,
                    "prompt": asked,
                    "completion": message["content"],
                    "reward": _plain(heard.rewards_PG[0, at]),
                    "rewards": {name: _plain(heard.scores_PGK[0, at, k]) for k, name in enumerate(names)},
                    "advantage": None if advantages_PG is None else _plain(advantages_PG[0, at]),
                    "tokens": len(answer.ids),
                    "finished": answer.finished,
                }
            )
        self._samples.parent.mkdir(parents=True, exist_ok=True)
        stream: IO[str]
        with self._samples.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        every = self.settings.show_every
        if every and self.batches % every == 0:
            metrics.say("\n".join([f"step {self.batches}: {_cut(asked)}", *map(_row, _extremes(records))]))

    # ---- validating ----

    def validate(
        self,
        model: nn.Module,
        settings: TrainSettings,
        device: torch.device,  # noqa: ARG002
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,  # noqa: ARG002
    ) -> dict[str, float]:
        """Mean rewards of held-out prompts, answered once sampled and once greedily; always the same prompts and draws.

        "accuracy" is the mean of exact_answer, where that is among the rewards. "loss" is the reward's negative, so that the best
        checkpoint is the one with the most of it.
        """
        val, names = self.questions.val, self.rewards.names
        count = min(len(val), settings.val_batches * settings.batch_size)
        chosen = np.linspace(0, len(val) - 1, count).round().astype(np.int64)
        numbers = [int(number) for number in parallel.share(chosen)]
        batches, self.batches = self.batches, 0  # the draws are to be the same each time
        try:
            seeds = self.seeds_of(numbers, salt=1)
        finally:
            self.batches = batches
        questions = [val[number] for number in numbers]
        figures: dict[str, float] = {}
        for way in ("sampled", "greedy"):
            heard = self.ask(questions, seeds, 1, greedy=way == "greedy")
            spreads = [Spread.of(heard.rewards_PG), *(Spread.of(heard.scores_PGK[:, :, k]) for k in range(len(names)))]
            sums = parallel.total([part for spread in spreads for part in (spread.count, spread.total)])
            means = [total / max(1.0, told) for told, total in zip(sums[::2], sums[1::2], strict=True)]
            figures[f"reward/{way}"] = means[0]
            figures |= {f"rewards/{name}/{way}": mean for name, mean in zip(names, means[1:], strict=True)}
            if "exact_answer" in names:
                figures[f"accuracy/{way}"] = means[1 + names.index("exact_answer")]
        self.rewards.take_errors()
        model.train()
        return {"loss": -figures["reward/sampled"], "reward": figures["reward/sampled"], **figures}


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def _extremes(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best and the worst, if they differ."""
    ranked = sorted(records, key=lambda record: -np.inf if record["reward"] is None else record["reward"])
    return [ranked[-1], ranked[0]] if ranked[-1]["reward"] != ranked[0]["reward"] else ranked[-1:]


def _row(record: dict[str, Any]) -> str:
    reward = "   none" if record["reward"] is None else f"{record['reward']:7.3f}"
    end = "" if record["finished"] else " ... (cut)"
    return f"  {reward}  {_cut(record['completion'])}{end}"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
