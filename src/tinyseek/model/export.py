"""A model for other programs: one GGUF file (llama.cpp, LM Studio, ...), a folder for Ollama, or a plain Hugging Face folder."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tinyseek import __version__, artifact
from tinyseek.errors import UserError
from tinyseek.model.hub import find_model, models_home
from tinyseek.model.merge import TOKENIZER_FILES, plain_folder
from tinyseek.settings import Settings
from tinyseek.text.progress import progress

if TYPE_CHECKING:
    from tinyseek.model.gguf.convert import Format

Say = Callable[[str], None]
Target = Literal["gguf", "ollama", "hf"]
TARGETS: tuple[Target, ...] = ("gguf", "ollama", "hf")
CONTEXT_AT_MOST = 8192  # tokens that a Modelfile asks for: Ollama sets all of its cache aside at once
# generation_config.json's names, and Ollama's.
_PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}


class ExportSettings(Settings):
    """Where to, and in which number format."""

    out: str | None = Field(
        None, description="the file or folder to write; by default named after the model, in the folder you are in"
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16", "q8_0", "q4_0", "q4_1"] = Field(
        "auto", description="numbers of the matrices; auto: 16 bits for gguf and ollama, as they are for hf"
    )


def export(model: str, to: Target, settings: ExportSettings, say: Say) -> Path:
    """Write a model for other programs, aside and renamed.

    Args:
        model: whatever `find_model` takes; an adapter is merged into its base first.
        say: is told where another program will do something else than tinyseek.
    Returns:
        The file (gguf) or folder.
    Raises:
        UserError: no such model; a family that the format cannot hold; a number format that does not go with it; a full disk.
    """
    found = find_model(model, say)
    name = _name_of(found)
    out = Path(settings.out or f"{name}-{to}")
    with plain_folder(found, out.parent, say) as folder:
        if to == "gguf":
            return _to_gguf(folder, name, settings, say)
        _refuse_itself(out, found)
        values = {"to": to, "dtype": settings.dtype}
        with artifact.writing(out, "export", values, inputs={"model": found}) as (partial, figures):
            if to == "ollama":
                figures["bytes"] = _fill_ollama(folder, name, partial, settings, say)
            else:
                figures["bytes"] = _fill_hf(folder, name, partial, settings)
    return out


def _name_of(folder: Path) -> str:
    """A name for people: NAME of a pulled model, RUN-STAGE of a run's."""
    full = folder.resolve()
    stage = full.name in ("pretrain", "sft", "dpo", "grpo", "ppo", "distill", "lora")
    name = f"{full.parent.name}-{full.name}" if stage and full.parent.name else full.name
    if full.parent == (models_home() / "gguf").resolve():
        name = re.sub(r"-[0-9a-f]{12}$", "", name)
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def _refuse_itself(out: Path, folder: Path) -> None:
    if out.resolve() == folder.resolve():
        raise UserError(f"{out}: is the model itself; give another out=")


def _stored(folder: Path) -> str:
    """The number format of a folder's weights, as its config.json says."""
    values = _values(folder / "config.json")
    return str(values.get("dtype") or values.get("torch_dtype") or "float32")


