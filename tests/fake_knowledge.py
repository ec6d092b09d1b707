"""Documents that the tests of the knowledge page write themselves, a model that answers from a script, and a server of both.

As a program it serves the knowledge page alone behind the server's own guard on one port, and behind two keys on another:
`python fake_knowledge.py PORT LOCKED_PORT FOLDER`.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from tinyseek.llm.base import DEFAULT, ChatDelta, ChatModel, ChatOptions, Message, Usage

KEYS = ("a-key-for-all", "a-key-for-theirs")

PAGES = [
    (
        "The light of Skerryvore",
        [
            "The lighthouse of Skerryvore stands on a reef twelve miles south-west of Tiree. It was built between 1838 and 1844 "
            "by Alan Stevenson, who had the granite cut at Hynish and carried out by boat in the short summers.",
            "The tower is 48 metres high and tapers from 13 metres at its foot to 5 metres below the lantern. Its walls are "
            "solid up to the entrance, which is reached by a ladder of bronze.",
        ],
    ),
    (
        "Keepers and their duties",
        [
            "Three keepers lived in the tower for six weeks at a time, and a fourth was ashore. The principal keeper kept the "
            "log, trimmed the wicks every four hours and wound the clockwork that turned the lens.",
            "On 16 March 1954 a fire broke out on the seventh floor. The keepers escaped to the rocks and were taken off the "
            "next day by the relief boat; the interior was rebuilt by 1959.",
        ],
    ),
    (
        "Oil and electricity",
        [
            "Until 1880 the lamp burned colza oil, about 2,300 litres a year. Paraffin halved the cost and doubled the light.",
            "The light was made automatic on 31 March 1994. It runs on solar panels now, gives a white flash every ten "
            "seconds and is seen over 23 nautical miles.",
        ],
    ),
]


def write_pdf(file: Path) -> Path:
    """Three pages with headings, a drawing, and two paragraphs each."""
    from reportlab.graphics.shapes import Drawing, Line, Polygon, Rect
    from reportlab.lib.colors import HexColor
    from reportlab.lib.pagesizes import A5
    from reportlab.lib.styles import ParagraphStyle, getSampleStyleSheet
    from reportlab.platypus import PageBreak, Paragraph, SimpleDocTemplate, Spacer

    def tower() -> Drawing:
        drawn = Drawing(330, 96)
        drawn.add(Rect(0, 0, 330, 96, fillColor=HexColor("#dfe9f3"), strokeColor=None))
        drawn.add(Rect(0, 0, 330, 22, fillColor=HexColor("#8fb0cc"), strokeColor=None))
        drawn.add(Polygon([152, 22, 178, 22, 171, 74, 159, 74], fillColor=HexColor("#7d8794"), strokeColor=None))
        drawn.add(Rect(158, 74, 14, 10, fillColor=HexColor("#f2c230"), strokeColor=None))
        for end in (30, 62, 92):
            drawn.add(Line(172, 80, 330, end, strokeColor=HexColor("#f2c230"), strokeWidth=0.8))
        return drawn

    styles = getSampleStyleSheet()
    body = ParagraphStyle("text", styles["BodyText"], fontName="Times-Roman", fontSize=11, leading=15)
    story: list[Any] = []
    for number, (heading, paragraphs) in enumerate(PAGES):
        story += [PageBreak()] if number else []
        story += [Paragraph(heading, styles["Heading1"]), tower(), Spacer(1, 10)]
        for text in paragraphs:
            story += [Paragraph(text, body), Spacer(1, 8)]
    document = SimpleDocTemplate(
        str(file),
        pagesize=A5,
        title="Skerryvore, a history",
        author="The Northern Lights",
        invariant=1,
        leftMargin=44,
        rightMargin=44,
        topMargin=40,
    )
    document.build(story)
    return file


def write_sheet(file: Path) -> Path:
    """What the lights cost, a sheet."""
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Upkeep"
    sheet["A1"] = "Upkeep of the lights, pounds a year"
    sheet.merge_cells("A1:D1")
    rows = [
        ("Lighthouse", "Oil", "Wages", "Repairs"),
        ("Skerryvore", 412, 640, 1250),
        ("Dhu Heartach", 398, 655, 870),
        ("Ardnamurchan", 301, 420, 95),
        ("Rinns of Islay", 287, 410, 140),
    ]
    for number, row in enumerate(rows, 3):
        for column, value in enumerate(row, 2):
            sheet.cell(number, column, value)
    book.save(file)
    return file


def write_word(file: Path) -> Path:
    """A manual, in Chinese."""
    import docx

    document = docx.Document()
    document.core_properties.title = "灯塔值守手册"
    document.add_heading("值守", 1)
    document.add_paragraph("灯塔由三名看守人轮流值守，每班四小时。换班时要核对日志，并检查备用电池的电压。")
    document.add_heading("大雾", 1)
    document.add_paragraph("能见度低于两海里时必须鸣响雾号，每九十秒一次，直到雾散。雾号的气压不得低于六个大气压。")
    document.add_paragraph("每周一清洗透镜，只能使用蒸馏水和鹿皮，不得使用酒精。")
    document.save(str(file))
    return file


NOTES = """\
# Boats and landings

