"""A model's weights on the device and in the number format that an engine is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from tinyseek.engine.options import EngineSettings
from tinyseek.errors import UserError
from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer


def load_model(
    folder: str | Path, settings: EngineSettings, show: Callable[[CausalLM, Tokenizer], None] = lambda *_: None
) -> tuple[CausalLM, Tokenizer]:
    """The model of a folder and its tokenizer. On a CPU whose loops serve the model, only its matrices are in fewer bits.

    Args:
        show: is shown both while the weights are floats still.
    Raises:
        UserError: no model, a damaged one, a tokenizer that does not belong to it, or a device that is not there.
    """
    from tinyseek.engine.compiled import is_compiled
    from tinyseek.engine.quantize import pack

    device = choose_device(settings.device)
    tokenizer = Tokenizer.load(folder)
    short = settings.dtype == "bfloat16" or (settings.dtype == "auto" and device.type == "cuda")
    whole = torch.bfloat16 if short and device.type != "cpu" else torch.float32
    model = CausalLM.load(folder, whole, device).eval()
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens, its model {model.config.vocab_size}: they do not "
            "belong together; put back the tokenizer that the model was trained with"
        )
    show(model, tokenizer)
    if settings.quantize != "none":
        return pack(model, settings.quantize), tokenizer
    if short and is_compiled(model):
        return pack(model, "bfloat16"), tokenizer
    return (model.bfloat16() if short else model), tokenizer


def choose_device(asked: str) -> torch.device:
    """The device to compute on: "auto" is cuda where there is one, else cpu.

    Raises:
        UserError: a device that is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if asked == "auto":
        asked = "cuda" if there["cuda"] else "cpu"
    if not there[asked]:
        raise UserError(f"device={asked}: this machine (or this build of torch) has none; use device=auto")
    return torch.device(asked)
