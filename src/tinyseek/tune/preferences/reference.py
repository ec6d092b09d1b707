"""The reference: the model as it was before it learned from preferences, and what it thinks of the answers.

Either its log-probabilities are computed once and kept beside the checkpoints, a line for each batch, so that a run which is killed
goes on where it was; or the reference is asked at each step: the model without its adapter, or a second copy of it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tinyseek.model import lora
from tinyseek.model.transformer import CausalLM
from tinyseek.train import metrics
from tinyseek.tune.preferences.texts import Row, Texts, likelihood

FILE = "reference.jsonl"


class Reference:
    """The model as it was, to be asked at each step."""

    def __init__(self, copy: CausalLM | None) -> None:
        """
        Args:
            copy: a second model; none if the model that learns has an adapter, under which it is as it was.
        """
        self.copy = copy
        if copy is not None:
            copy.requires_grad_(False).eval()

    @contextmanager
    def of(self, model: CausalLM) -> Iterator[CausalLM]:
        """The reference of a model, for a while; without dropout."""
        training = model.training
        if self.copy is not None:
            yield self.copy.to(model.device)
            return
        model.eval()
        try:
            with lora.without(model):
                yield model
        finally:
            model.train(training)


def identity(texts: Mapping[str, Texts], made_from: Mapping[str, Any]) -> str:
    """What precomputed log-probabilities depend on, as a hash: the texts, and what the model and its numbers are made from."""
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode())
    for split, part in sorted(texts.items()):
        digest.update(split.encode())
        for array in (part.file.ids, part.file.ends, part.file.mask):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]


def precompute(
    file: Path,
    of: str,
    texts: Mapping[str, Texts],
    load: Callable[[], CausalLM],
    size: int,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> dict[str, NDArray[np.float32]]:
    """The log-probability of every answer under the reference, by split.

    Args:
        file: where they are kept; what is there already is not computed again.
        of: what they depend on; those of anything else are thrown away.
        load: gives the reference, where there is anything to compute.
        size: texts a forward pass.
    """
    known = _read(file, of)
    found = {split: known.get(split, [])[: len(part)] for split, part in texts.items()}
    missing = sum(len(part) - len(found[split]) for split, part in texts.items())
    if missing:
        model = load()
        training = model.training
        model.eval()
        metrics.say(f"the reference: log-probabilities of {missing:,} answers under the model as it is")
        tell = _Telling(missing)
        try:
            with file.open("a", encoding="utf-8") as stream, torch.no_grad():
                for split, part in texts.items():
                    for start in range(len(found[split]), len(part), size):
                        chosen = [part[number] for number in range(start, min(start + size, len(part)))]
                        with autocast():
                            answers_S = likelihood(model, Row.of(chosen, model.device)).answers_S
                        logps = answers_S.float().tolist()
                        stream.write(json.dumps({"split": split, "first": start, "logps": logps}) + "\n")
                        stream.flush()
                        found[split] += logps
                        tell.more(len(logps))
        finally:
            model.train(training)
    return {split: np.array(logps, np.float32) for split, logps in found.items()}


class _Telling:
    """A line every ten seconds on how far it is."""

    def __init__(self, total: int) -> None:
        self.done, self.total = 0, total
        self._started = self._said = time.monotonic()

    def more(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self._said >= 10 and self.done < self.total:
            self._said = now
            left = metrics.duration((now - self._started) * (self.total - self.done) / self.done)
            metrics.say(f"the reference: {self.done:,} of {self.total:,} answers, {left} left")


def _read(file: Path, of: str) -> dict[str, list[float]]:
    """What a file holds of this reference. A line that was cut short is taken out, a file of another reference emptied."""
    file.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[float]] = {}
    good = 0
    if file.is_file():
        with file.open("rb") as stream:
            for number, line in enumerate(stream):
                try:
                    entry = json.loads(line)
                    if not line.endswith(b"\n") or (number == 0 and entry["of"] != of):
                        break
                    if number:
                        logps = found.setdefault(str(entry["split"]), [])
                        if entry["first"] != len(logps):
                            break
                        logps += map(float, entry["logps"])
                except (ValueError, KeyError, TypeError):
                    break
                good += len(line)
    with file.open("ab") as stream:
        stream.truncate(good)
        if not good:
            stream.write(json.dumps({"of": of}).encode() + b"\n")
    return found
