"""A question in, an answer with its evidence out, piece by piece: search, judge, write, check.

    question -> rewrite -> search -> do the passages answer it? -> the model writes | sentences are quoted -> citations are checked

Without a model, or with one whose context holds no passage, the answer is quoted from the documents. Where the passages do not
seem to hold an answer, none is written: the reply says so, with the nearest passages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from tinyseek.knowledge.answer.citations import Checked, Checker, Citation
from tinyseek.knowledge.answer.extractive import Quote, extract, goes_on
from tinyseek.knowledge.answer.follow_up import follow_ups
from tinyseek.knowledge.answer.options import AnswerSettings
from tinyseek.knowledge.answer.prompt import NOT_FOUND, answer_messages, language_of, says_not_found
from tinyseek.knowledge.answer.rewrite import rewrite
from tinyseek.knowledge.answer.support import Passage, Supporter
from tinyseek.knowledge.index.base import ALL, Filters, StoredChunk
from tinyseek.knowledge.rerank import reranker
from tinyseek.knowledge.retrieve import Base, Hit, find, passages_of
from tinyseek.knowledge.segment import spans
from tinyseek.llm.base import ChatModel, ChatOptions, Message, Usage

DEFAULTS = AnswerSettings()
_SOURCES = 3  # passages that an answer without any marker is held against
_WITH_MODEL = (
    0.4  # of `found_from` is enough where a model reads the passages: it may say itself that they do not answer
)
_ROOM = 64  # tokens between prompt and context, for what a server adds


@dataclass(frozen=True)
class Reply:
    """A whole answer.

    Attributes:
        text: with citations as [n]; n is the place of a passage in `passages`, from 1.
        citations: that were checked and hold, in order.
        dropped: citations of the model that did not hold and were taken out.
        hits: what was found, best first.
        passages: the hits that the answer was written from.
        follow_ups: questions to go on with.
        found: whether the documents answer the question.
        confidence: the probability of that, as the search alone judges it.
        how: "model" or "extractive".
        question: as it was searched for.
        note: why the model did not write it, if it should have; for the user.
        finish: of the model: "stop", "length" ...
    """

    text: str
    citations: list[Citation] = field(default_factory=list)
    dropped: int = 0
    hits: list[Hit] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)
    follow_ups: list[str] = field(default_factory=list)
    found: bool = True
    confidence: float = 0.0
    how: str = "extractive"
    question: str = ""
    note: str = ""
    usage: Usage | None = None
    finish: str | None = None


@dataclass(frozen=True)
class Part:
    """A piece of an answer on its way; one of its fields is filled."""

    question: str = ""  # as it is searched for, if that is not as it was asked
    hits: tuple[Hit, ...] = ()  # what was found: comes before the text
    reasoning: str = ""
    text: str = ""
    citation: Citation | None = None  # the marker in the text just before it holds
    reply: Reply | None = None  # the last part: all of it


def ask(
    base: Base,
    question: str,
    history: Sequence[Message] = (),
    model: ChatModel | None = None,
    settings: AnswerSettings = DEFAULTS,
    filters: Filters = ALL,
) -> Iterator[Part]:
    """Answer a question from the documents. Closing the iterator early stops the model.

    Args:
        history: the conversation before it, as OpenAI's messages.
        model: writes the answer; none to quote the documents.
    Raises:
        UserError: no question, or what the model cannot do.
        ChatError: the model's answer broke off.
    """
    searched = rewrite(question.strip(), history, model) if settings.rewrite else question.strip()
    if searched != question.strip():
        yield Part(question=searched)
    ordered = reranker(settings.rerank, model)
    found = find(base, searched, settings.how, max(3 * settings.passages, 10), filters, ordered)
    hits, sure = found.hits, found.confidence
    yield Part(hits=tuple(hits))
    reply = Reply("", hits=hits, confidence=sure, question=searched)
    if not hits or sure < settings.found_from * (_WITH_MODEL if model is not None else 1.0):
        text = NOT_FOUND[language_of(question)]
        yield Part(text=text)
        yield Part(reply=replace(reply, text=text, found=False))
        return
    chosen = passages_of(hits, settings.passages)
    passages = fitted(base, chosen, settings)
    supporter = Supporter(passages, base.embedder)
    reply = replace(reply, passages=passages)
    if model is not None:
        messages, options = prompt(question, passages, history, model, settings)
        if messages:
            yield from _written(messages, options, question, reply, supporter, model, settings)
            return
        reply = replace(reply, note=f"{model.name} has a context of {model.context} tokens: too little for a passage")
    yield from _quoted(question, hits[: settings.passages], reply, base, settings)


def answer(
    base: Base,
    question: str,
    history: Sequence[Message] = (),
    model: ChatModel | None = None,
    settings: AnswerSettings = DEFAULTS,
    filters: Filters = ALL,
) -> Reply:
    """`ask`, all at once."""
    *_, last = ask(base, question, history, model, settings, filters)
    assert last.reply is not None
    return last.reply


# ---- passages and prompt --------------------------------------------------------------------------------------------------------


def fitted(base: Base, hits: Sequence[Hit], settings: AnswerSettings) -> list[Passage]:
    """The hits' sections, as much of each as the budget leaves room for; the hit itself at least."""
    room = settings.prompt_tokens
    passages: list[Passage] = []
    for number, hit in enumerate(hits):
        share = max(room // (len(hits) - number), 1)
        chunks = _narrowed(base, hit, share if number else max(share, room // 2))
        room -= sum(_tokens(base, chunk) for chunk in chunks)
        if room < 0 and passages:
            break
        passages.append(Passage(hit.document, chunks))
    return passages


def _narrowed(base: Base, hit: Hit, room: int) -> list[StoredChunk]:
    """A hit's section, or what of it around the hit fits."""
    section = hit.section or (hit.chunk,)
    at = next(n for n, chunk in enumerate(section) if chunk.id == hit.chunk.id)
    first = last = at
    left = room - _tokens(base, hit.chunk)
    while True:
        grown = False
        for step in (last + 1, first - 1):  # what follows first: a passage runs on more often than it is led up to
            if 0 <= step < len(section) and (cost := _tokens(base, section[step])) <= left:
                first, last, left, grown = min(first, step), max(last, step), left - cost, True
        if not grown:
            return list(section[first : last + 1])


def _tokens(base: Base, chunk: StoredChunk) -> int:
    return chunk.chunk.tokens or base.embedder.count_tokens([chunk.chunk.text])[0]


def prompt(
    question: str, passages: list[Passage], history: Sequence[Message], model: ChatModel, settings: AnswerSettings
) -> tuple[list[Message], ChatOptions]:
    """What the model is asked; what its context has no room for is taken off the end of `passages`. None fits: no messages."""
    name = model.name.casefold()
    deepseek = settings.citations == "deepseek" or (
        settings.citations == "auto" and ("deepseek-r1" in name or "deepseek-reasoner" in name)
    )
    options = ChatOptions(temperature=settings.temperature, max_tokens=settings.max_tokens)
    talk: Sequence[Message] = history
    while passages:
        messages = answer_messages(question, passages, talk, deepseek)
        length = model.count_tokens(messages, options) if model.context is not None else None
        if length is None or model.context is None:
            return messages, options
        room = model.context - length - _ROOM
        if room >= min(settings.max_tokens, max(128, model.context // 4)):
            return messages, replace(options, max_tokens=min(settings.max_tokens, room))
        if talk:
            talk = ()
        else:
            passages.pop()
    return [], options


# ---- written by a model ---------------------------------------------------------------------------------------------------------


def _written(
    messages: list[Message],
    options: ChatOptions,
    question: str,
    reply: Reply,
    supporter: Supporter,
    model: ChatModel,
    settings: AnswerSettings,
) -> Iterator[Part]:
    checker = Checker(reply.passages, supporter)
    usage: Usage | None = None
    finish: str | None = None
    stream = model.stream(messages, options)
    with closing(stream):  # type: ignore[type-var]  # an iterator that has `close`: a generator
        for delta in stream:
            usage, finish = delta.usage or usage, delta.finish or finish
            if delta.reasoning:
                yield Part(reasoning=delta.reasoning)
            if delta.content:
                yield from _parts(checker.push(delta.content))
    yield from _parts(checker.finish())
    text = checker.text
    found = not says_not_found(text)
    citations = list(checker.citations)
    if found and not citations:
        for source in sources(text, reply.passages, supporter):
            citations.append(source)
            marker = f"{'' if text.endswith(']') else ' '}[{source.number}]"
            text += marker
            yield Part(text=marker)
            yield Part(citation=source)
    used = list(dict.fromkeys(citation.number - 1 for citation in citations))
    asked = follow_ups(question, text, reply.passages, used, settings.follow_ups, model) if found else []
    yield Part(
        reply=replace(
            reply,
            text=text,
            citations=citations,
            dropped=checker.dropped,
            follow_ups=asked,
            found=found,
            how="model",
            usage=usage,
            finish=finish,
        )
    )


def _parts(checked: Checked) -> Iterator[Part]:
    if checked.text:
        yield Part(text=checked.text)
    for citation in checked.citations:
        yield Part(citation=citation)


def sources(text: str, passages: Sequence[Passage], supporter: Supporter) -> list[Citation]:
    """What an answer without markers rests on: of each sentence the passage that holds it best; each passage once."""
    found: dict[int, Citation] = {}
    for start, end in spans(text):
        held = [
            (number, supporter.support(text[start:end].strip(), number))
            for number in range(min(_SOURCES, len(passages)))
        ]
        number, support = max(held, key=lambda pair: pair[1].score if pair[1] else 0.0, default=(0, None))
        if support is not None and number not in found:
            passage = passages[number]
            found[number] = Citation(
                number + 1, passage.document, passage.places(support.span), support.quote, support.claim, support.score
            )
    return [found[number] for number in sorted(found)]


# ---- quoted ---------------------------------------------------------------------------------------------------------------------


def _quoted(question: str, hits: Sequence[Hit], reply: Reply, base: Base, settings: AnswerSettings) -> Iterator[Part]:
    """From the passages that were found themselves: their sections may be four times as long, and say little more."""
    passages = [Passage(hit.document, [hit.chunk]) for hit in hits]
    quotes = extract(reply.question, passages, [hit.score for hit in hits], Supporter(passages, base.embedder))
    order = list(dict.fromkeys([*(quote.number for quote in quotes), *range(len(passages))]))
    quotes = [_whole(quote, passages, hits[quote.number]) for quote in quotes]
    passages = [passages[number] for number in order]  # those that are quoted first: they are [1], [2] ...
    quotes = [replace(quote, number=order.index(quote.number)) for quote in quotes]
    text = ""
    citations: list[Citation] = []
    for quote in quotes:
        citation = _cited(quote, passages[quote.number])
        piece = f"{chr(10) * 2 if text else ''}{quote.text}{chr(10) if quote.text.startswith('|') else ' '}[{citation.number}]"
        text += piece
        citations.append(citation)
        yield Part(text=piece)
        yield Part(citation=citation)
    used = list(dict.fromkeys(quote.number for quote in quotes))
    asked = follow_ups(question, text, passages, used, settings.follow_ups)
    yield Part(
        reply=replace(reply, text=text, citations=citations, passages=passages, follow_ups=asked, found=bool(quotes))
    )


def _whole(quote: Quote, passages: list[Passage], hit: Hit) -> Quote:
    """A quote with the rest of its list, where that is in the chunk after its own, which then belongs to the passage."""
    following = next((chunk for chunk in hit.section if chunk.number == hit.chunk.number + 1), None)
    rest = goes_on(quote, passages[quote.number], following.chunk) if following is not None else ""
    if not rest or following is None:
        return quote
    passages[quote.number] = Passage(hit.document, [hit.chunk, following])
    begin = following.chunk.overlap
    return replace(quote, text=f"{quote.text}\n{rest}", more=(1, begin, begin + len(rest)))


def _cited(quote: Quote, passage: Passage) -> Citation:
    places = passage.places(quote.span) + (passage.places(quote.more) if quote.more else ())
    return Citation(quote.number + 1, passage.document, places, quote.text, quote.text, quote.score)
