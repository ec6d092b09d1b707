"""The compiled loops against the model itself: every family and format, ragged batches over shuffled blocks."""

import copy

import numpy as np
import pytest
import torch
from small_models import CONFIGS
from torch import Tensor, nn

from tinyseek.engine.quantize import (
    Format,
    PackedWeight,
    arrays,
    bits_per_weight,
    head_format,
    pack,
    pack_int4,
    pack_int8,
    packed,
    unpack,
)
from tinyseek.model import transformer
from tinyseek.model.config import ModelConfig
from tinyseek.model.moe import Experts
from tinyseek.model.transformer import CausalLM

pytest.importorskip("numba", reason="the compiled loops need the extra `fast`")
from tinyseek.engine import products
from tinyseek.engine.compiled import CompiledModel, is_compiled

BIASED = ModelConfig(**{**CONFIGS["llama-gqa"].plain(), "qkv_bias": True, "output_bias": True})
HALVES = ModelConfig(**{**CONFIGS["mla"].plain(), "rope_interleave": False, "routed_scaling_factor": 2.5})
UNSHARED = ModelConfig(**{**CONFIGS["mla-q-lora-yarn-groups"].plain(), "n_shared_experts": 0, "norm_topk_prob": False})
GROUPED_V2 = ModelConfig(
    **{**CONFIGS["mla-softmax"].plain(), "topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}
)
WIDE = {"hidden_size": 64, "intermediate_size": 128}
EVEN = ModelConfig(**{**CONFIGS["mla"].plain(), **WIDE, "moe_intermediate_size": 64, "v_head_dim": 16})
TIED = ModelConfig(**{**CONFIGS["qwen2-window"].plain(), **WIDE, "head_dim": None, "tie_word_embeddings": True})
KNOWN = {name: CONFIGS[name] for name in ("llama-gqa", "qwen2-window", "mla", "mla-q-lora-yarn-groups", "mla-softmax")}
KNOWN |= {
    "biased": BIASED,
    "halves": HALVES,
    "unshared": UNSHARED,
    "grouped-v2": GROUPED_V2,
    "even": EVEN,
    "tied": TIED,
}
SIZE = 4


def fresh(config: ModelConfig) -> CausalLM:
    torch.manual_seed(3)
    model = CausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.uniform_(0.5, 1.5)
    for _, mixture in model.experts():
        mixture.gate.e_score_correction_bias.normal_(0, 0.05)
    return model


@torch.no_grad()
def widened(model: CausalLM, format: Format) -> CausalLM:
    """A plain model with the weights that a packed one stands for."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and name != "kv_b_proj":
                chosen = head_format(format) if name == "lm_head" else format
                child.weight.data = unpack(packed(child.weight, chosen))
            elif isinstance(child, Experts):
                child.gate_up_proj.data = unpack(packed(child.gate_up_proj, format))
                child.down_proj.data = unpack(packed(child.down_proj, format))
    return model


def stores(config: ModelConfig, slots: int) -> tuple[Tensor, Tensor]:
    shapes = [(config.kv_lora_rank or 0,), (config.qk_rope_head_dim,)]
    shapes = shapes if config.mla else [(config.kv_heads, config.qk_dim)] * 2
    count = config.num_hidden_layers + config.num_nextn_predict_layers
    first, second = (torch.full((count, slots, *shape), torch.nan) for shape in shapes)
    return first, second


CASES = [(name, "float32") for name in KNOWN]
# A format's own loops are its products: "tied" runs them in all formats, "even" those of experts, which have a test below.
CASES += [("tied", "bfloat16"), ("tied", "int8"), ("tied", "int4"), ("biased", "int4"), ("even", "int4")]


@pytest.mark.parametrize(("name", "format"), CASES)
@torch.no_grad()
def test_ragged_batches_equal_the_model(name: str, format: Format) -> None:
    model = fresh(KNOWN[name])
    assert is_compiled(model)
    ids = [torch.randint(0, 97, (length,)) for length in (17, 9, 26)]
    plain = widened(model, format)
    expected = [plain(i[None])[0] for i in ids]
    if format != "float32":
        pack(model, format)
        for i, logits in zip(ids, expected, strict=True):
            assert (model(i[None])[0] - logits).abs().max() < 1e-4
    blocks = torch.randperm(40)
    tables = blocks[:21].view(3, 7)  # 7 blocks of 4 positions for each of the three
    compiled = CompiledModel(model, stores(model.config, 160), SIZE, 32)
    done = [0, 0, 0]
    generator = torch.Generator().manual_seed(5)
    while any(d < len(i) for d, i in zip(done, ids, strict=True)):
        tokens, positions, rows, wanted = [], [], [], []
        for row in torch.randperm(3, generator=generator).tolist():  # each sequence gives 0 to 5 of its next tokens
            count = min(int(torch.randint(0, 6, (), generator=generator)), len(ids[row]) - done[row])
            for position in range(done[row], done[row] + count):
                tokens.append(int(ids[row][position]))
                positions.append(position)
                rows.append(row)
                wanted.append(expected[row][position])
            done[row] += count
        if not tokens:
            continue
        at, of = torch.tensor(positions), torch.tensor(rows)
        slots = tables[of, at // SIZE] * SIZE + at % SIZE
        logits = compiled.logits(compiled.forward(torch.tensor(tokens), at, slots, of, tables))
        assert (logits - torch.stack(wanted)).abs().max() < 2e-4


@pytest.mark.parametrize("format", ["bfloat16", "int8"])
def test_experts_are_visited_in_every_format(format: Format) -> None:
    """Experts with no, one and several visits, by the loops and by the weights that the packed ones stand for."""
    torch.manual_seed(4)
    gate_up, down = torch.randn(4, 128, 64), torch.randn(4, 64, 64)
    starts, x, weights = [0, 1, 1, 6, 9], torch.randn(9, 64), torch.rand(9)
    visitors = torch.randint(0, 5, (9,))
    packs = [packed(weight, format) for weight in (gate_up, down)]
    expected, inner = torch.ones(5, 64), torch.empty(9, 64)
    for expert in range(4):
        rows = slice(starts[expert], starts[expert + 1])
        gate, up = (x[rows] @ unpack(packs[0])[expert].T).chunk(2, dim=-1)
        inner[rows] = torch.nn.functional.silu(gate) * up * weights[rows, None]
        expected.index_add_(0, visitors[rows], inner[rows] @ unpack(packs[1])[expert].T)
    out_MI, out_ND = np.empty((9, 64), np.float32), np.ones((5, 64), np.float32)
    first, second = (arrays(parts) for parts in packs)
    products.visits_in(1, first, np.array(starts), x.numpy(), weights.numpy(), out_MI)
    products.visits_out(1, second, np.array(starts), out_MI, visitors.numpy(), out_ND)
    assert np.abs(out_MI - inner.numpy()).max() < 1e-3
    assert np.abs(out_ND - expected.numpy()).max() < 2e-2


@pytest.mark.parametrize("format", ["float32", "int4"])
@torch.no_grad()
def test_prediction_ahead_equals_training(format: Format) -> None:
    """The MTP modules over the cache give what they give in training, where they see the whole text at once."""
    model = fresh(EVEN)
    plain = widened(model, format)
    ids = torch.randint(0, 97, (15,))
    hidden, _, context = plain.hidden(ids[None])
    expected = []
    for depth, module in enumerate(plain.mtp, start=1):
        context = transformer._shorter(context, len(ids) - depth, None)
        hidden, _ = module.predict(hidden[:, :-1], plain.model.embed_tokens(ids[None, depth:]), context)
        expected.append(hidden[0])
    if format != "float32":
        pack(model, format)
    compiled = CompiledModel(model, stores(model.config, 32), SIZE, 32)
    tables = torch.randperm(8)[None]
    for first, last in ((0, 6), (6, 7), (7, 13)):
        at = torch.arange(first, last)
        where = (at, tables[0, at // SIZE] * SIZE + at % SIZE, torch.zeros_like(at), tables)
        rows = compiled.forward(ids[first:last], *where)
        for depth in range(2):
            rows = compiled.ahead(depth, rows, ids[first + depth + 1 : last + depth + 1], *where)
            assert (rows - expected[depth][first:last]).abs().max() < 1e-4


@torch.no_grad()
def test_a_row_is_the_same_in_any_company() -> None:
    """Greedy decoding must not depend on which other streams run: bit for bit among batches of several."""
    model = fresh(EVEN)
    compiled = CompiledModel(model, stores(EVEN, 160), SIZE, 32)
    tokens = torch.randint(0, 97, (9,))
    tables = torch.arange(9)[:, None]
    zero = torch.zeros(9, dtype=torch.int64)
    rows = torch.arange(9)
    together = compiled.forward(tokens, zero, rows * SIZE, rows, tables)
    for count in (1, 2, 5):
        alone = compiled.forward(tokens[:count], zero[:count], rows[:count] * SIZE, rows[:count], tables)
        assert (alone - together[:count]).abs().max() < 1e-5


def test_exp_is_exact_to_the_last_places() -> None:
    x = np.concatenate([np.linspace(-87, 88, 100_001), np.linspace(-1, 1, 10_001)]).astype(np.float32)
    own = np.array([products.exp(value) for value in x])
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(own - exact) / exact).max() < 3.6e-7
    assert products.exp(np.float32(-1e30)) < 2e-38


def test_int8_and_int4_are_near() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 128)
    for parts, step in ((pack_int8(weight), weight.abs().amax(-1, keepdim=True) / 127), (pack_int4(weight), None)):
        error = (unpack(parts) - weight).abs()
        if step is not None:
            assert (error <= step / 2 + 1e-6).all()
        else:
            groups = weight.unflatten(-1, (-1, 32))
            spread = (groups.amax(-1) - groups.amin(-1)) / 15
            # rounding within the range, and what a narrowed range clips
            assert (error.unflatten(-1, (-1, 32)).amax(-1) <= 1.5 * spread + 0.1 * 15 * spread).all()
            assert error.square().mean() < (spread.square() / 12).mean() * 1.05


def test_int4_keeps_what_is_already_on_its_grid() -> None:
    """Weights that came out of a Q4_1 file lie on sixteen values a group: packing them again loses nothing."""
    torch.manual_seed(1)
    scale, least = (torch.rand(7, 4, 1) * 0.1 + 0.01).half().float(), torch.randn(7, 4, 1).half().float()
    q = torch.randint(0, 16, (7, 4, 32)).float()
    q[..., 0], q[..., 1] = 0, 15
    weight = (q * scale + least).flatten(1)
    assert (unpack(pack_int4(weight)) - weight).abs().max() < 2e-3 * weight.abs().max()


def test_packing_saves_what_it_says() -> None:
    model = fresh(EVEN)
    before = sum(p.numel() * p.element_size() for p in model.parameters())
    pack(model, "int4")
    left = sum(p.numel() * p.element_size() for p in model.parameters())
    held = sum(
        b.numel() * b.element_size() for m in model.modules() if isinstance(m, PackedWeight) for b in m.buffers()
    )
    assert held + left < before / 2
    assert 4.9 < bits_per_weight(model) < 7  # a few small matrices fall back to int8
