"""What kind of file this is, by its content and its name together: a wrong ending is seen through.

Content decides where a format has a mark of its own (`%PDF-`, a zip with `word/` in it, a picture's first bytes); the name decides
between the formats of plain text.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from tinyseek.errors import UserError

# Each kind's module in this folder and the endings of its files.
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "pdf": ("tinyseek.knowledge.documents.pdf", (".pdf",)),
    "docx": ("tinyseek.knowledge.documents.docx", (".docx", ".docm", ".dotx", ".dotm")),
    "xlsx": ("tinyseek.knowledge.documents.xlsx", (".xlsx", ".xlsm", ".xltx", ".xltm")),
    "pptx": ("tinyseek.knowledge.documents.pptx", (".pptx", ".pptm", ".ppsx", ".ppsm", ".potx")),
    "html": ("tinyseek.knowledge.documents.html", (".html", ".htm", ".xhtml")),
    "markdown": ("tinyseek.knowledge.documents.markdown", (".md", ".markdown", ".mdown", ".mkd", ".mdx")),
    "text": ("tinyseek.knowledge.documents.plain", (".txt", ".text", ".log", ".rst", ".org", ".adoc", ".srt", ".vtt")),
    "csv": ("tinyseek.knowledge.documents.csv", (".csv", ".tsv", ".tab")),
    "mail": ("tinyseek.knowledge.documents.mail", (".eml", ".mbox")),
    "code": ("tinyseek.knowledge.documents.code", ()),  # the endings of LANGUAGES
    "image": (
        "tinyseek.knowledge.documents.image",
        (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"),
    ),
}

# The endings of source code, and of data that is written like it, with the language's name.
LANGUAGES: dict[str, str] = {
    ".py": "python", ".pyi": "python", ".ipynb": "json", ".js": "javascript", ".mjs": "javascript", ".cjs": "javascript",
    ".jsx": "jsx", ".ts": "typescript", ".tsx": "tsx", ".java": "java", ".kt": "kotlin", ".kts": "kotlin", ".scala": "scala",
    ".c": "c", ".h": "c", ".cc": "cpp", ".cpp": "cpp", ".cxx": "cpp", ".hpp": "cpp", ".hh": "cpp", ".cs": "csharp",
    ".go": "go", ".rs": "rust", ".swift": "swift", ".m": "objective-c", ".rb": "ruby", ".php": "php", ".pl": "perl",
    ".lua": "lua", ".r": "r", ".jl": "julia", ".hs": "haskell", ".ml": "ocaml", ".ex": "elixir", ".exs": "elixir",
    ".erl": "erlang", ".clj": "clojure", ".lisp": "lisp", ".el": "lisp", ".dart": "dart", ".zig": "zig", ".nim": "nim",
    ".sh": "bash", ".bash": "bash", ".zsh": "bash", ".fish": "fish", ".ps1": "powershell", ".bat": "batch", ".sql": "sql",
    ".css": "css", ".scss": "scss", ".less": "less", ".vue": "vue", ".svelte": "svelte", ".xml": "xml", ".xsd": "xml",
    ".svg": "xml", ".json": "json", ".jsonl": "json", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".ini": "ini",
    ".cfg": "ini", ".conf": "ini", ".env": "ini", ".properties": "ini", ".tf": "hcl", ".proto": "protobuf",
    ".graphql": "graphql", ".cmake": "cmake", ".mk": "make", ".gradle": "groovy", ".groovy": "groovy", ".tex": "latex",
    ".bib": "bibtex", ".f90": "fortran", ".f": "fortran", ".asm": "assembly", ".s": "assembly", ".v": "verilog",
    ".vhd": "vhdl", ".cu": "cuda", ".diff": "diff", ".patch": "diff",
}  # fmt: skip
_NAMED = {"makefile": "make", "dockerfile": "docker", "cmakelists.txt": "cmake", "jenkinsfile": "groovy"}

_SUFFIXES = {suffix: kind for kind, (_, suffixes) in KINDS.items() for suffix in suffixes}
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\x00", b"MM\x00*")
_PACKED = {b"\x1f\x8b": "gzip", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "RAR", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_HTML = re.compile(
    rb"\s*(<!--.*?-->\s*)*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.I | re.S
)
_MAIL = re.compile(
    rb"^(from|to|subject|date|received|return-path|mime-version|message-id|delivered-to):[ \t]", re.I | re.M
)
_HEAD = 8192


def by_name(name: str) -> str | None:
    """The kind that a file's name says it is, or None: what of a folder is worth reading."""
    path = Path(name.lower())
    if path.name in _NAMED or path.suffix in LANGUAGES:
        return "code"
    return _SUFFIXES.get(path.suffix)


