"""The `tinyseek` command: parse, call, print. What a command needs is imported when it runs, so that --help is instant."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyseek import __version__
from tinyseek.errors import UserError

if TYPE_CHECKING:
    from tinyseek.settings import Settings, StageSettings

HELP = f"""\
tinyseek {__version__}: build your own DeepSeek from zero

From text to a model that answers
  run RECIPE          do a recipe's stages, skipping what is built        tinyseek run quickstart
  plan RECIPE         parameters, memory and time, before anything runs   tinyseek plan mini corpus=my.txt
  report RUN          one HTML page on what was made                      tinyseek report runs/quickstart

Use a model
  chat MODEL          talk to it                                          tinyseek chat runs/quickstart/sft
  generate MODEL      continue a text                                     tinyseek generate runs/quickstart/pretrain "In the"
  eval MODEL ...      score it on held-out text and tasks                 tinyseek eval runs/quickstart/sft
  model CONFIG        its parameter table: a preset, config.json, folder  tinyseek model deepseek-v3

One stage of a recipe at a time
  data OUT            clean, deduplicate and split raw text               tinyseek data runs/my/data corpus=my.txt
  tasks OUT           questions with checkable answers                    tinyseek tasks runs/my/tasks
  tokenizer train OUT learn a vocabulary (also: show, encode, decode)     tinyseek tokenizer show "Hello, 世界"
  tokens OUT          text to token ids                                   tinyseek tokens runs/my/tokens
  pretrain OUT        a model from random weights                         tinyseek pretrain runs/my/pretrain steps=500
  sft OUT             teach a model to answer                             tinyseek sft runs/my/sft data=[chats.jsonl]

Look and follow
  show FOLDER         where a folder came from, back to the raw text      tinyseek show runs/quickstart/sft
  ps                  runs in the background (run --detach starts one)    tinyseek ps
  logs RUN            what a run has said so far                          tinyseek logs quickstart --follow
  stop RUN            stop a run; it saves, and run goes on from there    tinyseek stop quickstart

Settings are written key=value; `tinyseek COMMAND --help` lists a command's own."""

