"""Several models asked the same: bits per byte on held-out text; held-out tasks right greedily, and of samples (pass@1, pass@k)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.evaluate.answers import Asked, ask
from tinyseek.evaluate.estimates import Share, Values, gain, mean_over_prompts, over_seeds, pass_at_k
from tinyseek.evaluate.options import EvalSettings, model_names
from tinyseek.evaluate.perplexity import bits_per_byte, read_texts
from tinyseek.evaluate.progress import counted
from tinyseek.text.tasks import Record, check, read_tasks

if TYPE_CHECKING:
    from tinyseek.model.transformer import CausalLM
    from tinyseek.text.tokenizer import Tokenizer

Check = Callable[[Record, str], bool]
_PARTS = ("kind", "lang")  # columns of a task by whose values scores are told apart


@dataclass
class Greedy:
    """A model's likeliest answers to a list of tasks, in their order, and which were right."""

    answers: list[Asked]
    right: list[bool]

    def plain(self, records: Sequence[Record]) -> dict[str, Any]:
        overall = Share(sum(self.right), len(self.right)).plain()
        by = {
            f"by_{name}": {
                value: Share(sum(self.right[i] for i in among), len(among)).plain()
                for value, among in _parts(records, name).items()
            }
            for name in _PARTS
        }
        return {**overall, **by, "answers": _shape(self.answers)}


@dataclass
class Sampled:
    """A model's answers drawn by chance: `right_SPN` says which were, by seed, prompt and sample."""

    answers: list[Asked]
    right_SPN: np.ndarray[Any, np.dtype[np.bool_]]
    temperature: float

    @property
    def pass_1(self) -> Values:
        """Each prompt's share of right samples."""
        share_P: Values = self.right_SPN.mean((0, 2), dtype=np.float64)
        return share_P

    def pass_at(self, k: int) -> Values:
        """Each prompt's pass@k."""
        seeds, _, samples = self.right_SPN.shape
        total = seeds * samples
        by_right = np.array([pass_at_k(total, right, k) for right in range(total + 1)])
        found_P: Values = by_right[self.right_SPN.sum((0, 2))]
        return found_P

    def plain(self, records: Sequence[Record], ks: Sequence[int]) -> dict[str, Any]:
        seeds, _, samples = self.right_SPN.shape
        share_P = self.pass_1
        return {
            "samples": samples,
            "seeds": seeds,
            "temperature": self.temperature,
            "pass@1": mean_over_prompts(share_P).plain(),
            **{f"pass@{k}": mean_over_prompts(self.pass_at(k)).plain() for k in ks if 1 < k <= samples * seeds},
            "by_seed": over_seeds(self.right_SPN.mean((1, 2)).tolist()).plain(),
            **{
                f"by_{name}": {
                    value: mean_over_prompts(share_P[among]).plain() for value, among in _parts(records, name).items()
                }
                for name in _PARTS
            },
            "answers": _shape(self.answers),
        }


@dataclass
class TaskScore:
    """What a model made of the tasks."""

    greedy: Greedy
    sampled: Sampled | None


def score_tasks(
    model: CausalLM,
    tokenizer: Tokenizer,
    records: Sequence[Record],
    settings: EvalSettings,
    *,
    check: Check = check,
    progress: Callable[[int], None] | None = None,
) -> TaskScore:
    """Ask every task in the chat template, greedily and `samples` times by each seed, and check the final answers.

    A base model is asked in the same template. What is asked is a record's messages without the last, which is the answer.

    Args:
        settings: `samples`, `seeds`, `temperature`, `max_tokens`, `batch_size` are obeyed.
        check: whether an answer, control tokens and thought included, is right.
        progress: told how many answers or groups of samples are there, of `len(records) * (1 + seeds if samples else 1)`.
    Raises:
        UserError: a prompt leaves no room for an answer in the model's context.
    """
    from tinyseek.engine.params import SamplingParams
    from tinyseek.text.chat import encode_prompt

    prompts = [encode_prompt(tokenizer, record["messages"][:-1]) for record in records]
    draws = [SamplingParams(max_tokens=settings.max_tokens)]
    for number in range(settings.seeds if settings.samples else 0):
        draws.append(
            SamplingParams(
                max_tokens=settings.max_tokens,
                temperature=settings.temperature,
                n=settings.samples,
                seed=settings.seed + number,
            )
        )
    found = ask(model, tokenizer, prompts, draws, batch_size=settings.batch_size, progress=progress)
    first = [answers[0] for answers in found[0]]
    greedy = Greedy(first, [check(r, answer.text) for r, answer in zip(records, first, strict=True)])
    if not settings.samples:
        return TaskScore(greedy, None)
    right = [
        [[check(r, answer.text) for answer in answers] for r, answers in zip(records, of_seed, strict=True)]
        for of_seed in found[1:]
    ]
    every = [answer for of_seed in found[1:] for answers in of_seed for answer in answers]
    return TaskScore(greedy, Sampled(every, np.array(right, dtype=bool), settings.temperature))


def _parts(records: Sequence[Record], name: str) -> dict[str, list[int]]:
    """The tasks of each value of a column."""
    parts: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        parts.setdefault(str(record.get(name)), []).append(index)
    return dict(sorted(parts.items()))


def _shape(answers: Sequence[Asked]) -> dict[str, float]:
    """What answers look like, right or wrong."""
    count = max(1, len(answers))
    shares = {
        "format": sum(answer.formed for answer in answers),
        "thought": sum(answer.thought for answer in answers),
        "cut": sum(not answer.ended for answer in answers),
    }
    tokens = sum(answer.tokens for answer in answers) / count
    return {"tokens": round(tokens, 2), **{name: round(value / count, 4) for name, value in shares.items()}}


