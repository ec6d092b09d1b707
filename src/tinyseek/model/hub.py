"""Where models are: in a folder, in a run, pulled by name, or in a GGUF file. `find_model` takes all of these.

Pulled models lie in `$TINYSEEK_CACHE/models` (`~/.cache/tinyseek/models`): NAME for the known ones, ORG/NAME for those of the hub,
gguf/... for files that were given by their path. Each is a Hugging Face folder with a manifest that says where it came from.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.settings import suggestion
from tinyseek.text.download import cache_folder
from tinyseek.text.progress import progress

ADAPTER = "adapter_config.json"  # a folder with this and no config.json is an adapter: see adapter.py
_NOT_YET = (".work", ".partial", ".old")
ORG_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# Names worth knowing by heart, and what they stand for: the first comes from the package index, the others from the hub.
KNOWN = {
    "smollm2-135m": "SmolLM2 135M Instruct, English, 93 MB from the package index (a GGUF of 4 bits)",
    "smollm2-135m-full": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smollm2-360m": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
    "deepseek-r1-1.5b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
}


def models_home() -> Path:
    """The folder of pulled models."""
    return cache_folder() / "models"


def pulled() -> Iterator[str]:
    """The names of all pulled models."""
    home = models_home()
    for file in sorted([*home.glob("*/config.json"), *home.glob("*/*/config.json")]):
        folder = file.parent
        if not folder.name.endswith((".partial", ".old")) and folder.parent.name != "gguf":
            yield folder.relative_to(home).as_posix()


def find_model(name: str | Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """The folder of a model.

    Args:
        name: a model's or an adapter's folder; a run's, of which the model that was made last is meant, if it writes text;
            a .gguf file, which is converted once and kept; or the name of a pulled model.
        say: is told of what takes a while.
    Raises:
        UserError: there is no such model, with what to do.
    """
    path = Path(name)
    if (path / "config.json").is_file() or (path / ADAPTER).is_file():
        return path
    if path.is_dir():
        return _newest_in(path)
    if path.is_file():
        with path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise UserError(
                    f"{path}: is a file; give the folder of a model, the one that holds config.json, or a .gguf file"
                )
        return from_gguf(path, say)
    word = str(name)
    folder = models_home() / place(word)
    if _plain_name(word):
        artifact.recover(folder)
        if (folder / "config.json").is_file():
            return folder
    if word in KNOWN or (ORG_NAME.fullmatch(word) and not path.parent.exists()):
        raise UserError(f"{word}: is not here yet; fetch it with: tinyseek pull {word}")
    if word.startswith(("https://", "http://")):
        raise UserError(f"{word}: is an address; fetch it first: tinyseek pull {word}")
    known = [*KNOWN, *pulled()]
    hint = f"; or, for a model by name, {suggestion(word, known)}" if len(path.parts) == 1 else ""
    raise UserError(f"{word}: no such folder{hint}")


def place(name: str) -> str:
    """Where a model lies in the models' home: a short name's under the long one that it stands for."""
    stands_for = KNOWN.get(name, name)
    return stands_for if ORG_NAME.fullmatch(stands_for) else name


def _plain_name(word: str) -> bool:
    """NAME or ORG/NAME, which cannot lead out of the models' home."""
    return bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", word)) and ".." not in word


def _newest_in(run: Path) -> Path:
    files = [*run.glob("*/config.json"), *run.glob(f"*/{ADAPTER}")]
    inside = {file.parent: file.stat().st_mtime for file in files if not file.parent.name.endswith(_NOT_YET)}
    if not inside:
        raise UserError(
            f"{run}: no model in it (no config.json); give a model's folder, for example runs/quickstart/sft"
        )
    return max(inside, key=lambda made: (_writes_text(made), inside[made]))


def _writes_text(folder: Path) -> bool:
    """Whether a model's folder is of one that writes text, and not of one that gives classes or rewards (heads.py)."""
    file = folder / (ADAPTER if (folder / ADAPTER).is_file() else "config.json")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        named = [*(values.get("architectures") or ()), values.get("task_type")]
    except (OSError, ValueError, AttributeError, TypeError):
        return False
    return not any(str(name).endswith(("ForSequenceClassification", "SEQ_CLS")) for name in named)


# ---- GGUF files ------------------------------------------------------------------------------------------------------------------


def from_gguf(file: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """The Hugging Face folder of a GGUF file, made when its content is seen for the first time.

    The content is known by its SHA-256; a file whose path, size and time of change are those of an earlier call is not read again.

    Raises:
        UserError: a damaged file, or one of an architecture or a tokenizer that is not supported; a full disk.
    """
    home = models_home() / "gguf"
    facts = file.stat()
    seen = {"path": str(file.resolve()), "size": facts.st_size, "changed": facts.st_mtime_ns}
    for folder in home.glob("*/"):
        if _seen(folder) == seen and (folder / artifact.MANIFEST).is_file():
            return folder
    key = artifact.file_key(file)
    short = key.removeprefix("sha256:")[:12]
    stem = re.sub(r"[^\w.-]", "_", file.stem)[:60]
    same = [folder for folder in home.glob(f"*-{short}") if (folder / artifact.MANIFEST).is_file()]
    folder = same[0] if same else home / f"{stem}-{short}"
    artifact.recover(folder)
    if not (folder / artifact.MANIFEST).is_file():
        convert_gguf(file, folder, key, str(file), say)
    artifact.write_text(home / f"{folder.name}.json", json.dumps(seen) + "\n")
    return folder


def _seen(folder: Path) -> object:
    try:
        return json.loads(folder.with_name(f"{folder.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def convert_gguf(
    file: Path, folder: Path, key: str, source: str, say: Callable[[str], None], keep: bool = False
) -> None:
    """Make the folder of a GGUF file, aside and renamed.

    Args:
        key: what the manifest says of the source: its "sha256:...".
        source: where it came from, for people.
        keep: move the file itself into the folder, so that llama.cpp has it too.
    """
    from tinyseek.model.gguf.container import Reader
    from tinyseek.model.gguf.convert import gguf_to_folder

    with Reader(file) as reader:  # a file that is none is told before anything is made
        numbers = sum(_count(info.shape) for info in reader.tensors.values())
    say(f"{folder.name}: unpacking {numbers / 1e6:,.0f} million numbers")
    settings = {"source": source, "format": "gguf"}
    with artifact.writing(folder, "pull", settings, keys={"source": key}) as (partial, figures):
        with progress(f"unpacking {folder.name}", 4 * numbers) as update:
            config = gguf_to_folder(file, partial, say, lambda done: update(done, ""))
        figures |= {"parameters": numbers, "model_type": config.model_type}
        if keep:
            shutil.move(file, partial / file.name)


def _count(shape: tuple[int, ...]) -> int:
    numbers = 1
    for size in shape:
        numbers *= size
    return numbers
