"""Classification from files to a tested folder: against transformers and scikit-learn, resumed, refused where it should be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import SMALL

from tinyseek import artifact, cli
from tinyseek.errors import UserError
from tinyseek.llm.base import Answer, ChatError, ChatOptions, Usage
from tinyseek.model.config import ModelConfig
from tinyseek.model.heads import SequenceClassifier
from tinyseek.model.transformer import CausalLM
from tinyseek.text.examples import Labelled
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings
from tinyseek.tune.classify import few_shot, picture, stage, texts
from tinyseek.tune.classify.objective import ClassObjective, class_weights, read_all
from tinyseek.tune.classify.options import ClassifySettings, FewShotSettings
from tinyseek.tune.classify.scores import Scores

GOOD, BAD, PLAIN = ["great", "lovely", "fine"], ["awful", "boring", "poor"], ["film", "story", "cast", "the", "and"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reviews(count: int, seed: int = 0) -> list[Labelled]:
    """Texts of which one word tells the class."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        good = bool(rng.random() < 0.6)
        words = [*rng.choice(PLAIN, rng.integers(2, 9)), rng.choice(GOOD if good else BAD)]
        rng.shuffle(words)
        found.append(Labelled(" ".join(words) + f" {rng.integers(1000)}", "好评" if good else "差评"))
    return found


