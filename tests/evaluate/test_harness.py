"""lm-eval's tasks on our forward pass and engine, held against lm-eval's own transformers backend, question by question."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import CONFIGS

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.evaluate.loglikelihood import likelihoods
from tinyseek.evaluate.options import HarnessSettings
from tinyseek.model.config import ModelConfig
from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings

CONTEXT = 96
LINES = [
    "In the beginning there was a river, and by the river stood a house.",
    "The weather in Paris is mild; the weather in Oslo is cold.",
    "小梅喜欢吃苹果，也喜欢在河边散步。",
]
LONG = " ".join(LINES * 12)  # several windows of the context


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = Tokenizer.train([*LINES * 20, "<think>thought</think>"], TokenizerSettings(vocab_size=420))
    config = ModelConfig(
        model_type="llama", vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, max_position_embeddings=CONTEXT, initializer_range=0.3,
        bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
    )  # fmt: skip
    torch.manual_seed(0)
    CausalLM(config).save(where)
    tokenizer.save(where)
    return where


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tasks on this disk of every kind that lm-eval knows: choices, likelihood of texts, answers that are written."""
    where = tmp_path_factory.mktemp("tasks")
    rng = random.Random(0)
    words = ("river", "house", "weather", "苹果", " x", " y", "Oslo", "mild and cold", LINES[0] * 3)
    rows = []
    for number in range(14):
        choices = rng.sample(words, 4)
        text = LONG[number * 10 :] if number % 5 == 4 else rng.choice(LINES)[: rng.randint(0, 30)]
        rows.append({"text": text, "choices": choices, "label": rng.randrange(4)})
    (where / "rows.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    lines = [*LINES, LONG, "", "<｜end▁of▁sentence｜>"]
    (where / "lines.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines), encoding="utf-8")
    head = "dataset_path: json\ntest_split: test\nfewshot_split: test\nvalidation_split: null\n"

    def data(name: str) -> str:
        return f"{head}dataset_kwargs:\n  data_files:\n    test: {where / name}\n"

    (where / "words.yaml").write_text(
        f"task: words\n{data('rows.jsonl')}output_type: multiple_choice\n"
        'doc_to_text: "{{text}}"\ndoc_to_target: label\ndoc_to_choice: choices\n'
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    )
    (where / "texts.yaml").write_text(
        f'task: texts\n{data("lines.jsonl")}output_type: loglikelihood_rolling\ndoc_to_text: ""\n'
        'doc_to_target: "{{text}}"\nmetric_list:\n  - metric: bits_per_byte\n'
    )
    (where / "answers.yaml").write_text(
        f"task: answers\n{data('rows.jsonl')}output_type: generate_until\n"
        'doc_to_text: "{{text}}"\ndoc_to_target: "{{choices[label]}}"\nnum_fewshot: 1\n'
        'generation_kwargs:\n  until: ["e", "\\n"]\n  max_gen_toks: 9\n  do_sample: false\n'
        "metric_list:\n  - metric: exact_match\n"
    )
    return {name: str(where / f"{name}.yaml") for name in ("words", "texts", "answers")}


def flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [number for entry in value for number in flat(entry)]
    return [value]


@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True])
def test_equal_to_lm_evals_own_backend(
    folder: Path, tasks: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat: bool
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    from tinyseek.evaluate.harness import evaluate

    chosen = ["words", "answers"] if chat else list(tasks)
    settings = HarnessSettings(chat=chat, drop_thought=False, system="Be brief." if chat else None)
    evaluate({"tiny": folder}, [tasks[name] for name in chosen], settings, tmp_path / "made")
    samples = [json.loads(line) for line in (tmp_path / "made" / "samples.jsonl").read_text("utf-8").splitlines()]
    results = json.loads((tmp_path / "made" / "results.json").read_text("utf-8"))["tiny"]["results"]
    own = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32", "device": "cpu", "max_length": CONTEXT},
        tasks=[tasks[name] for name in chosen],
        task_manager=TaskManager(include_defaults=False),
        log_samples=True,
        bootstrap_iters=1000,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        system_instruction="Be brief." if chat else None,
        random_seed=0,
        numpy_random_seed=0,
        torch_random_seed=0,
        fewshot_random_seed=0,
    )
    for task in chosen:
        ours = [sample for sample in samples if sample["task"] == task]
        assert len(ours) == len(own["samples"][task]) > 3
        for mine, theirs in zip(ours, own["samples"][task], strict=True):
            assert mine["arguments"] == json.loads(json.dumps(theirs["arguments"], default=str)) or task == "answers"
            numbers, expected = flat(mine["filtered_resps"]), flat(theirs["filtered_resps"])
            if task == "answers":
                assert numbers == expected
                continue
            assert len(numbers) == len(expected)
            for number, wanted in zip(numbers, expected, strict=True):
                assert float(number) == pytest.approx(float(wanted), abs=2e-3)
        for metric, value in own["results"][task].items():
            if isinstance(value, float):
                assert results[task][metric] == pytest.approx(value, abs=1e-4), (task, metric)
    figures = artifact.read(tmp_path / "made").figures["tiny"]
    assert figures["words.acc"] == own["results"]["words"]["acc,none"]


