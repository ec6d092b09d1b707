"""A folder as sentence-transformers writes it: an encoder, and what its JSON files say is made of the tokens' vectors.

Read are modules.json (Transformer, Pooling, Dense, Normalize), the pooling's modes, the prompts, the longest text. A folder without
modules.json is a plain checkpoint, whose tokens' mean is taken, as sentence-transformers itself does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyseek.errors import UserError
from tinyseek.knowledge.embed.base import Embedder
from tinyseek.knowledge.embed.windows import Windows, joined, unit
from tinyseek.model.encoder import Encoder
from tinyseek.model.weights import FolderWeights

PASS_TOKENS = 4096  # that go through the network together, at most
_QUERY, _PASSAGE = ("query",), ("document", "passage", "corpus")  # what prompts are called, by preference
# The pooling's modes by the names of older files, in the order in which those mean several to stand beside each other.
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Tanh": torch.tanh,
    "Identity": lambda x: x,
    "ReLU": torch.relu,
    "GELU": torch.nn.functional.gelu,
}

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Dense:
    """A layer after the pooling: activation(x @ weight.T + bias)."""

    weight_PQ: Tensor
    bias_P: Tensor | None
    activation: Callable[[Tensor], Tensor]

    def forward(self, x_SQ: Tensor) -> Tensor:
        """x [S, Q] to [S, P]."""
        return self.activation(torch.nn.functional.linear(x_SQ, self.weight_PQ, self.bias_P))


class FolderEmbedder(Embedder):
    """A sentence-transformers model on this disk. Texts that are too long for it go through in parts, weighted by their tokens."""

    def __init__(self, folder: Path, device: str | torch.device | None = None) -> None:
        """Read it.

        Args:
            device: where it runs; none for a GPU if there is one.
        Raises:
            UserError: no such model in the folder; a kind of module, pooling or network that is not known; damaged files.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        modules = _modules(folder)
        own = folder / modules.pop("Transformer")[0]
        self._network = Encoder.load(own, device)
        self._tokenizer = _tokenizer(own)
        limits = _read(own / "sentence_bert_config.json")
        self._lowercase = bool(limits.get("do_lower_case"))
        begin, end = _around(self._tokenizer, own)
        positions = self._network.config.positions
        size = min(int(limits.get("max_seq_length") or positions), positions)
        self._windows = Windows(begin, end, size, PASS_TOKENS)
        pooling = _read(folder / modules["Pooling"][0] / "config.json") if "Pooling" in modules else {}
        self._modes, self._with_prompt = _pooling(pooling, folder), bool(pooling.get("include_prompt", True))
        self._dense = [_dense(folder / path, device) for path in modules.get("Dense", ())]
        said = _read(folder / "config_sentence_transformers.json")
        self._query, self._passage = (_prompt(said, names) for names in (_QUERY, _PASSAGE))
        prompts = [len(ids) for ids in self._encode([self._query, self._passage])]
        self.limit = size - len(begin) - len(end) - max(prompts)
        if self.limit < 1:
            raise UserError(f"{folder}: takes texts of {size} tokens, too few for its own prompts")
        self.name = f"{folder.resolve().name}:{_digest(folder, own)}"
        self.width = self._vectors(["width"], "").shape[1]

    def queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._vectors(texts, self._query)

    def passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._vectors(texts, self._passage)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of the texts themselves; what is added to each is left out of `limit` too."""
        return [len(ids) for ids in self._encode(texts)]

    def _vectors(self, texts: Sequence[str], prompt: str) -> NDArray[np.float32]:
        if not texts:
            return np.empty((0, self.width), np.float32)
        sums: dict[int, Tensor] = {}
        weights = [0] * len(texts)
        skipped = 0 if self._with_prompt or not prompt else len(self._windows.begin) + len(self._encode([prompt])[0])
        for windows in self._windows.passes(self._contents(texts, prompt)):
            ids_N, starts_S = joined(windows)
            x_ND = self._network.forward(torch.from_numpy(ids_N), starts_S.tolist())
            for window, x_TD in zip(windows, x_ND.split(np.diff(starts_S).tolist()), strict=True):
                owner, is_first = window.owner, window.owner not in sums
                vector_P = _pooled(x_TD, self._modes, skipped if is_first else 0) * window.weight
                sums[owner] = vector_P if is_first else sums[owner] + vector_P
                weights[owner] += window.weight
        vectors_SP = torch.stack([sums[owner] / weight for owner, weight in enumerate(weights)])
        for dense in self._dense:
            vectors_SP = dense.forward(vectors_SP)
        return unit(vectors_SP.cpu().numpy())

    def _contents(self, texts: Sequence[str], prompt: str) -> Iterator[NDArray[np.int64]]:
        """Ids of each text with the prompt, a few at a time."""
        for first in range(0, len(texts), 64):
            for ids in self._encode([prompt + text for text in texts[first : first + 64]]):
                yield np.array(ids, np.int64)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids without special tokens. Texts are stripped, as sentence-transformers does."""
        lines = [text.encode("utf-8", "replace").decode().strip() for text in texts]
        if self._lowercase:
            lines = [line.lower() for line in lines]
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(lines, add_special_tokens=False)]


