"""Several models asked the same: bits per byte on held-out text, and exact match on held-out tasks, greedy."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.evaluate.options import EvalSettings
from tinyseek.evaluate.perplexity import bits_per_byte, read_texts
from tinyseek.text.tasks import Record, check, read_tasks

if TYPE_CHECKING:
    from tinyseek.model.transformer import CausalLM
    from tinyseek.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Share:
    """How many of a number of tasks were right."""

    right: int
    total: int

    @property
    def share(self) -> float:
        return self.right / self.total if self.total else 0.0

    def interval(self, z: float = 1.959964) -> tuple[float, float]:
        """Wilson's score interval, 95 % by default: where the true share lies. It stays within 0..1 and is sound at 0 and at 1.

        Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927.
        """
        if not self.total:
            return 0.0, 1.0
        n, p = self.total, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def plain(self) -> dict[str, float | int]:
        low, high = self.interval()
        return {
            "right": self.right,
            "total": self.total,
            "share": round(self.share, 4),
            "low": round(low, 4),
            "high": round(high, 4),
        }


@dataclass
class TaskScore:
    """A model's answers to a list of tasks, in their order, and which were right."""

    outputs: list[str]
    right: list[bool]
    overall: Share
    by: dict[str, dict[str, Share]] = field(default_factory=dict)  # "kind" and "lang" -> value -> share

    def plain(self) -> dict[str, Any]:
        parts = {f"by_{name}": {value: s.plain() for value, s in shares.items()} for name, shares in self.by.items()}
        return {**self.overall.plain(), **parts}


def exact_match(
    model: CausalLM,
    tokenizer: Tokenizer,
    records: Sequence[Record],
    *,
    max_tokens: int = 120,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> TaskScore:
    """Ask every task, greedily and in the chat template, and check the final answers (`tasks.check`).

    A base model is asked in the same template. What is asked is a record's messages without the last, which is the answer.

    Args:
        progress: told the number of tasks done after each batch.
    Raises:
        UserError: a prompt leaves no room for an answer in the model's context.
    """
    from tinyseek.engine.generate import generate
    from tinyseek.engine.sampler import SamplingParams
    from tinyseek.text.chat import encode_prompt

    prompts = [encode_prompt(tokenizer, record["messages"][:-1]) for record in records]
    room = model.config.max_position_embeddings - max((len(prompt) for prompt in prompts), default=0)
    if room < 1:
        raise UserError(
            f"a task's prompt fills the model's whole context of {model.config.max_position_embeddings} tokens"
        )
    stops = frozenset(tokenizer.stop_ids)
    params = SamplingParams(max_tokens=min(max_tokens, room), temperature=0.0, stop_ids=stops)
    outputs = [""] * len(records)
    order = sorted(range(len(records)), key=lambda index: len(prompts[index]))  # of about one length: little padding
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            for index, ids in zip(chosen, generate(model, [prompts[i] for i in chosen], params), strict=True):
                end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
                outputs[index] = tokenizer.decode(
                    ids[:end]
                )  # with special tokens: </think> is one, and the check needs it
            if progress:
                progress(start + len(chosen))
    finally:
        model.train(was_training)
    right = [check(record, output) for record, output in zip(records, outputs, strict=True)]
    by = {
        name: {
            value: _share(right, [str(r.get(name)) == value for r in records])
            for value in sorted({str(r.get(name)) for r in records})
        }
        for name in ("kind", "lang")
    }
    return TaskScore(outputs, right, _share(right, [True] * len(right)), by)


def _share(right: list[bool], among: list[bool]) -> Share:
    return Share(sum(r and a for r, a in zip(right, among, strict=True)), sum(among))


def build(settings: EvalSettings, folder: Path) -> None:
    """Score every model; write scores.json and samples.jsonl (each task with every model's answer).

    Raises:
        UserError: no model, or one that cannot be read; no text or tasks where they were named.
    """
    if not settings.models:
        raise UserError("eval.models is empty; name at least one model folder")
    paths = [Path(path) for path in settings.models]
    names = _names(paths)
    inputs = {f"models.{i}": path for i, path in enumerate(paths)}
    inputs |= {role: Path(path) for role, path in (("data", settings.data), ("tasks", settings.tasks)) if path}
    with artifact.writing(folder, "eval", settings.essence(), inputs=inputs) as (work, figures):
        texts = list(read_texts(Path(settings.data), settings.max_bytes)) if settings.data else []
        records = _records(Path(settings.tasks), settings.max_tasks) if settings.tasks else []
        scores: list[dict[str, Any]] = []
        samples: list[dict[str, Any]] = [
            {**record, "prompt": record["messages"][-2]["content"], "outputs": {}, "right": {}} for record in records
        ]
        for name, path in zip(names, paths, strict=True):
            entry = _score_model(name, path, settings, texts, records, samples)
            scores.append(entry)
            figures[name] = {
                "bits_per_byte": entry.get("text", {}).get("bits_per_byte"),
                "exact_match": entry.get("tasks", {}).get("share"),
            }
        artifact.write_text(work / "scores.json", json.dumps({"models": scores}, indent=2, ensure_ascii=False) + "\n")
        with (work / "samples.jsonl").open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)


