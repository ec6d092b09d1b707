"""Rotary position embedding, with the stretched frequencies of YaRN, linear scaling and Llama 3.

A pair of numbers at position t is turned by the angle t * frequency, so that a query and a key meet only through the distance
between them. Sources: RoFormer (arXiv 2104.09864); YaRN (arXiv 2309.00071); DeepSeek-V2 report, section 2.1.3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tinyseek.model.config import ModelConfig, RopeScaling


def frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """The angle a position turns each pair by, float32 [rotary_dim / 2], and the factor on the rotated numbers."""
    dim = config.rotary_dim
    plain: Tensor = config.rope_theta ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    scaling = config.rope_scaling
    if scaling is None:
        return plain, 1.0
    if scaling.rope_type == "linear":
        return plain / scaling.factor, 1.0
    original = scaling.original_max_position_embeddings or config.max_position_embeddings
    if scaling.rope_type == "llama3":
        return _llama3(plain, scaling, original), 1.0
    return _yarn(plain, scaling, original, config.rope_theta, dim), _yarn_temperature(scaling)


def _yarn(plain: Tensor, scaling: RopeScaling, original: int, theta: float, dim: int) -> Tensor:
    """YaRN, eq. 13: fast dimensions stay, slow ones are divided by the factor, a linear ramp between."""

    def dimension(rotations: float) -> float:
        """The index of the pair that turns `rotations` times over the original context."""
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension(scaling.beta_slow)), dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain * (1 - ramp) + plain / scaling.factor * ramp


def _llama3(plain: Tensor, scaling: RopeScaling, original: int) -> Tensor:
    """Llama 3.1's rule: by wavelength, long ones divided by the factor, a smooth step between two bounds."""
    wavelength = 2 * math.pi / plain
    smooth = (original / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blended = (1 - smooth) * plain / scaling.factor + smooth * plain
    slow = wavelength > original / scaling.low_freq_factor
    fast = wavelength < original / scaling.high_freq_factor
    return torch.where(slow, plain / scaling.factor, torch.where(fast, plain, blended))


def mscale(factor: float, weight: float) -> float:
    """YaRN's temperature, eq. 15: 0.1 * weight * ln(factor) + 1."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn_temperature(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return mscale(scaling.factor, scaling.mscale) / mscale(scaling.factor, scaling.mscale_all_dim)
    return mscale(scaling.factor, 1.0)


def softmax_scale(config: ModelConfig) -> float:
    """1 / sqrt(K), with DeepSeek's mscale squared under YaRN (`mscale_all_dim`)."""
    scale = float(config.qk_dim**-0.5)
    scaling = config.rope_scaling
    if config.mla and scaling is not None and scaling.rope_type == "yarn" and scaling.mscale_all_dim:
        scale *= mscale(scaling.factor, scaling.mscale_all_dim) ** 2
    return scale


def angles(config: ModelConfig, length: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin of every angle up to `length`, float32 [length, rotary_dim / 2] each, the temperature included."""
    frequency, temperature = frequencies(config)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency)
    return (angle.cos() * temperature).to(device), (angle.sin() * temperature).to(device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turn each pair of x's last dimension.

    Args:
        x: [..., T, K] or [..., T, H, K]; cos and sin broadcast against [..., K / 2].
        interleaved: pairs are (0, 1), (2, 3), ... as in DeepSeek's weights, or (0, K/2), (1, K/2 + 1), ... as in Llama's.
            Both come out as two halves: queries and keys meet in a product that does not care about the order.
    """
    if interleaved:
        pairs = x.unflatten(-1, (-1, 2))
        a, b = pairs[..., 0], pairs[..., 1]
    else:
        a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def sinusoids(length: int, width: int) -> Tensor:
    """Fixed positions of "Attention is all you need" (section 3.5): sin and cos in turn, float32 [length, width]."""
    frequency = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)[:, :width]
