"""Models side by side: what is asked and counted, and a page that shows it and runs nothing of it."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from html_pages import HOSTILE, phrases_of, safe

from tinyseek.cli import main
from tinyseek.commands.evaluate import _judge
from tinyseek.errors import UserError
from tinyseek.evaluate import compare_page
from tinyseek.evaluate.compare import Comparison, Reply, Side, compare, read_prompts
from tinyseek.evaluate.compare_page import marked, render
from tinyseek.evaluate.options import CompareSettings
from tinyseek.evaluate.words import CHINESE, Words
from tinyseek.llm.base import Answer, ChatError, ChatModel, Usage
from tinyseek.model.config import ModelConfig
from tinyseek.model.transformer import CausalLM
from tinyseek.text.examples import Prompt
from tinyseek.text.tasks import Counts, TaskSettings, check, generate
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings


class Scripted(ChatModel):
    """Answers by a function of the question; notes what it was asked."""

    def __init__(self, say):
        self.say, self.asked, self.closed = say, [], False

    def complete(self, messages, options):
        self.asked.append((list(messages), options))
        said = self.say(messages[-1]["content"])
        if isinstance(said, Exception):
            raise said
        thought, _, content = said.rpartition("|")
        message = {"role": "assistant", "content": content} | ({"reasoning_content": thought} if thought else {})
        return Answer(message, "stop", Usage(9, len(said.split())))

    def stream(self, messages, options):
        raise NotImplementedError

    astream = stream

    def embed(self, texts):
        raise NotImplementedError

    def close(self):
        self.closed = True


def exact(prompts, messages):
    """1 where the content is the record's answer; nothing where it has none."""
    found = []
    for prompt, message in zip(prompts, messages, strict=True):
        answer = prompt.columns.get("answer")
        found.append(None if answer is None else float(message["content"] == answer))
    return found


@pytest.fixture
def prompts(tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"{n} + 1?"}], "answer": str(n + 1)} for n in range(8)]
    rows.append(
        {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"Who? {HOSTILE}"}]}
    )
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def first(question):
    """Right but for 3 and 5; cannot answer 7."""
    if question.startswith("7"):
        return ChatError("the server broke off " + HOSTILE)
    return f"I add {HOSTILE}|{HOSTILE if question[0] in '35' else (int(question[0]) + 1 if question[0].isdigit() else 'A fox')}"


def second(question):
    """Right but for 0, 1 and 5; does not think."""
    return "no" if question[0] in "015" else str(int(question[0]) + 1) if question[0].isdigit() else "A dog"


def test_what_is_asked_and_counted(prompts):
    models = {"one": Scripted(first), "two": Scripted(second)}
    settings = CompareSettings(system="Be brief.", max_tokens=33, thinking=True, seed=4)
    found = compare({name: name for name in models}, str(prompts), settings, exact, models.__getitem__)
    for model in models.values():
        assert model.closed
        for messages, options in model.asked:
            assert (options.temperature, options.max_tokens, options.seed, options.thinking) == (0.0, 33, 4, True)
            assert messages[0]["content"] == ("Be kind." if "Who" in messages[-1]["content"] else "Be brief.")
    one, two = found.sides
    assert [reply.score for reply in one.replies] == [1, 1, 1, 0, 1, 0, 1, None, None]
    assert [reply.score for reply in two.replies] == [0, 0, 1, 1, 1, 0, 1, 1, None]
    assert one.replies[7].error.startswith("the server broke off")
    duel = found.duel(1)
    assert (duel.wins, duel.losses, duel.ties) == (1, 2, 4)
    assert duel.gain.mean == pytest.approx(-1 / 7)
    assert duel.same == 3  # 2, 4 and 6 are answered alike
    assert one.mean.mean == pytest.approx(5 / 7)
    assert one.count(lambda reply: bool(reply.reasoning)) == 8
    with pytest.raises(UserError, match="answered none of 9 prompts; the first failure: over there"):
        compare(
            {"x": "x", "y": "y"}, str(prompts), settings, None, lambda _: Scripted(lambda _: ChatError("over there"))
        )


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page(prompts, language):
    models = {"one <b>": Scripted(first), "two": Scripted(second), "three": Scripted(second)}
    settings = CompareSettings(language=language, shown=7)
    found = compare({name: name for name in models}, str(prompts), settings, exact, models.__getitem__)
    page = render(found, settings)
    reader = safe(page)
    assert "<script" not in page
    assert '</p><script>alert("x")</script>' in reader.said
    assert "\u202e" not in page
    t = Words(language)
    for phrase in ("Totals", "wins", "losses", "What the answers are like"):
        assert any(t(phrase) in word for word in reader.words), phrase
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    better = t("Better: {names}")
    expected = [t("Totals")]
    for names, count in (("two" + t(" and ") + "three", 1), ("one &lt;b&gt;", 2)):
        expected.append(t("{title}: {count}").format(title=better.format(names=names), count=count))
    for title, count in (("All wrong", 1), ("All right", 3), ("Different answers", 1), ("Not answered by all", 1)):
        expected.append(t("{title}: {count}").format(title=t(title), count=count))
    assert sorted(headings) == sorted(expected)
    assert headings[0] == expected[0]
    assert headings.index(expected[3]) > max(headings.index(expected[1]), headings.index(expected[2]))
    assert t("{count} more are in the .jsonl beside this page.").format(count=1) in reader.words
    assert page.count('class="sample"') == 7
    assert reader.names.count("details") >= 5  # thoughts are folded


