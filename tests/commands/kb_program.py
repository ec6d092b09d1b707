"""`tinyseek kb` with an embedder of hashed words, as a program of its own: for what only a terminal, or a signal, shows."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from knowledge.memory_index import HashEmbedder

from tinyseek.cli import main
from tinyseek.knowledge.embed import open as opening

opening.open_embedder = lambda *_: HashEmbedder()
sys.exit(main(["kb", *sys.argv[1:]]))
