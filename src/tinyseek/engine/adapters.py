"""Adapters over one base: many models in the memory of one, each text with its own.

What an adapter changes of a matrix is B A, two thin matrices (model/lora.py). The base's weights are there once, and all adapters'
A and B lie behind one another beside them, a stack for each kind of matrix. Two ways to use them:

    beside     a step's rows of different adapters go through the base's weights together, each row's thin products are added
               (adapted.py, the compiled loops): x W^T + (x A^T) B^T
    worn       an adapter is laid on the model for one pass of texts that all have it (torch: prompts, embeddings, a look inside)

What is no pair of thin matrices cannot be run like this: DoRA, modules that were trained whole. Such an adapter is refused with a
word; merged with its base it is served like any model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tinyseek.engine.quantize import PackedExperts
from tinyseek.errors import UserError
from tinyseek.model import adapter as on_disk
from tinyseek.model import lora
from tinyseek.model.frozen import Grouped, visit
from tinyseek.model.moe import Experts, Router, grouped_product
from tinyseek.model.transformer import CausalLM
from tinyseek.settings import suggestion
from tinyseek.text.tokenizer import Tokenizer

HEAD = "lm_head"
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")  # kinds whose matrices are stacks, one an expert


@dataclass(frozen=True)
class Adapter:
    """One adapter of an engine.

    Attributes:
        name: what requests call it.
        number: its place among the engine's adapters.
        tokenizer: the base's vocabulary with this adapter's chat template and end tokens; none where there is no tokenizer.
        nbytes: of its matrices.
    """

    name: str
    number: int
    folder: Path
    tokenizer: Tokenizer | None
    nbytes: int


@dataclass(frozen=True)
class Stack:
    """All adapters' changes of one kind of matrix [P, Q], float32, in all layers: layer by layer, in each adapter by adapter.

    Attributes:
        a_XQ: rows of A; b_XP: the columns of B, times the adapter's scale. Of an expert stack expert by expert.
        starts_LS: where each layer's rows of each adapter begin, and those of its last one end; int64 [layers, adapters + 1].
    """

    a_XQ: Tensor
    b_XP: Tensor
    starts_LS: Tensor

    def of(self, layer: int, number: int) -> tuple[Tensor, Tensor]:
        """One adapter's A [R, Q] and B [R, P] in a layer: parts of the stack."""
        first, last = self.starts_LS[layer, number : number + 2].tolist()
        return self.a_XQ[first:last], self.b_XP[first:last]


class Adapters:
    """The adapters of an engine. Use `load`.

    Attributes:
        all: by name.
        stacks: by the kind of matrix: its name within a layer (self_attn.q_proj), or lm_head.
    """

    def __init__(self, all: Mapping[str, Adapter], stacks: Mapping[str, Stack]) -> None:
        self.all, self.stacks = dict(all), dict(stacks)
        self._outfits: list[list[tuple[nn.Module, str, Any, Any]]] = []

    @property
    def nbytes(self) -> int:
        """Bytes that the adapters take beside the base."""
        return sum(stack.a_XQ.nbytes + stack.b_XP.nbytes for stack in self.stacks.values())

    def find(self, name: str) -> Adapter:
        """An adapter by its name.

        Raises:
            UserError: there is none of that name.
        """
        if name not in self.all:
            raise UserError(f'there is no adapter "{name}" over this model; {suggestion(name, self.all)}')
        return self.all[name]

    # ---- worn ----

    def bind(self, model: CausalLM) -> None:
        """Make ready to be worn by a model: the one that they were loaded for, whose weights may be packed since."""
        self._outfits = [list(self._outfit(model, number)) for number in range(len(self.all))]

    def _outfit(self, model: CausalLM, number: int) -> Iterator[tuple[nn.Module, str, Any, Any]]:
        """What is to be set where while an adapter is worn, and what was there."""
        experts: dict[nn.Module, WornExperts] = {}
        for kind, stack in self.stacks.items():
            for layer in range(len(stack.starts_LS)):
                a, b = stack.of(layer, number)
                if not len(a):
                    continue
                low = Low(a, b)
                name = kind if kind == HEAD else f"model.layers.{layer}.{kind.removesuffix('.' + _last(kind))}"
                if kind in EXPERTS:
                    mixture, bare = model.get_submodule(name.rpartition(".")[0]), model.get_submodule(name)
                    if mixture not in experts:
                        experts[mixture] = WornExperts(bare)
                        yield mixture, "experts", experts[mixture], bare
                    experts[mixture].changes[_last(kind)] = low
                    continue
                parent = model if kind == HEAD else model.get_submodule(name)
                bare = getattr(parent, _last(kind))
                if isinstance(bare, Router):
                    yield bare, "change", low, None
                else:
                    yield parent, _last(kind), WornLinear(bare, low), bare

    @contextmanager
    def worn(self, adapter: Adapter | None) -> Iterator[None]:
        """The model wears an adapter meanwhile. No other thread may run it then."""
        outfit = self._outfits[adapter.number] if adapter is not None else []
        for module, name, worn, _ in outfit:
            setattr(module, name, worn)
        try:
            yield
        finally:
            for module, name, _, bare in outfit:
                setattr(module, name, bare)

    def add_to_logits(self, logits_RV: Tensor, hidden_RD: Tensor, of_R: Sequence[Adapter | None]) -> None:
        """Add what adapters change of the output head, in place.

        Args:
            logits_RV: the base's; of_R: each row's adapter.
        """
        stack = self.stacks.get(HEAD)
        if stack is None:
            return
        for number in {adapter.number for adapter in of_R if adapter is not None}:
            a, b = stack.of(0, number)
            rows = [row for row, adapter in enumerate(of_R) if adapter is not None and adapter.number == number]
            if len(a):
                logits_RV[rows] += Low(a, b).product(hidden_RD[rows])