The landing at Skerryvore is possible on about sixty days of the year.

## Signals

- A black ball at the mast means that no boat may come.
- Two balls ask for the doctor.

    the log is written in ink
"""


def write_all(folder: Path) -> list[Path]:
    """All of them."""
    folder.mkdir(parents=True, exist_ok=True)
    notes = folder / "landing-notes.md"
    notes.write_text(NOTES, encoding="utf-8")
    return [
        write_pdf(folder / "skerryvore.pdf"),
        write_sheet(folder / "upkeep.xlsx"),
        write_word(folder / "值守手册.docx"),
        notes,
    ]


# By a word of the question: sentences, each with words of the passage that it cites.
ANSWERS = {
    "automatic": [
        ("The light was made automatic on 31 March 1994", "automatic"),
        ("It gives a white flash every ten seconds", "automatic"),
        ("It was painted green by the queen of Norway", "keepers lived"),
    ],
    "change": [
        ("Until 1880 the lamp burned colza oil, about 2,300 litres a year", "colza"),
        ("It was made automatic on 31 March 1994 and runs on solar panels now", "colza"),
        ("Repairs cost 1250 pounds a year", "Dhu Heartach"),
    ],
    "How high": [("The tower is 48 metres high", "48 metres")],
    "fire": [("A fire broke out on the seventh floor on 16 March 1954", "seventh floor")],
}


def answered(asked: str) -> str:
    """What the model says: the sentences with the numbers that their passages have in the prompt."""
    question = asked.rpartition("Question: ")[2]
    sentences = next((found for word, found in ANSWERS.items() if word in question), [])
    passages = re.findall(r"\[passage (\d+) begin\](.*?)\[passage \1 end\]", asked, re.DOTALL)
    said = []
    for sentence, words in sentences:
        number = next((number for number, text in passages if words in " ".join(text.split())), "9")
        said.append(f"{sentence} [{number}].")
    return " ".join(said) or "The documents do not answer this."


class ScriptedChat(ChatModel):
    """Answers a question about a word of `ANSWERS`, slowly enough to be seen writing; `slow` writes for a long while."""

    name, context = "scripted", None

    def stream(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> Iterator[ChatDelta]:
        del options
        asked = str(messages[-1]["content"])
        if "Question: " not in asked and "问题：" not in asked:  # what could be asked next
            said = "How high is the tower of Skerryvore?\nWho built the tower of Skerryvore?\n"
        else:
            said = "word " * 400 if "slowly" in asked else answered(asked)
        slow = 0.12 if "Summarise this part" in asked else 0.02
        for start in range(0, len(said), 12):
            yield ChatDelta(content=said[start : start + 12])
            time.sleep(slow)
        yield ChatDelta(finish="stop", usage=Usage(100, 20))

    async def astream(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> AsyncIterator[ChatDelta]:
        for delta in self.stream(messages, options):
            yield delta

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise NotImplementedError


async def main(port: int, locked: int, folder: Path) -> None:
    """Serve the page until killed."""
    import uvicorn
    from fastapi import FastAPI

    from tinyseek.knowledge.shelf import Shelf
    from tinyseek.serve.guard import Guard
    from tinyseek.serve.metrics import Metrics
    from tinyseek.serve.options import ServeSettings
    from tinyseek.studio.kb_app import mount_kb
    from tinyseek.studio.options import StudioSettings

    access = {b"": ("*",), KEYS[0].encode(): ("*",), KEYS[1].encode(): ("theirs",)}
    shelf = Shelf(folder / "knowledge", models=[ScriptedChat()], access=access)
    base = shelf.base(b"", "default")
    for progress in base.add([write_all(folder / "documents")[0].parent]):
        assert progress.outcome in ("added", "unchanged"), progress
    app = FastAPI(openapi_url=None)
    mount_kb(app, shelf, StudioSettings(data=str(folder / "studio")))
    doors = [
        (Guard(app, ServeSettings(port=port, max_body_mb=0.6), Metrics()), port, "on"),
        (Guard(app, ServeSettings(port=locked, api_key=list(KEYS)), Metrics()), locked, "off"),
    ]
    servers = [
        uvicorn.Server(uvicorn.Config(door, port=number, log_level="warning", lifespan=lifespan))  # type: ignore[arg-type]
        for door, number, lifespan in doors
    ]
    await asyncio.gather(*(server.serve() for server in servers))
    shelf.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
