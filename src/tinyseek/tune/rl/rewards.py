"""Rewards by name: called with a time limit, their errors named, what they did not tell left out.

    rewards = RewardSet(["exact_answer", "mine.py:polite"], [1.0, 0.2])
    scores_NK = rewards(prompts, completions, columns)     # NaN where one had nothing to say
    total_N = rewards.total(scores_NK)

A function of the user's own runs in a process beside (child.py), which is ended when it takes too long and begun anew. What a
function raises for a whole batch it is asked again one by one, so that one answer that it cannot read costs no other.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tinyseek.errors import UserError
from tinyseek.settings import suggestion
from tinyseek.train.metrics import say
from tinyseek.tune.rl import child, shipped
from tinyseek.tune.rl.options import RewardOptions
from tinyseek.tune.rl.shipped import Completion, Message

GIVEN = ("prompts", "completions", "completion_ids")  # what every reward may ask for beside the data's own columns
_START_SECONDS = 120.0  # that a process may take to import what its function needs
_TOLD = 5  # different errors of a reward that are told word for word


class RewardError(Exception):
    """Why a reward function gave no rewards."""


class TooLongError(RewardError):
    """It did not answer in time."""


class Function(Protocol):
    """A reward function, wherever it runs."""

    taken: dict[str, Any]  # see `child.parameters`

    def __call__(self, arguments: Mapping[str, Any], seconds: float) -> list[float | None]:
        """Call it.

        Raises:
            RewardError: it raised, or took longer.
        """
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class Inside:
    """A function of ours, in a thread that is left behind if it does not come back."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.taken = child.parameters(function)

    def __call__(self, arguments: Mapping[str, Any], seconds: float) -> list[float | None]:
        """See `Function`."""
        found: list[Any] = []

        def call() -> None:
            try:
                found.append(list(self._function(**arguments)))
            except Exception as error:
                found.append(RewardError(child.told(error)))

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(seconds)
        if not found:
            raise TooLongError(f"took longer than {seconds:g} s")
        if isinstance(found[0], RewardError):
            raise found[0]
        rewards: list[float | None] = found[0]
        return rewards

    def close(self) -> None:
        """See `Function`."""
        if isinstance(self._function, shipped.Judge):
            self._function.close()


class Beside:
    """A function out of a file, in a process of its own.

    Raises:
        UserError: no such file or function, or the file cannot be imported.
    """

    def __init__(self, file: str, name: str) -> None:
        if not Path(file).is_file():
            raise UserError(f"reward {file}:{name}: no such file")
        self._file, self._name = file, name
        self._process: subprocess.Popen[str] | None = None
        self.taken = self._begin()

    def _begin(self) -> dict[str, Any]:
        command = [sys.executable, "-m", "tinyseek.tune.rl.child", self._file, self._name]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        try:
            taken = self._answer(None, _START_SECONDS)
        except RewardError as error:
            self.close()
            raise UserError(f"reward {self._file}:{self._name}: {error}") from None
        if "error" in taken:
            self.close()
            raise UserError(f"reward {taken['error']}")
        return taken

    def _answer(self, question: str | None, seconds: float) -> dict[str, Any]:
        """Ask the process and wait for its line. The asking, too, waits for a process that does not read."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        into: IO[str] = process.stdin
        out: IO[str] = process.stdout
        lines: list[str] = []

        def talk() -> None:
            try:
                if question is not None:
                    into.write(question + "\n")
                    into.flush()
                lines.append(out.readline())
            except (OSError, ValueError):
                lines.append("")

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        thread.join(seconds)
        if not lines:
            raise TooLongError(f"took longer than {seconds:g} s")
        if not lines[0].endswith("\n"):
            raise RewardError(f"its process ended (exit status {process.wait()})")
        found: dict[str, Any] = json.loads(lines[0])
        return found

    def __call__(self, arguments: Mapping[str, Any], seconds: float) -> list[float | None]:
        """See `Function`."""
        if self._process is None:
            self._begin()
        try:
            answer = self._answer(json.dumps(dict(arguments), default=str), seconds)
        except RewardError:
            self.close()
            raise
        if "error" in answer:
            raise RewardError(answer["error"])
        rewards: list[float | None] = answer["rewards"]
        return rewards

    def close(self) -> None:
        """See `Function`."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    try:
                        stream.close()
                    except OSError:
                        continue


