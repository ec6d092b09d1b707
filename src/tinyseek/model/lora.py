"""LoRA: a model whose weights stay as they are, and small trained changes of some of them.

A change W + scale * B A (arXiv 2106.09685), with DoRA's row lengths (arXiv 2402.09353) if asked, lies beside a linear layer, a
stack of routed experts or a router. `merge` puts plain float layers in their place; `unmerge` takes these away, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tinyseek.errors import UserError
from tinyseek.model.block import Block
from tinyseek.model.frozen import (
    FrozenEmbedding,
    FrozenExperts,
    FrozenLinear,
    Grouped,
    Low,
    changed,
    pack_base,
    product,
    visit,
)
from tinyseek.model.lora_config import ALL_LINEAR, LoraConfig, choose
from tinyseek.model.moe import Experts, Router
from tinyseek.model.packed import Format
from tinyseek.model.transformer import CausalLM
from tinyseek.model.written_out import WrittenOut

Linear = nn.Linear | FrozenLinear


class Change(nn.Module):
    """A low-rank change of a weight [P, Q], or of a stack [E, P, Q]."""

    def __init__(self, shape: torch.Size, rank: int, scale: float, *, dora: bool = False, dropout: float = 0.0) -> None:
        """A change by nothing: A as a fresh linear layer's weight, B zero; the magnitude is for `fit_magnitude`."""
        super().__init__()
        *stack, rows, width = shape
        self.scale, self.dropout, self.rank = scale, dropout, rank
        self.lora_A = nn.Parameter(torch.empty(*stack, rank, width).uniform_(-1, 1) / math.sqrt(width))
        self.lora_B = nn.Parameter(torch.zeros(*stack, rows, rank))
        self.lora_magnitude = nn.Parameter(torch.ones(*stack, rows)) if dora else None

    @torch.no_grad()
    def fit_magnitude(self, weight: Tensor) -> None:
        """Give DoRA the row lengths of the weight as it is changed now, so that it adds nothing yet."""
        if self.lora_magnitude is not None:
            sum_, _ = changed(weight.float(), self.lora_A, self.lora_B, None, self.scale)
            self.lora_magnitude.copy_(sum_.norm(dim=-1))

    def of(self, weight: Tensor) -> Tensor:
        """The changed weight, float32, with gradients for the change."""
        sum_, gain = changed(weight.float(), self.lora_A, self.lora_B, self.lora_magnitude, self.scale)
        return sum_ if gain is None else sum_ * gain.unsqueeze(-1)

    def low(self) -> Low:
        """As `frozen.product` takes it; a weight that is no stack is a stack of one."""
        parts = (self.lora_A, self.lora_B, self.lora_magnitude)
        if self.lora_A.ndim == 2:
            parts = tuple(None if part is None else part.unsqueeze(0) for part in parts)  # type: ignore[assignment]
        a, b, magnitude = parts
        return Low(a, b, magnitude, self.scale, self.dropout if self.training else 0.0)


class LoraLinear(nn.Module):
    """A linear layer and a change of it."""

    def __init__(self, base: Linear, change: Change) -> None:
        super().__init__()
        self.base, self.change = base, change
        self.in_features, self.out_features = base.in_features, base.out_features

    @property
    def weight(self) -> Tensor:
        """The changed weight, as MLA's absorbed form and the head's loss read it."""
        return self.change.of(self.base.weight)

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = product(rows, lambda _: self.base.weight, [rows.shape[0]], self.out_features, self.change.low())
        if self.base.bias is not None:
            out = out + self.base.bias.to(out.dtype)
        return out.view(*x.shape[:-1], -1)


class LoraExperts(nn.Module):
    """The routed experts, with a change of each one's gate and up projection, of its down projection, or of both."""

    def __init__(self, base: Experts | FrozenExperts) -> None:
        super().__init__()
        self.base = base
        self.gate_up: Change | None = None
        self.down: Change | None = None

    def changes(self) -> dict[str, Change]:
        """By the name of the stack that is changed."""
        both = {"gate_up_proj": self.gate_up, "down_proj": self.down}
        return {name: change for name, change in both.items() if change is not None}

    def forward(self, x_ND: Tensor, chosen_NA: Tensor, weights_NA: Tensor) -> Tensor:
        """The weighted sum of each token's experts, [N, D]."""
        shape = _stack_shape(self.base, "gate_up_proj")
        return visit(x_ND, chosen_NA, weights_NA, shape[0], self._product("gate_up_proj"), self._product("down_proj"))

    def few(self, x_ND: Tensor, chosen_NA: Tensor, weights_NA: Tensor) -> Tensor:
        """The same; here a handful of tokens is no special case."""
        out_ND: Tensor = self(x_ND, chosen_NA, weights_NA)
        return out_ND

    def _product(self, name: str) -> Grouped:
        change = self.changes().get(name)
        width = _stack_shape(self.base, name)[1]
        low = None if change is None else change.low()

        def expert(index: int) -> Tensor:
            if isinstance(self.base, FrozenExperts):
                return (self.base.gate_up if name == "gate_up_proj" else self.base.down).dense(index)
            weight: Tensor = getattr(self.base, name)[index]
            return weight.detach()

        return lambda x_MQ, counts: product(x_MQ, expert, counts, width, low)


