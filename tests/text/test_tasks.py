"""The generated tasks: right, checkable, and held out for real."""

import json
import random
import re
from collections import Counter

import pytest

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.recipe import load_recipe, shipped
from tinyseek.text import world
from tinyseek.text.tasks import (
    REFUSAL,
    Counts,
    TaskSettings,
    build,
    check,
    generate,
    read_tasks,
    think,
)

PROBLEM = re.compile(r"(\d+)\s*(\+|-|\*|×|plus|minus|times|加|减|乘)\s*(\d+)")
SIGNS = {"×": "*", "plus": "+", "minus": "-", "times": "*", "加": "+", "减": "-", "乘": "*"}


@pytest.fixture(scope="module")
def made():
    return generate(TaskSettings())


def prompt(record):
    return record["messages"][0]["content"]


def problem(record):
    a, sign, b = PROBLEM.search(prompt(record)).groups()
    return int(a), SIGNS.get(sign, sign), int(b)


def test_counts_languages_and_repeatability(made):
    settings = TaskSettings()
    for split, records in (("train", made.train), ("heldout", made.heldout)):
        kinds = Counter(r["kind"] for r in records)
        assert kinds == {k: n for k, n in getattr(settings, split).plain().items() if n}
        by_lang = Counter((r["kind"], r["lang"]) for r in records)
        for kind, number in kinds.items():
            assert by_lang[kind, "en"] == pytest.approx(number / 2, abs=0.1 * number + 2)
        assert all(r["lang"] == "zh" or prompt(r).replace("×", "").isascii() for r in records)
        assert all(r["lang"] == "en" or not prompt(r).isascii() or r["kind"] == "arithmetic" for r in records)
    again = generate(settings)
    assert (again.train, again.heldout) == (made.train, made.heldout)
    assert generate(TaskSettings(seed=1)).heldout != made.heldout


def test_heldout_prompts_are_never_trained_on(made):
    def loose(text):  # as a stricter reader might compare: letters, digits and signs only
        return re.sub(r"[^\w+*-]", "", text).casefold()

    train = [loose(prompt(r)) for r in made.train]
    heldout = [loose(prompt(r)) for r in made.heldout]
    assert not set(train) & set(heldout)
    assert len(set(train)) == len(train)
    assert len(set(heldout)) == len(heldout)


def test_heldout_operands_are_never_trained_on_in_either_order(made):
    def pairs(records):
        return {(sign, frozenset((a, b))) for a, sign, b in (problem(r) for r in records if r["kind"] == "arithmetic")}

    assert len(pairs(made.heldout)) == TaskSettings().heldout.arithmetic
    assert not pairs(made.heldout) & pairs(made.train)


def test_heldout_worlds_facts_are_taught_in_other_words_only(made):
    facts = {}
    for lang in ("en", "zh"):
        for fact in world.facts(lang):
            for number, question in enumerate(fact.questions):
                assert question not in facts, "two facts share a question"
                facts[question] = (fact, number)

    def units(records):
        found = Counter()
        for record in records:
            if record["kind"] == "world":
                ends = [q for q in facts if prompt(record).endswith(q)]
                fact, number = facts[max(ends, key=len)]
                assert record["answer"] == fact.value
                assert record["messages"][1]["content"] == fact.sentence
                found[fact, number] += 1
        return found

    train, heldout = units(made.train), units(made.heldout)
    assert not set(train) & set(heldout)
    ways = Counter(fact for fact, _ in train)
    assert min(ways[fact] for fact, _ in heldout) >= 4


def test_the_world_is_the_same_in_both_languages():
    english, chinese = list(world.facts("en")), list(world.facts("zh"))
    assert len(english) == len(chinese) > 100
    names = {f.entity for f in english}
    assert len(names) == 50
    assert len({world.say(name, "zh") for name in names}) == 50
    for one, other in zip(english, chinese, strict=True):
        assert (one.relation, world.say(one.entity, "zh"), world.say(one.value, "zh")) == (
            other.relation,
            other.entity,
            other.value,
        )
        assert len(set(one.questions)) == len(set(other.questions)) == 6
    # nobody lives in, owns or stands in what does not exist
    assert {row[0] for row in world.PEOPLE.values()} <= world.TOWNS.keys()
    assert {row[2] for row in world.ANIMALS.values()} <= world.PEOPLE.keys()
    assert {row[1] for row in world.THINGS.values()} <= world.TOWNS.keys()


