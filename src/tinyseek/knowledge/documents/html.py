"""Web pages: what the page is about, without menus, footers and what is hidden; headings, lists, tables, code and formulas kept.

Scripts are not run, nothing is fetched. `blocks_of` reads a piece of HTML wherever it stands: in an e-mail, in Markdown.
"""

from __future__ import annotations

import re
from pathlib import Path

from lxml import etree

from tinyseek.knowledge.documents.blocks import Document, Place, Table
from tinyseek.knowledge.documents.decode import decode, too_long
from tinyseek.knowledge.documents.html_tables import read_table
from tinyseek.knowledge.documents.limits import Limits
from tinyseek.knowledge.documents.outline import Outline, language_of
from tinyseek.knowledge.documents.zipped import whole

_CHARSET = re.compile(rb"<(?:meta|\?xml)[^>]{0,300}?(?:charset|encoding)\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]{2,40})", re.I)
_SPACE = re.compile(r"[ \t\n\r\f\u00a0]+")
_EAST = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef"
_EAST_BREAK = re.compile(rf"(?<=[{_EAST}])[ \t]*\n\s*(?=[{_EAST}])")  # a line's end in Chinese source is no space
_NEVER = frozenset(
    (
        "script", "style", "noscript", "template", "iframe", "object", "embed", "applet", "canvas", "audio", "video", "map", "svg",
        "head", "button", "select", "option", "input", "textarea", "datalist", "dialog", "nav",
    )
)  # fmt: skip
_BLOCKS = frozenset(
    (
        "address", "article", "aside", "blockquote", "body", "center", "dd", "details", "dialog", "div", "dl", "dt", "fieldset",
        "figcaption", "figure", "footer", "form", "header", "hgroup", "hr", "html", "li", "main", "menu", "ol", "p", "section",
        "summary", "table", "ul", "tbody", "thead", "tfoot", "tr", "td", "th",
    )
)  # fmt: skip
_BESIDE_ROLES = frozenset(
    ("navigation", "banner", "contentinfo", "search", "complementary", "dialog", "alertdialog", "menu", "toolbar")
)
# Words in a class or id that say an element is not what the page is about, and those that are dropped whatever is in them.
_BESIDE = re.compile(
    r"(?:^|[-_\s])(nav|navbar|navigation|menu|sidebar|side-bar|footer|breadcrumbs?|share|sharing|social|related|pagination|pager|"
    r"toolbar|advert\w*|ads?|sponsor\w*|promo|newsletter|subscribe|skip-link|toc|copyright)(?:$|[-_\s])",
    re.I,
)
_NEVER_CLASS = re.compile(
    r"(?:^|[-_\s])(cookie\w*|consent|popup|modal|overlay|mw-editsection|headerlink|sr-only|visually-hidden|screen-reader-text)(?:$|[-_\s])",
    re.I,
)
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(?![.\d])", re.I)
_MAIN = 0.2  # of the page's text must stand in <main> or <article> for it to be the page


def parse(file: Path, limits: Limits) -> Document:
    """A page (.html, .xhtml).

    Raises:
        UserError: it is too long.
    """
    too_long(file, limits)
    data = file.read_bytes()
    declared = _CHARSET.search(data[:4096])
    decoded = decode(data, declared[1].decode("ascii") if declared else "")
    outline = Outline(limits)
    root, deep = tree(decoded.text)
    if root is None:
        return Document((), "html", notes=decoded.notes)
    too_deep = ("its elements are nested more than 2,048 deep; what comes after was not read",) if deep else ()
    meta = _meta(root)
    _Reader(outline, limits.depth).page(root)
    return Document(
        tuple(outline.blocks),
        "html",
        meta.get("title", ""),
        meta.get("author", ""),
        meta.get("date", ""),
        language=language_of(" ".join(block.text[:500] for block in outline.blocks[:50])),
        notes=(*decoded.notes, *too_deep),
    )


