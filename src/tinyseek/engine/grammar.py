"""Output that must have a form: which tokens may come next, by a JSON schema, a regular expression, a list of choices or a grammar.

llguidance walks a trie of the vocabulary's bytes along the grammar's automaton and gives a bit for every token; the logits of the
others become -inf before a token is drawn. A stop token is allowed exactly where the grammar may end, so a text that stopped by
itself always matches. All limits of the library are on: a grammar that would take too long is refused when it is submitted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tinyseek.errors import UserError

if TYPE_CHECKING:
    import llguidance
    from torch import Tensor

    from tinyseek.text.tokenizer import Tokenizer

Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Constraint:
    """The form that an output must have.

    Attributes:
        kind: what `value` is.
        value: a JSON schema (dict or bool), None for "json_object" (any object), a regular expression that the whole text matches
            (Rust's syntax), the texts to choose from, or a grammar in llguidance's Lark dialect.
        after: begin after this token (`</think>`, for a model that thinks first); until then all text is free, but the text
            cannot end and no control token but this can come.
        opener: with `after`: wait for `after` only if the first token is this one (`<think>`); it is allowed there beside what the
            grammar allows. For a model that chooses itself whether to think.
    """

    kind: Literal["json_schema", "json_object", "regex", "choice", "lark"]
    value: Any = None
    after: int | None = None
    opener: int | None = None


class Matcher:
    """A constraint's place in one text that is being written."""

    def __init__(self, constraint: Constraint, tokenizer: Tokenizer) -> None:
        """Compile the constraint.

        Raises:
            UserError: it cannot be read, cannot be met, or would take too long.
        """
        raise NotImplementedError

    @property
    def finished(self) -> bool:
        """Nothing may follow: the text is complete, and can be ended without asking the model for a stop token."""
        raise NotImplementedError

    @property
    def may_end(self) -> bool:
        """The text so far matches: a stop token is allowed now."""
        raise NotImplementedError

    def allowed(self) -> Mask:
        """Which tokens may come next, bool [tokenizer.vocab_size].

        Raises:
            UserError: the grammar has grown beyond the limits; the text cannot go on.
        """
        raise NotImplementedError

    def accept(self, token: int) -> None:
        """Move past a token that was drawn. ValueError if it is not allowed."""
        raise NotImplementedError

    def count_allowed(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, from the first, may come next; for drafts. Nothing is moved."""
        raise NotImplementedError

    def rollback(self, tokens: int) -> None:
        """Take back the last accepted tokens."""
        raise NotImplementedError

    def copy(self) -> Matcher:
        """The same place, to go on from independently: another of `n` texts. Cheap."""
        raise NotImplementedError


def mask_logits(matchers: Sequence[Matcher | None], logits_BV: Tensor) -> None:
    """Set the logits of what may not come next to -inf, in place; rows without a matcher stay as they are.

    Apply it last, after penalties and bias: where only a stop token is allowed nothing may forbid that one (see `finished`).
    """
    raise NotImplementedError
