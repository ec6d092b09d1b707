"""Markdown as safe HTML: what a model says is shown, never run.

Three walls, each enough by itself: the parser takes no HTML; what comes out is sanitised against a list of what may be there; and
the page's content policy runs no inline script and loads nothing from elsewhere (`app.py`). Pictures become links, because fetching
one tells its server who reads here, and what the address says.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

from tinyseek.studio.formulas import add_formulas, mathml

LONGEST = 40_000  # characters that are parsed, in a second at worst; what is longer is shown as plain text
_LONGEST_CODE = 20_000  # characters that are highlighted


def _set(names: str) -> set[str]:
    return set(names.split())


# Lexers are many and some are slow on hostile text; these are the ones that people ask for.
LANGUAGES = _set(
    "bash c cpp c++ csharp cs css csv cypher diff docker dockerfile elixir fortran go golang graphql haskell html http ini java"
    " javascript js json jsx julia kotlin latex lua makefile matlab markdown md nginx objective-c perl php powershell prolog proto"
    " protobuf py py3 python python3 r rb ruby rs rust scala scheme sh shell sql swift tex toml ts tsx typescript vim xml yaml yml"
    " zig zsh"
)

_MATH = _set(
    "math maction merror mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts mroot mrow ms mspace msqrt mstyle msub"
    " msubsup msup mtable mtd mtext mtr munder munderover menclose none semantics"
)
_MATH_ATTRIBUTES = _set(
    "display displaystyle scriptlevel mathvariant stretchy symmetric largeop movablelimits accent accentunder lspace rspace form"
    " fence separator minsize maxsize linethickness width height depth voffset columnspan rowspan notation style class"
)
_TAGS = _set(
    "p br hr h1 h2 h3 h4 h5 h6 ul ol li blockquote pre code em strong s del a table thead tbody tr th td div span button"
)
_cleaner = nh3.Cleaner(
    tags=_TAGS | _MATH,
    clean_content_tags={"script", "style"},
    attributes={
        "a": {"href", "title", "class", "target"},
        "ol": {"start"},
        "th": {"style"},
        "td": {"style"},
        "code": {"class"},
        "div": {"class"},
        "span": {"class"},
        "button": {"class", "type", "data-act"},
        **dict.fromkeys(_MATH, _MATH_ATTRIBUTES),
    },
    url_schemes={"http", "https", "mailto"},
    url_relative="deny",
    link_rel="noopener noreferrer nofollow",
    set_tag_attribute_values={"a": {"target": "_blank"}},
    filter_style_properties={"text-align", "justify-items", "padding-left", "padding-right", "color"},
)


def blocks(text: str) -> list[str]:
    """Each block of a Markdown text (a paragraph, a list, a table ...) as HTML that is safe to show.

    Joined they are the text. A text that grows changes only its last blocks, so a page that streams sends little.
    """
    if len(text) > LONGEST:
        return [f'<div class="plain">{html.escape(text)}</div>']
    try:
        tokens = _parser.parse(text)
    except RecursionError:  # thousands of quotes or lists in each other
        return [f'<div class="plain">{html.escape(text)}</div>']
    return [_render(group) for group in _groups(tokens)]


def _groups(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """The tokens of each outermost block."""
    group: list[Token] = []
    depth = 0
    for token in tokens:
        group.append(token)
        depth += token.nesting
        if depth == 0:
            yield group
            group = []


def _render(tokens: list[Token]) -> str:
    if len(tokens) == 1 and tokens[0].type == "fence":
        return _fence(tokens[0].content, tokens[0].info)
    try:
        return _cleaner.clean(_parser.renderer.render(tokens, _parser.options, {}))
    except RecursionError:
        return _cleaner.clean(f'<div class="plain">{html.escape("".join(token.content for token in tokens))}</div>')


@lru_cache(maxsize=256)
def _fence(code: str, info: str) -> str:
    return _cleaner.clean(_code_block(code, info))


def _code_block(code: str, info: str) -> str:
    """A block of code with its language, a button that copies it, and colours."""
    language = (info.split() or [""])[0].lower()[:32]
    shown = html.escape(code)
    if language in LANGUAGES and len(code) <= _LONGEST_CODE:
        shown = highlight(code, get_lexer_by_name(language, stripnl=False), _formatter)
    bar = f'<span>{html.escape(language)}</span><button type="button" class="quiet" data-act="copy-code"></button>'
    return f'<div class="code"><div class="code-bar">{bar}</div><pre><code>{shown}</code></pre></div>'


_formatter: HtmlFormatter[str] = HtmlFormatter(nowrap=True, classprefix="hl-")


class _Renderer(RendererHTML):
    """What comes out otherwise than CommonMark has it: code, pictures, formulas, wide tables."""

    def fence(self, tokens: Sequence[Token], idx: int, *_: Any) -> str:
        return _code_block(tokens[idx].content, tokens[idx].info)

    def code_block(self, tokens: Sequence[Token], idx: int, *_: Any) -> str:
        return _code_block(tokens[idx].content, "")

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        token = tokens[idx]
        label = self.renderInlineAsText(token.children, options, env) or str(token.attrGet("src"))
        return f'<a class="picture" href="{html.escape(str(token.attrGet("src")))}">{html.escape(label)}</a>'

    def formula(self, tokens: Sequence[Token], idx: int, *_: Any) -> str:
        token = tokens[idx]
        display = token.markup in ("$$", "\\[")
        drawn = mathml(token.content.strip(), display)
        return f'<div class="display">{drawn}</div>' if token.block else drawn

    def table_open(self, *_: Any) -> str:
        return '<div class="wide"><table>'

    def table_close(self, *_: Any) -> str:
        return "</table></div>"


def _make_parser() -> MarkdownIt:
    options: dict[str, Any] = {"html": False, "linkify": False, "breaks": True, "maxNesting": 40}
    parser = MarkdownIt("commonmark", options, renderer_cls=_Renderer).enable(["table", "strikethrough"])
    add_formulas(parser)
    return parser


_parser = _make_parser()
