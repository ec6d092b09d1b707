"""`tinyseek kb table|summary|remember|forget|template|batch`: sheets, summaries, memory, prompts."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tinyseek.commands import say
from tinyseek.commands.kb import add_filters, filters_of, home_of, is_terminal, parsed, parser_for, print_json, text_of
from tinyseek.commands.kb_ask import AskSettings, open_model
from tinyseek.commands.kb_documents import one_document
from tinyseek.errors import UserError
from tinyseek.knowledge.answer.options import AnswerSettings
from tinyseek.settings import Settings

if TYPE_CHECKING:
    from argparse import Namespace

    from tinyseek.knowledge.base import KnowledgeBase
    from tinyseek.knowledge.batch import Ask, Outcome, Prompt
    from tinyseek.knowledge.index.base import Filters
    from tinyseek.llm.base import ChatModel

_MODEL = (
    "who writes: a model's folder, a pulled name, ollama:NAME, deepseek, http://host:port; if none, it is done by rules "
    "and quotation"
)


class WriterSettings(Settings):
    """Who does it."""

    model: str = Field("", description=_MODEL)


def table(arguments: list[str]) -> int:
    """A question over sheets. 1 if there is no query for it."""
    parser = parser_for(
        "table",
        "Answer a question over the Excel and CSV files of the collection by a read-only query, and show the query.",
        [WriterSettings],
        knowledge=False,
    )
    parser.add_argument("words", nargs="+", metavar="QUESTION")
    parser.add_argument("--chart", metavar="FILE.png", help="write a chart, where one helps")
    add_filters(parser)
    chosen, settings = parsed(parser, arguments, WriterSettings)
    assert settings is not None
    from tinyseek.knowledge.tables.ask import ask_tables, files_of
    from tinyseek.knowledge.tables.options import TableSettings
    from tinyseek.knowledge.tables.room import TableRoom

    with chosen.open() as base, open_model(settings.model) as model:
        files = files_of(base.index, filters_of(chosen.options))
        with TableRoom(files, TableSettings(), base.settings.limits) as room:
            reply = ask_tables(room, text_of(chosen.words), model)
    if chosen.options.json:
        print_json(reply.plain())
    else:
        _show(reply.markdown())
    picture = reply.picture() if chosen.options.chart else None
    if picture is not None:
        _write(Path(chosen.options.chart), picture)
        say(f"chart: {chosen.options.chart}")
    elif chosen.options.chart:
        say("(no chart would help here)")
    return 0 if reply.sql else 1


def _show(markdown: str) -> None:
    """In its form for a person; as it is in a pipe."""
    if not is_terminal():
        print(markdown)
        return
    from rich.markdown import Markdown

    from tinyseek.terminal import console

    console().print(Markdown(markdown))


def _write(file: Path, data: bytes) -> None:
    from tinyseek.knowledge.files import write_whole

    write_whole(file.absolute(), data)


# ---- summaries -------------------------------------------------------------------------------------------------------------------


class SummarySettings(WriterSettings):
    """What a summary is to be like."""

    words: int = Field(300, ge=20, le=5000, description="most words (characters in Chinese)")
    language: str = Field("", pattern=r"^(en|zh)?$", description="en or zh; if none, that of the document")
    focus: str = Field("", max_length=500, description="what it is above all to be about")


def summary(arguments: list[str]) -> int:
    """A summary of documents."""
    parser = parser_for(
        "summary",
        "Summarise documents, or all of a folder together. What was summarised is kept, so that a stopped one goes on.",
        [SummarySettings],
        knowledge=False,
    )
    parser.add_argument(
        "words", nargs="*", metavar="NAME", help="documents; without any, those that the options choose"
    )
    parser.add_argument("--parts", action="store_true", help="with the summaries of the parts, and their pages")
    add_filters(parser)
    chosen, settings = parsed(parser, arguments, SummarySettings)
    assert settings is not None
    from tinyseek.evaluate.progress import counted
    from tinyseek.knowledge.answer.summary import Progress, Summary, sources_of, summarise
    from tinyseek.knowledge.cache import ResponseCache

    with chosen.open() as base, open_model(settings.model) as model:
        filters = _named(base, chosen.words, filters_of(chosen.options))
        with ResponseCache(base.home / "responses.db") as cache, counted("parts", 1) as update:
            done: Summary | None = None
            told = 0.0
            steps = summarise(
                sources_of(base.index, filters),
                model,
                cache,
                language=settings.language,
                focus=settings.focus,
                words=settings.words,
            )
            for step in steps:
                if isinstance(step, Summary):
                    done = step
                elif isinstance(step, Progress) and time.monotonic() - told > 5 and step.total > 1:
                    told = time.monotonic()
                    left = f", about {step.seconds_left:.0f} s left" if step.seconds_left else ""
                    say(f"{step.done:,} of {step.total:,} parts summarised{left}")
            update(1)
    assert done is not None
    if chosen.options.json:
        parts = [{"document": p.name, "where": p.where, "summary": p.summary} for p in done.parts]
        print_json({"summary": done.text, "how": done.how, "parts": parts, "notes": list(done.notes)})
        return 0
    _show(done.text)
    if chosen.options.parts:
        for part in done.parts:
            print(f"\n{', '.join(filter(None, (part.name, part.where)))}\n  {part.summary}")
    for note in done.notes:
        say(f"({note})")
    if done.how == "extractive":
        say("(the documents' own sentences; model=... writes a summary)")
    return 0


def _named(base: KnowledgeBase, names: list[str], filters: Filters) -> Filters:
    from dataclasses import replace

    if not names:
        return filters
    ids: list[int] = []
    for name in names:
        inside = [d.id for d in base.documents() if d.name.startswith(name.rstrip("/") + "/")]
        ids += inside or [one_document(base, name).id]
    return replace(filters, documents=tuple(ids))


# ---- memory ----------------------------------------------------------------------------------------------------------------------


def remember(arguments: list[str]) -> int:
    """Keep a fact, or show what is kept. 1 if nothing is."""
    parser = parser_for(
        "remember",
        "Keep a fact in mind; without TEXT, show what is remembered. Facts lie in a collection of their own, personal.",
        knowledge=False,
    )
    parser.add_argument("words", nargs="*", metavar="TEXT")
    parser.add_argument("--tag", action="append", default=[], metavar="TAG")
    parser.add_argument("--edit", type=int, metavar="ID", help="put TEXT in the place of this fact")
    chosen, _ = parsed(parser, arguments)
    from tinyseek.knowledge.base import KnowledgeBase
    from tinyseek.knowledge.memory import Facts, collection_of

    text = text_of(chosen.words) if chosen.words else ""
    with KnowledgeBase.open(home_of(chosen.options), collection_of(), chosen.settings()) as base:
        facts = Facts(base)
        if chosen.options.edit is not None and not text:
            raise UserError(f'give the new text: tinyseek kb remember --edit {chosen.options.edit} "..."')
        if text:
            edit = chosen.options.edit
            fact = facts.edit(edit, text) if edit is not None else facts.remember(text, chosen.options.tag)
            print_json(asdict(fact)) if chosen.options.json else print(f"{fact.id}  {fact.text}")
            return 0
        kept = facts.all(tags=chosen.options.tag)
        for fact in kept:
            tags = f"  ({', '.join(fact.tags)})" if fact.tags else ""
            print_json(asdict(fact)) if chosen.options.json else print(f"{fact.id:>4}  {fact.text}{tags}")
        if not kept and not chosen.options.json:
            print('nothing is remembered yet; tinyseek kb remember "I am vegan."')
        return 0 if kept else 1


def forget(arguments: list[str]) -> int:
    """Forget facts. 1 if there are no such."""
    parser = parser_for("forget", "Forget facts by their numbers, which kb remember shows.", knowledge=False)
    parser.add_argument("words", nargs="+", metavar="ID")
    chosen, _ = parsed(parser, arguments)
    from tinyseek.knowledge.base import KnowledgeBase
    from tinyseek.knowledge.memory import Facts, collection_of

    wrong = next((word for word in chosen.words if not word.isdecimal() or len(word) > 18), None)
    if wrong is not None:
        raise UserError(f"{wrong}: is no number of a fact; tinyseek kb remember shows them")
    with KnowledgeBase.open(home_of(chosen.options), collection_of(), chosen.settings()) as base:
        count = Facts(base).forget([int(word) for word in chosen.words])
    print_json({"forgotten": count}) if chosen.options.json else print(f"forgot {count}")
    return 0 if count else 1


# ---- prompts ---------------------------------------------------------------------------------------------------------------------


def template(arguments: list[str]) -> int:
    """Prompts with variables."""
    parser = parser_for(
        "template",
        "list                        what there is\n"
        "show NAME                   one, as YAML\n"
        "save NAME FILE.yaml         keep one: background, need, output, variables in braces\n"
        "fill NAME key=value ...     the prompt that it makes; key=@FILE reads a file\n"
        "ask NAME key=value ...      the answer to it; model=... says whose\n"
        "remove NAME                 delete one of yours",
        knowledge=False,
    )
    parser.add_argument("action", choices=("list", "show", "save", "fill", "ask", "remove"))
    parser.add_argument("rest", nargs="*", metavar="NAME | key=value")
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek.knowledge.options import knowledge_home
    from tinyseek.knowledge.templates import Template, Templates
    from tinyseek.settings import read_yaml

    kept = Templates((home_of(chosen) or knowledge_home()) / "templates")
    if chosen.action == "list":
        return _list_templates(kept, chosen)
    if not chosen.rest:
        raise UserError(f"which template? tinyseek kb template {chosen.action} summary")
    name, *rest = chosen.rest
    if chosen.action == "save":
        if len(rest) != 1:
            raise UserError(f"give the file: tinyseek kb template save {name} my-template.yaml")
        file = kept.write(name, Template.read(read_yaml(Path(rest[0])), rest[0]))
        print_json({"file": str(file)}) if chosen.json else print(f"kept as {file}")
        return 0
    if chosen.action == "remove":
        kept.delete(name)
        print_json({"removed": name}) if chosen.json else print(f"removed {name}")
        return 0
    found = kept.read(name)
    if chosen.action == "show":
        print_json(found.plain()) if chosen.json else print(_yaml(found), end="")
        return 0
    values = _values(rest)
    model = str(values.pop("model", "")) if "model" not in found.names else ""
    messages = found.messages(values)
    if chosen.action == "fill":
        for message in messages:
            print_json(message) if chosen.json else print(f"[{message['role']}]\n{message['content']}\n")
        return 0
    if not model:
        raise UserError(f"say who answers: tinyseek kb template ask {name} model=ollama:NAME ...")
    with open_model(model) as chat:
        assert chat is not None
        _stream(chat, messages, chosen)
    return 0


def _stream(chat: ChatModel, messages: list[dict[str, Any]], chosen: Namespace) -> None:
    if chosen.json:
        print_json(chat.complete(messages).message)
        return
    for delta in chat.stream(messages):
        print(delta.content, end="", flush=True)
    print()


def _list_templates(kept: Any, chosen: Namespace) -> int:
    from tinyseek.terminal import table as print_table

    rows = [(name, ", ".join(kept.read(name).names), kept.read(name).about) for name in kept.names()]
    if chosen.json:
        for name, variables, about in rows:
            print_json({"name": name, "variables": variables.split(", "), "about": about})
    else:
        print_table(("template", "variables", "for"), rows)
    return 0


def _yaml(found: Any) -> str:
    import yaml

    plain = {key: value for key, value in found.plain().items() if value not in ("", {}, None)}
    return yaml.safe_dump(plain, allow_unicode=True, sort_keys=False)


def _values(words: list[str]) -> dict[str, str]:
    """`key=value` as text; `key=@FILE` is the file's text, `key=@-` standard input's."""
    values: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f'"{word[:80]}" is no value; write key=value')
        if value == "@-":
            value = sys.stdin.read()
        elif value.startswith("@"):
            try:
                value = Path(value[1:]).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{value[1:]}: cannot be read ({error})") from None
        values[key] = value
    return values


class BatchSettings(AskSettings):
    """How a batch is answered."""

    documents: bool = Field(True, description="answer from the documents; false asks the model alone")
    template: str = Field("", description="a template that the rows of the file fill in; goes with documents=false")
    at_once: int = Field(4, ge=1, le=64, description="questions under way at the same time")


def batch(arguments: list[str]) -> int:
    """A file of questions to a file of answers. 1 if some failed."""
    parser = parser_for(
        "batch",
        "Answer a file of questions (.jsonl, .csv, .tsv, .txt) into another, in the same order. What has come is kept: after a\n"
        "stop the same command goes on, and asks again for what failed alone.",
        [BatchSettings],
        knowledge=False,
    )
    parser.add_argument("words", nargs="+", metavar="QUESTIONS ANSWERS")
    add_filters(parser)
    chosen, settings = parsed(parser, arguments, BatchSettings)
    assert settings is not None
    if len(chosen.words) != 2:
        raise UserError(
            "give the file of questions and that of answers: tinyseek kb batch questions.jsonl answers.jsonl"
        )
    from contextlib import ExitStack

    from tinyseek.knowledge.batch import by_model, identity, run_batch
    from tinyseek.knowledge.options import knowledge_home
    from tinyseek.knowledge.templates import Templates
    from tinyseek.llm.base import ChatOptions

    questions, answers = (Path(word) for word in chosen.words)
    templates = Templates((home_of(chosen.options) or knowledge_home()) / "templates")
    found = templates.read(settings.template) if settings.template else None
    with ExitStack() as stack:
        model = stack.enter_context(open_model(settings.model))
        own = AnswerSettings.model_validate(
            {k: v for k, v in settings.plain().items() if k in AnswerSettings.model_fields}
        )
        if settings.documents:
            if found is not None:
                raise UserError(
                    f"template={settings.template}: goes with documents=false; the documents are asked plain questions"
                )
            base = stack.enter_context(chosen.open())
            filters = filters_of(chosen.options)
            ask = _by_documents(base, model, own, filters)
            about = [
                *(identity(model) if model else ["quotes"]),
                own.plain(),
                str(filters),
                base.collection,
                base.index.revision(),
            ]
        else:
            if model is None:
                raise UserError("documents=false needs a model that answers: model=ollama:NAME")
            options = ChatOptions(temperature=settings.temperature, max_tokens=settings.max_tokens)
            ask, about = by_model(model, options), list(identity(model, options))
        last = None
        told = 0.0
        for last in run_batch(questions, answers, ask, about, found, settings.at_once):
            if time.monotonic() - told > 5:
                told = time.monotonic()
                say(last.told())
    assert last is not None
    if chosen.options.json:
        print_json(asdict(last))
    else:
        print(f"{last.told()}: {answers}")
    return 1 if last.failed else 0


def _by_documents(base: KnowledgeBase, model: ChatModel | None, settings: AnswerSettings, filters: Filters) -> Ask:
    from tinyseek.knowledge.answer.ask import answer
    from tinyseek.knowledge.batch import Outcome
    from tinyseek.knowledge.plain import plain_citation

    def ask(prompt: Prompt) -> Outcome:
        *before, last = prompt.messages
        reply = answer(base, str(last["content"]), before, model, settings, filters)
        citations = [plain_citation(citation) for citation in reply.citations]
        return Outcome(
            reply.text,
            finish=reply.finish or "stop",
            usage=asdict(reply.usage) if reply.usage else {},
            details={"citations": citations, "found": reply.found, "dropped_citations": reply.dropped},
        )

    return ask
