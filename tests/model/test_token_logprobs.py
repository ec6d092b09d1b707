"""Log-probabilities of chosen tokens against torch's log_softmax over all logits, values and gradients."""

import pytest
import torch

from tinyseek.model.loss import token_logprobs


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("block", [7, 64])
def test_equals_log_softmax(temperature: float, block: int) -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(50, 16), torch.randn(97, 16), torch.randint(0, 97, (50,))
    slopes = torch.randn(50)
    ours = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logps, entropy = token_logprobs(*ours, targets, temperature, block)
    (logps * slopes).sum().backward()
    theirs = hidden.double().requires_grad_(), weight.double().requires_grad_()
    every = (theirs[0] @ theirs[1].T / temperature).log_softmax(-1)
    (every.gather(-1, targets[:, None]).squeeze(-1) * slopes).sum().backward()
    assert torch.allclose(logps.double(), every.gather(-1, targets[:, None]).squeeze(-1), atol=1e-5)
    assert torch.allclose(entropy.double(), -(every.exp() * every).sum(-1), atol=1e-5)
    assert not entropy.requires_grad
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad.double(), other.grad, atol=1e-5)


def test_positions_without_a_target_cost_nothing() -> None:
    torch.manual_seed(1)
    hidden, weight, targets = torch.randn(20, 8), torch.randn(31, 8), torch.randint(0, 31, (20,))
    whole, whole_entropy = token_logprobs(hidden, weight, targets)
    some = targets.clone()
    some[::3] = -100
    hidden.requires_grad_()
    logps, entropy = token_logprobs(hidden, weight, some)
    kept = some != -100
    assert torch.equal(logps[kept], whole[kept])
    assert torch.equal(entropy[kept], whole_entropy[kept])
    assert not logps[~kept].any()
    assert not entropy[~kept].any()
    logps.sum().backward()
    assert hidden.grad is not None
    assert not hidden.grad[~kept].any()
    assert hidden.grad[kept].any()
    nothing, _ = token_logprobs(hidden, weight, torch.full((20,), -100))
    assert not nothing.any()


def test_far_logits_stay_finite() -> None:
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[1e4], [0.0], [-1e4]])
    logps, entropy = token_logprobs(hidden, weight, torch.tensor([2]))
    assert logps.item() == -2e4
    assert entropy.item() == 0.0


def test_frozen_head_in_bfloat16_and_autocast() -> None:
    torch.manual_seed(2)
    hidden, weight, targets = torch.randn(9, 8), torch.randn(31, 8), torch.randint(0, 31, (9,))
    want, _ = token_logprobs(hidden, weight.bfloat16().float(), targets)
    hidden.requires_grad_()
    got, _ = token_logprobs(hidden, weight.bfloat16(), targets)
    assert torch.equal(got, want)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, _ = token_logprobs(hidden, weight.requires_grad_(), targets)
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded, want, atol=0.1)
    rounded.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
