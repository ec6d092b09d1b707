"""A model folder on disk: config.json and safetensors as Hugging Face lays them out, read and written. Never pickle.

    config.json  generation_config.json  model.safetensors        or, when large, model-00001-of-00003.safetensors and an index
    mtp/model.safetensors                                          multi-token prediction, aside, so that others need not know it

transformers would report MTP tensors in the main file as unexpected (its rule for them knows layer 61 alone), so they lie in a
folder of their own, and config.json says `num_nextn_predict_layers: 0` to others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tinyseek.artifact import write_text
from tinyseek.errors import UserError
from tinyseek.model import interchange
from tinyseek.model.config import ModelConfig

if TYPE_CHECKING:
    from tinyseek.model.transformer import CausalLM

M = TypeVar("M", bound="CausalLM")
SHARD_BYTES = 4 << 30
FLOAT32_ALWAYS = "e_score_correction_bias"
_SHARED_IN_MTP = (
    "embed_tokens.weight",
    "shared_head.head.weight",
)  # the published MTP layer repeats the embedding and the head


def read_config(folder: Path) -> ModelConfig:
    """The config of a checkpoint folder; an adapter's is that of what it makes of its base.

    Raises:
        UserError: no folder, no config.json, or one that is no config of a supported family.
    """
    from tinyseek.model import adapter

    if adapter.is_adapter(folder):
        return adapter.merged_config(folder)
    file = folder / "config.json"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: no config.json in it, so it is no model folder") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: a JSON object is expected")
    return interchange.config_from_hf(values, str(file))


def load(cls: type[M], folder: Path, dtype: torch.dtype, device: torch.device, head: bool = True) -> M:
    """Build the model of a folder's config and fill it. See `CausalLM.load`.

    Args:
        head: false for a folder whose model has another head than the one that writes text (heads.py): that is left out.
    """
    from tinyseek.model import adapter, heads

    if adapter.is_adapter(folder):
        return adapter.load_merged(cls, folder, dtype, device)
    config = read_config(folder)
    if head and heads.is_classifier(folder):
        raise UserError(
            f"{folder}: is a classifier or a reward model, which writes no text; use it with tinyseek label"
        )
    files = weight_files(folder)
    has_mtp = (folder / "mtp" / "model.safetensors").is_file() or any(
        interchange.is_mtp(name, config) for name in files
    )
    if config.num_nextn_predict_layers and not has_mtp:
        config = config.model_copy(update={"num_nextn_predict_layers": 0})
    with torch.device("meta"):
        model = cls(config)
    headless = not head and not config.tie_word_embeddings
    if headless:
        model.lm_head = heads.no_words(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if headless:
        del shapes["lm_head.weight"]
    state = _read_gpt2(files) if config.model_type == "gpt2" else _read(config, shapes, files, folder)
    _check(shapes, state, config, folder)
    state = {
        name: tensor.to(device, torch.float32 if name.endswith(FLOAT32_ALWAYS) else dtype)
        for name, tensor in state.items()
    }
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    if headless:
        state["lm_head.weight"] = model.lm_head.weight.data
    model.load_state_dict(state, strict=True, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    for _, mixture in model.experts():  # buffers that are not on disk
        gate = mixture.gate
        gate.load_E = torch.zeros(config.n_routed_experts, device=device)
        if gate.e_score_correction_bias.device.type == "meta":
            gate.e_score_correction_bias = torch.zeros(config.n_routed_experts, device=device)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.numel() > 0)
    return model.eval()


def tensor(folder: Path, name: str) -> Tensor:
    """One tensor of a checkpoint, as it is stored.

    Raises:
        UserError: it is not there, or a file is damaged.
    """
    found = _tensors(weight_files(folder), [name])
    if name not in found:
        raise UserError(f"{folder}: the checkpoint lacks the tensor {name}")
    return found[name]


def weight_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it.

    Raises:
        UserError: no safetensors, a shard that is missing, or a file cut short.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = {str(name): folder / Path(file).name for name, file in weight_map.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index}: damaged ({error})") from None
    elif single.is_file():
        files = dict.fromkeys(_names_in(single), single)
    else:
        pickled = any(folder.glob("*.bin"))
        hint = (
            "it has pickled weights (*.bin), which are never read; convert them to safetensors"
            if pickled
            else "no weights to load"
        )
        raise UserError(f"{folder}: no model.safetensors in it; {hint}")
    mtp = folder / "mtp" / "model.safetensors"
    if mtp.is_file():
        files |= dict.fromkeys(_names_in(mtp), mtp)
    return files


def _names_in(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: cut short or damaged ({error}); copy or build it again") from None


def _tensors(files: Mapping[str, Path], names: Iterable[str]) -> dict[str, Tensor]:
    """Read tensors, one pass a file. Names that no file holds are left out."""
    by_file: dict[Path, list[str]] = {}
    for name in names:
        if name in files:
            by_file.setdefault(files[name], []).append(name)
    out: dict[str, Tensor] = {}
    for file, wanted in by_file.items():
        try:
            with safe_open(file, framework="pt") as tensors:
                held = set(tensors.keys())
                out |= {name: tensors.get_tensor(name) for name in wanted if name in held}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: missing, cut short or damaged ({error}); copy or build it again") from None
    return out


def _read(
    config: ModelConfig, shapes: Mapping[str, torch.Size], files: Mapping[str, Path], folder: Path
) -> dict[str, Tensor]:
    """Our tensors, each put together from the checkpoint's as soon as its parts are read."""
    state: dict[str, Tensor] = {}
    recipe = interchange.wanted(config, shapes)
    read = _tensors(files, (there for parts in recipe.values() for there, _ in parts))
    for name, parts in recipe.items():
        if name.endswith("e_score_correction_bias") and parts[0][0] not in read:
            state[name] = torch.zeros(shapes[name])  # transformers writes none for a fresh model
            continue
        for there, shape in parts:
            if there not in read:
                raise UserError(f"{folder}: the checkpoint lacks the tensor {there}")
            if read[there].shape != shape:
                raise UserError(
                    f"{folder}: {there} is {list(read[there].shape)}, but config.json makes it {list(shape)}"
                )
        if parts:
            state[name] = interchange.assemble(name, [read.pop(there) for there, _ in parts])
    return state


