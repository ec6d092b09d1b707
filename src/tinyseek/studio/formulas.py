"""Formulas in Markdown, `$x$`, `$$x$$`, `\\(x\\)` and `\\[x\\]`, as MathML that browsers draw themselves, without script.

A formula that is not closed yet, too long or not LaTeX is shown as it is written.
"""

from __future__ import annotations

import html
from functools import lru_cache

import math_core
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

LONGEST = 2_000  # characters; bounds the search for an end, and the depth of what comes out

_INLINE = {"\\(": "\\)", "\\[": "\\]", "$$": "$$", "$": "$"}
_BLOCK = {"$$": "$$", "\\[": "\\]"}
_latex = math_core.LatexToMathML(fancy_error=False)


def add_formulas(parser: MarkdownIt) -> None:
    """Teach a parser the four ways to write a formula. Its token is `formula`, with the LaTeX and the opening mark."""
    parser.inline.ruler.before("escape", "formula", _inline)
    parser.block.ruler.before("fence", "formula", _block, {"alt": ["paragraph", "blockquote", "list"]})


@lru_cache(maxsize=512)
def mathml(latex: str, display: bool) -> str:
    """MathML of a formula, or its source where it cannot be read. Not sanitised."""
    try:
        return _latex.convert_with_local_state(latex, displaystyle=display)
    except math_core.LatexError:
        return f'<code class="formula">{html.escape(latex)}</code>'


def _inline(state: StateInline, silent: bool) -> bool:
    start = state.pos
    opening = next((mark for mark in _INLINE if state.src.startswith(mark, start)), None)
    if opening is None:
        return False
    closing, begin = _INLINE[opening], start + len(opening)
    end = state.src.find(closing, begin, min(begin + LONGEST, state.posMax))
    content = state.src[begin:end] if end > begin else ""
    if not content.strip() or (opening == "$" and not _is_dollar_formula(state.src, begin, end)):
        return False
    if not silent:
        token = state.push("formula", "", 0)
        token.content, token.markup = content, opening
    state.pos = end + len(closing)
    return True


def _is_dollar_formula(text: str, begin: int, end: int) -> bool:
    """Pandoc's rule, by which "$5 and $10" is money: no space inside the marks, no digit after them."""
    after = text[end + 1 : end + 2]
    return (
        not text[begin].isspace()
        and not text[end - 1].isspace()
        and not after.isdigit()
        and "\n" not in text[begin:end]
    )


def _block(state: StateBlock, startLine: int, endLine: int, silent: bool) -> bool:
    if state.is_code_block(startLine):
        return False
    start = state.bMarks[startLine] + state.tShift[startLine]
    opening = next((mark for mark in _BLOCK if state.src.startswith(mark, start)), None)
    if opening is None:
        return False
    begin = start + len(opening)
    end = state.src.find(_BLOCK[opening], begin, begin + LONGEST)
    if end < 0:
        return False
    last = startLine
    while last + 1 < endLine and state.bMarks[last + 1] <= end:
        last += 1
    content = state.src[begin:end]
    rest = state.src[end + 2 : state.eMarks[last]]
    if end > state.eMarks[last] or rest.strip() or not content.strip() or "\n\n" in content:
        return False
    if silent:
        return True
    token = state.push("formula", "", 0)
    token.content, token.markup, token.block, token.map = content, opening, True, [startLine, last + 1]
    state.line = last + 1
    return True