def _stack_shape(experts: Experts | FrozenExperts, name: str) -> torch.Size:
    if isinstance(experts, FrozenExperts):
        return experts.gate_up.shape if name == "gate_up_proj" else experts.down.shape
    shape: torch.Size = getattr(experts, name).shape
    return shape


# ---- which matrices there are ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A matrix, or a stack of experts' matrices, that can be changed."""

    name: str  # of the layer; of an expert stack with the stack's own: model.layers.1.mlp.experts.down_proj
    parent: nn.Module
    child: str  # the layer's name in it
    shape: torch.Size

    @property
    def layer(self) -> nn.Module:
        """What is there now."""
        found: nn.Module = getattr(self.parent, self.child)
        return found

    @property
    def stack(self) -> str:
        """Of an expert stack its own name, else empty."""
        return self.name.rpartition(".")[2] if self.name.rpartition(".")[2] != self.child else ""

    @property
    def change(self) -> Change | None:
        """The change that is on it."""
        layer = self.layer
        if isinstance(layer, LoraExperts):
            return layer.changes().get(self.stack)
        found = getattr(layer, "change", None)
        return found if isinstance(found, Change) else None


def places(model: CausalLM) -> dict[str, Place]:
    """Every matrix that can be changed, by name: linear layers, expert stacks, routers, the head.

    Multi-token prediction modules are no part of what an adapter changes.
    """
    out = {}
    for name, module in model.named_modules():
        if name.startswith("mtp."):
            continue
        for child, layer in module.named_children():
            full = f"{name}.{child}" if name else child
            if isinstance(module, LoraLinear | LoraExperts | Change):
                continue
            if isinstance(layer, nn.Linear | FrozenLinear | LoraLinear):
                shape = torch.Size((layer.out_features, layer.in_features))
                out[full] = Place(full, module, child, shape)
            elif isinstance(layer, Router):
                out[full] = Place(full, module, child, layer.weight.shape)
            elif isinstance(layer, Experts | FrozenExperts | LoraExperts):
                base = layer.base if isinstance(layer, LoraExperts) else layer
                for stack in ("gate_up_proj", "down_proj"):
                    place = f"{full}.{stack}"
                    out[place] = Place(place, module, child, _stack_shape(base, stack))
    return out


def chosen(model: CausalLM, targets: str | list[str]) -> list[str]:
    """The names of the matrices that `LoraConfig.targets` means. gate_proj and up_proj also mean the experts' stack of the two.

    all-linear among patterns is where they begin: others add to it (the router, the head) or take back. PEFT knows it alone only.

    Raises:
        UserError: a pattern that fits nothing.
    """
    there = places(model)
    inside = [name for name, place in there.items() if name != "lm_head" and not isinstance(place.layer, Router)]
    patterns = [targets] if isinstance(targets, str) else targets
    also = {
        name: [name.replace("gate_up_proj", part) for part in ("gate_proj", "up_proj")]
        for name in there
        if name.endswith("experts.gate_up_proj")
    }
    rest = [pattern for pattern in patterns if pattern != ALL_LINEAR]
    return choose(there, rest, "lora.targets", also, begin=set(inside) if ALL_LINEAR in patterns else ())


def put(place: Place, change: Change) -> None:
    """Lay a change on a matrix that has none yet."""
    layer = place.layer
    if isinstance(layer, Router):
        layer.change = change
    elif place.stack:
        experts = layer if isinstance(layer, LoraExperts) else LoraExperts(layer)  # type: ignore[arg-type]
        setattr(experts, "gate_up" if place.stack == "gate_up_proj" else "down", change)
        setattr(place.parent, place.child, experts)
    else:
        assert isinstance(layer, nn.Linear | FrozenLinear)
        setattr(place.parent, place.child, LoraLinear(layer, change))


def original(place: Place) -> Tensor:
    """The unchanged weight."""
    layer = place.layer
    if isinstance(layer, Router):
        return layer.weight
    base = layer.base if isinstance(layer, LoraLinear | LoraExperts) else layer
    weight: Tensor = getattr(base, place.stack or "weight")
    return weight


# ---- putting on, taking off ------------------------------------------------------------------------------------------------------