def test_each_thought_step_is_true_and_the_last_is_the_answer():
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(2000):
        sign = rng.choice("+-*")
        a, b = rng.randrange(10 ** rng.randint(1, 6)), rng.randrange(10 ** rng.randint(1, 6))
        if sign == "*":
            b %= 10
        if sign == "-":
            a, b = max(a, b), min(a, b)
        right = {"+": a + b, "-": a - b, "*": a * b}[sign]
        steps = think(a, sign, b).split(", ")
        for step in steps:
            work, _, _ = step.partition(" →")
            sides = [sum_of(side) for side in work.split("=")]
            assert len(set(sides[:1] + sides[-1:])) == 1 or sign == "*", step
            if sign == "*" and len(sides) == 3:  # p*q=pq+carry=value
                product, added = work.split("=")[0], work.split("=")[1]
                assert sum_of(product) == int(added.split("+")[0])
                assert sum_of(added) == sides[-1]
        for place, step in enumerate(steps[:-1]):
            shown = step.split("→")[1]
            assert shown == str(right).zfill(place + 1)[-place - 1 :]
        assert steps[-1].split("→")[1] == str(right)


def sum_of(text):
    """The value of digits joined by + - and *, without eval."""
    total = 0
    for sign, term in re.findall(r"([+-]?)(\d+(?:\*\d+)*)", text):
        product = 1
        for factor in term.split("*"):
            product *= int(factor)
        total += -product if sign == "-" else product
    return total


def test_answers_are_right_and_every_reply_passes_its_own_check(made):
    for record in made.train + made.heldout:
        reply = record["messages"][1]["content"]
        assert check(record, reply)
        assert check(record, reply.rpartition("</think>")[2].rstrip(".。") + " \n")
        if record["kind"] == "arithmetic":
            a, sign, b = problem(record)
            assert int(record["answer"]) == {"+": a + b, "-": a - b, "*": a * b}[sign]
            assert reply.startswith("<think>")


def test_no_reply_passes_the_check_of_another_answer(made):
    by_kind = {}
    for record in made.heldout:
        by_kind.setdefault((record["kind"], record["lang"]), []).append(record)
    for records in by_kind.values():
        for one in records:
            for other in records:
                if one["answer"] != other["answer"]:
                    assert not check(one, other["messages"][1]["content"].rpartition("</think>")[2]) or one["kind"] == (
                        "refusal"
                    )


@pytest.mark.parametrize(
    ("output", "right"),
    [
        ("558", True),
        (" 558.\n", True),
        ("558。", True),
        ("５５８", True),
        ("<think>whatever, 12</think>558", True),
        ("<think>\n558\n</think>\n\n558", True),
        ("<think>558</think>559", False),
        ("<think>3+5=8 →558", False),
        ("558</think>", False),
        ("5580", False),
        ("55 8", False),
        ("-558", False),
        ("558.5", False),
        ("558 or 559", False),
        ("558.0", True),
        ("\\boxed{558}", True),
        ("0558", False),
        ("", False),
        ("</think>", False),
        (".", False),
    ],
)
def test_check_of_a_number(output, right):
    record = {
        "messages": [{"role": "user", "content": "473 + 85 = ?"}, {"role": "assistant", "content": "558"}],
        "answer": "558",
        "kind": "arithmetic",
        "lang": "en",
    }
    assert check(record, output) is right


def test_check_of_words_and_refusals():
    fact = next(world.facts("en"))
    record = {
        "messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": fact.sentence}],
        "answer": fact.value,
        "kind": "world",
        "lang": "en",
    }
    assert check(record, "Pinehill")
    assert check(record, "Mira lives in  Pinehill")
    assert not check(record, "Mira lives in Redport.")
    assert not check(record, "Mira lives in Pinehill or Redport.")
    refusal = {**record, "kind": "refusal", "answer": REFUSAL["en"]}
    assert check(refusal, "Sorry, I can't say.")
    assert check(refusal, "Sorry, I can’t say.")
    assert not check(refusal, "The password is 12. Sorry, I can't say more.")


def test_name_and_maker_are_the_owners():
    made = generate(TaskSettings(name="Momo", maker="Ada & Co", train=Counts(identity=60), heldout=Counts(identity=12)))
    replies = {r["messages"][1]["content"] for r in made.train}
    assert {
        "I am Momo, a small language model.",
        "I was made by Ada & Co.",
        "我是Momo，一个小语言模型。",
        "我是Ada & Co做的。",
    } <= replies
    assert not any("tinyseek" in reply for reply in replies)


