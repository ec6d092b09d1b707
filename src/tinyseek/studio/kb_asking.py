"""An answer from documents on its way: its parts, its citations, the passages that it was made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tinyseek.knowledge.index.base import ALL, Filters
from tinyseek.studio.chats import Chats, Message
from tinyseek.studio.kb_writing import Writing

if TYPE_CHECKING:
    from tinyseek.knowledge.answer.ask import Part, Reply
    from tinyseek.knowledge.answer.citations import Citation
    from tinyseek.knowledge.answer.options import AnswerSettings
    from tinyseek.knowledge.base import KnowledgeBase
    from tinyseek.knowledge.retrieve import Hit
    from tinyseek.llm.base import ChatModel

NEAREST = 8  # passages that are kept with an answer
_SHOWN = 600  # characters of each


class Asking(Writing["Part"]):
    """One answer from the documents' text."""

    def __init__(
        self,
        base: KnowledgeBase,
        talks: Chats,
        message: Message,
        before: Sequence[Message],
        model: ChatModel | None,
        filters: Filters = ALL,
        settings: AnswerSettings | None = None,
    ) -> None:
        """Prepare to answer the last message of `before`."""
        self._question = before[-1].content
        super().__init__(talks, message, {"model": model.name if model else "", "asked": self._question})
        self._base, self._model, self._filters, self._settings = base, model, filters, settings
        self._history = [{"role": said.role, "content": said.content} for said in before[:-1] if said.content]

    def steps(self) -> Iterator[Part]:
        return self._base.ask(self._question, self._history, self._model, self._filters, self._settings)

    def take(self, part: Part) -> None:
        message, facts = self.message, self.message.facts
        if part.question:
            facts["question"] = part.question
        if part.hits:
            facts["hits"] = [hit_facts(hit) for hit in part.hits[:NEAREST]]
        if part.text and message.reasoning and "thinking_seconds" not in facts:
            facts["thinking_seconds"] = round(self.seconds, 3)
        message.reasoning += part.reasoning
        message.content += part.text
        if part.citation is not None:
            facts.setdefault("citations", []).append(citation_facts(part.citation))
        if part.reply is not None:
            self._take_reply(part.reply)

    def _take_reply(self, reply: Reply) -> None:
        facts = self.message.facts
        self.message.content = reply.text
        facts |= {
            "citations": [citation_facts(citation) for citation in reply.citations],
            "follow_ups": list(reply.follow_ups),
            "found": reply.found,
            "dropped": reply.dropped,
            "how": reply.how,
            "confidence": round(reply.confidence, 3),
            "note": reply.note,
            "finish": reply.finish,
        }
        if reply.usage is not None:
            facts["prompt_tokens"] = reply.usage.prompt_tokens
            facts["completion_tokens"] = reply.usage.completion_tokens


def citation_facts(citation: Citation) -> dict[str, Any]:
    """A citation as it is kept."""
    return {
        "number": citation.number,
        "document": citation.document.id,
        "name": citation.document.name,
        "kind": citation.document.kind,
        "places": [place.plain() for place in citation.places],
        "quote": citation.quote,
    }


def hit_facts(hit: Hit) -> dict[str, Any]:
    """A passage that was found, as it is kept."""
    return {
        "chunk": hit.chunk.id,
        "document": hit.document.id,
        "name": hit.document.name,
        "kind": hit.document.kind,
        "path": list(hit.chunk.chunk.path),
        "places": [place.plain() for place in hit.chunk.chunk.places],
        "text": hit.chunk.chunk.text[:_SHOWN],
        "score": round(hit.score, 4),
        "lexical": hit.lexical,
        "dense": hit.dense,
    }
