"""Students of probabilities: the whole objective against torch's own words, what is stored, what is refused, and resumed runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tune.distill.toys import save_model, save_talks, tokenizer_of

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.model.transformer import CausalLM
from tinyseek.run import why_build
from tinyseek.text.shards import IGNORED
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.train.device import settle
from tinyseek.train.metrics import read_records
from tinyseek.tune.distill import logits, stored
from tinyseek.tune.distill.divergence import How, plain
from tinyseek.tune.distill.on_policy import OnPolicy, prompt_of
from tinyseek.tune.distill.options import DistillSettings
from tinyseek.tune.rl.rollouts import Rollouts
from tinyseek.tune.sft import encode, pack

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logits")
    tokenizer = tokenizer_of()
    save_model(folder / "teacher", tokenizer, initializer_range=0.5)
    save_model(folder / "student", tokenizer, seed=1, num_hidden_layers=1)
    save_talks(folder / "talks.jsonl")
    return folder


def settings_of(small: Path, **changes: Any) -> DistillSettings:
    base: dict[str, Any] = {"teacher": str(small / "teacher"), "model": str(small / "student")}
    base |= {"data": [str(small / "talks.jsonl")], "seq_len": 64, "batch_size": 4, "val_fraction": 0.2, "steps": 4}
    base |= {"precision": "float32", "threads": 1, "lr": 0.01, "validate_every": 2}
    return DistillSettings.read(base | changes)


def objective_of(small: Path, work: Path, **changes: Any) -> tuple[logits.Distilling, CausalLM]:
    """An objective, and its student."""
    settings = settings_of(small, **changes)
    tokenizer, model = Tokenizer.load(small / "teacher"), CausalLM.load(settings.model)
    examples = encode(settings.data, tokenizer, settings)
    rows = settings.model_copy(update={"packing": settings.packing and not settings.on_policy})
    sources = {split: pack(work / "tokens", split, examples, tokenizer, rows) for split in examples.ids}
    setup = settle(settings.model_copy(update={"compile": False}), None, 0.0, lambda _: None)
    found = {split: source for split, source in sources.items() if source is not None}
    return logits.objective_of(settings, found, model, tokenizer, work, "key", setup), model


def reference(
    small: Path, student: CausalLM, objective: logits.Distilling, batch: Any, kept: int | None
) -> torch.Tensor:
    """The mean over all learned tokens, in float64 from whole logits, a document at a time."""
    teacher = CausalLM.load(small / "teacher").double().eval()
    sums, targets = torch.zeros((), dtype=torch.float64), 0
    for micro in batch.updates[0].micro:
        flat = torch.full((micro.ids_BT.numel(),), IGNORED)
        flat[micro.places_N] = micro.targets_N
        for row, ids_T in enumerate(micro.ids_BT):
            said_T = flat.view(micro.ids_BT.shape)[row]
            for document in micro.documents_BT[row].unique():
                inside = micro.documents_BT[row] == document
                learned = said_T[inside] != IGNORED
                if learned.any():
                    ours, theirs = (model(ids_T[inside][None])[0][learned] for model in (student, teacher))
                    sums = sums + plain(ours.double(), theirs.double(), said_T[inside][learned], objective.how, kept)[0]
                    targets += int(learned.sum())
    assert targets == batch.updates[0].targets
    return sums / targets


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"divergence": "reverse_kl", "temperature": 2.0}, None),
        ({"divergence": "jsd", "packing": False, "accumulate": 2}, None),
        ({"top_k": 5, "temperature": 1.5, "accumulate": 2}, 5),
        ({"top_k": 7, "packing": False}, 7),
    ],
    ids=str,
)
def test_the_loss_and_its_gradient_are_those_of_each_document_alone(
    small: Path, tmp_path: Path, changes: dict[str, Any], kept: int | None
) -> None:
    objective, student = objective_of(small, tmp_path, **changes)
    student.config = student.config.model_copy(update={"balance_loss_weight": 0.0})
    batch = objective.fetch(np.arange(4) % len(objective), changes.get("accumulate", 1), CPU)
    total = 0.0
    for micro in batch.updates[0].micro:
        figures = objective.losses(student, micro, batch.updates[0])
        figures["total"].backward()
        total += float(figures["loss"])
    gradients = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    student.double()
    expected = reference(small, student, objective, batch, kept)
    expected.backward()
    assert total == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, parameter in student.named_parameters():
        if parameter.grad is not None and name in gradients:
            torch.testing.assert_close(gradients[name].double(), parameter.grad, atol=2e-6, rtol=1e-3, msg=name)


def test_what_is_stored_is_what_the_teacher_says_and_a_killed_run_goes_on_with_it(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "_AT_ONCE", 40)
    monkeypatch.setattr(stored, "_SAVE_EVERY", 0.0)
    filled: list[tuple[int, int]] = []
    fill = stored._Filling.fill

    def dies(self: Any, kept: Any, file: Any, first: int, last: int) -> None:
        if len(filled) == 4:
            raise KeyboardInterrupt
        filled.append((first, last))
        fill(self, kept, file, first, last)

    monkeypatch.setattr(stored._Filling, "fill", dies)
    with pytest.raises(KeyboardInterrupt):
        objective_of(small, tmp_path / "work", top_k=6)
    assert len(filled) == 4

    def goes_on(self: Any, kept: Any, file: Any, first: int, last: int) -> None:
        filled.append((first, last))
        fill(self, kept, file, first, last)

    monkeypatch.setattr(stored._Filling, "fill", goes_on)
    objective, _ = objective_of(small, tmp_path / "work", top_k=6)
    file = objective.source.file
    assert filled[4][0] == filled[3][1]  # nothing is computed twice
    before = len(filled)
    again, _ = objective_of(small, tmp_path / "work", top_k=6)
    assert len(filled) == before
    teacher, kept = CausalLM.load(small / "teacher").eval(), again.teacher
    assert isinstance(kept, stored.Stored)
    start = number = 0
    for end in file.ends.tolist():
        ids = torch.from_numpy(file.ids[start:end].astype(np.int64))
        logps = torch.log_softmax(teacher(ids[None, :-1])[0], -1)
        for place in range(1, end - start):
            if file.mask is not None and file.mask[start + place]:
                row = logps[place - 1]
                top = row.topk(6)
                assert kept.numbers[start + place] == number
                assert kept.ids_MK[number].tolist() == top.indices.tolist()
                others = torch.cat(
                    [row[i : i + 1] for i in range(len(row)) if i not in top.indices.tolist()]
                ).logsumexp(0)
                expected = torch.cat((top.values, others[None]))
                torch.testing.assert_close(
                    torch.from_numpy(kept.logps_MJ[number].copy()), expected, atol=1e-5, rtol=1e-5
                )
                number += 1
        start = end
    assert number == len(kept.ids_MK)
    objective_of(small, tmp_path / "work", top_k=6, temperature=2.0)  # other numbers
    assert len(filled) > before


def test_a_students_own_words_are_learned_from_as_the_data_is(small: Path, tmp_path: Path) -> None:
    objective, student = objective_of(small, tmp_path, on_policy=1.0, max_completion_length=9, ce_weight=0.4)
    assert isinstance(objective, OnPolicy)
    student.config = student.config.model_copy(update={"balance_loss_weight": 0.0})
    batch = objective.fetch(np.array([3, 1, 3, 0]), 2, CPU)
    assert batch.figures["on_policy"] == 1
    again, _ = objective_of(small, tmp_path, on_policy=1.0, max_completion_length=9, ce_weight=0.4)
    same = again.fetch(np.array([3, 1, 3, 0]), 2, CPU)
    for one, other in zip(batch.updates[0].micro, same.updates[0].micro, strict=True):
        assert torch.equal(one.ids_BT, other.ids_BT)
    later = again.fetch(np.array([3, 1, 3, 0]), 2, CPU).updates[0].micro
    assert [micro.targets_N.tolist() for micro in later] != [
        micro.targets_N.tolist() for micro in same.updates[0].micro
    ]

    # The texts are the prompts with what the engine drew after them, and the loss is the plain divergence there.
    prompts = [prompt_of(objective.source[number], 64) for number in (3, 1, 3, 0)]
    tokenizer = Tokenizer.load(small / "teacher")
    assert all(tokenizer.decode(prompt).endswith("<｜Assistant｜>") for prompt in prompts)
    drawn = Rollouts(student, tokenizer, max_tokens=9).sample(prompts, 1, [0] * 4)
    assert max(len(answer[0].ids) for answer in drawn) == 9
    objective.how = How("forward_kl", ce_weight=0.0)
    total = sum(float(objective.losses(student, micro, batch.updates[0])["loss"]) for micro in batch.updates[0].micro)
    assert total == pytest.approx(float(reference(small, student.double(), objective, batch, None).detach()), rel=1e-5)
    lengths = [int((micro.documents_BT == number).sum()) for micro in batch.updates[0].micro for number in range(2)]
    answers = [length - len(prompt) + 1 for length, prompt in zip(lengths, prompts, strict=True)]
    assert batch.updates[0].targets == sum(answers)
    assert batch.figures["completions/mean_length"] == sum(answers) / 4
    mixed, _ = objective_of(small, tmp_path, on_policy=0.5, max_completion_length=9)
    own = [mixed.fetch(np.array([0]), 1, CPU).figures["on_policy"] for _ in range(60)]
    assert 15 < sum(own) < 45
    mixed.batches = 7
    assert mixed.state() == {"batches": 7}


def test_a_student_comes_nearer_to_its_teacher(small: Path, tmp_path: Path) -> None:
    for name, changes in {
        "whole": {"divergence": "reverse_kl"},
        "kept": {"top_k": 12},
        "own": {"on_policy": 0.5, "max_completion_length": 8},
    }.items():
        settings = settings_of(small, steps=30, lr=0.02, seq_len=40, validate_every=5, **changes)
        logits.build(settings, tmp_path / name)
        measured = [record for record in read_records(tmp_path / name / "metrics.jsonl") if "val_kl" in record]
        assert measured[-1]["val_kl"] < 0.8 * measured[0]["val_kl"], name
        manifest = artifact.read(tmp_path / name)
        assert manifest.figures["val_kl"] == pytest.approx(measured[-1]["val_kl"], abs=1e-4)
        assert not why_build(settings, tmp_path / name)
        assert (tmp_path / name / "tokenizer.json").is_file()
        assert not (tmp_path / f"{name}.work").exists()


def test_a_run_that_was_stopped_goes_on_to_the_same_student(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"on_policy": 0.6, "max_completion_length": 6, "save_every": 2, "validate_every": 0}
    settings = settings_of(small, **changes)
    logits.build(settings, tmp_path / "whole")
    fetch, fetched = OnPolicy.fetch, 0

    def dies(self: OnPolicy, *arguments: Any) -> Any:
        nonlocal fetched
        fetched += 1
        if fetched == 4:
            raise KeyboardInterrupt
        return fetch(self, *arguments)

    monkeypatch.setattr(OnPolicy, "fetch", dies)
    with pytest.raises(KeyboardInterrupt):
        logits.build(settings, tmp_path / "again")
    monkeypatch.setattr(OnPolicy, "fetch", fetch)
    logits.build(settings, tmp_path / "again")
    one, other = (CausalLM.load(tmp_path / name).state_dict() for name in ("whole", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_fresh_student_has_the_shape_asked_for_and_the_teachers_vocabulary(small: Path, tmp_path: Path) -> None:
    settings = settings_of(small, model="nowhere", student={"num_hidden_layers": 1, "hidden_size": 8}, steps=1)
    assert "model" not in settings.taken()
    logits.build(settings, tmp_path / "small")
    config = CausalLM.load(tmp_path / "small").config
    teacher = CausalLM.load(small / "teacher").config
    assert (config.num_hidden_layers, config.hidden_size) == (1, 8)
    assert (config.vocab_size, config.kv_lora_rank) == (teacher.vocab_size, teacher.kv_lora_rank)
    shape = {"preset": "quickstart", "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    preset = logits.student_config(settings_of(small, student=shape), small / "teacher")
    assert (preset.model_type, preset.vocab_size, preset.num_nextn_predict_layers) == (
        "deepseek_v3",
        teacher.vocab_size,
        0,
    )
    with pytest.raises(UserError, match=r'student: unknown setting "layers"'):
        logits.build(settings_of(small, student={"layers": 2}), tmp_path / "other")
    with pytest.raises(UserError, match="it has the teacher's"):
        logits.build(settings_of(small, student={"vocab_size": 5}), tmp_path / "other")


def test_another_vocabulary_is_refused_with_where_it_differs_and_not_by_size_alone(small: Path, tmp_path: Path) -> None:
    other = Tokenizer.train(["wholly other words to merge, of another kind " * 5], tokenizer_of_size(small))
    assert other.vocab_size == Tokenizer.load(small / "teacher").vocab_size
    save_model(tmp_path / "student", other, num_hidden_layers=1)
    with pytest.raises(
        UserError, match=r"tokenizer is not that of the teacher .*\d+ of 300 tokens differ, the first is 275: b'"
    ):
        logits.build(settings_of(small, model=str(tmp_path / "student")), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))

    # A control token by another name is another token.
    spec = json.loads((small / "teacher" / "tokenizer.json").read_text())
    save_model(tmp_path / "renamed", Tokenizer.load(small / "teacher"), num_hidden_layers=1)
    text = json.dumps(spec, ensure_ascii=False).replace("<｜fim▁hole｜>", "<｜fim▁gap｜>")
    (tmp_path / "renamed" / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="1 of 300 tokens differ, the first is 8: '<｜fim▁hole｜>' for the teacher"):
        logits.build(settings_of(small, model=str(tmp_path / "renamed")), tmp_path / "out")


def tokenizer_of_size(small: Path) -> Any:
    from tinyseek.text.tokenizer import TokenizerSettings

    return TokenizerSettings(vocab_size=Tokenizer.load(small / "teacher").vocab_size)


def test_a_padded_vocabulary_is_the_same_vocabulary(small: Path, tmp_path: Path) -> None:
    """Rows beyond the tokenizer's, of which published models have more or fewer."""
    tokenizer = Tokenizer.load(small / "teacher")
    for width in (-4, 7):
        save_model(tmp_path / "wide", tokenizer, vocab_size=tokenizer.vocab_size + 7, initializer_range=0.5)
        save_model(tmp_path / "slim", tokenizer, seed=1, vocab_size=tokenizer.vocab_size + 7 + width)
        for number, more in enumerate(({}, {"top_k": 4}, {"divergence": "reverse_kl"})):
            settings = settings_of(small, teacher=str(tmp_path / "wide"), model=str(tmp_path / "slim"), steps=2, **more)
            logits.build(settings, tmp_path / f"out{width}{number}")
            figures = read_records(tmp_path / f"out{width}{number}" / "metrics.jsonl")
            assert all(np.isfinite(record["loss"]) for record in figures)


def test_what_does_not_fit_together_is_refused(small: Path, tmp_path: Path) -> None:
    for changes, words in {
        "teacher": ({"teacher": "http://127.0.0.1:1/v1"}, "does not tell the probabilities of all tokens"),
        "lora": ({"student": {}, "lora": {}}, "nothing to lay an adapter on"),
        "top_k": ({"top_k": 4, "on_policy": 0.5}, "leave out one"),
        "ce": ({"ce_weight": 1.0}, "learns nothing from the teacher"),
    }.values():
        with pytest.raises(UserError, match=words):
            settings_of(small, **changes)
    save_model(tmp_path / "short", tokenizer_of(), max_position_embeddings=32)
    with pytest.raises(UserError, match=r"the teacher .* has a context of 32; lower seq_len"):
        logits.build(settings_of(small, teacher=str(tmp_path / "short")), tmp_path / "out")
    with pytest.raises(UserError, match="no example is left"):
        logits.build(settings_of(small, seq_len=2), tmp_path / "out")


def test_an_adapter_learns_too(small: Path, tmp_path: Path) -> None:
    logits.build(settings_of(small, lora={"rank": 2}, on_policy=0.5, max_completion_length=4), tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
