"""A recipe: the settings of every stage as one tree, which is the YAML file and the `key=value` of the command line.

A stage's kind is its name unless it says `kind:`. What a stage is made from is the name of an earlier stage, or a path. The
settings classes stand beside the code that obeys them; `KINDS` says where, and nothing is imported before it is needed.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, SerializeAsAny

from tinyseek.errors import UserError
from tinyseek.settings import Settings, StageSettings, line_of, merged, nested, read_yaml, suggestion


@dataclass(frozen=True)
class Kind:
    """Where a kind of stage lives: its settings, in a module that imports no torch, and the module with its `build`."""

    settings: str
    build: str
    about: str

    def settings_class(self) -> type[StageSettings]:
        module, _, name = self.settings.partition(":")
        found: type[StageSettings] = getattr(importlib.import_module(module), name)
        return found

    def build_function(self) -> Callable[[Any, Path], None]:
        found: Callable[[Any, Path], None] = importlib.import_module(self.build).build
        return found


KINDS: dict[str, Kind] = {
    "data": Kind("tinyseek.text.clean:DataSettings", "tinyseek.text.clean", "clean and split raw text"),
    "tasks": Kind(
        "tinyseek.text.tasks:TaskSettings", "tinyseek.text.tasks", "generate questions with checkable answers"
    ),
    "problems": Kind(
        "tinyseek.text.problems:ProblemSettings", "tinyseek.text.problems", "generate problems to reason about"
    ),
    "tokenizer": Kind("tinyseek.text.tokenizer:TokenizerSettings", "tinyseek.text.tokenizer", "learn a vocabulary"),
    "tokens": Kind("tinyseek.text.shards:TokensSettings", "tinyseek.text.shards", "turn text into token ids"),
    "pretrain": Kind(
        "tinyseek.train.options:PretrainSettings", "tinyseek.train.pretrain", "train a model on plain text"
    ),
    "sft": Kind("tinyseek.tune.options:SftSettings", "tinyseek.tune.sft", "teach a model to answer"),
    "dpo": Kind(
        "tinyseek.tune.preferences.options:DpoSettings",
        "tinyseek.tune.preferences.stage",
        "teach a model which of two answers is better",
    ),
    "kto": Kind(
        "tinyseek.tune.preferences.options:KtoSettings",
        "tinyseek.tune.preferences.stage",
        "teach a model which answers are liked",
    ),
    "collect": Kind(
        "tinyseek.tune.distill.options:CollectSettings",
        "tinyseek.tune.distill.collect",
        "collect a teacher's answers, judged and cleaned",
    ),
    "pairs": Kind(
        "tinyseek.tune.distill.options:PairsSettings",
        "tinyseek.tune.distill.pairs",
        "make preference pairs of collected answers",
    ),
    "reward": Kind(
        "tinyseek.tune.reward_options:RewardSettings",
        "tinyseek.tune.reward",
        "teach a model to tell how good an answer is",
    ),
    "distill": Kind(
        "tinyseek.tune.distill.options:DistillSettings",
        "tinyseek.tune.distill.logits",
        "teach a student a teacher's probabilities",
    ),
    "classify": Kind(
        "tinyseek.tune.classify.options:ClassifySettings",
        "tinyseek.tune.classify.stage",
        "teach a model to tell what class a text is of",
    ),
    "grpo": Kind(
        "tinyseek.tune.rl.options:GrpoSettings", "tinyseek.tune.rl.grpo", "teach a model by rewards of its own answers"
    ),
    "ppo": Kind(
        "tinyseek.tune.rl.options:PpoSettings", "tinyseek.tune.rl.ppo", "teach a model by rewards and what it expects"
    ),
    "eval": Kind("tinyseek.evaluate.options:EvalSettings", "tinyseek.evaluate.scores", "score models on held-out data"),
    "report": Kind("tinyseek.evaluate.options:ReportSettings", "tinyseek.evaluate.report", "write the report card"),
}


class Recipe(Settings):
    """What to make, from what, in which order."""

    name: str = Field(min_length=1, max_length=80, pattern=r"^\w[\w.-]*$", description="what the run is called")
    about: str = Field("", description="one line for people")
    corpus: str | list[str] | None = Field(
        None, description="raw text: paths, package:NAME, URL#sha256=...; for every stage that reads any and names none"
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="for every stage that has a seed and does not set it")
    out: str = Field("", description="folder of the run; if empty, runs/NAME")
    stages: dict[str, SerializeAsAny[StageSettings]] = Field(description="the stages by name, in the order they run")

    @property
    def folder(self) -> Path:
        return Path(self.out or f"runs/{self.name}")

    def path_of(self, source: str) -> Path:
        """The real path of what a stage takes: an earlier stage's folder, or the path that it is."""
        return self.folder / source if source in self.stages else Path(source)

    def resolved(self, stage: str) -> StageSettings:
        """A stage's settings with real paths in place of stages' names: what its `build` is given."""
        return self.stages[stage].resolved(lambda source: str(self.path_of(source)))

    def plain(self) -> dict[str, Any]:
        """As plain values that `load_recipe` reads again, every default written out."""
        stages = {name: {"kind": kind_of(stage), **stage.plain()} for name, stage in self.stages.items()}
        return super().plain() | {"stages": stages}


