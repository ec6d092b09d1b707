"""Fine-tuning: what is learned from, packing that changes nothing, and what is told of the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.model.presets import from_preset
from tinyseek.model.transformer import CausalLM
from tinyseek.text.shards import IGNORED
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings
from tinyseek.tune import sft
from tinyseek.tune.options import SftSettings

WORDS = [
    "how",
    "many",
    "apples",
    "have",
    "Ann",
    "and",
    "Bob",
    "there",
    "are",
    "seven",
    "of",
    "them",
    "in",
    "the",
    "basket",
    "today",
]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads over matrices of a few rows spend their time waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def talk(rng: np.random.Generator) -> list[dict[str, str]]:
    def say(most: int) -> str:
        return " ".join(rng.choice(WORDS, int(rng.integers(1, most))))

    return [{"role": "user", "content": say(9)}, {"role": "assistant", "content": say(7)}]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model with its tokenizer, and conversations."""
    folder = tmp_path_factory.mktemp("sft")
    tokenizer = Tokenizer.train([" ".join(WORDS) * 3], TokenizerSettings(vocab_size=320))
    tokenizer.save(folder / "base")
    torch.manual_seed(0)
    experts = {
        "n_routed_experts": 4,
        "moe_intermediate_size": 8,
        "initializer_range": 0.2,
        "max_position_embeddings": 64,
    }
    config = from_preset("quickstart", {"vocab_size": tokenizer.vocab_size, **SMALL, **LATENT, **experts})
    CausalLM(config).save(folder / "base")
    rng = np.random.default_rng(3)
    lines = [json.dumps({"messages": talk(rng)}) for _ in range(60)]
    (folder / "talks.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def settings_of(made: Path, **changes: Any) -> SftSettings:
    base = {"model": str(made / "base"), "data": [str(made / "talks.jsonl")], "seq_len": 48, "batch_size": 2}
    quick = {"epochs": 2, "precision": "float32", "threads": 1, "val_fraction": 0.1, "lr": 0.01}
    return SftSettings.read(base | quick | changes)


def test_packed_loss_is_the_mean_over_the_examples_alone(made: Path, tmp_path: Path) -> None:
    """Several conversations a row, none seeing another: the same loss and gradient as each in a batch of its own."""
    settings, tokenizer = settings_of(made, val_fraction=0), Tokenizer.load(made / "base")
    examples = sft.encode(settings.data, tokenizer, settings)
    rows = sft.pack(tmp_path, "train", examples, tokenizer, settings)
    assert rows is not None
    assert len(rows) < len(examples.ids["train"]) / 1.5
    model = CausalLM.load(made / "base")
    batch = rows[np.arange(len(rows))]
    assert batch.documents_BT is not None
    packed = model.loss(*(torch.from_numpy(array) for array in (batch.ids_BT, batch.targets_BT, batch.documents_BT)))
    packed.total.backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    answers = sum(sum(mask[1:]) for mask in examples.masks["train"])
    total = ahead = 0.0
    for ids, mask in zip(examples.ids["train"], examples.masks["train"], strict=True):
        row = torch.tensor(ids.tolist())[None]
        targets = row[:, 1:].masked_fill(~torch.tensor(mask.tolist(), dtype=torch.bool)[None, 1:], IGNORED)
        alone = model.loss(row[:, :-1], targets, None, torch.tensor(float(answers)))
        alone.total.backward()
        total, ahead = total + float(alone.next), ahead + float(alone.mtp)
    assert int(packed.tokens) == answers
    assert float(packed.next) == pytest.approx(total, rel=1e-5)
    assert float(packed.mtp) == pytest.approx(ahead, rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradient.get(name), atol=1e-6, rtol=1e-4, msg=name)


def test_only_what_the_assistant_says_is_learned_with_its_end(made: Path, tmp_path: Path) -> None:
    settings, tokenizer = settings_of(made, val_fraction=0), Tokenizer.load(made / "base")
    examples = sft.encode(settings.data, tokenizer, settings)
    rows = sft.pack(tmp_path, "train", examples, tokenizer, settings)
    assert rows is not None
    targets = rows[np.arange(len(rows))].targets_BT
    learned = sorted(tokenizer.decode(targets[targets != IGNORED].tolist()).split("<｜end▁of▁sentence｜>")[:-1])
    records = [json.loads(line) for line in (made / "talks.jsonl").read_text().splitlines()]
    assert learned == sorted(record["messages"][1]["content"] for record in records)


def test_a_model_folder_comes_out_with_template_and_counts(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "talks.jsonl"
    long = {"instruction": "how " * 80, "output": "seven"}
    data.write_text((made / "talks.jsonl").read_text() + json.dumps(long) + '\n{"no": json\n')
    settings = settings_of(made, data=[str(data)])
    sft.build(settings, tmp_path / "sft")
    said = capsys.readouterr().err
    assert "1 examples longer than seq_len=48 tokens were dropped (too_long=truncate" in said
    assert "1 records could not be read" in said
    assert "line 62" in said
    manifest = artifact.read(tmp_path / "sft")
    figures = manifest.figures
    assert figures["train_examples"] + figures["val_examples"] == 60
    assert figures["val_examples"] > 0
    assert (figures["dropped_too_long"], figures["unreadable_records"]) == (1, 1)
    assert manifest.inputs["model"].key == artifact.key_of(made / "base")
    template = Tokenizer.load(made / "base").chat_template
    assert template
    assert (tmp_path / "sft" / "chat_template.jinja").read_text() == template
    losses = [json.loads(line)["loss"] for line in (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sft", "talks.jsonl"]


def test_truncation_is_counted_too(made: Path) -> None:
    settings = settings_of(made, seq_len=12, too_long="truncate")
    cut = sft.encode(settings.data, Tokenizer.load(made / "base"), settings)
    assert cut.too_long > 0
    assert all(len(ids) <= 13 for split in cut.ids.values() for ids in split)
    assert sum(len(ids) for ids in cut.ids.values()) + cut.silent == 60


def test_equal_conversations_fall_on_one_side(made: Path) -> None:
    settings = settings_of(made, data=[str(made / "talks.jsonl")] * 2, val_fraction=0.3)
    examples = sft.encode(settings.data, Tokenizer.load(made / "base"), settings)
    train, val = ({tuple(ids) for ids in examples.ids[split]} for split in ("train", "val"))
    assert train
    assert val
    assert not train & val


def test_what_does_not_fit_together_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="context of 64; lower seq_len"):
        sft.build(settings_of(made, seq_len=65), tmp_path / "out")
    with pytest.raises(UserError, match=r"(?i)none.jsonl.*no such file"):
        sft.build(settings_of(made, data=[str(tmp_path / "none.jsonl")]), tmp_path / "out")
    with pytest.raises(UserError, match="no example is left"):
        sft.build(settings_of(made, seq_len=2), tmp_path / "out")
    CausalLM.load(made / "base").save(tmp_path / "small")
    Tokenizer.train([" ".join(WORDS) * 9], TokenizerSettings(vocab_size=340)).save(tmp_path / "small")
    with pytest.raises(UserError, match="do not belong together"):
        sft.build(settings_of(made, model=str(tmp_path / "small")), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