def build(settings: EvalSettings, folder: Path) -> None:
    """Score every model; write scores.json and samples.jsonl (each task with every model's answer).

    Raises:
        UserError: no model, or one that cannot be read; no text or tasks where they were named.
    """
    if not settings.models:
        raise UserError("eval.models is empty; name at least one model folder")
    paths = [Path(path) for path in settings.models]
    names = model_names(paths)
    inputs = {f"models.{i}": path for i, path in enumerate(paths)}
    inputs |= {role: Path(path) for role, path in (("data", settings.data), ("tasks", settings.tasks)) if path}
    with artifact.writing(folder, "eval", settings.essence(), inputs=inputs) as (work, figures):
        texts = list(read_texts(Path(settings.data), settings.max_bytes)) if settings.data else []
        records = _records(Path(settings.tasks), settings.max_tasks) if settings.tasks else []
        scores: list[dict[str, Any]] = []
        samples: list[dict[str, Any]] = [
            {**record, "prompt": record["messages"][-2]["content"], "outputs": {}, "right": {}, "sampled": {}}
            for record in records
        ]
        answered: dict[str, TaskScore] = {}
        for name, path in zip(names, paths, strict=True):
            entry, found = _score_model(name, path, settings, texts, records)
            scores.append(entry)
            figures[name] = _figures(entry)
            if found is None:
                continue
            _keep(samples, name, found)
            if answered:
                over = _before(path, dict(zip(names, paths, strict=True)), list(answered))
                entry["tasks"]["gains"] = _gains(over, answered[over], found)
            answered[name] = found
        artifact.write_text(work / "scores.json", json.dumps({"models": scores}, indent=2, ensure_ascii=False) + "\n")
        with (work / "samples.jsonl").open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)


def _score_model(
    name: str,
    path: Path,
    settings: EvalSettings,
    texts: list[str],
    records: list[Record],
) -> tuple[dict[str, Any], TaskScore | None]:
    """One model's entry of scores.json, and what it made of the tasks."""
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
        with counted(f"{name}: scoring text", size) as bar:
            entry["text"] = bits_per_byte(
                model,
                tokenizer,
                texts,
                seq_len=settings.seq_len or _trained_seq_len(path),
                stride=settings.stride,
                progress=bar,
            ).plain()
    if not records:
        return entry, None
    asked = len(records) * (1 + (settings.seeds if settings.samples else 0))
    with counted(f"{name}: answering tasks", asked) as bar:
        found = score_tasks(model, tokenizer, records, settings, progress=bar)
    entry["tasks"] = found.greedy.plain(records)
    if found.sampled:
        entry["tasks"]["sampled"] = found.sampled.plain(records, settings.k)
    return entry, found


def _keep(samples: list[dict[str, Any]], name: str, found: TaskScore) -> None:
    """Put a model's answers beside the others'; of what was drawn by chance the number of right ones."""
    for index, (sample, answer, right) in enumerate(
        zip(samples, found.greedy.answers, found.greedy.right, strict=True)
    ):
        sample["outputs"][name], sample["right"][name] = answer.text, right
        if found.sampled:
            right_SN = found.sampled.right_SPN[:, index]
            sample["sampled"][name] = {"right": int(right_SN.sum()), "of": right_SN.size}


def _before(path: Path, paths: dict[str, Path], answered: Sequence[str]) -> str:
    """Which model's scores a model's are held against: the one it was made from; else the last before it that was made from the
    same; else the one before it in the list."""
    made_from = _made_from(path)
    if made_from is not None:
        parents = [name for name in answered if artifact.key_of(paths[name]) == made_from]
        siblings = [name for name in answered if _made_from(paths[name]) == made_from]
        for found in (parents[:1], siblings[-1:]):
            if found:
                return found[0]
    return answered[-1]


def _made_from(path: Path) -> str | None:
    """The key of the model that a model was made from; none where it is not known."""
    try:
        inputs = artifact.read(path).inputs
    except UserError:
        return None
    return inputs["model"].key if "model" in inputs else None


def _gains(over: str, before: TaskScore, after: TaskScore) -> dict[str, Any]:
    """By how much a model is better than another, on the same tasks, one by one."""
    gains: dict[str, Any] = {"over": over, "greedy": gain(before.greedy.right, after.greedy.right).plain()}
    if before.sampled and after.sampled:
        gains["pass@1"] = gain(before.sampled.pass_1, after.sampled.pass_1).plain()
    return gains


def _figures(entry: dict[str, Any]) -> dict[str, Any]:
    """What the manifest tells of a model."""
    tasks = entry.get("tasks", {})
    sampled = tasks.get("sampled", {})
    return {
        "bits_per_byte": entry.get("text", {}).get("bits_per_byte"),
        "exact_match": tasks.get("share"),
        **{name: value["mean"] for name, value in sampled.items() if name.startswith("pass@")},
    }


def _records(path: Path, most: int) -> list[Record]:
    return read_tasks(path / "heldout.jsonl" if path.is_dir() else path)[:most]


def _trained_seq_len(path: Path) -> int | None:
    """What a model of ours was trained with, none of others; longer windows would ask of it what it never saw."""
    try:
        value = artifact.read(path).settings.get("seq_len")
    except UserError:
        return None
    return value if isinstance(value, int) else None