def test_scores_of_another_kind():
    """Rewards that are no shares: by their name, with two digits; which is better is the larger one."""
    prompts = [Prompt([{"role": "user", "content": "Why?"}], {}) for _ in range(3)]
    sides = [
        Side("a", [Reply("x", score=s) for s in (-2.5, 4, 1)], 1),
        Side("b", [Reply("y", score=s) for s in (3, 4, 0)], 1),
    ]
    found = Comparison("why.txt", prompts, sides, "length")
    assert (found.duel(1).wins, found.duel(1).ties, found.duel(1).losses) == (1, 1, 1)
    reader = safe(render(found, CompareSettings()))
    assert {"-2.50", "4.00", "Better: a: 1", "Better: b: 1", "All alike: 1"} <= set(reader.words)
    assert "✓" not in reader.said


def test_differences_are_marked():
    assert marked("the red fox", "the blue fox") == 'the <span class="other">red</span> fox'
    assert marked("我爱红苹果", "我爱青苹果") == '我爱<span class="other">红</span>苹果'
    assert marked("same <b>", "same <b>") == "same &lt;b&gt;"
    assert marked("nothing in common", "王小明去上学") == "nothing in common"
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(50):  # marks add nothing to the text and take nothing away
        one, two = ("".join(rng.choices(["ab", " ", "<", "&", "我", "\n", "c1"], k=20)) for _ in range(2))
        shown = re.sub(r"</?span[^>]*>", "", marked(one, two))
        assert shown == marked(one, one)


def test_reading_prompts(tmp_path):
    (tmp_path / "q.txt").write_text("\ufeffone\n\n two \n三\n", encoding="utf-8")
    assert [p.messages[0]["content"] for p in read_prompts(str(tmp_path / "q.txt"), 9)] == ["one", "two", "三"]
    rows = [{"prompt": f"q{n}", "answer": n} for n in range(10)]
    for name in ("train", "heldout"):
        lines = (json.dumps(row | {"prompt": f"{name} {row['prompt']}"}) for row in rows)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    chosen = read_prompts(str(tmp_path), 4)
    assert [p.messages[0]["content"] for p in chosen] == [f"heldout q{n}" for n in (0, 2, 5, 7)]
    assert chosen[1].columns == {"answer": 2}
    (tmp_path / "none.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"none\.txt: no prompt in it"):
        read_prompts(str(tmp_path / "none.txt"), 4)
    with pytest.raises(UserError, match="nowhere"):
        read_prompts("nowhere", 4)


def test_our_own_tasks_are_judged_as_eval_does(tmp_path):
    """By their own reply in full as well as by the bare answer, and a refusal however it goes on."""
    records = generate(TaskSettings(train=Counts(world=300), heldout=Counts(arithmetic=5, world=20, refusal=5))).heldout
    (tmp_path / "heldout.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = read_prompts(str(tmp_path), 100)
    judge = _judge(CompareSettings())
    for texts in (
        [record["messages"][-1]["content"].rpartition("</think>")[2] for record in records],
        [record["answer"] for record in records],
        ["no idea"] * len(records),
    ):
        scores = judge(found, [{"role": "assistant", "content": text} for text in texts])
        assert scores == [float(check(record, text)) for record, text in zip(records, texts, strict=True)]


def test_the_command_on_real_models(prompts, tmp_path, capsys):
    tokenizer = Tokenizer.train(["What is 1 + 1? 2 3 4 5 6 7 8"] * 50, TokenizerSettings(vocab_size=300))
    for number, name in enumerate(("a", "b")):
        torch.manual_seed(number)
        config = ModelConfig(
            model_type="llama", vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, intermediate_size=32, max_position_embeddings=256,
        )  # fmt: skip
        CausalLM(config).save(tmp_path / name)
        tokenizer.save(tmp_path / name)
    page = tmp_path / "made" / "page.html"
    words = [str(tmp_path / "a"), str(tmp_path / "b"), "--prompts", str(prompts), "--out", str(page), "max_tokens=5"]
    assert main(["compare", *words]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^model +right +wins / ties / losses", said, re.M)
    safe(page.read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in page.with_suffix(".jsonl").read_text("utf-8").splitlines()]
    assert [list(line["answers"]) for line in lines] == [["a", "b"]] * 9
    assert [line.get("answer") for line in lines] == [*map(str, range(1, 9)), None]
    assert all(line["answers"]["a"]["tokens"] <= 5 for line in lines)
    for wrong, told in (
        ([words[0], "--prompts", str(prompts)], "name two models at least"),
        ([words[0], words[0], "--prompts", str(prompts)], "named twice"),
        ([words[0], "nowhere", "--prompts", str(prompts)], "nowhere: no such folder"),
        ([*words, "reward=exact_anser"], 'did you mean "exact_answer"'),
    ):
        assert main(["compare", *wrong]) == 2
        assert told in capsys.readouterr().err


def test_every_phrase_is_translated():
    phrases = phrases_of(Path(compare_page.__file__))
    assert len(phrases) > 30
    assert phrases - set(CHINESE) == set()
