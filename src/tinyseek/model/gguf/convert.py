"""A whole file to a Hugging Face folder, and a folder to a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tinyseek.artifact import disk_trouble, write_text
from tinyseek.errors import UserError
from tinyseek.model import checkpoint, interchange
from tinyseek.model.config import ModelConfig
from tinyseek.model.gguf import quants
from tinyseek.model.gguf.container import Reader, TensorPlan, u32, write
from tinyseek.model.gguf.hyperparameters import config_from_gguf, keys_from_config
from tinyseek.model.gguf.names import Part, parts_from_gguf, parts_to_gguf
from tinyseek.model.gguf.vocabulary import check_vocabulary, keys_from_tokenizer, vocabulary_from_gguf
from tinyseek.model.weights import FolderWeights, write_weights

Say = Callable[[str], None]
Done = Callable[[int], None]
Format = Literal["float32", "float16", "bfloat16", "q8_0", "q4_0", "q4_1"]
FORMATS: dict[str, int] = {
    "float32": quants.F32,
    "float16": quants.F16,
    "bfloat16": quants.BF16,
    "q8_0": quants.Q8_0,
    "q4_0": quants.Q4_0,
    "q4_1": quants.Q4_1,
}
_FILE_TYPES = {"float32": 0, "float16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "bfloat16": 32}  # general.file_type
SMALL = 1_000_000_000  # parameters up to which dequantised weights are kept exactly, as float32


# ---- reading ---------------------------------------------------------------------------------------------------------------------


def gguf_to_folder(file: Path, folder: Path, say: Say, done: Done = lambda _: None) -> ModelConfig:
    """Fill `folder` with config.json, safetensors and tokenizer. Aside and renamed is the caller's matter.

    Quantised weights are kept as the float32 numbers that they stand for, so that nothing is lost; those of models of more than a
    billion parameters as bfloat16.

    Args:
        done: is told the bytes written so far.
    Raises:
        UserError: the file is damaged, or holds what tinyseek does not know.
    """
    with Reader(file) as reader:
        config = config_from_gguf(reader)
        vocabulary = vocabulary_from_gguf(reader, say)
        check_vocabulary(vocabulary, file)
        config = config.model_copy(
            update={
                "bos_token_id": vocabulary.bos_id,
                "eos_token_id": vocabulary.eos_ids[0] if len(vocabulary.eos_ids) == 1 else vocabulary.eos_ids or None,
            }
        )
        parts = parts_from_gguf(reader, config)
        _check_shapes(file, config, parts)
        dtype = _best_dtype(reader, parts)
        write_weights(
            folder,
            {name: part.shape for name, part in parts.items()},
            lambda name: torch.from_numpy(np.ascontiguousarray(parts[name].make())),
            dtype,
            done,
        )
    vocabulary.save(folder)
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    known = {key: value for key, value in ids.items() if value is not None}
    write_text(folder / "generation_config.json", json.dumps(known, indent=2) + "\n")
    write_text(folder / "config.json", json.dumps(interchange.config_to_hf(config, dtype), indent=2) + "\n")
    return config


def _check_shapes(file: Path, config: ModelConfig, parts: dict[str, Part]) -> None:
    """Hold what the tensors are against what the keys say they should be.

    Raises:
        UserError: one is missing, left over, or of another shape.
    """
    from tinyseek.model.transformer import CausalLM

    with torch.device("meta"):
        ours = {name: tensor.shape for name, tensor in CausalLM(config).state_dict().items()}
    wanted = {name: tuple(shape) for made in interchange.wanted(config, ours).values() for name, shape in made}
    for name, shape in wanted.items():
        if name not in parts and not name.endswith("e_score_correction_bias"):
            raise UserError(f"{file}: the tensor that becomes {name} is not in it")
        if name in parts and parts[name].shape != shape:
            raise UserError(f"{file}: {name} is {list(parts[name].shape)}; its keys make it {list(shape)}")
    extra = next((name for name in parts if name not in wanted), None)
    if extra:
        raise UserError(f"{file}: its keys leave no place for the tensor that becomes {extra}")


def _best_dtype(reader: Reader, parts: dict[str, Part]) -> torch.dtype:
    """The smallest that keeps every number, but for large quantised models."""
    kinds = {info.type for info in reader.tensors.values() if len(info.shape) > 1}
    if kinds <= {quants.BF16}:
        return torch.bfloat16
    if kinds <= {quants.F16}:
        return torch.float16
    total = sum(int(np.prod(part.shape, dtype=np.int64)) for part in parts.values())
    return torch.float32 if total <= SMALL or kinds == {quants.F32} else torch.bfloat16


# ---- writing ---------------------------------------------------------------------------------------------------------------------


def folder_to_gguf(folder: Path, file: Path, kind: Format, name: str, say: Say, done: Done = lambda _: None) -> None:
    """Write a model folder as one GGUF file, aside and renamed.

    Args:
        kind: of the matrices. Norms, biases and the router stay float32; in the 4-bit kinds what gives the output is Q8_0.
        name: of the model, for people.
        say: is told where llama.cpp will compute or cut text in another way than tinyseek.
        done: is told the bytes of tensors written so far.
    Raises:
        UserError: a family without a GGUF architecture, a damaged folder, a number that the format cannot hold, a full disk.
    """
    config = checkpoint.read_config(folder)
    metadata: dict[str, Any] = keys_from_config(config, say)
    metadata |= {
        "general.type": "model",
        "general.name": name,
        "general.file_type": u32(_FILE_TYPES[kind]),
        "general.quantization_version": u32(2),
    }
    metadata |= keys_from_tokenizer(folder, config.vocab_size, say)
    weights = FolderWeights(folder)
    given = {
        name: Part(shape, lambda name=name: weights.numbers(name))  # type: ignore[misc]
        for name, shape in weights.shapes.items()
        if name in weights.files
    }
    _check_folder(folder, config, given)
    plans = [
        _plan(folder, there, part, _type_of(there, part.shape, kind, config))
        for there, part in parts_to_gguf(config, given)
    ]
    aside = file.with_name(f"{file.name}.tmp")
    try:
        with aside.open("wb") as stream:
            write(stream, metadata, plans, done)
            stream.flush()
        aside.replace(file)
    except OSError as error:
        full = "the disk is full" if disk_trouble(error) else error.strerror
        raise UserError(f"{file}: cannot be written ({full}); nothing was changed") from None
    finally:
        aside.unlink(missing_ok=True)


def _check_folder(folder: Path, config: ModelConfig, given: dict[str, Part]) -> None:
    from tinyseek.model.transformer import CausalLM

    bare = config.model_copy(update={"num_nextn_predict_layers": 0})
    with torch.device("meta"):
        ours = {name: tensor.shape for name, tensor in CausalLM(bare).state_dict().items()}
    for made in interchange.wanted(bare, ours).values():
        for name, shape in made:
            if name not in given and not name.endswith("e_score_correction_bias"):
                raise UserError(f"{folder}: the checkpoint lacks the tensor {name}")
            if name in given and given[name].shape != tuple(shape):
                raise UserError(
                    f"{folder}: {name} is {list(given[name].shape)}, but config.json makes it {list(shape)}"
                )


def _type_of(name: str, shape: tuple[int, ...], kind: Format, config: ModelConfig) -> int:
    """The format of one tensor: llama.cpp wants vectors and the router in float32."""
    if len(shape) == 1 or "ffn_gate_inp" in name:
        return quants.F32
    chosen = FORMATS[kind]
    if kind in ("q4_0", "q4_1") and name == ("token_embd.weight" if config.tie_word_embeddings else "output.weight"):
        chosen = quants.Q8_0
    return chosen if shape[-1] % quants.BLOCKS[chosen].numbers == 0 else quants.F16


def _plan(folder: Path, name: str, part: Part, kind: int) -> TensorPlan:
    def data() -> quants.Bytes:
        numbers = part.make()
        if not np.isfinite(numbers).all():
            raise UserError(f"{folder}: {name} holds infinities or what is no number; the model is damaged")
        if kind == quants.F16 and np.abs(numbers).max(initial=0) > 65504:
            raise UserError(f"{folder}: {name} has numbers too large for float16; use dtype=bfloat16")
        return quants.quantize(numbers, kind)

    return TensorPlan(name, part.shape, kind, data)
