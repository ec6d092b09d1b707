"""An adapter on disk: the folder that PEFT writes and reads, with its base's identity in it.

    adapter_config.json  adapter_model.safetensors      and, from a training stage, the tokenizer and a manifest

The safetensors file's own header records the base (name, where it lay, a hash of its weights) and our settings; PEFT passes over
it. What PEFT cannot hold is never written so that it would be dropped in silence (docs/post-training.md): such a folder names a
`peft_type` of its own, at which PEFT stops.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tinyseek.artifact import write_text
from tinyseek.errors import UserError
from tinyseek.model import interchange, lora, peft
from tinyseek.model.lora_config import LoraConfig
from tinyseek.model.peft import Part

if TYPE_CHECKING:
    from tinyseek.model.config import ModelConfig
    from tinyseek.model.transformer import CausalLM

M = TypeVar("M", bound="CausalLM")

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OURS = "TINYSEEK_LORA"  # the peft_type of what PEFT cannot hold
_HEADER = "tinyseek"


@dataclass(frozen=True)
class Base:
    """Which model an adapter belongs to."""

    name: str  # for people
    path: str  # where it lay, from the root
    hash: str  # `fingerprint`; empty where the adapter is not ours


@dataclass
class Adapter:
    """An adapter as read: changes and whole tensors by our names."""

    folder: Path
    base: Base
    config: LoraConfig
    parts: dict[str, Part] = field(default_factory=dict)  # by the name of the matrix that is changed
    whole: dict[str, Tensor] = field(default_factory=dict)  # parameters that were trained whole


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter rather than a model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


@torch.no_grad()
def fingerprint(model: CausalLM) -> str:
    """A hash of a float model's weights, the same whether they are held in 32 or 16 bits, in one file or in many.

    Every number enters as bfloat16, under its published name; multi-token prediction, which adapters leave alone, does not.
    """
    config = model.config
    tensors = {
        name: tensor
        for name, tensor in interchange.tensors_to_hf(config, model.state_dict())
        if not interchange.is_mtp(name, config)
    }
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        bits = tensors[name].detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
        digest.update(f"{name} {list(bits.shape)}\n".encode())
        digest.update(bits.numpy().data.cast("B") if bits.numel() else b"")
    return f"blake2b:{digest.hexdigest()}"


# ---- writing ---------------------------------------------------------------------------------------------------------------------


def unfit_for_peft(model: CausalLM) -> str:
    """Why PEFT could not hold a model's changes; empty where it can."""
    return peft.unfit(model.config.model_type, {name: part_of(change) for name, change in lora.changes(model).items()})


def part_of(change: lora.Change) -> Part:
    """A change's tensors as they are."""
    magnitude = change.lora_magnitude
    return Part(
        change.lora_A.detach(),
        change.lora_B.detach(),
        None if magnitude is None else magnitude.detach(),
        change.scale,
    )


