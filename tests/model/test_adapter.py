"""Adapters on disk against PEFT itself: the same logits and merged weights both ways, and what is refused."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import CONFIGS
from torch import Tensor

from tinyseek.errors import UserError
from tinyseek.model import adapter, interchange, lora
from tinyseek.model.adapter import Base
from tinyseek.model.checkpoint import read_config
from tinyseek.model.config import ModelConfig
from tinyseek.model.hub import find_model
from tinyseek.model.lora_config import LoraConfig
from tinyseek.model.transformer import CausalLM

peft = pytest.importorskip("peft")

BIASED = {"qkv_bias": True, "output_bias": True, "mlp_bias": True}
CASES = {
    "llama": ModelConfig(**{**CONFIGS["llama-gqa"].plain(), **BIASED}),
    "tied": ModelConfig(**{**CONFIGS["llama-gqa"].plain(), "tie_word_embeddings": True}),
    "qwen2": ModelConfig(**{**CONFIGS["qwen2-window"].plain(), "sliding_window": None, "sliding_from_layer": 0}),
    "deepseek": ModelConfig(**{**CONFIGS["mla-q-lora-yarn-groups"].plain()}),
}
IDS = torch.randint(0, 97, (2, 70), generator=torch.Generator().manual_seed(7))


@pytest.fixture(autouse=True)
def quiet():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for name, config in [*CASES.items(), ("gpt2", CONFIGS["gpt2"]), ("free", CONFIGS["sinusoidal"])]:
        torch.manual_seed(1)
        model = CausalLM(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data.uniform_(-0.5, 1.5)
        model.save(folder / name)
    return folder


def theirs(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def shake(model: Any, seed: int = 2) -> None:
    """Give every trained parameter of ours or of PEFT's a value that matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                spread = 0.08 if "lora_" in name else 0.05
                parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)


def train(base: Path, **settings: Any) -> tuple[CausalLM, LoraConfig, Base]:
    """A model of ours with an adapter that does something."""
    model = CausalLM.load(base)
    identity = Base(base.name, str(base.resolve()), adapter.fingerprint(model))
    config = LoraConfig(**{"rank": 3, "alpha": 5, **settings})
    lora.add_lora(model, config)
    shake(model)
    return model.eval(), config, identity


def merged_tensors(model: CausalLM) -> dict[str, Tensor]:
    """Values by their published names."""
    return {name: tensor.detach() for name, tensor in interchange.tensors_to_hf(model.config, model.state_dict())}


ATTENTION = ["*self_attn*"]
OURS = {
    "lora": {},
    "rslora": {"rslora": True, "alpha": 4, "rank": 5},
    "dora": {"dora": True},
    "saved": {"save": ["lm_head", "model.norm"]},
    "embedding": {"save": ["embed_tokens"], "targets": ["q_?_proj", "q_proj", "o_proj", "!q_?_proj"]},
    "some": {"targets": ["layers.1.*", "o_proj", "down_proj"], "dropout": 0.1},
    "router": {"targets": ["mlp.gate", "kv_b_proj"]},
}


def settings_for(name: str, case: str) -> dict[str, Any] | None:
    settings = dict(OURS[case])
    if name != "deepseek" and case == "router":
        return None
    if case == "embedding":
        settings["targets"] = ["o_proj"]
    if name == "deepseek" and case == "dora":
        settings["targets"] = ATTENTION
    return settings


@pytest.mark.parametrize("case", OURS)
@pytest.mark.parametrize("name", CASES)
def test_peft_reads_ours_with_equal_logits_and_merges_to_equal_weights(
    bases: Path, tmp_path: Path, name: str, case: str
) -> None:
    settings = settings_for(name, case)
    if settings is None:
        pytest.skip("no router")
    model, config, base = train(bases / name, **settings)
    assert adapter.save_adapter(model, tmp_path / "adapter", config, base) == ""
    there = peft.PeftModel.from_pretrained(theirs(bases / name), tmp_path / "adapter").eval()
    with torch.no_grad():
        ours, base_logits = model(IDS), theirs(bases / name)(IDS).logits
        assert float((ours - base_logits).abs().max()) > 0.1
        torch.testing.assert_close(there(IDS).logits, ours, atol=1e-5, rtol=1e-5)
    plain = CausalLM.load(tmp_path / "adapter")
    whole = there.merge_and_unload()
    whole.save_pretrained(tmp_path / "merged")
    expected = load_file(tmp_path / "merged" / "model.safetensors")
    found = merged_tensors(plain)
    for key, tensor in found.items():
        if key == "lm_head.weight" and key not in expected:  # transformers thinks that it is tied still
            continue
        torch.testing.assert_close(tensor, expected[key], atol=1e-5, rtol=1e-5, msg=key)


