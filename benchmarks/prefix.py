"""Time to the first token of two requests that begin with the same 1,000 tokens.

python benchmarks/prefix.py [--model FOLDER] [--prefix 1000] [--rounds 7] [--threads 2]

Without a model it is the `bench` preset with random weights, its context widened.
"""

from __future__ import annotations

import argparse
import time

import torch
from side import report

from tinyseek.engine.engine import Engine, EngineSettings, SamplingParams
from tinyseek.model.hub import find_model
from tinyseek.model.presets import PRESETS
from tinyseek.model.transformer import CausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--prefix", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.model:
        engine = Engine.load(find_model(arguments.model), EngineSettings())
    else:
        torch.manual_seed(0)
        config = PRESETS["bench"].model_copy(update={"max_position_embeddings": 2 * arguments.prefix})
        engine = Engine(CausalLM(config).eval(), None, EngineSettings())
    vocabulary = engine.model.config.vocab_size
    generator = torch.Generator().manual_seed(1)

    def tokens(count: int) -> list[int]:
        return torch.randint(0, vocabulary, (count,), generator=generator).tolist()

    def first_token(prompt: list[int]) -> tuple[float, int]:
        started = time.perf_counter()
        request = engine.submit(prompt, SamplingParams(max_tokens=1, ignore_eos=True))
        for _ in request:
            pass
        return (time.perf_counter() - started) * 1e3, request.cached_tokens

    figures: dict[str, list[float]] = {"first request": [], "second request": []}
    reused = 0
    for number in range(arguments.rounds + 1):
        prefix = tokens(arguments.prefix)
        first, _ = first_token(prefix + tokens(20))
        second, reused = first_token(prefix + tokens(20))
        if number:
            figures["first request"].append(first)
            figures["second request"].append(second)
    name = arguments.model or "bench"
    report(f"time to the first token of {name}", "ms", figures, "first request", {"reused_tokens": reused})


if __name__ == "__main__":
    main()
