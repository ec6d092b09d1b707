"""`tinyseek kb ...`: the knowledge base on the command line. Here the actions are found, and what they share.

Exit statuses: 0; 1 where nothing was found, or some files could not be read; 2 after an error that the user can mend.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tinyseek.commands import Parser, settings_text
from tinyseek.errors import UserError

if TYPE_CHECKING:
    from tinyseek.knowledge.base import KnowledgeBase
    from tinyseek.knowledge.index.base import Filters
    from tinyseek.knowledge.options import KnowledgeSettings
    from tinyseek.settings import Settings

S = TypeVar("S", bound="Settings")

HELP = """\
usage: tinyseek kb ACTION ...

Ask your own documents, with the page in the answer. Nothing leaves this computer unless you name a server.

Documents
  add PATH ...        read files and folders; of those added before, what has changed     tinyseek kb add my-docs/
  watch FOLDER        the same, and go on while it changes                                tinyseek kb watch my-docs/
  list [PATTERN]      what is in the collection                                           tinyseek kb list 'reports/*'
  show NAME           one document: how it was read, passage by passage                   tinyseek kb show report.pdf
  open NAME           its page as a picture, with a passage marked                        tinyseek kb open report.pdf 3
  tag NAME [TAG ...]  give documents tags                                                 tinyseek kb tag report.pdf 2026
  correct ID [TEXT]   put a passage right that was read wrong                             tinyseek kb correct 17 "So it is."
  remove NAME ...     forget documents; files of yours stay                               tinyseek kb remove old.pdf

Questions
  search QUESTION     passages, best first                                                tinyseek kb search "leave days"
  ask [QUESTION]      an answer with its sources; without QUESTION a conversation         tinyseek kb ask "How many?"
  table QUESTION      a question over sheets, answered by a query that you see            tinyseek kb table "sum by region"
  summary NAME ...    a summary of documents or folders, each sentence with its page      tinyseek kb summary report.pdf
  eval FILE           how well your own questions find their pages                        tinyseek kb eval questions.jsonl

Memory, prompts
  remember [TEXT]     facts to keep in mind; without TEXT, what is remembered             tinyseek kb remember "I am vegan."
  forget ID           forget one of them                                                  tinyseek kb forget 2
  template ...        prompts with variables: list, show, save, fill, ask, remove         tinyseek kb template list
  batch FILE OUT      a file of questions to a file of answers; goes on where it stopped  tinyseek kb batch q.jsonl a.jsonl

Other programs
  serve [model=...]   HTTP, OpenAI's API and the page, without a model of your own too    tinyseek kb serve
  mcp                 an MCP server over standard input and output                        tinyseek kb mcp

Collections
  collections         what collections there are                                          tinyseek kb collections
  drop COLLECTION     delete one for good; files of yours stay                            tinyseek kb drop old-project

