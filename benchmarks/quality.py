"""What fewer bits a weight cost: bits per byte of one text in float32, bfloat16, int8 and int4, and the memory of the weights.

python benchmarks/quality.py MODEL TEXT [--max-bytes 100000] [--seq-len 512]

MODEL is a folder or a pulled name, TEXT a file or a data folder (its val.jsonl).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tinyseek.engine.quantize import Format, PackedWeight, pack
from tinyseek.evaluate.perplexity import bits_per_byte, read_texts
from tinyseek.model.hub import find_model
from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--max-bytes", type=int, default=100_000)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = find_model(arguments.model)
    tokenizer = Tokenizer.load(folder)
    texts = list(read_texts(arguments.text, arguments.max_bytes))
    formats: tuple[Format, ...] = ("float32", "bfloat16", "int8", "int4")
    found: dict[str, dict[str, float]] = {}
    for name in formats:
        model = CausalLM.load(folder).eval()
        seq_len = min(arguments.seq_len, model.config.max_position_embeddings)
        if name != "float32":
            pack(model, name)
        score = bits_per_byte(model, tokenizer, texts, seq_len=seq_len)
        found[name] = {
            "bits_per_byte": round(score.bits_per_byte, 5),
            "weights_mb": round(weight_bytes(model) / 1e6, 1),
        }

    table = Table(title=f"{arguments.model} on {sum(len(text.encode()) for text in texts):,} bytes")
    for column in ("weights", "bits per byte", "more than float32", "MB"):
        table.add_column(column, justify="left" if column == "weights" else "right")
    whole = found["float32"]["bits_per_byte"]
    for name, figures in found.items():
        more = f"{(figures['bits_per_byte'] / whole - 1) * 100:+.2f} %"
        table.add_row(name, f"{figures['bits_per_byte']:.4f}", more, f"{figures['weights_mb']:,.1f}")
    Console(width=100).print(table)
    print(json.dumps({"benchmark": f"quality of {arguments.model}", "formats": found}))


def weight_bytes(model: CausalLM) -> int:
    """Of all weights as they are held."""
    packed = {id(part): part for m in model.modules() if isinstance(m, PackedWeight) for part in m.parts}
    plain = {id(parameter): parameter for parameter in model.parameters()}
    return sum(tensor.numel() * tensor.element_size() for tensor in (packed | plain).values())


if __name__ == "__main__":
    main()
