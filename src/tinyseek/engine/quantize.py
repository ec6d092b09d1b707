"""Weights in fewer bytes: bfloat16, int8 with a scale a row, int4 with a scale and a least value every 32.

Only the weights are packed (the formats: model/packed.py); activations stay float32, and so do norms, biases, the router and MLA's
kv_b, which both forms of attention read. A packed matrix multiplies a few rows by compiled loops (products.py), many rows by
widening itself once.

The output head stays int8 under int4, as in llama.cpp's files: every answer's last step reads it, and errors there reach the text
unsmoothed. A model out of a Q4_1 file is packed again without any loss.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyseek.model import packed as formats
from tinyseek.model.moe import Experts, grouped_product
from tinyseek.model.packed import Format, pack_int4, pack_int8, packed, unpack
from tinyseek.model.transformer import CausalLM

__all__ = ["Format", "PackedWeight", "bits_per_weight", "pack", "pack_int4", "pack_int8", "packed", "unpack"]

FEW = 16  # rows up to which the compiled loops beat widening and a product of torch's

COMPILED = importlib.util.find_spec("numba") is not None


def head_format(format: Format) -> Format:
    """The format of the output head beside matrices of this one."""
    return "int8" if format == "int4" else format


def arrays(parts: tuple[Tensor, ...]) -> Any:
    """The packed weight as the tuple of NumPy arrays that products.py takes, without a copy."""
    sixteen = (torch.bfloat16, torch.int16)
    return tuple((p.view(torch.uint16) if p.dtype in sixteen else p).detach().numpy() for p in parts)


class PackedWeight(formats.PackedWeight):
    """The same, widened by compiled loops where there are any."""

    def dense(self, index: int | None = None) -> Tensor:
        parts = self.parts if index is None else tuple(part[index] for part in self.parts)
        if not COMPILED or self.device.type != "cpu":
            return unpack(parts)
        from tinyseek.engine import products

        rows, width = self.shape[-2:]
        flat = tuple(part.flatten(0, -2) if part.ndim > 2 else part for part in parts)
        if self.count == 2 and flat[1].ndim > 1:
            flat = (flat[0], flat[1].flatten())
        out = torch.empty(flat[0].shape[0], width)
        products.dense(threads(), arrays(flat), out.numpy())
        return out if index is not None or len(self.shape) == 2 else out.view(-1, rows, width)


class PackedLinear(PackedWeight):
    """A linear layer over a packed weight; x and what comes out are float32 (on a GPU x's own format)."""

    def __init__(self, linear: nn.Linear, format: Format) -> None:
        super().__init__(linear.weight, format)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """The weight as float32, made anew at each call."""
        return self.dense()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if not COMPILED or self.device.type != "cpu" or rows > FEW or x.dtype != torch.float32:
            return F.linear(x, self.dense().to(x.dtype), self.bias)
        from tinyseek.engine import products

        out = torch.zeros(rows, self.shape[0])
        products.add_product(threads(), arrays(self.parts), x.reshape(rows, -1).contiguous().numpy(), out.numpy())
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], -1)


class PackedEmbedding(nn.Module):
    """An embedding that reads its rows out of the output head's packed weight, where the two are tied."""

    def __init__(self, head: PackedWeight) -> None:
        super().__init__()
        self.head = [head]  # in a list, so that it is not a second owner

    def forward(self, ids: Tensor) -> Tensor:
        rows = tuple(part[ids.flatten()] for part in self.head[0].parts)
        return unpack(rows).view(*ids.shape, -1)


class PackedExperts(nn.Module):
    """The routed experts over packed stacks (moe.Experts): each expert that a token visits is widened for its visit."""

    def __init__(self, experts: Experts, format: Format) -> None:
        super().__init__()
        self.gate_up = PackedWeight(experts.gate_up_proj, format)
        self.down = PackedWeight(experts.down_proj, format)

    def forward(self, x_ND: Tensor, chosen_NA: Tensor, weights_NA: Tensor) -> Tensor:
        active, experts = chosen_NA.shape[1], self.gate_up.shape[0]
        order_M = chosen_NA.flatten().argsort(stable=True)
        counts = torch.bincount(chosen_NA.flatten(), minlength=experts).tolist()
        x_MD = x_ND.index_select(0, order_M // active)
        gate_MI, up_MI = grouped_product(x_MD, self.gate_up.dense().to(x_MD.dtype).mT, counts).chunk(2, dim=-1)
        out_MD = grouped_product(F.silu(gate_MI) * up_MI, self.down.dense().to(x_MD.dtype).mT, counts)
        visits_NAD = out_MD.index_select(0, order_M.argsort()).unflatten(0, (-1, active))
        return torch.einsum("nad,na->nd", visits_NAD, weights_NA.to(visits_NAD.dtype)).to(x_ND.dtype)

    def few(self, x_ND: Tensor, chosen_NA: Tensor, weights_NA: Tensor) -> Tensor:
        """The same; here a handful of tokens is no special case."""
        out_ND: Tensor = self(x_ND, chosen_NA, weights_NA)
        return out_ND


def threads() -> int:
    """Threads for the compiled loops: as many as torch uses in this thread, made known to numba.

    Both keep their number a thread, and numba's first loop sets torch's to its own: hence the last line.
    """
    import numba

    settings: Any = numba.config
    count: int = min(torch.get_num_threads(), settings.NUMBA_NUM_THREADS)
    numba.set_num_threads(count)
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
    return count


@torch.no_grad()
def pack(model: CausalLM, format: Format) -> CausalLM:
    """Replace the model's large matrices by packed ones, one after the other so that memory only falls. It is for inference then.

    On a CPU the rest of the model becomes float32, which is what the compiled loops compute in.
    """
    tied = model.config.tie_word_embeddings
    for block in [*model.model.layers, *model.mtp]:
        for module in list(block.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear) and name != "kv_b_proj":
                    setattr(module, name, PackedLinear(child, format))
                elif isinstance(child, Experts):
                    setattr(module, name, PackedExperts(child, format))
    head = PackedLinear(model.lm_head, head_format(format))
    model.lm_head = head  # type: ignore[assignment]
    if tied:
        model.model.embed_tokens = PackedEmbedding(head)  # type: ignore[assignment]
    if head.device.type == "cpu":
        for parameter in model.parameters():
            parameter.data = parameter.data.float()
    return model.eval()


def bits_per_weight(model: CausalLM) -> float:
    """Bits that a packed model holds a weight, over its packed matrices."""
    weights = [module for module in model.modules() if isinstance(module, PackedWeight)]
    size = sum(part.numel() * part.element_size() for weight in weights for part in weight.parts)
    return 8 * size / max(sum(weight.shape.numel() for weight in weights), 1)
