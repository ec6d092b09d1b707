"""Damaged and foreign checkpoints: each a clear line, and nothing harmed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tinyseek.errors import UserError
from tinyseek.model.presets import from_preset
from tinyseek.model.transformer import CausalLM

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "moe_intermediate_size": 8,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    CausalLM(from_preset("quickstart", TINY)).save(tmp_path / "model")
    return tmp_path / "model"


def test_saved_model_comes_back_bit_for_bit(folder: Path) -> None:
    model = CausalLM.load(folder)
    with torch.no_grad():
        for _, mixture in model.experts():
            mixture.gate.e_score_correction_bias.normal_()
    model.save(folder)
    again = CausalLM.load(folder)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert again.config == model.config
    assert not list(folder.rglob("*.tmp"))
    modes = {file.name: file.stat().st_mode for file in folder.iterdir() if file.is_file()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_bfloat16_keeps_the_balancing_bias_in_float32(folder: Path) -> None:
    model = CausalLM.load(folder, dtype=torch.bfloat16)
    gate = next(model.experts())[1].gate
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert gate.e_score_correction_bias.dtype == torch.float32
    model.save(folder)
    stored = load_file(folder / "model.safetensors")
    assert stored["lm_head.weight"].dtype == torch.bfloat16
    assert stored["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32


def test_missing_folder_and_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model folder"):
        CausalLM.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no config\.json"):
        CausalLM.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:keep])
    with pytest.raises(UserError, match="cut short or damaged"):
        CausalLM.load(folder)


def test_missing_tensor_and_wrong_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    taken = tensors.pop(name)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"lacks the tensor {name}"):
        CausalLM.load(folder)
    tensors[name] = taken[:, :5].contiguous()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=rf"{name} is \[8, 5\], but config.json makes it \[8, 32\]"):
        CausalLM.load(folder)


def test_loading_imports_no_compiler(folder: Path) -> None:
    """Which takes seconds: torch does so where a normal draw happens on the meta device."""
    code = f"import sys; from tinyseek import CausalLM; CausalLM.load({str(folder)!r}); print('torch._dynamo' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "False\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "not supported"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_act": "relu6"}, "activation"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type"),
    ],
)
def test_foreign_configs(folder: Path, change: dict[str, object], message: str) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=message):
        CausalLM.load(folder)


def test_damaged_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "deepse')
    with pytest.raises(UserError, match="cannot be read as JSON"):
        CausalLM.load(folder)


def test_pickled_weights_are_never_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="never read"):
        CausalLM.load(folder)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        CausalLM(from_preset("quickstart", TINY)).save(tmp_path / "file" / "model")