THEIRS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["q_proj", "kv_b_proj", "o_proj"]},
    "all": {"target_modules": "all-linear"},
    "rslora": {"target_modules": "all-linear", "use_rslora": True},
    "dora": {"target_modules": ["o_proj", "v_proj", "q_b_proj"], "use_dora": True},
    "saved": {"target_modules": ["o_proj"], "modules_to_save": ["lm_head", "norm"]},
    "patterns": {
        "target_modules": r".*\.(o_proj|q_proj|kv_a_proj_with_mqa)",
        "rank_pattern": {"layers.1.self_attn.o_proj": 7},
        "alpha_pattern": {"o_proj": 11},
    },
    "mlp": {"target_modules": ["gate_proj", "up_proj", "down_proj"]},
    "up": {"target_parameters": ["mlp.experts.gate_up_proj"], "target_modules": ["o_proj"]},
    "bias": {"target_modules": ["q_proj", "o_proj"], "bias": "lora_only"},
}


@pytest.mark.parametrize("case", THEIRS)
@pytest.mark.parametrize("name", CASES)
def test_pefts_load_here_with_equal_logits(bases: Path, tmp_path: Path, name: str, case: str) -> None:
    if (case == "up" and name != "deepseek") or (case == "bias" and name != "llama"):
        pytest.skip("not there")
    torch.manual_seed(3)
    settings = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, "task_type": "CAUSAL_LM"} | THEIRS[case]
    there = peft.get_peft_model(theirs(bases / name), peft.LoraConfig(**settings)).eval()
    shake(there)
    there.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = there(IDS).logits
        unmerged = adapter.load_adapter(CausalLM, tmp_path / "adapter", torch.float32, torch.device("cpu"))
        torch.testing.assert_close(unmerged(IDS), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(CausalLM.load(tmp_path / "adapter")(IDS), expected, atol=1e-5, rtol=1e-5)


def test_each_experts_own_changes_load_as_stacks(bases: Path, tmp_path: Path) -> None:
    """As PEFT wrote them under transformers 4: one change an expert and projection."""
    config = read_config(bases / "deepseek")
    width, inner, rank = config.hidden_size, config.moe_intermediate_size, 2
    generator = torch.Generator().manual_seed(1)
    tensors, deltas = {}, {}
    for expert in (0, 2, 5):
        for kind in ("gate_proj", "up_proj", "down_proj"):
            rows, columns = (width, inner) if kind == "down_proj" else (inner, width)
            a, b = torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)
            name = f"model.layers.1.mlp.experts.{expert}.{kind}"
            tensors |= {f"base_model.model.{name}.lora_{letter}.weight": part for letter, part in (("A", a), ("B", b))}
            deltas[f"{name}.weight"] = 3 / rank * b @ a
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": 3, "base_model_name_or_path": str(bases / "deepseek")}
    (folder / "adapter_config.json").write_text(
        json.dumps(values | {"target_modules": ["gate_proj", "up_proj", "down_proj"]})
    )
    before, after = merged_tensors(CausalLM.load(bases / "deepseek")), merged_tensors(CausalLM.load(folder))
    for name, tensor in after.items():
        torch.testing.assert_close(
            tensor - before[name], deltas.get(name, torch.zeros(())).expand_as(tensor), atol=1e-5, rtol=1e-5
        )


def test_pefts_gpt2_loads_here(bases: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        target_modules=["c_attn", "c_proj", "c_fc"],
        fan_in_fan_out=True,
    )
    there = peft.get_peft_model(theirs(bases / "gpt2"), settings).eval()
    there.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(CausalLM.load(tmp_path / "adapter")(IDS), there(IDS).logits, atol=1e-5, rtol=1e-5)


# ---- what PEFT cannot hold -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "why"),
    [
        ("deepseek", {"dora": True}, "no DoRA for the MLPs"),
        ("gpt2", {}, "one matrix"),
        ("free", {}, "no other program"),
    ],
)
def test_what_peft_cannot_hold_loads_here_and_stops_peft(
    bases: Path, tmp_path: Path, name: str, settings: dict[str, Any], why: str
) -> None:
    model, config, base = train(bases / name, **settings)
    assert why in adapter.save_adapter(model, tmp_path / "adapter", config, base)
    assert why in json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["why_not_peft"]
    with torch.no_grad():
        torch.testing.assert_close(CausalLM.load(tmp_path / "adapter")(IDS), model(IDS), atol=1e-5, rtol=1e-5)
    with pytest.raises((KeyError, ValueError, TypeError)):
        peft.PeftConfig.from_pretrained(tmp_path / "adapter")


# ---- identity of the base --------------------------------------------------------------------------------------------------------