def _last(name: str) -> str:
    return name.rpartition(".")[2]


class Low:
    """One change: A [R, Q] and B's columns [R, P]; of an expert stack [E * R, ...]."""

    def __init__(self, a_RQ: Tensor, b_RP: Tensor) -> None:
        self.a_RQ, self.b_RP = a_RQ, b_RP

    def product(self, x: Tensor) -> Tensor:
        """x A^T B^T, float32."""
        return (x.float() @ self.a_RQ.T) @ self.b_RP

    def of(self, weight: Tensor) -> Tensor:
        """The changed weight, float32 (moe.WeightChange)."""
        return torch.addmm(weight.float(), self.b_RP.T, self.a_RQ)


class WornLinear(nn.Module):
    """A linear layer, packed or not, and a change of it."""

    def __init__(self, bare: nn.Module, low: Low) -> None:
        super().__init__()
        self.bare, self.low = bare, low

    @property
    def weight(self) -> Tensor:
        """The changed weight, as MLA's absorbed form reads it."""
        bare = self.bare.weight
        assert isinstance(bare, Tensor)
        return self.low.of(bare).to(bare.dtype)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bare(x)
        return out + self.low.product(x).to(out.dtype)


class WornExperts(nn.Module):
    """The routed experts, packed or not, and changes of their stacks."""

    def __init__(self, bare: nn.Module) -> None:
        super().__init__()
        self.bare = bare
        self.changes: dict[str, Low] = {}  # by the stack's name

    def forward(self, x_ND: Tensor, chosen_NA: Tensor, weights_NA: Tensor) -> Tensor:
        """The weighted sum of each token's experts, [N, D]."""
        gate_up, down = self._stacks()
        product = self._product
        changes = [self.changes.get(name) for name in ("gate_up_proj", "down_proj")]
        return visit(x_ND, chosen_NA, weights_NA, len(gate_up), product(gate_up, changes[0]), product(down, changes[1]))

    def few(self, x_ND: Tensor, chosen_NA: Tensor, weights_NA: Tensor) -> Tensor:
        """The same; here a handful of tokens is no special case."""
        out_ND: Tensor = self(x_ND, chosen_NA, weights_NA)
        return out_ND

    def _stacks(self) -> tuple[Tensor, Tensor]:
        if isinstance(self.bare, PackedExperts):
            return self.bare.gate_up.dense(), self.bare.down.dense()
        assert isinstance(self.bare, Experts)
        return self.bare.gate_up_proj, self.bare.down_proj

    @staticmethod
    def _product(stack_EPQ: Tensor, low: Low | None) -> Grouped:
        def product(x_MQ: Tensor, counts: list[int]) -> Tensor:
            out_MP = grouped_product(x_MQ, stack_EPQ.to(x_MQ.dtype).mT, counts)
            if low is not None:
                a_ERQ, b_ERP = (part.unflatten(0, (len(stack_EPQ), -1)) for part in (low.a_RQ, low.b_RP))
                for x, out, a, b in zip(x_MQ.split(counts), out_MP.split(counts), a_ERQ, b_ERP, strict=True):
                    if len(x):
                        out += ((x.float() @ a.T) @ b).to(out.dtype)
            return out_MP

        return product


# ---- reading ---------------------------------------------------------------------------------------------------------------------


