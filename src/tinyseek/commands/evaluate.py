"""Commands that compare models: `eval`, on tasks and text of one's own or on lm-eval's tasks, and `compare`, side by side."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from tinyseek.commands import Parser
from tinyseek.commands.recipes import bring
from tinyseek.errors import UserError


def evaluate(arguments: list[str]) -> int:
    """Scores of models, as a table."""

    def more() -> str:
        from tinyseek.evaluate.options import EvalSettings, HarnessSettings
        from tinyseek.settings import describe
        from tinyseek.terminal import settings_help

        own, theirs = settings_help(describe(EvalSettings)), settings_help(describe(HarnessSettings))
        return f"settings (key=value):\n{own}\n\nsettings with --tasks (key=value):\n{theirs}"

    parser = Parser(
        "eval",
        "Score models on held-out text (bits per byte) and held-out tasks (right greedily; pass@1 and pass@k with samples=N).\n"
        "Text and tasks are those beside the first model unless data= and tasks= say otherwise.\n"
        "With --tasks, lm-eval's benchmarks instead: names that `lm-eval ls tasks` lists, or task YAMLs of your own.",
        more,
    )
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="folders, pulled models, .gguf files; then settings as key=value"
    )
    parser.add_argument("--tasks", metavar="NAME,FILE", help="benchmarks of lm-eval, separated by commas")
    parser.add_argument(
        "--out", help="the folder to write; by default beside the first model, MODEL.eval or MODEL.lm-eval"
    )
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek.settings import nested
    from tinyseek.talk import model_folder

    given = [word for word in chosen.models if "=" in word and not Path(word).exists()]
    models = [model_folder(word) for word in chosen.models if word not in given]
    if not models:
        raise UserError("name at least one model folder: tinyseek eval MODEL")
    values = nested(given)
    if chosen.tasks is not None:
        return _lm_eval(models, chosen.tasks, values, chosen.out)
    return _own(models, values, chosen.out)


def _own(models: list[Path], given: dict[str, Any], place: str | None) -> int:
    from tinyseek import terminal

    values: dict[str, Any] = {}
    for role in ("data", "tasks"):
        beside = models[0].parent / role
        values[role] = str(beside) if beside.is_dir() else None
    values |= given | {"models": [str(model) for model in models]}
    if not values["data"] and not values["tasks"]:
        raise UserError(
            f"{models[0].parent}: no data/ and no tasks/ there to score on; give data=PATH or tasks=PATH "
            "(or --tasks NAME for lm-eval's benchmarks)"
        )
    out = bring("eval", Path(place) if place else models[0].with_name(f"{models[0].name}.eval"), values)
    terminal.scores(out)
    return 0


def _lm_eval(models: list[Path], tasks: str, given: dict[str, Any], place: str | None) -> int:
    from tinyseek import terminal
    from tinyseek.evaluate.options import HarnessSettings, model_names

    settings = HarnessSettings.read(given, "command line")
    wanted = [task.strip() for task in tasks.split(",") if task.strip()]
    if not wanted:
        raise UserError("--tasks names no task; for example: --tasks arc_easy,my_task.yaml")
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed, whose tasks these are: pip install 'tinyseek[lm-eval]'")
    from tinyseek.evaluate import harness

    out = Path(place) if place else models[0].with_name(f"{models[0].name}.lm-eval")
    harness.evaluate(dict(zip(model_names(models), models, strict=True)), wanted, settings, out)
    terminal.benchmarks(out)
    print(f"\neach question and answer: {out / 'samples.jsonl'}")
    return 0