`-c NAME` chooses a collection (default: "default"), `--json` prints for programs, `tinyseek kb ACTION --help` tells more."""

# Where each action is, in tinyseek.commands; imported when it is asked for.
ACTIONS = {
    "add": "kb_documents:add",
    "watch": "kb_documents:watch",
    "list": "kb_documents:list_documents",
    "show": "kb_documents:show",
    "open": "kb_documents:open_page",
    "tag": "kb_documents:tag",
    "correct": "kb_documents:correct",
    "remove": "kb_documents:remove",
    "collections": "kb_documents:collections",
    "drop": "kb_documents:drop",
    "search": "kb_ask:search",
    "ask": "kb_ask:ask",
    "eval": "kb_eval:evaluate",
    "table": "kb_desk:table",
    "summary": "kb_desk:summary",
    "remember": "kb_desk:remember",
    "forget": "kb_desk:forget",
    "template": "kb_desk:template",
    "batch": "kb_desk:batch",
    "serve": "kb_serve:serve",
    "mcp": "kb_serve:mcp",
}


def kb(arguments: list[str]) -> int:
    """One action."""
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h", "help"):
        print(HELP)
        return 0
    if name not in ACTIONS:
        from tinyseek.settings import suggestion

        raise UserError(f'kb: no action "{name}"; {suggestion(name, ACTIONS)}')
    module, _, function = ACTIONS[name].partition(":")
    action: Callable[[list[str]], int] = getattr(importlib.import_module(f"tinyseek.commands.{module}"), function)
    return action(arguments[1:])


# ---- arguments -------------------------------------------------------------------------------------------------------------------


@dataclass
class Chosen:
    """What an action was given: its words, its options, its settings."""

    words: list[str]
    options: argparse.Namespace
    values: dict[str, Any] = field(default_factory=dict)
    knowledge: dict[str, Any] = field(default_factory=dict)

    def open(self, make: bool = False) -> KnowledgeBase:
        """The collection that was chosen.

        Args:
            make: it may be a new one.
        Raises:
            UserError: there is none, or it cannot be opened.
        """
        from tinyseek.knowledge.base import KnowledgeBase, collections
        from tinyseek.knowledge.options import knowledge_home

        home = home_of(self.options)
        settings, name = self.settings(), self.options.collection
        if not make:
            known = collections(home or knowledge_home(), settings)
            if name not in known:
                there = f"; there are: {', '.join(known)}" if known else ""
                raise UserError(
                    f'there is no collection "{name}" yet{there}. Add documents first: tinyseek kb add my-docs/'
                )
        return KnowledgeBase.open(home, name, settings)

    def settings(self) -> KnowledgeSettings:
        """Of the knowledge base."""
        from tinyseek.knowledge.options import KnowledgeSettings

        return KnowledgeSettings.read(self.knowledge, "command line")


def home_of(options: argparse.Namespace) -> Path | None:
    """The folder of all collections, if it was given."""
    return Path(options.home).expanduser() if options.home else None


def parser_for(action: str, about: str, settings: Sequence[type[Settings]] = (), knowledge: bool = True) -> Parser:
    """The parser of an action, with the options that all have.

    Args:
        settings: what `key=value` may set, beside the knowledge base's own.
        knowledge: whether the knowledge base's own settings are told of.
    """

    def more() -> str:
        from tinyseek.knowledge.options import KnowledgeSettings

        parts = [settings_text(lambda one=one: one)() for one in settings]  # type: ignore[misc]
        if knowledge:
            parts.append(settings_text(lambda: KnowledgeSettings, "settings of the knowledge base (key=value)")())
        return "\n\n".join(parts)

    parser = Parser(f"kb {action}", about, more)
    parser.add_argument(
        "-c", "--collection", default="default", metavar="NAME", help='collection; by default "default"'
    )
    parser.add_argument(
        "--home", metavar="FOLDER", help="folder of all collections; by default TINYSEEK_HOME/knowledge"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    return parser


def parsed(parser: Parser, arguments: list[str], settings: type[S] | None = None) -> tuple[Chosen, S | None]:
    """The arguments taken apart: words, options, `key=value`. `settings` are an action's own; the rest are the knowledge base's.

    Raises:
        UserError: a setting that is none.
    """
    from tinyseek.knowledge.options import KnowledgeSettings
    from tinyseek.settings import nested

    options = parser.parse_intermixed_args(arguments)
    words: list[str] = list(options.words or []) if hasattr(options, "words") else []
    given = [word for word in words if is_setting(word, settings)]
    values = nested(given)
    known = KnowledgeSettings.model_fields
    own = {} if settings is None else {key: value for key, value in values.items() if key in settings.model_fields}
    rest = {key: value for key, value in values.items() if key not in own}
    if settings is not None and any(key not in known for key in rest):
        own |= {key: value for key, value in rest.items() if key not in known}  # to be complained of
        rest = {key: value for key, value in rest.items() if key in known}
    chosen = Chosen([word for word in words if word not in given], options, own, rest)
    return chosen, settings.read(own, "command line") if settings is not None else None


def is_setting(word: str, settings: type[Settings] | None = None) -> bool:
    """Whether a word is `key=value` rather than a file's name or a question."""
    from tinyseek.knowledge.options import KnowledgeSettings

    key, equals, _ = word.partition("=")
    first = key.partition(".")[0]
    known = {*KnowledgeSettings.model_fields, *(settings.model_fields if settings else ())}
    return bool(equals) and (first in known or (key.replace(".", "").isidentifier() and not Path(word).exists()))


def add_filters(parser: Parser) -> None:
    """The options that say where to look."""
    group = parser.add_argument_group("where to look")
    group.add_argument(
        "--file", action="append", default=[], metavar="PATTERN", help="documents of this name (report*.pdf)"
    )
    group.add_argument("--folder", action="append", default=[], metavar="FOLDER", help="documents in this folder")
    group.add_argument(
        "--tag", action="append", default=[], metavar="TAG", help="documents with this tag; several: with all"
    )
    group.add_argument(
        "--kind", action="append", default=[], metavar="KIND", help="pdf, docx, xlsx, markdown, mail ..."
    )
    group.add_argument("--since", metavar="DATE", help="documents of this date or later (2026-01-31)")
    group.add_argument("--until", metavar="DATE", help="documents of this date or earlier")
    group.add_argument("--pages", metavar="A-B", help="these pages (3, 3-7)")


def filters_of(options: argparse.Namespace) -> Filters:
    """What `add_filters`' options say.

    Raises:
        UserError: pages or a date that are none.
    """
    from datetime import date

    from tinyseek.knowledge.index.base import Filters

    pages = None
    if options.pages:
        first, _, last = options.pages.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or not 1 <= int(first) <= int(last or first):
            raise UserError(f"--pages {options.pages}: give a page, or the first and the last: 3-7")
        pages = (int(first), int(last or first))
    for name in ("since", "until"):
        given = getattr(options, name)
        try:
            if given:
                date.fromisoformat(given)
        except ValueError:
            raise UserError(f"--{name} {given}: is no date; write it like 2026-01-31") from None
    return Filters(
        names=tuple(options.file),
        folders=tuple(options.folder),
        tags=tuple(options.tag),
        kinds=tuple(options.kind),
        since=options.since,
        until=options.until,
        pages=pages,
    )


# ---- out -------------------------------------------------------------------------------------------------------------------------


def print_json(value: Any) -> None:
    """A line of JSON on standard output."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def is_terminal() -> bool:
    """Whether a person reads standard output."""
    return sys.stdout.isatty()


def text_of(words: Sequence[str]) -> str:
    """A question of several words; `-` reads standard input.

    Raises:
        UserError: it is no text.
    """
    try:
        text = sys.stdin.read() if list(words) == ["-"] else " ".join(words)
        text.encode()
    except UnicodeError:
        raise UserError("the question is not UTF-8 text") from None
    return text.strip()