def tree(text: str) -> tuple[etree._Element | None, bool]:
    """The elements of HTML as a browser would see them, whatever is wrong with it; None if there are none.

    Returns:
        Its root, and whether it is nested so deeply (2,048 elements) that the rest was not read.
    """
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text)
    if not text.strip():
        return None, False
    # Without `huge_tree` all text from the 257th level on would be lost in silence.
    parser = etree.HTMLParser(remove_comments=True, remove_pis=True, no_network=True, huge_tree=True)
    try:
        root: etree._Element | None = etree.fromstring(text, parser)
    except (etree.XMLSyntaxError, ValueError):
        return None, False
    return root, any("Excessive depth" in entry.message for entry in parser.error_log)


def blocks_of(text: str, outline: Outline, depth: int, place: Place | None = None) -> None:
    """Add what a piece of HTML says to a document.

    Args:
        depth: of elements; what is nested deeper is read as text.
        place: where all of it stands.
    """
    root, _ = tree(text)
    if root is not None:
        reader = _Reader(outline, depth, place)
        reader.block(root, 0)
        reader.flush()


def length(text: str) -> int:
    """How many characters a piece of HTML shows."""
    root, _ = tree(text)
    return _length(root) if root is not None else 0


class _Reader:
    """Elements to blocks, in order."""

    def __init__(self, outline: Outline, depth: int, place: Place | None = None) -> None:
        self._outline, self._most, self._place = outline, depth, place or Place()
        self._texts: list[str] = []  # of the paragraph under way
        self._dropping = False  # what is beside the page's subject

    def page(self, root: etree._Element) -> None:
        """A whole page: its main part if it names one, else all but what is clearly beside it."""
        body = root.find("body")
        body = root if body is None else body
        everything = _length(body)
        mains: list[etree._Element] = []  # the outermost
        for element in body.iter("main", "article", "div", "section"):
            if _is_main(element) and not any(_is_main(above) for above in element.iterancestors()):
                mains.append(element)
        if mains and sum(map(_length, mains)) >= _MAIN * everything:
            title = next((element for element in body.iter("h1") if _text(element)), None)
            if title is not None and not any(_is_main(above) for above in title.iterancestors()):
                self.block(title, 0)
            bodies = mains
        else:
            bodies, self._dropping = [body], True
        for element in bodies:
            self.block(element, 0)
            self.flush()
        if not self._outline.blocks and everything:  # all of it looked like menus
            self._dropping = False
            self.block(body, 0)
            self.flush()

    def flush(self) -> None:
        """End the paragraph under way."""
        if self._texts:
            text = "".join(self._texts)
            self._texts.clear()
            lines = (_squeezed(line) for line in text.split("\n"))
            self._outline.add("paragraph", "\n".join(line for line in lines if line), self._place)

    def block(self, element: etree._Element, depth: int) -> None:
        """An element, and its children; the text after it is its parent's."""
        tag = element.tag
        if (
            not isinstance(tag, str)
            or (tag in _NEVER and not (tag == "nav" and depth == 0))
            or self._is_hidden(element)
        ):
            return
        if depth > self._most:
            self._texts.append(_text(element))
            return
        if tag[0] == "h" and len(tag) == 2 and tag[1] in "123456":
            self.flush()
            self._outline.heading(_text(element), int(tag[1]), self._place)
        elif tag in ("ul", "ol", "menu", "dl"):
            self.flush()
            if not _is_contents(element):
                self._outline.add("list", "\n".join(self._items(element, 0, depth)), self._place)
        elif tag == "table":
            self.flush()
            self._table(element, depth)
        elif tag in ("pre", "listing", "xmp"):
            self.flush()
            self._outline.add("code", _raw(element), self._place)
        elif tag in ("figcaption", "caption"):
            self.flush()
            self._outline.add("caption", _text(element), self._place)
        elif tag == "math" or (tag == "span" and "katex" in (element.get("class") or "").split()):
            self._formula(element)
        elif tag == "img":
            alt = _squeezed(element.get("alt") or "")
            if len(alt.split()) > 2 or len(alt) > 12 or (len(alt) > 4 and not alt.isascii()):
                self.flush()
                self._outline.add("caption", alt, self._place)
        elif tag == "br":
            self._texts.append("\n")
        else:
            apart = tag in _BLOCKS
            if apart:
                self.flush()
            self._children(element, depth)
            if apart:
                self.flush()

    def _children(self, element: etree._Element, depth: int) -> None:
        if element.text:
            self._texts.append(_flat(element.text))
        for child in element:
            self.block(child, depth + 1)
            if child.tail:
                self._texts.append(_flat(child.tail))

    def _is_hidden(self, element: etree._Element) -> bool:
        """Whether a reader does not see an element, or it is beside what the page is about."""
        if (
            element.get("hidden") is not None
            or element.get("aria-hidden") == "true"
            or _HIDDEN.search(element.get("style") or "")
        ):
            return True
        named = f"{element.get('class') or ''} {element.get('id') or ''}"
        if named != " " and _NEVER_CLASS.search(named) and element.tag not in ("body", "html"):
            return True
        if (element.get("role") or "") in _BESIDE_ROLES:
            return True
        if not self._dropping:
            return False
        if element.tag in ("footer", "aside") or (element.tag == "header" and not element.findall(".//h1")):
            return True
        return bool(named != " " and element.tag in _BLOCKS and _BESIDE.search(named) and _is_links(element))

    def _formula(self, element: etree._Element) -> None:
        source = _tex(element)
        source = re.sub(r"^\{\\(?:display|text)style\s*(.*)\}$", r"\1", source, flags=re.S).strip()
        if element.get("display") == "block":
            self.flush()
            self._outline.add("formula", source, self._place)
        elif source:
            self._texts.append(f"${source}$")

    def _items(self, element: etree._Element, level: int, depth: int) -> list[str]:
        """A list's lines: with its numbers, deeper ones indented."""
        lines: list[str] = []
        number = whole(element.get("start"), 1)
        for entry in element:
            if not isinstance(entry.tag, str) or entry.tag in _NEVER or self._is_hidden(entry):
                continue
            if entry.tag in ("ul", "ol", "menu", "dl") and depth < self._most:
                lines += self._items(entry, level + 1, depth + 1)  # not right, but often written
                continue
            text, inner = self._item(entry, level, depth)
            indent = "  " * level
            if element.tag == "ol":
                number = whole(entry.get("value"), number)
                label = f"{number}. "
                number += 1
            else:
                label = "" if entry.tag == "dt" else "  " if entry.tag == "dd" else "- "
            if text:
                lines.append(f"{indent}{label}" + text.replace("\n", f"\n{indent}  "))
            lines += inner
        return lines

    def _item(self, entry: etree._Element, level: int, depth: int) -> tuple[str, list[str]]:
        """What a list's entry says itself, and the lines of lists in it."""
        texts: list[str] = []
        inner: list[str] = []

        def inside(element: etree._Element, deep: int) -> None:
            texts.append(_flat(element.text or ""))
            for child in element:
                tag = child.tag
                if isinstance(tag, str) and tag not in _NEVER and not self._is_hidden(child):
                    if tag in ("ul", "ol", "menu", "dl") and deep < self._most:
                        inner.extend(self._items(child, level + 1, deep + 1))
                    elif tag == "table":
                        table = read_table(child, _text, self._outline.cells_left)
                        texts.extend(f"\n{' | '.join(row)}\n" for row in (table.rows if table else ()))
                    elif tag == "pre":
                        texts.append("\n" + _raw(child).strip("\n") + "\n")
                    elif tag == "br":
                        texts.append("\n")
                    elif tag == "math":
                        texts.append(f"${_tex(child)}$")
                    elif deep >= self._most:
                        texts.append(_text(child))
                    else:
                        apart = "\n" if tag in _BLOCKS else ""
                        texts.append(apart)
                        inside(child, deep + 1)
                        texts.append(apart)
                texts.append(_flat(child.tail or ""))

        inside(entry, depth)
        lines = (_squeezed(line) for line in "".join(texts).split("\n"))
        return "\n".join(line for line in lines if line), inner

    def _table(self, element: etree._Element, depth: int) -> None:
        """A table; one that only lays out the page is read as what is in its cells."""
        nested = element.find(".//table") is not None
        cells = element.findall(".//td") if not nested else []
        if element.get("role") == "presentation" or nested or (len(cells) <= 1 and element.find(".//th") is None):
            if depth < self._most:
                self._children(element, depth)
                self.flush()
            return
        caption = element.find("caption")
        if caption is not None:
            self._outline.add("caption", _text(caption), self._place)
        table: Table | None = read_table(element, _text, self._outline.cells_left)
        if table is not None:
            self._outline.table(table, self._place)


