"""Mixture of experts as DeepSeek trains it: shared experts, group-limited routing, balance without an auxiliary loss.

Sources: DeepSeekMoE (arXiv 2401.06066); DeepSeek-V3 report (arXiv 2412.19437) eq. 12-20; auxiliary-loss-free balancing (arXiv
2408.15664).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyseek.model.config import ModelConfig
from tinyseek.model.layers import MLP


class WeightChange(Protocol):
    """A change of a weight that lies beside it (lora.Change)."""

    def of(self, weight: Tensor) -> Tensor:
        """The changed weight."""
        ...


class Router(nn.Module):
    """Chooses each token's experts. `e_score_correction_bias` moves the choice only, never the weight, and has no gradient.

    A router whose weight is frozen is a finished one: its bias stays where it is, and no balance loss is taken on it.
    """

    e_score_correction_bias: Tensor
    load_E: Tensor
    change: WeightChange | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.experts, self.active = config.n_routed_experts, config.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(self.experts, config.hidden_size))
        self.change = None
        self.register_buffer(
            "e_score_correction_bias", torch.zeros(self.experts), persistent=config.topk_method == "noaux_tc"
        )
        self.register_buffer(
            "load_E", torch.zeros(self.experts), persistent=False
        )  # tokens a expert since the last update

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Route each token.

        Args:
            x_ND: hidden states.
        Returns:
            Expert indices [N, A], float32 weights [N, A], float32 scores [N, E] of all experts.
        """
        with torch.autocast(x_ND.device.type, enabled=False):  # a choice between near equals wants all its digits
            weight_ED = self.weight.float() if self.change is None else self.change.of(self.weight)
            affinity_NE = F.linear(x_ND.float(), weight_ED)
        scores_NE = affinity_NE.sigmoid() if self.config.scoring_func == "sigmoid" else affinity_NE.softmax(dim=-1)
        chosen_NA = self._choose(scores_NE.detach())
        weights_NA = scores_NE.gather(-1, chosen_NA)
        if self.config.norm_topk_prob and self.config.scoring_func == "sigmoid":
            weights_NA = weights_NA / (weights_NA.sum(-1, keepdim=True) + 1e-20)
        return chosen_NA, weights_NA * self.config.routed_scaling_factor, scores_NE

    def _choose(self, scores_NE: Tensor) -> Tensor:
        """The A best experts by biased score, out of each token's best groups (V3, section 2.1.2, node-limited routing)."""
        config = self.config
        if config.topk_method == "noaux_tc":
            scores_NE = scores_NE + self.e_score_correction_bias
        if config.topk_method != "greedy" and config.topk_group < config.n_group:
            grouped = scores_NE.unflatten(-1, (config.n_group, -1))
            best = grouped.topk(2, dim=-1).values.sum(-1) if config.topk_method == "noaux_tc" else grouped.amax(-1)
            kept = torch.zeros_like(best, dtype=torch.bool).scatter_(
                -1, best.topk(config.topk_group, dim=-1).indices, True
            )
            scores_NE = grouped.masked_fill(~kept.unsqueeze(-1), -torch.inf).flatten(-2)
        return scores_NE.topk(self.active, dim=-1).indices

    def balance_loss(self, chosen_NA: Tensor, scores_NE: Tensor, sequences: int) -> Tensor:
        """The balance loss of each sequence, before its weight: sum_i f_i P_i, [B] (V3 eq. 17-20).

        f_i is E / (A T) times the count of expert i among the sequence's choices, P_i the mean of its normalised score.
        """
        scores_BTE = (scores_NE / scores_NE.sum(-1, keepdim=True)).unflatten(0, (sequences, -1))
        counts_BE = torch.zeros(sequences, self.experts, device=scores_NE.device)
        choice = chosen_NA.reshape(sequences, -1)
        counts_BE.scatter_add_(1, choice, torch.ones_like(choice, dtype=torch.float32))
        frequency_BE = counts_BE * (self.experts / choice.shape[1])
        losses_B: Tensor = (frequency_BE * scores_BTE.mean(1)).sum(-1)
        return losses_B

    @torch.no_grad()
    def count(self, chosen_NA: Tensor) -> None:
        """Add a batch's choices to the load, from which the bias is moved."""
        self.load_E += torch.bincount(chosen_NA.flatten(), minlength=self.experts)

    @torch.no_grad()
    def update_balance(self) -> None:
        """Move the bias of each expert a step up if it had less than its share, down if it had more; clear the load.

        Once an optimiser step, so that accumulation sees one bias throughout.
        """
        if self.config.topk_method == "noaux_tc" and self.weight.requires_grad:
            self.e_score_correction_bias += self.config.balance_bias_rate * (self.load_E.mean() - self.load_E).sign()
        self.load_E.zero_()


