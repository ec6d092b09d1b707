"""Which answers are fit to learn from: told apart as they come, judged by rewards, cleaned of repetitions.

Each answer that is left out has one reason, the first that holds, so that the counts add up:

    rejected  blank  truncated  refused     there is no answer (a refusal that the first reward calls right is one)
    malformed  too_long  reasoning          its form is wrong
    unjudged  wrong                         no reward judges it; it is not right (keep=correct)
    duplicate  near_duplicate               it says what another answer to the prompt says
    surplus                                 others of the prompt are better, or as good and shorter (keep=best, most)
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tinyseek.llm.base import Answer, Message
from tinyseek.text.minhash import Characters, shingles
from tinyseek.tune.distill.options import CollectSettings
from tinyseek.tune.rl.rewards import RewardSet

Kind = Literal["answered", "blank", "truncated", "refused", "rejected"]

# How models decline, at the beginning of a short answer.
_REFUSALS = re.compile(
    r"\s*(?:i['’]?m sorry|i am sorry|sorry|i apologi[sz]e|unfortunately|as an ai\b[^.]*)?[\s,.;:!-]*(?:but\s+)?"
    r"(?:i(?:\s+(?:can['’]?t|cannot|can not|won['’]?t|will not|am unable to|am not able to|must decline to|decline to)"
    r"|['’]?m\s+(?:unable|not able)\s+to)\s+(?:\w+\s+){0,2}?(?:help|assist|answer|provide|comply|do that|fulfil|discuss|create|"
    r"generate|continue|respond|engage|support|share|write|complete)|"
    r"我(?:无法|不能|没法)(?:回答|提供|协助|帮助|帮|讨论|生成|继续|满足))|"
    r"\s*(?:很?抱歉|对不起|不好意思)[,，。!！ ]*(?:但是?|不过)?[,， ]*(?:作为[^，。]*[，,])?"
    r"我?(?:们)?(?:还|暂时)?(?:无法|不能|没法|不便)",
    re.IGNORECASE,
)
_SHORT = 600  # characters; a longer text that begins so goes on to answer
_TAGS = re.compile(r"</?think>|<\|[\w▁]{1,40}\|>|<｜[\w▁]{1,40}｜>")  # marks that belong around a text, not into it
_JUDGED_AT_ONCE = 256


def kind_of(answer: Answer, refusals: Sequence[str] = ()) -> Kind:
    """What kind of answer came.

    Args:
        refusals: more regular expressions by which a refusal is told.
    """
    if answer.finish == "content_filter":
        return "refused"
    if answer.finish == "length":
        return "truncated"
    content = answer.content.strip()
    if not content and not answer.tool_calls:
        return "blank"
    if is_refusal(content) or any(re.search(expression, content) for expression in refusals):
        return "refused"
    return "answered"


def is_refusal(content: str) -> bool:
    """Whether a text declines to answer, by how it begins."""
    return len(content) <= _SHORT and _REFUSALS.match(content) is not None


@dataclass
class Sample:
    """An answer to a prompt, and what becomes of it."""

    row: int  # of the prompt
    prompt: list[Message]
    columns: dict[str, Any]
    message: Message | None
    kind: Kind
    tokens: int
    record: dict[str, Any] = field(default_factory=dict)  # as the journal has it
    rewards: dict[str, float | None] = field(default_factory=dict)
    total: float | None = None  # the rewards' weighted sum
    dropped: str | None = None  # why it is not learned from

    @property
    def is_said(self) -> bool:
        """Whether it is whole: what the model wanted to say."""
        whole = self.kind == "answered" or (self.kind == "refused" and self.record.get("finish") != "content_filter")
        return whole and self.message is not None

    @property
    def text(self) -> str:
        """All that it says, for comparing."""
        message = self.message or {}
        calls = json.dumps(message.get("tool_calls") or "", sort_keys=True)
        return f"{message.get('reasoning_content') or ''}\n{message.get('content') or ''}\n{calls}"


def judge(samples: Sequence[Sample], rewards: RewardSet) -> None:
    """Write the rewards of all answers that are some. A refusal in words is one: it may be what was to be said.

    Raises:
        UserError: a reward failed, and is to stop the run.
    """
    answered = [sample for sample in samples if sample.is_said]
    for start in range(0, len(answered), _JUDGED_AT_ONCE):
        part = answered[start : start + _JUDGED_AT_ONCE]
        messages = [sample.message for sample in part if sample.message is not None]
        scores_NK = rewards([s.prompt for s in part], [[m] for m in messages], [s.columns for s in part])
        totals_N = rewards.total(scores_NK)
        for sample, scores_K, total in zip(part, scores_NK.tolist(), totals_N.tolist(), strict=True):
            sample.rewards = {
                name: None if math.isnan(score) else score for name, score in zip(rewards.names, scores_K, strict=True)
            }
            sample.total = None if math.isnan(total) else total


def is_right(sample: Sample, settings: CollectSettings) -> bool | None:
    """Whether an answer is right, by the first reward; none where that does not tell."""
    score = next(iter(sample.rewards.values()), None)
    return None if score is None else score >= settings.right_from


def choose(samples: Sequence[Sample], settings: CollectSettings) -> Counter[str]:
    """Decide which samples are learned from, and write the reason on each that is not.

    Returns:
        How many were dropped for each reason.
    """
    by_row: defaultdict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        sample.dropped = unfit(sample, settings)
        if sample.dropped is None:
            by_row[sample.row].append(sample)
    most = 1 if settings.keep == "best" and settings.most is None else settings.most
    for candidates in by_row.values():
        candidates.sort(key=lambda s: (-math.inf if s.total is None else s.total, -s.tokens), reverse=True)
        drop_repeated(candidates, settings)
        for sample in [s for s in candidates if s.dropped is None][most:] if most else ():
            sample.dropped = "surplus"
    return Counter(sample.dropped for sample in samples if sample.dropped is not None)


def unfit(sample: Sample, settings: CollectSettings) -> str | None:
    """Why an answer is not learned from, whatever the others are."""
    if not sample.is_said or sample.message is None:
        return sample.kind
    if sample.kind == "refused" and not is_right(sample, settings):
        return "refused"
    if is_malformed(sample.message):
        return "malformed"
    if settings.longest is not None and sample.tokens > settings.longest:
        return "too_long"
    reasoned = bool((sample.message.get("reasoning_content") or "").strip())
    if settings.reasoning != "any" and reasoned != (settings.reasoning == "required"):
        return "reasoning"
    if settings.keep == "all":
        return None
    right = is_right(sample, settings)
    if settings.keep == "best":
        return "unjudged" if sample.total is None else None
    return "unjudged" if right is None else None if right else "wrong"


def is_malformed(message: Mapping[str, Any]) -> bool:
    """Whether marks stand inside a text, bytes are no characters, or the arguments of a call are no JSON object."""
    texts = [str(message.get(name) or "") for name in ("reasoning_content", "content")]
    if any(_TAGS.search(text) or "\ufffd" in text for text in texts):
        return True
    for call in message.get("tool_calls") or ():
        try:
            if not isinstance(json.loads(call["function"]["arguments"]), dict):
                return True
        except (ValueError, KeyError, TypeError):
            return True
    return False


def drop_repeated(candidates: Sequence[Sample], settings: CollectSettings) -> None:
    """Mark what repeats an earlier one of the candidates, which are answers to one prompt, the best first."""
    if settings.duplicates == "keep":
        return
    seen: set[str] = set()
    sets: list[frozenset[int]] = []
    for sample in candidates:
        text = " ".join(sample.text.split())
        if text in seen:
            sample.dropped = "duplicate"
            continue
        seen.add(text)
        if settings.duplicates == "near":
            runs = runs_of(sample.text)
            if any(overlap(runs, other) >= settings.near for other in sets):
                sample.dropped = "near_duplicate"
            else:
                sets.append(runs)


def runs_of(text: str) -> frozenset[int]:
    """The hashes of a text's runs of five words (or of five Chinese characters)."""
    return frozenset(shingles(Characters.of([text])).hashes.tolist())


def overlap(one: frozenset[int], other: frozenset[int]) -> float:
    """Jaccard's similarity of two sets."""
    return len(one & other) / max(1, len(one | other))


def share(values: Iterable[bool | None]) -> float | None:
    """The share of truths among what is told; none where nothing is."""
    told = [value for value in values if value is not None]
    return round(sum(told) / len(told), 4) if told else None
