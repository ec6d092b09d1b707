"""Word's formulas as LaTeX. Source: ECMA-376 part 1, 22.1 (Office Math Markup)."""

from __future__ import annotations

from collections.abc import Callable

from lxml import etree

M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_NARY = {
    "∑": r"\sum", "∏": r"\prod", "∐": r"\coprod", "∫": r"\int", "∬": r"\iint", "∭": r"\iiint", "∮": r"\oint", "⋃": r"\bigcup",
    "⋂": r"\bigcap", "⋁": r"\bigvee", "⋀": r"\bigwedge",
}  # fmt: skip
_ACCENTS = {
    "\u0302": r"\hat", "\u0303": r"\tilde", "\u0304": r"\bar", "\u0305": r"\overline", "\u0307": r"\dot", "\u0308": r"\ddot",
    "\u20d7": r"\vec", "\u0301": r"\acute", "\u0300": r"\grave", "\u0306": r"\breve", "\u030c": r"\check",
}  # fmt: skip
_FENCES = {
    "{": r"\{", "}": r"\}", "⟨": r"\langle", "⟩": r"\rangle", "‖": r"\|", "⌈": r"\lceil", "⌉": r"\rceil", "⌊": r"\lfloor",
    "⌋": r"\rfloor", "": ".",
}  # fmt: skip
_FUNCTIONS = frozenset(
    (
        "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "arcsin", "arccos", "arctan", "log", "ln", "lg", "exp",
        "det", "dim", "gcd", "lim", "max", "min", "sup", "inf",
    )
)  # fmt: skip
_SPECIAL = str.maketrans(
    {
        "%": r"\%",
        "#": r"\#",
        "&": r"\&",
        "{": r"\{",
        "}": r"\}",
        "\\": r"\backslash ",
        "−": "-",
        "\u2061": "",
        "\u200b": "",
    }
)
_HAT = "\u0302"
_NEXT_LINE = r" \\ "


def latex(element: etree._Element) -> str:
    """A formula (m:oMath, or m:oMathPara of several, which go on new lines)."""
    if element.tag == f"{M}oMathPara":
        return _NEXT_LINE.join(part for part in (_all(formula) for formula in element.iterfind(f"{M}oMath")) if part)
    return _all(element)


def _all(element: etree._Element | None) -> str:
    """The children of an element, one after the other."""
    if element is None:
        return ""
    texts: list[str] = []
    for part in element:
        text = _one(part)
        if texts and text[:1].isalpha() and texts[-1].rpartition("\\")[2].isalpha() and "\\" in texts[-1]:
            texts.append(" ")  # \alpha x
        texts.append(text)
    return "".join(texts).strip()


def _one(element: etree._Element) -> str:
    if not isinstance(element.tag, str) or element.tag.endswith("Pr"):
        return ""
    name = element.tag.rpartition("}")[2]
    if element.tag == f"{M}r":
        return _run(element)
    written = _FORMS.get(name) if element.tag.startswith(M) else None
    if written is not None:
        return written(element)
    return _all(element)  # boxes, phantoms, tracked changes: what is in them


def _run(element: etree._Element) -> str:
    text = "".join(part.text or "" for part in element.iterfind(f"{M}t"))
    plain = element.find(f"{M}rPr/{M}nor") is not None
    if plain and text.strip():
        return rf"\text{{{text}}}"
    return text.translate(_SPECIAL)


def _child(element: etree._Element, name: str) -> str:
    return _all(element.find(M + name))


def _property(element: etree._Element, of: str, name: str, otherwise: str) -> str:
    found = element.find(f"{M}{of}/{M}{name}")
    return otherwise if found is None else found.get(f"{M}val", "")


def _base(element: etree._Element) -> str:
    """What a script is written at; in braces if it is more than one sign."""
    text = _child(element, "e")
    return text if len(text) == 1 or (text.startswith("\\") and text[1:].isalpha()) else f"{{{text}}}"


def _fraction(element: etree._Element) -> str:
    kind = _property(element, "fPr", "type", "bar")
    over, under = _child(element, "num"), _child(element, "den")
    if kind == "lin":
        return f"{over}/{under}"
    return rf"\binom{{{over}}}{{{under}}}" if kind == "noBar" else rf"\frac{{{over}}}{{{under}}}"


def _root(element: etree._Element) -> str:
    degree = _child(element, "deg")
    return rf"\sqrt[{degree}]{{{_child(element, 'e')}}}" if degree else rf"\sqrt{{{_child(element, 'e')}}}"


def _nary(element: etree._Element) -> str:
    sign = _property(element, "naryPr", "chr", "∫")
    below, above = _child(element, "sub"), _child(element, "sup")
    limits = (f"_{{{below}}}" if below else "") + (f"^{{{above}}}" if above else "")
    return f"{_NARY.get(sign, sign)}{limits} {_child(element, 'e')}"


def _delimited(element: etree._Element) -> str:
    left, right = _property(element, "dPr", "begChr", "("), _property(element, "dPr", "endChr", ")")
    between = _property(element, "dPr", "sepChr", "|")
    inside = f" {between} ".join(_all(part) for part in element.iterfind(f"{M}e"))
    return rf"\left{_FENCES.get(left, left)} {inside} \right{_FENCES.get(right, right)}"


def _matrix(element: etree._Element) -> str:
    rows = (" & ".join(_all(cell) for cell in row.iterfind(f"{M}e")) for row in element.iterfind(f"{M}mr"))
    return rf"\begin{{matrix}} {_NEXT_LINE.join(rows)} \end{{matrix}}"


def _equations(element: etree._Element) -> str:
    lines = _NEXT_LINE.join(_all(part) for part in element.iterfind(f"{M}e"))
    return rf"\begin{{aligned}} {lines} \end{{aligned}}"


def _function(element: etree._Element) -> str:
    name = _child(element, "fName")
    known = f"\\{name}" if name in _FUNCTIONS else name
    return f"{known} {_child(element, 'e')}"


def _accent(element: etree._Element) -> str:
    sign = _property(element, "accPr", "chr", _HAT)
    return f"{_ACCENTS.get(sign, _ACCENTS[_HAT])}{{{_child(element, 'e')}}}"


def _bar(element: etree._Element) -> str:
    return rf"\{'overline' if _property(element, 'barPr', 'pos', 'bot') == 'top' else 'underline'}{{{_child(element, 'e')}}}"


def _limit(element: etree._Element) -> str:
    name = _child(element, "e")
    known = f"\\{name}" if name in _FUNCTIONS else name
    return f"{known}{'_' if element.tag.endswith('limLow') else '^'}{{{_child(element, 'lim')}}}"


_FORMS: dict[str, Callable[[etree._Element], str]] = {
    "f": _fraction,
    "rad": _root,
    "nary": _nary,
    "d": _delimited,
    "m": _matrix,
    "eqArr": _equations,
    "func": _function,
    "acc": _accent,
    "bar": _bar,
    "limLow": _limit,
    "limUpp": _limit,
    "sSup": lambda e: f"{_base(e)}^{{{_child(e, 'sup')}}}",
    "sSub": lambda e: f"{_base(e)}_{{{_child(e, 'sub')}}}",
    "sSubSup": lambda e: f"{_base(e)}_{{{_child(e, 'sub')}}}^{{{_child(e, 'sup')}}}",
    "sPre": lambda e: f"{{}}_{{{_child(e, 'sub')}}}^{{{_child(e, 'sup')}}}{_base(e)}",
}
