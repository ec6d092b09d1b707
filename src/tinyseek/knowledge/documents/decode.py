"""Bytes to characters, whatever encoding they are in, without being told.

A byte order mark decides; then UTF-16 by where its zero bytes or its Chinese high bytes stand; then UTF-8, strictly; then, of the
encodings that a text of this kind may have, the one in which it reads most like a language: Chinese, Japanese and Korean by their
most frequent characters, Cyrillic and Western letters by whether ASCII's stand among them in a word. Nothing fails: what is broken
in a text becomes U+FFFD, and is counted.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tinyseek.errors import UserError
from tinyseek.knowledge.documents.limits import Limits

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SAMPLE = 200_000  # bytes that an encoding is chosen by
# The most frequent characters of each script in running text; together they are 40 to 60 % of it, and a few percent of a text that
# is read in the wrong encoding.
_SIMPLIFIED = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去法学如都同现当没动面起看定"
    "天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利"
    "什二等产或新己制身果加西斯月话合回特代内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安"
    "少报才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白却界达光放强即像难且权思王象完设式色路记南品住告类求据程北"
)
_TRADITIONAL = frozenset(
    "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年過發後作裡用道行所然家種事成方多經麼去法學如都同現當沒動面起看定"
    "天分還進好小部其些主樣理心她本前開但因只從想實日軍者意無力它與長把機十民第公此已工使情明性知全三又關點正業外將兩高間由問很最重並物手應戰向頭文體政美相見被利"
    "什二等產或新己制身果加西斯月話合回特代內信表化老給世位次度門任常先海通教兒原東聲提立及比員解水名真論處走義各入幾口認條平系氣題活爾更別打女變四神總何電數安"
    "少報才結反受目太量再感建務做接必場件計管期市直德資命山金指克許統區保至隊形社便空決治展馬科司五基眼書非則聽白卻界達光放強即像難且權思王象完設式色路記南品住告類求據程北"
)
_KANA = frozenset(map(chr, (*range(0x3041, 0x3094), *range(0x30A1, 0x30FB), 0x30FC)))
_HANGUL = frozenset(
    "이다의는에을를은가고하기도지한사로인어있대자리수서나시해그아보부정전니일들게오제과여주상장것성으원만계안공국문구거소조적면동라스고신생화마선무모경연유세었않있"
)
_PUNCTUATION = frozenset("，。、；：？！“”‘’（）《》「」『』…—　・")
_CYRILLIC = frozenset("оеаинтсрвлкмдпуяыьгзбчйхжшюцщэф ОЕАИНТСРВЛКМДПУЯ")
_WESTERN = frozenset("áàâäãåæçéèêëíìîïñóòôöõøœßúùûüýÁÀÂÄÃÅÆÇÉÈÊËÍÌÎÏÑÓÒÔÖÕØŒÚÙÛÜÝ°«»–—‘’“”…€£§·•")
_EAST = (
    ("gb18030", _SIMPLIFIED | _TRADITIONAL),
    ("big5hkscs", _TRADITIONAL),
    ("cp932", _KANA),
    ("euc_jp", _KANA),
    ("cp949", _HANGUL),
)
_BROKEN = 0.05  # of the characters beyond ASCII: UTF-8 with fewer bad ones is UTF-8 that was damaged
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
_LOST = re.compile("[\ud800-\udfff]")
_SPELT = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Decoded:
    """A file's text: line ends as \\n, no byte order mark, no control characters."""

    text: str
    encoding: str
    notes: tuple[str, ...] = ()


def read_text(file: Path, limits: Limits) -> Decoded:
    """A text file, whole.

    Raises:
        UserError: it has more characters than may be; known before it is read.
    """
    too_long(file, limits)
    decoded = decode(file.read_bytes())
    if len(decoded.text) > limits.characters:
        raise UserError(
            f"holds more than {limits.characters:,} characters of text; split it, or raise limits.characters"
        )
    return decoded


def too_long(file: Path, limits: Limits) -> None:
    """See that a text file is not longer than may be, without reading it.

    Raises:
        UserError: it is.
    """
    size = file.stat().st_size
    if size > limits.characters * 4:  # no encoding takes more bytes for one
        most = limits.characters
        raise UserError(
            f"is {size / 1e6:,.0f} MB of text, more than {most:,} characters; split it, or raise limits.characters"
        )


def decode(data: bytes, declared: str = "") -> Decoded:
    """Characters of bytes.

    Args:
        declared: the encoding that the text itself names (HTML, e-mail), believed if the bytes allow it.
    """
    encoding = _marked(data) or _believed(data, declared) or _guessed(data[:_SAMPLE])
    for mark, name in _BOMS:
        if name == encoding and data.startswith(mark):
            data = data[len(mark) :]
            break
    text = data.decode(encoding, "replace")
    lost = text.count("\ufffd") - data.count("\ufffd".encode(encoding, "ignore") or b"\0\0\0\0")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _LOST.sub("\ufffd", _CONTROLS.sub("", text)).removeprefix("\ufeff")
    broken = (f"{lost:,} characters are broken in its {encoding} text and were left as \ufffd",) if lost > 0 else ()
    return Decoded(text, encoding, broken)


