"""Text of pictures, by the models that the package rapidocr-onnxruntime carries: Chinese and English print, no network.

One picture takes a second or two. Without the package pictures stay unread, and who reads a file says so.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

from tinyseek.knowledge.documents.pdf_page import Style, Word

_SURE = 0.5  # readings less sure than this are left out


@functools.cache
def is_there() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("rapidocr_onnxruntime") is not None


@functools.cache
def _reader() -> Any:
    from rapidocr_onnxruntime import RapidOCR

    return RapidOCR(intra_op_num_threads=2, inter_op_num_threads=1)


def words_of(picture: Any, scale: float = 1.0) -> list[Word]:
    """The lines of a picture, each as one "word", from top to bottom.

    Args:
        picture: a Pillow image.
        scale: what to multiply pixels by.
    """
    import numpy as np

    pixels = np.asarray(picture.convert("RGB"))[:, :, ::-1]  # BGR, as OpenCV has it
    found, _ = _reader()(pixels)
    words: list[Word] = []
    for corners, text, sure in found or ():
        if float(sure) < _SURE or not text.strip():
            continue
        xs, ys = [float(x) * scale for x, _ in corners], [float(y) * scale for _, y in corners]
        top, bottom = min(ys), max(ys)
        size = round(0.85 * (bottom - top), 0)
        words.append(Word(text.strip(), min(xs), top, max(xs), bottom, Style("ocr", size)))
    return sorted(words, key=lambda word: (word.top, word.x0))
