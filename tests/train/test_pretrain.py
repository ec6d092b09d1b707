"""The pre-training stage: from tokens to a model folder, stopped and gone on, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.model.transformer import CausalLM
from tinyseek.text.shards import TokenFile, Windows, write_tokens
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings
from tinyseek.train import StoppedError, pretrain
from tinyseek.train.objective import LanguageModelling
from tinyseek.train.options import PretrainSettings

TEXT = "In the beginning was the word, and the word was with us. " * 12
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4}
MODEL = {"preset": "quickstart", **SMALL, **LATENT, "n_routed_experts": 4, "moe_intermediate_size": 8}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, and tokens by it."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = Tokenizer.train([TEXT], TokenizerSettings(vocab_size=320))
    tokenizer.save(folder / "tokenizer")
    (folder / "tokens").mkdir()
    for split, copies in (("train", 8), ("val", 1)):
        ids = [*tokenizer.encode(TEXT), tokenizer.eos_id]
        write_tokens(folder / "tokens", split, [ids] * copies, tokenizer.vocab_size)
    return folder


def settings_of(made: Path, **changes: Any) -> PretrainSettings:
    base = {"tokens": str(made / "tokens"), "tokenizer": str(made / "tokenizer"), "model": MODEL, "seq_len": 16}
    quick = {"steps": 30, "batch_size": 4, "lr": 0.02, "precision": "float32", "threads": 1, "validate_every": 10}
    return PretrainSettings.read(base | quick | changes)


def test_a_model_folder_comes_out_whole_and_stopping_changes_nothing(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(made)
    out = tmp_path / "pretrain"
    pretrain.build(settings, out)
    files = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "metrics.jsonl", "loss.png", "manifest.json"} <= files
    assert not {"state.json", "optimizer.safetensors"} & files
    assert [path.name for path in tmp_path.iterdir()] == ["pretrain"]
    manifest = artifact.read(out)
    keys = {name: artifact.key_of(made / name) for name in ("tokens", "tokenizer")}
    assert manifest.key == artifact.make_key("pretrain", settings.essence(), keys)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["loss"] < records[0]["loss"] - 1
    model, tokenizer = CausalLM.load(out), Tokenizer.load(out)
    assert model.config.vocab_size == tokenizer.vocab_size
    val = Windows(TokenFile.open(made / "tokens", "val"), 16)
    measured = LanguageModelling(val, val).validate(model, settings, torch.device("cpu"))
    assert measured["loss"] == pytest.approx(manifest.figures["val_loss"])

    real, calls = CausalLM.loss, iter(range(1000))

    def pressed(*args: Any) -> Any:
        if next(calls) == 14:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(CausalLM, "loss", pressed)
    again = tmp_path / "again"
    with pytest.raises(StoppedError):
        pretrain.build(settings, again)
    assert not again.exists()
    assert (tmp_path / "again.work").is_dir()
    pretrain.build(settings, again)
    for name in ("model.safetensors", "mtp/model.safetensors", "config.json"):
        assert (again / name).read_bytes() == (out / name).read_bytes(), name
    assert not (tmp_path / "again.work").exists()


def test_a_corpus_shorter_than_one_window_is_refused(made: Path, tmp_path: Path) -> None:
    write_tokens(tmp_path, "train", [[1, 2, 3, 4]], Tokenizer.load(made / "tokenizer").vocab_size)
    with pytest.raises(UserError, match="4 tokens, fewer than one window"):
        pretrain.build(settings_of(made, tokens=str(tmp_path)), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_tokens_of_another_tokenizer_are_refused(made: Path, tmp_path: Path) -> None:
    Tokenizer.train([TEXT[:100]], TokenizerSettings(vocab_size=300)).save(tmp_path / "other")
    with pytest.raises(UserError, match=r"made with another tokenizer .*other"):
        pretrain.build(settings_of(made, tokenizer=str(tmp_path / "other")), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"preset": "quickest"}, "quickstart"),
        ({"preset": "quickstart", "hidden_sise": 8}, "hidden_size"),
        ({"preset": "quickstart", "num_experts_per_tok": 99}, "99"),
        ({"preset": "gpt2", "max_position_embeddings": 8}, "seq_len 16 is longer"),
    ],
)
def test_a_model_that_makes_no_sense_is_refused_before_anything_runs(
    made: Path, model: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        settings_of(made, model=model)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vocab_size=290 is smaller than the tokenizer's 3"):
        pretrain.build(settings_of(made, model=MODEL | {"vocab_size": 290}), tmp_path / "out")


def test_the_key_changes_with_the_model_and_not_with_where_it_runs(made: Path) -> None:
    one = settings_of(made).essence()
    assert one == settings_of(made, threads=2, save_every=7, accumulate=2, tensorboard=True, resume="fresh").essence()
    assert one != settings_of(made, model=MODEL | {"hidden_size": 32}).essence()
    assert one != settings_of(made, seed=1).essence()


def test_settings_and_background_runs_need_no_torch() -> None:
    code = "import sys, tinyseek.train.options, tinyseek.train.background; print('torch' in sys.modules, 'numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
