"""Heads over a trunk against transformers and PEFT: the same logits out of the same folder, padded or not, both ways."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import CONFIGS
from torch import Tensor

from tinyseek.errors import UserError
from tinyseek.model import adapter, heads, lora, merge
from tinyseek.model.adapter import Base
from tinyseek.model.config import ModelConfig
from tinyseek.model.heads import SequenceClassifier
from tinyseek.model.hub import find_model
from tinyseek.model.lora_config import LoraConfig
from tinyseek.model.transformer import CausalLM

transformers = pytest.importorskip("transformers")

LABELS = ["ham", "spam", "垃圾"]
PAD = 3
CASES = {
    "gpt2": CONFIGS["gpt2"],
    "llama": CONFIGS["llama-gqa"],
    "tied": ModelConfig(**{**CONFIGS["llama-gqa"].plain(), "tie_word_embeddings": True}),
    "qwen2": CONFIGS["qwen2-window"],
    "deepseek_v2": CONFIGS["mla-softmax"],
    "deepseek_v3": CONFIGS["mla"],
    "groups": CONFIGS["mla-q-lora-yarn-groups"],
}


@pytest.fixture(autouse=True)
def quiet():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(before)


def classifier(config: ModelConfig, labels: list[str] = LABELS) -> SequenceClassifier:
    torch.manual_seed(1)
    trunk = CausalLM(config)
    for parameter in trunk.parameters():
        if parameter.ndim == 1:
            parameter.data.uniform_(-0.5, 1.5)
    made = SequenceClassifier(heads.without_head(trunk), labels, PAD)
    torch.nn.init.normal_(made.score.weight, 0, 0.5)
    return made.eval()


def padded(lengths: tuple[int, ...] = (17, 5, 1, 9), left: bool = False) -> tuple[Tensor, Tensor]:
    """Rows of random tokens, and where they are text. Padding's token also stands inside the first row, and at the second's end."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.full((len(lengths), max(lengths)), PAD)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        place = slice(max(lengths) - length, None) if left else slice(0, length)
        ids[row, place] = torch.randint(4, 97, (length,), generator=generator)
        mask[row, place] = 1
    ids[0, 2] = PAD
    if not left:
        ids[1, 4] = PAD  # read at the token before, by both
    return ids, mask


def theirs(folder: Path) -> Any:
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_transformers_reads_the_folder_and_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    made = classifier(CASES[name])
    made.save(tmp_path)
    other = theirs(tmp_path)
    assert type(other).__name__.endswith("ForSequenceClassification")
    assert other.config.id2label == dict(enumerate(LABELS))
    ids, mask = padded()
    expected = other(input_ids=ids, attention_mask=mask).logits
    assert expected.abs().max() > 0.1
    assert (made(ids) - expected).abs().max() < 1e-4
    again = SequenceClassifier.load(tmp_path)
    assert (again(ids) - expected).abs().max() < 1e-4
    assert again.labels == LABELS
    if name != "gpt2":  # whose positions are absolute: transformers counts them from the row's beginning, padding too
        ids, mask = padded(left=True)
        side = other(input_ids=ids, attention_mask=mask).logits
        bare = torch.stack([again(row[keep.bool()][None])[0] for row, keep in zip(ids, mask, strict=True)])
        assert (bare - side).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "deepseek_v3"])
@torch.no_grad()
def test_what_transformers_saved_is_read(name: str, tmp_path: Path) -> None:
    classifier(CASES[name], ["a", "b"]).save(tmp_path / "ours")
    other = theirs(tmp_path / "ours")
    other.config.pad_token_id = 5
    other.save_pretrained(tmp_path / "theirs")
    values = json.loads((tmp_path / "theirs/config.json").read_text())
    assert values["architectures"] == [type(other).__name__]
    made = SequenceClassifier.load(tmp_path / "theirs")
    assert (made.labels, made.pad_id) == (["a", "b"], 5)
    ids, mask = padded()
    ids[mask == 0] = 5
    assert (made(ids) - other(input_ids=ids, attention_mask=mask).logits).abs().max() < 1e-4