def _score_model(
    name: str,
    path: Path,
    settings: EvalSettings,
    texts: list[str],
    records: list[Record],
    samples: list[dict[str, Any]],
) -> dict[str, Any]:
    """One model's entry of scores.json; its answers go into `samples`."""
    import torch

    from tinyseek.model.transformer import CausalLM
    from tinyseek.text.tokenizer import Tokenizer

    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = CausalLM.load(path, device=device), Tokenizer.load(path)
    entry: dict[str, Any] = {"name": name, "path": str(path), "key": artifact.key_of(path)}
    if texts:
        size = sum(len(text.encode()) for text in texts)
        bar = _Progress(f"{name}: scoring text", size)
        trained = _trained_seq_len(path)
        entry["text"] = bits_per_byte(
            model,
            tokenizer,
            texts,
            seq_len=settings.seq_len or trained,
            stride=settings.stride,
            progress=bar,
        ).plain()
        bar.close()
    if records:
        bar = _Progress(f"{name}: answering tasks", len(records))
        found = exact_match(
            model, tokenizer, records, max_tokens=settings.max_tokens, batch_size=settings.batch_size, progress=bar
        )
        bar.close()
        entry["tasks"] = found.plain()
        for sample, output, right in zip(samples, found.outputs, found.right, strict=True):
            sample["outputs"][name], sample["right"][name] = output, right
    return entry


def _names(paths: list[Path]) -> list[str]:
    """Each model's folder name, with its parent's where two are alike."""
    names = [path.name for path in paths]
    names = [n if names.count(n) == 1 else f"{p.parent.name}/{n}" for n, p in zip(names, paths, strict=True)]
    return [n if names.count(n) == 1 else f"{n} ({i + 1})" for i, n in enumerate(names)]


def _records(path: Path, most: int) -> list[Record]:
    return read_tasks(path / "heldout.jsonl" if path.is_dir() else path)[:most]


def _trained_seq_len(path: Path) -> int | None:
    """What a model of ours was trained with, none of others; longer windows would ask of it what it never saw."""
    try:
        value = artifact.read(path).settings.get("seq_len")
    except UserError:
        return None
    return value if isinstance(value, int) else None


class _Progress:
    """How far a count has come: a bar on a terminal, else a line every ten seconds. All on stderr."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total = title, max(1, total)
        self.said = time.monotonic()
        self.bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self.bar = Progress(console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task(title, total=self.total)
            self.bar.start()

    def __call__(self, done: int) -> None:
        if self.bar:
            self.bar.update(self.task, completed=done)
        elif time.monotonic() - self.said >= 10:
            self.said = time.monotonic()
            print(f"{self.title}: {100 * done // self.total} %", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
