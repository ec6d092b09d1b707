"""GRPO beside TRL's GRPOTrainer: answers learned from, a second, on the same model, prompts, rewards and lengths.

Each side is the whole of it as a user starts it, in a process of its own: sampling, rewards, advantages, the loss and the update
(dapo, no KL). TRL is measured as it comes (bfloat16, gradient checkpointing), and in float32 without checkpointing, which is its
fastest on a CPU without matrix units. With --model a fine-tuned model answers its tasks; without, a fresh one of 26M parameters
rambles to the longest answer, and a coin is its reward, so that every answer is learned from.

python benchmarks/grpo.py [--model runs/r1-in-miniature/sft --data runs/r1-in-miniature/practice] [--prompts 32] [--clock cpu]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table

SIDES = {
    "tinyseek": "tinyseek",
    "trl": "TRL as it comes (bf16, checkpointing)",
    "trl-float32": "TRL, float32, no checkpointing",
}
RATE = 1e-4
REWARDS = """
import zlib
from tinyseek.tune.rl.shipped import exact_answer as exact

def coin(completions, **columns):
    return [float(zlib.crc32(c[0]["content"].encode()) % 2) for c in completions]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a fine-tuned model's folder; else a fresh one of the preset mini")
    parser.add_argument("--data", type=Path, help="prompts with answers; else arithmetic")
    parser.add_argument("--prompts", type=int, default=32, help="a step")
    parser.add_argument("--generations", type=int, default=8, help="answers to each prompt")
    parser.add_argument("--longest", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--reward", choices=["exact", "coin"], help="exact with --model, else a coin")
    parser.add_argument("--steps", type=int, default=3, help="measured steps; one more goes before them")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: where other programs are at work"
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.reward = arguments.reward or ("exact" if arguments.model else "coin")
    if arguments.side:
        run = ours if arguments.side == "tinyseek" else theirs
        print(json.dumps(run(arguments, arguments.work)))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare(arguments, work)
        found = {side: apart(side, arguments, work) for side in arguments.sides}
    show(found, arguments)


def prepare(arguments: argparse.Namespace, work: Path) -> None:
    """The model, the prompts and the rewards, in WORK."""
    import torch

    from tinyseek.model.presets import from_preset
    from tinyseek.model.transformer import CausalLM
    from tinyseek.text.datasets import find_data
    from tinyseek.text.tasks import TaskSettings, generate
    from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings

    count = arguments.prompts * (arguments.steps + 1)
    if arguments.data:
        source = find_data(arguments.data).examples("prompt")
        rows = [
            {"prompt": p.messages, "answer": p.columns.get("answer")}
            for p, _ in zip(source, range(count), strict=False)
        ]
    else:
        tasks = generate(TaskSettings.read({"train": {"arithmetic": count}, "heldout": {}, "dialogues": 0})).train
        rows = [{"prompt": task["messages"][:1], "answer": task["answer"]} for task in tasks]
    if len(rows) < count:
        sys.exit(f"{arguments.data}: {len(rows)} prompts, and {count} are needed")
    (work / "prompts.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    (work / "mine.py").write_text(REWARDS)
    if arguments.model:
        (work / "model").symlink_to(arguments.model.resolve())
        return
    texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    tokenizer = Tokenizer.train(texts, TokenizerSettings(vocab_size=6400))
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    CausalLM(from_preset("mini", ends)).save(work / "model")
    tokenizer.save(work / "model")


def apart(side: str, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """One side's figures, out of a process of its own."""
    threads = str(arguments.threads)
    command = [sys.executable, __file__, "--side", side, "--work", str(work), "--threads", threads]
    for name in ("prompts", "generations", "longest", "reward", "steps", "clock"):
        command += [f"--{name}", str(getattr(arguments, name))]
    command += ["--model", str(arguments.model)] if arguments.model else []
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def show(found: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> None:
    """A table for people, one JSON line for machines."""
    title = f"GRPO of {arguments.model or 'a fresh mini'}: {arguments.prompts} prompts x {arguments.generations} a step"
    table = Table(title=f"{title}, {arguments.clock} time, {arguments.threads} threads")
    columns = (
        "side",
        "samples/s",
        "seconds a step",
        "tokens an answer",
        "reward",
        "engine and trainer differ",
        "tinyseek is",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "side" else "right")
    rates = {side: statistics.median(figures["rates"]) for side, figures in found.items()}
    for side, figures in found.items():
        ratio = f"{rates['tinyseek'] / rates[side]:.2f}x" if "tinyseek" in rates else "-"
        gap = f"{figures['gap']:.1e}" if figures["gap"] is not None else "-"
        seconds = f"{statistics.median(figures['seconds']):.2f}"
        length, reward = (
            f"{statistics.mean(figures[name]):.{digits}f}" for name, digits in (("lengths", 1), ("rewards", 3))
        )
        alike = f"{statistics.mean(figures['alike']):.0%}"
        table.add_row(SIDES[side], f"{rates[side]:,.1f}", seconds, length, reward, alike, gap, ratio)
    Console(width=150).print(table)
    ratios = {side: round(rates["tinyseek"] / rate, 3) for side, rate in rates.items()} if "tinyseek" in rates else {}
    line = {"benchmark": "grpo", "unit": "samples/s", "medians": {side: round(rate, 2) for side, rate in rates.items()}}
    sizes = {
        name: getattr(arguments, name) for name in ("prompts", "generations", "longest", "clock", "threads", "reward")
    }
    print(json.dumps(line | {"ratios": ratios, "gap": found.get("tinyseek", {}).get("gap"), **sizes}))


# ---- the sides -------------------------------------------------------------------------------------------------------------------


def ours(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The stage `grpo`, by its own log."""
    from tinyseek.tune.rl import grpo
    from tinyseek.tune.rl.options import GrpoSettings

    asked = {
        "model": str(work / "model"),
        "data": [str(work / "prompts.jsonl")],
        "rewards": {f"{work / 'mine.py'}:{arguments.reward}": 1.0},
        "batch_size": arguments.prompts,
        "num_generations": arguments.generations,
        "max_completion_length": arguments.longest,
        "seq_len": arguments.longest + 128,
        "loss": "dapo",
        "val_fraction": 0,
        "steps": arguments.steps + 1,
        "lr": RATE,
        "betas": [0.9, 0.999],
        "schedule": "constant",
        "warmup_steps": 0,
        "save_every": 0,
        "show_every": 0,
        "threads": arguments.threads,
        "device": "cpu",
    }
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    with mock.patch("tinyseek.train.loop.time.perf_counter", clock):
        grpo.build(GrpoSettings.read(asked), work / "ours")
    records = [json.loads(line) for line in (work / "ours" / "metrics.jsonl").read_text().splitlines()]
    ends = [record["seconds"] for record in records]
    seconds = [end - start for start, end in itertools.pairwise(ends)]
    gap = max(record["sampling/logp_difference/max"] for record in records)
    return figures_of(arguments, seconds, records, gap)


def theirs(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """GRPOTrainer."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from tinyseek.tune.rl import child

    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.append(clock())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(clock())

    fast = arguments.side == "trl-float32"
    changed: dict[str, Any] = {"bf16": False, "gradient_checkpointing": False} if fast else {}
    config = GRPOConfig(
        output_dir=str(work / arguments.side),
        use_cpu=True,
        per_device_train_batch_size=arguments.prompts * arguments.generations,
        num_generations=arguments.generations,
        max_completion_length=arguments.longest,
        max_steps=arguments.steps + 1,
        loss_type="dapo",
        learning_rate=RATE,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **changed,
    )
    rows = [json.loads(line) for line in (work / "prompts.jsonl").read_text().splitlines()]
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32),
        reward_funcs=[child.load(str(work / "mine.py"), arguments.reward)],
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(work / "model"),
        callbacks=[Clock()],
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "reward" in entry]
    seconds = [end - begin for begin, end in zip(times[2::2], times[3::2], strict=True)]
    return figures_of(arguments, seconds, history, None)


def figures_of(
    arguments: argparse.Namespace, seconds: list[float], records: list[dict[str, Any]], gap: float | None
) -> dict[str, Any]:
    """Of all steps but the first."""
    samples = arguments.prompts * arguments.generations
    names = {"lengths": "completions/mean_length", "rewards": "reward", "alike": "frac_reward_zero_std"}
    told = {name: [record[key] for record in records[1:]] for name, key in names.items()}
    return {"rates": [samples / second for second in seconds], "seconds": seconds, "gap": gap, **told}


if __name__ == "__main__":
    main()