def language_of(name: str) -> str:
    """The language of source code by its file's name, "python"; nothing if it is not known."""
    path = Path(name.lower())
    return _NAMED.get(path.name) or LANGUAGES.get(path.suffix, "")


def kind_of(file: Path, name: str) -> str:
    """The kind of a file by what is in it, and by its name where that leaves a choice.

    Raises:
        UserError: empty, or of no kind that can be read; says which kind it is where that is known, and what to do.
    """
    with file.open("rb") as stream:
        head = stream.read(_HEAD)
    if not head.strip(b"\0 \t\r\n\xef\xbb\xbf"):
        raise UserError("is empty" if len(head) < _HEAD else "holds nothing but blanks at its beginning")
    if b"%PDF-" in head[:1024]:
        return "pdf"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_kind(file)
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        raise UserError(_ole(file, name))
    if head.startswith(b"{\\rtf"):
        raise UserError("is rich text (RTF); save it as .docx and add that")
    for mark, packed in _PACKED.items():
        if head.startswith(mark):
            raise UserError(f"is packed ({packed}); unpack it and add what is in it")
    named = by_name(name)
    if head.startswith(_PICTURES[:4]) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "image"
    if head.startswith(_PICTURES[4:]) and (named == "image" or b"\0" in head):
        return "image"
    if not _is_text(head):
        raise UserError(f"is no text and of no kind that is known; what can be read: {', '.join(KINDS)}")
    return _text_kind(head, named)


def _text_kind(head: bytes, named: str | None) -> str:
    if named in ("html", "markdown", "code"):
        return named
    if _HTML.match(head.removeprefix(b"\xef\xbb\xbf")):
        return "html"
    if named in ("csv", "mail"):
        return named
    if named is None and len(_MAIL.findall(head[: _end_of_headers(head)])) >= 3:
        return "mail"
    return "text"


def _end_of_headers(head: bytes) -> int:
    ends = [end for end in (head.find(b"\n\n"), head.find(b"\r\n\r\n")) if end >= 0]
    return min(ends, default=len(head))


def _is_text(head: bytes) -> bool:
    """Whether bytes could be text of any encoding: few control characters; zeros only as UTF-16 has them."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        return True
    zeros = head.count(0)
    if zeros:
        even = head[::2].count(0)
        return max(even, zeros - even) > 0.3 * len(head) / 2 and min(even, zeros - even) < 0.02 * len(head)
    controls = sum(head.count(byte) for byte in range(32) if byte not in b"\t\n\v\f\r\x1b\x1a\b")
    return controls <= 0.01 * len(head)


def _zip_kind(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"is damaged or cut short: its list of contents cannot be read ({error})") from None
    folders = {name.split("/", 1)[0].lower() for name in names if "/" in name}
    for folder, kind in (("word", "docx"), ("xl", "xlsx"), ("ppt", "pptx")):
        if folder in folders and "[Content_Types].xml" in names:
            return kind
    if "mimetype" in names and ("META-INF" in names or "meta-inf" in folders):
        raise UserError(
            "is an e-book (EPUB) or OpenDocument file; save it as .docx, .xlsx, .pptx or .html and add that"
        )
    raise UserError("is a zip archive; unpack it and add what is in it")


def _ole(file: Path, name: str) -> str:
    """What to say of the container that old Office files, Outlook messages and encrypted new ones share."""
    with file.open("rb") as stream:
        start = stream.read(1 << 20)
    if "EncryptedPackage".encode("utf-16-le") in start:
        return "is protected by a password; save a copy without one and add that"
    if "__substg1.0_".encode("utf-16-le") in start:
        return "is an Outlook message (.msg); save it as .eml and add that"
    newer = {".xls": ".xlsx", ".ppt": ".pptx"}.get(Path(name.lower()).suffix, ".docx, .xlsx or .pptx")
    return f"is in the old binary format of Office; save it as {newer} and add that"
