"""The losses of preference learning, as functions of log-probabilities alone.

DPO's idea: the policy p that is best for a reward r, at a distance from a reference q, has r = beta log(p / q) + what depends on
the prompt alone. So a pair's difference of log-ratios is a difference of rewards, and a classifier's loss on it trains the policy
directly (arXiv 2305.18290, eq. 7). The kin choose another loss, or do without the reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyseek.tune.preferences.options import FREE, DpoSettings, KtoSettings


@dataclass(frozen=True)
class Side:
    """One answer of each of P pairs."""

    logps_P: Tensor  # log-probability of the whole answer
    tokens_P: Tensor  # how many tokens that is the sum over
    reference_P: Tensor | None  # its log-probability under the reference; none where the loss has none

    @property
    def mean_P(self) -> Tensor:
        """Log-probability a token."""
        return self.logps_P / self.tokens_P

    @property
    def ratio_P(self) -> Tensor:
        """log(policy / reference), of the whole answer."""
        assert self.reference_P is not None
        return self.logps_P - self.reference_P


@dataclass(frozen=True)
class Judged:
    """What became of P pairs."""

    losses_P: Tensor
    chosen_rewards_P: Tensor
    rejected_rewards_P: Tensor
    log_odds_P: Tensor | None = None  # ORPO's


def judge(chosen: Side, rejected: Side, settings: DpoSettings) -> Judged:
    """The loss of each pair, without the chosen answers' own, and the rewards that the policy gives implicitly."""
    beta = settings.strength
    if settings.loss in FREE:
        chosen_P, rejected_P = chosen.mean_P, rejected.mean_P
    else:
        chosen_P, rejected_P = chosen.ratio_P, rejected.ratio_P
    log_odds_P = None
    match settings.loss:
        case "sigmoid":  # DPO, eq. 7; with doubt about the labels: conservative DPO (ericmitchell.ai/cdpo.pdf, eq. 3)
            losses_P = doubted(beta * (chosen_P - rejected_P), settings.label_smoothing)
        case "ipo":  # eq. 17, of log-probabilities a token, as its authors advise where answers differ in length
            gap_P = chosen_P / chosen.tokens_P - rejected_P / rejected.tokens_P
            losses_P = (gap_P - 1 / (2 * beta)) ** 2
        case "hinge":  # SLiC's calibration loss on DPO's rewards
            losses_P = torch.relu(1 - beta * (chosen_P - rejected_P))
        case "simpo":  # eq. 6
            losses_P = doubted(beta * (chosen_P - rejected_P) - settings.simpo_gamma, settings.label_smoothing)
        case "orpo":  # eq. 7
            log_odds_P = chosen_P - rejected_P - (log_complement(chosen_P) - log_complement(rejected_P))
            losses_P = -beta * F.logsigmoid(log_odds_P)
    return Judged(losses_P, beta * chosen_P.detach(), beta * rejected_P.detach(), log_odds_P)


def doubted(margin_P: Tensor, smoothing: float) -> Tensor:
    """-log sigmoid(margin), expected over labels of which a share is the wrong way round."""
    right_P = -F.logsigmoid(margin_P)
    return right_P if not smoothing else (1 - smoothing) * right_P - smoothing * F.logsigmoid(-margin_P)


def log_complement(logp: Tensor) -> Tensor:
    """log(1 - exp(logp)) of negative numbers, with all its digits (Maechler 2012, "Accurately computing log(1 - exp(-|a|))")."""
    logp = logp.clamp(max=-1e-7)  # a certain answer has infinite odds, and no gradient could come back from there
    # Each branch is given numbers that it can take: the gradient of the one not chosen would be 0 times infinity.
    near = logp > -0.6931
    close, far = torch.where(near, logp, -0.5), torch.where(near, -1.0, logp)
    return torch.where(near, torch.log(-torch.expm1(close)), torch.log1p(-torch.exp(far)))


def kto(ratios_P: Tensor, good_P: Tensor, kl: Tensor, settings: KtoSettings) -> tuple[Tensor, Tensor]:
    """KTO's loss and reward of each answer (arXiv 2402.01306, eq. 7).

    Args:
        ratios_P: log(policy / reference) of whole answers.
        good_P: bool; whether they were liked.
        kl: how far the policy is from the reference, nats an answer; what an answer is measured against. Has no gradient.
    """
    gain_P = settings.beta * torch.where(good_P, ratios_P - kl, kl - ratios_P)
    weight_P = torch.where(good_P, settings.desirable_weight, settings.undesirable_weight)
    return weight_P * (1 - gain_P.sigmoid()), settings.beta * ratios_P.detach()
