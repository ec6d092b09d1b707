"""Attention within documents: grouped by length, equal to the mask's form, gradients too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import CONFIGS, fresh
from torch import Tensor

from tinyseek.model.config import ModelConfig
from tinyseek.model.documents import NEAR, lay_out
from tinyseek.model.transformer import CausalLM

LAYOUTS = {
    "many": [[3, 9, 1, 4, 8], [25], [12, 13]],
    "one a row": [[16], [16]],
    "one row of all": [[7, 1, 1, 30, 28, 2, 5]],
}


def numbered(lengths: list[list[int]]) -> Tensor:
    return torch.from_numpy(np.stack([np.repeat(np.arange(len(row)), row) for row in lengths]).astype(np.int32))


@pytest.mark.parametrize("lengths", LAYOUTS.values(), ids=LAYOUTS)
def test_every_position_has_a_place_and_groups_are_of_about_one_length(lengths: list[list[int]]) -> None:
    documents_BT = numbered(lengths)
    layout = lay_out(documents_BT)
    assert torch.equal(layout.source_M[layout.place_N], torch.arange(documents_BT.numel()))
    assert sum(group.documents for group in layout.groups) == sum(map(len, lengths))
    pairs = sum(group.documents * group.length**2 for group in layout.groups)
    assert pairs <= sum(length**2 for row in lengths for length in row) / NEAR**2
    x = torch.randn(*documents_BT.shape, 2, 3, dtype=torch.float64, requires_grad=True)
    there = layout.parted(x)
    assert [part.shape[:2] for part in there] == [(group.documents, group.length) for group in layout.groups]
    assert torch.equal(layout.joined(there, documents_BT.shape[0]), x)
    assert torch.autograd.gradcheck(
        lambda x: layout.joined([part * 2 for part in layout.parted(x)], len(lengths)), (x,)
    )


@pytest.mark.parametrize("lengths", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", ["llama-gqa", "qwen2-window", "gpt2", "mla", "sinusoidal"])
def test_groups_give_what_the_mask_gives(name: str, lengths: list[list[int]]) -> None:
    model, documents_BT = fresh(name).train(), numbered(lengths)
    torch.manual_seed(1)
    ids = torch.randint(0, 97, documents_BT.shape)
    targets = ids.roll(-1, 1)
    found = []
    for fixed in (False, True):
        model.fixed_shapes = fixed
        model.zero_grad()
        losses = model.loss(ids, targets, documents_BT)
        losses.total.backward()
        found.append((losses, {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}))
    (grouped, here), (masked, there) = found
    torch.testing.assert_close(grouped.total, masked.total, atol=1e-5, rtol=1e-5)
    assert here.keys() == there.keys()
    for key, gradient in here.items():
        torch.testing.assert_close(gradient, there[key], atol=1e-5, rtol=1e-3, msg=key)


def test_a_row_of_all_documents_is_as_good_as_a_row_each() -> None:
    """Batches without padding: the same loss as every document alone."""
    config = ModelConfig(**{**CONFIGS["llama-gqa"].plain(), "max_position_embeddings": 32})
    torch.manual_seed(2)
    model = CausalLM(config).eval()
    lengths = [30, 3, 11, 32]  # together longer than the model's context
    documents_BT = numbered([lengths])
    ids = torch.randint(0, 97, documents_BT.shape)
    together = model(ids, documents_BT=documents_BT)
    alone = torch.cat([model(part) for part in ids.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
