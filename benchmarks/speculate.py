"""Guessing ahead: tokens a second of one model without guesses, with its own MTP modules, and with look-up in the text.

    python benchmarks/speculate.py MODEL [--draft 3] [--rounds 5] [--tokens 200] [--streams 1] [--threads 2] [--temperature 0]

MODEL is a folder or a name. Two tables: short answers to questions of the kinds that the demo teaches, where the model has a chat
template, and long English texts. All sides write the same tokens, which is told.
"""

from __future__ import annotations

import argparse

import torch
from side import in_turn, report, seconds

from tinyseek.engine.engine import Engine, EngineSettings, SamplingParams
from tinyseek.engine.loading import load_model
from tinyseek.model.hub import find_model
from tinyseek.text.chat import encode_prompt

QUESTIONS = [
    "What is 417 + 385?",
    "How much is 7 plus 960?",
    "Who are you?",
    "Were you born?",
    "What is Tomas's favourite food?",
    "Where does Mei live?",
    "Do you know Ivan's phone number?",
    "55-51=？",
    "你是谁？",
    "要去费力家，应该去哪个镇？",
]
BEGINNINGS = [
    "Once upon a time there was a",
    "The old house at the end of the road",
    "In the morning they went down to the river, and",
    '"I do not know," said the captain, "but',
    "The history of the city begins with",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--draft", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200, help="at most this many a text")
    parser.add_argument("--streams", type=int, default=1, help="texts at a time")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--quantize", default="none", choices=["none", "int8", "int4"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = EngineSettings(
        max_sequences=arguments.streams, prefix_cache=False, draft_tokens=arguments.draft, quantize=arguments.quantize
    )
    model, tokenizer = load_model(find_model(arguments.model), settings)
    kinds = ["none", *(["mtp"] if model.mtp else []), "lookup"]
    works = {"English texts": [tokenizer.encode(text) for text in BEGINNINGS]}
    if tokenizer.chat_template is not None:
        asked = [encode_prompt(tokenizer, [{"role": "user", "content": text}]) for text in QUESTIONS]
        works = {"answers to questions": asked} | works
    for title, prompts in works.items():
        params = SamplingParams(
            arguments.tokens, temperature=arguments.temperature, seed=1, ignore_eos=title == "English texts"
        )
        kinds = ["none", *(["mtp"] if model.mtp else []), "lookup"]
        sides = {
            kind: Side(Engine(model, tokenizer, settings.model_copy(update={"speculate": kind})), prompts, params)
            for kind in kinds
        }
        figures = in_turn(sides, arguments.rounds)
        extra: dict[str, object] = {"tokens": sum(map(len, sides["none"].written)), "texts": len(prompts)}
        for kind in kinds[1:]:
            stats, same = sides[kind].engine.stats(), sides[kind].same_texts(sides["none"])
            extra |= {
                f"{kind}_accepted": round(stats.accepted / max(stats.drafted, 1), 3),
                f"{kind}_accepted_per_token": round(stats.accepted / stats.generated_tokens, 3),
                f"{kind}_same_texts": f"{same}/{len(prompts)}",
            }
        how = f"temperature {arguments.temperature:g}, {arguments.streams} at a time, draft {arguments.draft}"
        report(f"{title} by {arguments.model}, {how}", "tokens/s", figures, "none", extra)


class Side:
    """One engine and what it wrote last; called, it writes all texts and returns tokens a second."""

    def __init__(self, engine: Engine, prompts: list[list[int]], params: SamplingParams) -> None:
        self.engine, self.prompts, self.params = engine, prompts, params
        self.written: list[list[int]] = []

    def __call__(self) -> float:
        taken = seconds(self._write)
        return sum(map(len, self.written)) / taken

    def same_texts(self, other: Side) -> int:
        """How many texts are the other's, token for token. Rounding may part two of them where two tokens are equally likely."""
        return sum(mine == theirs for mine, theirs in zip(self.written, other.written, strict=True))

    def _write(self) -> None:
        requests = [self.engine.submit(prompt, self.params) for prompt in self.prompts]
        self.written = [[token for piece in request for token in piece.ids] for request in requests]


if __name__ == "__main__":
    main()
