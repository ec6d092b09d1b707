"""Two hundred clients for two minutes against one server: no error but 429, every stream well formed, memory flat.

python benchmarks/load.py MODEL [--clients 200] [--seconds 120] [engine and server settings as key=value]

The server is `tinyseek serve` in a process of its own. Its memory is read every second; flat means that the last quarter's mean is
within 10 % of the second quarter's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx
import psutil
from rich.console import Console
from rich.table import Table

QUESTIONS = (
    "How much is {a} plus {b}?",
    "Who are you?",
    "Where does Tomas live?",
    "{a}-{b}=？",
    "小梅喜欢吃什么？",
    "Do you know Mei's phone number?",
)


@dataclass
class Tally:
    """What all clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    streams: int = 0
    tokens: int = 0
    first_tokens: list[float] = field(default_factory=list)
    waits: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    command = [sys.executable, "-m", "tinyseek", "serve", arguments.model, "port=0", *arguments.settings]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            base = address(server)
            tally, memory = asyncio.run(run(base, server.pid, arguments))
        finally:
            server.terminate()
            server.wait(60)
    show(tally, memory, arguments)


def address(server: subprocess.Popen[str]) -> str:
    """Where the server says that it listens."""
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.search(r"http://[\d.]+:\d+", line):
            return found.group()
    raise SystemExit("the server ended before it listened")


async def run(base: str, pid: int, arguments: argparse.Namespace) -> tuple[Tally, list[float]]:
    tally, memory = Tally(), []
    until = time.monotonic() + arguments.seconds
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=arguments.clients)
    async with httpx.AsyncClient(base_url=base, timeout=120, limits=limits) as client:
        name = (await client.get("/v1/models")).json()["data"][0]["id"]
        clients = [one(client, name, tally, until, seed) for seed in range(arguments.clients)]
        everyone = asyncio.gather(*clients)
        process = psutil.Process(pid)
        while not everyone.done():
            memory.append(process.memory_info().rss / 1e6)
            await asyncio.sleep(1)
        await everyone
    return tally, memory


async def one(client: httpx.AsyncClient, model: str, tally: Tally, until: float, seed: int) -> None:
    """A client that asks, reads and asks again; some hang up in the middle."""
    rng = random.Random(seed)
    while time.monotonic() < until:
        question = rng.choice(QUESTIONS).format(a=rng.randint(1, 999), b=rng.randint(1, 999))
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": rng.choice((8, 32, 64)),
            "temperature": rng.choice((0, 0.8)),
            "stream": rng.random() < 0.75,
            "stream_options": {"include_usage": True},
        }
        if not body["stream"]:
            del body["stream_options"]
        try:
            wait = await (streamed if body["stream"] else whole)(client, body, tally, rng)
        except httpx.HTTPError as error:
            tally.faults.append(f"{type(error).__name__}: {error}")
            wait = 1.0
        if wait:
            tally.waits += 1
        await asyncio.sleep(wait or rng.random() * 0.2)


async def whole(client: httpx.AsyncClient, body: dict[str, Any], tally: Tally, _: random.Random) -> float:
    reply = await client.post("/v1/chat/completions", json=body)
    tally.statuses[reply.status_code] += 1
    if reply.status_code == 200:
        tally.tokens += reply.json()["usage"]["completion_tokens"]
        return 0.0
    return refused(reply, tally)


def refused(reply: httpx.Response, tally: Tally) -> float:
    """Seconds to wait, as the server says."""
    if reply.status_code != 429 or "retry-after" not in reply.headers:
        tally.faults.append(f"status {reply.status_code}: {reply.text[:200]}")
        return 1.0
    return float(reply.headers["retry-after"])


async def streamed(client: httpx.AsyncClient, body: dict[str, Any], tally: Tally, rng: random.Random) -> float:
    leave_after = rng.randint(1, 5) if rng.random() < 0.1 else None
    started, first = time.monotonic(), True
    events: list[str] = []
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        tally.statuses[reply.status_code] += 1
        if reply.status_code != 200:
            await reply.aread()
            return refused(reply, tally)
        async for line in reply.aiter_lines():
            if line.startswith("data: "):
                events.append(line[len("data: ") :])
                if len(events) == 2 and first:
                    tally.first_tokens.append(time.monotonic() - started)
                    first = False
                if leave_after is not None and len(events) > leave_after:
                    return 0.0
    if fault := malformed(events):
        tally.faults.append(f"{fault}: {events[-3:]}")
        return 0.0
    tally.streams += 1
    tally.tokens += json.loads(events[-2])["usage"]["completion_tokens"]
    return 0.0


def malformed(events: list[str]) -> str | None:
    """What is wrong with a stream, or nothing."""
    if not events or events[-1] != "[DONE]":
        return "no [DONE] at the end"
    chunks = [json.loads(event) for event in events[:-1]]
    deltas = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    if deltas[0]["delta"].get("role") != "assistant":
        return "the first delta has no role"
    finishes = [choice["finish_reason"] for choice in deltas if choice["finish_reason"]]
    if len(finishes) != 1 or not deltas[-1]["finish_reason"]:
        return f"finish reasons {finishes}"
    if chunks[-1]["choices"] or "usage" not in chunks[-1]:
        return "no usage chunk at the end"
    return None


def show(tally: Tally, memory: list[float], arguments: argparse.Namespace) -> None:
    quarter = len(memory) // 4
    early, late = statistics.mean(memory[quarter : 2 * quarter]), statistics.mean(memory[3 * quarter :])
    waits = sorted(tally.first_tokens)
    facts = {
        "answers": tally.statuses[200],
        "told to wait (429)": tally.statuses[429],
        "other statuses": sum(n for status, n in tally.statuses.items() if status not in (200, 429)),
        "faults": len(tally.faults),
        "whole streams, all well formed": tally.streams,
        "tokens/s": round(tally.tokens / arguments.seconds, 1),
        "first token, median s": round(statistics.median(waits), 2),
        "first token, 95 % within s": round(waits[int(0.95 * len(waits))], 2),
        "memory, second quarter MB": round(early, 1),
        "memory, last quarter MB": round(late, 1),
    }
    table = Table(title=f"{arguments.clients} clients for {arguments.seconds:g} s")
    table.add_column("what")
    table.add_column("figure", justify="right")
    for name, value in facts.items():
        table.add_row(name, f"{value:,}")
    Console(width=100).print(table)
    for fault in tally.faults[:5]:
        print("fault:", fault)
    flat = late < 1.1 * early
    print(json.dumps({"benchmark": "load", "clients": arguments.clients, **facts, "flat": flat}, ensure_ascii=False))
    sys.exit(0 if flat and not tally.faults else 1)


if __name__ == "__main__":
    main()
