"""The parts of the model against plain references: caches, packing, experts, losses, counts."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_models import CONFIGS, fresh

from tinyseek.engine.cache import PagedCache
from tinyseek.errors import UserError
from tinyseek.model.counts import count
from tinyseek.model.layers import RMSNorm
from tinyseek.model.loss import linear_cross_entropy
from tinyseek.model.moe import GroupedMLP, MixtureOfExperts
from tinyseek.model.presets import PRESETS, from_preset


@torch.no_grad()
def test_absorbed_equals_expanded_in_float64() -> None:
    model = fresh("mla-q-lora-yarn-groups").double()
    attention = model.model.layers[0].self_attn
    q_nope, q_rope = torch.randn(2, 5, 4, 8).double(), torch.randn(2, 5, 4, 4).double()
    latent, k_rope = torch.randn(2, 5, 12).double(), torch.randn(2, 5, 4).double()
    expanded = attention.expanded(q_nope, q_rope, latent, k_rope, None)
    absorbed = attention.absorbed(q_nope, q_rope, latent, k_rope, None)
    assert (expanded - absorbed).abs().max() < 1e-6  # the softmax itself is float32


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_packed_documents_do_not_see_each_other(name: str) -> None:
    model = fresh(name)
    a, b, c = (torch.randint(0, 97, (n,)) for n in (13, 20, 7))
    packed = torch.cat([a, b, c])[None]
    documents = torch.tensor([[0] * 13 + [1] * 20 + [5] * 7])
    logits = model(packed, documents_BT=documents)[0].split([13, 20, 7])
    for part, document in zip(logits, (a, b, c), strict=True):
        assert (part - model(document[None])[0]).abs().max() < 1e-4


def test_rms_norm_and_its_gradient_in_float64() -> None:
    torch.manual_seed(8)
    norm = RMSNorm(24, eps=1e-5)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 5, 24, requires_grad=True)
    slope = torch.randn(3, 5, 24)
    reference = torch.nn.RMSNorm(24, eps=1e-5, dtype=torch.float64)
    reference.weight.data.copy_(norm.weight)
    wide = x.detach().double().requires_grad_()
    out, expected = norm(x), reference(wide)
    assert (out - expected).abs().max() < 1e-6
    with torch.no_grad():
        assert (norm(x) - expected).abs().max() < 1e-6
    ours = torch.autograd.grad((out * slope).sum(), (x, norm.weight))
    theirs = torch.autograd.grad((expected * slope).sum(), (wide, reference.weight))
    for mine, right in zip(ours, theirs, strict=True):
        assert (mine - right).abs().max() < 1e-5


def test_linear_cross_entropy_equals_torch() -> None:
    torch.manual_seed(1)
    hidden, weight = torch.randn(50, 16, dtype=torch.float64), torch.randn(31, 16, dtype=torch.float64)
    targets = torch.randint(0, 31, (50,))
    targets[::7] = -100
    ours = [t.float().requires_grad_() for t in (hidden, weight)]
    theirs = [t.clone().requires_grad_() for t in (hidden, weight)]
    loss = linear_cross_entropy(ours[0], ours[1], targets, block=8)
    expected = F.cross_entropy(theirs[0] @ theirs[1].T, targets, reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (loss * 0.5).backward()
    (expected * 0.5).backward()
    for mine, reference in zip(ours, theirs, strict=True):
        assert (mine.grad - reference.grad).abs().max() < 1e-5
    assert linear_cross_entropy(ours[0], ours[1], torch.full((50,), -100)).item() == 0.0


def test_grouped_experts_equal_a_loop_over_tokens() -> None:
    torch.manual_seed(2)
    config = CONFIGS["mla-q-lora-yarn-groups"]
    mixture = MixtureOfExperts(config).double()
    for parameter in mixture.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 9, 32, dtype=torch.float64, requires_grad=True)
    out, _ = mixture(x)
    with torch.no_grad():
        few = mixture.experts.few(x.flatten(0, 1), *mixture.gate(x.flatten(0, 1))[:2])
    tokens = []
    for token in x.flatten(0, 1):
        chosen, weights, _ = mixture.gate(token[None])
        total = mixture.shared_experts(token)
        for expert, weight in zip(chosen[0].tolist(), weights[0], strict=True):
            gate, up = (mixture.experts.gate_up_proj[expert] @ token).chunk(2)
            total = total + weight * (mixture.experts.down_proj[expert] @ (F.silu(gate) * up))
        tokens.append(total)
    expected = torch.stack(tokens)
    assert (out.flatten(0, 1) - expected).abs().max() < 1e-5  # routing weights are float32
    assert (few + mixture.shared_experts(x.flatten(0, 1)) - expected).abs().max() < 1e-5
    slope = torch.randn_like(expected)
    wrt = (x, mixture.experts.gate_up_proj, mixture.experts.down_proj, mixture.gate.weight)
    ours = torch.autograd.grad((out.flatten(0, 1) * slope).sum(), wrt)
    theirs = torch.autograd.grad((expected * slope).sum(), wrt)
    for mine, reference in zip(ours, theirs, strict=True):
        assert (mine - reference).abs().max() < 1e-4


def test_grouped_mlp_gradients_with_an_idle_expert() -> None:
    torch.manual_seed(3)
    shapes = ((7, 5), (3, 8, 5), (3, 5, 4))
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(lambda *tensors: GroupedMLP.apply(*tensors, [3, 0, 4]), inputs)


def test_groups_limit_the_choice() -> None:
    torch.manual_seed(4)
    gate = MixtureOfExperts(CONFIGS["mla-q-lora-yarn-groups"]).gate
    torch.nn.init.normal_(gate.weight)
    chosen, _, scores = gate(torch.randn(200, 32))
    for row, score in zip(chosen.tolist(), scores, strict=True):
        groups = score.view(4, 2).sum(-1).topk(2).indices.tolist()
        allowed = [2 * g + i for g in groups for i in (0, 1)]
        best = sorted(allowed, key=lambda expert: -score[expert])[:2]
        assert set(row) == set(best)


def test_routing_stays_float32_under_autocast() -> None:
    torch.manual_seed(9)
    gate = MixtureOfExperts(CONFIGS["mla"]).gate
    torch.nn.init.normal_(gate.weight)
    x = torch.randn(64, 32)
    with torch.autocast("cpu", torch.bfloat16):
        chosen, weights, scores = gate(x)
    assert scores.dtype == weights.dtype == torch.float32
    assert torch.equal(scores, (x @ gate.weight.T).sigmoid())
    assert torch.equal(chosen, gate(x)[0])


@pytest.mark.parametrize("name", ["mla", "llama-gqa", "gpt2"])
def test_mixed_precision_gives_nearly_the_same_loss_and_gradient(name: str) -> None:
    model = fresh(name).train()
    ids = torch.randint(0, 97, (4, 33))
    found = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = model.loss(ids[:, :-1], ids[:, 1:])
        losses.total.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((losses.total.item(), gradient))
    (full, exact), (mixed, rough) = found
    assert mixed == pytest.approx(full, rel=0.02)
    assert F.cosine_similarity(exact, rough, dim=0) > 0.98


def test_balance_bias_moves_the_choice_not_the_weight() -> None:
    torch.manual_seed(5)
    gate = MixtureOfExperts(CONFIGS["mla"]).gate
    torch.nn.init.normal_(gate.weight)
    x = torch.randn(50, 32)
    _, _, scores = gate(x)
    gate.e_score_correction_bias[2] = 10.0
    after, weights, _ = gate(x)
    assert (after == 2).any(-1).all()
    picked = scores.gather(-1, after)
    assert torch.allclose(weights, picked / picked.sum(-1, keepdim=True))


def test_balance_update_evens_the_load() -> None:
    torch.manual_seed(6)
    config = CONFIGS["mla"].model_copy(update={"balance_bias_rate": 0.01})
    mixture = MixtureOfExperts(config).train()
    torch.nn.init.normal_(mixture.gate.weight, std=0.5)
    x = torch.randn(1, 500, 32) + 0.5

    def spread() -> float:
        mixture.gate.load_E.zero_()
        mixture(x)
        return float(mixture.gate.load_E.std())

    first = spread()
    for _ in range(300):
        mixture.gate.load_E.zero_()
        mixture(x)
        mixture.gate.update_balance()
    assert spread() < 0.1 * first


def test_balance_loss_by_brute_force() -> None:
    torch.manual_seed(7)
    gate = MixtureOfExperts(CONFIGS["mla"]).gate
    torch.nn.init.normal_(gate.weight)
    chosen, _, scores = gate(torch.randn(24, 32))
    losses = gate.balance_loss(chosen, scores, sequences=2)
    for sequence in range(2):
        rows = slice(12 * sequence, 12 * sequence + 12)
        total = 0.0
        for expert in range(4):
            frequency = 4 / (2 * 12) * float((chosen[rows] == expert).sum())
            total += frequency * float(
                (scores.detach()[rows] / scores.detach()[rows].sum(-1, keepdim=True))[:, expert].mean()
            )
        assert losses[sequence].item() == pytest.approx(total, rel=1e-5)


def test_mtp_loss_predicts_the_tokens_after_next() -> None:
    """V3 eq. 21-25 written out: each depth's block over [norm(embedding of i + k), norm(hidden)], shared embedding and head."""
    model = fresh("mla").train()
    ids = torch.randint(0, 97, (2, 21))
    inputs, targets = ids[:, :-1], ids[:, 1:]
    losses = model.loss(inputs, targets)
    hidden, _, context = model.hidden(inputs)
    logits = model.lm_head(hidden)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert losses.next.item() == pytest.approx(expected.item(), rel=1e-5)
    ahead = 0.0
    for depth, module in enumerate(model.mtp, start=1):
        length = 20 - depth
        joined = torch.cat(
            (module.enorm(model.model.embed_tokens(ids[:, depth:20])), module.hnorm(hidden[:, :length])), -1
        )
        cut = type(context)(context.cos[:length], context.sin[:length], None, None, None)
        hidden = module.shared_head.norm(module(module.eh_proj(joined), cut)[0])
        target = ids[:, depth + 1 : 21]
        ahead += F.cross_entropy(model.lm_head(hidden).flatten(0, 1), target.flatten(), reduction="sum").item() / 40 / 2
    assert losses.mtp.item() == pytest.approx(ahead, rel=1e-5)
    assert losses.total.item() == pytest.approx(
        losses.next.item() + 0.3 * ahead + 1e-4 * losses.balance.item() * (2 + 2), rel=1e-5
    )


