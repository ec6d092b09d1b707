"""The report card of a run that goes on after fine-tuning: rewards, preferences, collected answers, students, classifiers."""

import json
import math
import random
from pathlib import Path

import pytest
import rl_toys
from html_pages import HOSTILE, safe

from tinyseek import artifact
from tinyseek.commands import recipes
from tinyseek.evaluate.options import ReportSettings
from tinyseek.evaluate.report import write_report
from tinyseek.evaluate.words import Words
from tinyseek.tune.rl import ppo


def make(run, name, kind, inputs=None, figures=None, files=None):
    roles = {role: run / source for role, source in (inputs or {}).items()}
    with artifact.writing(run / name, kind, {"name": name}, inputs=roles) as (work, measured):
        for file, content in (files or {}).items():
            lines = content if isinstance(content, str) else json.dumps(content)
            (work / file).write_text(lines, encoding="utf-8")
        measured |= figures or {}


def lines_of(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def rewarded(steps, rng):
    """What a stage that learns by rewards logs."""
    records = []
    for step in range(1, steps + 1):
        right = 0.35 + 0.4 * (1 - math.exp(-step / 30)) + rng.gauss(0, 0.04)
        records.append(
            {
                "step": step, "loss": rng.gauss(0, 0.01), "reward": right, "reward_std": 0.3, "entropy": 0.6 * math.exp(-step / 80),
                "kl": 0.001 * step, "rewards/exact_answer/mean": right, "completions/mean_length": 60 - step / 5 + rng.gauss(0, 2),
                "completions/mean_terminated_length": 58 - step / 5, "completions/clipped_ratio": 0.02, "tokens": 9000 * step,
                "frac_reward_zero_std": 0.2 + step / 400, "sampling/logp_difference/max": 2e-5, "seconds": 2.0 * step,
            }
        )  # fmt: skip
        if step % 20 == 0:
            records[-1] |= {"val_loss": -right, "val_reward/sampled": right, "val_accuracy/sampled": right - 0.02}
            records[-1] |= {"val_reward/greedy": right + 0.05, "val_accuracy/greedy": right + 0.03}
    return records


def preferred(steps):
    return [
        {
            "step": step, "loss": 0.69 * math.exp(-step / 40), "rewards/chosen": step / 50, "rewards/rejected": -step / 30,
            "rewards/margins": step / 20, "rewards/accuracies": 1 - 0.5 * math.exp(-step / 15), "entropy": 0.5,
            "tokens": 900 * step, "seconds": 0.5 * step,
        }
        for step in range(1, steps + 1)
    ]  # fmt: skip


def scored(name, key, right, samples=4, over=None):
    """A model's entry of scores.json; every share made up of `right`."""
    greedy = {"right": round(400 * right), "total": 400, "share": right, "low": right - 0.03, "high": right + 0.03}

    def mean(value):
        return {"mean": value, "low": value - 0.02, "high": value + 0.02, "error": 0.01, "prompts": 400}

    tasks = {
        **greedy, "by_kind": {"chain": greedy}, "by_lang": {"en": greedy, "zh": greedy},
        "answers": {"tokens": 40.0, "format": 0.97, "thought": 1.0, "cut": 0.02},
        "sampled": {
            "samples": samples, "seeds": 1, "temperature": 1.0, "pass@1": mean(right - 0.06), "pass@2": mean(right),
            "pass@4": mean(right + 0.08), "by_seed": {"mean": right, "error": None, "values": [right]},
            "by_kind": {"chain": mean(right)}, "by_lang": {"en": mean(right), "zh": mean(right)},
            "answers": {"tokens": 41.25, "format": 0.955, "thought": 1.0, "cut": 0.03},
        },
    }  # fmt: skip
    if over:
        change = {"low": 0.08, "high": 0.12, "error": 0.01, "prompts": 400}
        tasks["gains"] = {"over": over, "greedy": {"mean": 0.09, **change}, "pass@1": {"mean": 0.1, **change}}
    return {"name": name, "key": key, "tasks": tasks}


def said(text, thought=""):
    return {"role": "assistant", "content": text} | ({"reasoning_content": thought} if thought else {})


MODELS = (
    ("pretrain", "pretrain", None, 0.05),
    ("sft", "sft", "pretrain", 0.47),
    ("grpo", "grpo", "sft", 0.62),
    ("rejection", "sft", "grpo", 0.63),
    ("dpo", "dpo", "grpo", 0.61),
    ("student", "sft", "pretrain", 0.44),
    ("student-bare", "sft", "pretrain", 0.22),
)


def r1(run: Path) -> None:
    """A run like r1-in-miniature's, made up."""
    rng = random.Random(0)
    plain = [{"step": s, "loss": 6 / s**0.3, "tokens": 4096 * s, "seconds": 0.5 * s} for s in range(1, 121)]
    plain[-1]["val_loss"] = 1.5
    question = {"role": "user", "content": f"3 + 4 + 9? {HOSTILE}"}
    solved = {"messages": [question, said("16", f"3+4=7, 7+9=16 {HOSTILE}")], "answer": "16"}
    problems = {"train": {"records": 4000, "languages": {"en": 2000, "zh": 2000}}, "heldout": {"records": 400}}
    make(run, "lessons", "problems", figures=problems | {"samples": [solved]})
    for name, kind, source, _ in MODELS:
        logged = {"grpo": rewarded(100, rng), "dpo": preferred(60)}.get(kind, plain)
        figures = {"tokens_per_s": 4000.0, "training_seconds": 60.0}
        if kind == "dpo":
            figures |= {"dropped_equal": 7, "dropped_too_long": 2, "unreadable_records": 0}
        files = {"metrics.jsonl": lines_of(logged)}
        if kind == "grpo":
            files["samples.jsonl"] = lines_of(
                {
                    "step": step, "prompt": f"step {step}: 5 - 2 + 8? {HOSTILE}", "reward": float(at == 2), "tokens": 40 + at,
                    "completion": f"<think>5-2=3, 3+8=1{at - 1} {HOSTILE}</think>1{at - 1}", "advantage": 0.5, "finished": True,
                }
                for step in (0, 50, 99) for at in range(1, 5)
            )  # fmt: skip
        make(run, name, kind, {"model": source} if source else {"data": "lessons"}, figures, files)
    answers = [
        {
            "prompt": [question],
            "completion": said(f"1{n}", f"I add {HOSTILE}"),
            "dropped": why,
            "answer": "16",
            "tokens": 40,
        }
        for n, why in enumerate([None, None, "wrong", "wrong", "near_duplicate"])
    ]
    told = {
        "prompts": 1000, "answers": 8000, "kept": 950, "prompts_kept": 950, "teacher": f"grpo {HOSTILE}", "right": 0.618,
        "dropped": {"wrong": 2980, "surplus": 4000, "near_duplicate": 70}, "prompts_right_once": 0.95, "asked_again": 3,
        "tokens": {"completion": 412_000, "prompt": 90_000, "cached": 0}, "cost": 0.1234, "currency": "USD", "repeated_prompts": 0,
    }  # fmt: skip
    make(run, "shortest", "collect", {"teacher": "grpo"}, told, {"samples.jsonl": lines_of(answers)})
    pair = {"prompt": [question], "chosen": [said("16", "7+9")], "rejected": [said("16", f"so {HOSTILE}")]}
    rules = {"shorter_over_longer": {"pairs": 900, "possible": 2100, "prompts": 640}}
    counts = {"pairs": 900, "prompts": 1000, "rules": rules, "tokens_chosen": 31.5, "tokens_rejected": 52.25}
    make(run, "pairs", "pairs", {"answers": "shortest"}, counts, {"train.jsonl": lines_of([pair] * 4)})
    entries = [
        scored(name, artifact.read(run / name).key, right, over=source or None) for name, _, source, right in MODELS
    ]
    samples = [
        {
            **solved, "prompt": question["content"], "kind": "chain", "lang": "en",
            "outputs": {name: f"<think>7+9 {HOSTILE}</think>16" for name, *_ in MODELS}, "right": {n: True for n, *_ in MODELS},
            "sampled": {name: {"right": 3, "of": 4} for name, *_ in MODELS},
        }
    ] * 6  # fmt: skip
    make(
        run, "eval", "eval", {**{f"models.{i}": name for i, (name, *_) in enumerate(MODELS)}, "pairs": "pairs"},
        files={"scores.json": {"models": entries}, "samples.jsonl": lines_of(samples)},
    )  # fmt: skip


def classifier(run: Path) -> None:
    each = {"precision": 0.9875, "recall": 0.975, "f1": 0.981, "texts": 200}
    scores = {
        "split": "test", "texts": 400, "accuracy": 0.98, "accuracy_95": [0.961, 0.99], "macro_f1": 0.98, "majority": 0.5,
        "classes": {"ham": each, f"spam {HOSTILE}": each}, "confusion": [[195, 5], [3, 197]], "few_shot": {"accuracy": 0.71},
    }  # fmt: skip
    wrong = [{"text": f"Win! {HOSTILE}", "label": "spam", "predicted": "ham", "probability": 0.97}]
    metrics = lines_of(
        {"step": s, "loss": 1 / s, "accuracy": 1 - 0.5 / s, "tokens": 90 * s, "seconds": s} for s in range(1, 30)
    )
    files = {"scores.json": scores, "predictions.jsonl": lines_of(wrong), "metrics.jsonl": metrics}
    make(run, "spam", "classify", figures={"trained_on": 800, "dropped_too_long": 4}, files=files)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_run_that_goes_on_after_fine_tuning(tmp_path, language):
    r1(tmp_path / "r1")
    write_report(tmp_path / "r1", tmp_path / "page.html", ReportSettings(language=language))
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    reader = safe(page)
    assert "<script" not in page
    assert "\u202e" not in page
    t = Words(language)
    for phrase in ("Answers while it learned", "Collected answers", "The tasks", "Learning curves", "Lineage",
                   "reward of the better and the worse answer", "divergence from the start (KL)", "entropy",
                   "tokens an answer", "accuracy", "Held-out tasks right, stage by stage, with 95 % intervals"):  # fmt: skip
        assert t(phrase) in reader.words, phrase
    for fact in ("56.0\u00a0%", "70.0\u00a0%", "+10.0", t("over {name}").format(name="sft"), "(+8.0 … +12.0)", "2,980", "900",
                 "41.2", "95.5\u00a0%", "0.1234 USD", "31.5", "2e-05", t("near duplicate"), t("shorter over longer"),
                 t("{count} pairs left out with equal sides").format(count=7),
                 t("{count} left out as too long").format(count=2)):  # fmt: skip
        assert fact in reader.said, fact
    assert t("{count} unreadable records").format(count=0) not in reader.said
    assert page.count('class="story"') == 1
    story = page[page.index('class="story"') : page.index("</svg>")]
    assert story.count('class="track"') >= 3 * len(MODELS)
    # of the policy's loss nothing is drawn; a classifier's, a preference's and a base model's are
    curves = page[page.index(f"<h2>{t('Learning curves')}") : page.index(f"<h2>{t('Answers while it learned')}")]
    assert curves.count(f"<h4>{t('loss')}</h4>") == 1
    assert curves.count(f"<h4>{t('reward')}</h4>") == 1
    assert len(page) < 500_000


def test_a_classifier(tmp_path):
    classifier(tmp_path / "run")
    write_report(tmp_path / "run" / "spam", tmp_path / "page.html")
    reader = safe((tmp_path / "page.html").read_text(encoding="utf-8"))
    for fact in ("98.0\u00a0%", "71.0\u00a0%", "195", "0.9800", "97.5\u00a0%", "4 left out as too long"):
        assert fact in reader.said, fact
    assert "What is taken for what" in reader.words


def test_what_a_real_stage_of_values_logs_is_drawn(tmp_path):
    """By the names that PPO gives its figures, not by those that this page would like."""
    made = rl_toys.make(tmp_path / "made")
    ppo.build(rl_toys.ppo_settings(made, steps=2, kl_coef=0.1), tmp_path / "run" / "ppo")
    write_report(tmp_path / "run", tmp_path / "page.html")
    words = safe((tmp_path / "page.html").read_text(encoding="utf-8")).words
    for title in (
        "reward",
        "value",
        "loss of the value",
        "explained variance",
        "divergence from the start (KL)",
        "entropy",
    ):
        assert title in words, title


def test_a_student_is_measured_from_its_teacher_and_a_reward_model_by_its_pairs(tmp_path):
    steps = range(1, 30)
    student = [
        {"step": s, "loss": 1 / s, "kl": 2 / s, "agreement": 1 - 0.9 / s, "tokens": 9 * s, "seconds": s} for s in steps
    ]
    rewards = [
        {"step": s, "loss": 1 / s, "accuracy": 0.9, "margin": s / 9, "tokens": 9 * s, "seconds": s} for s in steps
    ]
    make(tmp_path / "run", "small", "distill", files={"metrics.jsonl": lines_of(student)})
    make(tmp_path / "run", "judge", "reward", files={"metrics.jsonl": lines_of(rewards)})
    write_report(tmp_path / "run", tmp_path / "page.html")
    words = safe((tmp_path / "page.html").read_text(encoding="utf-8")).words
    assert {"divergence from the teacher", "same likeliest token as the teacher", "accuracy", "difference"} <= set(
        words
    )
    assert "divergence from the start (KL)" not in words


def test_a_model_is_not_held_against_one_that_it_has_nothing_to_do_with(tmp_path):
    for name, source in (("big", None), ("dpo", "big"), ("small", None), ("student", "small"), ("control", "small")):
        make(
            tmp_path / "run",
            name,
            "sft" if source else "pretrain",
            {"model": tmp_path / "run" / source} if source else None,
        )
    overs = {"dpo": "big", "student": "dpo", "control": "student"}
    keys = {name: artifact.read(tmp_path / "run" / name).key for name in ("big", *overs)}
    entries = [scored(name, key, 0.5, over=overs.get(name)) for name, key in keys.items()]
    roles = {f"models.{i}": tmp_path / "run" / name for i, name in enumerate(keys)}
    make(tmp_path / "run", "eval", "eval", roles, files={"scores.json": {"models": entries}, "samples.jsonl": ""})
    write_report(tmp_path / "run", tmp_path / "page.html")
    said_there = safe((tmp_path / "page.html").read_text(encoding="utf-8")).said
    assert "over big" in said_there
    assert "over student" in said_there
    assert "over dpo" not in said_there


def test_the_command_tells_of_what_was_made_beside_the_scored_models_too(tmp_path, capsys):
    make(tmp_path, "sft", "sft", figures={"steps": 3})
    make(tmp_path, "eval", "eval", {"models.0": "sft"}, files={"scores.json": {"models": []}, "samples.jsonl": ""})
    for extra in ([], ["spam"]):
        if extra:
            classifier(tmp_path)
        assert recipes.report([str(tmp_path)]) == 0
        inputs = artifact.read(tmp_path / "report").inputs
        assert [entry.path for entry in inputs.values()] == ["eval", *extra]
    assert recipes.report([str(tmp_path)]) == 0
    assert "kept, built from the same settings and inputs" in capsys.readouterr().err


def test_damaged_files_leave_gaps(tmp_path):
    r1(tmp_path / "r1")
    classifier(tmp_path / "r1")
    for name, content in {
        "grpo/metrics.jsonl": '{"step": 1, "loss": 0.1, "reward": "NaN", "kl": null}\n{"step": 2, "loss": [], "reward": {}}\n',
        "grpo/samples.jsonl": '{"completion": 3, "step": "x", "reward": "much"}\n[]\n{"compl',
        "shortest/samples.jsonl": '{"prompt": 3, "completion": [], "dropped": 7}\n{"prompt": [3], "completion": {"content": 1}}\n',
        "pairs/train.jsonl": '{"prompt": [], "chosen": 3, "rejected": [7]}\n',
        "spam/scores.json": '{"classes": {"a": 1, "b": []}, "confusion": [[1], "x"], "accuracy_95": "?", "few_shot": [1]}',
        "spam/predictions.jsonl": '{"label": 1, "predicted": 2, "probability": "?"}\n',
        "eval/scores.json": '{"models": [{"name": "a", "tasks": {"sampled": {"pass@x": 1, "pass@1": 3}, "gains": 4}}]}',
        "eval/samples.jsonl": '{"outputs": {"a": 1}, "sampled": {"a": {"right": "?"}}}\n',
    }.items():  # fmt: skip
        (tmp_path / "r1" / name).write_text(content)
    write_report(tmp_path / "r1", tmp_path / "page.html")
    assert "Lineage" in safe((tmp_path / "page.html").read_text(encoding="utf-8")).words
