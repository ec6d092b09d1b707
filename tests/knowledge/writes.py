"""Programs that tests of crashes run in processes of their own: python writes.py WHAT HOME FOLDER ..."""

from __future__ import annotations

import resource
import signal
import sys
import threading
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from knowledge.plain_reader import CountingEmbedder, PlainReader

from tinyseek.errors import UserError
from tinyseek.knowledge.base import KnowledgeBase
from tinyseek.knowledge.index.base import Chunk, StoredDocument


def opened(home: str) -> KnowledgeBase:
    return KnowledgeBase.open(Path(home), embedder=CountingEmbedder(), readers=PlainReader())


def add(home: str, folder: str) -> None:
    """Add a folder, a line for each file."""
    with opened(home) as base:
        for progress in base.add(folder):
            print(progress.outcome, progress.file, flush=True)


def endless(home: str, seed: str) -> None:
    """Put, replace and remove documents without end, a line for each that is done."""
    drawn = np.random.default_rng(int(seed))
    base = opened(home)
    embedder = base.embedder
    while True:
        name = str(drawn.integers(20))
        texts = [f"document {name} of {seed} word{drawn.integers(1000)} 第{n}段" for n in range(drawn.integers(1, 6))]
        if drawn.random() < 0.2:
            base.index.remove([document.id for document in base.index.by_name(name)])
        else:
            base.index.put(
                StoredDocument(f"/{seed}/{name}", name, "", 0, "text"),
                [Chunk(t) for t in texts],
                embedder.passages(texts),
            )
        print(name, flush=True)


def full(home: str, folder: str, most: str) -> None:
    """Add a folder where no file may grow beyond so many bytes, as on a full disk."""
    with opened(home) as base:
        base.index.count()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), int(most)))
        try:
            for progress in base.add(folder):
                print(progress.outcome, progress.file, flush=True)
        except UserError as error:
            print("error", error, flush=True)


def together(home: str, folder: str) -> None:
    """Add a folder from several threads at once."""
    with opened(home) as base:
        threads = [threading.Thread(target=lambda: list(base.add(folder))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    {"add": add, "endless": endless, "full": full, "together": together}[sys.argv[1]](*sys.argv[2:])
