"""Recipes: stages that fit together, settings that flow down, and errors that name the file, line and key."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_stages import CookSettings

from tinyseek import recipe
from tinyseek.errors import UserError
from tinyseek.recipe import Recipe, load_recipe

TEXT = """\
name: supper
seed: 7
stages:
  cook:
    source: [soup.txt]
  again:
    kind: cook
    source: [cook, soup.txt]
    times: 2
    seed: 3
  serve:
    dish: again
"""


@pytest.fixture
def supper(fake_kinds: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("soup.txt").write_text("soup")
    Path("supper.yaml").write_text(TEXT)
    return Path("supper.yaml")


def test_stages_come_in_order_with_their_kinds_and_what_flows_down(supper: Path) -> None:
    loaded = load_recipe(supper)
    assert list(loaded.stages) == ["cook", "again", "serve"]
    assert [recipe.kind_of(stage) for stage in loaded.stages.values()] == ["cook", "cook", "serve"]
    assert [getattr(stage, "seed", None) for stage in loaded.stages.values()] == [7, 3, 7]
    assert loaded.folder == Path("runs/supper")


def test_a_stage_is_given_paths_in_place_of_stages_names(supper: Path) -> None:
    resolved = load_recipe(supper, ["out=there"]).resolved("again")
    assert isinstance(resolved, CookSettings)
    assert resolved.source == ["there/cook", "soup.txt"]


def test_a_written_out_recipe_reads_as_the_same(supper: Path) -> None:
    loaded = load_recipe(supper, ["again.shape.width=3"])
    Path("copy.yaml").write_text(yaml.safe_dump(loaded.plain(), sort_keys=False))
    assert load_recipe("copy.yaml") == loaded


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("again.times=5", ("again", "times"), 5),
        ("stages.again.times=5", ("again", "times"), 5),
        ("again.shape.width=5", ("again", "shape", "width"), 5),
        ("seed=9", ("cook", "seed"), 9),
        ("cook.source=[supper.yaml]", ("cook", "source"), ["supper.yaml"]),
    ],
)
def test_the_command_line_is_laid_on_top(supper: Path, override: str, path: tuple[str, ...], value: Any) -> None:
    found: Any = load_recipe(supper, [override]).stages[path[0]]
    for name in path[1:]:
        found = getattr(found, name)
    assert found == value


def test_false_leaves_a_stage_out_and_nothing_means_defaults(supper: Path) -> None:
    assert list(load_recipe(supper, ["serve=false"]).stages) == ["cook", "again"]
    supper.write_text("stages:\n  cook:\n  serve:\n")
    loaded = load_recipe(supper)
    assert loaded.stages["cook"] == CookSettings()
    assert loaded.name == "supper"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["again.tims=2"], 'command line: unknown setting "again.tims"; did you mean "times"?'),
        (["again.times=100"], "command line: again.times: should be less than or equal to 99 (got 100)"),
        (["times=2"], 'command line: unknown setting "times"; did you mean "cook.times"?'),
        (["sead=2"], 'command line: unknown setting "sead"; did you mean "seed"?'),
        (["agian.times=2"], 'command line: this recipe has no stage "agian"; did you mean "again"?'),
        (["again=2"], "command line: again: a mapping of settings is expected, not 2"),
        (["again.kind=bake"], 'command line: "bake" is no kind of stage; there are: cook, serve'),
        (["serve.dish=cok"], 'command line: serve.dish: takes from "cok", neither a stage of this recipe nor a path'),
        (["seed=-1"], "command line: seed: should be greater than or equal to 0 (got -1)"),
        (["name=a/b"], "command line: name: string should match pattern"),
        (["cook=false", "again=false"], 'supper.yaml, line 12: serve.dish: takes from "again", neither a stage'),
    ],
)
def test_a_wrong_override_is_said_to_be_on_the_command_line(supper: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe(supper, overrides)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stages:\n  cook:\n    tims: 2\n", 'r.yaml, line 3: unknown setting "cook.tims"; did you mean "times"?'),
        (
            "stages:\n  cook:\n    shape: {width: 0}\n",
            "r.yaml, line 3: cook.shape.width: should be greater than or equal to 1",
        ),
        ("stagse: {}\n", 'r.yaml, line 1: unknown setting "stagse"; did you mean "stages"?'),
        ("name: x\n", "r.yaml: a recipe needs stages; there are: cook, serve"),
        ("name: x\nstages: {}\n", "r.yaml, line 2: a recipe needs stages"),
        ("stages: [cook]\n", "r.yaml, line 1: stages: a mapping"),
        ("stages:\n  cok: {}\n", 'r.yaml, line 2: "cok" is no kind of stage; give it `kind:`, or did you mean "cook"?'),
        ("stages:\n  name: {kind: cook}\n", 'r.yaml, line 2: "name" cannot name a stage'),
        ("stages:\n  a/b: {kind: cook}\n", 'r.yaml, line 2: "a/b" cannot name a stage'),
        (
            "stages:\n  serve: {}\n  cook: {}\n",
            'r.yaml, line 2: serve.dish: takes from "cook", which comes later; put "cook" before it',
        ),
        (
            "stages:\n  a: {kind: cook, source: [b]}\n  b: {kind: cook, source: [c]}\n  c: {kind: cook, source: [a]}\n",
            "r.yaml, line 2: a.source.0: the stages go in a circle: a <- b <- c <- a",
        ),
        (
            "stages:\n  cook: {source: [cook]}\n",
            "r.yaml, line 2: cook.source.0: the stages go in a circle: cook <- cook",
        ),
        (
            "stages:\n  serve: {}\n",
            'r.yaml, line 2: serve.dish: takes from "cook", neither a stage of this recipe nor a path',
        ),
    ],
)
def test_a_wrong_recipe_is_named_with_line_and_key(supper: Path, text: str, said: str) -> None:
    Path("r.yaml").write_text(textwrap.dedent(text))
    with pytest.raises(UserError) as error:
        load_recipe("r.yaml")
    assert str(error.value).startswith(said)


def test_recipes_are_found_by_name_by_path_and_by_their_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe.find_recipe("quickstart").name == "quickstart.yaml"
    (tmp_path / "runs/x").mkdir(parents=True)
    (tmp_path / "runs/x/recipe.yaml").write_text("{}")
    assert recipe.find_recipe("runs/x") == Path("runs/x/recipe.yaml")
    for wrong, said in (
        ("quikstart", 'did you mean "quickstart"'),
        ("no/such.yaml", "no such file"),
        ("runs", r"without recipe\.yaml"),
    ):
        with pytest.raises(UserError, match=said):
            recipe.find_recipe(wrong)


@pytest.mark.parametrize("name", ["quickstart", "quickstart-zh", "mini", "gpt2"])
def test_every_recipe_that_comes_with_tinyseek_is_sound(name: str) -> None:
    loaded = load_recipe(name)
    assert isinstance(loaded, Recipe)
    assert loaded.about
    own = load_recipe(name, ["corpus=README.md", "name=mine", "seed=5"])
    assert own.stages["data"].plain()["corpus"] == "README.md"
    assert {stage.plain()["seed"] for stage in own.stages.values() if "seed" in type(stage).model_fields} == {5}