def test_an_adapter_for_another_base_is_refused(bases: Path, tmp_path: Path) -> None:
    model, config, base = train(bases / "llama")
    adapter.save_adapter(model, tmp_path / "adapter", config, base)
    other = CausalLM.load(bases / "llama")
    with torch.no_grad():
        other.model.layers[2].mlp.up_proj.weight[3, 4] += 0.1
    other.save(tmp_path / "other")
    with pytest.raises(
        UserError, match=r"was trained on llama \(\w{12}\), and the weights in .*other are others \(\w{12}\)"
    ):
        adapter.load_adapter(
            CausalLM, tmp_path / "adapter", torch.float32, torch.device("cpu"), base=tmp_path / "other"
        )
    wrong_kind = read_config(bases / "tied")
    with pytest.raises(UserError, match=r"another model|does not have"):
        adapter.lay_on(
            CausalLM(wrong_kind.model_copy(update={"num_hidden_layers": 2})),
            adapter.read_adapter(tmp_path / "adapter", wrong_kind),
        )


def test_the_hash_is_of_the_weights_and_not_of_their_files(bases: Path, tmp_path: Path) -> None:
    model = CausalLM.load(bases / "deepseek")
    hash = adapter.fingerprint(model)
    model.save(tmp_path / "short", torch.bfloat16)
    from tinyseek.model import checkpoint

    checkpoint.save(model, tmp_path / "many", shard_bytes=10_000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    for folder in ("short", "many"):
        assert adapter.fingerprint(CausalLM.load(tmp_path / folder)) == hash
    assert adapter.fingerprint(CausalLM.load(tmp_path / "short", torch.bfloat16)) == hash
    assert adapter.fingerprint(CausalLM.load(bases / "llama")) != hash


def test_a_moved_run_finds_its_base_and_a_missing_one_is_told(bases: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(bases / "tied", run / "pretrain")
    model, config, base = train(run / "pretrain", save=["lm_head"])
    adapter.save_adapter(model, run / "sft", config, base)
    run.rename(tmp_path / "moved")
    with torch.no_grad():
        torch.testing.assert_close(CausalLM.load(tmp_path / "moved" / "sft")(IDS), model(IDS), atol=1e-5, rtol=1e-5)
    assert not read_config(tmp_path / "moved" / "sft").tie_word_embeddings
    shutil.rmtree(tmp_path / "moved" / "pretrain")
    with pytest.raises(UserError, match=r"is an adapter, and its base model .*pretrain is not here. Fetch it"):
        CausalLM.load(tmp_path / "moved" / "sft")


def test_find_model_knows_adapters(bases: Path, tmp_path: Path) -> None:
    shutil.copytree(bases / "tied", tmp_path / "run" / "pretrain")
    model, config, base = train(tmp_path / "run" / "pretrain")
    adapter.save_adapter(model, tmp_path / "run" / "sft", config, base)
    assert find_model(tmp_path / "run" / "sft") == tmp_path / "run" / "sft"
    assert find_model(tmp_path / "run") == tmp_path / "run" / "sft"
    assert adapter.find_base(tmp_path / "run" / "sft").resolve() == (tmp_path / "run" / "pretrain").resolve()


def test_bad_adapters_are_told(bases: Path, tmp_path: Path) -> None:
    model, config, base = train(bases / "llama")
    good = tmp_path / "adapter"
    adapter.save_adapter(model, good, config, base)
    values = json.loads((good / "adapter_config.json").read_text())
    for change, told in (
        ({"peft_type": "LOHA"}, "kind LOHA"),
        ({"layer_replication": [[0, 1]]}, "layer_replication is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa also changes the base"),
        ({"base_model_name_or_path": ""}, "r"),
    ):
        (good / "adapter_config.json").write_text(json.dumps(values | change))
        if told == "r":  # the way from beside it still leads there
            assert adapter.find_base(good).resolve() == (bases / "llama").resolve()
            continue
        with pytest.raises(UserError, match=told):
            CausalLM.load(good)
    (good / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        CausalLM.load(good)
    (good / "adapter_config.json").write_text(json.dumps(values))
    whole = (good / "adapter_model.safetensors").read_bytes()
    (good / "adapter_model.safetensors").write_bytes(whole[:-9])
    with pytest.raises(UserError, match="cut short or damaged"):
        CausalLM.load(good)
    (good / "adapter_model.safetensors").unlink()
    (good / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="pickled weights, which are never read"):
        CausalLM.load(good)


def test_what_is_trained_again_goes_on_where_it_was(bases: Path, tmp_path: Path) -> None:
    """Laying an adapter on changes that are there already, as a resumed run does, gives back every bit."""
    for name in ("deepseek", "gpt2"):
        model, config, base = train(bases / name, save=["model.norm"])
        adapter.save_adapter(model, tmp_path / name, config, base)
        again = CausalLM.load(bases / name)
        lora.add_lora(again, config)
        adapter.lay_on(again, adapter.read_adapter(tmp_path / name, again.config))
        for (key, one), (other, two) in zip(lora.trained(model), lora.trained(again), strict=True):
            assert key == other
            assert torch.equal(one, two), key