def save_adapter(
    model: CausalLM,
    folder: Path,
    config: LoraConfig,
    base: Base,
    near: Path | None = None,
    task: str = "CAUSAL_LM",
    beside: Mapping[str, Tensor] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """Write a model's changes, and the parameters that are trained whole, as an adapter folder.

    Args:
        config: what the changes were made with.
        base: the model that they belong to.
        near: the folder beside which the adapter will finally lie, if it is written elsewhere first; the way from there to the base
            is recorded too, so that a run's folder can be moved as a whole.
        task: PEFT's name of what the model is for.
        beside: tensors that are no part of the model and are kept whole: a head of its own.
        extra: what else the file's header should record (`read_extra`), plain JSON.
    Returns:
        Why PEFT cannot read it, or "" where it can.
    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    parts = {name: part_of(change) for name, change in lora.changes(model).items()}
    if not parts:
        raise ValueError("nothing is changed in this model; lay a change on it first (lora.add_lora)")
    whole = {
        name: parameter.detach()
        for name, parameter in lora.trained(model)
        if ".change.lora_" not in f".{name}" and not name.rpartition(".")[2].startswith("lora_")
    }
    whole |= beside or {}
    why = peft.unfit(model.config.model_type, parts)
    values: dict[str, Any] = {"peft_type": OURS if why else "LORA", "base_model_name_or_path": base.path or base.name}
    if why:
        tensors = peft.own_tensors(parts)
        values |= {"r": config.rank, "lora_alpha": config.alpha, "task_type": task, "why_not_peft": why}
    else:
        tensors, rest = peft.to_peft(model.config, set(lora.places(model)), parts, config)
        values |= rest | {"task_type": task}
    values["modules_to_save"] = sorted({name.rpartition(".")[0] for name in whole}) or None
    tensors |= {f"{peft.PREFIX}{name}": tensor for name, tensor in whole.items()}
    header = {
        "base": {"name": base.name, "path": base.path, "hash": base.hash, "beside": _way(base.path, near or folder)},
        "lora": config.plain(),
        "scales": {name: part.scale for name, part in parts.items()},
        **(extra or {}),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        from tinyseek.model.checkpoint import write_file

        plain = {name: tensor.to("cpu").contiguous().clone() for name, tensor in tensors.items()}
        write_file(plain, folder / WEIGHTS, {_HEADER: json.dumps(header)})
        write_text(folder / CONFIG, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written ({error.strerror})") from None
    return why


def _way(path: str, folder: Path) -> str:
    """From beside `folder` to the base, where there is a way."""
    if not path or not Path(path).is_absolute():
        return ""
    try:
        return os.path.relpath(path, folder.resolve().parent)
    except ValueError:  # another drive
        return ""


# ---- reading ---------------------------------------------------------------------------------------------------------------------


def read_adapter(folder: Path, config: ModelConfig) -> Adapter:
    """An adapter of ours or of PEFT's.

    Args:
        config: its base's.
    Raises:
        UserError: damaged files; a kind of adapter that is not LoRA; a part of PEFT's LoRA that is not known here.
    """
    values, header = _read_config(folder), _read_header(folder)
    tensors = _read_tensors(folder)
    base = _base_of(values, header)
    scales = header.get("scales") or {}
    where = str(folder / CONFIG)
    if values.get("peft_type") == OURS:
        parts, rest = peft.from_own(tensors, scales)
    elif values.get("peft_type") == "LORA":
        parts, rest = peft.from_peft(config, values, tensors, where)
    else:
        raise UserError(f"{where}: an adapter of the kind {values.get('peft_type')}; LoRA and its DoRA are known here")
    if header.get("lora"):
        settings = LoraConfig.read(header["lora"], where)
    else:
        settings = LoraConfig.read(
            {
                "rank": values.get("r") or 8,
                "alpha": values.get("lora_alpha") or 8,
                "rslora": bool(values.get("use_rslora")),
                "dora": bool(values.get("use_dora")),
                "dropout": values.get("lora_dropout") or 0.0,
                "targets": sorted(parts),
            },
            where,
        )
    return Adapter(folder, base, settings, parts, rest)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: no {CONFIG} in it, so it is no adapter") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / CONFIG}: cannot be read as JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{folder / CONFIG}: a JSON object is expected")
    return values


def _read_header(folder: Path) -> dict[str, Any]:
    file = folder / WEIGHTS
    if not file.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        hint = (
            "it has pickled weights, which are never read; save them as safetensors" if pickled else "no weights in it"
        )
        raise UserError(f"{folder}: no {WEIGHTS}; {hint}")
    try:
        with safe_open(file, framework="pt") as tensors:
            found = json.loads((tensors.metadata() or {}).get(_HEADER) or "{}")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file}: cut short or damaged ({error}); copy it again") from None
    return found if isinstance(found, dict) else {}


def read_extra(folder: Path) -> dict[str, Any]:
    """What the header of an adapter's file records; empty where it is not ours.

    Raises:
        UserError: a damaged file.
    """
    return _read_header(folder)


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS}: cut short or damaged ({error}); copy it again") from None


def _base_of(values: Mapping[str, Any], header: Mapping[str, Any]) -> Base:
    recorded = header.get("base") or {}
    path = str(values.get("base_model_name_or_path") or "")
    return Base(str(recorded.get("name") or path), path, str(recorded.get("hash") or ""))


def find_base(folder: Path) -> Path:
    """The folder of the model that an adapter belongs to: where the adapter says that it lies, or a pulled model of that name.

    Raises:
        UserError: it is not there, with what to do.
    """
    from tinyseek.model.hub import find_model

    values, header = _read_config(folder), _read_header(folder)
    base = _base_of(values, header)
    beside = str((header.get("base") or {}).get("beside") or "")
    for place in ((folder.resolve().parent / beside) if beside else None, Path(base.path) if base.path else None):
        if place is not None and ((place / "config.json").is_file() or is_adapter(place)):
            return place.resolve()
    with contextlib.suppress(UserError):
        if base.path:
            return find_model(base.path)
    name = base.path or base.name
    named = f"its base model {name} is not here" if name else "it does not say which model it belongs to"
    raise UserError(
        f"{folder}: is an adapter, and {named}. Fetch it (tinyseek pull), or write where it lies into {CONFIG} "
        "(base_model_name_or_path)"
    )


# ---- laying one on ---------------------------------------------------------------------------------------------------------------


def base_of(folder: Path) -> Base:
    """Which model an adapter belongs to, as it says itself."""
    return _base_of(_read_config(folder), _read_header(folder))


def check_base(folder: Path, hash: str, where: str) -> None:
    """See that an adapter belongs to a model; one that is not ours says nothing of it, and passes.

    Args:
        hash: the model's fingerprint, taken while it held floats.
        where: the model, for people.
    Raises:
        UserError: it was made for another.
    """
    base = base_of(folder)
    if base.hash and base.hash != hash:
        raise UserError(
            f"{folder}: was trained on {base.name} ({_short(base.hash)}), and the weights in {where} are others "
            f"({_short(hash)}); on them it would do something else. Give it its own base, or train it anew on this one"
        )


def _short(hash: str) -> str:
    return hash.partition(":")[2][:12]


@torch.no_grad()
def lay_on(model: CausalLM, adapter: Adapter) -> None:
    """Lay an adapter's changes on a model, frozen, and put its whole tensors in.

    Raises:
        UserError: a change of something that the model does not have, or of another shape.
    """
    lora.untie(model, {name.rpartition(".")[0] for name in adapter.whole})
    parameters = dict(model.named_parameters())
    for name, tensor in adapter.whole.items():
        if name == "score.weight":
            raise UserError(f"{adapter.folder}: is a classifier's or a reward model's, which writes no text")
        parameter = parameters.get(name)
        if parameter is None or parameter.shape != tensor.shape:
            there_is = "the model does not have" if parameter is None else f"is {list(parameter.shape)} in the model"
            raise UserError(
                f"{adapter.folder}: holds {name} {list(tensor.shape)}, which {there_is}; it is for another model"
            )
        parameter.copy_(tensor)
    there = lora.places(model)
    for name, part in adapter.parts.items():
        place = there.get(name)
        if place is None:
            raise UserError(
                f"{adapter.folder}: changes {name}, which this model does not have; it is another kind of model's"
            )
        change = place.change
        if change is None:
            change = lora.Change(place.shape, part.rank, part.scale, dora=part.magnitude is not None)
            _check(adapter, name, part, change)
            change.requires_grad_(False)
            lora.put(place, change.to(model.device))
        _check(adapter, name, part, change)
        change.lora_A.copy_(part.a)
        change.lora_B.copy_(part.b)
        if change.lora_magnitude is not None and part.magnitude is not None:
            change.lora_magnitude.copy_(part.magnitude)


def _check(adapter: Adapter, name: str, part: Part, change: lora.Change) -> None:
    pairs = ((part.a, change.lora_A), (part.b, change.lora_B), (part.magnitude, change.lora_magnitude))
    for ours, theirs in pairs:
        if ours is None or theirs is None:
            if ours is not theirs:
                raise UserError(f"{adapter.folder}: {name} is changed by DoRA in one and by LoRA in the other")
        elif ours.shape != theirs.shape:
            raise UserError(
                f"{adapter.folder}: the change of {name} is {list(ours.shape)}, but this model's would be {list(theirs.shape)}; "
                "it is for another model"
            )


def load_adapter(cls: type[M], folder: Path, dtype: torch.dtype, device: torch.device, base: Path | None = None) -> M:
    """An adapter on its base, unmerged.

    Raises:
        UserError: no base, another base than the adapter was trained on, or a damaged adapter.
    """
    where = base or find_base(folder)
    model = cls.load(where, dtype, device)
    if base_of(folder).hash:
        check_base(folder, fingerprint(model), str(where))
    lay_on(model, read_adapter(folder, model.config))
    return model.eval()


def load_merged(cls: type[M], folder: Path, dtype: torch.dtype, device: torch.device, base: Path | None = None) -> M:
    """The plain model that an adapter makes of its base. See `load_adapter`."""
    model = load_adapter(cls, folder, dtype, device, base)
    lora.merge(model)
    return model.requires_grad_(True).eval()


def merged_config(folder: Path) -> ModelConfig:
    """The config of `load_merged`, without reading the weights: the base's, untied where either end of the model was trained."""
    from tinyseek.model.checkpoint import read_config

    config = read_config(find_base(folder))
    with safe_open(folder / WEIGHTS, framework="pt") as tensors:
        held = {name.removeprefix(peft.PREFIX) for name in tensors.keys()}  # noqa: SIM118  (no mapping)
    ends = {"lm_head.weight", "model.embed_tokens.weight", "transformer.wte.weight"} & held
    return config.model_copy(update={"tie_word_embeddings": False}) if ends else config