def _read_gpt2(files: Mapping[str, Path]) -> dict[str, Tensor]:
    return dict(interchange.gpt2_from_hf(_tensors(files, files)))


def _check(shapes: Mapping[str, torch.Size], state: Mapping[str, Tensor], config: ModelConfig, folder: Path) -> None:
    for name, shape in shapes.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name not in state:
            raise UserError(f"{folder}: the checkpoint lacks the tensor {name}")
        if state[name].shape != shape:
            raise UserError(f"{folder}: {name} is {list(state[name].shape)}, but config.json makes it {list(shape)}")


def save(model: CausalLM, folder: Path, dtype: torch.dtype | None = None, shard_bytes: int = SHARD_BYTES) -> None:
    """Write config.json, generation_config.json and the weights. See `write`.

    Args:
        dtype: of the weights on disk; None keeps the model's.
    """
    config = model.config
    dtype = dtype or model.lm_head.weight.dtype
    if any(".change.lora_" in name for name, _ in model.named_parameters()):
        raise ValueError("a model with an adapter is saved by adapter.save_adapter, or merged first (lora.merge)")
    tensors = dict(interchange.tensors_to_hf(config, model.state_dict()))
    ids = {key: value for key in ("bos_token_id", "eos_token_id") if (value := getattr(config, key)) is not None}
    write(tensors, interchange.config_to_hf(config, dtype), folder, dtype, shard_bytes, config, ids)


def write(
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
    folder: Path,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
    config: ModelConfig | None = None,
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder's files, each aside and renamed, config.json last.

    Args:
        tensors: under their published names.
        values: of config.json.
        dtype: of the weights on disk. Routing biases stay float32.
        shard_bytes: where a file is full and the next one begins.
        config: tells which tensors are multi-token prediction's; none: none are.
        generation: the content of generation_config.json; none: no such file.
    Raises:
        UserError: the folder cannot be written, or the disk is full; files that were there stay as they were.
    """
    main: dict[str, Tensor] = {}
    ahead: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        kept = tensor.detach().to("cpu", torch.float32 if name.endswith(FLOAT32_ALWAYS) else dtype).contiguous()
        (ahead if config is not None and interchange.is_mtp(name, config) else main)[name] = kept
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_weights(main, folder, shard_bytes)
        if ahead:
            (folder / "mtp").mkdir(exist_ok=True)
            write_file(ahead, folder / "mtp" / "model.safetensors")
        if generation is not None:
            write_text(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
        write_text(folder / "config.json", json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written ({error.strerror})") from None


def _write_weights(tensors: dict[str, Tensor], folder: Path, shard_bytes: int) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        write_file(shards[0], folder / "model.safetensors")
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
    (folder / "model.safetensors").unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_file(tensors: dict[str, Tensor], file: Path, header: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file aside and rename it; `header` is what its own header holds besides."""
    aside = file.with_name(file.name + ".tmp")
    try:
        save_file(tensors, aside, metadata={"format": "pt", **(header or {})})
        aside.chmod(0o666 & ~_umask())  # safetensors leaves the file to its owner alone; a server may be someone else
        aside.replace(file)
    except SafetensorError as error:
        raise UserError(f"{file}: cannot be written ({error})") from None
    finally:
        aside.unlink(missing_ok=True)
