"""Decoding one stream beside transformers' `generate`: same weights, same greedy tokens.

python benchmarks/decode.py [--rounds 5] [--tokens 128] [--threads 2]
"""

from __future__ import annotations

import argparse

import torch
from side import in_turn, report, seconds, twins

from tinyseek.engine.generate import SamplingParams, stream
from tinyseek.model.presets import PRESETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--preset", default="bench")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ours, theirs = twins(PRESETS[arguments.preset], seed=0)
    ours.eval()
    theirs.eval()
    prompt = torch.randint(0, ours.config.vocab_size, (32,), generator=torch.Generator().manual_seed(1)).tolist()
    params = SamplingParams(max_tokens=arguments.tokens)
    written: dict[str, list[int]] = {}

    def our_side() -> float:
        def work() -> None:
            written["ours"] = list(stream(ours, prompt, params))

        return arguments.tokens / seconds(work)

    def their_side() -> float:
        def work() -> None:
            ids = torch.tensor([prompt])
            with torch.inference_mode():
                out = theirs.generate(
                    ids,
                    max_new_tokens=arguments.tokens,
                    min_new_tokens=arguments.tokens,
                    do_sample=False,
                    pad_token_id=0,
                )
            written["theirs"] = out[0, len(prompt) :].tolist()

        return arguments.tokens / seconds(work)

    figures = in_turn({"tinyseek": our_side, "transformers generate": their_side}, arguments.rounds)
    same = sum(a == b for a, b in zip(written["ours"], written["theirs"], strict=True))
    report(
        "decoding one stream",
        "tokens/s",
        figures,
        "transformers generate",
        {"same_tokens": f"{same}/{arguments.tokens}"},
    )


if __name__ == "__main__":
    main()
