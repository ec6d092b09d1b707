"""The process that a reward function of the user's own runs in, so that one that hangs can be ended and one that crashes harms
nothing. A line of JSON comes in, a line of JSON goes out; what the function prints goes to stderr.

    python -m tinyseek.tune.rl.child FILE FUNCTION

No torch here.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def load(file: str, name: str) -> Callable[..., Any]:
    """The function of that name in that file.

    Raises:
        LookupError: there is none.
    """
    path = Path(file).resolve()
    sys.path.insert(0, str(path.parent))  # it may import its neighbours
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise LookupError(f"{file}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not callable(found):
        there = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise LookupError(f'{file}: has no function "{name}"; there are: {", ".join(there) or "none"}')
    function: Callable[..., Any] = found
    return function


def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """What a function takes: `names`, those `required`, and whether it takes `any` other by name."""
    taken = inspect.signature(function).parameters.values()
    named = [p for p in taken if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {
        "names": [p.name for p in named],
        "required": [p.name for p in named if p.default is p.empty],
        "any": any(p.kind is p.VAR_KEYWORD for p in taken),
    }


def told(error: BaseException) -> str:
    """An error in a line, with the place in the user's file where it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def main(file: str, name: str) -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the function prints must not come between
    questions = os.fdopen(os.dup(0), "r", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        function = load(file, name)
        answer(parameters(function))
    except LookupError as error:
        answer({"error": str(error)})
        return
    except BaseException as error:
        answer({"error": f"{file}: {told(error)}"})
        return
    for line in questions:
        try:
            rewards = function(**json.loads(line))
            answer({"rewards": [None if reward is None else float(reward) for reward in rewards]})
        except Exception as error:
            answer({"error": told(error)})


if __name__ == "__main__":
    main(*sys.argv[1:])
