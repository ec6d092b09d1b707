"""Weights in fewer bytes: bfloat16, int8 with a scale a row, int4 with a scale and a least value every 32.

Only the weights are packed; activations stay float32, and so do norms, biases, the router and MLA's kv_b, which both forms of
attention read. A packed matrix multiplies a few rows by compiled loops (products.py), many rows by widening itself once.

    int8   w = scale_row * q,             q in -127..127     8.0 bits a weight
    int4   w = least_group + scale * q,   q in 0..15         5.0 bits a weight, the grid of llama.cpp's Q4_1

The output head stays int8 under int4, as in llama.cpp's files: every answer's last step reads it, and errors there reach the text
unsmoothed. A model out of a Q4_1 file is packed again without any loss.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyseek.model.moe import Experts, grouped_product
from tinyseek.model.transformer import CausalLM

Format = Literal["float32", "bfloat16", "int8", "int4"]
GROUP = 32  # weights that share a scale in int4
PAIR = 2 * GROUP  # weights that share bytes in int4: a row's length must be a multiple
FEW = 16  # rows up to which the compiled loops beat widening and a product of torch's
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)  # parts of a group's range that are tried as its range

COMPILED = importlib.util.find_spec("numba") is not None


def pack_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[..., P, Q] to int8 [..., P, Q] and float32 scales [..., P]: each row by its largest magnitude."""
    weight = weight.float()
    scale = (weight.abs().amax(-1) / 127).clamp(min=1e-12)
    return (weight / scale.unsqueeze(-1)).round().clamp(-127, 127).to(torch.int8), scale


def pack_int4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[..., P, Q] to bytes [..., P, Q / 2], scales and least values [..., P, Q / 32] (the bits of float16).

    Of five ranges a group, from all that lies between its extremes to four fifths of it, the one with the least squared error.
    """
    groups = weight.float().unflatten(-1, (-1, GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    best_error = torch.full_like(low, torch.inf)
    q, scale, least = torch.zeros_like(groups), torch.zeros_like(low), torch.zeros_like(low)
    for shrink in SHRINKS:
        middle, half = (high + low) / 2, (high - low) / 2 * shrink
        tried_least = (middle - half).half().float()
        tried_scale = (2 * half / 15).half().float().clamp(min=1e-7)
        tried = ((groups - tried_least) / tried_scale).round().clamp(0, 15)
        error = (tried * tried_scale + tried_least - groups).square().sum(-1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        q, scale, least = (
            torch.where(better, new, old) for new, old in ((tried, q), (tried_scale, scale), (tried_least, least))
        )
    halves = q.to(torch.uint8).flatten(-2).unflatten(-1, (-1, 2, GROUP))
    packed = (halves[..., 0, :] | halves[..., 1, :] << 4).flatten(-2)
    return packed, scale.squeeze(-1).half().view(torch.int16), least.squeeze(-1).half().view(torch.int16)


def unpack(parts: tuple[Tensor, ...]) -> Tensor:
    """The packed weight as float32, in plain torch: any device, and what the compiled loops are held equal to."""
    first = parts[0]
    if first.dtype == torch.int8:
        return first.float() * parts[1].unsqueeze(-1)
    if first.dtype == torch.uint8:
        pairs = first.unflatten(-1, (-1, 1, GROUP))
        q = torch.cat((pairs & 15, pairs >> 4), dim=-2).flatten(-3, -2).float()
        scale, least = (part.view(torch.float16).float().unsqueeze(-1) for part in parts[1:])
        return (q * scale + least).flatten(-2)
    return first.float()


def packed(weight: Tensor, format: Format) -> tuple[Tensor, ...]:
    """A weight in a format; int4 falls back to int8 where its rows are no multiple of 64 long."""
    if format == "int4" and weight.shape[-1] % PAIR == 0:
        return pack_int4(weight)
    if format in ("int4", "int8"):
        return pack_int8(weight)
    return (weight.to(getattr(torch, format)).contiguous(),)


def head_format(format: Format) -> Format:
    """The format of the output head beside matrices of this one."""
    return "int8" if format == "int4" else format


def arrays(parts: tuple[Tensor, ...]) -> Any:
    """The packed weight as the tuple of NumPy arrays that products.py takes, without a copy."""
    sixteen = (torch.bfloat16, torch.int16)
    return tuple((p.view(torch.uint16) if p.dtype in sixteen else p).detach().numpy() for p in parts)


class PackedWeight(nn.Module):
    """A weight, or a stack of them, in few bytes. `dense` widens it: [P, Q], or of a stack the one at `index`."""

    def __init__(self, weight: Tensor, format: Format) -> None:
        super().__init__()
        self.shape = weight.shape
        self.count = 0
        for part in packed(weight.detach(), format):
            self.register_buffer(f"part_{self.count}", part)
            self.count += 1

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return tuple(self.get_buffer(f"part_{i}") for i in range(self.count))

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

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

        out = torch.empty(rows, self.shape[0])
        products.product(threads(), arrays(self.parts), x.reshape(rows, -1).contiguous().numpy(), False, out.numpy())
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