def _is_main(element: etree._Element) -> bool:
    return (
        element.tag in ("main", "article")
        or element.get("role") == "main"
        or element.get("id") in ("mw-content-text", "js_content")
    )


def _is_links(element: etree._Element) -> bool:
    """Whether an element is mostly links, or short."""
    whole = _length(element)
    linked = sum(len(_squeezed("".join(_strings(link)))) for link in element.iter("a"))
    return whole < 200 or linked > 0.4 * whole


def _is_contents(element: etree._Element) -> bool:
    """Whether a list is a table of the page's contents: links within the page and nothing else."""
    links = element.findall(".//a[@href]")
    inside = all((link.get("href") or "").startswith("#") for link in links)
    return len(links) > 2 and inside and sum(map(_length, links)) > 0.9 * _length(element)


def _length(element: etree._Element) -> int:
    return sum(len(text.strip()) for text in _strings(element))


def _strings(element: etree._Element) -> list[str]:
    """All text in an element that could be shown, in order, without going deep by calls."""
    found: list[str] = []
    skipped = 0
    for event, part in etree.iterwalk(element, events=("start", "end")):
        never = not isinstance(part.tag, str) or part.tag in _NEVER or part.tag in ("annotation", "annotation-xml")
        if event == "start":
            skipped += never
            if not skipped:
                if part.tag == "br":
                    found.append("\n")
                elif part.tag in _BLOCKS and found:
                    found.append(" ")
                found.append(_flat(part.text or ""))
        else:
            skipped -= never
            if not skipped and part is not element:
                found.append(_flat(part.tail or ""))
    return found


