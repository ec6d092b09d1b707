"""BERT and its kin (XLM-R, RoBERTa) as encoders of texts: every token sees its whole text, and nothing is padded.

Texts of any lengths lie one after the other as rows of one matrix; only attention goes text by text. `encoder_loops` is the same
network on bytes, for processors that multiply them.
Source: Devlin et al. 2018, arXiv 1810.04805; Liu et al. 2019, arXiv 1907.11692 (RoBERTa); Conneau et al. 2019, arXiv 1911.02116
(XLM-R).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyseek.errors import UserError
from tinyseek.model.weights import FolderWeights

FAMILIES = {"bert": "bert.", "roberta": "roberta.", "xlm-roberta": "roberta.", "camembert": "roberta."}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class EncoderConfig:
    """An encoder's shape.

    Attributes:
        positions: of how many tokens a text may be.
        first_position: of a text's first token; RoBERTa's and its kin count from the padding token's id on.
    """

    width: int
    layers: int
    heads: int
    inner: int
    positions: int
    eps: float
    activation: str = "gelu"
    first_position: int = 0

    @classmethod
    def read(cls, folder: Path) -> EncoderConfig:
        """From a checkpoint's config.json.

        Raises:
            UserError: no such file, another family, or a kind of positions or activation that is not known.
        """
        file = folder / "config.json"
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            family = str(values["model_type"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: no configuration of a model ({error})") from None
        if family not in FAMILIES:
            raise UserError(f"{file}: model_type is {family}; encoders of {', '.join(FAMILIES)} can be read")
        if (kind := values.get("position_embedding_type", "absolute")) != "absolute":
            raise UserError(f"{file}: position_embedding_type is {kind}; only absolute is known")
        activation = str(values.get("hidden_act", "gelu"))
        if activation not in _ACTIVATIONS:
            raise UserError(f"{file}: hidden_act is {activation}; known are {', '.join(_ACTIVATIONS)}")
        try:
            first = 0 if family == "bert" else int(values.get("pad_token_id", 1)) + 1
            return cls(
                width=int(values["hidden_size"]),
                layers=int(values["num_hidden_layers"]),
                heads=int(values["num_attention_heads"]),
                inner=int(values["intermediate_size"]),
                positions=int(values["max_position_embeddings"]) - first,
                eps=float(values.get("layer_norm_eps", 1e-12)),
                activation=activation,
                first_position=first,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: no configuration of an encoder ({error})") from None


class Encoder:
    """The network. Its weights do not learn.

    Args:
        config: its shape.
        weights: by the names of transformers' BertModel, without a family's prefix; each is asked for once.
        words: ids [N] to the words' vectors [N, D]; none to look them up in the weights.
    """

    def __init__(
        self, config: EncoderConfig, weights: Mapping[str, Tensor], words: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.config = config
        self._words = words
        self._table = None if words else weights["embeddings.word_embeddings.weight"]
        first = config.first_position
        self._positions = weights["embeddings.position_embeddings.weight"][first : first + config.positions]
        kinds = weights["embeddings.token_type_embeddings.weight"]
        self._positions = self._positions + kinds[0]  # the only kind of text that is used
        self._norm = _pair(weights, "embeddings.LayerNorm")
        self._layers = [_Layer(config, weights, f"encoder.layer.{layer}.") for layer in range(config.layers)]
        self._activation = _ACTIVATIONS[config.activation]

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> Encoder:
        """From a checkpoint of transformers, as float32.

        Raises:
            UserError: another family, no safetensors, or weights that do not fit the configuration.
        """
        config = EncoderConfig.read(folder)
        found = FolderWeights(folder)
        prefix = next(
            (p for p in ("", *FAMILIES.values()) if f"{p}embeddings.word_embeddings.weight" in found.shapes), None
        )
        if prefix is None:
            raise UserError(f"{folder}: its weights are no encoder's: embeddings.word_embeddings.weight is missing")
        try:
            return cls(config, _Read(found, prefix, device))
        except KeyError as error:
            raise UserError(f"{folder}: its weights lack {error}, which config.json speaks of") from None

    @torch.inference_mode()
    def forward(self, ids_N: Tensor, starts: list[int]) -> Tensor:
        """Hidden states after the last layer, float32 [N, D].

        Args:
            ids_N: the token ids of all texts, one after the other.
            starts: where each text begins, and at the end N; none longer than `config.positions`.
        """
        lengths = [last - first for first, last in itertools.pairwise(starts)]
        device = self._positions.device
        if self._table is not None:
            x_ND = F.embedding(ids_N.to(device), self._table)
        else:
            assert self._words is not None
            x_ND = self._words(ids_N).to(device)
        places = torch.cat([torch.arange(length) for length in lengths]).to(device)
        x_ND = F.layer_norm(x_ND + self._positions[places], x_ND.shape[-1:], *self._norm, self.config.eps)
        for layer in self._layers:
            x_ND = layer.forward(x_ND, lengths, self._activation)
        return x_ND


class _Layer:
    """Attention and MLP, each added and normed afterwards."""

    def __init__(self, config: EncoderConfig, weights: Mapping[str, Tensor], name: str) -> None:
        parts = [_pair(weights, f"{name}attention.self.{part}") for part in ("query", "key", "value")]
        self.qkv = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        self.out, self.out_norm = (_pair(weights, f"{name}attention.output.{part}") for part in ("dense", "LayerNorm"))
        self.up = _pair(weights, f"{name}intermediate.dense")
        self.down, self.down_norm = (_pair(weights, f"{name}output.{part}") for part in ("dense", "LayerNorm"))
        self.heads, self.eps = config.heads, config.eps
        wanted = {
            (3 * config.width, config.width): self.qkv,
            (config.inner, config.width): self.up,
            (config.width, config.inner): self.down,
        }
        for shape, (weight, _) in wanted.items():
            if tuple(weight.shape) != shape:
                raise UserError(f"{name}: a weight is {list(weight.shape)}; config.json says {list(shape)}")

    def forward(self, x_ND: Tensor, lengths: list[int], activation: Callable[[Tensor], Tensor]) -> Tensor:
        width = x_ND.shape[-1:]
        qkv_HN3K = F.linear(x_ND, *self.qkv).view(len(x_ND), 3, self.heads, -1).permute(2, 0, 1, 3)
        seen = []
        for text_HT3K in qkv_HN3K.split(lengths, 1):
            query, key, value = (part[None] for part in text_HT3K.unbind(2))
            seen.append(F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1).flatten(1))
        x_ND = F.layer_norm(x_ND + F.linear(torch.cat(seen), *self.out), width, *self.out_norm, self.eps)
        fed_ND = F.linear(activation(F.linear(x_ND, *self.up)), *self.down)
        return F.layer_norm(x_ND + fed_ND, width, *self.down_norm, self.eps)


class _Read(Mapping[str, Tensor]):
    """A folder's tensors as float32 on a device."""

    def __init__(self, found: FolderWeights, prefix: str, device: str | torch.device) -> None:
        self._found, self._prefix, self._device = found, prefix, device

    def __getitem__(self, name: str) -> Tensor:
        if self._prefix + name not in self._found.shapes:
            raise KeyError(name)
        return self._found.tensor(self._prefix + name).float().to(self._device)

    def __iter__(self) -> Any:
        return iter(self._found.shapes)

    def __len__(self) -> int:
        return len(self._found.shapes)


def _pair(weights: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]