STAGES = ("data", "tasks", "tokens", "pretrain", "sft")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0, 2 after an error that the user can mend, 130 when stopped.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"tinyseek: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = (
            "; the same command goes on from what is built"
            if arguments[:1] in (["run"], *([s] for s in STAGES))
            else ""
        )
        print(f"\ntinyseek: stopped{again}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        known = _known(error)
        if known is None:
            raise
        print(f"tinyseek: {known[1]}", file=sys.stderr)
        return known[0]


def _known(error: Exception) -> tuple[int, str] | None:
    """Exit status and words for what is no UserError and yet no bug."""
    from tinyseek.artifact import disk_trouble
    from tinyseek.train import StoppedError

    if isinstance(error, StoppedError):
        return 130, str(error)
    if disk_trouble(error):
        return 2, f"the disk takes no more ({error}); make room and run the same command again"
    return None


def _dispatch(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h", "help"):
        print(HELP)
        return 0
    if name in ("--version", "-V"):
        print(f"tinyseek {__version__}")
        return 0
    commands: dict[str, Callable[[list[str]], int]] = {
        "run": _run,
        "plan": _plan,
        "report": _report,
        "chat": _chat,
        "generate": _generate,
        "eval": _eval,
        "model": _model,
        "tokenizer": _tokenizer,
        "show": _show,
        "ps": _ps,
        "logs": _logs,
        "stop": _stop,
    }
    if name in STAGES:
        return _stage(name, arguments[1:])
    if name not in commands:
        from tinyseek.settings import suggestion

        raise UserError(f'no command "{name}"; {suggestion(name, [*commands, *STAGES])}')
    return commands[name](arguments[1:])


class _Parser(argparse.ArgumentParser):
    """A command's arguments; key=value ones may stand before and after the options."""

    def __init__(self, command: str, about: str, more: Callable[[], str] = str) -> None:
        super().__init__(
            prog=f"tinyseek {command}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self._more = more

    def format_help(self) -> str:
        more = self._more()
        return super().format_help() + (f"\n{more}\n" if more else "")


def _settings_text(cls: Callable[[], type[Settings]], title: str = "settings (key=value)") -> Callable[[], str]:
    def text() -> str:
        from tinyseek.settings import describe
        from tinyseek.terminal import settings_help

        return f"{title}:\n{settings_help(describe(cls()))}"

    return text


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ---- recipes


def _run(arguments: list[str]) -> int:
    def more() -> str:
        from tinyseek.recipe import KINDS, Recipe, shipped
        from tinyseek.settings import read_yaml

        top = _settings_text(lambda: Recipe, "settings of the whole (key=value)")()
        known = "\n".join(f"  {name:<16}{read_yaml(file).get('about', '')}" for name, file in shipped().items())
        return (
            f"recipes that come with tinyseek:\n{known}\n\n{top}\n\n"
            "Settings of a stage are written stage.key=value, for example pretrain.steps=200; stage=false leaves it out.\n"
            f"Kinds of stages: {', '.join(KINDS)}; `tinyseek STAGE --help` lists their settings."
        )

    parser = _Parser(
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

    done = run.run(recipe, chosen.until, _say)
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
    if "sft" in kinds:
        print(f"talk to it:    tinyseek chat {kinds['sft']}")
    elif "pretrain" in kinds:
        print(f'let it write:  tinyseek generate {kinds["pretrain"]} "In the beginning"')
    if "report" in kinds:
        print(f"report card:   {kinds['report'] / 'index.html'}")
    print(f"lineage:       tinyseek show {run_folder}")


def _plan(arguments: list[str]) -> int:
    parser = _Parser(
        "plan", "Say how many parameters, how much memory and how long a recipe needs here, before anything runs."
    )
    parser.add_argument("recipe", help="a recipe's name, a YAML file, or the folder of a run")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings laid on top of the recipe's")
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek.recipe import load_recipe

    recipe = load_recipe(chosen.recipe, chosen.settings)
    from tinyseek import terminal
    from tinyseek.train import plan

    terminal.table(*plan.plan(recipe))
    return 0


def _report(arguments: list[str]) -> int:
    from_class = _settings_text(lambda: _stage_class("report"))
    parser = _Parser("report", "Write one self-contained HTML page on what a run made.", from_class)
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
        made = [
            home / name
            for name in ("eval", "sft", "pretrain", "tokens", "data")
            if (home / name / artifact.MANIFEST).is_file()
        ]
        if not made:
            raise UserError(
                f"{home}: {'no stage is built in it' if home.is_dir() else 'no such folder'}; give the folder of a run"
            )
        values["of"] = [str(made[0])]
    outcome = _bring("report", home / "report", values)
    print(outcome / "index.html")
    return 0


# ---- one stage


def _stage_class(kind: str) -> type[StageSettings]:
    from tinyseek.recipe import KINDS

    return KINDS[kind].settings_class()


def _stage(kind: str, arguments: list[str], command: str = "") -> int:
    from tinyseek.recipe import KINDS

    parser = _Parser(
        command or kind,
        f"{KINDS[kind].about.capitalize()}, into the folder OUT.\n"
        "What it is made from are folders too: given as settings, or beside OUT.",
        _settings_text(lambda: _stage_class(kind)),
    )
    parser.add_argument("out", metavar="OUT", help="the folder to make")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek.settings import nested

    if "=" in chosen.out and not Path(chosen.out).exists():
        raise UserError(f"the folder to make comes first: tinyseek {command or kind} OUT {chosen.out}")
    print(_bring(kind, Path(chosen.out), nested(chosen.settings)))
    return 0


def _bring(kind: str, out: Path, values: dict[str, Any]) -> Path:
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
        if not Path(source).exists():
            key = role.partition(".")[0]
            raise UserError(f"{kind}.{key}: {source}: no such folder, here or in {out.parent}; give {key}=PATH")
    outcome = run.bring_up_to_date(given, out, _say, out.name)
    facts = terminal.figures(outcome.manifest)
    if facts:
        _say(f"{out.name}: {facts}")
    return out


def _eval(arguments: list[str]) -> int:
    parser = _Parser(
        "eval",
        "Score models on held-out text (bits per byte) and held-out tasks (exact match). Text and tasks are those beside the\n"
        "first model unless data= and tasks= say otherwise.",
        _settings_text(lambda: _stage_class("eval")),
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="model folders; then settings as key=value")
    parser.add_argument("--out", help="the folder to write; by default beside the first model, MODEL.eval")
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek import terminal
    from tinyseek.settings import nested
    from tinyseek.talk import model_folder

    given = [word for word in chosen.models if "=" in word and not Path(word).exists()]
    models = [model_folder(word) for word in chosen.models if word not in given]
    if not models:
        raise UserError("name at least one model folder: tinyseek eval MODEL")
    values: dict[str, Any] = {}
    for role in ("data", "tasks"):
        beside = models[0].parent / role
        values[role] = str(beside) if beside.is_dir() else None
    values |= nested(given) | {"models": [str(model) for model in models]}
    if not values["data"] and not values["tasks"]:
        raise UserError(f"{models[0].parent}: no data/ and no tasks/ there to score on; give data=PATH or tasks=PATH")
    out = _bring("eval", Path(chosen.out) if chosen.out else models[0].with_name(f"{models[0].name}.eval"), values)
    terminal.scores(out)
    return 0


# ---- models


def _generate(arguments: list[str]) -> int:
    from tinyseek.talk import Speaker, TalkSettings

    parser = _Parser("generate", "Continue a text.", _settings_text(lambda: TalkSettings))
    parser.add_argument("model", metavar="MODEL", help="the folder of a model, or of a run")
    parser.add_argument("prompt", help="the text to continue; - reads standard input")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek.settings import nested

    settings = TalkSettings.read(nested(chosen.settings), "command line")
    prompt = _standard_input() if chosen.prompt == "-" else chosen.prompt
    speaker = Speaker.load(chosen.model, settings)
    continuation = speaker.continuation(prompt)
    first = next(continuation, "")  # an error comes before anything is printed
    print(prompt, end=first, flush=True)
    for piece in continuation:
        print(piece, end="", flush=True)
    print()
    return 0


def _chat(arguments: list[str]) -> int:
    from tinyseek.talk import ChatSettings, Speaker, chat

    parser = _Parser(
        "chat",
        "Talk to a model. Where standard input is no terminal its lines are the prompts.",
        _settings_text(lambda: ChatSettings),
    )
    parser.add_argument("model", metavar="MODEL", help="the folder of a model, or of a run")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek.settings import nested

    settings = ChatSettings.read(nested(chosen.settings), "command line")
    chat(Speaker.load(chosen.model, settings), settings.system)
    return 0


def _model(arguments: list[str]) -> int:
    def more() -> str:
        from tinyseek.model.presets import PRESETS

        return f"presets: {', '.join(PRESETS)}"

    parser = _Parser(
        "model", "Draw the parameter table of a model: total, active, FLOPs and cache bytes a token.", more
    )
    parser.add_argument("config", metavar="CONFIG", help="a preset, a config.json, or the folder of a model")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="what to change in a preset")
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek import terminal

    terminal.parameters(chosen.config, _config(chosen.config, chosen.settings))
    return 0


def _config(source: str, changes: list[str]) -> Any:
    import json

    from tinyseek.model.presets import PRESETS, from_preset
    from tinyseek.settings import nested, suggestion
    from tinyseek.talk import model_folder

    if source in PRESETS:
        return from_preset(source, nested(changes))
    path = Path(source)
    if not path.exists() and not path.suffix and len(path.parts) == 1:
        raise UserError(f'no preset, file or folder "{source}"; {suggestion(source, PRESETS)}')
    if changes:
        raise UserError(f"{changes[0]}: only a preset can be changed; edit {source} instead")
    file = model_folder(source) / "config.json" if path.is_dir() or not path.exists() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not a model's config.json ({error})") from None
    from tinyseek.model.interchange import config_from_hf

    return config_from_hf(values, str(file))


# ---- tokenizers


def _tokenizer(arguments: list[str]) -> int:
    parser = _Parser(
        "tokenizer",
        "train OUT [key=value ...]  learn a vocabulary\n"
        "show TEXT                  each token on a colour of its own\n"
        "encode TEXT                token ids\n"
        "decode ID ...              text",
        lambda: "TEXT may be - for standard input.",
    )
    parser.add_argument("action", choices=("train", "show", "encode", "decode"))
    parser.add_argument("rest", nargs="*", metavar="OUT | TEXT | ID")
    parser.add_argument(
        "-t", "--tokenizer", metavar="FOLDER", help="a tokenizer or model folder; by default the newest below runs/"
    )
    if arguments[:1] == ["train"]:
        return _stage("tokenizer", arguments[1:], "tokenizer train")
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek import terminal
    from tinyseek.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(chosen.tokenizer or _newest_tokenizer())
    if chosen.action == "decode":
        words = " ".join(chosen.rest).replace(",", " ").split()
        if not all(word.isdecimal() and int(word) < tokenizer.vocab_size for word in words):
            raise UserError(f"ids are whole numbers below {tokenizer.vocab_size}, separated by spaces or commas")
        print(tokenizer.decode([int(word) for word in words]))
        return 0
    text = _standard_input() if chosen.rest == ["-"] or not chosen.rest else " ".join(chosen.rest)
    if chosen.action == "encode":
        print(*tokenizer.encode(text))
    else:
        from tinyseek.text.show import show

        terminal.console().print(show(tokenizer, text))
    return 0


def _newest_tokenizer() -> Path:
    found = sorted(Path("runs").glob("*/tokenizer/tokenizer.json"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise UserError(
            "no tokenizer below runs/ yet; train one (tinyseek run quickstart --until tokenizer) or give --tokenizer FOLDER"
        )
    _say(f"(tokenizer of {found[-1].parent})")
    return found[-1].parent


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise UserError("standard input is not UTF-8 text") from None


# ---- looking and following


def _show(arguments: list[str]) -> int:
    parser = _Parser(
        "show", "Print where a folder came from as a tree, back to the raw text, with what was measured on the way."
    )
    parser.add_argument("folder", metavar="FOLDER", help="what a stage made, or the folder of a run")
    folder = Path(parser.parse_args(arguments).folder)
    from tinyseek import artifact, terminal

    if not (folder / artifact.MANIFEST).is_file() and (folder / "recipe.yaml").is_file():
        from tinyseek.settings import read_yaml

        stages = [folder / name for name in read_yaml(folder / "recipe.yaml").get("stages", {})]
        built = [stage for stage in stages if (stage / artifact.MANIFEST).is_file()]
        folder = built[-1] if built else folder
    terminal.lineage(folder)
    return 0


def _ps(arguments: list[str]) -> int:
    _Parser("ps", "List the runs that were started in the background.").parse_args(arguments)
    from tinyseek import terminal
    from tinyseek.train import background

    rows = [
        (run.name, run.status, run.started.replace("T", " ").removesuffix("Z"), run.folder, run.last_line[:80])
        for run in background.runs()
    ]
    if rows:
        terminal.table(("run", "status", "started (UTC)", "folder", "last line"), rows)
    else:
        print("no runs in the background; tinyseek run RECIPE --detach starts one")
    return 0


def _logs(arguments: list[str]) -> int:
    parser = _Parser("logs", "Print what a run in the background has said.")
    parser.add_argument("run", help="its name or folder")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on until the run ends; Ctrl-C leaves, the run goes on"
    )
    chosen = parser.parse_args(arguments)
    from tinyseek.train import background

    background.follow(background.find(chosen.run), sys.stdout, chosen.follow)
    return 0


def _stop(arguments: list[str]) -> int:
    parser = _Parser(
        "stop", "Stop a run in the background as Ctrl-C would: it saves, and the same command goes on from there."
    )
    parser.add_argument("run", help="its name or folder")
    chosen = parser.parse_args(arguments)
    from tinyseek.train import background

    print(background.stop(background.find(chosen.run)))
    return 0