def _marked(data: bytes) -> str:
    return next((name for mark, name in _BOMS if data.startswith(mark)), "")


def _believed(data: bytes, declared: str) -> str:
    """What a text says of itself, if it is an encoding and its bytes can be read in it."""
    try:
        name = codecs.lookup(declared.strip().strip("\"'")).name if declared else ""
    except (LookupError, ValueError):
        return ""
    if not name or not codecs.lookup(name)._is_text_encoding or name.startswith(("utf-16", "utf-32", "utf-7", "idna")):
        return ""  # HTML that can say so in ASCII is in none of these
    name = {"gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs", "iso8859-1": "cp1252"}.get(name, name)
    return name if _readable(data[:_SAMPLE], name) >= 0 else ""


def _readable(sample: bytes, encoding: str) -> int:
    """How many characters of a sample are broken in an encoding; -1 for more than a few in a hundred."""
    text = sample.decode(encoding, "replace")
    cut = len(sample) >= _SAMPLE and text.endswith("\ufffd")  # within a character
    broken = text.count("\ufffd") - cut
    beyond = sum(letter > "\x7f" for letter in text)
    return broken if broken <= _BROKEN * beyond else -1


def _guessed(sample: bytes) -> str:
    if wide := _without_mark(sample):
        return wide
    if sample.isascii():
        if sample.count(b"\x1b$") and sample.count(b"\x1b("):
            return "iso2022_jp"
        return "hz" if b"~{" in sample and b"~}" in sample and _eastern(sample, "hz", _SIMPLIFIED) > 0.2 else "utf-8"
    if _readable(sample, "utf-8") >= 0:
        return "utf-8"
    scores = {name: _eastern(sample, name, frequent) for name, frequent in _EAST}
    best = max(scores, key=lambda name: scores[name])
    if scores[best] > 0.2:
        return best
    scores = {name: _western(sample, name) for name in ("cp1252", "cp1251", "koi8_r", "cp866")}
    return max(scores, key=lambda name: scores[name])


def _eastern(sample: bytes, encoding: str, frequent: frozenset[str]) -> float:
    """The share of a language's frequent characters among those beyond ASCII; broken ones count heavily."""
    text = sample.decode(encoding, "replace")
    beyond = [letter for letter in text if letter > "\x7f"]
    if not beyond:
        return 0.0
    broken = text.count("\ufffd") - text.endswith("\ufffd")
    good = sum(letter in frequent or letter in _PUNCTUATION for letter in beyond)
    return (good - 5 * broken) / len(beyond)


def _western(sample: bytes, encoding: str) -> float:
    """The share of usual letters of an alphabet among those beyond ASCII, less those that stand in the wrong case."""
    text = sample.decode(encoding, "replace")
    usual = _WESTERN if encoding == "cp1252" else _CYRILLIC
    beyond = [letter for letter in text if letter > "\x7f"]
    odd = sum(a.islower() and b.isupper() for a, b in pairwise(text) if a > "\x7f" or b > "\x7f")
    # A Cyrillic word has no ASCII letter in it; a Western one has hardly ever none. What stands alone, à or и, says nothing.
    spelt = [word for word in _SPELT.findall(text) if len(word) > 1 and not word.isascii()]
    mixed = sum(any(letter <= "\x7f" for letter in word) for word in spelt) / len(spelt) if spelt else 0.5
    fits = mixed if encoding == "cp1252" else 1 - mixed
    return (sum(letter in usual for letter in beyond) - odd) / max(1, len(beyond)) + fits


def _without_mark(sample: bytes) -> str:
    """UTF-16 without its mark: ASCII has a zero in every other byte, Chinese its high bytes between 4E and 9F."""
    pairs = len(sample) // 2
    if pairs < 2 or (len(sample) % 2 and len(sample) < _SAMPLE):
        return ""
    for name, high in (("utf-16-le", sample[1::2]), ("utf-16-be", sample[0::2])):
        low = sample[0::2] if name == "utf-16-le" else sample[1::2]
        zeros, zeros_low = high.count(0), low.count(0)
        if zeros > 0.3 * pairs and zeros_low < 0.5 * zeros:  # 一 is 4E 00
            return name
        # At least one ASCII sign (a space, a line's end) and almost all else Chinese and its punctuation.
        chinese = sum(0x4E <= byte <= 0x9F or byte in (0x30, 0xFF, 0x20) for byte in high)
        ascii_signs = sum(byte == 0 and other in b"\n\r\t 0123456789.," for byte, other in zip(high, low, strict=False))
        if ascii_signs and zeros + chinese > 0.98 * pairs and zeros_low < 0.2 * pairs:
            return name
    return ""
