"""One stream of a small real model beside transformers and llama.cpp: decoding in bfloat16 and int4, and reading a prompt.

    tinyseek pull smollm2-135m
    pip install llama-cpp-python                # builds llama.cpp; without it that side is left out
    python benchmarks/stream.py [--model smollm2-135m] [--gguf FILE] [--rounds 5] [--tokens 64] [--threads 2]

The GGUF file is the one that the model was pulled as (Q4_1); without --gguf it is written by `tinyseek export`.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from side import in_turn, report, seconds

from tinyseek.engine.engine import Engine, EngineSettings, SamplingParams
from tinyseek.model.hub import find_model
from tinyseek.text.tokenizer import Tokenizer

TEXT = (
    "The history of cartography is a history of what people wanted to know about the land around them, and of what they could "
    "measure. Early maps were made of clay, of hide and of memory. "
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt that is read")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = find_model(arguments.model)
    ids = Tokenizer.load(folder).encode(TEXT * (arguments.prompt // 30 + 1))
    long, short = ids[: arguments.prompt], ids[:32]

    decoding: dict[str, Callable[[], float]] = {}
    reading: dict[str, Callable[[], float]] = {}
    for name, settings in {
        "bfloat16": EngineSettings(dtype="bfloat16", prefix_cache=False),
        "int8": EngineSettings(quantize="int8", prefix_cache=False),
        "int4": EngineSettings(quantize="int4", prefix_cache=False),
    }.items():
        engine = Engine.load(folder, settings)
        decoding[f"tinyseek {name}"] = our_decoding(engine, short, arguments.tokens)
        if name == "bfloat16":
            reading["tinyseek bfloat16"] = our_reading(engine, long)
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        model = their_model(folder, dtype)
        decoding[f"transformers {name}"] = their_decoding(model, short, arguments.tokens)
        reading[f"transformers {name}"] = their_reading(model, long)
    with tempfile.TemporaryDirectory() as scratch:
        if importlib.util.find_spec("llama_cpp") is not None:
            file = arguments.gguf or exported(folder, Path(scratch))
            decoding["llama.cpp Q4_1"], reading["llama.cpp Q4_1"] = llama(file, short, long, arguments)
        else:
            print("llama.cpp is left out: pip install llama-cpp-python")
        figures = in_turn(decoding, arguments.rounds)
        report(f"decoding one stream of {arguments.model}", "tokens/s", figures, "transformers bfloat16")
        if "llama.cpp Q4_1" in figures:
            report(f"decoding one stream of {arguments.model} in four bits", "tokens/s", figures, "llama.cpp Q4_1")
        figures = in_turn(reading, arguments.rounds)
        report(f"reading {len(long)} tokens with {arguments.model}", "tokens/s", figures, "transformers bfloat16")


def our_decoding(engine: Engine, prompt: list[int], tokens: int) -> Callable[[], float]:
    """Tokens a second after the first, as for the others."""
    return lambda: rate(lambda count: our_text(engine, prompt, count), tokens)


def our_text(engine: Engine, prompt: list[int], tokens: int) -> None:
    written = [
        i for piece in engine.submit(prompt, SamplingParams(max_tokens=tokens, ignore_eos=True)) for i in piece.ids
    ]
    assert len(written) == tokens


def our_reading(engine: Engine, prompt: list[int]) -> Callable[[], float]:
    return lambda: len(prompt) / seconds(lambda: our_text(engine, prompt, 1))


def rate(write: Callable[[int], None], tokens: int) -> float:
    """Tokens/s of decoding alone: the time of a long answer less that of one token."""
    first = seconds(lambda: write(1))
    return (tokens - 1) / (seconds(lambda: write(tokens)) - first)


def their_model(folder: Path, dtype: torch.dtype) -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def their_decoding(model: Any, prompt: list[int], tokens: int) -> Callable[[], float]:
    def write(count: int) -> None:
        with torch.inference_mode():
            ids = torch.tensor([prompt])
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
            )

    return lambda: rate(write, tokens)


def their_reading(model: Any, prompt: list[int]) -> Callable[[], float]:
    def read() -> None:
        with torch.inference_mode():
            model(torch.tensor([prompt]), logits_to_keep=1)

    return lambda: len(prompt) / seconds(read)


def exported(folder: Path, scratch: Path) -> Path:
    from tinyseek.model.gguf.convert import folder_to_gguf

    file = scratch / "model.gguf"
    folder_to_gguf(folder, file, "q4_1", "benchmark", print)
    return file


def llama(
    file: Path, short: list[int], long: list[int], arguments: argparse.Namespace
) -> tuple[Callable[[], float], Callable[[], float]]:
    """llama.cpp's decoding and reading of the same tokens."""
    import llama_cpp

    threads = arguments.threads
    model = llama_cpp.Llama(
        str(file), n_ctx=len(long) + arguments.tokens, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def write(prompt: list[int], count: int) -> None:
        model.reset()
        model.eval(prompt)
        for _ in range(count - 1):
            model.eval([model.sample(temp=0.0)])
        model.sample(temp=0.0)

    return (
        lambda: rate(lambda count: write(short, count), arguments.tokens),
        lambda: len(long) / seconds(lambda: write(long, 1)),
    )


if __name__ == "__main__":
    main()
