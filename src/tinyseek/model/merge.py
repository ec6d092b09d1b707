"""An adapter and its base made into one plain model folder, for whoever knows no adapters."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.settings import Settings

Say = Callable[[str], None]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.json", "merges.txt")
_BESIDE = (*TOKENIZER_FILES, "generation_config.json")


class MergeSettings(Settings):
    """With what, and in which number format."""

    base: str | None = Field(None, description="the adapter's base model, where it is not found by itself")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="numbers of the weights; auto: as the base has them"
    )


def merge(source: str, out: Path, settings: MergeSettings, say: Say) -> Path:
    """Write the model that an adapter makes of its base, aside and renamed.

    Args:
        source: the adapter: whatever `find_model` takes.
    Raises:
        UserError: no adapter; no base, or another than it was trained on; a full disk.
    """
    from tinyseek.model import adapter
    from tinyseek.model.hub import find_model

    folder = find_model(source, say)
    if not adapter.is_adapter(folder):
        raise UserError(f"{folder}: is no adapter (no {adapter.CONFIG} in it); there is nothing to merge")
    base = adapter.find_base(folder) if settings.base is None else find_model(settings.base, say)
    for other in (folder, base):
        if out.resolve() == other.resolve():
            raise UserError(
                f"{out}: is {'the adapter' if other == folder else 'its base'}; give another folder to write"
            )
    with artifact.writing(out, "merge", settings.plain(), inputs={"adapter": folder, "model": base}) as (
        partial,
        figures,
    ):
        figures["parameters"] = fill(folder, base, partial, settings.dtype)
    return out


def fill(folder: Path, base: Path, target: Path, dtype: str) -> int:
    """Write the merged model's files into a folder; returns how many numbers it has."""
    import torch

    from tinyseek.model import adapter, heads
    from tinyseek.model.heads import SequenceClassifier
    from tinyseek.model.transformer import CausalLM

    model: CausalLM | SequenceClassifier
    if heads.read_head(folder) is not None:
        model = heads.load_adapter(folder, base=base)
    else:
        model = adapter.load_merged(CausalLM, folder, torch.float32, torch.device("cpu"), base)
    model.save(target, getattr(torch, stored(base) if dtype == "auto" else dtype))
    for name in _BESIDE:
        there = next((place / name for place in (folder, base) if (place / name).is_file()), None)
        if there is not None:
            shutil.copyfile(there, target / name)
    return sum(parameter.numel() for parameter in model.parameters())


def stored(base: Path) -> str:
    """The number format of a model's weights on disk."""
    import json

    from tinyseek.model import adapter

    while adapter.is_adapter(base):
        base = adapter.find_base(base)
    values = json.loads((base / "config.json").read_text(encoding="utf-8"))
    found = str(values.get("dtype") or values.get("torch_dtype") or "float32")
    return found if found in ("bfloat16", "float16") else "float32"


@contextmanager
def plain_folder(folder: Path, near: Path, say: Say) -> Iterator[Path]:
    """A model's folder as it is; of an adapter the merged model's, which is gone afterwards.

    Args:
        near: beside what the merged model is kept meanwhile.
    """
    from tinyseek.model import adapter

    if not adapter.is_adapter(folder):
        yield folder
        return
    base = adapter.find_base(folder)
    say(f"{folder}: is an adapter; merging it into its base {base} for this")
    near.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".merged-", dir=near) as place:
        merged = Path(place) / folder.resolve().name
        merged.mkdir()
        fill(folder, base, merged, "auto")
        yield merged
