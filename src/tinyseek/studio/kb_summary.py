"""A summary on the page: how far it is while it is written, then its text, and every part with the place that it was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tinyseek.evaluate.page import Html, el, join
from tinyseek.knowledge.answer.summary import Part, Progress, Summary, sources_of, summarise
from tinyseek.knowledge.cache import ResponseCache
from tinyseek.knowledge.index.base import ALL, Filters
from tinyseek.studio.chats import Chats, Message
from tinyseek.studio.kb_listing import kind_mark
from tinyseek.studio.kb_text import where
from tinyseek.studio.kb_writing import Writing, places_of
from tinyseek.studio.pieces import duration, icon
from tinyseek.studio.words import Words

if TYPE_CHECKING:
    from tinyseek.knowledge.base import KnowledgeBase
    from tinyseek.llm.base import ChatModel

_MOST_PARTS = 400  # that are kept with a summary


class Summing(Writing["Progress | Summary"]):
    """One summary."""

    def __init__(
        self,
        base: KnowledgeBase,
        talks: Chats,
        message: Message,
        model: ChatModel | None,
        filters: Filters = ALL,
        focus: str = "",
    ) -> None:
        """Prepare to summarise what the filters let through."""
        super().__init__(talks, message, {"task": "summary", "model": model.name if model else ""})
        self._base, self._model, self._filters, self._focus = base, model, filters, focus
        self._kinds: dict[str, tuple[int, str]] = {}  # name -> id and kind

    def steps(self) -> Iterator[Progress | Summary]:
        index = self._base.index
        self._kinds = {document.name: (document.id, document.kind) for document in index.documents(self._filters)}
        with ResponseCache(self._base.home / "responses.db") as cache:
            yield from summarise(sources_of(index, self._filters), self._model, cache, focus=self._focus)

    def take(self, step: Progress | Summary) -> None:
        facts = self.message.facts
        if isinstance(step, Progress):
            facts["progress"] = asdict(step)
            return
        facts.pop("progress", None)
        self.message.content = step.text
        facts |= {
            "how": step.how,
            "of": len(self._kinds),
            "parts": [self._part(part, step.how == "extractive") for part in step.parts[:_MOST_PARTS]],
            "documents": [list(entry) for entry in step.documents[:_MOST_PARTS]],
            "note": "; ".join(step.notes),
        }
        if step.usage is not None:
            facts["prompt_tokens"], facts["completion_tokens"] = step.usage.prompt_tokens, step.usage.completion_tokens

    def _part(self, part: Part, quoted: bool) -> dict[str, Any]:
        document, kind = self._kinds.get(part.name, (-1, ""))
        return {
            "document": document,
            "name": part.name,
            "kind": kind,
            "places": [place.plain() for place in part.places],
            "text": part.summary,
            "quote": part.summary if quoted else "",
        }


def progress(message: Message, words: Words) -> Html:
    """How far it is: parts, and the time left where it is known."""
    found = message.facts.get("progress")
    known: Mapping[str, Any] = found if isinstance(found, dict) else {}
    done, total = int(known.get("done") or 0), int(known.get("total") or 0)
    if not total:
        return el("p", words("Reading the documents …"), class_="told", role="status")
    said = [words("{done} of {total} parts summarised", done=f"{done:,}", total=f"{total:,}")]
    if known.get("kept"):
        said.append(words("{count} of them known from before", count=f"{known['kept']:,}"))
    if known.get("seconds_left"):
        said.append(words("about {time} left", time=duration(float(known["seconds_left"]), words)))
    share = 100 * min(done / total, 1)
    bar = el("span", el("i", style=f"width:{share:.0f}%"), class_="bar")
    return el("div", bar, el("p", " · ".join(said), class_="told"), class_="summing", role="status")


def sentences(message: Message, words: Words) -> Html:
    """A summary made of the documents' own sentences, each leading to where it stands."""
    items = [
        el("li", el("span", entry["text"]), _leads(message, number, entry, words, several=_several(message)))
        for number, entry in _parts(message)
    ]
    return el("ul", items, class_="sentences")


def parts(message: Message, words: Words) -> Html:
    """What each part says, folded: of a summary that a model wrote."""
    documents = [entry for entry in message.facts.get("documents") or [] if len(entry) == 2]
    folded = []
    if len(documents) > 1:
        each = [el("li", el("b", str(name)), el("p", str(text))) for name, text in documents]
        folded.append(_fold(words("Each document"), len(documents), each))
    several = _several(message)
    each = [
        el("li", _leads(message, number, entry, words, several), el("p", entry["text"]))
        for number, entry in _parts(message)
    ]
    if each:
        folded.append(_fold(words("Part by part"), len(each), each))
    return join(*folded)


def _fold(label: str, count: int, items: list[Html]) -> Html:
    head = el("summary", icon("right"), label, " ", el("small", f"{count:,}"))
    return el("details", head, el("ul", items, class_="parts"), class_="looked")


def _leads(message: Message, number: int, entry: Mapping[str, Any], words: Words, several: bool) -> Html:
    """A button that opens the document there."""
    kind, name = str(entry.get("kind", "")), str(entry.get("name", ""))
    place = where(places_of(entry), kind, words)
    shown = ", ".join(filter(None, (name if several else "", place))) or name
    return el(
        "button",
        kind_mark(kind) if several else "",
        el("span", shown),
        type="button",
        class_="leads",
        data_act="part",
        data_id=message.id,
        data_n=number,
        aria_label=words("Open {what}", what=", ".join(filter(None, (name, place)))),
    )


def _parts(message: Message) -> list[tuple[int, Mapping[str, Any]]]:
    return [(n, entry) for n, entry in enumerate(message.facts.get("parts") or []) if isinstance(entry, dict)]


def _several(message: Message) -> bool:
    return int(message.facts.get("of") or 0) > 1
