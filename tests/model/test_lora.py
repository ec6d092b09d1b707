"""LoRA: forms and formats that must agree, gradients against autograd's own, what is frozen, merging."""

from __future__ import annotations

import copy

import pytest
import torch
from small_models import CONFIGS
from torch import Tensor, nn

from tinyseek.errors import UserError
from tinyseek.model import frozen, lora
from tinyseek.model.config import ModelConfig
from tinyseek.model.frozen import FrozenLinear, Low, pack_base, product
from tinyseek.model.lora_config import LoraConfig
from tinyseek.model.packed import Format, unpack
from tinyseek.model.transformer import CausalLM

WIDE = {"hidden_size": 64, "intermediate_size": 128}
EVEN = ModelConfig(
    **{**CONFIGS["mla-q-lora-yarn-groups"].plain(), **WIDE, "moe_intermediate_size": 64, "q_lora_rank": 64}
)
TIED = ModelConfig(**{**CONFIGS["llama-gqa"].plain(), **WIDE, "head_dim": None, "tie_word_embeddings": True})
MODELS = {"experts": EVEN, "tied": TIED, "gpt2": CONFIGS["gpt2"], "mtp": CONFIGS["mla"]}
FORMATS: tuple[Format, ...] = ("float32", "bfloat16", "int8", "int4")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fresh(name: str, seed: int = 0) -> CausalLM:
    torch.manual_seed(seed)
    model = CausalLM(MODELS[name]).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.uniform_(-0.5, 1.5)
    return model


def adapted(name: str, base: Format = "float32", **changes) -> CausalLM:
    """A model with changes that matter."""
    model = fresh(name)
    lora.add_lora(model, LoraConfig(**{"rank": 3, "alpha": 5, **changes}), base)
    torch.manual_seed(1)
    with torch.no_grad():
        for change in lora.changes(model).values():
            change.lora_B.normal_(0, 0.1)
            if change.lora_magnitude is not None:
                change.lora_magnitude.mul_(torch.empty_like(change.lora_magnitude).uniform_(0.7, 1.3))
    return model


def ids(rows: int = 2, length: int = 40) -> Tensor:
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(7))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in lora.trained(model) if parameter.grad is not None}


# ---- one product -----------------------------------------------------------------------------------------------------------------


def reference(x: Tensor, weight_EPQ: Tensor, counts: list[int], low: Low) -> Tensor:
    """The definition, one expert after the other, for autograd to differentiate."""
    out = []
    for expert, rows in enumerate(x.split(counts)):
        weight = weight_EPQ[expert] + low.scale * low.b_EPR[expert] @ low.a_ERQ[expert]
        if low.magnitude_EP is not None:
            weight = weight * (low.magnitude_EP[expert] / weight.detach().norm(dim=-1))[:, None]
        out.append(rows @ weight.T)
    return torch.cat(out)


