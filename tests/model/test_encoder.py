"""The encoder against transformers' own BERT, RoBERTa and XLM-R, and its form on bytes against float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tinyseek.errors import UserError
from tinyseek.model.encoder import Encoder, EncoderConfig

SHAPE = {
    "vocab_size": 91,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
}
FAMILIES = {
    "bert": (transformers.BertConfig, transformers.BertModel),
    "roberta": (transformers.RobertaConfig, transformers.RobertaModel),
    "xlm-roberta": (transformers.XLMRobertaConfig, transformers.XLMRobertaModel),
}


def reference(family: str, **changes: Any) -> Any:
    """A random model of transformers whose norms and biases are random too."""
    torch.manual_seed(3)
    config, kind = FAMILIES[family]
    model = kind(config(**{**SHAPE, "pad_token_id": 1, **changes})).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    return model


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_equals_transformers_text_by_text_without_padding(family: str, activation: str, tmp_path: Path) -> None:
    model = reference(family, hidden_act=activation)
    model.save_pretrained(tmp_path)
    encoder = Encoder.load(tmp_path)
    lengths = [1, 7, 38, 2, 38, 15]
    assert encoder.config.positions == (40 if family == "bert" else 38)
    texts = [torch.randint(2, 91, (length,)) for length in lengths]
    starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    hidden = encoder.forward(torch.cat(texts), starts)
    for text, first in zip(texts, starts, strict=False):
        expected = model(text[None]).last_hidden_state[0]
        assert torch.allclose(hidden[first : first + len(text)], expected, atol=1e-5)


def test_reads_weights_of_a_model_with_a_head(tmp_path: Path) -> None:
    """Masked language models are saved with a prefix before each name, and in half precision often."""
    torch.manual_seed(4)
    model = transformers.XLMRobertaForMaskedLM(transformers.XLMRobertaConfig(**SHAPE)).half().eval()
    model.save_pretrained(tmp_path)
    ids = torch.randint(2, 91, (9,))
    expected = model.float().roberta(ids[None]).last_hidden_state[0]
    assert torch.allclose(Encoder.load(tmp_path).forward(ids, [0, 9]), expected, atol=1e-5)


def test_what_cannot_be_read_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: no configuration"):
        Encoder.load(tmp_path)
    reference("bert").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    for change, line in (
        ({"model_type": "t5"}, "model_type is t5; encoders of bert, roberta"),
        ({"hidden_act": "mish"}, "hidden_act is mish; known are gelu"),
        ({"position_embedding_type": "relative_key"}, "only absolute is known"),
        ({"hidden_size": "many"}, "no configuration of an encoder"),
        ({"num_hidden_layers": 4}, r"its weights lack .*encoder\.layer\.3"),
        ({"intermediate_size": 64}, r"a weight is \[80, 48\]; config.json says \[64, 48\]"),
    ):
        file.write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=line):
            Encoder.load(tmp_path)
    file.write_text(json.dumps(config))
    weights = load_file(tmp_path / "model.safetensors")
    save_file({f"decoder.{name}": weight for name, weight in weights.items()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no encoder's"):
        Encoder.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="damaged"):
        Encoder.load(tmp_path)


# ---- on bytes


numba = pytest.importorskip("numba")
from tinyseek.model import encoder_loops as loops  # noqa: E402
from tinyseek.model.encoder_intrinsics import GROUP, LANES, TILE  # noqa: E402

bytes_only = pytest.mark.skipif(not LANES, reason="this processor does not multiply bytes")


@numba.njit
def all_dots(codes: Any, scales: Any, matrix: Any, out: Any) -> None:
    for panel in range(matrix[0].shape[0]):
        for n in range(0, codes.shape[0], TILE):
            loops.wide.dots(codes, scales, n, matrix[0], matrix[1], matrix[2], matrix[3], panel, out, n, GROUP * panel)


@numba.njit
def all_bytes(x: Any, codes: Any, scales: Any, gelu: bool) -> None:
    for n in range(x.shape[0]):
        for g in range(scales.shape[1]):
            if gelu:
                scales[n, g] = loops.wide.gelu_to_bytes(x, n, GROUP * g, codes, n, GROUP * g)
            else:
                scales[n, g] = loops.wide.to_bytes(x, n, GROUP * g, codes, n, GROUP * g)


@numba.njit
def one_tile(a: Any, b: Any, out: Any) -> None:
    loops.wide.floats(a, 1, b.shape[0], b, 0, 5, out, 0, 0)


@numba.njit
def soften(x: Any) -> Any:
    return loops.wide.soften(x, 1, x.shape[1])


def test_numbers_as_bytes() -> None:
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((7, 96)) * 10.0 ** rng.integers(-20, 20, (7, 1))).astype(np.float32)
    x[3] = 0
    codes, scales = np.zeros((7, 96), np.uint8), np.zeros((7, 3), np.float32)
    for gelu in (False, True):
        all_bytes(x, codes, scales, gelu)
        exact = torch.from_numpy(x).double()
        wanted = (torch.nn.functional.gelu(exact) if gelu else exact).numpy().reshape(7, 3, 32)
        greatest = np.abs(wanted).max(-1)
        found = (codes.reshape(7, 3, 32) - 128.0) * scales[..., None]
        assert codes.min() >= 1
        assert np.allclose(scales * 127, greatest, rtol=1e-5, atol=1e-6)
        assert (
            np.abs(found - wanted) <= greatest[..., None] / 253 + 1e-6
        ).all()  # half a step, and the GELU's own error


def test_a_softmax_in_powers_of_two() -> None:
    x = np.random.default_rng(6).standard_normal((3, 64)).astype(np.float32) * 40
    wanted = np.exp2((x[1] - x[1].max()).astype(np.float64))
    total = soften(x)
    assert np.allclose(x[1], wanted, rtol=1e-6, atol=2**-99)
    assert np.isclose(total, wanted.sum(), rtol=1e-6)


def test_a_tile_of_floats() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.standard_normal((9, 70)).astype(np.float32), rng.standard_normal((70, 40)).astype(np.float32)
    out = np.empty((TILE, GROUP), np.float32)
    one_tile(a, b, out)
    assert np.allclose(out, a[1 : 1 + TILE].astype(np.float64) @ b[:, 5 : 5 + GROUP], atol=1e-4)


@bytes_only
def test_products_of_bytes_are_exact_but_for_their_last_sum() -> None:
    rng = np.random.default_rng(8)
    for rows, inputs, outputs in ((TILE, 32, 32), (2 * TILE, 384, 64), (TILE, 1536, 96)):
        weights = rng.integers(-8, 8, (outputs, inputs)).astype(np.int8)
        scale = rng.random((outputs, inputs // GROUP)).astype(np.float32)
        bias = rng.standard_normal(outputs).astype(np.float32)
        stacked = loops.matrix(weights[None], scale[None], bias[None])
        codes = rng.integers(1, 256, (rows, inputs)).astype(np.uint8)
        codes[0], weights_are_least = 255, (weights == -8).any()
        assert weights_are_least
        scales = rng.random((rows, inputs // GROUP)).astype(np.float32)
        out = np.empty((rows, outputs), np.float32)
        all_dots(codes, scales, tuple(part[0] for part in stacked), out)
        x = (codes.reshape(rows, -1, GROUP) - 128.0) * scales[..., None]
        w = weights.reshape(outputs, -1, GROUP) * scale[..., None].astype(np.float64)
        wanted = x.reshape(rows, -1) @ w.reshape(outputs, -1).T + bias
        assert np.abs(out - wanted).max() <= 1e-5 * np.abs(wanted).max()


def small(rng: Any, layers: int = 2, width: int = 64, inner: int = 128, words: int = 50) -> tuple[Any, Encoder]:
    """A random network in both forms."""
    tensors: dict[str, torch.Tensor] = {}

    def matrix(name: str, outputs: int, inputs: int, factor: float = 1.0) -> tuple[Any, Any, Any]:
        codes = rng.integers(-8, 8, (outputs, inputs)).astype(np.int8)
        scale = (rng.random((outputs, inputs // GROUP)) * 0.05).astype(np.float32)
        bias = rng.standard_normal(outputs).astype(np.float32)
        whole = (codes.reshape(outputs, -1, GROUP) * scale[..., None]).reshape(codes.shape)
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = torch.tensor(whole), torch.tensor(bias)
        return codes, scale * np.float32(factor), bias * np.float32(factor)

    def norm(name: str) -> Any:
        pair = 1 + 0.1 * rng.standard_normal((2, width)).astype(np.float32)
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = torch.tensor(pair[0]), torch.tensor(pair[1] - 1)
        return np.stack([pair[0], pair[1] - 1])

    kinds: dict[str, list[Any]] = {"qkv": [], "out": [], "up": [], "down": []}
    norms: dict[str, list[Any]] = {"out": [], "down": []}
    for layer in range(layers):
        name = f"encoder.layer.{layer}."
        factors = {"query": loops.QUERY_FACTOR, "key": 1.0, "value": 1.0}
        parts = [matrix(f"{name}attention.self.{p}", width, width, factor) for p, factor in factors.items()]
        kinds["qkv"].append([np.concatenate(part) for part in zip(*parts, strict=True)])
        kinds["out"].append(matrix(f"{name}attention.output.dense", width, width))
        kinds["up"].append(matrix(f"{name}intermediate.dense", inner, width))
        kinds["down"].append(matrix(f"{name}output.dense", width, inner))
        norms["out"].append(norm(f"{name}attention.output.LayerNorm"))
        norms["down"].append(norm(f"{name}output.LayerNorm"))
    stacked = {kind: loops.matrix(*(np.stack(part) for part in zip(*of, strict=True))) for kind, of in kinds.items()}
    table = rng.integers(0, 256, (words, width // GROUP, 18)).astype(np.uint8)
    table[..., :2] = np.float16(0.01).reshape(1).view(np.uint8)
    table.flags.writeable = False  # as a mapped file is: numba compiles for that
    positions = rng.standard_normal((40, width)).astype(np.float32)
    tensors["embeddings.position_embeddings.weight"] = torch.tensor(positions)
    tensors["embeddings.token_type_embeddings.weight"] = torch.zeros(1, width)
    weights = loops.Weights(
        table, positions, norm("embeddings.LayerNorm"), stacked["qkv"], stacked["out"], np.stack(norms["out"]),
        stacked["up"], stacked["down"], np.stack(norms["down"]), np.float32(1e-12),
    )  # fmt: skip

    def rows(ids: torch.Tensor) -> torch.Tensor:
        out = np.empty((len(ids), width), np.float32)
        loops.gather(table, ids.numpy(), 0, len(ids), out)
        nibbles = np.concatenate([table[..., 2:] & 15, table[..., 2:] >> 4], -1).astype(np.float64) - 8
        assert np.allclose(out, (nibbles * np.float16(0.01)).reshape(words, width)[ids.numpy()])
        return torch.from_numpy(out)

    return weights, Encoder(EncoderConfig(width, layers, width // GROUP, inner, 40, 1e-12), tensors, rows)


@bytes_only
def test_the_network_on_bytes_is_the_network() -> None:
    rng = np.random.default_rng(9)
    weights, encoder = small(rng)
    for lengths in ([1], [40], [5, 1, 33, 40, 2], [40] * 15, list(range(1, 41))):
        starts = np.concatenate([[0], np.cumsum(lengths)])
        ids = rng.integers(0, 50, starts[-1])
        on_bytes = loops.forward(weights, ids, starts)
        exact = encoder.forward(torch.from_numpy(ids), starts.tolist()).numpy()
        cosine = (on_bytes * exact).sum(1) / np.linalg.norm(on_bytes, axis=1) / np.linalg.norm(exact, axis=1)
        assert cosine.min() > 0.9995, lengths


@bytes_only
def test_a_text_is_the_same_in_any_company_and_on_any_threads() -> None:
    rng = np.random.default_rng(10)
    weights, _ = small(rng)
    lengths = [3, 40, 17, 1, 40, 29] * 9
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(0, 50, starts[-1])
    together = loops.forward(weights, ids, starts)
    for text in (0, 1, 20, 53):
        own = slice(starts[text], starts[text + 1])
        alone = loops.forward(weights, ids[own], np.array([0, lengths[text]]))
        assert np.array_equal(together[own], alone)
