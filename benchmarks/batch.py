"""Sixteen streams at once beside transformers' batched `generate`: same weights, prompts of different lengths.

python benchmarks/batch.py [--streams 16] [--rounds 5] [--tokens 128] [--threads 2] [--preset bench]

Ours also with weights in bfloat16, whose texts may differ; transformers in whichever of the two formats is the faster.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
from side import in_turn, report, seconds, twins

from tinyseek.engine.engine import Engine, EngineSettings, SamplingParams
from tinyseek.engine.quantize import pack
from tinyseek.model.presets import PRESETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--preset", default="bench")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ours, theirs = twins(PRESETS[arguments.preset], seed=0)
    theirs.eval()
    settings = EngineSettings(max_sequences=arguments.streams, prefix_cache=False)
    engine = Engine(ours.eval(), None, settings)
    short = Engine(pack(copy.deepcopy(ours), "bfloat16"), None, settings)
    theirs_short = copy.deepcopy(theirs).bfloat16()
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(16, 49, (arguments.streams,), generator=generator).tolist()
    prompts = [torch.randint(0, ours.config.vocab_size, (n,), generator=generator).tolist() for n in lengths]
    params = SamplingParams(max_tokens=arguments.tokens)
    total = arguments.streams * arguments.tokens
    written: dict[str, list[list[int]]] = {}

    def our_side(name: str, engine: Engine) -> float:
        def work() -> None:
            requests = [engine.submit(prompt, params) for prompt in prompts]
            written[name] = [[i for piece in request for i in piece.ids] for request in requests]

        return total / seconds(work)

    def their_side(name: str, model: Any) -> float:
        longest = max(lengths)
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths])

        def work() -> None:
            with torch.inference_mode():
                out = model.generate(
                    ids,
                    attention_mask=mask,
                    max_new_tokens=arguments.tokens,
                    min_new_tokens=arguments.tokens,
                    do_sample=False,
                    pad_token_id=0,
                )
            written[name] = out[:, longest:].tolist()

        return total / seconds(work)

    sides: dict[str, Callable[[], float]] = {
        "tinyseek": lambda: our_side("tinyseek", engine),
        "tinyseek bfloat16": lambda: our_side("tinyseek bfloat16", short),
        "transformers": lambda: their_side("transformers", theirs),
        "transformers bfloat16": lambda: their_side("transformers bfloat16", theirs_short),
    }
    figures = in_turn(sides, arguments.rounds)
    same = sum(ours == theirs for ours, theirs in zip(written["tinyseek"], written["transformers"], strict=True))
    faster = max("transformers", "transformers bfloat16", key=lambda name: statistics.median(figures[name]))
    extra = {"same_texts": f"{same}/{arguments.streams}"}
    report(f"{arguments.streams} streams of {arguments.preset}", "tokens/s", figures, faster, extra)


if __name__ == "__main__":
    main()
