"""Training speed beside transformers' DeepseekV3ForCausalLM: same weights, same batch, same optimiser, same loss.

python benchmarks/train.py [--rounds 5] [--steps 2] [--threads 2]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from side import in_turn, report, seconds, twins

from tinyseek.model.presets import PRESETS
from tinyseek.train.precision import faster_dtype

BATCH, SEQ_LEN = 8, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="optimiser steps a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--preset", default="bench")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = PRESETS[arguments.preset].model_copy(update={"balance_loss_weight": 0.0, "num_nextn_predict_layers": 0})
    ids = torch.randint(0, config.vocab_size, (BATCH, SEQ_LEN + 1), generator=torch.Generator().manual_seed(1))
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    ours, theirs = twins(config, seed=0)
    ours.train()
    theirs.train()
    dtype = faster_dtype(torch.device("cpu"))

    def our_loss(model: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss: torch.Tensor = model.loss(inputs, targets).total
        return loss

    def their_loss(model: Any, autocast: bool) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss: torch.Tensor = model(input_ids=inputs, labels=targets, shift_labels=targets).loss
        return loss

    with torch.no_grad():
        first = {"tinyseek": float(our_loss(ours)), "transformers": float(their_loss(theirs, False))}
        first["transformers bf16"] = float(their_loss(theirs, True))
    assert abs(first["tinyseek"] - first["transformers"]) < 1e-2, first

    def trainer(model: Any, loss_of: Any) -> Any:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

        def steps() -> float:
            def work() -> None:
                for _ in range(arguments.steps):
                    loss_of(model).backward()
                    optimizer.step()
                    optimizer.zero_grad()

            return BATCH * SEQ_LEN * arguments.steps / seconds(work)

        return steps

    sides = {
        f"tinyseek ({str(dtype).removeprefix('torch.')}, chosen by its probe)": trainer(ours, our_loss),
        "transformers, bf16 autocast": trainer(theirs, lambda model: their_loss(model, True)),
        "transformers, float32": trainer(theirs, lambda model: their_loss(model, False)),
    }
    figures = in_turn(sides, arguments.rounds)
    report("training", "tokens/s", figures, "transformers, bf16 autocast", {"first_loss": first})


if __name__ == "__main__":
    main()
