"""The engine samples from the very weights that are trained: it sees each kind of change, and leaves them fit to be trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rl_toys import make
from small_models import fresh

from tinyseek.model import lora
from tinyseek.model.lora_config import LoraConfig
from tinyseek.model.loss import token_logprobs
from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.train.optim import make_optimizer
from tinyseek.train.options import TrainSettings
from tinyseek.tune.rl.asking import Lesson, lay_out
from tinyseek.tune.rl.policy import hidden
from tinyseek.tune.rl.rollouts import Answer, Rollouts, message_of

CPU = torch.device("cpu")
PROMPTS = [[int(i) for i in np.random.default_rng(n).integers(0, 97, 4 + 9 * n)] for n in range(4)]
SEEDS = [3, 1, 4, 1]


class Stops:
    """As much of a tokenizer as sampling asks for."""

    stop_ids = (7, 50)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rollouts(model: CausalLM, temperature: float = 1.0) -> Rollouts:
    return Rollouts(model, Stops(), max_tokens=12, temperature=temperature)  # type: ignore[arg-type]


def lessons(prompts: list[list[int]], answers: list[list[Answer]]) -> list[Lesson]:
    return [
        Lesson(prompt, answer, {"sampled": np.array(answer.logps)})
        for prompt, group in zip(prompts, answers, strict=True)
        for answer in group
    ]


def gap(model: CausalLM, answers: list[list[Answer]]) -> float:
    """The largest difference between what the engine said of the tokens and what the trainer says, with gradients on."""
    micro = lay_out(lessons(PROMPTS, answers), ["sampled"], CPU)
    logps_M, _ = token_logprobs(hidden(model, micro), model.lm_head.weight, micro.targets_M)
    logps_M.sum().backward()
    off = (logps_M.detach() - micro.at_M["sampled"]).abs()
    return float(off[~off.isnan()].max())


def same(one: list[list[Answer]], other: list[list[Answer]]) -> bool:
    return [[a.ids for a in group] for group in one] == [[a.ids for a in group] for group in other]


@pytest.mark.parametrize("name", ["llama-gqa", "qwen2-window", "mla", "mla-q-lora-yarn-groups", "gpt2", "sinusoidal"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_engine_sees_updates_and_the_trainer_still_trains(name: str, optimizer: str) -> None:
    model = fresh(name).train()
    sampling = rollouts(model)
    step = make_optimizer(model, TrainSettings.read({"lr": 0.03, "optimizer": optimizer}))
    before = sampling.sample(PROMPTS, 3, SEEDS)
    for _ in range(3):
        answers = sampling.sample(PROMPTS, 3, SEEDS)
        assert model.training
        assert gap(model, answers) < 1e-3
        assert all(p.grad is not None for n, p in model.named_parameters() if not n.startswith("mtp."))
        step.step()
        step.zero_grad()
        model.update_balance()  # moves the experts' biases
    after = sampling.sample(PROMPTS, 3, SEEDS)
    assert not same(before, after)
    # A model of its own with these weights, and an engine that knows nothing of what was before.
    copy = fresh(name)
    copy.load_state_dict(model.state_dict())
    assert same(rollouts(copy).sample(PROMPTS, 3, SEEDS), after)


def test_the_engines_memory_is_the_models_own() -> None:
    """No copy: a number that is changed in a weight is changed for the engine."""
    model = fresh("mla")
    sampling = rollouts(model)
    before = sampling.sample(PROMPTS, 2, SEEDS)
    addresses = {name: p.data_ptr() for name, p in model.named_parameters()}
    with torch.no_grad():
        for _, mixture in model.experts():
            mixture.gate.e_score_correction_bias += torch.tensor([5.0, 0.0, 0.0, 5.0])
    after = sampling.sample(PROMPTS, 2, SEEDS)
    assert not same(before, after)
    assert addresses == {name: p.data_ptr() for name, p in model.named_parameters()}
    assert gap(model, after) < 1e-3


@pytest.mark.parametrize("base", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_take_part_and_stay_apart(base: str, dora: bool) -> None:
    model = fresh("mla").train()
    plain = rollouts(fresh("mla")).sample(PROMPTS, 2, SEEDS)
    lora.add_lora(model, LoraConfig(rank=4, targets=["*"], dora=dora), base)  # type: ignore[arg-type]
    for change in lora.changes(model).values():
        torch.nn.init.normal_(change.lora_B, 0, 0.3)
    held = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sampling = rollouts(model)
    answers = sampling.sample(PROMPTS, 2, SEEDS)
    assert not same(plain, answers)
    assert gap(model, answers) < 1e-3
    assert lora.is_adapted(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, held[name]), name
    assert all(p.grad is not None for _, p in lora.trained(model))
    for _, parameter in lora.trained(model):  # an update of the adapter is seen
        parameter.data -= 0.05 * parameter.grad.sign()  # type: ignore[union-attr]
    moved = sampling.sample(PROMPTS, 2, SEEDS)
    assert not same(moved, answers)
    assert gap(model, moved) < 1e-3


def test_answers_depend_on_their_own_seed_alone() -> None:
    model = fresh("mla")
    together = rollouts(model).sample(PROMPTS, 3, SEEDS)
    for at in range(len(PROMPTS)):
        assert same(rollouts(model).sample([PROMPTS[at]], 3, [SEEDS[at]]), [together[at]])
    greedy = rollouts(model).sample(PROMPTS, 2, SEEDS, greedy=True)
    assert all(group[0].ids == group[1].ids for group in greedy)
    assert any(answer.finished for group in together for answer in group)
    assert all(answer.finished == (answer.ids[-1] in Stops.stop_ids) for group in together for answer in group)
    assert rollouts(model).sample([], 3, []) == []


def test_an_answer_as_a_message(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(make(tmp_path) / "base")
    said = [*tokenizer.encode("how many")]
    think, thought = tokenizer.token_id("<think>"), tokenizer.token_id("</think>")
    assert think is not None
    assert thought is not None
    ended = Answer([think, *said, thought, *said, tokenizer.eos_id], [], True)
    assert message_of(tokenizer, ended)["content"] == "<think>how many</think>how many"
    assert message_of(tokenizer, Answer([think, *said], [], False))["content"] == "<think>how many"
    assert message_of(tokenizer, Answer([*said, thought, *said], [], False), opened=True)["content"] == (
        "<think>how many</think>how many"
    )
    call = '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    message = message_of(tokenizer, Answer(tokenizer.encode(f"Ann{call}", specials=True), [], False))
    assert message["content"] == "Ann"
    assert message["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