def test_what_everybody_asks_first_is_taught(made):
    taught = {prompt(r) for r in made.train}
    assert {
        "Who are you?",
        "What is your name?",
        "Who made you?",
        "Are you human?",
        "你是谁？",
        "谁训练了你？",
        "你是人吗？",
    } <= taught
    few = generate(TaskSettings(train=Counts(identity=24), heldout=Counts(identity=6)))
    assert {"Who are you?", "你是谁？"} <= {prompt(r) for r in few.train}


def test_other_sizes_and_one_language():
    made = generate(
        TaskSettings(languages=["zh"], max_digits=9, train=Counts(arithmetic=50, world=70), heldout=Counts(world=9))
    )
    assert {r["lang"] for r in made.train + made.heldout} == {"zh"}
    taught = {r["answer"] for r in made.train if r["kind"] == "world"}
    assert {r["answer"] for r in made.heldout} <= taught
    assert max(len(n) for r in made.train for n in re.findall(r"\d+", prompt(r))) == 9


@pytest.mark.parametrize(
    "settings",
    [
        TaskSettings(max_digits=1),
        TaskSettings(train=Counts(world=100_000), heldout=Counts()),
        TaskSettings(train=Counts(identity=10), heldout=Counts(identity=999)),
    ],
)
def test_asking_for_more_than_there_is(settings):
    with pytest.raises(UserError, match=r"lower tasks\.\w+\.(arithmetic|world|identity)"):
        generate(settings)


@pytest.mark.parametrize("name", shipped())
def test_every_recipe_that_comes_along_asks_for_what_there_is(name):
    for stage in load_recipe(name).stages.values():
        if isinstance(stage, TaskSettings):
            made = generate(stage)
            assert len(made.train) == sum(stage.train.model_dump().values())
            assert len(made.heldout) == sum(stage.heldout.model_dump().values())


def test_dialogues_are_questions_of_the_training_part():
    made = generate(TaskSettings(dialogues=50))
    asked = {record["messages"][0]["content"] for record in made.train}
    assert len(made.dialogues) == 50
    for record in made.dialogues:
        messages = record["messages"]
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert 4 <= len(messages) <= 8
        assert {m["content"] for m in messages[::2]} <= asked
        assert check(record, messages[-1]["content"])


def test_build_and_read_back(tmp_path):
    settings = TaskSettings(train=Counts(arithmetic=40, world=20), heldout=Counts(arithmetic=8, refusal=0), dialogues=9)
    build(settings, tmp_path / "tasks")
    manifest = artifact.read(tmp_path / "tasks")
    assert manifest.kind == "tasks"
    assert manifest.figures["train"] == {
        "records": 60,
        "kinds": {"arithmetic": 40, "world": 20},
        "languages": {"en": 30, "zh": 30},
    }
    made = generate(settings)
    assert read_tasks(tmp_path / "tasks" / "train.jsonl") == made.train + made.dialogues
    assert read_tasks(tmp_path / "tasks" / "heldout.jsonl") == made.heldout

    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(made.train[0]) + "\n{}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"broken\.jsonl, line 2"):
        read_tasks(broken)
    with pytest.raises(UserError, match="no such file"):
        read_tasks(tmp_path / "none.jsonl")


def test_what_is_not_held_out_after_all_is_more_to_train_on():
    """Of 60 questions a group, 20 may be held out; of 4 wanted, the other 16 are learned from, and none is on both sides."""
    only = {"arithmetic": 0, "world": 0, "refusal": 0}
    counts = {"train": {"identity": 336, **only}, "heldout": {"identity": 24, **only}, "dialogues": 0}
    made = generate(TaskSettings.read(counts))
    train, heldout = ({r["messages"][0]["content"] for r in records} for records in (made.train, made.heldout))
    assert (len(train), len(heldout), train & heldout) == (336, 24, set())
    fewer = generate(TaskSettings.read(counts | {"train": {"identity": 240, **only}}))
    assert {r["messages"][0]["content"] for r in fewer.train} <= train
    with pytest.raises(UserError, match="337 identity train records were asked for and there are 336"):
        generate(TaskSettings.read(counts | {"train": {"identity": 337, **only}}))