def _values(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    return values if isinstance(values, dict) else {}


# ---- gguf, ollama ----------------------------------------------------------------------------------------------------------------


def _format(folder: Path, settings: ExportSettings) -> Format:
    if settings.dtype != "auto":
        return settings.dtype
    return "bfloat16" if _stored(folder) == "bfloat16" else "float16"


def _to_gguf(folder: Path, name: str, settings: ExportSettings, say: Say) -> Path:
    kind = _format(folder, settings)
    out = Path(settings.out or f"{name}-{kind}.gguf")
    if out.is_dir():
        out = out / f"{name}-{kind}.gguf"
    if out.suffix != ".gguf":
        raise UserError(f"{out}: a GGUF file's name ends in .gguf; give out=NAME.gguf, or a folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out.parent}: cannot be made ({error.strerror})") from None
    _write_gguf(folder, out, kind, name, say)
    return out


def _write_gguf(folder: Path, out: Path, kind: Format, name: str, say: Say) -> None:
    from tinyseek.model.gguf.convert import folder_to_gguf

    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    with progress(f"writing {out.name}", 0) as update:
        folder_to_gguf(folder, out, kind, name, say, lambda done: update(done, f"of at most {size / 1e6:.0f} MB"))


def _fill_ollama(folder: Path, name: str, partial: Path, settings: ExportSettings, say: Say) -> int:
    file = partial / f"{name}.gguf"
    _write_gguf(folder, file, _format(folder, settings), name, say)
    artifact.write_text(partial / "Modelfile", modelfile(folder, name, say))
    return file.stat().st_size


def modelfile(folder: Path, name: str, say: Say) -> str:
    """What Ollama should know of a model beside its GGUF `name`.gguf: template, where answers end, length, how to draw."""
    from tinyseek.model.checkpoint import read_config
    from tinyseek.model.gguf.vocabulary import begins_with_bos
    from tinyseek.model.ollama import go_template
    from tinyseek.text.tokenizer import Tokenizer

    config, tokenizer = read_config(folder), Tokenizer.load(folder)
    lines = [
        f"# {name}, written by tinyseek {__version__}. In this folder: ollama create {name} -f Modelfile && ollama run {name}",
        f"FROM ./{name}.gguf",
    ]
    template = go_template(tokenizer, begins_with_bos(tokenizer, _values(folder / "tokenizer_config.json")), say)
    if template is None or '"""' in template:
        say(
            "the Modelfile is without TEMPLATE, so Ollama will guess one; write it yourself (docs.ollama.com/template), or serve "
            "the model with what uses its own template: tinyseek serve, or llama-server --jinja"
        )
        lines.append("# TEMPLATE is missing: the model's own could not be translated faithfully.")
    else:
        lines.append(f'TEMPLATE """{template}"""')
    if tokenizer.chat_template is not None:
        stops = [tokenizer.decode([index]) for index in sorted(tokenizer.stop_ids)]
        lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    lines.append(f"PARAMETER num_ctx {min(config.max_position_embeddings, CONTEXT_AT_MOST)}")
    drawn = _values(folder / "generation_config.json")
    if drawn.get("do_sample") is False:
        drawn = {"temperature": 0}
    for key, theirs in _PARAMETERS.items():
        if isinstance(drawn.get(key), int | float):
            lines.append(f"PARAMETER {theirs} {drawn[key]:g}")
    return "\n".join(lines) + "\n"


# ---- a plain Hugging Face folder -------------------------------------------------------------------------------------------------


def _fill_hf(folder: Path, name: str, partial: Path, settings: ExportSettings) -> int:
    """The folder without what is tinyseek's alone (manifest, multi-token prediction), its weights in the wanted format."""
    import torch

    from tinyseek.model.checkpoint import read_config
    from tinyseek.model.weights import FolderWeights, write_weights

    config = read_config(folder)
    if config.model_type == "tinyseek":
        raise UserError(f"{folder}: a model of free parts (model_type tinyseek) is known to no other program")
    stored = _stored(folder)
    dtype = (stored if stored in ("bfloat16", "float16") else "float32") if settings.dtype == "auto" else settings.dtype
    if dtype not in ("float32", "float16", "bfloat16"):
        raise UserError(
            f"dtype={dtype} is for gguf and ollama; a Hugging Face folder holds float32, float16 or bfloat16"
        )
    weights = FolderWeights(folder)
    shapes = {name: shape for name, shape in weights.shapes.items() if name in weights.files}
    kind: torch.dtype = getattr(torch, dtype)
    with progress(f"writing {name}", _total(shapes) * kind.itemsize) as update:
        write_weights(partial, shapes, weights.tensor, kind, lambda done: update(done, ""))
    values = {key: value for key, value in _values(folder / "config.json").items() if key != "tinyseek"}
    text = json.dumps(values | {"dtype": dtype, "torch_dtype": dtype}, indent=2, ensure_ascii=False)
    artifact.write_text(partial / "config.json", text + "\n")
    for file in (*TOKENIZER_FILES, "generation_config.json"):
        if (folder / file).is_file():
            shutil.copyfile(folder / file, partial / file)
    return sum(file.stat().st_size for file in partial.glob("*.safetensors"))


def _total(shapes: dict[str, tuple[int, ...]]) -> int:
    total = 0
    for shape in shapes.values():
        numbers = 1
        for size in shape:
            numbers *= size
        total += numbers
    return total