def write(file: Path, found: list[Labelled]) -> str:
    file.write_text("".join(json.dumps({"text": t.text, "label": t.label}) + "\n" for t in found))
    return str(file)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A base model with its tokenizer, and labelled texts."""
    home = tmp_path_factory.mktemp("made")
    tokenizer = Tokenizer.train([" ".join(GOOD + BAD + PLAIN) * 20], TokenizerSettings(vocab_size=400))
    torch.manual_seed(0)
    shape = {**SMALL, "num_hidden_layers": 2, "initializer_range": 0.05}
    CausalLM(ModelConfig(model_type="llama", **{**shape, "vocab_size": tokenizer.vocab_size})).save(home / "base")
    tokenizer.save(home / "base")
    write(home / "reviews.jsonl", reviews(260))
    return home


def settings_of(made: Path, **changes: Any) -> ClassifySettings:
    base = {"model": str(made / "base"), "data": [str(made / "reviews.jsonl")], "seq_len": 32, "batch_size": 16}
    quick = {"lr": 0.01, "epochs": 3, "precision": "float32", "device": "cpu", "threads": 1, "validate_every": 10}
    return ClassifySettings.read(base | quick | changes)


@pytest.mark.parametrize("way", [{}, {"lora": {"rank": 4}}, {"last_layers": 1}])
def test_a_trained_classifier_is_right_and_is_transformers(made: Path, tmp_path: Path, way: dict[str, Any]) -> None:
    out = tmp_path / "out"
    stage.build(settings_of(made, **way), out)
    scores = json.loads((out / "scores.json").read_text())
    assert scores["accuracy"] > (0.7 if way else 0.95)  # 0.6 is the commoner class; the base is random numbers
    assert scores["labels"] == ["好评", "差评"]
    assert scores["texts"] == sum(map(sum, scores["confusion"])) == 52
    assert (out / "confusion.png").read_bytes().startswith(b"\x89PNG")
    figures = artifact.read(out).figures
    assert figures["test_accuracy"] == pytest.approx(scores["accuracy"], abs=1e-6)
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    asked = [line["text"] for line in lines][:9]
    labeller = stage.Labeller(out)
    ours = labeller.probabilities(asked)
    assert [labeller.labels[row.argmax()] for row in ours] == [line["predicted"] for line in lines[:9]]
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["val_macro_f1"] > (0.5 if way else 0.9)
    if way == {"last_layers": 1}:
        before, after = CausalLM.load(made / "base"), SequenceClassifier.load(out).trunk
        same = [
            torch.equal(one, other)
            for one, other in zip(before.model.parameters(), after.model.parameters(), strict=True)
        ]
        assert [name for (name, _), alike in zip(before.model.named_parameters(), same, strict=True) if not alike] == [
            name for name, _ in before.model.named_parameters() if name.startswith(("layers.1.", "norm"))
        ]
    if "lora" in way:
        return
    transformers = pytest.importorskip("transformers")
    asks = transformers.pipeline("text-classification", model=str(out), top_k=None)
    for row, told in zip(ours, asks(asked, batch_size=4), strict=True):
        assert {one["label"]: one["score"] for one in told} == pytest.approx(
            dict(zip(labeller.labels, row.tolist(), strict=True)), abs=1e-5
        )


def test_scores_are_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(5)
    truth, predicted = rng.integers(0, 4, 200), rng.integers(0, 5, 200)  # the last is predicted and never there
    scores = Scores.of(truth, predicted, 6)  # one class is neither
    assert (scores.confusion_LL[:5, :5] == metrics.confusion_matrix(truth, predicted)).all()
    assert scores.accuracy == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert scores.macro_f1 == pytest.approx(metrics.f1_score(truth, predicted, average="macro", zero_division=0))
    each = metrics.precision_recall_fscore_support(truth, predicted, labels=range(6), zero_division=0)
    assert np.allclose([scores.precision_L, scores.recall_L, scores.f1_L], each[:3])
    low, high = Scores.of([0] * 90 + [1] * 10, [0] * 100, 2).interval()
    assert (low, high) == pytest.approx((0.8256, 0.9448), abs=1e-4)  # Wilson's interval for 90 of 100


def test_accumulation_and_weights_give_the_large_batchs_gradient(made: Path) -> None:
    tokenizer = Tokenizer.load(made / "base")
    encoded = texts.encode_labelled(tokenizer, reviews(12, seed=3), ["好评", "差评"], 32)
    weights = class_weights("balanced", ["好评", "差评"], encoded)
    torch.manual_seed(0)
    model = SequenceClassifier(CausalLM.load(made / "base"), ["好评", "差评"], tokenizer.pad_id)
    objective = ClassObjective(encoded, 2, tokenizer.pad_id, None, weights)
    found = []
    for parts in (1, 5):
        model.zero_grad()
        (update,) = objective.fetch(np.arange(12), parts, torch.device("cpu")).updates
        for micro in update.micro:
            objective.losses(model, micro, update)["total"].backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (found[0] - found[1]).abs().max() < 1e-6
    # By hand, one text at a time: the weights have the mean 1 over these texts.
    model.zero_grad()
    assert weights is not None
    assert sum(weights[label] for label in encoded.labels) == pytest.approx(12)
    for ids, label in zip(encoded.ids, encoded.labels, strict=True):
        logits = model(torch.tensor([list(ids)]))
        (-weights[label] * logits.log_softmax(-1)[0, label] / 12).backward()
    plain = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (plain - found[0]).abs().max() < 1e-6
    odds = read_all(model, encoded.ids, tokenizer.pad_id, torch.device("cpu"), batch=5)
    alone = torch.cat([model(torch.tensor([list(ids)])) for ids in encoded.ids]).double().softmax(-1)
    assert np.abs(odds - alone.detach().numpy()).max() < 1e-6


# ---- the texts -------------------------------------------------------------------------------------------------------------------


def test_splits_are_by_class_and_lasting_and_leave_nothing_twice(made: Path, tmp_path: Path) -> None:
    found = reviews(100)
    rare = [Labelled("only one of these", "rare")]
    torn = [Labelled("both", "好评"), Labelled("both", "差评")]
    file = write(tmp_path / "all.jsonl", [*found, *found[:7], *torn, *rare])
    settings = settings_of(made, data=[file], val_fraction=0.1, test_fraction=0.2)
    one = texts.gather(settings)
    assert (one.repeated, one.torn) == (7, 2)
    assert one.labels == ["rare", "好评", "差评"]
    write(tmp_path / "all.jsonl", [*rare, *reversed(found)])
    other = texts.gather(settings)
    assert {name: set(map(repr, split)) for name, split in one.split.items()} == {
        name: set(map(repr, split)) for name, split in other.split.items()
    }
    for label in ("好评", "差评"):
        total = sum(text.label == label for text in found)
        assert sum(text.label == label for text in one.split["test"]) == round(0.2 * total)
    assert [text.text for text in one.split["train"] if text.label == "rare"] == ["only one of these"]
    even = texts.gather(settings_of(made, balance=True))
    counts = {label: sum(t.label == label for split in even.split.values() for t in split) for label in even.labels}
    assert len(set(counts.values())) == 1


def test_bad_texts_are_told(made: Path, tmp_path: Path, capsys) -> None:
    def gathered(**changes: Any) -> texts.Texts:
        return texts.gather(settings_of(made, **changes))

    one = write(tmp_path / "one.jsonl", [text for text in reviews(30) if text.label == "好评"])
    with pytest.raises(UserError, match=r'one\.jsonl: only the label "好评" to learn from'):
        gathered(data=[one])
    strange = write(tmp_path / "strange.jsonl", [*reviews(5, seed=9), Labelled("x", "中评"), Labelled("y", "中评")])
    with pytest.raises(
        UserError, match=r'test has labels that are never seen in training: "中评" \(2\); learned are "好评"'
    ):
        gathered(test=[strange])
    with pytest.raises(UserError, match="val has labels"):
        gathered(val=[strange])
    empty = tmp_path / "empty.jsonl"
    lines = [json.dumps({"text": text.text, "label": text.label}) for text in reviews(20)]
    empty.write_text("\n".join([*lines, '{"text": "  ", "label": "好评"}', '{"text": "no label"}']))
    found = gathered(data=[str(empty)])
    texts.report(found)
    assert found.unreadable == 2
    assert "2 records could not be used and were left out: " in capsys.readouterr().err
    with pytest.raises(UserError, match='no label "spam" in the texts'):
        encoded = texts.encode_labelled(Tokenizer.load(made / "base"), reviews(9), ["好评", "差评"], 32)
        class_weights({"spam": 2.0}, ["好评", "差评"], encoded)


def test_long_texts_are_cut_or_dropped_and_counted(made: Path, tmp_path: Path, capsys) -> None:
    long = [Labelled("film " * 90 + str(number), "好评") for number in range(8)]
    file = write(tmp_path / "long.jsonl", [*reviews(40), *long])
    tokenizer = Tokenizer.load(made / "base")
    for how in ("truncate", "drop"):
        settings = settings_of(made, data=[file], too_long=how, val_fraction=0, test_fraction=0.25)
        splits = stage.encode_splits(tokenizer, texts.gather(settings), settings)
        assert max(len(ids) for split in splits.values() for ids in split.ids) == 32
        assert splits["train"].cut + splits["train"].dropped + splits["test"].cut == 8
        assert (splits["train"].cut == 0) == (how == "drop")
        assert "longer than seq_len=32 tokens" in capsys.readouterr().err
    only = write(tmp_path / "only.jsonl", [*(t for t in reviews(40) if t.label == "差评"), *long])
    settings = settings_of(made, data=[only], too_long="drop", val_fraction=0, test_fraction=0)
    with pytest.raises(UserError, match="every text of 好评 is longer and was left out"):
        stage.encode_splits(tokenizer, texts.gather(settings), settings)


def test_a_killed_run_goes_on_to_the_same_weights(made: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    quick = {"steps": 9, "save_every": 3}
    stage.build(settings_of(made, **quick), whole)
    code = (
        "import sys, os, signal; from pathlib import Path; from tinyseek.train import state\n"
        "real = state.save\n"
        "def save(*a, **k):\n"
        "    made = real(*a, **k)\n"
        "    if made.name.endswith('3'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return made\n"
        "state.save = save\n"
        "from tinyseek.tune.classify import stage; from tinyseek.tune.classify.options import ClassifySettings\n"
        "import json; stage.build(ClassifySettings.read(json.loads(sys.argv[1])), Path(sys.argv[2]))\n"
    )
    plain = json.dumps(settings_of(made, **quick).plain())
    died = subprocess.run([sys.executable, "-c", code, plain, str(cut)], capture_output=True, env=os.environ)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    stage.build(settings_of(made, **quick), cut)
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    assert (whole / "scores.json").read_text() == (cut / "scores.json").read_text()


# ---- the picture -----------------------------------------------------------------------------------------------------------------


def test_the_picture_has_the_labels_characters(tmp_path: Path, capsys) -> None:
    from matplotlib import font_manager

    labels = ["体育", "财经", "tech"]
    fonts = picture.fonts_for("".join(labels))
    held = set()
    for name in fonts:
        held |= font_manager.get_font(font_manager.findfont(name)).get_charmap().keys()
    if fonts:  # a machine with a Chinese font
        assert {ord(char) for char in "".join(labels)} <= held
    assert picture.fonts_for("plain") == ["DejaVu Sans"]
    assert picture.fonts_for("\U0010fffd") == []  # in no font: classes are numbered then
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a glyph that is missing
        picture.draw(np.arange(9).reshape(3, 3), labels, tmp_path / "a.png", "测试")
        picture.draw(np.arange(9).reshape(3, 3), ["a", "b", "\U0010fffd"], tmp_path / "b.png", "x")
    assert "shows their numbers" in capsys.readouterr().err
    assert "\U0010fffd</text>" in (tmp_path / "b.svg").read_text()
    assert not (tmp_path / "a.svg").exists() or not fonts
    picture.draw(np.eye(60, dtype=np.int64), [f"class {n}" for n in range(60)], tmp_path / "c.png", "many")
    assert (tmp_path / "c.png").stat().st_size > 1000


# ---- asking a chat model ---------------------------------------------------------------------------------------------------------


class Parrot:
    """A chat model that says what it is told to, and keeps what it was asked."""

    name, context = "parrot", None

    def __init__(self, says: list[str], knows_choice: bool = True) -> None:
        self.says, self.knows_choice = says, knows_choice
        self.asked: list[tuple[list[dict[str, Any]], ChatOptions]] = []

    def complete(self, messages: Any, options: ChatOptions) -> Answer:
        if options.choice and not self.knows_choice:
            raise UserError("this server has no choice")
        self.asked.append((messages, options))
        said = self.says[(len(self.asked) - 1) % len(self.says)]
        return Answer({"role": "assistant", "content": said}, "stop", Usage(10, 2))


def test_the_prompt_has_background_need_form_and_examples() -> None:
    few = FewShotSettings(model="x", shots=2, background="短信", need="判断是否垃圾短信", language="zh")
    shown = few_shot.examples_of(reviews(50), ["好评", "差评"], few)
    assert [example.label for example in shown] == ["好评", "差评"] * 2
    assert shown == few_shot.examples_of(list(reversed(reviews(50))), ["好评", "差评"], few)
    chat: Any = Parrot(["差评"])
    (told,) = few_shot.FewShot(chat, ["好评", "差评"], shown, few).label(["a  text\nof two lines"])
    assert (told.label, told.unclear, told.prompt_tokens) == ("差评", False, 10)
    messages, options = chat.asked[0]
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * 4, "user"]
    assert messages[0]["content"].splitlines()[0] == "背景：短信"
    assert messages[0]["content"].splitlines()[1] == "需求：判断是否垃圾短信"
    assert messages[-1]["content"] == "文本：a text of two lines\n类别："
    assert options.choice == ["好评", "差评"]
    with pytest.raises(UserError, match="none of a, b"):
        few_shot.FewShot(chat, ["a", "b"], shown, few)


def test_a_server_without_choice_is_held_to_json_and_a_talker_is_read() -> None:
    few = FewShotSettings(model="x", shots=0)
    chat: Any = Parrot(['{"class": "spam"}'], knows_choice=False)
    asks = few_shot.FewShot(chat, ["ham", "spam"], [], few)
    assert [told.label for told in asks.label(["a", "b"])] == ["spam", "spam"]
    assert chat.asked[0][1].response_format["json_schema"]["schema"]["properties"]["class"]["enum"] == ["ham", "spam"]
    cases = {
        "Spam.": "spam",
        "「spam」": "spam",
        "The class is: spam": "spam",
        "ham or spam": None,
        "no idea": None,
        "": None,
        '["spam"]': "spam",
    }
    assert {said: few_shot.read_label(said, ["ham", "spam"]) for said in cases} == cases
    assert few_shot.read_label("that is no spam", ["spam", "no spam"]) == "no spam"
    silent = few_shot.FewShot(Parrot(["hm"]), ["ham", "spam"], [], few).label(["a"])  # type: ignore[arg-type]
    assert (silent[0].label, silent[0].unclear) == ("ham", True)

    class Broken(Parrot):
        def complete(self, *_: Any) -> Answer:
            raise ChatError("the line is dead")

    with pytest.raises(ChatError, match="line is dead"):
        few_shot.FewShot(Broken([]), ["ham", "spam"], [], few).label(["a"])  # type: ignore[arg-type]


def test_a_local_model_can_say_nothing_but_a_label(made: Path, tmp_path: Path) -> None:
    """Random weights, and still every answer is one of the labels: the constraint is in the decoding."""
    base = tmp_path / "chat"
    tokenizer = Tokenizer.train(["one two three " * 30], TokenizerSettings(vocab_size=400))
    torch.manual_seed(0)
    shape = {**SMALL, "num_hidden_layers": 1, "max_position_embeddings": 512}
    CausalLM(ModelConfig(model_type="llama", **{**shape, "vocab_size": tokenizer.vocab_size})).save(base)
    tokenizer.save(base)
    few = {"model": str(base), "shots": 1, "limit": 6}
    stage.build(settings_of(made, steps=2, few_shot=few), tmp_path / "out")
    asked = json.loads((tmp_path / "out/scores.json").read_text())["few_shot"]
    assert asked["texts"] == 6
    assert asked["head_on_these"]["accuracy"] <= 1
    assert asked["completion_tokens"] > 0


# ---- the command -----------------------------------------------------------------------------------------------------------------


def test_label_reads_texts_lines_and_files(made: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    stage.build(settings_of(made, epochs=2), out)
    capsys.readouterr()

    def said(*words: str) -> list[dict[str, Any]]:
        status = cli.main(["label", *words])
        told = capsys.readouterr()
        assert status == 0, told.err
        return [json.loads(line) for line in told.out.splitlines()]

    (one,) = said(str(out), "great lovely film")
    assert one["label"] == "好评"
    assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    lines = tmp_path / "lines.txt"
    lines.write_text("great film\n\nawful story\n" + "the " * 99 + "\n")
    rows = said(str(out), str(lines))
    assert [row["label"] for row in rows[:3]] == ["好评", None, "差评"]
    table = tmp_path / "rows.csv"
    table.write_text("id,text\n1,awful\n2,lovely cast\n")
    assert [row["label"] for row in said(str(out), str(table))] == ["差评", "好评"]
    table.write_text("id,body\n1,awful\n")
    assert cli.main(["label", str(out), str(table)]) == 2
    assert 'no column "text"' in capsys.readouterr().err
    assert cli.main(["label", str(made / "base"), "x"]) == 2
    assert "has no head for classes" in capsys.readouterr().err
    assert cli.main(["label", str(out), str(lines)]) == 0
    told = capsys.readouterr().err
    assert "1 empty texts have no label" in told
    assert "longer than 32 tokens" in told
