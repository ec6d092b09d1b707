"""CausalLM: the language model that a ModelConfig describes, from GPT-2 to DeepSeek-V3."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyseek.model.attention import Context, KeyValueCache, causal_mask
from tinyseek.model.block import Block
from tinyseek.model.config import ModelConfig
from tinyseek.model.documents import lay_out, lengths
from tinyseek.model.layers import make_norm
from tinyseek.model.loss import IGNORED, linear_cross_entropy
from tinyseek.model.moe import MixtureOfExperts
from tinyseek.model.mtp import MTPModule
from tinyseek.model.rope import angles, sinusoids


class Cache(KeyValueCache, Protocol):
    """What the model asks of a cache of earlier positions, besides what attention asks."""

    def positions(self, new: int) -> Tensor:
        """The positions of the next `new` tokens, int64 [T], or [B, T] where sequences differ."""
        ...

    def mask(self, new: int, window: int | None = None) -> Tensor | None:
        """bool [B or 1, 1, T, S]: where the next `new` tokens may look among all S = cached + new; none if everywhere they
        should."""
        ...


@dataclass
class Losses:
    """A batch's losses in nats. Each is a sum over the batch divided by one denominator, so that those of micro-batches add
    up."""

    total: Tensor  # what to differentiate: next + weight * mtp + weight * balance
    next: Tensor  # cross-entropy of the next token
    mtp: Tensor  # cross-entropy of the tokens after it, mean over depths; 0 without MTP
    balance: (
        Tensor  # the experts' sequence-wise balance loss, mean over layers; 1 is perfect balance, 0 without experts
    )
    tokens: Tensor  # how many targets the batch had


class Model(nn.Module):
    """Embedding, blocks and the last norm: everything below the head. Parameter names are the Hugging Face Llama's and
    DeepSeek's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        learned = config.positions == "learned"
        self.embed_positions = embedding(config.max_position_embeddings, config.hidden_size) if learned else None
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = make_norm(config)


def embedding(rows: int, width: int) -> nn.Embedding:
    """A table of vectors; on the meta device without numbers to begin with, since torch imports its compiler to draw normal ones
    there: a second of every start."""
    if torch.get_default_device().type == "meta":
        empty: nn.Embedding = nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)
        return empty
    return nn.Embedding(rows, width)


