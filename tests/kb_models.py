"""A small knowledge base with a PDF and notes in it, and a real server over it, for the tests of its faces."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from http_models import Running
from knowledge.memory_index import HashEmbedder
from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas

from tinyseek.knowledge.base import KnowledgeBase
from tinyseek.knowledge.documents.read import Readers
from tinyseek.knowledge.options import ChunkSettings, KnowledgeSettings
from tinyseek.knowledge.shelf import Shelf
from tinyseek.llm.base import ChatModel
from tinyseek.serve.app import make_kb_app
from tinyseek.serve.options import ServeSettings
from tinyseek.serve.server import address_of, listen, make_server

SMALL = KnowledgeSettings(chunks=ChunkSettings(tokens=32, overlap=0, section_tokens=64))
PAGES = [
    "The lighthouse of Kap Horn was built in 1874. Its keeper climbs 212 steps every evening. The stairs are of iron.",
    "The lamp burns with whale oil. A second lamp of 4000 candles was added in 1901. The glass is cleaned on Mondays.",
    "Visitors may come from May to September. The fare of the ferry is 12 crowns. Dogs stay on shore.",
]
NOTES = "# Garden\n\nThe roses are cut in March.\n\n## Water\n\nThe barrel holds 300 litres of rain water.\n"
SECRET = "# Plans\n\nThe secret meeting of the pirates is on the island of Tortuga at midnight.\n"
CHINESE = "# 灯塔\n\n灯塔的看守人每天晚上爬二百一十二级台阶。\n"


def make_pdf(file: Path, pages: Sequence[str] = tuple(PAGES)) -> Path:
    """A PDF of a paragraph a page."""
    canvas = Canvas(str(file), pagesize=A4)
    for text in pages:
        canvas.setFont("Helvetica", 11)
        for number, sentence in enumerate(text.split(". ")):
            canvas.drawString(72, 700 - 14 * number, sentence if sentence.endswith(".") else f"{sentence}.")
        canvas.showPage()
    canvas.save()
    return file


def make_docs(folder: Path) -> Path:
    """A folder of documents."""
    folder.mkdir(parents=True, exist_ok=True)
    make_pdf(folder / "lighthouse.pdf")
    (folder / "garden.md").write_text(NOTES, encoding="utf-8")
    (folder / "灯塔.md").write_text(CHINESE, encoding="utf-8")
    return folder


def make_home(where: Path) -> Path:
    """A home with the collections `default`, of documents, and `pirates`, of a secret."""
    docs = make_docs(where / "docs")
    pirates = where / "pirates"
    pirates.mkdir()
    (pirates / "plans.md").write_text(SECRET, encoding="utf-8")
    with Readers(1) as readers:
        for name, folder in (("default", docs), ("pirates", pirates)):
            with KnowledgeBase.open(where / "home", name, SMALL, HashEmbedder(), readers) as base:
                outcomes = [progress.outcome for progress in base.add(folder)]
                assert set(outcomes) == {"added"}, outcomes
    return where / "home"


@contextlib.contextmanager
def serving(app: Any, settings: ServeSettings) -> Iterator[Running]:
    """An application on a free port."""
    bound = listen(settings)
    server = make_server(app, settings)
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    url = address_of(bound)
    try:
        with httpx.Client(base_url=url, timeout=30, verify=False) as client:
            yield Running(url, server, thread, client)
    finally:
        server.should_exit = True
        thread.join(20)


def kb_settings(**settings: Any) -> ServeSettings:
    """Of a server over documents; the hashed words' cosines are no probability, so every question is answered."""
    return ServeSettings.read({"port": 0, "answers": {"found_from": 0}, "knowledge": SMALL.plain(), **settings})


@contextlib.contextmanager
def kb_server(home: Path, models: Sequence[ChatModel] = (), **settings: Any) -> Iterator[Running]:
    """A server over a home's documents alone."""
    chosen = kb_settings(**settings)
    shelf = Shelf(home, chosen.knowledge, models, chosen.access, chosen.kb_read_only, HashEmbedder())
    with serving(make_kb_app(shelf, chosen), chosen) as server:
        yield server
