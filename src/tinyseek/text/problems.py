"""Sums to reason about, as DeepSeek-R1's story needs them: a book of numbers for the base model, worked solutions in many
manners for the cold start, bare problems for reinforcement learning, and held-out ones.

What a solution says is always right; how it says it is left open on purpose, for there is something to learn from rewards then: two
methods (each sum at a glance, or digit by digit, which is longer and surer) and more or less talk, which helps nobody.

Which problems are held out, and which are lessons or practice, a hash of the problem itself decides, whatever the order of its
numbers: so stages made apart, by any seed, never share one.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.settings import StageSettings, taken_from
from tinyseek.text.world import Lang

Sign = Literal["+", "-"]
Pool = Literal["heldout", "lessons", "practice"]
Record = dict[str, Any]

HELD_OUT, LESSONS = 0.2, 0.5  # of all problems: a fifth is held out, three tenths are lessons, one half is practice
_SIGNS: tuple[Sign, Sign] = ("+", "-")
_MISSES = 100_000  # draws in a row that give nothing new, after which there is nothing new


class ProblemSettings(StageSettings):
    """What `tinyseek problems` generates."""

    make: Literal["problems", "book"] = Field(
        "problems", description="problems with solutions, or a book of numbers: pages of plain text to pre-train on"
    )
    like: str | None = taken_from(
        None, "solve the problems that this folder's train.jsonl asks, each as often as there, instead of new ones"
    )
    train: int = Field(4000, ge=0, le=10_000_000, description="problems to learn from; of a book, pages")
    heldout: int = Field(2000, ge=0, le=1_000_000, description="problems to be asked later; of a book, pages")
    pool: Literal["lessons", "practice"] = Field(
        "lessons", description="which problems to draw from; lessons, practice and held-out ones have none in common"
    )
    solutions: Literal["worked", "bare"] = Field(
        "worked", description="with the reasoning before the answer, or the answer alone"
    )
    columns: dict[Sign, Annotated[float, Field(ge=0, le=1)]] = Field(
        {"+": 0.35, "-": 0.85},
        description="sign -> share of its sums that go digit by digit; the others are said at a glance",
    )
    talk: float = Field(0.8, ge=0, le=1, description="share of the places for talk that have some")
    terms: int = Field(2, ge=2, le=8, description="numbers in a problem")
    digits: int = Field(3, ge=1, le=6, description="digits of each number")
    languages: list[Lang] = Field(["en", "zh"], min_length=1, max_length=2, description="in equal shares")
    seed: int = Field(0, ge=0, description="seed of every choice")

    @model_validator(mode="after")
    def _a_book_is_new(self) -> Self:
        if self.make == "book" and self.like is not None:
            raise ValueError("make=book solves no problems; leave like out")
        return self


@dataclass(frozen=True)
class Problem:
    """`61 - 48 + 71`: numbers, and the sign before each but the first. No sum on the way is negative."""

    numbers: tuple[int, ...]
    signs: tuple[Sign, ...]

    @property
    def sums(self) -> list[int]:
        """The result after each step; the last one is the answer."""
        sums = [self.numbers[0]]
        for sign, number in zip(self.signs, self.numbers[1:], strict=True):
            sums.append(sums[-1] + number if sign == "+" else sums[-1] - number)
        return sums

    @property
    def answer(self) -> str:
        return str(self.sums[-1])

    @property
    def unit(self) -> str:
        """What problems share that differ in the order of their numbers alone."""
        signed = zip(("+", *self.signs), self.numbers, strict=True)
        return " ".join(f"{sign}{number}" for sign, number in sorted(signed))

    @property
    def pool(self) -> Pool:
        """Where the problem belongs, by its own hash."""
        digest = hashlib.blake2b(self.unit.encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "little") / 2**64
        return "heldout" if place < HELD_OUT else "lessons" if place < LESSONS else "practice"

    def __str__(self) -> str:
        return str(self.numbers[0]) + "".join(
            f" {sign} {number}" for sign, number in zip(self.signs, self.numbers[1:], strict=True)
        )

    @staticmethod
    def draw(rng: random.Random, terms: int, digits: int) -> Problem:
        """Signs, each as likely as the other; then numbers that go with them, each choice as likely."""
        low, high = 10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1
        signs = tuple(rng.choice(_SIGNS) for _ in range(terms - 1))
        while True:
            problem = Problem(tuple(rng.randint(low, high) for _ in range(terms)), signs)
            if min(problem.sums) >= 0:
                return problem


# ------------------------------------------------------------------------------------------------- asking and solving

_ASKED: dict[Lang, tuple[str, ...]] = {
    "en": ("What is {}?", "Compute {}.", "{} = ?"),
    "zh": ("{} 等于多少？", "请算 {}。", "{} = ？"),
}
_OPENINGS: dict[Lang, tuple[str, ...]] = {
    "en": ("Okay, let me see.", "Let me think about this.", "I will go one step at a time.", "Hmm, this is a chain."),
    "zh": ("好的，让我看看。", "让我想一想。", "我一步一步来。", "嗯，这是一串数字。"),
}
_BETWEEN: dict[Lang, tuple[str, ...]] = {
    "en": ("So far so good.", "Now the next step.", "That was the first part."),
    "zh": ("到这里没问题。", "接着算下一步。", "第一部分好了。"),
}
_ENDINGS: dict[Lang, tuple[str, ...]] = {
    "en": ("So that is the result.", "I am done.", "Now I can answer."),
    "zh": ("所以结果出来了。", "算完了。", "可以回答了。"),
}


def columns(a: int, sign: str, b: int) -> str:
    """A sum or difference digit by digit, lowest first: `473+85` is `3+5=8 7+8=15 4+0+1=5`.

    A carry or a borrow is the +1 or -1 of the next column; a digit that must borrow is written with its ten (`17-8-1`), and a >= b.
    """
    width = max(len(str(a)), len(str(b)))
    carry, steps = 0, []
    for one, other in zip(str(a).zfill(width)[::-1], str(b).zfill(width)[::-1], strict=True):
        p, q = int(one), int(other)
        if sign == "+":
            value = p + q + carry
            steps.append(f"{p}+{q}{'+1' if carry else ''}={value}")
            carry = value // 10
        else:
            borrows = p < q + carry
            top = p + 10 * borrows
            steps.append(f"{top}-{q}{'-1' if carry else ''}={top - q - carry}")
            carry = int(borrows)
    return " ".join(steps)


def _worked(a: int, sign: str, b: int) -> str:
    """A sum of two numbers: said again, digit by digit, and whole.

    Said again, so that each digit stands where it always stands: a model of half a million parameters that was to find them in
    the question was right 3 times in 100 after as long a training.
    """
    return f"{a} {sign} {b}: {columns(a, sign, b)} {a}{sign}{b}={a + b if sign == '+' else a - b}"


def reasoning(problem: Problem, lang: Lang, rng: random.Random, by_columns: Mapping[Sign, float], talk: float) -> str:
    """A way of thinking that leads to the answer, a line a step, in methods and with talk that are drawn."""
    lines: list[str] = []
    if rng.random() < talk:
        lines += rng.sample(_OPENINGS[lang], rng.choice((1, 1, 2)))
    sums = problem.sums
    for step, (sign, number) in enumerate(zip(problem.signs, problem.numbers[1:], strict=True)):
        if step and rng.random() < talk:
            lines.append(rng.choice(_BETWEEN[lang]))
        by_digits = rng.random() < by_columns.get(sign, 0.0)
        lines.append(_worked(sums[step], sign, number) if by_digits else f"{sums[step]}{sign}{number}={sums[step + 1]}")
    if rng.random() < talk:
        lines.append(rng.choice(_ENDINGS[lang]))
    return "\n".join(lines)


def record(problem: Problem, prompt: str, lang: Lang, rng: random.Random, settings: ProblemSettings) -> Record:
    """A problem as a conversation, with the answer that a checker goes by."""
    reply: dict[str, str] = {"role": "assistant", "content": problem.answer}
    if settings.solutions == "worked":
        reply["reasoning_content"] = reasoning(problem, lang, rng, settings.columns, settings.talk)
    messages = [{"role": "user", "content": prompt}, reply]
    kind = f"{len(problem.numbers)} numbers"
    return {"messages": messages, "answer": problem.answer, "kind": kind, "lang": lang}


def generate(settings: ProblemSettings) -> dict[str, list[Record]]:
    """New problems, none twice, the same for the same settings.

    Raises:
        UserError: more are asked for than there are.
    """
    languages = list(dict.fromkeys(settings.languages))
    made: dict[str, list[Record]] = {}
    splits: tuple[tuple[str, int, Pool], ...] = (
        ("heldout", settings.heldout, "heldout"),
        ("train", settings.train, settings.pool),
    )
    for split, wanted, pool in splits:
        rng = random.Random(f"{settings.seed} {pool}")
        taken: set[str] = set()
        records: list[Record] = []
        misses = 0
        while len(records) < wanted:
            problem = Problem.draw(rng, settings.terms, settings.digits)
            if problem.pool != pool or problem.unit in taken:
                misses += 1
                if misses > _MISSES:
                    raise UserError(
                        f"problems: no more than {len(records):,} {split} problems of terms={settings.terms} and "
                        f"digits={settings.digits} were found; lower {split} or raise terms or digits"
                    )
                continue
            misses = 0
            taken.add(problem.unit)
            lang = languages[len(records) % len(languages)]
            prompt = rng.choice(_ASKED[lang]).format(problem)
            records.append(record(problem, prompt, lang, rng, settings))
        made[split] = records
    return made


# ----------------------------------------------------------------------------------------------- the same problems again

_CHAIN = re.compile(r"\d+(?: [+-] \d+)+")


def problem_in(prompt: str) -> Problem | None:
    """The problem that a prompt of ours asks."""
    found = _CHAIN.search(prompt)
    if found is None:
        return None
    first, *rest = found[0].split(" ")
    signs: tuple[Sign, ...] = tuple("+" if sign == "+" else "-" for sign in rest[::2])
    problem = Problem((int(first), *map(int, rest[1::2])), signs)
    return problem if min(problem.sums) >= 0 else None


def solved_again(settings: ProblemSettings, file: Path) -> Iterator[Record]:
    """Our own solutions to the problems that a file of conversations asks, in its order, each as often as there.

    Raises:
        UserError: it is missing, or a line asks no problem of ours.
    """
    rng = random.Random(f"{settings.seed} again")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); like takes a folder with a train.jsonl") from None
    for number, line in enumerate(text.splitlines(), 1):
        try:
            prompt = next(m["content"] for m in json.loads(line)["messages"] if m["role"] == "user")
            problem = problem_in(prompt)
        except (ValueError, KeyError, TypeError, StopIteration):
            problem = None
        if problem is None:
            raise UserError(f"{file}, line {number}: asks no problem that this stage could solve")
        lang: Lang = "en" if prompt.isascii() else "zh"
        yield record(problem, prompt, lang, rng, settings)


# --------------------------------------------------------------------------------------------------- a book of numbers


def _sum(rng: random.Random) -> str:
    a, b, carry = rng.randint(0, 9), rng.randint(0, 9), rng.choice((0, 0, 1))
    return f"{a}+{b}{'+1' * carry}={a + b + carry}"


def _difference(rng: random.Random) -> str:
    a, b, carry = rng.randint(0, 9), rng.randint(0, 9), rng.choice((0, 0, 1))
    top = a + 10 * (a < b + carry)
    return f"{top}-{b}{'-1' * carry}={top - b - carry}"


def _exercise(rng: random.Random, digits: int) -> Problem:
    """Two numbers as problems have them: a lesson's, so none that is held out or practised on."""
    while True:
        problem = Problem.draw(rng, 2, digits)
        if problem.pool == "lessons":
            return problem


