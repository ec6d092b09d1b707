"""The reference in its three forms, and that what is known of it outlives a killed run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from preference_toys import make_base, make_pairs, settings_of

from tinyseek.model import lora
from tinyseek.model.lora_config import LoraConfig
from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.tune.preferences.dpo import Preferring
from tinyseek.tune.preferences.pairs import gather_pairs
from tinyseek.tune.preferences.reference import Reference, identity, precompute
from tinyseek.tune.preferences.stage import write
from tinyseek.tune.preferences.texts import Texts

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    make_base(folder / "base")
    make_pairs(folder / "pairs.jsonl", 20)
    return folder


def texts_of(folder: Path) -> dict[str, Texts]:
    settings = settings_of(folder)
    tokenizer = Tokenizer.load(folder / "base")
    return write(gather_pairs(settings.data, tokenizer, settings), folder / "tokens", tokenizer.vocab_size)


def adapted(folder: Path, config: LoraConfig, base: Any = "float32") -> CausalLM:
    """A model with an adapter that changes something."""
    model = CausalLM.load(folder / "base")
    torch.manual_seed(1)
    lora.add_lora(model, config, base)
    with torch.no_grad():
        for name, parameter in lora.trained(model):
            parameter.add_(torch.randn_like(parameter) * (0.2 if "lora_B" in name else 0.05))
    return model


@pytest.mark.parametrize("base", ["float32", "int8"])
@pytest.mark.parametrize("dora", [False, True])
def test_the_base_under_an_adapter_is_a_reference_of_its_own(folder: Path, dora: bool, base: str) -> None:
    config = LoraConfig(targets="*", dora=dora, dropout=0.3)
    model = adapted(folder, config, base).train()
    apart = CausalLM.load(folder / "base")
    lora.add_lora(
        apart, LoraConfig(targets=["q_a_proj"]), base
    )  # fresh, it changes nothing; but holds the weights alike
    texts = texts_of(folder)["train"]
    settings = settings_of(folder, reference="base", lora={})
    ids_BT = torch.arange(12)[None]
    with torch.no_grad():
        before = model.eval()(ids_BT)
    figures = []
    for reference in (Reference(None), Reference(apart)):
        objective = Preferring(texts, settings, reference)
        (update,) = objective.fetch(np.arange(4), 1, CPU).updates
        model.train()
        torch.manual_seed(2)
        figures.append({k: v.item() for k, v in objective.losses(model, update.micro[0], update).items()})
        assert model.training
    assert figures[0] == pytest.approx(figures[1], rel=1e-6, abs=1e-6)
    assert abs(figures[0]["rewards/chosen"]) > 1e-3
    with torch.no_grad():
        assert torch.equal(model.eval()(ids_BT), before)  # all is put back
    fresh = adapted(folder, config, base)
    with lora.without(fresh), torch.no_grad():
        torch.testing.assert_close(fresh.eval()(ids_BT), apart.eval()(ids_BT), rtol=1e-6, atol=1e-6)


def test_precomputed_is_what_would_be_computed_at_each_step(folder: Path, tmp_path: Path) -> None:
    texts = texts_of(folder)
    policy = CausalLM.load(folder / "base")
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    known = precompute(tmp_path / "r.jsonl", "it", texts, lambda: CausalLM.load(folder / "base"), 6, nullcontext)
    assert {split: len(logps) for split, logps in known.items()} == {split: len(part) for split, part in texts.items()}
    settings = settings_of(folder)
    figures = []
    for reference in (known["train"], Reference(CausalLM.load(folder / "base"))):
        objective = Preferring(texts["train"], settings, reference)
        (update,) = objective.fetch(np.array([3, 0, 7]), 1, CPU).updates
        figures.append({k: v.item() for k, v in objective.losses(policy, update.micro[0], update).items()})
    assert figures[0] == pytest.approx(figures[1], rel=1e-5, abs=1e-5)


def test_what_is_known_is_not_computed_again(folder: Path, tmp_path: Path) -> None:
    texts, file = texts_of(folder), tmp_path / "work" / "r.jsonl"
    loads = []

    def load() -> CausalLM:
        loads.append(1)
        return CausalLM.load(folder / "base")

    whole = precompute(file, "it", texts, load, 4, nullcontext)
    text = file.read_text()
    same = precompute(file, "it", texts, load, 4, nullcontext)
    assert len(loads) == 1
    assert file.read_text() == text
    lines = text.splitlines(keepends=True)
    for damaged in ("".join(lines[:3]) + lines[3][:20], "".join(lines[:2]), lines[0][:5], "", "".join(lines[:-1])):
        file.write_text(damaged)
        again = precompute(file, "it", texts, load, 4, nullcontext)
        assert all(np.array_equal(whole[split], part[split]) for split in whole for part in (same, again))
        assert file.read_text() == text
    assert len(loads) == 6
    precompute(file, "another", texts, load, 4, nullcontext)
    assert json.loads(file.read_text().splitlines()[0]) == {"of": "another"}
    assert len(loads) == 7


def test_what_it_depends_on(folder: Path) -> None:
    texts = texts_of(folder)
    here = identity(texts, {"model": "a"})
    assert identity(texts, {"model": "a"}) == here
    assert identity(texts, {"model": "b"}) != here
    assert identity({"train": texts["train"]}, {"model": "a"}) != here
