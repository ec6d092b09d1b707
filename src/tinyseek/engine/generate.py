"""Generation with a cache: the prompt in one pass, then a token a step, for one prompt as a stream or for many at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tinyseek.engine.cache import ContiguousCache
from tinyseek.engine.sampler import SamplingParams, sample
from tinyseek.engine.step import CompiledStep, is_compiled
from tinyseek.errors import UserError
from tinyseek.model.transformer import CausalLM


def stream(model: CausalLM, prompt: Sequence[int], params: SamplingParams) -> Iterator[int]:
    """New tokens after one prompt, each as soon as it is drawn.

    Raises:
        UserError: an empty prompt, a token beyond the vocabulary, or a prompt that leaves no room in the context.
    """
    room = _room(model, [prompt], params)
    generator = _generator(params, model.device)
    cache = ContiguousCache(model.config, 1, len(prompt) + room, model.lm_head.weight.dtype, model.device)
    ids_BT = torch.tensor([list(prompt)], device=model.device)
    step = CompiledStep(model, cache) if is_compiled(model) else None
    with torch.inference_mode():
        logits_BV = _last_logits(model, ids_BT, cache)
    for written in range(1, room + 1):
        with torch.inference_mode():
            token_B = sample(logits_BV, params, generator)
        token = int(token_B)
        if token in params.stop_ids:
            return
        yield token
        if written < room:
            with torch.inference_mode():
                logits_BV = step(token) if step else _last_logits(model, token_B[:, None], cache)


@torch.inference_mode()
def generate(
    model: CausalLM, prompts: Sequence[Sequence[int]], params: SamplingParams, batch_size: int = 64
) -> list[list[int]]:
    """New tokens after each prompt, in the prompts' order.

    Prompts of like length go together, padded on the left; a sequence that has ended leaves its batch.

    Raises:
        UserError: as `stream`.
    """
    _room(model, prompts, params)
    generator = _generator(params, model.device)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    out: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for index, tokens in zip(chosen, _batch(model, [prompts[i] for i in chosen], params, generator), strict=True):
            out[index] = tokens
    return out


def _batch(
    model: CausalLM, prompts: list[Sequence[int]], params: SamplingParams, generator: torch.Generator | None
) -> list[list[int]]:
    longest = max(map(len, prompts))
    limit = model.config.max_position_embeddings
    rooms = [min(params.max_tokens, limit - len(prompt)) for prompt in prompts]
    pads = [longest - len(prompt) for prompt in prompts]
    ids_BT = torch.tensor(
        [[0] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)], device=model.device
    )
    pads_B = torch.tensor(pads, device=model.device) if any(pads) else None
    cache = ContiguousCache(
        model.config, len(prompts), longest + max(rooms), model.lm_head.weight.dtype, model.device, pads_B
    )
    out: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    while alive:
        token_B = sample(_last_logits(model, ids_BT, cache), params, generator)
        going: list[int] = []
        for row, (index, token) in enumerate(zip(alive, token_B.tolist(), strict=True)):
            if token in params.stop_ids:
                continue
            out[index].append(token)
            if len(out[index]) < rooms[index]:
                going.append(row)
        if len(going) < len(alive):
            rows = torch.tensor(going, dtype=torch.long, device=model.device)
            cache.keep(rows)
            token_B, alive = token_B[rows], [alive[row] for row in going]
        ids_BT = token_B[:, None]
    return out


def _last_logits(model: CausalLM, ids_BT: Tensor, cache: ContiguousCache) -> Tensor:
    """Logits after the last token alone, [B, V]: a prompt's other positions need no head."""
    hidden_BTD, _, _ = model.hidden(ids_BT, cache=cache)
    logits: Tensor = model.lm_head(hidden_BTD[:, -1]).float()
    return logits


def _generator(params: SamplingParams, device: torch.device) -> torch.Generator | None:
    return None if params.seed is None else torch.Generator(device).manual_seed(params.seed)


def _room(model: CausalLM, prompts: Sequence[Sequence[int]], params: SamplingParams) -> int:
    """How many tokens the first prompt leaves room for; every prompt is checked."""
    limit, vocab = model.config.max_position_embeddings, model.config.vocab_size
    for prompt in prompts:
        if not len(prompt):
            raise UserError("the prompt is empty")
        if len(prompt) >= limit:
            raise UserError(f"the prompt has {len(prompt)} tokens, but the model's context is {limit}; shorten it")
        if not 0 <= min(prompt) <= max(prompt) < vocab:
            raise UserError(
                f"token {max(prompt)} is beyond the model's vocabulary of {vocab}: this is another model's tokenizer"
            )
    return min(params.max_tokens, limit - len(prompts[0])) if prompts else 0
