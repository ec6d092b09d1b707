"""What adapters over one base cost a token, beside each merged with the base in an engine of its own. CPU time of one thread.

python benchmarks/adapters.py [--preset bench] [--streams 1,16] [--adapters 4] [--rank 8] [--rounds 5] [--tokens 64]

Every side writes the same number of tokens after the same prompts. `base` is an engine without adapters, `base beside adapters` the
same requests in an engine that has them. The texts of `one adapter` must be those of `merged`; how many are is told.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from side import in_turn, report

from tinyseek.engine.adapters import load_adapters
from tinyseek.engine.engine import Engine, EngineSettings, SamplingParams
from tinyseek.model import adapter, lora
from tinyseek.model.adapter import Base
from tinyseek.model.lora_config import LoraConfig
from tinyseek.model.presets import PRESETS
from tinyseek.model.transformer import CausalLM


def random_adapter(base: Path, folder: Path, seed: int, rank: int) -> Path:
    """An adapter of every linear layer, with numbers that change what is said."""
    model = CausalLM.load(base)
    config = LoraConfig(rank=rank)
    torch.manual_seed(seed)
    identity = Base(base.name, str(base), adapter.fingerprint(model))
    lora.add_lora(model, config)
    with torch.no_grad():
        for change in lora.changes(model).values():
            change.lora_B.normal_(0, 0.02)
    adapter.save_adapter(model, folder, config, identity)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="bench")
    parser.add_argument("--streams", default="1,16")
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / "base"
        torch.manual_seed(0)
        CausalLM(PRESETS[arguments.preset]).save(base)
        folders = {
            f"a{number}": random_adapter(base, Path(place) / f"a{number}", number, arguments.rank)
            for number in range(arguments.adapters)
        }
        model = CausalLM.load(base)
        adapters = load_adapters(folders, model, None, str(base))
        merged = adapter.load_merged(CausalLM, folders["a0"], torch.float32, torch.device("cpu"))
    settings = EngineSettings(max_sequences=64, prefix_cache=False, cache_tokens=16_384)
    engines = {
        "base": Engine(CausalLM(PRESETS[arguments.preset]).eval(), None, settings),
        "merged": Engine(merged.eval(), None, settings),
        "adapters": Engine(model, None, settings, adapters),
    }
    sizes = {
        "base_mb": round(sum(p.nbytes for p in model.parameters()) / 1e6, 2),
        "adapter_mb": round(adapters.nbytes / len(folders) / 1e6, 3),
    }
    for streams in map(int, arguments.streams.split(",")):
        title = f"{streams} streams of {arguments.preset}, rank {arguments.rank}"
        measure(title, streams, engines, list(folders), arguments.tokens, arguments.rounds, sizes)


def measure(
    title: str,
    streams: int,
    engines: dict[str, Engine],
    names: list[str],
    tokens: int,
    rounds: int,
    sizes: dict[str, float],
) -> None:
    """All sides at one number of streams."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 4000, (24,), generator=generator).tolist() for _ in range(streams)]
    params = SamplingParams(max_tokens=tokens)
    texts: dict[str, list[list[int]]] = {}

    def work(name: str, engine: Engine, worn: Sequence[str | None]) -> float:
        began = time.thread_time()
        asked = [engine.submit(prompt, params, own) for prompt, own in zip(prompts, worn, strict=True)]
        texts[name] = [[token for piece in request for token in piece.ids] for request in asked]
        return streams * tokens / (time.thread_time() - began)

    nobody: list[str | None] = [None] * streams
    sides = {
        "base": lambda: work("base", engines["base"], nobody),
        "base beside adapters": lambda: work("beside", engines["adapters"], nobody),
        "merged": lambda: work("merged", engines["merged"], nobody),
        "one adapter": lambda: work("one", engines["adapters"], names[:1] * streams),
    }
    if streams > 1:
        mixed = [names[at % len(names)] for at in range(streams)]
        sides[f"{len(names)} adapters"] = lambda: work("mixed", engines["adapters"], mixed)
    figures = in_turn(sides, rounds)
    same = sum(one == other for one, other in zip(texts["merged"], texts["one"], strict=True))
    report(title, "tokens/s of CPU time", figures, "merged", {"same_texts": f"{same}/{streams}", **sizes})


if __name__ == "__main__":
    main()
