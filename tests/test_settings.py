"""Settings: one definition that YAML, the command line and --help share, and errors that say what to do."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from tinyseek import settings
from tinyseek.errors import UserError
from tinyseek.settings import Settings, StageSettings, no_effect, taken_from


class Inner(Settings):
    preset: str = Field("tiny", description="which one")
    hidden_size: int = Field(64, ge=1, description="width")


class Stage(StageSettings):
    steps: int = Field(100, ge=1, le=1000, description="optimiser steps")
    lr: float = Field(1e-3, gt=0)
    corpus: str | list[str] = "x"
    model: Inner = Inner()
    data: list[str] = taken_from(["data", "tasks"], "what to learn from")
    tokenizer: str = taken_from("tokenizer", "whose ids")
    workers: int = no_effect(1, "processes", ge=1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"stepz": 3}, 'f.yaml: unknown setting "pretrain.stepz"; did you mean "steps"?'),
        (
            {"model": {"hiden_size": 3}},
            'f.yaml: unknown setting "pretrain.model.hiden_size"; did you mean "hidden_size"?',
        ),
        ({"steps": 0}, "f.yaml: pretrain.steps: should be greater than or equal to 1 (got 0)"),
        ({"lr": float("nan")}, "f.yaml: pretrain.lr: should be a finite number (got nan)"),
        ({"corpus": True}, "f.yaml: pretrain.corpus: should be a valid string, or: should be a valid list (got True)"),
        ({"corpus": ["a", None]}, "f.yaml: pretrain.corpus"),
        ({"model": 3}, "f.yaml: pretrain.model: should be a mapping of settings (got 3)"),
    ],
)
def test_a_wrong_value_is_named_with_its_place_and_what_to_do(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        Stage.read(values, "f.yaml", ["pretrain"])
    assert str(error.value).startswith(said)


def test_many_mistakes_are_three_lines_and_a_count() -> None:
    with pytest.raises(UserError) as error:
        Stage.read({"steps": 0, "lr": -1, "a": 1, "b": 2, "workers": 0})
    assert str(error.value).count("\n") == 3
    assert str(error.value).endswith("... and 2 more")


def test_a_stage_says_what_it_is_made_from_and_what_decides_its_key() -> None:
    stage = Stage(corpus="y")
    assert stage.taken() == {"data.0": "data", "data.1": "tasks", "tokenizer": "tokenizer"}
    assert set(stage.essence()) == {"steps", "lr", "corpus", "model"}
    assert stage.essence() == Stage(corpus="y", workers=4, tokenizer="elsewhere").essence()
    assert Stage.read(stage.plain()) == stage


@pytest.mark.parametrize(
    ("item", "tree"),
    [
        ("pretrain.steps=100", {"pretrain": {"steps": 100}}),
        ("lr=3e-4", {"lr": 3e-4}),  # PyYAML alone makes this text
        ("lr=1e4", {"lr": 10000.0}),
        ("name=2024-01-01", {"name": "2024-01-01"}),
        ("size=1_000", {"size": 1000}),
        ("time=1:30", {"time": "1:30"}),
        ("code=012", {"code": "012"}),
        ("corpus=a=b.txt", {"corpus": "a=b.txt"}),
        ("corpus=https://x.org/a.txt#sha256=00", {"corpus": "https://x.org/a.txt#sha256=00"}),
        ("corpus=[a.txt, b.txt]", {"corpus": ["a.txt", "b.txt"]}),
        ("prompt=Say: hello", {"prompt": "Say: hello"}),
        ("prompt=", {"prompt": ""}),
        ("prompt=@home [", {"prompt": "@home ["}),
        ("eval=null", {"eval": None}),
        ("save=true", {"save": True}),
        ("model={hidden_size: 8}", {"model": {"hidden_size": 8}}),
    ],
)
def test_values_on_the_command_line_mean_what_they_look_like(item: str, tree: dict[str, Any]) -> None:
    assert settings.nested([item]) == tree


@pytest.mark.parametrize("item", ["steps", "=3", "a..b=3", "a.=1"])
def test_what_is_no_key_value_is_refused(item: str) -> None:
    with pytest.raises(UserError, match="write key=value"):
        settings.nested([item])


def test_a_plain_value_cannot_have_settings_below_it() -> None:
    with pytest.raises(UserError, match="already given"):
        settings.nested(["pretrain=3", "pretrain.steps=3"])


def test_a_number_may_stand_where_text_is_meant() -> None:
    assert Stage.read(settings.nested(["corpus=1984"])).corpus == "1984"


def test_merged_lays_mappings_over_each_other_and_replaces_lists() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert settings.merged(base, {"a": {"c": [3]}, "e": {"f": 1}}) == {"a": {"b": 1, "c": [3]}, "d": 1, "e": {"f": 1}}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "line 1: not YAML"),
        ("a: 1\nb: 2\na: 3", 'line 3: not YAML ("a" is given twice)'),
        ("- a", "a mapping of settings is expected, not list"),
        ("", "a mapping of settings is expected"),
        ("a: !!python/object/apply:os.system [true]", "not YAML (could not determine a constructor"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        settings.read_yaml(tmp_path / "r.yaml")
    assert "r.yaml" in str(error.value)
    assert said in str(error.value)


def test_binary_and_missing_files_are_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        settings.read_yaml(tmp_path / "r.yaml")
    with pytest.raises(UserError, match="no such file"):
        settings.read_yaml(tmp_path / "s.yaml")


def test_line_of_finds_the_key_or_its_nearest_parent(tmp_path: Path) -> None:
    text = """\
        name: x
        stages:
          data:
            corpus: a
          pretrain:
            model: {preset: tiny}
            steps: 3
        """
    (tmp_path / "r.yaml").write_text(textwrap.dedent(text))
    where = {
        ("stages", "pretrain", "steps"): 7,
        ("stages", "pretrain", "model", "width"): 6,
        ("stages",): 2,
        ("x",): None,
    }
    for keys, line in where.items():
        assert settings.line_of(tmp_path / "r.yaml", keys) == line


def test_describe_lists_every_setting_with_type_bounds_and_default() -> None:
    rows = {row[0]: row[1:] for row in settings.describe(Stage)}
    assert rows["steps"] == ("whole number >=1 <=1000", "100", "optimiser steps")
    assert rows["model.hidden_size"] == ("whole number >=1", "64", "width")
    assert rows["corpus"][0] == "text|list of text"
    assert rows["data"][1] == "[data, tasks]"
    assert "model" not in rows
