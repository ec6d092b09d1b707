"""The rewards that come along, as plain functions: completions in, a number for each out, or none where it has nothing to say.

A completion is a text, or the assistant's messages. What the assistant wrote is in a message's content, `<think>` and all, or taken
apart into content and reasoning_content; both are read. No torch here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from tinyseek.errors import UserError
from tinyseek.text import verdict
from tinyseek.text.chat import split_reasoning
from tinyseek.text.verdict import THINK, THOUGHT

if TYPE_CHECKING:
    from tinyseek.llm.base import ChatModel

Message = Mapping[str, Any]
Completion = str | Sequence[Message]
Rewards = list[float | None]


# ---- what a completion says ------------------------------------------------------------------------------------------------------


def full_text(completion: Completion) -> str:
    """All that the assistant wrote, its reasoning in `<think>` tags."""
    if isinstance(completion, str):
        return completion
    parts = []
    for message in completion:
        reasoning = message.get("reasoning_content")
        parts.append(f"{THINK}{reasoning}{THOUGHT}" if reasoning else "")
        parts.append(str(message.get("content") or ""))
    return "".join(parts)


# ---- rewards ---------------------------------------------------------------------------------------------------------------------


def exact_answer(
    completions: Sequence[Completion],
    answer: Sequence[Any],
    *,
    reply: Sequence[Any] | None = None,
    kind: Sequence[Any] | None = None,
    loose: bool = False,
    **_: Any,
) -> Rewards:
    r"""1 where the final answer is right, else 0; none where the row has no `answer`. The same verdict as of `tinyseek eval`.

    What stands after the reasoning must be the answer and nothing else, but for white space, closing punctuation and the way that
    a number is written; or hold it in \boxed{...}; or be the whole `reply` that the row's conversation ends with.

    Args:
        reply: a column of known right replies.
        kind: a column; where it says "refusal", as our own tasks do, it is enough to begin with the answer.
        loose: an answer that is a number is also looked for as the last number in the text.
    """
    nothing = [None] * len(completions)
    rewards: Rewards = []
    for completion, expected, known, sort in zip(completions, answer, reply or nothing, kind or nothing, strict=True):
        if expected is None:
            rewards.append(None)
            continue
        text, wanted = full_text(completion), str(expected)
        right = verdict.is_right(text, wanted, known if isinstance(known, str) else None, sort)
        if not right and loose and verdict.number(wanted) is not None:
            found = verdict.last_number(verdict.after_thought(text) or "")
            right = found is not None and verdict.same(found, wanted)
        rewards.append(float(right))
    return rewards


def format(completions: Sequence[Completion], **_: Any) -> Rewards:
    """1 for one `<think>...</think>` at the beginning with something in it and an answer after it, else 0."""
    rewards: Rewards = []
    for completion in completions:
        text = full_text(completion).strip()
        reasoning, said = split_reasoning(text)
        once = text.count(THINK) == 1 and text.count(THOUGHT) == 1
        rewards.append(float(bool(once and reasoning is not None and reasoning.strip() and said.strip())))
    return rewards


def length(
    completions: Sequence[Completion],
    completion_ids: Sequence[Sequence[int]] | None = None,
    *,
    limit: int = 256,
    cushion: int = 128,
    **_: Any,
) -> Rewards:
    """0 up to `limit - cushion` tokens, falling to -1 at `limit`, -1 beyond: DAPO's punishment (arXiv 2503.14476, eq. 13).

    Args:
        completion_ids: their tokens; without, words and Chinese characters are counted.
        limit: tokens from which on it is -1.
        cushion: tokens over which it falls; 0 for a step.
    """
    sizes = [len(units(full_text(completion))) for completion in completions]
    if completion_ids is not None:
        sizes = [len(ids) for ids in completion_ids]
    free = limit - cushion
    return [0.0 if size <= free else -1.0 if size > limit or not cushion else (free - size) / cushion for size in sizes]


_UNIT = re.compile(
    # Chinese, Japanese and Thai write no spaces: each character is a unit. Elsewhere a word is, and so is any sign.
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f\U00020000-\U0003ffff]"
    r"|[^\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f\U00020000-\U0003ffff]+|[^\w\s]"
)


def units(text: str) -> list[str]:
    """Words, characters of languages that write no spaces, and signs."""
    return _UNIT.findall(text.lower())


def repetition(completions: Sequence[Completion], *, ngram: int = 4, most: float = -1.0, **_: Any) -> Rewards:
    """`most` times the share of n-grams that were there before: 0 where nothing is said twice (arXiv 2502.03373, appendix C.2).

    Counted over `units`, so that it is right for Chinese too, and where a tokenizer splits a word now in one way, now in another.

    Args:
        ngram: units in a row that make a repetition.
        most: the reward of a text that says the same over and over.
    """
    rewards: Rewards = []
    for completion in completions:
        words = units(full_text(completion))
        grams = [tuple(words[at : at + ngram]) for at in range(len(words) - ngram + 1)]
        rewards.append(most * (1 - len(set(grams)) / len(grams)) if grams else 0.0)
    return rewards


def tool_calls(completions: Sequence[Completion], tool_calls: Sequence[Any], **_: Any) -> Rewards:
    """1 where just the expected tools are called with just the expected arguments, half where only the tools are right, else 0.

    Args:
        tool_calls: a column with the expected calls of each row: {"name", "arguments"} each, or as OpenAI writes them; [] where
            nothing is to be called. A row without any (none) is left out.
    """
    rewards: Rewards = []
    for completion, expected in zip(completions, tool_calls, strict=True):
        if expected is None:
            rewards.append(None)
            continue
        wanted = _calls(expected)
        made = [] if isinstance(completion, str) else [c for m in completion for c in _calls(m.get("tool_calls") or [])]
        if sorted(made) == sorted(wanted):
            rewards.append(1.0)
        else:
            named = sorted(name for name, _ in made) == sorted(name for name, _ in wanted)
            rewards.append(0.5 if named and wanted else 0.0)
    return rewards


def _calls(calls: Any) -> list[tuple[str, str]]:
    """Name and arguments of each call, the arguments as JSON with sorted keys; as they stand where they are no JSON."""
    if isinstance(calls, str):
        calls = json.loads(calls)
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        inner = call.get("function", call)
        arguments = inner.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except ValueError:
                found.append((str(inner.get("name")), f"not JSON: {arguments}"))
                continue
        found.append((str(inner.get("name")), json.dumps(arguments, sort_keys=True, ensure_ascii=False)))
    return found


RUBRIC = (
    "You grade an assistant's answer. Consider whether it is right, helpful, and says what was asked and no more. "
    "Reply with a whole number from 0 (worthless) to {scale} (perfect) and nothing else."
)


class Judge:
    """A model's grade of each answer, 0 to 1; none where the model gave no grade.

    Args:
        model: a folder, the name of a pulled model, or a server as `ChatModel.open` takes it.
        rubric: what to grade by; `{scale}` in it is the highest grade. It should ask for the number alone.
        scale: the highest grade.
        at_once: questions asked at a time.
    """

    def __init__(self, model: str, rubric: str = RUBRIC, scale: int = 10, at_once: int = 8) -> None:
        from tinyseek.llm.base import ChatModel

        self.chat: ChatModel = ChatModel.open(model)
        self.rubric, self.scale, self.at_once = rubric.replace("{scale}", str(scale)), scale, at_once

    def __call__(
        self,
        completions: Sequence[Completion],
        prompts: Sequence[Sequence[Message]],
        answer: Sequence[Any] | None = None,
        **_: Any,
    ) -> Rewards:
        """Grade them; an `answer` column is shown to the judge as the reference."""
        references = answer or [None] * len(completions)
        with ThreadPoolExecutor(self.at_once) as pool:
            return list(pool.map(self._grade, completions, prompts, references))

    def _grade(self, completion: Completion, prompt: Sequence[Message], reference: Any) -> float | None:
        from tinyseek.llm.base import ChatOptions

        asked = "\n\n".join(f"{message['role']}: {message.get('content') or ''}" for message in prompt)
        parts = [
            f"The conversation:\n{asked}",
            f"The answer to grade:\n{verdict.after_thought(full_text(completion)) or ''}",
        ]
        if reference is not None:
            parts.insert(1, f"A reference answer:\n{reference}")
        messages = [{"role": "system", "content": self.rubric}, {"role": "user", "content": "\n\n".join(parts)}]
        said = self.chat.complete(messages, ChatOptions(temperature=0.0, max_tokens=512)).content
        found = re.search(r"-?\d+(?:\.\d+)?", said)
        if found is None:
            return None
        return min(1.0, max(0.0, float(found.group()) / self.scale))

    def close(self) -> None:
        """Give back the model."""
        self.chat.close()


class Scored:
    """What a reward model says of each answer.

    Args:
        model: the folder of a reward model, as `tinyseek reward` makes them.
        device: where it computes.
    """

    def __init__(self, model: str, device: str = "auto") -> None:
        from tinyseek.tune.reward import RewardModel

        self.model = RewardModel(model, device)

    def __call__(self, completions: Sequence[Completion], prompts: Sequence[Sequence[Message]], **_: Any) -> Rewards:
        """Score them, each after its prompt."""
        said = [one if isinstance(one, str) else [dict(message) for message in one] for one in completions]
        return list(self.model.score([[dict(message) for message in prompt] for prompt in prompts], said))


FUNCTIONS: dict[str, Callable[..., Rewards]] = {
    "exact_answer": exact_answer,
    "format": format,
    "length": length,
    "repetition": repetition,
    "tool_calls": tool_calls,
}
NAMES = (*FUNCTIONS, "judge", "reward_model")
_ARGUMENTS = {
    "exact_answer": ("loose",),
    "format": (),
    "length": ("limit", "cushion"),
    "repetition": ("ngram", "most"),
    "tool_calls": (),
    "judge": ("model", "rubric", "scale", "at_once"),
    "reward_model": ("model", "device"),
}


def shipped(name: str, args: Mapping[str, Any]) -> Callable[..., Rewards]:
    """A reward of these by its name.

    Raises:
        UserError: an argument that it does not have, or a judge or reward model that is not named.
    """
    from tinyseek.settings import suggestion

    for key in args:
        if key not in _ARGUMENTS[name]:
            raise UserError(f'reward {name}: has no argument "{key}"; {suggestion(key, _ARGUMENTS[name])}')
    if name == "judge":
        if "model" not in args:
            raise UserError("reward judge: which model? Give it as {weight: 1, args: {model: FOLDER or address}}")
        return Judge(**args)
    if name == "reward_model":
        if "model" not in args:
            raise UserError("reward reward_model: which one? Give it as {weight: 1, args: {model: FOLDER}}")
        return Scored(**args)
    return partial(FUNCTIONS[name], **args)
