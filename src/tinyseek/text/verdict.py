"""Whether what a model said is the right answer: one verdict for tasks, rewards and comparisons.

Only what stands after the last `</think>` counts; a thought that never ends has no answer. White space, closing punctuation and the
way that a number is written are let pass, a wrong value never.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

THINK, THOUGHT = "<think>", "</think>"
REFUSAL = "refusal"  # the kind of task whose answer is what a reply begins with: reasons are given in many words

NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?|[-+]?\.\d+")
_ZERO_FIRST = re.compile(r"[-+]?0[\d,]")  # 0558: a slip rather than a way of writing 558
_LONGEST = 60  # characters of a number


def after_thought(text: str) -> str | None:
    """What stands after the reasoning; none where the reasoning never ends."""
    thought, closed, final = text.rpartition(THOUGHT)
    if THINK in final or (not closed and THINK in thought):
        return None
    return final if closed else text


def bare(text: str) -> str:
    """Without outer white space and closing punctuation; full-width signs count as their plain ones."""
    return " ".join(unicodedata.normalize("NFKC", text).split()).rstrip(" .!。！").replace("’", "'")


def number(text: str) -> Fraction | None:
    """The value of a text that is a number and nothing else: `1,000`, `-3.50`, `2/3`."""
    text = text.strip().strip("$").replace("−", "-")
    if len(text) > _LONGEST or not NUMBER.fullmatch(text) or _ZERO_FIRST.match(text):
        return None
    try:
        return Fraction(text.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def last_number(text: str) -> str | None:
    """The last number in a text, as it is written there."""
    found = NUMBER.findall(unicodedata.normalize("NFKC", text))
    return found[-1] if found else None


def boxed(text: str) -> str | None:
    r"""What the last \boxed{...} holds."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for at in range(begin - 1, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return text[begin:at]
    return None


def same(said: str, answer: str) -> bool:
    """Whether two answers are the same: as text, or as numbers."""
    said, answer = bare(said), bare(answer)
    if not said:
        return False
    value = number(answer)
    return said == answer or (value is not None and number(said) == value)


def is_right(text: str, answer: str, reply: str | None = None, kind: str | None = None) -> bool:
    r"""Whether a text's final answer is the right one.

    The final answer must be `answer` and nothing else, or hold it in \boxed{...}, or be the whole known reply word for word. Where
    `kind` is "refusal", it has to begin with `answer`.

    Args:
        text: all that was said, reasoning in `<think>` tags.
        reply: a reply that is known to be right, its reasoning too.
    """
    final = after_thought(text)
    if final is None:
        return False
    if kind == REFUSAL:
        return bare(final).startswith(bare(answer))
    if same(boxed(final) or final, answer):
        return True
    known = bare((reply or "").rpartition(THOUGHT)[2])
    return bool(known) and bare(final) == known