@pytest.mark.parametrize("form", ["folded", "apart"])
@pytest.mark.parametrize("dora", [False, True])
def test_a_product_and_its_gradients_are_those_of_the_definition(form: str, dora: bool, monkeypatch) -> None:
    monkeypatch.setattr(frozen, "FEW", 0 if form == "folded" else 10_000)
    generator = torch.Generator().manual_seed(3)

    def number(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    counts = [5, 0, 9]
    weight = number(3, 6, 7)
    x, a, b = number(14, 7).requires_grad_(), number(3, 2, 7).requires_grad_(), number(3, 6, 2).requires_grad_()
    magnitude = (number(3, 6).abs() + 0.5).requires_grad_() if dora else None
    low = Low(a, b, magnitude, 0.7)
    leaves = [leaf for leaf in (x, a, b, magnitude) if leaf is not None]
    ours, theirs = product(x, weight.__getitem__, counts, 6, low), reference(x, weight, counts, low)
    torch.testing.assert_close(ours, theirs)
    pull = number(14, 6)
    for mine, its in zip(
        torch.autograd.grad(ours, leaves, pull), torch.autograd.grad(theirs, leaves, pull), strict=True
    ):
        torch.testing.assert_close(mine, its)


def test_gradients_pass_a_frozen_weight(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(2, 6, 7, dtype=torch.float64, generator=generator)
    x = torch.randn(5, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: product(rows, weight.__getitem__, [2, 3], 6), (x,))


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_falls_on_what_enters_a_alone(dora: bool) -> None:
    torch.manual_seed(5)
    x, weight = torch.randn(4000, 8), torch.randn(1, 6, 8)
    magnitude = torch.rand(1, 6) + 0.5 if dora else None
    a, b = torch.randn(1, 2, 8), torch.randn(1, 6, 2)
    dropped = product(x, weight.__getitem__, [4000], 6, Low(a, b, magnitude, 1.0, dropout=0.3))
    kept = product(x, weight.__getitem__, [4000], 6, Low(a, b, magnitude, 1.0))
    off = dropped - kept
    assert float(off.abs().mean()) > 0.1
    assert float(off.mean().abs()) < 0.2  # right in the mean
    nothing = product(x, weight.__getitem__, [4000], 6, Low(a, 0 * b, magnitude, 1.0, dropout=0.3))
    torch.testing.assert_close(nothing, product(x, weight.__getitem__, [4000], 6, Low(a, 0 * b, magnitude, 1.0)))


def test_the_gradient_under_dropout_is_that_of_the_same_draw() -> None:
    weight, generator = torch.randn(1, 6, 8, dtype=torch.float64), torch.Generator().manual_seed(2)
    x, a, b = (
        torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in ((9, 8), (1, 2, 8), (1, 6, 2))
    )

    def drawn(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        torch.manual_seed(11)
        return product(x, weight.__getitem__, [9], 6, Low(a, b, None, 0.5, dropout=0.4))

    assert torch.autograd.gradcheck(drawn, (x, a, b))


# ---- a whole model ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", FORMATS)
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_change_changes_nothing(name: str, dora: bool, base: Format) -> None:
    model = fresh(name)
    if base != "float32":
        pack_base(model, base)
    before = model(ids())
    names = lora.add_lora(model, LoraConfig(rank=4, dora=dora))  # on a base that is packed already
    torch.testing.assert_close(model(ids()), before, atol=2e-5, rtol=1e-5)
    assert sorted(lora.changes(model)) == sorted(names)


@pytest.mark.parametrize("base", FORMATS)
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", ["experts", "tied", "gpt2"])
def test_merged_and_unmerged_agree_and_unmerging_is_exact(name: str, dora: bool, base: Format) -> None:
    targets = ["*proj*", "mlp.gate", "lm_head"] if name == "experts" else "all-linear"
    model = adapted(name, base, dora=dora, targets=targets)
    with torch.no_grad():
        before = model(ids())
        replaced = lora.merge(model)
        assert not lora.is_adapted(model)
        assert not any(isinstance(module, FrozenLinear) for module in model.modules())
        torch.testing.assert_close(model(ids()), before, atol=1e-4, rtol=1e-4)
        lora.unmerge(replaced)
        assert torch.equal(model(ids()), before)


@pytest.mark.parametrize("base", FORMATS)
def test_a_packed_base_learns_like_the_float_weights_that_it_stands_for(base: Format) -> None:
    """QLoRA's gradients are those of LoRA on the widened weights."""
    packed = adapted("experts", base).train()
    plain = copy.deepcopy(packed)
    with torch.no_grad():
        for module in list(plain.modules()):
            for child, layer in list(module.named_children()):
                if isinstance(layer, FrozenLinear):
                    linear = nn.Linear(layer.in_features, layer.out_features, bias=False)
                    linear.weight = nn.Parameter(unpack(layer.parts), requires_grad=False)
                    setattr(module, child, linear)
    targets = ids().roll(-1, 1)
    packed.loss(ids(), targets).total.backward()
    plain.loss(ids(), targets).total.backward()
    here, there = gradients(packed), gradients(plain)
    assert here.keys() == there.keys()
    assert len(here) == 2 * len(lora.changes(packed))
    for name, gradient in here.items():
        torch.testing.assert_close(gradient, there[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("name", ["experts", "tied"])
def test_the_changes_learn_and_nothing_else_does(name: str) -> None:
    model = adapted(name, save=["model.norm"]).train()
    base = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for _, p in lora.trained(model)], lr=0.02)
    losses = []
    for _ in range(12):
        loss = model.loss(ids(), ids().roll(-1, 1)).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_balance()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, base[key])}
    assert moved == {key for key in base if ".lora_" in key} | {"model.norm.weight"}


def test_frozen_prediction_modules_and_routers_are_left_alone() -> None:
    model = adapted("mtp").train()
    losses = model.loss(ids(), ids().roll(-1, 1))
    assert float(losses.mtp) == 0
    assert float(losses.balance) == 0
    whole = fresh("mtp").train()
    assert float(whole.loss(ids(), ids().roll(-1, 1)).mtp) > 0


def test_low_rank_layers_of_mla_change_in_both_forms() -> None:
    """The absorbed form reads kv_b's weight itself."""
    attention = adapted("experts", "int8", targets=["kv_b_proj", "q_a_proj"]).model.layers[0].self_attn
    q_nope, q_rope = torch.randn(2, 5, 4, 8), torch.randn(2, 5, 4, 4)
    given = (q_nope, q_rope, torch.randn(2, 5, 12), torch.randn(2, 5, 4), None)
    torch.testing.assert_close(attention.absorbed(*given), attention.expanded(*given), atol=1e-5, rtol=1e-4)


def test_bfloat16_products_keep_a_small_change() -> None:
    """A change far below the rounding of a bfloat16 weight still reaches the output."""
    torch.manual_seed(0)
    layer = lora.LoraLinear(nn.Linear(64, 64, bias=False), lora.Change(torch.Size((64, 64)), 4, 1.0))
    x = torch.randn(300, 64)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        before = layer(x).float()
        layer.change.lora_B.normal_(0, 3e-3)
        moved = layer(x).float() - before
    wanted = (x @ (layer.change.lora_B @ layer.change.lora_A).T).detach()
    assert float((moved * wanted).sum() / (moved.norm() * wanted.norm())) > 0.9


# ---- choosing --------------------------------------------------------------------------------------------------------------------


def test_patterns_choose_and_take_back() -> None:
    model = fresh("experts")
    every = lora.chosen(model, "all-linear")
    assert "lm_head" not in every
    assert "model.layers.1.mlp.gate" not in every
    assert {"model.layers.0.mlp.up_proj", "model.layers.1.mlp.experts.gate_up_proj"} <= set(every)
    assert lora.chosen(model, ["layers.1.*q_?_proj"]) == [
        f"model.layers.1.self_attn.q_{letter}_proj" for letter in "ab"
    ]
    assert lora.chosen(model, ["up_proj", "!layers.0.*"]) == [
        name
        for layer in (1, 2)
        for name in (
            f"model.layers.{layer}.mlp.experts.gate_up_proj",
            f"model.layers.{layer}.mlp.shared_experts.up_proj",
        )
    ]
    assert lora.chosen(model, ["all-linear", "!experts.*"]) == [name for name in every if ".experts." not in name]
    more = set(lora.chosen(model, ["all-linear", "mlp.gate", "lm_head", "!layers.0.*"]))
    assert more - set(every) == {"model.layers.1.mlp.gate", "model.layers.2.mlp.gate", "lm_head"}
    assert set(every) - more == {name for name in every if ".layers.0." in name}
    assert lora.chosen(model, ["mlp.gate"]) == ["model.layers.1.mlp.gate", "model.layers.2.mlp.gate"]


def test_what_fits_nothing_is_told() -> None:
    model = fresh("tied")
    with pytest.raises(UserError, match=r'lora.targets: "q_porj" fits nothing in this model; did you mean "q_proj"'):
        lora.add_lora(model, LoraConfig(targets=["q_porj"]))
    with pytest.raises(UserError, match="lm_haed"):
        lora.add_lora(model, LoraConfig(save=["lm_haed"]))
    with pytest.raises(UserError, match="changed or trained whole"):
        lora.add_lora(model, LoraConfig(targets=["q_proj"], save=["q_proj"]))
    with pytest.raises(UserError, match="name at least one matrix"):
        LoraConfig.read({"targets": []})


def test_a_saved_head_of_a_tied_model_gets_a_weight_of_its_own() -> None:
    model = fresh("tied")
    lora.add_lora(model, LoraConfig(save=["lm_head"]))
    assert not model.config.tie_word_embeddings
    assert model.lm_head.weight.requires_grad
    assert not model.model.embed_tokens.weight.requires_grad
    packed, whole = fresh("tied"), fresh("tied")
    lora.add_lora(packed, LoraConfig(save=["lm_head"]), "int4")
    assert torch.equal(packed.lm_head.weight, whole.lm_head.weight)  # what is trained is not rounded
    assert packed.lm_head.weight.requires_grad
    rounded = whole.model.embed_tokens.weight.bfloat16().float()
    assert torch.equal(packed.model.embed_tokens(ids()), rounded[ids()])


def test_an_adapted_model_is_not_saved_as_a_plain_one(tmp_path) -> None:
    with pytest.raises(ValueError, match="merged first"):
        adapted("tied").save(tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
