"""GRPO and PPO as stages: they learn, they resume bit for bit, several processes are as one, and what is bad input is told."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rl_toys import KILLED, grpo_settings, killed_child, make, ppo_settings
from safetensors.torch import load_file

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.model.transformer import CausalLM
from tinyseek.run import why_build
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.train import metrics
from tinyseek.tune.rl import grpo, ppo
from tinyseek.tune.rl.asking import SAMPLES, read_questions
from tinyseek.tune.rl.grpo import Grpo
from tinyseek.tune.rl.rewards import RewardSet

CPU = torch.device("cpu")
TESTS = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("rl"))


def records(folder: Path) -> list[dict[str, Any]]:
    try:
        return metrics.read_records(folder / metrics.METRICS)
    except FileNotFoundError:  # between the look whether it is there and the reading
        return []


@pytest.mark.parametrize(
    "variant", [{}, {"loss": "dapo", "epsilon_high": 0.28, "dynamic_sampling": 2}, {"lora": {}, "lr": 0.05}]
)
def test_grpo_makes_what_is_rewarded_likelier(made: Path, tmp_path: Path, variant: dict[str, Any]) -> None:
    settings = grpo_settings(
        made, steps=16, batch_size=8, num_generations=8, val_fraction=0.2, show_every=10, **variant
    )
    grpo.build(settings, tmp_path / "out")
    told = records(tmp_path / "out")
    early, late = (np.mean([record["reward"] for record in part]) for part in (told[:4], told[-4:]))
    assert late > early + 0.5, (early, late)  # of 256 answers each, whose standard error is 0.1
    assert told[-1]["val_reward/sampled"] > early
    assert max(record["sampling/logp_difference/max"] for record in told) < 1e-3
    assert artifact.read(tmp_path / "out").kind == "grpo"
    samples = [json.loads(line) for line in (tmp_path / "out" / SAMPLES).read_text().splitlines()]
    assert [sample["step"] for sample in samples[::8]] == list(range(1, 17))
    assert samples[0].keys() >= {"prompt", "completion", "reward", "rewards", "advantage", "tokens", "finished"}
    if "lora" in variant:
        assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_ppo_makes_what_is_rewarded_likelier(made: Path, tmp_path: Path) -> None:
    settings = ppo_settings(made, steps=24, batch_size=16, num_generations=4, minibatches=2, vf_coef=0.5)
    ppo.build(settings, tmp_path / "out")
    told = records(tmp_path / "out")
    early, late = (np.mean([record["reward"] for record in part]) for part in (told[:5], told[-5:]))
    assert late > early + 0.5, (early, late)
    assert told[0]["objective/kl"] == 0.0
    assert told[-1]["objective/kl"] > 0
    assert told[0]["value/explained_variance"] == 0.0  # it expects nothing yet
    assert artifact.read(tmp_path / "out").kind == "ppo"
    CausalLM.load(tmp_path / "out")


# ---- what a batch is made of -----------------------------------------------------------------------------------------------------


def objective(made: Path, **changes: Any) -> Grpo:
    settings = grpo_settings(made, **changes)
    tokenizer = Tokenizer.load(made / "base")
    rewards = RewardSet.of(settings.reward_options(), on_error=settings.on_reward_error)
    model = CausalLM.load(made / "base").train()
    return Grpo(model, tokenizer, read_questions(settings, tokenizer), rewards, settings, made / "work")


def gradient(asking: Grpo, batch: Any) -> dict[str, torch.Tensor]:
    model = asking.rollouts.model
    model.zero_grad()
    for update in batch.updates:
        for micro in update.micro:
            asking.losses(model, micro, update)["total"].backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_groups_that_are_alike_are_counted_and_not_run(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The update is what it would be with them: they have no gradient, but count in every mean."""
    for loss in ("grpo", "dapo", "dr_grpo"):
        asking = objective(made, loss=loss)
        heard = asking.ask(asking.questions.train[:4], [1, 2, 3, 4], 4)
        heard.rewards_PG[:] = np.arange(16).reshape(4, 4) % 3
        heard.rewards_PG[1] = 0.7
        monkeypatch.setattr(asking, "asked", lambda _, heard=heard: heard)
        batch = asking.fetch(np.arange(4), 1, CPU)
        assert batch.figures["frac_reward_zero_std"] == 0.25
        assert batch.updates[0].items == 16
        assert batch.updates[0].targets == sum(len(answer.ids) for group in heard.answers for answer in group)
        assert batch.updates[0].learned < batch.updates[0].targets
        skipped = gradient(asking, batch)
        real = grpo.group_advantages

        def nearly(*args: Any, real: Any = real) -> Any:  # so small that it is as good as none, but run
            advantages, equal = real(*args)
            advantages[equal] = 1e-30
            return advantages, equal

        with monkeypatch.context() as patch:
            patch.setattr(grpo, "group_advantages", nearly)
            batch = asking.fetch(np.arange(4), 1, CPU)
        assert batch.updates[0].learned == batch.updates[0].targets
        for name, whole in gradient(asking, batch).items():
            torch.testing.assert_close(skipped[name], whole, atol=1e-6, rtol=1e-4, msg=name)
        asking.rewards.close()


