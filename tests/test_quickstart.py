"""The quickstart from raw text to report card, made tiny: every stage as it really is, through the command line."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tinyseek import cli

TINY = [
    "name=tiny",
    "corpus=corpus.txt",
    "data.document_separator=blank",
    "data.val_fraction=0.1",
    "tokenizer.vocab_size=400",
    "pretrain.model={preset: quickstart, hidden_size: 32, num_hidden_layers: 2, n_routed_experts: 4, max_position_embeddings: 256}",
    "pretrain.seq_len=32",
    "pretrain.batch_size=4",
    "pretrain.steps=4",
    "pretrain.compile=false",
    "sft.seq_len=192",
    "sft.batch_size=2",
    "sft.steps=3",
    "sft.compile=false",
    "tasks.train={arithmetic: 24, world: 24, identity: 8, refusal: 8}",
    "tasks.heldout={arithmetic: 4, world: 4, identity: 2, refusal: 2}",
    "tasks.dialogues=4",
    "eval.max_tokens=4",
    "eval.max_bytes=2000",
]


def built(shown: str) -> list[str]:
    """The stages that were built, from what the run said on stderr."""
    return [line.split("] ")[1].split(":")[0] for line in shown.splitlines() if ": building (" in line]


def test_text_to_report_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    words = ["".join(rng.choices("aeioumnprst", k=rng.randint(2, 7))) for _ in range(300)]
    pages = [" ".join(rng.choices(words, k=80)).capitalize() + "." for _ in range(60)]
    Path("corpus.txt").write_text("\n\n".join(pages))

    assert cli.main(["run", "quickstart", *TINY]) == 0
    shown = capsys.readouterr()
    stages = ["data", "tasks", "tokenizer", "tokens", "pretrain", "sft", "eval", "report"]
    assert built(shown.err) == stages
    assert "bits per byte" in shown.out
    assert "tinyseek chat runs/tiny/sft" in shown.out

    scores = json.loads(Path("runs/tiny/eval/scores.json").read_text())["models"]
    assert [entry["name"] for entry in scores] == ["pretrain", "sft"]
    assert all(0 < entry["text"]["bits_per_byte"] < 10 for entry in scores)
    page = Path("runs/tiny/report/index.html").read_text()
    assert "corpus.txt" in page
    for stage in stages:
        leftover = [path.name for path in Path("runs/tiny").glob(f"{stage}.*")]
        assert leftover == []

    # Nothing is done twice: the same recipe, and the run's own folder, keep everything; a setting rebuilds what follows from it.
    assert cli.main(["run", "quickstart", *TINY]) == 0
    assert built(capsys.readouterr().err) == []
    assert cli.main(["run", "runs/tiny"]) == 0
    assert built(capsys.readouterr().err) == []
    assert cli.main(["run", "runs/tiny", "eval.max_bytes=1500"]) == 0
    assert built(capsys.readouterr().err) == ["eval", "report"]
    Path("corpus.txt").write_text("\n\n".join(pages[:59]))
    assert cli.main(["run", "runs/tiny", "--until", "data"]) == 0
    assert "building (corpus changed)" in capsys.readouterr().err

    assert cli.main(["show", "runs/tiny"]) == 0
    tree = capsys.readouterr().out
    assert "corpus: corpus.txt" in tree
    assert "data  data" in tree
    assert "(built anew since)" in tree
    assert cli.main(["eval", "runs/tiny/pretrain", "max_tokens=2", "max_bytes=500", "--out", "scored"]) == 0
    assert json.loads(Path("scored/scores.json").read_text())["models"][0]["name"] == "pretrain"