def kind_of(settings: StageSettings) -> str:
    """The kind of stage that these settings are of."""
    name = type(settings).__name__
    return next(kind for kind, entry in KINDS.items() if entry.settings.endswith(f":{name}"))


def recipe_folder() -> Path:
    """Where the recipes that come with tinyseek lie: in a checkout at its top, in an installed package inside it."""
    here = Path(__file__).parent
    return here / "recipes" if (here / "recipes").is_dir() else here.parents[1] / "recipes"


def shipped() -> dict[str, Path]:
    """The recipes that come with tinyseek, by name."""
    return {file.stem: file for file in sorted(recipe_folder().glob("*.yaml"))}


def find_recipe(source: str) -> Path:
    """The file of a recipe: a path, the folder of a run, or the name of one that comes with tinyseek.

    Raises:
        UserError: there is none.
    """
    path = Path(source)
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if path.is_file():
        return path
    known = shipped()
    if source in known:
        return known[source]
    if path.is_dir():
        raise UserError(f"{source}: a folder without recipe.yaml, so no run of tinyseek; give a recipe's file or name")
    if path.suffix or len(path.parts) > 1:
        raise UserError(f"{source}: no such file; recipes that come with tinyseek: {', '.join(known)}")
    raise UserError(f'no recipe "{source}"; {suggestion(source, known)} (or give the path of a YAML file)')


def load_recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe, lay `overrides` (`pretrain.steps=100`, `corpus=my.txt`) on top, and check that the stages fit together.

    Raises:
        UserError: for whatever is wrong in it, with the file, line and key, or "command line" for an override.
    """
    file = find_recipe(str(source))
    base = read_yaml(file)
    over = _as_tree(nested(overrides), base)

    def place(keys: list[str]) -> str:
        branch: Any = over
        for part in keys:
            branch = branch.get(part) if isinstance(branch, Mapping) else None
        if branch is not None:
            return "command line"
        line = line_of(file, keys)
        return f"{file}, line {line}" if line else str(file)

    tree = merged(base, over)
    if tree.get("stages") is not None:
        tree["stages"] = _leaving_out(tree["stages"], place)
    tree.setdefault("name", file.stem)
    return read_recipe(tree, place)


def _as_tree(over: dict[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides as the file nests them: `pretrain.steps` belongs below `stages`."""
    stages = base.get("stages")
    stages = stages if isinstance(stages, Mapping) else {}
    tree: dict[str, Any] = {}
    for key, value in over.items():
        if key in Recipe.model_fields:
            tree = merged(tree, {key: value})
        elif key in stages:
            tree = merged(tree, {"stages": {key: value}})
        elif isinstance(value, Mapping):
            raise UserError(f'command line: this recipe has no stage "{key}"; {suggestion(key, stages)}')
        else:
            below = [f"{stage}.{key}" for stage in stages if key in _fields_of(stage, stages)]
            near = f'did you mean "{below[0]}"?' if below else suggestion(key, [*Recipe.model_fields, *stages])
            raise UserError(f'command line: unknown setting "{key}"; {near}')
    return tree