@pytest.mark.parametrize("name", ["mla", "llama-gqa"])
def test_micro_batches_add_up_to_the_large_batch(name: str) -> None:
    model = fresh(name).train()
    ids = torch.randint(0, 97, (6, 25))
    targets = ids[:, 1:].clone()
    for row in range(6):
        targets[row, : 3 * row] = -100  # unequal numbers of targets
    model.loss(ids[:, :-1], targets).total.backward()
    large = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        model.loss(ids[rows, :-1], targets[rows], denominator=(targets != -100).sum()).total.backward()
    for n, p in model.named_parameters():
        if p.grad is not None:
            assert (p.grad - large[n]).abs().max() < 1e-6, n


def test_published_counts() -> None:
    v3 = count(PRESETS["deepseek-v3"])
    assert round(v3.total / 1e9) == 671
    assert round(v3.active / 1e9) == 37
    assert v3.cache_bytes_per_token() == 61 * (512 + 64) * 2  # DeepSeek-V3 report: 70 KB a token in bfloat16
    assert round(count(PRESETS["gpt2"]).total / 1e6) == 124
    assert round(count(PRESETS["qwen2-1.5b"]).total / 1e9, 2) == 1.54
    assert round(count(PRESETS["smollm2-135m"]).total / 1e6) == 135
    v2_lite = count(PRESETS["deepseek-v2-lite"])  # DeepSeek-V2 report, appendix B: 15.7B total, 2.4B active
    assert round(v2_lite.total / 1e9, 1) == 15.7
    assert math.floor(v2_lite.active / 1e8) == 24


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_are_the_model_s_own(name: str) -> None:
    model, counts = fresh(name), count(CONFIGS[name])
    parameters = {id(p): p.numel() for n, p in model.named_parameters() if not n.startswith("mtp.")}
    assert counts.total == sum(parameters.values())
    assert counts.mtp == sum(p.numel() for p in model.mtp.parameters())
    cache = PagedCache(CONFIGS[name], 10, 1, dtype=torch.bfloat16)
    assert counts.cache_bytes_per_token() == cache.bytes_per_token


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_attention_heads": 5}, "multiple"),
        ({"n_group": 3}, "multiple"),
        ({"num_experts_per_tok": 9}, "more than 8 experts"),
        ({"hiden_size": 4}, 'did you mean "hidden_size"'),
        ({"vocab_size": 0}, "greater than or equal to 1"),
        ({"norm": "layernorm"}, "tinyseek"),
        ({"qk_rope_head_dim": 7}, "odd"),
        ({"initializer_range": float("nan")}, "initializer_range"),
    ],
)
def test_impossible_configs_are_refused(values: dict[str, object], message: str) -> None:
    preset = "gpt2" if "num_attention_heads" in values else "quickstart"
    with pytest.raises(UserError, match=message):
        from_preset(preset, values)