def _text(element: etree._Element) -> str:
    """An element's text in one line, or several where it breaks lines itself."""
    for link in element.iter("a"):  # the signs beside headings that lead to them
        if {"headerlink", "anchor"} & set((link.get("class") or "").split()) and len(_squeezed(link.text or "")) < 2:
            link.text = ""
    lines = (_squeezed(line) for line in "".join(_strings(element)).split("\n"))
    return "\n".join(line for line in lines if line)


def _raw(element: etree._Element) -> str:
    """Text as it stands, for code."""
    for broken in element.iter("br"):
        broken.tail = "\n" + (broken.tail or "")
    return "".join(map(str, element.itertext()))


def _tex(element: etree._Element) -> str:
    note = next((part for part in element.iter("annotation") if "tex" in (part.get("encoding") or "").lower()), None)
    return (
        "".join(map(str, note.itertext())) if note is not None else element.get("alttext") or _text(element)
    ).strip()


def _flat(text: str) -> str:
    """Text of the source with its line ends as the blanks that they are."""
    if "\n" in text:
        text = _EAST_BREAK.sub("", text)
    return _SPACE.sub(" ", text)


def _squeezed(text: str) -> str:
    return _SPACE.sub(" ", text).strip()


def _meta(root: etree._Element) -> dict[str, str]:
    """Title, author and day, as pages say them."""
    said: dict[str, str] = {}
    for entry in root.iter("meta"):
        name = (entry.get("name") or entry.get("property") or entry.get("itemprop") or "").lower()
        if content := _squeezed(entry.get("content") or ""):
            said.setdefault(name, content)
    found = {}
    title = next(
        (text for element in root.iter("title") if (text := _squeezed("".join(map(str, element.itertext()))))), ""
    )
    found["title"] = said.get("og:title") or said.get("citation_title") or title
    found["author"] = (
        said.get("author") or said.get("citation_author") or said.get("dc.creator") or said.get("article:author") or ""
    )
    if found["author"].startswith("http"):
        found["author"] = ""
    dates = (
        "article:published_time",
        "citation_publication_date",
        "datepublished",
        "dc.date",
        "date",
        "pubdate",
        "article:modified_time",
    )
    times = [said[name] for name in dates if name in said] + [
        element.get("datetime") or "" for element in root.iter("time")
    ]
    for time in times:
        if day := re.match(r"(\d{4})[-/](\d{1,2})[-/](\d{1,2})", time):
            found["date"] = f"{day[1]}-{int(day[2]):02}-{int(day[3]):02}"
            break
    return found
