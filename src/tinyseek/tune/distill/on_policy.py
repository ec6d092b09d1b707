"""Distillation on the student's own words: it answers the prompts with its weights of the moment, and is drawn at each token that
it said to what the teacher would have said there (GKD, arXiv 2306.13649). So it learns to go on from its own mistakes, which are in
no data.

What is sampled follows from the run's seed, the number of the batch and the prompt, so that a resumed run samples the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from tinyseek.model.transformer import CausalLM
from tinyseek.text.shards import IGNORED, EndToEnd, Rows
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.train import parallel
from tinyseek.train.objective import Batch, Update, parted
from tinyseek.tune.distill.divergence import How
from tinyseek.tune.distill.logits import Distilling, Source
from tinyseek.tune.distill.options import DistillSettings
from tinyseek.tune.distill.stored import Stored
from tinyseek.tune.rl.rollouts import Answer, Rollouts


@dataclass
class Said(Update):
    """An update from the student's own words, of which there is no right token to take cross-entropy on."""


class OnPolicy(Distilling):
    """Batches of the data, and batches that the student writes."""

    on_policy: ClassVar[bool] = True

    def __init__(
        self,
        source: Source,
        teacher: CausalLM,
        how: How,
        held_out: tuple[Source, CausalLM | Stored] | None,
        model: CausalLM,
        tokenizer: Tokenizer,
        settings: DistillSettings,
    ) -> None:
        """Sample from `model`, which the loop trains, after the prompts of `source`."""
        super().__init__(source, teacher, how, held_out)
        assert isinstance(source, EndToEnd)
        self.settings = settings
        self.rollouts = Rollouts(
            model, tokenizer, max_tokens=settings.max_completion_length, temperature=settings.sampling_temperature
        )
        self.batches = 0
        self.longest = min(
            settings.seq_len, model.config.max_position_embeddings, teacher.config.max_position_embeddings
        )

    def state(self) -> dict[str, Any]:
        """The number of batches so far, on which the draws depend."""
        return {"batches": self.batches}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self.batches = int(state["batches"])

    def fetch(self, indices: NDArray[np.int64], accumulate: int, device: torch.device) -> Batch:
        """The conversations of those numbers, or their prompts with answers of the student's."""
        self.batches += 1
        if self._lot("whose") >= self.settings.on_policy:
            batch = super().fetch(indices, accumulate, device)
            return dataclasses.replace(batch, figures={"on_policy": 0.0})
        started = time.perf_counter()
        numbers = [int(index) for index in indices]
        prompts = [prompt_of(self.source[number], self.longest) for number in numbers]
        answers = [each[0] for each in self.rollouts.sample(prompts, 1, self._seeds(numbers))]
        seconds = time.perf_counter() - started
        texts = list(zip(prompts, answers, strict=True))
        parts = parted(np.arange(len(texts)), accumulate)
        micro = [self.laid_out(rows_of([texts[at] for at in part], self.longest), None, device) for part in parts]
        targets = sum(len(part.targets_N) for part in micro)
        tokens = sum(part.ids_BT.numel() for part in micro)
        return Batch([Said(micro, targets, len(texts))], tokens, self._figures(answers, seconds))

    def how_of(self, update: Update) -> How:
        """On its own words the divergence alone."""
        return dataclasses.replace(self.how, ce_weight=0.0) if isinstance(update, Said) else self.how

    def _figures(self, answers: list[Answer], seconds: float) -> dict[str, float]:
        counts = [len(answers), sum(len(a.ids) for a in answers), sum(a.finished for a in answers)]
        count, tokens, finished = parallel.total([float(number) for number in counts])
        return {
            "on_policy": 1.0,
            "completions/mean_length": tokens / max(1.0, count),
            "completions/clipped_ratio": 1 - finished / max(1.0, count),
            "seconds/sampling": round(seconds, 4),
        }

    def _seeds(self, numbers: Iterable[int]) -> list[int]:
        """A seed for each prompt of this batch; one that comes twice has two."""
        met: Counter[int] = Counter()
        seeds = []
        for number in numbers:
            seeds.append(int(self._lot(f"{number} {met[number]}") * 2**52))
            met[number] += 1
        return seeds

    def _lot(self, of: str) -> float:
        """A number in [0, 1) that hangs on the seed and the batch alone."""
        text = f"{self.settings.seed} {self.batches} {of}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "little") / 2**48


def prompt_of(rows: Rows, longest: int) -> list[int]:
    """A conversation's ids up to where the assistant begins its last answer; the end of them, where that leaves no room."""
    learned = rows.targets_BT[0] != IGNORED
    last = int(np.flatnonzero(learned)[-1])
    begin = last
    while begin and learned[begin - 1]:
        begin -= 1
    ids: list[int] = rows.ids_BT[0, : begin + 1].tolist()
    return ids[-max(1, longest - 1) :]


def rows_of(texts: Iterable[tuple[list[int], Answer]], longest: int) -> Rows:
    """Prompts with their answers, end to end in one row, the answers' tokens as targets."""
    ids, targets, documents = [], [], []
    for number, (prompt, answer) in enumerate(texts):
        whole = [*prompt, *answer.ids][: longest + 1]
        ids.append(np.array(whole[:-1], np.int64))
        said = np.array(whole[1:], np.int64)
        said[: len(prompt) - 1] = IGNORED
        targets.append(said)
        documents.append(np.full(len(said), number, np.int32))
    return Rows(np.concatenate(ids)[None], np.concatenate(targets)[None], np.concatenate(documents)[None])
