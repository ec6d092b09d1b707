"""`tinyseek kb search|ask`: questions on the command line, with file and page."""

from __future__ import annotations

import contextlib
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from tinyseek.commands import say
from tinyseek.commands.kb import (
    Chosen,
    add_filters,
    filters_of,
    is_terminal,
    parsed,
    parser_for,
    print_json,
    text_of,
)
from tinyseek.commands.kb_documents import with_source
from tinyseek.errors import UserError
from tinyseek.knowledge.answer.options import AnswerSettings, How, Rerank
from tinyseek.settings import Settings

if TYPE_CHECKING:
    from tinyseek.knowledge.answer.ask import Part, Reply
    from tinyseek.knowledge.answer.citations import Citation
    from tinyseek.knowledge.base import KnowledgeBase
    from tinyseek.knowledge.index.base import Filters
    from tinyseek.knowledge.retrieve import Hit
    from tinyseek.llm.base import ChatModel, Message


class SearchSettings(Settings):
    """How passages are found."""

    how: How = Field("hybrid", description="by words (lexical), by meaning (dense), or by both (hybrid)")
    limit: int = Field(5, ge=1, le=1000, description="passages that are shown")
    rerank: Rerank = Field("none", description="order them anew by the meaning of single sentences (sentences)")


class AskSettings(AnswerSettings):
    """How a question is answered, and by whom."""

    model: str = Field(
        "",
        description="the chat model that writes the answer: a model's folder, a pulled name, ollama:NAME, deepseek, "
        "http://host:port; if none, the documents are quoted",
    )


def search(arguments: list[str]) -> int:
    """Passages, best first. 1 if there are none."""
    parser = parser_for(
        "search", "The passages that say most about a question, best first.", [SearchSettings], knowledge=False
    )
    parser.add_argument("words", nargs="+", metavar="QUESTION", help="- reads standard input")
    parser.add_argument("--full", action="store_true", help="whole passages, not the part with the question's words")
    add_filters(parser)
    chosen, settings = parsed(parser, arguments, SearchSettings)
    assert settings is not None
    from tinyseek.knowledge.plain import plain_hit
    from tinyseek.knowledge.rerank import reranker

    question = text_of(chosen.words)
    with chosen.open() as base:
        ranked = reranker(settings.rerank, None)
        hits = base.search(question, settings.how, settings.limit, filters_of(chosen.options), ranked)
        if chosen.options.json:
            for hit in hits:
                print_json(with_source(plain_hit(hit), hit.document))
        else:
            _show_hits(hits, question, chosen.options.full)
            if not hits:
                print(f"nothing was found in the collection {base.collection}")
    return 0 if hits else 1


def _show_hits(hits: list[Hit], question: str, full: bool) -> None:
    from rich.text import Text

    from tinyseek.commands.kb_places import emphasised, heading, link, location, snippet
    from tinyseek.terminal import console

    out = console()
    for number, hit in enumerate(hits, 1):
        chunk = hit.chunk.chunk
        head = Text(f"{number:>2}. ")
        head.append(location(hit.document, chunk.places), style=_linked(link(hit.document, chunk.places)))
        if chunk.path:
            head.append(f"  {heading(chunk)}", style="dim")
        head.append(f"  {hit.score:.2f}", style="dim")
        out.print(head, soft_wrap=True)
        text = emphasised(chunk.text if full else snippet(chunk.text, question), question)
        for line in text.wrap(out, out.width - 4):
            line.rstrip()
            out.print(Text("    ") + line, soft_wrap=True)
        out.print()


def _linked(address: str | None) -> str:
    return "bold cyan" + (f" link {address}" if address and is_terminal() else "")


# ---- answers ---------------------------------------------------------------------------------------------------------------------


def ask(arguments: list[str]) -> int:
    """An answer, or a conversation. 1 if the documents do not answer."""
    parser = parser_for(
        "ask",
        "Answer a question from the documents, with numbered sources. Without QUESTION a conversation: each line is a\n"
        "question that may lean on those before it.",
        [AskSettings],
        knowledge=False,
    )
    parser.add_argument("words", nargs="*", metavar="QUESTION", help="- reads standard input as one question")
    add_filters(parser)
    chosen, settings = parsed(parser, arguments, AskSettings)
    assert settings is not None
    filters = filters_of(chosen.options)
    with chosen.open() as base, open_model(settings.model) as model:
        if chosen.words:
            reply = _answer(base, text_of(chosen.words), [], model, settings, filters, chosen)
            return 0 if reply.found else 1
        return _converse(base, model, settings, filters, chosen)


@contextlib.contextmanager
def open_model(where: str) -> Iterator[ChatModel | None]:
    """The chat model that was named, if one was."""
    if not where:
        yield None
        return
    from tinyseek.llm.base import ChatModel

    with ChatModel.open(where) as model:
        yield model


