"""Commands that make things: `run`, `plan`, the stages one by one, `report`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyseek.commands import Parser, say, settings_text
from tinyseek.errors import UserError

if TYPE_CHECKING:
    from tinyseek.settings import StageSettings


def run_recipe(arguments: list[str]) -> int:
    """A whole recipe, here or in the background."""

    def more() -> str:
        from tinyseek.recipe import KINDS, Recipe, shipped
        from tinyseek.settings import read_yaml

        top = settings_text(lambda: Recipe, "settings of the whole (key=value)")()
        known = "\n".join(f"  {name:<16}{read_yaml(file).get('about', '')}" for name, file in shipped().items())
        return (
            f"recipes that come with tinyseek:\n{known}\n\n{top}\n\n"
            "Settings of a stage are written stage.key=value, for example pretrain.steps=200; stage=false leaves it out.\n"
            f"Kinds of stages: {', '.join(KINDS)}; `tinyseek STAGE --help` lists their settings."
        )

    parser = Parser(
        "run", "Do a recipe's stages in order, skipping what is built from the same inputs and settings.", more
    )
    parser.add_argument("recipe", help="a recipe's name, a YAML file, or the folder of a run to go on with")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings laid on top of the recipe's")
    parser.add_argument("--until", metavar="STAGE", help="stop after this stage")
    parser.add_argument(
        "--detach", action="store_true", help="run in the background; follow it with tinyseek ps, logs, stop"
    )
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek.recipe import load_recipe

    recipe = load_recipe(chosen.recipe, chosen.settings)
    if chosen.detach:
        from tinyseek.train import background

        without = [word for word in arguments if word != "--detach"]
        started = background.start([sys.executable, "-m", "tinyseek", "run", *without], recipe.folder)
        print(f'run "{started.name}" is at work in the background; follow it: tinyseek logs {started.name} --follow')
        return 0
    from tinyseek import run, terminal

    done = run.run(recipe, chosen.until, say)
    terminal.outcomes(done)
    _epilogue(recipe.folder, [outcome.folder for outcome in done])
    return 0


def _epilogue(run_folder: Path, folders: Sequence[Path]) -> None:
    """What a run came to: scores, a few answers, and where to go from here."""
    from tinyseek import artifact, talk, terminal

    kinds = {artifact.read(folder).kind: folder for folder in folders}
    if "eval" in kinds:
        terminal.scores(kinds["eval"])
        answers = talk.samples(kinds["eval"], 6)
        if answers:
            print()
            terminal.table(("held-out question", "answer", ""), answers)
    print()
    best = _best(kinds["eval"]) if "eval" in kinds else None
    if best is not None or "sft" in kinds:
        print(f"talk to it:    tinyseek chat {best or kinds['sft']}")
    elif "pretrain" in kinds:
        print(f'let it write:  tinyseek generate {kinds["pretrain"]} "In the beginning"')
    if "report" in kinds:
        print(f"report card:   {kinds['report'] / 'index.html'}")
    print(f"lineage:       tinyseek show {run_folder}")


def _best(folder: Path) -> Path | None:
    """The model that answered most of an eval folder's tasks, sampled if they were, the last of several as good; none if it asked
    none."""
    import json

    try:
        models = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["models"]
    except (OSError, ValueError, KeyError):
        return None
    asked = [entry for entry in models if entry.get("tasks")]

    def share(entry: dict[str, Any]) -> float:
        tasks = entry["tasks"]
        return float(tasks.get("sampled", {}).get("pass@1", {}).get("mean", tasks["share"]))

    return Path(max(reversed(asked), key=share)["path"]) if asked else None


def plan_recipe(arguments: list[str]) -> int:
    """What a recipe needs, before anything runs."""
    parser = Parser(
        "plan", "Say how many parameters, how much memory and how long a recipe needs here, before anything runs."
    )
    parser.add_argument("recipe", help="a recipe's name, a YAML file, or the folder of a run")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings laid on top of the recipe's")
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek.recipe import load_recipe

    recipe = load_recipe(chosen.recipe, chosen.settings)
    from tinyseek import plan, terminal

    head, rows = plan.rows_of(plan.plan(recipe, say))
    terminal.table(head, rows, right=[1, 2, 3, 4])
    return 0


def report(arguments: list[str]) -> int:
    """A run's report card."""
    from_class = settings_text(lambda: _stage_class("report"))
    parser = Parser("report", "Write one self-contained HTML page on what a run made.", from_class)
    parser.add_argument("run", help="the folder of a run, or one folder in it")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek import artifact
    from tinyseek.settings import nested

    home = Path(chosen.run)
    values = nested(chosen.settings)
    if (home / artifact.MANIFEST).is_file():
        values.setdefault("of", [str(home)])
        home = home.parent
    elif "of" not in values:
        kinds = {folder: artifact.read(folder).kind for folder in sorted(home.glob("*/")) if is_built(folder)}
        made = [folder for folder, kind in kinds.items() if kind != "report"]
        scored = [folder for folder in made if kinds[folder] == "eval"]
        if not made:
            raise UserError(
                f"{home}: {'no stage is built in it' if home.is_dir() else 'no such folder'}; give the folder of a run"
            )
        # Scores bring in all that they were made from; what was made beside comes by itself.
        within = {path.resolve() for folder in scored for _, _, path, _ in artifact.lineage(folder)}
        values["of"] = [str(folder) for folder in [*scored, *(m for m in made if m.resolve() not in within)]]
    outcome = bring("report", home / "report", values)
    print(outcome / "index.html")
    return 0


def is_built(folder: Path) -> bool:
    """Whether a stage finished this folder; one that is being written aside is not."""
    from tinyseek import artifact

    return folder.suffix not in (".work", ".partial", ".old") and (folder / artifact.MANIFEST).is_file()


def _stage_class(kind: str) -> type[StageSettings]:
    from tinyseek.recipe import KINDS

    return KINDS[kind].settings_class()


def stage(kind: str, arguments: list[str], command: str = "") -> int:
    """One stage into a folder; its settings are those of the recipe."""
    from tinyseek.recipe import KINDS

    parser = Parser(
        command or kind,
        f"{KINDS[kind].about.capitalize()}, into the folder OUT.\n"
        "What it is made from are folders too: given as settings, or beside OUT.",
        settings_text(lambda: _stage_class(kind)),
    )
    parser.add_argument("out", metavar="OUT", help="the folder to make")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek.settings import nested

    if "=" in chosen.out and not Path(chosen.out).exists():
        raise UserError(f"the folder to make comes first: tinyseek {command or kind} OUT {chosen.out}")
    print(bring(kind, Path(chosen.out), nested(chosen.settings)))
    return 0


def bring(kind: str, out: Path, values: dict[str, Any]) -> Path:
    """Make one stage's folder unless it is up to date; inputs that are no paths are looked for beside it."""
    from tinyseek import run, terminal

    settings = _stage_class(kind).read(values, "command line")

    def path_of(source: str) -> str:
        beside = out.parent / source
        if Path(source).exists() or not beside.exists():
            return source
        return str(beside)

    given = settings.resolved(path_of)
    for role, source in given.taken().items():
        key = role.partition(".")[0]
        if not Path(source).exists() and not given.located(key, source):
            raise UserError(f"{kind}.{key}: {source}: no such folder, here or in {out.parent}; give {key}=PATH")
    outcome = run.bring_up_to_date(given, out, say, out.name)
    facts = terminal.figures(outcome.manifest)
    if facts:
        say(f"{out.name}: {facts}")
    return out
