"""The problems to reason about: right in every line, and held out for real, across stages, seeds and the order of numbers."""

import json
import random
import re

import pytest

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.recipe import load_recipe
from tinyseek.text.problems import Problem, ProblemSettings, build, columns, generate, page, problem_in
from tinyseek.text.tasks import check, read_tasks

CHAIN = re.compile(r"\d+(?: ?[+-] ?\d+)+")


@pytest.fixture(scope="module")
def made():
    return {
        pool: generate(ProblemSettings(train=1500, heldout=400, pool=pool, seed=seed, terms=3, digits=2))
        for seed, pool in enumerate(("lessons", "practice"))
    }


def prompt(record):
    return record["messages"][0]["content"]


def numbers_of(text):
    """The signed numbers of a chain, in no order: an independent reading of what a problem is."""
    chain = CHAIN.search(text)[0].replace(" ", "")
    return tuple(sorted(int(part) for part in re.findall(r"[+-]?\d+", chain)))


def test_counts_languages_and_repeatability(made):
    records = made["lessons"]
    assert (len(records["train"]), len(records["heldout"])) == (1500, 400)
    for split in records.values():
        assert sum(r["lang"] == "en" for r in split) == len(split) / 2
        assert all(prompt(r).isascii() == (r["lang"] == "en") for r in split)
    again = generate(ProblemSettings(train=1500, heldout=400, terms=3, digits=2))
    assert json.dumps(again) == json.dumps(records)
    assert (
        generate(ProblemSettings(train=10, heldout=10, seed=1, terms=3, digits=2))["heldout"] != records["heldout"][:10]
    )


def test_no_problem_is_in_two_pools_whatever_the_order_of_its_numbers(made):
    held = [numbers_of(prompt(r)) for pool in made.values() for r in pool["heldout"]]
    lessons = [numbers_of(prompt(r)) for r in made["lessons"]["train"]]
    practice = [numbers_of(prompt(r)) for r in made["practice"]["train"]]
    for one, other in ((held, lessons), (held, practice), (lessons, practice)):
        assert not set(one) & set(other)
    for each in (held[:400], held[400:], lessons, practice):
        assert len(set(each)) == len(each)


def test_the_recipe_holds_two_thousand_out_of_everything_it_reads():
    recipe = load_recipe("r1-in-miniature")
    stages = {name: s for name, s in recipe.stages.items() if isinstance(s, ProblemSettings) and s.like is None}
    problems = {name: generate(s) for name, s in stages.items() if s.make == "problems"}
    held = {numbers_of(prompt(r)) for r in problems["lessons"]["heldout"]}
    assert len(held) >= 2000
    assert recipe.stages["eval"].max_tasks >= 2000
    for made in problems.values():
        assert not held & {numbers_of(prompt(r)) for r in made["train"]}
    practised = {numbers_of(prompt(r)) for r in problems["practice"]["train"]}
    rng = random.Random(0)
    exercises = set()
    for lang in ("en", "zh") * 1000:
        text = page(rng, lang, stages["book"])
        exercises |= {numbers_of(chain) for chain in CHAIN.findall(text) if len(re.findall(r"\d{3}", chain)) == 2}
    assert len(exercises) > 3000
    assert not exercises & held, "a held-out problem is worked out in the book"
    assert not exercises & practised


def test_every_line_of_every_solution_is_true(made):
    seed = 5
    rng = random.Random(seed)
    for record in rng.sample(made["lessons"]["train"], 400) + made["practice"]["heldout"]:
        thought = record["messages"][1]["reasoning_content"]
        sums = re.findall(r"([\d+-]+)=(\d+)", thought)
        assert sums
        for left, right in sums:
            assert sum(map(int, re.findall(r"[+-]?\d+", left))) == int(right), (seed, thought)
        asked = sum(numbers_of(prompt(record)))
        assert record["answer"] == record["messages"][1]["content"] == str(asked) == sums[-1][1]
        assert check(record, f"<think>{thought}</think>{asked}")
        assert not check(record, f"<think>{thought}</think>{asked + 1}")
        assert not check(record, f"<think>{thought}{asked}")