def _pooled(x_TD: Tensor, modes: Sequence[str], skipped: int) -> Tensor:
    """A text's vector, of its tokens'; the first ones are left out that are skipped."""
    counted_TD = x_TD[min(skipped, len(x_TD) - 1) :]
    count = len(counted_TD)
    vectors = []
    for mode in modes:
        if mode == "cls":
            vectors.append(counted_TD[0])
        elif mode == "lasttoken":
            vectors.append(counted_TD[-1])
        elif mode == "max":
            vectors.append(counted_TD.amax(0))
        elif mode == "weightedmean":
            weight_T = torch.arange(len(x_TD) - count + 1, len(x_TD) + 1, device=x_TD.device, dtype=x_TD.dtype)
            vectors.append(weight_T @ counted_TD / weight_T.sum())
        else:
            vectors.append(counted_TD.sum(0) / (count if mode == "mean" else count**0.5))
    return torch.cat(vectors)


# ---- what the files say


def _read(file: Path) -> Json:
    """A JSON object; nothing where there is no file.

    Raises:
        UserError: it cannot be read.
    """
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: no JSON object")
    return found


def _modules(folder: Path) -> dict[str, list[str]]:
    """Kinds of modules, and the folders in which each of a kind lies, in order.

    Raises:
        UserError: damaged, or with a kind that is not known.
    """
    file = folder / "modules.json"
    if not file.is_file():
        return {"Transformer": [""]}
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        listed = [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    found: dict[str, list[str]] = {}
    order = ("Transformer", "Pooling", "Dense", "Normalize")
    before = 0
    for kind, path in listed:
        if kind not in order or order.index(kind) < before or (kind != "Dense" and kind in found):
            kinds = ", ".join(kind for kind, _ in listed)
            raise UserError(
                f"{file}: modules {kinds}; known are Transformer, Pooling, Dense and Normalize, in this order"
            )
        if not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{file}: {path} lies outside of the folder")
        before = order.index(kind)
        found.setdefault(kind, []).append(path)
    if "Transformer" not in found:
        raise UserError(f"{file}: no Transformer among its modules")
    return found


def _tokenizer(folder: Path) -> tokenizers.Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"{file} is missing; save the model's tokenizer there in its fast form")
    try:
        found = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{file}: no tokenizer ({error})") from None
    found.no_padding()
    found.no_truncation()
    return found


def _around(tokenizer: tokenizers.Tokenizer, folder: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens before and after every text."""
    whole, alone = tokenizer.encode("a").ids, tokenizer.encode("a", add_special_tokens=False).ids
    for first in range(len(whole) - len(alone) + 1):
        if whole[first : first + len(alone)] == alone:
            return tuple(whole[:first]), tuple(whole[first + len(alone) :])
    raise UserError(f"{folder / 'tokenizer.json'}: does more to a text than to put tokens around it")


def _pooling(values: Json, folder: Path) -> tuple[str, ...]:
    """Modes whose vectors stand beside each other."""
    said = values.get("pooling_mode")
    if said is None:
        said = [_MODES.get(key, key) for key, on in values.items() if key.startswith("pooling_mode_") and on]
        said.sort(key=lambda mode: list(_MODES.values()).index(mode) if mode in _MODES.values() else -1)
    modes = [str(mode) for mode in ([said] if isinstance(said, str) else said)] or ["mean"]
    for mode in modes:
        if mode not in _MODES.values():
            raise UserError(f"{folder}: pooling {mode} is not known; known are {', '.join(_MODES.values())}")
    return tuple(modes)


def _dense(folder: Path, device: torch.device) -> Dense:
    values = _read(folder / "config.json")
    name = str(values.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise UserError(
            f"{folder / 'config.json'}: activation {name} is not known; known are {', '.join(_ACTIVATIONS)}"
        )
    found = FolderWeights(folder)
    if "linear.weight" not in found.shapes:
        raise UserError(f"{folder}: its weights lack linear.weight")
    bias = found.tensor("linear.bias").float().to(device) if "linear.bias" in found.shapes else None
    return Dense(found.tensor("linear.weight").float().to(device), bias, _ACTIVATIONS[name])


def _prompt(said: Json, names: Sequence[str]) -> str:
    """What the files put in front of such a text."""
    prompts = said.get("prompts") or {}
    for name in (*names, said.get("default_prompt_name")):
        if isinstance(prompts.get(name), str):
            return str(prompts[name])
    return ""


def _digest(folder: Path, transformer: Path) -> str:
    """What tells this model from another in a folder of the same name: its settings, and the beginnings of its weights."""
    digest = hashlib.sha256()
    for file in sorted({*folder.glob("*.json"), *folder.glob("*/config.json"), *transformer.glob("*.safetensors")}):
        with file.open("rb") as opened:
            digest.update(file.name.encode() + opened.read(1 << 20))
    return digest.hexdigest()[:12]