def _said(rng: random.Random, lang: Lang) -> str:
    """One line about numbers in words."""
    what, n, a, b = rng.randrange(4), rng.randint(1, 990), rng.randint(0, 9), rng.randint(0, 9)
    high, low = max(n, n // 2 + a), min(n, n // 2 + a)
    if lang == "en":
        return (
            f"The digits of {n} are {' '.join(str(n))}.",
            f"After {n} come {n + 1}, {n + 2}, {n + 3}.",
            f"{a} plus {b} is {a + b}.",
            f"{high} is at least {low}.",
        )[what]
    return (
        f"{n} 的数字是 {' '.join(str(n))}。",
        f"{n} 后面是 {n + 1}、{n + 2}、{n + 3}。",
        f"{a} 加 {b} 是 {a + b}。",
        f"{high} 不小于 {low}。",
    )[what]


def page(rng: random.Random, lang: Lang, settings: ProblemSettings) -> str:
    """A page: exercises, then in any order their solutions, sums of digits, and lines in words.

    What was asked is said again from afar: so a model learns to copy numbers before it is asked to.
    """
    exercises = [_exercise(rng, settings.digits) for _ in range(rng.randint(2, 4))]
    lines = [_sum(rng), _difference(rng), _said(rng, lang)]
    for problem in exercises:
        (a, b), (sign,) = problem.numbers, problem.signs
        lines.append(_worked(a, sign, b) if rng.random() < 0.75 else f"{a}{sign}{b}={problem.answer}")
    rng.shuffle(lines)
    heading, comma = ("Exercises: ", ", ") if lang == "en" else ("习题：", "，")
    return "\n".join([heading + comma.join(map(str, exercises)), *lines])


# --------------------------------------------------------------------------------------------------------------- stage


def build(settings: ProblemSettings, folder: Path) -> None:
    """Write train.jsonl and heldout.jsonl, as a tasks folder has them; of a book train.jsonl and val.jsonl, as a data folder has.

    Raises:
        UserError: see `generate` and `solved_again`.
    """
    inputs = {} if settings.like is None else {"like": Path(settings.like)}
    with artifact.writing(folder, "problems", settings.essence(), inputs=inputs) as (work, figures):
        if settings.make == "book":
            rng = random.Random(f"{settings.seed} book")
            splits = {
                split: [
                    {
                        "text": page(rng, settings.languages[n % len(settings.languages)], settings),
                        "source": "book of numbers",
                    }
                    for n in range(count)
                ]
                for split, count in (("train", settings.train), ("val", settings.heldout))
            }
        elif settings.like is not None:
            source = Path(settings.like)
            splits = {"train": list(solved_again(settings, source / "train.jsonl" if source.is_dir() else source))}
        else:
            splits = generate(settings)
        for split, records in splits.items():
            with (work / f"{split}.jsonl").open("w", encoding="utf-8") as out:
                out.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in records)
        for split, records in splits.items():
            figures[split] = {"records": len(records)}
            if settings.make == "problems":
                figures[split]["languages"] = dict(sorted(Counter(r["lang"] for r in records).items()))
        figures["samples"] = next(iter(splits.values()))[:6]