class GroupedMLP(torch.autograd.Function):
    """Every expert's SwiGLU over its own slice of rows that are sorted by expert.

    One matrix product an expert, written straight into one output: no padding, no copies of weights, and in the backward no
    zero-filled gradients of slices, which is what makes a loop over `x[start:end]` slow under autograd. The gate's activation is
    computed again in the backward rather than kept, and frozen weights get no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, gate_up_EJD: Tensor, down_EDI: Tensor, counts: list[int]) -> Tensor:
        inner_MJ = grouped_product(x_MD, gate_up_EJD.mT, counts)
        gate_MI, up_MI = inner_MJ.chunk(2, dim=-1)
        out_MD = grouped_product(F.silu(gate_MI) * up_MI, down_EDI.mT, counts)
        ctx.save_for_backward(x_MD if ctx.needs_input_grad[1] else None, gate_up_EJD, down_EDI, inner_MJ)
        ctx.counts = counts
        return out_MD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_MD, gate_up_EJD, down_EDI, inner_MJ = ctx.saved_tensors
        counts, (dout_MD,) = ctx.counts, grads
        gate_MI, up_MI = inner_MJ.chunk(2, dim=-1)
        gate_silu = F.silu(gate_MI)
        dhidden_MI = grouped_product(dout_MD, down_EDI, counts)
        ddown_EDI = grouped_outer(dout_MD, gate_silu * up_MI, counts) if ctx.needs_input_grad[2] else None
        dinner_MJ = torch.empty_like(inner_MJ)
        dgate_MI, dup_MI = dinner_MJ.chunk(2, dim=-1)
        torch.mul(dhidden_MI, gate_silu, out=dup_MI)
        torch.ops.aten.silu_backward.grad_input(dhidden_MI * up_MI, gate_MI, grad_input=dgate_MI)
        dgate_up_EJD = grouped_outer(dinner_MJ, x_MD, counts) if ctx.needs_input_grad[1] else None
        dx_MD = grouped_product(dinner_MJ, gate_up_EJD, counts) if ctx.needs_input_grad[0] else None
        return dx_MD, dgate_up_EJD, ddown_EDI, None


def grouped_product(x_MP: Tensor, weight_EPQ: Tensor, counts: list[int]) -> Tensor:
    """Rows of each expert's slice times its matrix: [M, Q]."""
    out_MQ = x_MP.new_empty(x_MP.shape[0], weight_EPQ.shape[2])
    for rows, weight_PQ, out in zip(x_MP.split(counts), weight_EPQ, out_MQ.split(counts), strict=True):
        if rows.shape[0]:
            torch.mm(rows, weight_PQ, out=out)
    return out_MQ


def grouped_outer(a_MP: Tensor, b_MQ: Tensor, counts: list[int]) -> Tensor:
    """The sum of outer products over each expert's rows, a weight's gradient: [E, P, Q]."""
    out_EPQ = a_MP.new_empty(len(counts), a_MP.shape[1], b_MQ.shape[1])
    for a, b, out in zip(a_MP.split(counts), b_MQ.split(counts), out_EPQ, strict=True):
        torch.mm(a.T, b, out=out)  # zero rows give zeros
    return out_EPQ


class Experts(nn.Module):
    """The routed experts, stacked so that one tensor holds all: gate and up [E, 2I, D] (gate first), down [E, D, I]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        experts, width, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, inner))

    def forward(self, x_ND: Tensor, chosen_NA: Tensor, weights_NA: Tensor) -> Tensor:
        """The weighted sum of each token's experts, [N, D]."""
        active = chosen_NA.shape[1]
        order_M = chosen_NA.flatten().argsort(stable=True)  # M = N * A visits, sorted by expert
        counts = torch.bincount(chosen_NA.flatten(), minlength=self.gate_up_proj.shape[0]).tolist()
        x_MD = x_ND.index_select(0, order_M // active)
        gate_up: Tensor = self.gate_up_proj
        down: Tensor = self.down_proj
        if torch.is_autocast_enabled(x_ND.device.type):
            dtype = torch.get_autocast_dtype(x_ND.device.type)
            x_MD, gate_up, down = x_MD.to(dtype), gate_up.to(dtype), down.to(dtype)
        out_MD: Tensor = GroupedMLP.apply(x_MD, gate_up, down, counts)  # type: ignore[no-untyped-call]
        back_M = order_M.argsort()  # where each token's visits went
        visits_NAD = out_MD.index_select(0, back_M).unflatten(0, (-1, active))
        return torch.einsum("nad,na->nd", visits_NAD, weights_NA.to(visits_NAD.dtype)).to(x_ND.dtype)

    def few(self, x_ND: Tensor, chosen_NA: Tensor, weights_NA: Tensor) -> Tensor:
        """The same for a handful of tokens without gradients: each visit reads its expert's weights where they lie."""
        out_ND = torch.zeros_like(x_ND)
        weights = weights_NA.to(x_ND.dtype)
        for token, experts in enumerate(chosen_NA.tolist()):
            x = x_ND[token : token + 1]
            for slot, expert in enumerate(experts):
                gate, up = F.linear(x, self.gate_up_proj[expert]).chunk(2, dim=-1)
                visit = F.linear(F.silu(gate) * up, self.down_proj[expert])
                out_ND[token] += weights[token, slot] * visit[0]
        return out_ND


class MixtureOfExperts(nn.Module):
    """Routed experts plus the shared ones that every token visits (V3 eq. 12)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        shared = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = MLP(config, shared) if shared else None
        self.balanced = config.balance_loss_weight > 0

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the output [B, T, D] and, in training, each sequence's balance loss [B]."""
        x_ND = x_BTD.flatten(0, 1)
        chosen_NA, weights_NA, scores_NE = self.gate(x_ND)
        balance = None
        if self.training:
            self.gate.count(chosen_NA)
            if self.balanced and self.gate.weight.requires_grad:
                balance = self.gate.balance_loss(chosen_NA, scores_NE, x_BTD.shape[0])
        few = x_ND.shape[0] * chosen_NA.shape[1] <= 8 and not torch.is_grad_enabled()
        out_ND = (self.experts.few if few else self.experts)(x_ND, chosen_NA, weights_NA)
        if self.shared_experts is not None:
            out_ND = out_ND + self.shared_experts(x_ND)
        return out_ND.view_as(x_BTD), balance
