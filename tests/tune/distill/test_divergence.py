"""Divergences and their gradients against float64 formulas differentiated by torch, and against TRL's."""

from __future__ import annotations

import pytest
import torch

from tinyseek.tune.distill.divergence import How, Likeliest, Name, Whole, distil, likeliest, plain

N, V, D, E = 37, 53, 16, 24


def drawn(seed: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return normal(N, D), normal(V, D), normal(N, E), normal(V, E), torch.randint(0, V, (N,), generator=generator)


CASES = [
    How("forward_kl"),
    How("forward_kl", temperature=2.5, ce_weight=0.3),
    How("reverse_kl", temperature=0.7),
    How("reverse_kl", ce_weight=0.5),
    How("jsd", beta=0.1),
    How("jsd", beta=0.9, temperature=3.0, ce_weight=0.2),
    How("forward_kl", ce_weight=1.0),
]


@pytest.mark.parametrize("how", CASES, ids=str)
@pytest.mark.parametrize("kept", [None, 1, 7, V])
def test_values_and_gradients_are_those_of_the_formulas(how: How, kept: int | None) -> None:
    hidden, weight, said, theirs, targets = drawn(11)
    hidden.requires_grad_()
    weight.requires_grad_()
    teacher: Whole | Likeliest = Whole(said, theirs)
    if kept is not None:
        teacher = Likeliest(*likeliest(said @ theirs.T, kept, how.temperature))
    sums = distil(hidden, weight, targets, teacher, how, block=10)
    (sums.total / N).backward()

    hidden64, weight64 = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    logits, teacher64 = hidden64 @ weight64.T, said.double() @ theirs.double().T
    total, apart, entropy = plain(logits, teacher64, targets, how, None if kept == V else kept)
    (total / N).backward()
    for ours, reference in zip((sums.total, sums.divergence, sums.cross_entropy), (total, apart, entropy), strict=True):
        assert float(ours.detach()) / N == pytest.approx(float(reference.detach()) / N, abs=1e-5, rel=1e-5)
    torch.testing.assert_close(hidden.grad, hidden64.grad.float(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weight.grad, weight64.grad.float(), atol=1e-5, rtol=1e-4)
    assert float(sums.agreed) == float((logits.argmax(-1) == teacher64.argmax(-1)).sum())


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equal_to_trls(beta: float, temperature: float) -> None:
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    hidden, weight, said, theirs, targets = drawn(5)
    name: Name = "forward_kl" if beta == 0 else "reverse_kl" if beta == 1 else "jsd"
    labels = targets.clone()
    labels[::4] = -100
    reference = gkd.GKDTrainer.generalized_jsd_loss(
        (hidden @ weight.T)[None], (said @ theirs.T)[None], labels[None], beta, temperature
    )
    kept = labels != -100
    sums = distil(hidden[kept], weight, targets[kept], Whole(said[kept], theirs), How(name, beta, temperature))
    assert float(sums.divergence) / int(kept.sum()) == pytest.approx(float(reference), abs=1e-5)


def test_what_is_kept_of_the_teacher_never_says_more_than_all_of_it_and_nothing_where_they_agree() -> None:
    hidden, weight, said, theirs, targets = drawn(7)
    name: Name
    for name in ("forward_kl", "reverse_kl", "jsd"):
        whole = float(distil(hidden, weight, targets, Whole(said, theirs), How(name)).divergence)
        values = []
        for kept in (1, 4, 16, 50):
            teacher = Likeliest(*likeliest(said @ theirs.T, kept, 1.0))
            values.append(float(distil(hidden, weight, targets, teacher, How(name)).divergence))
        assert values == sorted(values)
        assert 0 < values[0] <= values[-1] <= whole * (1 + 1e-5)
        hidden.requires_grad_()
        for same in (Whole(hidden.detach(), weight), Likeliest(*likeliest((hidden @ weight.T).detach(), 8, 1.0))):
            sums = distil(hidden, weight, targets, same, How(name))
            (gradient,) = torch.autograd.grad(sums.total, hidden)
            assert float(sums.divergence) == pytest.approx(0, abs=1e-4)
            assert float(gradient.abs().max()) < 1e-4
        hidden = hidden.detach()


def test_certain_models_give_numbers() -> None:
    """Logits of hundreds: probabilities of 0 in float32 on either side."""
    hidden, weight, said, theirs, targets = drawn(3)
    hidden, said = 60 * hidden, 60 * said
    for how in CASES:
        for teacher in (Whole(said, theirs), Likeliest(*likeliest(said @ theirs.T, 3, how.temperature))):
            leaf = hidden.clone().requires_grad_()
            sums = distil(leaf, weight, targets, teacher, how)
            sums.total.backward()
            assert torch.isfinite(sums.total)
            assert leaf.grad is not None
            assert torch.isfinite(leaf.grad).all()


def test_under_autocast_it_is_near_and_frozen_heads_take_no_gradient() -> None:
    hidden, weight, said, theirs, targets = drawn(9)
    hidden.requires_grad_()
    how = How("forward_kl", ce_weight=0.2)
    exact = distil(hidden, weight, targets, Whole(said, theirs), how)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = distil(hidden, weight, targets, Whole(said, theirs), how)
    rounded.total.backward()
    assert float(rounded.total.detach()) == pytest.approx(float(exact.total.detach()), rel=0.02)
    assert hidden.grad is not None
    (gradient,) = torch.autograd.grad(exact.total, hidden)
    assert float((hidden.grad - gradient).norm() / gradient.norm()) < 0.03
    assert weight.grad is None
    with torch.no_grad():
        assert not distil(hidden, weight, targets, Whole(said, theirs), how).total.requires_grad
