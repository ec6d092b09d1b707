"""The plan of a run: refused when it cannot fit, and near the truth when it can."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tinyseek import cli
from tinyseek.errors import UserError
from tinyseek.model.counts import count
from tinyseek.model.presets import PRESETS, from_preset
from tinyseek.train import plan
from tinyseek.train.options import TrainSettings
from tinyseek.tune.options import SftSettings


def test_what_cannot_fit_is_refused_at_once_with_the_setting_to_lower() -> None:
    config = PRESETS["deepseek-v3"]
    began = time.monotonic()
    with pytest.raises(
        UserError, match=r"GB of memory, and .* GB are free; take a smaller model: lower model\.hidden_size"
    ):
        plan.refuse_if_too_large(config, TrainSettings(), count(config).total)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"batch_size": 65536, "seq_len": 512}, r"raise accumulate \(now 1; .*\) or lower batch_size \(now 65536\)"),
        ({"batch_size": 1, "seq_len": 1 << 26}, "lower seq_len"),
    ],
)
def test_the_advice_names_what_takes_the_memory(settings: dict[str, int], advice: str) -> None:
    config = PRESETS["quickstart"]
    with pytest.raises(UserError, match=advice):
        plan.refuse_if_too_large(config, TrainSettings(**settings), count(config).total)


def test_accumulation_lowers_the_need() -> None:
    config, parameters = PRESETS["quickstart"], count(PRESETS["quickstart"]).total
    whole = plan.need(config, TrainSettings(batch_size=64), parameters)
    parts = plan.need(config, TrainSettings(batch_size=64, accumulate=8), parameters)
    assert parts.activations * 8 == whole.activations
    assert parts.weights == whole.weights


def test_a_probe_that_outgrows_its_limit_is_stopped() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "a = bytearray(300_000_000)\nimport time\ntime.sleep(60)"], text=True
    )
    assert plan._watch(child, 100_000_000) is None
    assert child.returncode is not None
    assert not psutil.pid_exists(child.pid) or child.poll() is not None


@pytest.mark.slow
def test_the_probe_takes_real_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    config = from_preset("quickstart", {"num_hidden_layers": 2, "hidden_size": 64})
    parameters = count(config).total
    settings = SftSettings(batch_size=4, seq_len=64, accumulate=2, optimizer="muon", model="m", data=["d"])
    probed = plan.probe(config, settings, parameters, packed=True)
    assert 0 < probed.seconds_per_step < 5
    assert probed.peak_bytes > plan.need(config, settings, parameters).total
    assert probed.precision in ("float32", "bfloat16")


def test_a_model_far_too_large_ends_the_command_with_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "\n\n".join(f"{n} is a number, and {n + 1} comes after it; then comes {n + 2}." for n in range(4000))
    Path("corpus.txt").write_text(text)
    huge = "pretrain.model={preset: quickstart, hidden_size: 16384, num_hidden_layers: 64}"
    small = ["tasks.train={arithmetic: 20}", "tasks.heldout={arithmetic: 2}", "tokenizer.vocab_size=400"]
    assert cli.main(["plan", "quickstart", "corpus=corpus.txt", huge, *small]) == 2
    said = capsys.readouterr().err
    assert "GB of memory, and" in said
    assert "GB are free; " in said
    assert not list(tmp_path.glob("runs/*"))
