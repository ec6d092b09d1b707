"""Commands that compare models: `eval`, on tasks and text of one's own or on lm-eval's tasks, and `compare`, side by side."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyseek.commands import Parser
from tinyseek.commands.recipes import bring
from tinyseek.errors import UserError

if TYPE_CHECKING:
    from tinyseek.evaluate.compare import Judge
    from tinyseek.evaluate.options import CompareSettings
    from tinyseek.llm.base import Message
    from tinyseek.text.examples import Prompt


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
        "--out", help="the folder to write; by default MODEL.eval or MODEL.lm-eval beside a folder, here for others"
    )
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek.settings import nested
    from tinyseek.talk import model_folder

    given = [word for word in chosen.models if "=" in word and not Path(word).exists()]
    words = [word for word in chosen.models if word not in given]
    models = [model_folder(word) for word in words]
    if not models:
        raise UserError("name at least one model folder: tinyseek eval MODEL")
    values = nested(given)
    kind = "eval" if chosen.tasks is None else "lm-eval"
    home = models[0].parent if Path(words[0]).is_dir() else Path()  # a pulled model's lies in the cache
    out = Path(chosen.out) if chosen.out else home / f"{models[0].name}.{kind}"
    if chosen.tasks is not None:
        return _lm_eval(models, chosen.tasks, values, out)
    return _own(models, values, out)


def _own(models: list[Path], given: dict[str, Any], out: Path) -> int:
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
    terminal.scores(bring("eval", out, values))
    return 0


def _lm_eval(models: list[Path], tasks: str, given: dict[str, Any], out: Path) -> int:
    from tinyseek import terminal
    from tinyseek.evaluate.options import HarnessSettings, model_names

    settings = HarnessSettings.read(given, "command line")
    wanted = [task.strip() for task in tasks.split(",") if task.strip()]
    if not wanted:
        raise UserError("--tasks names no task; for example: --tasks arc_easy,my_task.yaml")
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed, whose tasks these are: pip install 'tinyseek[lm-eval]'")
    from tinyseek.evaluate import harness

    harness.evaluate(dict(zip(model_names(models), models, strict=True)), wanted, settings, out)
    terminal.benchmarks(out)
    print(f"\neach question and answer: {out / 'samples.jsonl'}")
    return 0


def compare(arguments: list[str]) -> int:
    """Models side by side: a page, and a table."""

    def more() -> str:
        from tinyseek.evaluate.options import CompareSettings
        from tinyseek.settings import describe
        from tinyseek.terminal import settings_help

        return f"settings (key=value):\n{settings_help(describe(CompareSettings))}"

    parser = Parser(
        "compare",
        "Ask two or more models the same prompts and write one HTML page: side by side, differences marked, right and wrong\n"
        "where an answer is known, wins and losses over the first model.",
        more,
    )
    from tinyseek.llm.open import WHERE

    parser.add_argument("models", nargs="+", metavar="MODEL", help=WHERE)
    parser.add_argument(
        "--prompts",
        required=True,
        metavar="FILE",
        help="a .txt with a prompt a line, any data file or folder, a data set's name",
    )
    parser.add_argument("--out", default="compare.html", metavar="PAGE", help="the page to write (compare.html)")
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek import artifact, terminal
    from tinyseek.evaluate.options import CompareSettings
    from tinyseek.settings import nested

    given = [word for word in chosen.models if "=" in word and not Path(word).exists() and "://" not in word]
    settings = CompareSettings.read(nested(given), "command line")
    models = _places([word for word in chosen.models if word not in given])
    from tinyseek.evaluate.compare import compare as ask
    from tinyseek.evaluate.compare import write_answers
    from tinyseek.evaluate.compare_page import render

    found = ask(models, chosen.prompts, settings, _judge(settings))
    found.judged_by = settings.reward
    page = Path(chosen.out)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_answers(found, page.with_suffix(".jsonl"))
    artifact.write_text(page, render(found, settings))
    terminal.comparison(found)
    print(f"\npage: {page}   all answers: {page.with_suffix('.jsonl')}")
    return 0


def _places(words: list[str]) -> dict[str, str]:
    """What to call each model, and where it is."""
    from tinyseek.evaluate.options import model_names
    from tinyseek.llm.open import is_remote
    from tinyseek.talk import model_folder

    if len(words) < 2:
        raise UserError("name two models at least: tinyseek compare A B --prompts FILE")
    folders = {word: model_folder(word) for word in words if not is_remote(word)}
    names = dict(zip(folders, model_names(list(folders.values())), strict=True))
    places = {names.get(word, word): str(folders.get(word, word)) for word in words}
    if len(places) < len(words):
        raise UserError("a model is named twice; compare different ones")
    return places


def _judge(settings: CompareSettings) -> Judge:
    """By a reward; or, if none is named, by the known answers."""
    from tinyseek.tune.rl.rewards import RewardSet

    known = settings.reward is None

    def judge(prompts: Sequence[Prompt], messages: Sequence[Message]) -> list[float | None]:
        columns = [prompt.columns for prompt in prompts]
        if known and not any("answer" in own for own in columns):
            return [None] * len(prompts)
        args = [{"loose": True}] if known else None
        with RewardSet([settings.reward or "exact_answer"], args=args) as rewards:
            rewards.check(list(dict.fromkeys(name for own in columns for name in own)))
            scores = rewards([p.messages for p in prompts], [[m] for m in messages], columns)[:, 0].tolist()
        return [None if score != score else score for score in scores]

    return judge