@torch.no_grad()
def test_texts_end_to_end_are_read_as_each_alone() -> None:
    made = classifier(CASES["groups"])
    ids, mask = padded()
    rows = [row[keep.bool()] for row, keep in zip(ids, mask, strict=True)]
    line = torch.cat(rows)[None]
    documents = torch.cat([torch.full((len(row),), number) for number, row in enumerate(rows)])[None]
    starts = [sum(map(len, rows[:number])) for number in range(len(rows))]
    places = torch.tensor([start + made.last_of(row.tolist()) for start, row in zip(starts, rows, strict=True)])
    alone = torch.cat([made(row[None]) for row in rows])
    assert (made.at(line, documents, places) - alone).abs().max() < 1e-5
    every = made.per_token(line, documents)[0]
    assert (every[places] - alone).abs().max() < 1e-5
    assert (made(ids) - alone).abs().max() < 1e-5


@torch.no_grad()
def test_one_label_is_a_reward_model(tmp_path: Path) -> None:
    made = classifier(CASES["llama"], list(heads.SCALAR))
    made.save(tmp_path, torch.bfloat16)
    assert theirs(tmp_path).config.num_labels == 1
    again = SequenceClassifier.load(tmp_path)
    assert again(padded()[0]).shape == (4, 1)
    assert again.score.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "base_format"),
    [
        ("llama", "float32"),
        ("llama", "int8"),
        ("tied", "float32"),
        ("qwen2", "float32"),
        ("deepseek_v3", "float32"),
        ("gpt2", "float32"),
    ],
)
def test_an_adapter_with_a_head_is_pefts(name: str, base_format: Any, tmp_path: Path) -> None:
    config = CASES[name]
    torch.manual_seed(1)
    CausalLM(config).save(tmp_path / "base")
    model = CausalLM.load(tmp_path / "base")
    identity = Base("base", str(tmp_path / "base"), adapter.fingerprint(model))
    made = SequenceClassifier(heads.without_head(model), LABELS, PAD)
    settings = LoraConfig(rank=3, targets=["q_proj", "o_proj"] if config.mla else "all-linear")
    lora.add_lora(made.trunk, settings, base_format)
    for parameter in (p for p in made.parameters() if p.requires_grad):
        parameter.data.normal_(0, 0.1)
    why = heads.save_adapter(made.eval(), tmp_path / "adapter", settings, identity)
    ids, mask = padded()
    with torch.no_grad():
        again = SequenceClassifier.load(tmp_path / "adapter")
        assert again.labels == LABELS
        if base_format == "float32":
            assert (again(ids) - made(ids)).abs().max() < 1e-4
        merge.fill(tmp_path / "adapter", tmp_path / "base", tmp_path / "merged", "auto")
        assert (theirs(tmp_path / "merged")(input_ids=ids, attention_mask=mask).logits - again(ids)).abs().max() < 1e-4
    with pytest.raises(UserError, match="writes no text"):
        CausalLM.load(tmp_path / "adapter")
    with pytest.raises(UserError, match="writes no text"):
        CausalLM.load(tmp_path / "merged")
    assert find_model(tmp_path) == tmp_path / "base"  # the newest that writes text
    if name == "gpt2":
        assert "query, key and value" in why
        return
    peft = pytest.importorskip("peft")
    assert not why
    other = theirs_from_base(tmp_path / "base")
    other = peft.PeftModel.from_pretrained(other, tmp_path / "adapter").eval()
    assert type(other).__name__ == "PeftModelForSequenceClassification"
    with torch.no_grad():
        assert (other(input_ids=ids, attention_mask=mask).logits - again(ids)).abs().max() < 1e-4


def theirs_from_base(folder: Path) -> Any:
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, num_labels=len(LABELS), pad_token_id=PAD
    )
    return loaded.eval()


def test_what_has_no_head_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    CausalLM(CASES["llama"]).save(tmp_path / "plain")
    with pytest.raises(UserError, match="no head for classes"):
        SequenceClassifier.load(tmp_path / "plain")
    classifier(CASES["llama"]).save(tmp_path / "made")
    file = tmp_path / "made/config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"id2label": {"0": "a", "1": "b"}}))
    with pytest.raises(UserError, match=r"score.weight is \[3, 32\]"):
        SequenceClassifier.load(tmp_path / "made")
    file.write_text(json.dumps(values | {"id2label": {"0": "a", "7": "b"}}))
    with pytest.raises(UserError, match="labels 0 to 1"):
        SequenceClassifier.load(tmp_path / "made")
