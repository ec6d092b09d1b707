"""The text before and after cleaning, and the questions."""

from __future__ import annotations

from typing import Any

from tinyseek.evaluate import charts
from tinyseek.evaluate.cards.numbers import byte_size
from tinyseek.evaluate.cards.reading import as_dict, as_float, as_int, as_list, json_of
from tinyseek.evaluate.cards.run import Node, Run
from tinyseek.evaluate.cards.samples import answer
from tinyseek.evaluate.page import Html, card, el, section, table
from tinyseek.evaluate.words import Words


def cleaned(run: Run, t: Words) -> Html:
    """What cleaning took, step by step."""
    parts: list[Html] = []
    for node in run.of_kind("data"):
        report = as_dict(json_of(node.path / "report.json"))
        steps = [step for step in as_list(report.get("steps")) if isinstance(step, dict)]
        if not steps:
            continue
        most = max(as_float(step.get("bytes")) for step in steps) or 1.0
        dropped = as_dict(report.get("dropped"))
        rows, drawn = [], []
        before = None
        for step in steps:
            documents, size = as_int(step.get("documents")), as_int(step.get("bytes"))
            name = t(str(step.get("step")))
            lost = before[0] - documents if before else 0
            rows.append((name, f"{documents:,}", f"−{lost:,}" if lost else "", byte_size(size)))
            drawn.append((name, [charts.Bar(byte_size(size), size / most, "var(--models-1)")]))
            before = (documents, size)
        sides = [(t(name), as_dict(report.get(name))) for name in ("train", "val") if report.get(name)]
        split = " · ".join(
            t("{split}: {documents} documents, {size}").format(
                split=name, documents=f"{as_int(side.get('documents')):,}", size=byte_size(as_int(side.get("bytes")))
            )
            for name, side in sides
        )
        head = (t("after the step"), t("documents"), t("dropped"), t("text"))
        parts.append(
            el(
                "div",
                card(el("h3", t("Text left after each step")), charts.bars(drawn)),
                card(
                    el("h3", t("Documents left after each step")),
                    table(head, rows, (1, 2, 3)),
                    el("p", split, class_="facts"),
                ),
                class_="grid",
            )
        )
        samples = [
            _dropped(name, entry, t) for name, entry in dropped.items() if as_int(as_dict(entry).get("documents"))
        ]
        if samples:
            parts.append(card(el("h3", t("Samples of what was dropped")), *samples))
    if not parts:
        return Html("")
    return section(
        t("The data before and after"),
        t("Nothing is dropped in silence: each step says how much it took, and shows some."),
        *parts,
    )


def _dropped(name: str, entry: Any, t: Words) -> Html:
    entry = as_dict(entry)
    quotes = []
    for sample in as_list(entry.get("samples"))[:5]:
        sample = as_dict(sample)
        original = as_dict(sample.get("original"))
        note = " · ".join(part for part in (str(sample.get("source", "")), str(sample.get("why", ""))) if part)
        like = (
            el("small", t("like {source}").format(source=original.get("source")))
            if original.get("source")
            else Html("")
        )
        quotes.append(el("div", el("small", note), str(sample.get("text", "")), like, class_="quote"))
    title = t("{name}: {count} documents").format(name=t(name), count=f"{as_int(entry.get('documents')):,}")
    return el("details", el("summary", title), *quotes)


def tasks(run: Run, t: Words) -> Html:
    """The questions that were generated, and the problems to reason about."""
    boxes = []
    for node in run.of_kind("tasks", "problems"):
        figures = node.manifest.figures
        splits = [(split, as_dict(figures.get(split))) for split in ("train", "val", "heldout") if figures.get(split)]
        by = "kinds" if any(of.get("kinds") for _, of in splits) else "languages"
        parts = dict.fromkeys(part for _, of in splits for part in as_dict(of.get(by)))
        rows = [(t(part), *(f"{as_int(as_dict(of.get(by)).get(part)):,}" for _, of in splits)) for part in parts]
        if len(rows) != 1:
            rows.append((t("in all"), *(f"{as_int(of.get('records')):,}" for _, of in splits)))
        head = (t("kind") if by == "kinds" else t("language"), *(t(name) for name, _ in splits))
        rejected = sum(as_int(count) for count in as_dict(figures.get("rejected_as_duplicates")).values())
        note = t("{count} prompts were thrown away because training or the held-out set had them already.").format(
            count=f"{rejected:,}"
        )
        box = [table(head, rows, range(1, len(head)))] + ([el("p", note, class_="facts")] if rejected else [])
        boxes.append(card(el("h3", node.name), *box, *_first_problem(node, t)))
    if not boxes:
        return Html("")
    about = t(
        "Questions with an answer that a program can check. No held-out question occurs in training; its facts do, in other words."
    )
    return section(t("The tasks"), about, el("div", boxes, class_="grid"))


def _first_problem(node: Node, t: Words) -> list[Html]:
    """A problem with its solution, as it is taught; of a book the first lines."""
    if node.manifest.kind != "problems":
        return []
    for record in as_list(node.manifest.figures.get("samples"))[:1]:
        said = [as_dict(message) for message in as_list(as_dict(record).get("messages"))]
        if not said:
            return [el("div", str(as_dict(record).get("text", ""))[:400], class_="quote")]
        thought = str(said[-1].get("reasoning_content") or "")
        written = (f"<think>{thought}</think>" if thought else "") + str(said[-1].get("content") or "")
        asked = str(said[-2].get("content") or "") if len(said) > 1 else ""
        return [el("div", el("small", asked), answer(written, t), class_="quote")]
    return []