def freeze(model: nn.Module) -> None:
    """Leave every weight as it is."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def add_lora(model: CausalLM, config: LoraConfig, base: Format = "float32") -> list[str]:
    """Freeze a model, lay fresh changes on the chosen matrices, and open the modules that are trained whole.

    Fresh numbers come from torch's own generator.

    Args:
        base: how the frozen matrices are held.
    Returns:
        The names of the changed matrices.
    Raises:
        UserError: a pattern that fits nothing; a module that is to be both changed and trained whole.
    """
    names, whole = chosen(model, config.targets), modules_to_save(model, config.save)
    both = [name for name in names if any(name == module or name.startswith(f"{module}.") for module in whole)]
    if both:
        raise UserError(f"lora.save: {both[0]} is among lora.targets too; a matrix is either changed or trained whole")
    freeze(model)
    untie(model, whole)
    if base != "float32":
        pack_base(model, base, keep=whole)
    there = places(model)
    for name in names:
        place = there[name]
        change = Change(place.shape, config.rank, config.scale, dora=config.dora, dropout=config.dropout)
        change.to(model.device)
        change.fit_magnitude(original(place))
        put(place, change)
    for block in model.modules():
        if isinstance(block, Block):
            block.halves = WrittenOut()
    for name in whole:
        for parameter in model.get_submodule(name).parameters():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return names


def modules_to_save(model: CausalLM, patterns: list[str]) -> list[str]:
    """The names of the modules that `LoraConfig.save` means: those with weights of their own.

    Raises:
        UserError: a pattern that fits nothing.
    """
    named = [
        name
        for name, module in model.named_modules()
        if name and not name.startswith("mtp.") and any(True for _ in module.parameters(recurse=False))
    ]
    return choose(named, patterns, "lora.save")


def untie(model: CausalLM, names: Iterable[str]) -> None:
    """Give head and embedding a weight each, if they share one and either is to be trained."""
    if not model.config.tie_word_embeddings or not {"lm_head", "model.embed_tokens"} & set(names):
        return
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.config = model.config.model_copy(update={"tie_word_embeddings": False})


def changes(model: CausalLM) -> dict[str, Change]:
    """The changes that lie on a model, by the name of what they change."""
    return {name: change for name, place in places(model).items() if (change := place.change) is not None}


def is_adapted(model: CausalLM) -> bool:
    """Whether any change lies on a model."""
    return any(isinstance(module, Change) for module in model.modules())


@dataclass(frozen=True)
class Replaced:
    """A layer that `merge` took out."""

    parent: nn.Module
    child: str
    layer: Any  # the module, or a router's change
    weight: Tensor | None = None  # of a router, which stays and only has another weight for a while


@torch.no_grad()
def merge(model: CausalLM) -> list[Replaced]:
    """Put plain float layers with the changed weights in the place of all changed and all packed ones.

    Returns:
        What `unmerge` puts back. Dropped, the merging is for good.
    """
    out = []
    for module in list(model.modules()):
        if isinstance(module, LoraLinear | LoraExperts):
            continue
        for child, layer in list(module.named_children()):
            if isinstance(layer, LoraLinear | FrozenLinear):
                plain: nn.Module = _plain_linear(layer)
            elif isinstance(layer, LoraExperts | FrozenExperts):
                plain = _plain_experts(layer)
            elif isinstance(layer, Router) and layer.change is not None:
                out.append(Replaced(module, child, layer.change, layer.weight.data))
                layer.weight.data = layer.change.of(layer.weight).to(layer.weight.dtype)
                layer.change = None
                continue
            elif isinstance(layer, FrozenEmbedding):
                plain = nn.Embedding.from_pretrained(layer.weight)
            else:
                continue
            out.append(Replaced(module, child, layer))
            setattr(module, child, plain)
    if model.config.tie_word_embeddings and out:
        model.model.embed_tokens.weight = model.lm_head.weight
    return out


@torch.no_grad()
def unmerge(replaced: list[Replaced]) -> None:
    """Put back what `merge` took out."""
    for entry in replaced:
        if entry.weight is not None:
            router = getattr(entry.parent, entry.child)
            router.weight.data, router.change = entry.weight, entry.layer
        else:
            setattr(entry.parent, entry.child, entry.layer)


@contextmanager
def without(model: CausalLM) -> Iterator[None]:
    """The model as it is under its changes, for a while. Modules that are trained whole have no such state to go back to."""
    taken: list[Replaced] = []
    for module in list(model.modules()):
        for child, layer in list(module.named_children()):
            if isinstance(layer, LoraLinear | LoraExperts):
                taken.append(Replaced(module, child, layer))
                setattr(module, child, layer.base)
            elif isinstance(layer, Router) and layer.change is not None:
                taken.append(Replaced(module, child, layer.change, layer.weight.data))
                layer.change = None
    try:
        yield
    finally:
        unmerge(taken)


def _plain_linear(layer: LoraLinear | FrozenLinear) -> nn.Linear:
    weight = layer.weight
    if isinstance(layer, LoraLinear):
        weight = weight.to(layer.base.weight.dtype)
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.bias = layer.bias  # type: ignore[assignment]
    return plain


def _plain_experts(layer: LoraExperts | FrozenExperts) -> Experts:
    base = layer.base if isinstance(layer, LoraExperts) else layer
    changes_ = layer.changes() if isinstance(layer, LoraExperts) else {}
    plain = Experts.__new__(Experts)
    nn.Module.__init__(plain)
    for name in ("gate_up_proj", "down_proj"):
        weight: Tensor = getattr(base, name)
        weight = changes_[name].of(weight).to(weight.dtype) if name in changes_ else weight
        setattr(plain, name, nn.Parameter(weight.detach(), requires_grad=False))
    return plain


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that are trained, by name."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
