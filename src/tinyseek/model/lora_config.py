"""What an adapter adds to a model, and where. No torch here.

Patterns choose modules by their names, as in `model.layers.3.self_attn.q_proj`: `*` and `?` stand for anything, a pattern may leave
out the name's beginning, and one that begins with `!` takes back what earlier ones chose.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

from pydantic import Field, field_validator

from tinyseek.errors import UserError
from tinyseek.settings import Settings, suggestion

ALL_LINEAR = "all-linear"


class LoraConfig(Settings):
    """Low-rank adaptation (arXiv 2106.09685): a frozen matrix W becomes W + scale * B A, of which B and A are trained."""

    rank: int = Field(8, ge=1, le=4096, description="rows of A, columns of B")
    alpha: float = Field(16.0, gt=0, description="the change is multiplied by alpha / rank")
    rslora: bool = Field(False, description="multiply by alpha / sqrt(rank) instead (arXiv 2312.03732)")
    dora: bool = Field(False, description="also train the length of each row of the changed matrix (arXiv 2402.09353)")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of what enters A that is dropped in training")
    targets: str | list[str] = Field(
        ALL_LINEAR,
        description="patterns of the matrices to change: q_proj, layers.*.mlp.*, experts.*, !layers.0.*; all-linear is every one "
        "in the blocks, experts too, but for the router; [all-linear, mlp.gate, lm_head] adds to it",
    )
    save: list[str] = Field(
        [], description="patterns of modules to train whole and keep beside: lm_head, embed_tokens, *norm"
    )
    base: Literal["auto", "float32", "bfloat16", "int8", "int4"] = Field(
        "auto", description="how the frozen weights are held: int4 is QLoRA; auto is the precision of the products"
    )

    @field_validator("targets")
    @classmethod
    def _some_target(cls, targets: str | list[str]) -> str | list[str]:
        if not targets:
            raise ValueError("name at least one matrix, or all-linear")
        return targets

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def choose(
    names: Iterable[str],
    patterns: Sequence[str],
    what: str,
    also: Mapping[str, Sequence[str]] | None = None,
    begin: Collection[str] = (),
) -> list[str]:
    """The names that the patterns choose, in their order.

    Args:
        what: what the patterns are for, in an error.
        also: further names that a name goes by.
        begin: names that are chosen before the first pattern.
    Raises:
        UserError: a pattern that fits nothing, with what there is.
    """
    names = list(names)
    chosen: dict[str, bool] = {name: name in begin for name in names}
    for pattern in patterns:
        regex = _compiled(pattern.removeprefix("!"))
        fitting = [name for name in names if any(map(regex.match, (name, *(also or {}).get(name, ()))))]
        if not fitting:
            known = sorted({re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names})
            last = sorted({name.rpartition(".")[2] for name in names})
            near = suggestion(pattern, last if "." not in pattern else known)
            raise UserError(f'{what}: "{pattern}" fits nothing in this model; {near}')
        chosen |= dict.fromkeys(fitting, not pattern.startswith("!"))
    return [name for name in names if chosen[name]]


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(r"(?:.*\.)?" + fnmatch.translate(pattern))
