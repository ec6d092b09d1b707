"""Text of pictures, by the models that the package rapidocr-onnxruntime carries: Chinese and English print, no network.

A page takes some seconds. The models read Chinese and forget most blanks of English, so these are put back where the picture itself
shows them: a strip without ink between two letters. Without the package pictures stay unread, and who reads a file says so.
"""

from __future__ import annotations

import functools
import importlib.util
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyseek.knowledge.documents.pdf_page import Style, Word

_SURE = 0.5  # readings less sure than this are left out
_BLANK = 0.17  # of a line's height: a wider strip without ink is a blank


@functools.cache
def is_there() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("rapidocr_onnxruntime") is not None


@functools.cache
def _reader() -> Any:
    from rapidocr_onnxruntime import RapidOCR

    # One thread: onnxruntime's wait in busy loops, and several files are read at once anyway. Lines are found in a smaller picture.
    return RapidOCR(
        intra_op_num_threads=1, inter_op_num_threads=1, use_cls=False, det_limit_side_len=1280, det_limit_type="max"
    )


def words_of(picture: Any, scale: float = 1.0) -> list[Word]:
    """The lines of a picture, each as one "word", from top to bottom.

    Args:
        picture: a Pillow image.
        scale: what to multiply pixels by.
    """
    pixels = np.asarray(picture.convert("RGB"))
    found, _ = _reader()(pixels[:, :, ::-1], return_word_box=True)  # BGR, as OpenCV has it
    gray = pixels.mean(axis=2)
    words: list[Word] = []
    for corners, text, sure, boxes, letters, *_ in found or ():
        if float(sure) < _SURE or not text.strip():
            continue
        xs, ys = [float(x) for x, _ in corners], [float(y) for _, y in corners]
        x0, top, x1, bottom = min(xs), min(ys), max(xs), max(ys)
        if len(boxes) == len(letters):
            centres = [(b[0][0] + b[1][0]) / 2 for b, letter in zip(boxes, letters, strict=True) if letter != " "]
            if len(centres) == len(text.replace(" ", "")):
                text = _with_blanks(text, centres, gray, (x0, top, x1, bottom))
        size = round(0.8 * (bottom - top) * scale, 1)
        words.append(Word(text.strip(), x0 * scale, top * scale, x1 * scale, bottom * scale, Style("ocr", size)))
    return _even(sorted(words, key=lambda word: (word.top, word.x0)))


def _even(words: list[Word]) -> list[Word]:
    """Lines of nearly one height made one: how high a line is read depends on its letters."""
    if not words:
        return words
    usual = statistics.median(word.style.size for word in words)
    style = Style("ocr", round(usual, 1))
    even: list[Word] = []
    for word in words:
        middle = (word.top + word.bottom) / 2
        if 0.75 * usual < word.style.size < 1.3 * usual:
            word = replace(word, style=style, top=middle - 0.6 * usual, bottom=middle + 0.6 * usual)
        even.append(word)
    return even


def _with_blanks(
    text: str, centres: list[float], gray: NDArray[np.float64], box: tuple[float, float, float, float]
) -> str:
    """A line with blanks between its Latin letters wherever the picture has a strip without ink.

    Args:
        centres: of the letters, without the blanks that were read.
        gray: the picture.
        box: the line's, pixels.
    """
    x0, top, x1, bottom = (round(edge) for edge in box)
    line = gray[max(0, top) : bottom, max(0, x0) : x1]
    if line.size == 0 or text.isspace() or float(line.max() - line.min()) < 40:
        return text
    paper = float(np.median(line))
    contrast = max(float(line.max()) - paper, paper - float(line.min()))
    ink: NDArray[np.bool_] = np.any(np.abs(line - paper) > 0.35 * contrast, axis=0)
    blank: set[int] = set()
    for start, end in _runs(~ink):
        if start > 0 and end < len(ink) and end - start >= _BLANK * (bottom - top):
            middle = max(0, x0) + (start + end) / 2
            blank.add(sum(centre < middle for centre in centres))
    said: list[str] = []
    index = 0
    for before, letter in zip(" " + text, text, strict=False):
        if letter != " ":
            if index in blank and before != " " and before.isascii() and letter.isascii():
                said.append(" ")
            index += 1
        said.append(letter)
    return "".join(said)


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Where runs of true begin and end."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