class CausalLM(nn.Module):
    """A causal language model.

    model = CausalLM.load(folder)     # any supported checkpoint folder
    logits_BTV = model(ids_BT)        # float32 logits for every position
    model.save(folder)
    """

    def __init__(self, config: ModelConfig) -> None:
        """A model with fresh weights; see `initialise`."""
        super().__init__()
        self.config = config
        self.model = Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        depths = range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers)
        self.mtp = nn.ModuleList(MTPModule(config, layer) for layer in depths)
        self.noise = 0.0  # on the embeddings in training: NEFTune's alpha
        self.fixed_shapes = False  # documents by a mask: slower, but of one shape, as a compiler wants its batches
        self._angles: tuple[Tensor, Tensor] | None = None
        if self.lm_head.weight.device.type != "meta":
            self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Fresh weights: normal with `initializer_range`; norms 1, biases 0; what adds to the residual stream is divided by
        sqrt(2 * layers), so that its variance does not grow with depth (GPT-2 report, section 2.3)."""
        std = self.config.initializer_range
        residual_std = std / math.sqrt(2 * self.config.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                parameter.normal_(0.0, residual_std)
            else:
                parameter.normal_(0.0, std)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the layers compute in, and a cache holds."""
        return next(self.parameters()).dtype

    def forward(self, ids_BT: Tensor, *, documents_BT: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Logits of the token after each position, float32 [B, T, V].

        Args:
            ids_BT: token ids.
            documents_BT: which document of its row each token belongs to; tokens see their own document alone and positions begin
                again in each. None: one document a row.
            cache: earlier positions, to which these are appended.
        """
        hidden_BTD, _, _ = self.hidden(ids_BT, documents_BT, cache)
        logits: Tensor = self.lm_head(hidden_BTD).float()
        return logits

    def hidden(
        self, ids_BT: Tensor, documents_BT: Tensor | None = None, cache: Cache | None = None
    ) -> tuple[Tensor, list[Tensor], Context]:
        """The last norm's output [B, T, D], the balance losses a sequence [B] of each sparse layer, and the pass's context."""
        positions, context = self._context(ids_BT, documents_BT, cache)
        x_BTD = self.model.embed_tokens(ids_BT)
        if self.model.embed_positions is not None:
            x_BTD = x_BTD + self.model.embed_positions(positions)
        elif self.config.positions == "sinusoidal":
            x_BTD = x_BTD + sinusoids(int(positions.max()) + 1, self.config.hidden_size).to(x_BTD)[positions]
        if self.training and self.noise:
            x_BTD = x_BTD + self._noise(x_BTD, documents_BT)
        balances = []
        for block in self.model.layers:
            x_BTD, balance = block(x_BTD, context)
            if balance is not None:
                balances.append(balance)
        return self.model.norm(x_BTD), balances, context

    def loss(
        self,
        ids_BT: Tensor,
        targets_BT: Tensor,
        documents_BT: Tensor | None = None,
        denominator: Tensor | float | None = None,
    ) -> Losses:
        """The training losses of a batch, with every depth of multi-token prediction that is trained.

        Args:
            targets_BT: the token after each position, or -100 where nothing is to be learned.
            denominator: what sums over tokens are divided by; default the number of targets. With accumulation it is the
                number of targets of all micro-batches together, so that their gradients add up to the large batch's exactly:
                cross-entropy by tokens, the balance loss by each sequence's share of the targets.
        """
        config = self.config
        hidden_BTD, balances, context = self.hidden(ids_BT, documents_BT)
        tokens_B = (targets_BT != IGNORED).sum(-1)
        tokens = tokens_B.sum()
        by = tokens.clamp(min=1) if denominator is None else denominator
        following = self._cross_entropy(hidden_BTD, targets_BT) / by
        ahead = following.new_zeros(())
        # Modules that are frozen are left as they are by what the trunk learns, too.
        ahead_of = self.mtp if any(parameter.requires_grad for parameter in self.mtp.parameters()) else ()
        for depth, module in enumerate(ahead_of, start=1):
            assert isinstance(module, MTPModule)
            targets = targets_BT[:, depth:]
            if documents_BT is not None:  # a prediction across the border of a document teaches nothing
                targets = targets.masked_fill(documents_BT[:, depth:] != documents_BT[:, :-depth], IGNORED)
            embedded = self.model.embed_tokens(ids_BT[:, depth:])
            shorter = _shorter(context, ids_BT.shape[1] - depth, documents_BT)
            hidden_BTD, balance = module.predict(hidden_BTD[:, :-1], embedded, shorter)
            ahead = ahead + self._cross_entropy(hidden_BTD, targets) / by / len(self.mtp)
            if balance is not None:
                balances.append(balance)
        balance = torch.stack(balances).mean(0) @ (tokens_B / by).float() if balances else following.new_zeros(())
        total = following + config.mtp_loss_weight * ahead + config.balance_loss_weight * len(balances) * balance
        return Losses(total, following.detach(), ahead.detach(), balance.detach(), tokens)

    def _noise(self, x_BTD: Tensor, documents_BT: Tensor | None) -> Tensor:
        """Uniform in +-alpha / sqrt(L D) of a sequence of L tokens (NEFTune, arXiv 2310.05914, algorithm 1)."""
        length: Tensor | int = x_BTD.shape[1]
        if documents_BT is not None:
            length = lengths(documents_BT).unsqueeze(-1)
        size = self.noise * torch.rsqrt(torch.as_tensor(length * x_BTD.shape[2], dtype=torch.float32))
        return (torch.empty_like(x_BTD, dtype=torch.float32).uniform_(-1, 1) * size.to(x_BTD.device)).to(x_BTD.dtype)

    def _cross_entropy(self, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        return linear_cross_entropy(hidden_BTD.flatten(0, 1), self.lm_head.weight, targets_BT.flatten())

    def _context(self, ids_BT: Tensor, documents_BT: Tensor | None, cache: Cache | None) -> tuple[Tensor, Context]:
        """Positions [T] or [B, T], and what the layers share."""
        new, window = ids_BT.shape[1], self.config.sliding_window
        mask = window_mask = documents = None
        if cache is not None:
            positions = cache.positions(new)
            mask = cache.mask(new)
            window_mask = cache.mask(new, window) if window else mask
        elif documents_BT is not None:
            positions = _positions_in_documents(documents_BT)
            if self.fixed_shapes:
                same = (documents_BT[:, :, None] == documents_BT[:, None, :])[:, None]
                mask = same & causal_mask(new, new, ids_BT.device)
                window_mask = same & causal_mask(new, new, ids_BT.device, window) if window else mask
            else:
                documents = lay_out(documents_BT)
        else:
            positions = torch.arange(new, device=ids_BT.device)
            window_mask = causal_mask(new, new, ids_BT.device, window) if window else None
        cos, sin = self._rotary(positions, new, cache is None)
        return positions, Context(cos, sin, mask, window_mask, cache, documents)

    def _rotary(self, positions: Tensor, new: int, from_zero: bool) -> tuple[Tensor, Tensor]:
        """cos and sin of the positions, out of a table that grows as longer sequences come."""
        if self.config.positions != "rotary":
            return positions, positions
        length = new if from_zero else int(positions.max()) + 1
        if self._angles is None or self._angles[0].shape[0] < length or self._angles[0].device != positions.device:
            with torch.inference_mode(False):  # the table outlives this pass, and training may come next
                self._angles = angles(self.config, 1 << (length - 1).bit_length(), positions.device)
        cos, sin = self._angles
        if from_zero and positions.ndim == 1:
            return cos[:new], sin[:new]
        return cos[positions], sin[positions]

    def experts(self) -> Iterator[tuple[int, MixtureOfExperts]]:
        """Every sparse layer's number and mixture, the MTP modules' after the main model's."""
        for layer, block in enumerate([*self.model.layers, *self.mtp]):
            assert isinstance(block, Block)
            if isinstance(block.mlp, MixtureOfExperts):
                yield layer, block.mlp

    def update_balance(self) -> None:
        """Move the routing biases by the load since the last call. Once an optimiser step."""
        for _, mixture in self.experts():
            mixture.gate.update_balance()

    def expert_load(self) -> dict[int, list[float]]:
        """Layer -> each expert's share of the visits since the last `update_balance`; 1/E each is perfect balance."""
        shares = {
            layer: mixture.gate.load_E / mixture.gate.load_E.sum().clamp(min=1) for layer, mixture in self.experts()
        }
        return {layer: share.tolist() for layer, share in shares.items()}

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Self:
        """Read a checkpoint folder: ours, or transformers' of a supported family (safetensors only).

        Raises:
            UserError: no such folder; an unsupported family; a tensor that is missing, of another shape, or cut short.
        """
        from tinyseek.model.checkpoint import load

        return load(cls, Path(folder), dtype, torch.device(device))

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the checkpoint folder that `load`, transformers, vLLM and Ollama read. See `checkpoint.save`."""
        from tinyseek.model.checkpoint import save

        save(self, Path(folder), dtype)


def _positions_in_documents(documents_BT: Tensor) -> Tensor:
    """Positions that begin again at 0 in each document of a row, int64 [B, T]."""
    index = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    begins = F.pad(documents_BT[:, 1:] != documents_BT[:, :-1], (1, 0), value=True)
    return index - torch.where(begins, index, 0).cummax(dim=1).values


def _shorter(context: Context, length: int, documents_BT: Tensor | None) -> Context:
    """The context of the first `length` positions of each row."""

    def cut(mask: Tensor | None) -> Tensor | None:
        return None if mask is None else mask[..., :length, :length]

    cos, sin = (table[..., :length, :] if table.is_floating_point() else table for table in (context.cos, context.sin))
    documents = None
    if context.documents is not None and documents_BT is not None:
        documents = lay_out(documents_BT[:, :length])
    return Context(cos, sin, cut(context.mask), cut(context.window_mask), None, documents)