def test_columns_are_the_digits_of_the_result():
    assert columns(473, "+", 85) == "3+5=8 7+8=15 4+0+1=5"
    assert columns(107, "-", 48) == "17-8=9 10-4-1=5 1-0-1=0"
    seed = 6
    rng = random.Random(seed)
    for _ in range(500):
        a, b, sign = rng.randint(0, 999), rng.randint(0, 999), rng.choice("+-")
        a, b = max(a, b), min(a, b)
        values = [int(step.split("=")[1]) for step in columns(a, sign, b).split(" ")]
        digits = "".join(str(value % 10) for value in values[:-1][::-1])
        assert int(f"{values[-1]}{digits}") == (a + b if sign == "+" else a - b), (seed, a, sign, b)


def test_manners_are_as_asked():
    def thoughts(**settings):
        records = generate(ProblemSettings(train=400, heldout=0, **settings))["train"]
        return [r["messages"][1].get("reasoning_content") for r in records]

    plain = thoughts(columns={}, talk=0)
    assert all(re.fullmatch(r"\S+=\d+", text) for text in plain)
    assert all(text.count(" ") >= 4 for text in thoughts(columns={"+": 1, "-": 1}, talk=0))
    mixed = thoughts(columns={"-": 0.6}, talk=0)
    assert 0.2 < sum(" " in text for text in mixed) / len(mixed) < 0.4
    assert all("-" in text for text in mixed if " " in text)
    talking = thoughts(columns={}, talk=0.8)
    assert len({re.sub(r"\d", "", text) for text in talking}) > 50
    assert thoughts(solutions="bare") == [None] * 400


def test_the_same_problems_are_solved_again(made, tmp_path):
    build(ProblemSettings(train=60, heldout=5), tmp_path / "one")
    lines = (tmp_path / "one/train.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers/train.jsonl").write_text("\n".join([*lines, lines[0], lines[7]]) + "\n", encoding="utf-8")
    build(ProblemSettings(like=str(tmp_path / "answers"), solutions="bare"), tmp_path / "again")
    records = read_tasks(tmp_path / "again/train.jsonl")
    first = [json.loads(line) for line in [*lines, lines[0], lines[7]]]
    assert [(prompt(r), r["answer"], r["lang"]) for r in records] == [
        (prompt(r), r["answer"], r["lang"]) for r in first
    ]
    assert all("reasoning_content" not in r["messages"][1] for r in records)
    assert artifact.read(tmp_path / "again").inputs.keys() == {"like"}
    (tmp_path / "answers/train.jsonl").write_text(lines[0] + '\n{"messages": [{"role": "user", "content": "Hi"}]}\n')
    with pytest.raises(UserError, match=r"answers/train.jsonl, line 2: asks no problem"):
        build(ProblemSettings(like=str(tmp_path / "answers")), tmp_path / "again")
    with pytest.raises(UserError, match="cannot be read"):
        build(ProblemSettings(like=str(tmp_path / "nowhere")), tmp_path / "again")


def test_problems_are_read_out_of_prompts():
    assert problem_in("What is 61 - 48 + 71?") == Problem((61, 48, 71), ("-", "+"))
    assert problem_in("请算 5 + 9。") == Problem((5, 9), ("+",))
    assert problem_in("What is 1 - 2?") is None  # not one of ours
    assert problem_in("Who are you?") is None


def test_more_than_there_are_is_an_error():
    with pytest.raises(UserError, match=r"no more than .* heldout problems of terms=2 and digits=1"):
        generate(ProblemSettings(terms=2, digits=1, heldout=100, train=0))
    with pytest.raises(UserError, match="leave like out"):
        ProblemSettings.read({"make": "book", "like": "x"}, "here")