class RewardSet:
    """Several rewards and their weights.

    Attributes:
        names: of the rewards, the file's path left out of those out of files.
        errors: how often each failed since `take_errors`.
    """

    def __init__(
        self,
        names: Sequence[str],
        weights: Sequence[float] | None = None,
        *,
        args: Sequence[Mapping[str, Any]] | None = None,
        seconds: float = 60.0,
        on_error: Literal["skip", "stop"] = "skip",
    ) -> None:
        """Make them ready.

        Args:
            names: `exact_answer`, ... (shipped.py), or `file.py:function`.
            weights: 1 each, if none.
            args: named arguments of each function.
            seconds: longest that one may take for one call.
            on_error: leave out what a failing reward did not tell, or raise.
        Raises:
            UserError: an unknown name, a file or function that is not there.
        """
        self.names = [_short(name, names) for name in names]
        self.weights = np.array([1.0] * len(names) if weights is None else weights, dtype=np.float64)
        if len(self.weights) != len(names):
            raise UserError(f"{len(names)} rewards and {len(self.weights)} weights; each needs one")
        self._seconds, self._on_error = seconds, on_error
        self._args = [dict(entry) for entry in args or [{}] * len(names)]
        self.errors: Counter[str] = Counter()
        self._told: dict[str, set[str]] = {name: set() for name in self.names}
        self._functions: list[Function] = []
        try:
            for name, entry in zip(names, self._args, strict=True):
                self._functions.append(_function(name, entry))
        except BaseException:
            self.close()
            raise

    @classmethod
    def of(
        cls, rewards: Mapping[str, RewardOptions], seconds: float = 60.0, on_error: Literal["skip", "stop"] = "skip"
    ) -> RewardSet:
        """As the settings name them."""
        options = list(rewards.values())
        weights, args = [entry.weight for entry in options], [entry.args for entry in options]
        return cls(list(rewards), weights, args=args, seconds=seconds, on_error=on_error)

    def check(self, columns: Sequence[str]) -> None:
        """See that the data has the columns that the rewards want.

        Raises:
            UserError: it has not.
        """
        for name, function, args in zip(self.names, self._functions, self._args, strict=True):
            for wanted in function.taken["required"]:
                if wanted not in GIVEN and wanted not in columns and wanted not in args:
                    raise UserError(
                        f'reward {name}: wants the column "{wanted}", which the prompts do not have; {suggestion(wanted, columns)}'
                    )

    def __call__(
        self,
        prompts: Sequence[Sequence[Message]],
        completions: Sequence[Completion],
        columns: Sequence[Mapping[str, Any]],
        completion_ids: Sequence[Sequence[int]] | None = None,
    ) -> NDArray[np.float64]:
        """Every reward of every completion, [N, K]; NaN for none.

        Args:
            prompts: each completion's conversation.
            completions: texts, or the assistant's messages.
            columns: what else each completion's record says.
            completion_ids: their tokens, for rewards that ask for them.
        Raises:
            UserError: a reward failed, and `on_error` is stop.
        """
        given: dict[str, Sequence[Any]] = {"prompts": prompts, "completions": completions}
        if completion_ids is not None:
            given["completion_ids"] = completion_ids
        keys = dict.fromkeys(key for entry in columns for key in entry)
        given |= {key: [entry.get(key) for entry in columns] for key in keys if key not in given}
        scores_NK = np.full((len(completions), len(self.names)), np.nan)
        for at, (name, function, args) in enumerate(zip(self.names, self._functions, self._args, strict=True)):
            taken = function.taken
            arguments = {key: value for key, value in given.items() if taken["any"] or key in taken["names"]}
            fixed = args if isinstance(function, Beside) else {}
            scores_NK[:, at] = self._call(name, function, arguments, fixed, len(completions))
        return scores_NK

    def _call(
        self,
        name: str,
        function: Function,
        arguments: Mapping[str, Sequence[Any]],
        fixed: Mapping[str, Any],
        count: int,
    ) -> NDArray[np.float64]:
        """One reward of all completions. What it raises for all of them at once it is asked again one by one."""
        rewards_N = np.full(count, np.nan)
        try:
            rewards_N[:] = _numbers(function({**arguments, **fixed}, self._seconds), count)
        except TooLongError as error:
            self._failed(name, error)
        except RewardError as error:
            if count == 1 or self._on_error == "stop":
                self._failed(name, error)
                return rewards_N
            for at in range(count):
                one = {key: values[at : at + 1] for key, values in arguments.items()}
                try:
                    rewards_N[at] = _numbers(function({**one, **fixed}, self._seconds), 1)[0]
                except RewardError as own:
                    self._failed(name, own)
                    if isinstance(own, TooLongError):
                        break
        return rewards_N

    def _failed(self, name: str, error: RewardError) -> None:
        if self._on_error == "stop":
            raise UserError(f"reward {name}: {error}") from None
        self.errors[name] += 1
        told = self._told[name]
        if str(error) not in told and len(told) < _TOLD:
            told.add(str(error))
            say(
                f"warning: reward {name}: {error}; what it did not tell is left out (on_reward_error=stop ends the run)"
            )

    def total(self, scores_NK: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weighted sum of what was told, [N]; NaN where nothing was."""
        total_N: NDArray[np.float64] = np.nansum(scores_NK * self.weights, axis=1)
        total_N[np.isnan(scores_NK).all(axis=1)] = np.nan
        return total_N

    def take_errors(self) -> dict[str, int]:
        """How often each reward failed since this was last asked."""
        errors = dict(self.errors)
        self.errors.clear()
        return errors

    def close(self) -> None:
        """End the processes, give back the models."""
        for function in self._functions:
            function.close()

    def __enter__(self) -> RewardSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _function(name: str, args: Mapping[str, Any]) -> Function:
    file, colon, function = name.rpartition(":")
    if colon and (file.endswith(".py") or "/" in file):
        return Beside(file, function)
    if name in shipped.NAMES:
        return Inside(shipped.shipped(name, args))
    raise UserError(
        f'no reward "{name}"; {suggestion(name, shipped.NAMES)} (a function of yours is named as file.py:function)'
    )


def _short(name: str, names: Sequence[str]) -> str:
    """A function's own name, if no other has the same."""
    own = name.rpartition(":")[2]
    return own if [other.rpartition(":")[2] for other in names].count(own) == 1 else name


def _numbers(rewards: Any, count: int) -> NDArray[np.float64]:
    """What a function gave, checked."""
    if len(rewards) != count:
        raise RewardError(f"gave {len(rewards)} rewards for {count} completions; one for each is expected")
    try:
        numbers = [math.nan if reward is None else float(reward) for reward in rewards]
    except (TypeError, ValueError):
        wrong = next(r for r in rewards if r is not None and not isinstance(r, int | float))
        raise RewardError(f"gave {wrong!r:.40}, which is no number") from None
    bad = next((r for r in rewards if r is not None and not math.isfinite(float(r))), None)
    if bad is not None:
        raise RewardError(f"gave {bad}; a reward is a finite number, or none")
    return np.array(numbers)
