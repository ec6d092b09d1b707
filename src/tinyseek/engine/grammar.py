"""Output that must have a form: which tokens may come next, by a JSON schema, a regular expression, a list of choices or a grammar.

llguidance walks a trie of the vocabulary's bytes along the grammar's automaton and gives a bit for every token; the logits of the
others become -inf before a token is drawn. A stop token is allowed exactly where the grammar may end, so a text that stopped by
itself always matches. All limits of the library are on: a grammar that would take too long is refused when it is submitted, and one
that grows too large while a text is written ends that text alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tinyseek.engine.schema import can_end
from tinyseek.errors import UserError

if TYPE_CHECKING:
    import llguidance

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


# Between the parts of a JSON text at most a space, or a line end with its indentation: a model that likes white space must not be
# able to go on with it for ever.
WHITE_SPACE = r"(?: |\n {0,24})"
_LONGEST = {"json_schema": 1 << 18, "regex": 1 << 14, "choice": 1 << 16, "lark": 1 << 18}  # characters of a constraint
_LONGEST_LITERAL = 8192  # of it: a step of a fixed text takes a microsecond for each byte that is left of it
_MOST_STATES = 50_000  # of the lexer, about 2 kB each
_FUEL = {"regex": 100_000}  # for building the lexer; 20 ms at the library's own million


class Matcher:
    """A constraint's place in one text that is being written. For one thread at a time."""

    def __init__(self, constraint: Constraint, tokenizer: Tokenizer) -> None:
        """Compile the constraint.

        Raises:
            UserError: it cannot be read, cannot be met, or would take too long; or llguidance is not installed.
        """
        self._constraint = constraint
        self._trie = trie = _trie(tokenizer)
        # Never shared between requests: copies share the lexer, and one text that exhausts it exhausts it for all.
        self._inner = _compiled(constraint, trie)
        self._free = 0  # tokens accepted before the constraint began
        self._bound = 0  # tokens accepted since
        self._waiting = constraint.after is not None and constraint.opener is None

    @property
    def finished(self) -> bool:
        """Nothing may follow: the text is complete, and can be ended without asking the model for a stop token."""
        return not self._waiting and not self._at_opener and self._inner.is_stopped() and self._inner.is_accepting()

    @property
    def may_end(self) -> bool:
        """The text so far matches: a stop token is allowed now."""
        return not self._waiting and self._inner.is_accepting()

    @property
    def _at_opener(self) -> bool:
        return self._constraint.opener is not None and not self._free and not self._bound

    def allowed(self) -> Mask:
        """Which tokens may come next, bool [tokenizer.vocab_size].

        To be applied last, after penalties and bias: where only a stop token is allowed nothing may forbid that one.

        Raises:
            UserError: the grammar has grown beyond the limits; the text cannot go on.
        """
        if self._waiting:
            allowed_V = self._trie.free_V.copy()
            allowed_V[self._constraint.after] = True
            return allowed_V
        bits = np.frombuffer(self._inner.compute_bitmask(), dtype=np.uint8)
        allowed_V = np.unpackbits(bits, count=len(self._trie.free_V), bitorder="little").view(np.bool_)
        if self._inner.is_error() or not allowed_V.any():
            raise UserError(
                f"the {_NAMES[self._constraint.kind]} has grown too complex for the text at hand; simplify it"
            )
        if self._at_opener:
            allowed_V[self._constraint.opener] = True
        return allowed_V

    def accept(self, token: int) -> None:
        """Move past a token that was drawn.

        Raises:
            UserError: as `allowed`.
            ValueError: the token is not allowed.
        """
        if self._at_opener and token == self._constraint.opener:
            self._free, self._waiting = 1, True
        elif self._waiting:
            if token != self._constraint.after and not self._trie.free_V[token]:
                raise ValueError(f"token {token} is not allowed before the constrained text")
            self._free += 1
            self._waiting = token != self._constraint.after
        elif self._inner.consume_token(token):
            self._bound += 1
        elif "satisfy" in self._inner.get_error():  # "token ... doesn't satisfy the grammar"
            raise ValueError(f"token {token} is not allowed by the {_NAMES[self._constraint.kind]}")
        else:
            raise self._exhausted()

    def _exhausted(self) -> UserError:
        return UserError(f"the {_NAMES[self._constraint.kind]} has grown too complex for the text at hand; simplify it")

    def count_allowed(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, from the first, may come next; for drafts. Nothing is moved."""
        count = 0
        waiting = self._waiting
        if self._at_opener and tokens and tokens[0] == self._constraint.opener:
            count, waiting = 1, True
        while waiting and count < len(tokens):
            if tokens[count] == self._constraint.after:
                waiting = False
            elif not self._trie.free_V[tokens[count]]:
                return count
            count += 1
        return count + (0 if waiting else self._inner.validate_tokens(list(tokens[count:])))

    def rollback(self, tokens: int) -> None:
        """Take back the last accepted tokens."""
        if tokens > self._free + self._bound:
            raise ValueError(f"{tokens} tokens cannot be taken back: {self._free + self._bound} were accepted")
        bound = min(tokens, self._bound)
        if bound and not self._inner.rollback(bound):
            raise ValueError(f"the matcher cannot go back: {self._inner.get_error()}")
        self._bound -= bound
        if tokens > bound:
            self._free -= tokens - bound
            self._waiting = self._constraint.opener is None or self._free > 0

    def copy(self) -> Matcher:
        """The same place, to go on from independently: another of the `n` texts of one request. Cheap."""
        twin = object.__new__(Matcher)
        twin.__dict__ |= self.__dict__
        twin._inner = self._inner.deep_copy()
        return twin


# ---- compiling -------------------------------------------------------------------------------------------------------------------

_NAMES = {
    "json_schema": "JSON schema",
    "json_object": "JSON object",
    "regex": "regular expression",
    "choice": "list of choices",
    "lark": "grammar",
}


class _Vocabulary:
    """A tokenizer as llguidance wants to see it: the bytes of every id, and which are no text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.special_token_ids = sorted({*tokenizer.controls.values(), *tokenizer.stop_ids})
        names = {index: text for text, index in tokenizer.controls.items()}
        self.tokens = [
            names[index].encode() if index in names else tokenizer.token_bytes(index)
            for index in range(tokenizer.vocab_size)
        ]

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode(text.decode(errors="replace") if isinstance(text, bytes) else text)


@dataclass(frozen=True, eq=False)
class _Trie:
    library: llguidance.LLTokenizer
    free_V: Mask  # the tokens that are text


@lru_cache(maxsize=4)
def _trie(tokenizer: Tokenizer) -> _Trie:
    """The vocabulary as a trie of bytes: built once a tokenizer, a quarter of a second for 150,000 tokens."""
    try:
        import llguidance
    except ImportError:
        raise UserError("constrained output needs llguidance: pip install 'tinyseek[serve]'") from None
    vocabulary = _Vocabulary(tokenizer)
    library = llguidance.LLTokenizer(
        llguidance.TokenizerWrapper(vocabulary),
        n_vocab=tokenizer.vocab_size,
        eos_token=sorted(tokenizer.stop_ids),
        slices=llguidance.LLTokenizer.json_slices(),
    )
    free_V = np.array([bool(token) for token in vocabulary.tokens])
    free_V[vocabulary.special_token_ids] = False
    return _Trie(library, free_V)


def _compiled(constraint: Constraint, trie: _Trie) -> llguidance.LLMatcher:
    import llguidance

    name = _NAMES[constraint.kind]
    limits = llguidance.LLParserLimits(
        max_lexer_states=_MOST_STATES, initial_lexer_fuel=_FUEL.get(constraint.kind), verbose_errors=False
    )
    try:
        grammar = _grammar(constraint)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"the {name} cannot be read: {error}") from None
    matcher = llguidance.LLMatcher(trie.library, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        first = matcher.compute_bitmask()  # some that cannot be met show it only here
        if not any(first):
            raise UserError(f"the {name} cannot be met: no text fits it")
    if matcher.is_error():
        reason = " ".join(matcher.get_error().replace("<non-verbose/>", "").split())
        raise UserError(f"the {name} cannot be used: {reason[:300]}")
    if constraint.kind == "json_schema" and not can_end(constraint.value):
        raise UserError(f"the {name} cannot be met: it requires itself, so every text of it would be endless")
    return matcher


def _grammar(constraint: Constraint) -> str:
    """The constraint as llguidance's own text. ValueError where it is no JSON."""
    from llguidance import LLMatcher, regex_to_lark

    kind, value = constraint.kind, constraint.value
    if kind == "json_object":
        kind, value = "json_schema", {"type": "object"}
    if kind == "json_schema":
        if not isinstance(value, dict | bool):
            raise UserError(f"a JSON schema is an object or a truth value, not {type(value).__name__}")
        schema = {"anyOf": [value]} if isinstance(value, bool) else value  # options go into an object only
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        longest = max(map(len, _strings(schema)), default=0)
    elif kind == "choice":
        if isinstance(value, str) or not isinstance(value, Sequence) or not value:
            raise UserError("the choices are a list of at least one text")
        if not all(isinstance(choice, str) for choice in value):
            raise UserError("every choice is a text")
        text = "|".join(re.sub(r"[\\.+*?()|\[\]{}^$#&~-]", r"\\\g<0>", choice) for choice in value)
        longest = max(map(len, value))
    else:
        if not isinstance(value, str):
            raise UserError(f"a {_NAMES[kind]} is a text, not {type(value).__name__}")
        text, longest = value, 0
    if len(text) > _LONGEST[kind]:
        raise UserError(f"the {_NAMES[kind]} has {len(text):,} characters; at most {_LONGEST[kind]:,} are taken")
    if longest > _LONGEST_LITERAL:
        raise UserError(
            f"the {_NAMES[kind]} holds a text of {longest:,} characters; at most {_LONGEST_LITERAL:,} are taken"
        )
    if kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": WHITE_SPACE})
    # \d is 0 to 9: who asks for digits does not mean those of every script.
    return LLMatcher.grammar_from_lark(text if kind == "lark" else f"start: /{regex_to_lark(text, 'd')}/")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _strings(part)