def test_all_alike_or_nothing_told_is_no_nan(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = made / "odd.py"
    file.write_text(
        "def flat(completions):\n    return [0.3] * len(completions)\ndef bad(completions):\n    raise KeyError('x')\n"
    )
    before = CausalLM.load(made / "base").state_dict()
    for build, settings_of in ((grpo.build, grpo_settings), (ppo.build, ppo_settings)):
        for name in ("flat", "bad"):
            if (name, build) == ("flat", ppo.build):
                continue  # an answer that beats what was expected of it is learned from
            out = tmp_path / f"{name}-{build.__module__}"
            build(settings_of(made, steps=2, rewards={f"{file}:{name}": 1.0}), out)
            for record in records(out):
                assert all(np.isfinite(value) for value in record.values() if isinstance(value, float))
                assert record["loss"] == 0.0
                assert record.get("frac_reward_zero_std", 1.0) == 1.0
                assert record.get("rewards/bad/errors", 0) == (16 if name == "bad" else 0)
            assert "mtp" not in name
            for key, weight in CausalLM.load(out).state_dict().items():
                if "e_score_correction_bias" not in key:
                    assert torch.equal(weight, before[key]), key
    assert "reward bad: KeyError: 'x' (odd.py, line 4)" in capsys.readouterr().err
    with pytest.raises(UserError, match="reward bad: KeyError"):
        grpo.build(grpo_settings(made, rewards={f"{file}:bad": 1}, on_reward_error="stop"), tmp_path / "stops")
    assert not (tmp_path / "stops").exists()


def test_another_reward_function_makes_another_model(made: Path, tmp_path: Path) -> None:
    """A function of the user's own is known by its file's content; one edited during a run is the next run's."""
    file = tmp_path / "mine.py"
    file.write_text("def short(completions, **columns):\n    return [-len(c[0]['content']) for c in completions]\n")
    changes = {"rewards": {f"{file}:short": 1.0}, "steps": 1}
    settings = grpo_settings(made, **changes)
    assert why_build(settings, tmp_path / "out") == "not built yet"
    grpo.build(settings, tmp_path / "out")
    assert not why_build(grpo_settings(made, **changes), tmp_path / "out")
    file.write_text("def short(completions, **columns):\n    return [0.0] * len(completions)\n")
    assert not why_build(settings, tmp_path / "out")
    assert f"reward_files.{file} was sha256" in why_build(grpo_settings(made, **changes), tmp_path / "out")


def test_dynamic_sampling_asks_others_in_their_place(made: Path) -> None:
    asking = objective(made, dynamic_sampling=3, loss="dapo")
    real, calls = asking.ask, []

    def ask(questions: Any, seeds: Any, each: int, **more: Any) -> Any:
        heard = real(questions, seeds, each, **more)
        calls.append(len(questions))
        heard.rewards_PG[: len(questions) // 2 + (len(calls) == 1)] = 1.0  # the first of them are all alike
        return heard

    asking.ask = ask  # type: ignore[method-assign]
    batch = asking.fetch(np.arange(4), 1, CPU)
    assert calls == [4, 3, 1]  # of four three are alike; of three others one; then one is asked for it
    assert batch.figures["frac_reward_zero_std"] == 0.0
    assert batch.figures["dynamic_sampling/asked"] == 8
    assert batch.updates[0].items == 16
    asking.rewards.close()


def test_micro_batches_and_minibatches_change_nothing_that_they_should_not(made: Path) -> None:
    gradients = []
    for changes, accumulate in (({}, 1), ({"tokens_at_once": 30}, 1), ({}, 4)):
        asking = objective(made, **changes)
        batch = asking.fetch(np.arange(4), accumulate, CPU)
        assert len(batch.updates[0].micro) >= accumulate
        gradients.append(gradient(asking, batch))
        asking.rewards.close()
    for other in gradients[1:]:
        for name, whole in gradients[0].items():
            torch.testing.assert_close(other[name], whole, atol=1e-6, rtol=1e-4, msg=name)
    asking = objective(made, minibatches=3, num_iterations=2)
    batch = asking.fetch(np.arange(4), 1, CPU)
    assert [update.items for update in batch.updates] == [8, 4, 4] * 2
    asking.rewards.close()


def test_bad_input_is_told(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_generations=1: an answer is measured by the others"):
        grpo_settings(made, num_generations=1)
    with pytest.raises(UserError, match="max_completion_length=40 leaves no room for a prompt in seq_len=40"):
        grpo_settings(made, max_completion_length=40)
    with pytest.raises(UserError, match="minibatches=5 of whole prompts"):
        grpo_settings(made, minibatches=5)
    with pytest.raises(UserError, match=r'wants the column "answer".*there are: bonus'):
        grpo.build(grpo_settings(made, rewards={"exact_answer": 1.0}), tmp_path / "out")
    with pytest.raises(UserError, match="no prompt is left to ask; 40 are longer than 3 tokens"):
        grpo.build(grpo_settings(made, max_completion_length=37), tmp_path / "out")
    with pytest.raises(UserError, match="context of 64"):
        grpo.build(grpo_settings(made, seq_len=70), tmp_path / "out")
    assert not list(tmp_path.iterdir())


# ---- stopped, killed, in several processes ---------------------------------------------------------------------------------------


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Processes out of a server that has imported torch once, rather than once a kill."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))  # the server looks there alone for what to import
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rl_toys"])
    return context


@pytest.mark.slow
@pytest.mark.parametrize("which", KILLED)
def test_killed_at_any_moment_and_resumed_gives_the_same_bits(
    made: Path, tmp_path: Path, which: str, forked: Any
) -> None:
    """kill -9 at moments drawn at random: while answers are sampled, while they are learned from, in a checkpoint."""
    seed = int(os.environ.get("TINYSEEK_TEST_SEED", time.time_ns() % 10**6))
    print(f"seed {seed}")
    rng = random.Random(seed)
    killed_child(str(made), str(tmp_path / "never"), which)
    out, kills, most = tmp_path / "out", 0, 2 if which == "grpo" else 1
    work = tmp_path / "out.work"
    while True:
        last = records(work)[-1]["step"] if records(work) else 0
        process = forked.Process(target=killed_child, args=(str(made), str(out), which))
        process.start()
        goal = last + rng.randint(2, 6) if kills < most else 10**9
        while process.is_alive() and (not (seen := records(work)) or seen[-1]["step"] < goal):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        if not process.is_alive():
            break
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        kills += 1
    process.join()
    assert process.exitcode == 0
    assert kills == most
    files = sorted(p.relative_to(out) for p in out.rglob("*.safetensors"))
    assert files == sorted(p.relative_to(tmp_path / "never") for p in (tmp_path / "never").rglob("*.safetensors"))
    for file in files:
        whole, resumed = load_file(tmp_path / "never" / file), load_file(out / file)
        assert whole.keys() == resumed.keys()
        for name, tensor in whole.items():
            assert torch.equal(tensor, resumed[name]), (file, name)
    assert (out / SAMPLES).read_text() == (tmp_path / "never" / SAMPLES).read_text()
    tables = []
    for folder in (tmp_path / "never", out):
        assert [record["step"] for record in records(folder)] == list(range(1, KILLED[which]["steps"] + 1))
        timed = ("seconds", "tokens_per_s")
        tables.append([{k: v for k, v in record.items() if not k.startswith(timed)} for record in records(folder)])
    assert tables[0] == tables[1]


spec = importlib.util.spec_from_file_location("test_parallel_of_train", TESTS / "train" / "test_parallel.py")
assert spec is not None
assert spec.loader is not None
test_parallel = importlib.util.module_from_spec(spec)
spec.loader.exec_module(test_parallel)


BOTH = {"steps": 3, "batch_size": 5, "num_generations": 3, "val_fraction": 0.2, "optimizer": "sgd"}
VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": BOTH,
    "batch": BOTH | {"scale_rewards": "batch", "loss": "dapo", "beta": 0.1, "num_iterations": 2},
    "ppo": BOTH,
}


@pytest.mark.slow
def test_two_processes_learn_as_one_does(made: Path, tmp_path: Path) -> None:
    """Five prompts a batch: three in one process, two in the other. The same answers, rewards, figures and weights."""
    code = f"""
from pathlib import Path
import torch
torch.set_num_threads(1)
from rl_toys import grpo, grpo_settings, ppo, ppo_settings
for name, changes in {VARIANTS!r}.items():
    build, settings = (ppo.build, ppo_settings) if name == "ppo" else (grpo.build, grpo_settings)
    build(settings(Path({str(made)!r}), **changes), Path({str(tmp_path)!r}) / name)
"""
    ended = test_parallel.together(code, 2)
    assert [process.returncode for process in ended] == [0, 0], [process.stderr[-2500:] for process in ended]
    start = CausalLM.load(made / "base").state_dict()
    for variant, changes in VARIANTS.items():
        build, settings_of = (ppo.build, ppo_settings) if variant == "ppo" else (grpo.build, grpo_settings)
        build(settings_of(made, **changes), tmp_path / "one" / variant)
        alone, shared = (
            CausalLM.load(folder).state_dict() for folder in (tmp_path / "one" / variant, tmp_path / variant)
        )
        assert any(not torch.equal(weight, start[name]) for name, weight in alone.items())
        for name, weight in alone.items():
            torch.testing.assert_close(shared[name], weight, atol=1e-6, rtol=1e-4, msg=name)
        for one, two in zip(records(tmp_path / "one" / variant), records(tmp_path / variant), strict=True):
            for name, value in one.items():
                if name.startswith(
                    ("seconds", "tokens_per_s", "sampling/", "completions/max", "value/", "expert_load")
                ):
                    continue  # times, and what the first process tells of its own share
                assert two[name] == pytest.approx(value, abs=1e-5), name
