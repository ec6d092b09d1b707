"""A question and its answer from documents: numbers that can be clicked, what they stand for, questions to go on with."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nicegui import ui

from tinyseek.evaluate.page import Html, el, join
from tinyseek.studio import kb_summary, kb_tables
from tinyseek.studio.chats import Message
from tinyseek.studio.kb_hits import emphasised, flattened, snippet
from tinyseek.studio.kb_listing import kind_mark
from tinyseek.studio.kb_text import markdown_table, where
from tinyseek.studio.kb_writing import places_of
from tinyseek.studio.live import markup
from tinyseek.studio.markdown import blocks
from tinyseek.studio.pieces import button, duration, icon
from tinyseek.studio.words import Words

_TAG = re.compile(r"""(<(?:[^<>"']|"[^"]*"|'[^']*')*>)""")
_MARKER = re.compile(r"[ \u00a0]?\[(\d{1,3})\]")
_WHOLE = re.compile(r"^(?:pre|code|a|math|button)$")
_DOTS = el("div", el("i"), el("i"), el("i"), class_="dots")
_ITEM = re.compile(r"^\s*[-*•·▪]\s+(?=\S)")  # of a list: a quotation alone is none
_ROWS = re.compile(r"(?P<head>\|[^\n]*\n\|(?:\s*:?-+:?\s*\|)+)(?P<rows>(?:\n\|[^\n]*)+)(?P<cited>\n\[\d{1,3}\])")
_QUOTE = 260  # characters of a source's quote in its card


class ExchangeView:
    """Draws a message again and again from what it is now, and touches only what became otherwise."""

    def __init__(self, message: Message, words: Words, tables: bool = False) -> None:
        """Build it, empty; needs NiceGUI's slot.

        Args:
            tables: there are sheets, so that what was found in one may be asked of it as a table.
        """
        self.message, self._words, self._tables = message, words, tables
        self._blocks: list[ui.html] = []
        self.article = ui.element("article").classes(f"message {message.role}")
        with self.article:
            if message.role == "user":
                self._whole = markup("")
            else:
                self._thought = markup("")
                self._prose = ui.element("div").classes("prose")
                self._below = markup("")
                self._bar = markup("", "bar")

    def show(self, last: bool) -> None:
        """The message as it is now.

        Args:
            last: nothing follows, so questions to go on with are offered.
        """
        message, words = self.message, self._words
        if message.role == "user":
            self._whole.content = el("div", message.content, class_="said")
            return
        writing = message.state == "writing"
        self.article.classes(**{"add" if writing else "remove": "writing"})
        self._thought.content = _thought(message, words)
        shown, below = _drawn(message, words)
        self._show_blocks(shown)
        if self._tables and not writing and _is_of_a_sheet(message):
            below.append(_reckon(message, words))
        if message.state == "failed":
            below.append(_failed(message, words))
        if last and not writing:
            below.append(_follow_ups(message, words))
        self._below.content = join(*(Html(part) for part in below))
        self._bar.content = Html("") if writing else _bar(message, words)

    def _show_blocks(self, shown: Sequence[str]) -> None:
        for element in self._blocks[len(shown) :]:
            element.delete()
        del self._blocks[len(shown) :]
        for number, block in enumerate(shown):
            if number < len(self._blocks):
                self._blocks[number].content = block
            else:
                with self._prose:
                    self._blocks.append(markup(block))


def _drawn(message: Message, words: Words) -> tuple[Sequence[str], list[str]]:
    """An answer by its kind: its blocks, and what stands below them."""
    waits = message.state == "writing" and not message.content
    match message.facts.get("task"):
        case "tables":
            shown = [kb_tables.answer(message, words)] if message.content else []
            return shown, [_waiting(words("Reading the tables …"))] if waits else []
        case "summary":
            if waits:
                return [], [kb_summary.progress(message, words)]
            if message.facts.get("how") == "extractive":
                return [kb_summary.sentences(message, words)], []
            return blocks(message.content), [kb_summary.parts(message, words)]
        case "remember":
            return [el("p", icon("check"), " ", message.content, class_="remembered")], []
    below: list[str] = [_waiting(_progress(message, words))] if waits else []
    below += [found_nothing(message, words), sources(message, words), _passages(message, words)]
    return answer_blocks(message, words), below


def _waiting(said: str) -> Html:
    return join(el("p", said, class_="told", role="status"), _DOTS)


def _is_of_a_sheet(message: Message) -> bool:
    """Whether an answer leans on a sheet, or nothing was found and a sheet comes nearest."""
    if message.facts.get("task") or message.state == "failed":
        return False
    known = message.facts.get("citations") or message.facts.get("hits") or []
    return any(isinstance(entry, dict) and entry.get("kind") in kb_tables.KINDS for entry in known[:3])


def _reckon(message: Message, words: Words) -> Html:
    asked = str(message.facts.get("question") or message.facts.get("asked") or "")
    label = words("Work it out from the tables")
    again = button("try", label, icon("sum"), label, class_="pill plain", data_text=asked, data_task="tables")
    return el("div", again, class_="reckon")


def answer_blocks(message: Message, words: Words) -> list[str]:
    """An answer block by block, its citations as buttons. Quotations are text, what a model wrote is Markdown."""
    facts = message.facts
    if not message.content or facts.get("found") is False:
        return []
    citations = [entry for entry in facts.get("citations") or [] if isinstance(entry, dict)]
    nth: dict[int, int] = {}

    def cite(match: re.Match[str]) -> str:
        number = int(match[1])
        own = [index for index, entry in enumerate(citations) if entry.get("number") == number]
        if not own:
            return html.escape(match[0])
        index = own[min(nth.get(number, 0), len(own) - 1)]
        nth[number] = nth.get(number, 0) + 1
        return _cite(message, index, citations[index], words)

    if facts.get("how") == "extractive" or (not facts.get("how") and not facts.get("model")):
        parts = [part for part in re.split(r"\n\n(?=\S)", message.content) if part.strip()]
        return [_quoted(part, cite) for part in _together(parts)]
    return [with_citations(block, cite) for block in blocks(message.content)]


def with_citations(markup: str, cite: Any) -> str:
    """Sanitised markup, with `[n]` in its text replaced; nothing inside tags, code, links or formulas is touched."""
    parts: list[str] = []
    depth = 0
    for part in _TAG.split(markup):
        if part.startswith("<") and _TAG.fullmatch(part):
            name = re.match(r"</?\s*([a-zA-Z0-9]*)", part)
            if name is not None and _WHOLE.match(name[1].lower()):
                depth += -1 if part.startswith("</") else 1
            parts.append(part)
        else:
            parts.append(part if depth else _MARKER.sub(cite, part))
    return "".join(parts)


def _together(parts: Sequence[str]) -> list[str]:
    """Pieces of an answer, where rows of one table that were found one by one, each under its head, are one table again."""
    found: list[str] = []
    before = ""
    for part in parts:
        match = _ROWS.fullmatch(part.strip())
        head = match["head"] + match["cited"] if match else ""
        if match and head == before:
            found[-1] = f"{found[-1].removesuffix(match['cited'])}{match['rows']}{match['cited']}"
        else:
            found.append(part.strip() if match else part)
        before = head
    return found


def _quoted(text: str, cite: Any) -> str:
    """A piece of a document, as text, or drawn if it is a table."""
    match = re.search(r"\n?\[(\d{1,3})\]\s*$", text)
    if match is not None and (drawn := markdown_table(text[: match.start()])):
        return join(drawn, el("p", Html(with_citations(html.escape(f"[{match[1]}]"), cite))))
    shown = flattened(text) if text.startswith("|") else _ITEM.sub("", text)
    return el("p", Html(with_citations(join(shown), cite)), class_="quoted")


def _cite(message: Message, index: int, entry: Mapping[str, Any], words: Words) -> Html:
    place = where(places_of(entry), str(entry.get("kind", "")), words)
    label = words(
        "Source {number}: {name}", number=entry["number"], name=", ".join(filter(None, (entry["name"], place)))
    )
    return el(
        "button",
        str(entry["number"]),
        type="button",
        class_="cite",
        data_act="cite",
        data_id=message.id,
        data_n=index,
        title=label,
        aria_label=label,
    )


def sources(message: Message, words: Words) -> Html:
    """What the numbers stand for, a card each."""
    cards: list[Html] = []
    seen: set[int] = set()
    for index, entry in enumerate(message.facts.get("citations") or []):
        if not isinstance(entry, dict) or entry["number"] in seen:
            continue
        seen.add(entry["number"])
        place = where(places_of(entry), str(entry.get("kind", "")), words)
        quote = _ITEM.sub("", " ".join(flattened(str(entry.get("quote", ""))).split()))
        short = quote if len(quote) <= _QUOTE else quote[:_QUOTE].rstrip() + " …"
        cards.append(
            el(
                "li",
                el(
                    "button",
                    el("i", str(entry["number"]), class_="cite", aria_hidden="true"),
                    el(
                        "span",
                        el(
                            "span",
                            el("b", entry["name"]),
                            el("span", place, class_="place") if place else "",
                            class_="line",
                        ),
                        el("span", short, class_="quote"),
                    ),
                    type="button",
                    data_act="cite",
                    data_id=message.id,
                    data_n=index,
                ),
            )
        )
    return el("ul", cards, class_="sources", aria_label=words("Sources")) if cards else Html("")


def found_nothing(message: Message, words: Words) -> Html:
    """Said plainly: the documents do not answer this."""
    if message.facts.get("found") is not False or message.facts.get("task"):
        return Html("")
    text = re.sub(r"\s*\[\d+\]", "", message.content).strip() or words("The documents do not answer this.")
    hint = (
        words("Below is what comes nearest. Other words may find more, or a document is missing.")
        if message.facts.get("hits")
        else words("Nothing in this collection comes near. Other words may find more, or a document is missing.")
    )
    return el("div", icon("search"), el("div", el("b", text), el("span", hint)), class_="nothing", role="status")


def _passages(message: Message, words: Words) -> Html:
    """What was found, folded away; open where there is no answer."""
    hits = [entry for entry in message.facts.get("hits") or [] if isinstance(entry, dict)]
    if not hits or message.state == "writing":
        return Html("")
    asked = str(message.facts.get("question") or message.facts.get("asked") or "")
    missed = message.facts.get("found") is False
    cards = [
        el(
            "li",
            el(
                "button",
                el(
                    "span",
                    kind_mark(str(entry.get("kind", ""))),
                    el("b", str(entry.get("name", ""))),
                    el("span", where(places_of(entry), str(entry.get("kind", "")), words), class_="place"),
                    class_="line",
                ),
                el("span", emphasised(snippet(str(entry.get("text", "")), asked, 220), asked), class_="quote"),
                type="button",
                data_act="passage",
                data_id=message.id,
                data_n=number,
            ),
        )
        for number, entry in enumerate(hits[: 3 if missed else None])
    ]
    label = words("Nearest passages") if missed else words("{count} passages were looked at", count=len(hits))
    return el(
        "details",
        el("summary", icon("right"), label),
        el("ul", cards, class_="sources plain"),
        class_="looked",
        open="" if missed else None,
    )


def _follow_ups(message: Message, words: Words) -> Html:
    questions = [text for text in message.facts.get("follow_ups") or [] if isinstance(text, str)]
    if not questions:
        return Html("")
    items = [el("button", text, type="button", data_act="try", data_text=text) for text in questions[:6]]
    return el(
        "div", el("span", words("Go on with")), items, class_="follow", role="group", aria_label=words("Go on with")
    )


def _thought(message: Message, words: Words) -> Html:
    if not message.reasoning:
        return Html("")
    seconds = message.facts.get("thinking_seconds")
    label = words("Thought for {time}", time=duration(float(seconds), words)) if seconds else words("Thoughts")
    if message.state == "writing" and not message.content:
        label = words("Thinking …")
    inner = el("div", el("div", Html("".join(blocks(message.reasoning)))), class_="inner prose")
    return el("details", el("summary", icon("right"), el("span", label, class_="label")), inner, class_="thought")


def _progress(message: Message, words: Words) -> str:
    hits = message.facts.get("hits")
    if message.reasoning:
        return words("Thinking …")
    if not hits:
        return words("Looking through the documents …")
    names = list(dict.fromkeys(str(entry.get("name")) for entry in hits))
    return words("Reading {names} …", names=", ".join(names[:3]))


def _failed(message: Message, words: Words) -> Html:
    again = el("button", words("Try again"), type="button", class_="pill plain", data_act="retry", data_id=message.id)
    said = el("div", el("b", words("The answer could not be finished.")), el("span", message.error or ""))
    return el("div", icon("alert"), said, el("div", again, style="margin-left:auto"), class_="failed", role="alert")


def _bar(message: Message, words: Words) -> Html:
    return join(
        button("copy", words("Copy"), icon("copy"), data_id=message.id) if message.content else "",
        button("retry", words("Another answer"), icon("again"), data_id=message.id)
        if message.facts.get("task") != "remember"
        else "",
        el("span", [el("span", fact) for fact in facts(message, words)], class_="facts"),
    )


def facts(message: Message, words: Words) -> Iterator[str]:
    """How an answer came about."""
    known = message.facts
    if message.state == "stopped":
        yield words("stopped")
    if known.get("task") == "summary" and known.get("of"):
        yield words("{count} documents", count=f"{known['of']:,}") if known["of"] > 1 else words("one document")
    if known.get("question") and known.get("question") != known.get("asked"):
        yield words("searched for “{question}”", question=str(known["question"])[:200])
    if known.get("how") == "extractive" and known.get("found") is not False:
        summary = known.get("task") == "summary"
        yield words("the documents' own sentences") if summary else words("quoted word for word")
    elif known.get("how") == "model" and known.get("model"):
        yield str(known["model"])
    if known.get("finish") == "length":
        yield words("cut off at the longest length")
    if dropped := known.get("dropped"):
        yield words("citations taken out that did not hold: {count}", count=dropped)
    if known.get("note"):
        yield str(known["note"])
    if known.get("seconds"):
        yield duration(float(known["seconds"]), words)


def cited(message: Message, index: int) -> Mapping[str, Any] | None:
    """One of an answer's citations, as it is kept."""
    return _entry(message.facts.get("citations"), index)


def looked_at(message: Message, index: int) -> Mapping[str, Any] | None:
    """One of the passages that were found."""
    return _entry(message.facts.get("hits"), index)


def part_of(message: Message, index: int) -> Mapping[str, Any] | None:
    """One of the parts that a summary was made of."""
    return _entry(message.facts.get("parts"), index)


def _entry(entries: Sequence[Any] | None, index: int) -> Mapping[str, Any] | None:
    known = entries or []
    return known[index] if 0 <= index < len(known) and isinstance(known[index], dict) else None
