"""The `tinyseek` command: parse, call, print. What a command needs is imported when it runs, so that --help is instant."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from tinyseek import __version__
from tinyseek.errors import UserError

HELP = f"""\
tinyseek {__version__}: build your own DeepSeek from zero

From text to a model that answers
  run RECIPE          do a recipe's stages, skipping what is built        tinyseek run quickstart
  plan RECIPE         parameters, memory and time, before anything runs   tinyseek plan mini corpus=my.txt
  report RUN          one HTML page on what was made                      tinyseek report runs/quickstart

Use a model
  chat MODEL          talk to it                                          tinyseek chat runs/quickstart/sft
  label MODEL TEXT    what class a text is of                             tinyseek label runs/spam "Free entry! Text WIN now"
  generate MODEL      continue a text                                     tinyseek generate runs/quickstart/pretrain "In the"
  serve MODEL         OpenAI's and Ollama's APIs, and a chat page         tinyseek serve runs/quickstart
  eval MODEL ...      score it on held-out text and tasks                 tinyseek eval runs/quickstart/sft
  compare A B         side by side on the same prompts, as a page         tinyseek compare A B --prompts questions.txt
  model CONFIG        its parameter table: a preset, config.json, folder  tinyseek model deepseek-v3
  pull NAME           fetch a published model                             tinyseek pull smollm2-135m
  merge ADAPTER OUT   an adapter and its base as one model                tinyseek merge runs/my/sft runs/my/merged
  export MODEL        write it for other programs: gguf, ollama, hf       tinyseek export runs/quickstart/sft --to ollama

Ask your own documents
  kb add FOLDER       read documents into a knowledge base                tinyseek kb add my-docs/
  kb ask QUESTION     an answer, with file and page                       tinyseek kb ask "How many days of leave?"
  kb                  search, list, watch, eval, serve, mcp ...           tinyseek kb --help

One stage of a recipe at a time
  data preview FILE   fine-tuning data, its trained tokens in colour       tinyseek data preview chats.jsonl
  data OUT            clean, deduplicate and split raw text               tinyseek data runs/my/data corpus=my.txt
  tasks OUT           questions with checkable answers                    tinyseek tasks runs/my/tasks
  problems OUT        problems to reason about, with solutions            tinyseek problems runs/my/problems
  tokenizer train OUT learn a vocabulary (also: show, encode, decode)     tinyseek tokenizer show "Hello, 世界"
  tokens OUT          text to token ids                                   tinyseek tokens runs/my/tokens
  pretrain OUT        a model from random weights                         tinyseek pretrain runs/my/pretrain steps=500
  sft OUT             teach a model to answer                             tinyseek sft runs/my/sft data=[chats.jsonl]
  dpo OUT             teach it which of two answers is better             tinyseek dpo runs/my/dpo data=[pairs.jsonl]
  kto OUT             teach it which answers are liked                    tinyseek kto runs/my/kto data=[thumbs.jsonl]
  grpo OUT            teach it by rewards of its own answers              tinyseek grpo runs/my/grpo data=[tasks]
  ppo OUT             the same, with a value head                         tinyseek ppo runs/my/ppo data=[tasks]
  collect OUT         a teacher's answers, judged and cleaned             tinyseek collect runs/my/collect teacher=runs/my/sft
  distill OUT         teach a student a teacher's probabilities           tinyseek distill runs/my/small teacher=runs/my/sft
  pairs OUT           preference pairs of such answers                    tinyseek pairs runs/my/pairs answers=[collect]
  reward OUT          a model that tells how good an answer is            tinyseek reward runs/my/reward data=[pairs.jsonl]
  classify OUT        teach it to tell what class a text is of            tinyseek classify runs/spam data=[sms.csv]

Look and follow
  show FOLDER         where a folder came from, back to the raw text      tinyseek show runs/quickstart/sft
  ps                  runs in the background (run --detach starts one)    tinyseek ps
  logs RUN            what a run has said so far                          tinyseek logs quickstart --follow
  stop RUN            stop a run; it saves, and run goes on from there    tinyseek stop quickstart

Settings are written key=value; `tinyseek COMMAND --help` lists a command's own."""

STAGES = (
    "data",
    "tasks",
    "problems",
    "tokens",
    "pretrain",
    "sft",
    "dpo",
    "kto",
    "grpo",
    "ppo",
    "collect",
    "pairs",
    "distill",
    "reward",
    "classify",
)

# Where each command is, in tinyseek.commands; imported when it is asked for.
COMMANDS = {
    "run": "recipes:run_recipe",
    "plan": "recipes:plan_recipe",
    "report": "recipes:report",
    "chat": "models:chat",
    "generate": "models:generate",
    "serve": "serve:serve",
    "eval": "evaluate:evaluate",
    "compare": "evaluate:compare",
    "label": "label:label",
    "kb": "kb:kb",
    "model": "models:model",
    "pull": "interchange:pull",
    "merge": "interchange:merge",
    "export": "interchange:export",
    "tokenizer": "models:tokenizer",
    "data preview": "data:preview",
    "show": "follow:show",
    "ps": "follow:ps",
    "logs": "follow:logs",
    "stop": "follow:stop",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0, 2 after an error that the user can mend, 130 when stopped.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if os.environ.get("RANK", "0") != "0":  # of several processes that train together the first speaks
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"tinyseek: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        makes = bool({"run", *STAGES}.intersection(arguments[:1]))
        print(f"\ntinyseek: stopped{'; the same command goes on from what is built' if makes else ''}", file=sys.stderr)
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
    rest = arguments[1:]
    if " ".join(arguments[:2]) in COMMANDS:
        name, rest = " ".join(arguments[:2]), arguments[2:]
    elif name in STAGES:
        from tinyseek.commands.recipes import stage

        return stage(name, rest)
    if name not in COMMANDS:
        from tinyseek.settings import suggestion

        raise UserError(f'no command "{name}"; {suggestion(name, [*COMMANDS, *STAGES])}')
    module, _, function = COMMANDS[name].partition(":")
    command: Callable[[list[str]], int] = getattr(importlib.import_module(f"tinyseek.commands.{module}"), function)
    return command(rest)