def _converse(
    base: KnowledgeBase, model: ChatModel | None, settings: AskSettings, filters: Filters, chosen: Chosen
) -> int:
    person = sys.stdin.isatty()
    if person:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - line editing and history in input()
        documents, chunks = base.index.count()
        writer = model.name if model else "quotations; model=... for written answers"
        say(
            f"{base.collection}: {documents:,} documents, {chunks:,} passages ({writer}). /new begins anew, Ctrl-D leaves"
        )
    history: list[Message] = []
    found = True
    while True:
        try:
            question = input("\n? " if person else "").strip()
        except EOFError:
            return 0 if found else 1
        except KeyboardInterrupt:
            if not person:
                raise
            print("\n(Ctrl-D leaves)")
            continue
        if question == "/new":
            history = []
        elif question:
            if not person and not chosen.options.json:
                print(f"{chr(10) if history else ''}? {question}")
            try:
                reply = _answer(base, question, history, model, settings, filters, chosen)
            except KeyboardInterrupt:
                if not person:
                    raise
                print(" (stopped)")
                continue
            except UserError as error:
                if not person:
                    raise
                print(f"({error})")
                continue
            found = reply.found
            history += [{"role": "user", "content": question}, {"role": "assistant", "content": reply.text}]


def _answer(
    base: KnowledgeBase,
    question: str,
    history: list[Message],
    model: ChatModel | None,
    settings: AskSettings,
    filters: Filters,
    chosen: Chosen,
) -> Reply:
    from tinyseek.knowledge.answer.ask import ask as parts_of
    from tinyseek.knowledge.plain import plain_reply

    own = AnswerSettings.model_validate(settings.model_dump(exclude={"model"}))
    parts = parts_of(base, question, history, model, own, filters)
    if not chosen.options.json:
        return _Screen(quoted=model is None).show(parts)
    *_, last = parts
    assert last.reply is not None
    plain = plain_reply(last.reply)
    for entry, citation in zip(plain["citations"], last.reply.citations, strict=True):
        with_source(entry, citation.document)
    print_json(plain)
    return last.reply


class _Screen:
    """An answer while it is written: for a person in its form, with links once it is known where they lead; else as it is."""

    def __init__(self, quoted: bool) -> None:
        from tinyseek.commands.kb_markdown import Screen
        from tinyseek.terminal import console

        self._out = console()
        self._waiting = ""
        self._links: dict[int, str] = {}
        self._person = is_terminal()
        self._thinking = False
        self._screen = Screen(self._out, quoted)

    def show(self, parts: Iterator[Part]) -> Reply:
        """All of it; the whole answer is given back."""
        reply: Reply | None = None
        try:
            for part in parts:
                if part.citation is not None:
                    self._cite(part.citation)
                    continue
                self._flush()
                if part.question and self._person:
                    say(f"(searching for: {part.question})")
                if part.reasoning:
                    self._think(part.reasoning)
                if part.text:
                    self._end_thought()
                    self._waiting = part.text
                reply = part.reply or reply
            self._flush()
        finally:
            if self._person:
                self._screen.end(self._links)
        assert reply is not None
        self._after(reply)
        return reply

    def _cite(self, citation: Citation) -> None:
        from tinyseek.commands.kb_places import link

        address = link(citation.document, citation.places)
        if address:
            self._links[citation.number] = address

    def _flush(self) -> None:
        text, self._waiting = self._waiting, ""
        if text and self._person:
            self._screen.write(text, self._links)
        elif text:
            print(text, end="", flush=True)

    def _think(self, text: str) -> None:
        if self._person:
            self._out.print(text, end="", style="dim", soft_wrap=True)
            self._thinking = True

    def _end_thought(self) -> None:
        if self._thinking:
            self._out.print("\n")
            self._thinking = False

    def _after(self, reply: Reply) -> None:
        """Sources, and what is to be known of the answer."""
        from rich.text import Text

        from tinyseek.commands.kb_places import heading, link, location, snippet

        self._end_thought()
        if not self._person:
            print("\n")
        shown: set[tuple[int, str]] = set()
        width = min(shutil.get_terminal_size().columns, 120) if self._person else 140
        for citation in reply.citations:
            key = (citation.number, location(citation.document, citation.places))
            if key in shown:
                continue
            shown.add(key)
            line = Text(f"[{citation.number}] ")
            line.append(key[1], style=_linked(link(citation.document, citation.places)))
            self._out.print(line, soft_wrap=True)
            if reply.how == "model":
                quote = textwrap.shorten(citation.quote, 2 * width - 12, placeholder=" …")
                for row in textwrap.wrap(f"“{quote}”", width - 4):
                    self._out.print(f"    {row}", style="dim", soft_wrap=True)
        if not reply.found and reply.hits:
            self._out.print("The nearest passages:", style="dim")
            for hit in reply.hits[:3]:
                line = Text("  ")
                places = hit.chunk.chunk.places
                line.append(location(hit.document, places), style=_linked(link(hit.document, places)))
                line.append(
                    f"  {heading(hit.chunk.chunk) or snippet(hit.chunk.chunk.text, reply.question, 80)}", style="dim"
                )
                self._out.print(line, soft_wrap=True)
        if reply.note:
            say(f"({reply.note})")
        if reply.dropped:
            many = "citation" if reply.dropped == 1 else "citations"
            say(f"({reply.dropped} {many} that the passages do not bear out left out)")
        if reply.finish == "length":
            say("(the answer was cut off; max_tokens=2048 makes room for more)")
        if self._person and reply.follow_ups:
            self._out.print("\nGo on with:", style="dim")
            for question in reply.follow_ups:
                self._out.print(f"  {question}", style="dim", soft_wrap=True)