def test_likelihoods_are_what_the_whole_distribution_says() -> None:
    """Against log_softmax over each text alone; some contexts are cut, some continuations differ in their last token alone."""
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    torch.manual_seed(1)
    for name in ("mla", "gpt2"):
        model = CausalLM(CONFIGS[name]).double().train()
        vocabulary, limit = model.config.vocab_size, 20
        contexts = [[rng.randrange(vocabulary) for _ in range(rng.randint(1, 40))] for _ in range(6)]
        pairs = []
        for context in contexts:
            stem = [rng.randrange(vocabulary) for _ in range(rng.randint(0, 6))]
            pairs += [(context, [*stem, last]) for last in rng.sample(range(vocabulary), 4)]
            pairs.append((context, [rng.randrange(vocabulary) for _ in range(rng.randint(1, limit))]))
        rng.shuffle(pairs)
        done: list[int] = []
        found = likelihoods(model, pairs, limit, done.append)
        assert done[-1] == len(pairs)
        assert model.training
        model.eval()
        for (context, continuation), (logprob, greedy) in zip(pairs, found, strict=True):
            ids = [*context, *continuation][-(limit + 1) :]
            with torch.no_grad():
                scores = model(torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)[-len(continuation) :]
            wanted = scores[range(len(continuation)), continuation].sum().item()
            assert logprob == pytest.approx(wanted, abs=1e-5)
            assert greedy == (scores.argmax(-1).tolist() == continuation)
    with pytest.raises(ValueError, match="pair 0"):
        likelihoods(model, [([1], [2] * 21)], limit)


def test_thoughts_are_left_out_of_generated_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from tinyseek.evaluate import harness
    from tinyseek.evaluate.answers import Written

    def write(_model: Any, _tokenizer: Any, jobs: Any, **_: Any) -> list[list[Written]]:
        asked.append(jobs)
        return [[Written([1], "<think>a\nb</think>\n\nseven\nand on", True)] for _ in jobs]

    asked: list[Any] = []
    monkeypatch.setattr(harness, "write", write)
    model, tokenizer = CausalLM.load(folder), Tokenizer.load(folder)
    request = Instance("generate_until", {}, ("How many?", {"until": ["\n"], "max_gen_toks": 30}), 0)
    request.metadata = ("t", 0, 1)
    for drop, answer, stops in ((True, "seven", ()), (False, "<think>a", ("\n", tokenizer.decode([tokenizer.eos_id])))):
        ours = harness.OurModel(model, tokenizer, HarnessSettings(drop_thought=drop), "tiny")
        assert ours.generate_until([request]) == [answer]
        ((_, params),) = asked[-1]
        assert (params.stop, params.max_tokens, params.temperature) == (stops, 30, 0.0)
    long = Instance("generate_until", {}, ("How many?", {"max_gen_toks": CONTEXT}), 0)
    with pytest.raises(UserError, match=f"answers of up to {CONTEXT} tokens, but the model sees {CONTEXT}"):
        ours.generate_until([long])


def test_what_is_not_there_is_named(folder: Path, tasks: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from tinyseek.evaluate.harness import evaluate

    with pytest.raises(UserError, match=r"none\.yaml: no such file"):
        evaluate({"tiny": folder}, ["none.yaml"], HarnessSettings(), tmp_path / "made")
    gone = tmp_path / "gone.yaml"
    gone.write_text(Path(tasks["words"]).read_text().replace("rows.jsonl", "nowhere.jsonl"))
    with pytest.raises(UserError, match=r"gone\.yaml: the data of this task could not be had .*nowhere\.jsonl"):
        evaluate({"tiny": folder}, [str(gone)], HarnessSettings(), tmp_path / "made")
    assert not (tmp_path / "made").exists()