def _fields_of(stage: str, stages: Mapping[str, Any]) -> list[str]:
    values = stages[stage]
    kind = values.get("kind", stage) if isinstance(values, Mapping) else stage
    return list(KINDS[kind].settings_class().model_fields) if kind in KINDS else []


def _leaving_out(stages: Any, place: Callable[[list[str]], str]) -> Any:
    """`report: false` leaves a stage out; `report:` alone means its defaults."""
    if not isinstance(stages, Mapping):
        raise UserError(f"{place(['stages'])}: stages: a mapping from name to settings is expected")
    return {name: {} if values in (None, True) else values for name, values in stages.items() if values is not False}


def read_recipe(tree: Mapping[str, Any], place: Callable[[list[str]], str] = lambda _: "recipe") -> Recipe:
    """A recipe from plain values as YAML gives them; `place` tells where a key's path was written. See `load_recipe`."""
    top = Recipe.read({**tree, "stages": {}}, place)
    if not tree.get("stages"):
        raise UserError(f"{place(['stages'])}: a recipe needs stages; there are: {', '.join(KINDS)}")
    stages = {str(name): _read_stage(str(name), values, top, place) for name, values in tree["stages"].items()}
    recipe = top.model_copy(update={"stages": stages})
    _check_order(recipe, place)
    return recipe


def _read_stage(name: str, values: Any, top: Recipe, place: Callable[[list[str]], str]) -> StageSettings:
    at = ["stages", name]
    if not re.fullmatch(r"\w[\w-]*", name) or name in Recipe.model_fields:
        raise UserError(f'{place(at)}: "{name}" cannot name a stage; take letters, digits, _ and -')
    if not isinstance(values, Mapping):
        raise UserError(f"{place(at)}: {name}: a mapping of settings is expected, not {values!r:.40}")
    values = dict(values)
    kind = values.pop("kind", name)
    if kind not in KINDS:
        asked = (
            f'"{kind}" is no kind of stage;' if kind != name else f'"{name}" is no kind of stage; give it `kind:`, or'
        )
        raise UserError(f"{place(at)}: {asked} {suggestion(str(kind), KINDS)}")
    found = KINDS[kind].settings_class()
    for shared in ("corpus", "seed"):
        value = getattr(top, shared)
        if shared in found.model_fields and shared not in values and value is not None:
            values[shared] = value
    return found.read(values, lambda keys: place(["stages", *keys]), [name])


def _check_order(recipe: Recipe, place: Callable[[list[str]], str]) -> None:
    """Every stage takes from earlier stages or from paths, so running them in order is enough."""
    names = list(recipe.stages)
    takes = {
        name: {source for source in stage.taken().values() if source in names} for name, stage in recipe.stages.items()
    }
    for position, (name, stage) in enumerate(recipe.stages.items()):
        for role, source in stage.taken().items():
            at = place(["stages", name, role.partition(".")[0]])
            if source in names[:position]:
                continue
            if source in names:
                circle = _circle(name, takes)
                if circle:
                    raise UserError(f"{at}: {name}.{role}: the stages go in a circle: {' <- '.join(circle)}")
                raise UserError(
                    f'{at}: {name}.{role}: takes from "{source}", which comes later; put "{source}" before it'
                )
            if not Path(source).exists() and not stage.located(role.partition(".")[0], source):
                missing = f"neither a stage of this recipe nor a path; {suggestion(source, names[:position])}"
                raise UserError(f'{at}: {name}.{role}: takes from "{source}", {missing}')


def _circle(start: str, takes: Mapping[str, set[str]]) -> list[str]:
    """A way from a stage back to itself along what it takes from, or an empty list."""
    ways = [[start]]
    seen = set()
    while ways:
        way = ways.pop()
        for source in sorted(takes[way[-1]]):
            if source == start:
                return [*way, source]
            if source not in seen:
                seen.add(source)
                ways.append([*way, source])
    return []