def load_adapters(folders: Mapping[str, Path], model: CausalLM, tokenizer: Tokenizer | None, where: str) -> Adapters:
    """Read the adapters of a model.

    Args:
        folders: by the names that requests will use.
        model: the base, while its weights are floats still.
        where: the base, for people.
    Raises:
        UserError: an adapter that is damaged, of another base, or of a kind that cannot be run beside others; it is named.
    """
    there = {name: place.shape for name, place in lora.places(model).items()}
    hashed = ""
    found: dict[str, on_disk.Adapter] = {}
    for name, folder in folders.items():
        try:
            if on_disk.base_of(folder).hash:
                hashed = hashed or on_disk.fingerprint(model)
                on_disk.check_base(folder, hashed, where)
            found[name] = on_disk.read_adapter(folder, model.config)
            _check(found[name], there)
        except UserError as error:
            raise UserError(f'adapter "{name}": {error}') from None
    stacks = _stacked(list(found.values()), model)
    sizes = [sum(part.a.nbytes + part.b.nbytes for part in read.parts.values()) for read in found.values()]
    return Adapters(
        {
            name: Adapter(name, number, read.folder, _tokenizer(name, read.folder, tokenizer), sizes[number])
            for number, (name, read) in enumerate(found.items())
        },
        stacks,
    )


def why_merged(folder: Path) -> str:
    """Why an adapter cannot be run beside others but only merged with its base; empty where it can.

    Raises:
        UserError: it cannot be read.
    """
    from tinyseek.model.checkpoint import read_config

    return _unfit(on_disk.read_adapter(folder, read_config(on_disk.find_base(folder))))


def _unfit(read: on_disk.Adapter) -> str:
    if read.whole:
        return f"it holds modules that were trained whole ({next(iter(read.whole))})"
    long = [name for name, part in read.parts.items() if part.magnitude is not None]
    return f"it is a DoRA adapter, which changes whole rows ({long[0]})" if long else ""


def _check(read: on_disk.Adapter, there: Mapping[str, torch.Size]) -> None:
    """UserError for what cannot be run, or does not fit the model."""
    if why := _unfit(read):
        raise UserError(
            f"{read.folder}: {why}, so it cannot share its base with others; merge it (tinyseek merge {read.folder} OUT) and "
            "serve what comes out"
        )
    for name, part in read.parts.items():
        if name not in there:
            raise UserError(
                f"{read.folder}: changes {name}, which this model does not have; it is another kind of model's"
            )
        *stack, rows, width = there[name]
        ours = ([*part.a.shape], [*part.b.shape])
        if ours != ([*stack, part.rank, width], [*stack, rows, part.rank]):
            raise UserError(
                f"{read.folder}: its change of {name} is {ours[1]} times {ours[0]}, and the matrix here {[*there[name]]}; "
                "it is for another model"
            )


def _stacked(found: Sequence[on_disk.Adapter], model: CausalLM) -> dict[str, Stack]:
    """Every kind of matrix that any adapter changes."""
    layers = model.config.num_hidden_layers
    kinds: dict[str, dict[tuple[int, int], tuple[Tensor, Tensor]]] = {}
    for number, read in enumerate(found):
        for name, part in read.parts.items():
            layer, kind = _place(name)
            a_RQ, b_RP = part.a.float().flatten(0, -2), (part.b.float() * part.scale).mT.flatten(0, -2)
            kinds.setdefault(kind, {})[layer, number] = (a_RQ, b_RP)
    out = {}
    for kind, parts in kinds.items():
        order = [(layer, number) for layer in range(1 if kind == HEAD else layers) for number in range(len(found))]
        counts = torch.tensor([len(parts[at][0]) if at in parts else 0 for at in order]).view(-1, len(found))
        ends = counts.flatten().cumsum(0).view_as(counts)
        starts_LS = torch.cat((ends[:, :1] - counts[:, :1], ends), dim=1)
        a_XQ, b_XP = (torch.cat([parts[at][which] for at in order if at in parts]) for which in (0, 1))
        out[kind] = Stack(a_XQ.to(model.device), b_XP.to(model.device), starts_LS)
    return out


def _place(name: str) -> tuple[int, str]:
    """`model.layers.3.self_attn.q_proj` as 3 and `self_attn.q_proj`."""
    if not name.startswith("model.layers."):
        return 0, name
    _, _, layer, kind = name.split(".", 3)
    return int(layer), kind


def _tokenizer(name: str, folder: Path, base: Tokenizer | None) -> Tokenizer | None:
    """The base's tokenizer, with the chat template and the end tokens that an adapter's folder brings."""
    if base is None or not (folder / "tokenizer.json").is_file():
        return base
    own = Tokenizer.load(folder)
    if not own.same_vocabulary(base):
        raise UserError(
            f'adapter "{name}": {folder}: its tokenizer is not the base\'s; it cannot share the base with others'
        )
    same = own.chat_template == base.chat_template and own.stop_ids == base.stop_ids
    return base if same else own
