"""PPO from answers to gradients against its equations written out, one answer and one token at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rl_toys import make, ppo_settings
from torch import Tensor

from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.tune.rl import ppo
from tinyseek.tune.rl.asking import read_questions
from tinyseek.tune.rl.rewards import RewardSet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("ppo"))


def said(model: CausalLM, prompt: list[int], answer: list[int], temperature: float) -> Tensor:
    """Log-probability of each token of an answer at a temperature."""
    logits_TV = model(torch.tensor([prompt + answer]))[0].float() / temperature
    return torch.stack([logits_TV[len(prompt) + at - 1].log_softmax(-1)[token] for at, token in enumerate(answer)])


def expected(module: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """What the value head expects before each token of an answer."""
    values_T = module.per_token(torch.tensor([prompt + answer]))[0, :, 0]
    return values_T[len(prompt) - 1 : len(prompt) + len(answer) - 1]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kl_estimator": "k3", "temperature": 0.6, "gamma": 0.97, "lam": 0.8, "minibatches": 2},
        {
            "missing_eos_penalty": 1.5,
            "whiten_rewards": True,
            "cliprange": 0.02,
            "cliprange_value": 0.05,
            "vf_coef": 0.7,
        },
    ],
)
def test_loss_and_gradient_are_those_of_the_equations(
    made: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ppo_settings(made, kl_coef=0.3, num_generations=3, **changes)
    tokenizer = Tokenizer.load(made / "base")
    rewards = RewardSet.of(settings.reward_options())
    model, reference = CausalLM.load(made / "base"), CausalLM.load(made / "base")
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in reference.parameters():  # so that there is a divergence
            parameter.add_(0.05 * torch.randn_like(parameter))
    module, asking = ppo.make(
        model, tokenizer, read_questions(settings, tokenizer), rewards, settings, made / "work", reference, None
    )
    with torch.no_grad():
        module.score.weight.normal_(0, 0.5)
    heard = asking.ask(asking.questions.train[:4], [3, 1, 4, 1], 3)
    heard.rewards_PG[1, 2] = np.nan  # no reward said anything of it: it is left out
    assert any(not answer.finished for group in heard.answers for answer in group)
    monkeypatch.setattr(asking, "asked", lambda _: heard)
    module.train()
    batch = asking.fetch(np.arange(4), 2, CPU)

    # ---- before any update: rewards of tokens, advantages, returns ----
    rows = [
        (p, question.ids, answer, float(heard.rewards_PG[p, g]))
        for p, question in enumerate(heard.questions)
        for g, answer in enumerate(heard.answers[p])
        if not np.isnan(heard.rewards_PG[p, g])
    ]
    old, values, told = [], [], []
    with torch.no_grad():
        module.eval()
        for _, prompt, answer, score in rows:
            logps, before = (said(m, prompt, answer.ids, settings.temperature) for m in (model, reference))
            gap = before - logps
            kl = -gap if settings.kl_estimator == "k1" else gap.exp() - 1 - gap
            reward = -settings.kl_coef * kl.double()
            reward[-1] += score - (0 if answer.finished else settings.missing_eos_penalty)
            old.append(logps)
            values.append(expected(module, prompt, answer.ids))
            told.append(reward)
        module.train()
    if settings.whiten_rewards:
        every = torch.cat(told)
        told = [(reward - every.mean()) / (every.var() + 1e-8).sqrt() + every.mean() for reward in told]
    advantages, returns = [], []
    for reward, value in zip(told, values, strict=True):
        count = len(reward)
        own = torch.zeros(count, dtype=torch.float64)
        for t in range(count):
            for later in range(t, count):
                following = float(value[later + 1]) if later + 1 < count else 0.0
                delta = float(reward[later]) + settings.gamma * following - float(value[later])
                own[t] += (settings.gamma * settings.lam) ** (later - t) * delta
        advantages.append(own)
        returns.append(own + value.double())
    every = torch.cat(advantages)
    advantages = [(own - every.mean()) / (every.var() + 1e-8).sqrt() for own in advantages]

    # ---- the loss, with the weights as they were and then moved ----
    parts = np.array_split(np.arange(4), settings.minibatches)
    cut = 0
    for moved in (False, True):
        if moved:
            torch.manual_seed(9)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(0.03 * torch.randn_like(parameter))
        for update, part in zip(batch.updates, parts, strict=False):
            module.zero_grad()
            found = torch.tensor(0.0)
            for micro in update.micro:
                total = asking.losses(module, micro, update)["total"]
                total.backward()
                found = found + total.detach()
            gradient = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
            module.zero_grad()
            terms = []
            for (p, prompt, answer, _), was, value, advantage, wanted in zip(
                rows, old, values, advantages, returns, strict=True
            ):
                if p not in part:
                    continue
                ratio = (said(model, prompt, answer.ids, settings.temperature) - was).exp()
                now = expected(module, prompt, answer.ids)
                for t in range(len(answer.ids)):
                    a, r = float(advantage[t]), ratio[t]
                    clipped = r.clamp(1 - settings.cliprange, 1 + settings.cliprange)
                    cut += bool((r * a > clipped * a).item())
                    policy = -torch.minimum(r * a, clipped * a)
                    near = value[t] + (now[t] - value[t]).clamp(-settings.cliprange_value, settings.cliprange_value)
                    worse = torch.maximum((now[t] - wanted[t]) ** 2, (near - wanted[t]) ** 2)
                    terms.append(policy + settings.vf_coef * 0.5 * worse)
            loss = torch.stack(terms).mean()
            loss.backward()
            torch.testing.assert_close(found.double(), loss.detach().double(), atol=2e-5, rtol=1e-4)
            for name, parameter in module.named_parameters():
                if parameter.grad is not None and float(parameter.grad.abs().max()) > 1e-6:
                    torch.testing.assert_close(gradient[name], parameter.grad, atol=2e-5, rtol=2e-3, msg=name)
    assert cut or "cliprange" not in changes
