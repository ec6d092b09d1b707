"""A file from the web, once: resumed when the connection breaks, checked against its checksum, kept in a cache.

The checksum is part of the address (`https://host/file.txt#sha256=...`), so that a recipe names exactly one content: nobody
on the way, and no later edit at the source, can change what a run was made from.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from tinyseek import __version__
from tinyseek.errors import UserError

TRIES = 5  # broken connections in a row, without one new byte, before giving up
BLOCK = 1 << 20
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def cache_folder() -> Path:
    """`$TINYSEEK_CACHE`, or `~/.cache/tinyseek`."""
    return Path(os.environ.get("TINYSEEK_CACHE") or Path.home() / ".cache" / "tinyseek")


def split_checksum(address: str) -> tuple[str, str]:
    """`URL#sha256=HEX` to (URL, hex).

    Raises:
        UserError: no checksum, or plain http to another machine.
    """
    url, fragment = urllib.parse.urldefrag(address)
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if not match:
        raise UserError(
            f"{url}: add the file's checksum to the address: {url}#sha256=... (64 hex digits, from sha256sum)"
        )
    _check_scheme(url)
    return url, match.group(1).lower()


def fetch(address: str, cache: Path | None = None, wait: Callable[[float], None] = time.sleep) -> Path:
    """The cached file of an address with a checksum, downloaded when it is not there yet.

    A broken download goes on where it stopped (HTTP Range), within this call and in the next one.

    Args:
        address: `https://...#sha256=...`; plain http is for this machine only.
        cache: where to keep it; `cache_folder()` by default.
        wait: how to pause between tries, in seconds.
    Raises:
        UserError: no such file, no connection, another checksum, no space.
    """
    url, wanted = split_checksum(address)
    folder = (cache or cache_folder()) / "downloads"
    name = re.sub(r"[^\w.-]", "_", Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name)[-80:] or "file"
    return fetch_into(url, folder / f"{wanted[:16]}-{name}", Checksum("sha256", wanted), wait=wait)


@dataclass(frozen=True)
class Checksum:
    """What a file must hash to: "sha256" of its bytes, or "git" for a git blob's SHA-1, which knows the length too."""

    kind: Literal["sha256", "git"]
    hex: str

    def of(self, path: Path) -> str:
        """The hash of a file."""
        with path.open("rb") as stream:
            if self.kind == "sha256":
                return hashlib.file_digest(stream, "sha256").hexdigest()
            digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
            while block := stream.read(BLOCK):
                digest.update(block)
            return digest.hexdigest()


def fetch_into(
    url: str,
    target: Path,
    wanted: Checksum,
    *,
    headers: Mapping[str, str] | None = None,
    report: Callable[[int], None] = lambda _: None,
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    """Download `url` to `target` unless it is there, going on with `target.part` where an earlier try stopped.

    Args:
        headers: sent to the host of `url` alone, not to one that it redirects to.
        report: is told the bytes there are so far.
    Raises:
        UserError: as `fetch`.
    """
    _check_scheme(url)
    if target.is_file():
        return target
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as stream:
            _lock(stream, part)
            resumed = stream.tell() > 0
            _complete(url, stream, wait, headers or {}, report)
            got = wanted.of(part)
            if got != wanted.hex and resumed:  # the beginning may be another version's: once more from the first byte
                stream.truncate(0)
                _complete(url, stream, wait, headers or {}, report)
                got = wanted.of(part)
            if got != wanted.hex:
                part.unlink()
                raise UserError(f"{url}: the file there has another checksum, {wanted.kind}={got}; it was not used")
            stream.flush()
            os.fsync(stream.fileno())
            part.replace(target)
    except OSError as error:
        raise UserError(f"{error.filename or part}: cannot be written ({error.strerror or error})") from error
    return target


def request(url: str, headers: Mapping[str, str]) -> urllib.request.Request:
    """A request of ours. `headers` do not travel on with a redirect: they may hold a token."""
    asked = urllib.request.Request(
        url, headers={"User-Agent": f"tinyseek/{__version__}", "Accept-Encoding": "identity"}
    )
    for name, value in headers.items():
        asked.add_unredirected_header(name, value)
    return asked


def read_text(url: str, headers: Mapping[str, str] | None = None, most: int = 64 << 20) -> str:
    """A small answer as text, for lists of files.

    Raises:
        UserError: no connection, no such page, or more than `most` bytes.
    """
    _check_scheme(url)
    opener = urllib.request.build_opener(_SafeRedirects)
    try:
        with opener.open(request(url, headers or {}), timeout=30) as answer:
            body: bytes = answer.read(most + 1)
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: the server answers {error.code} {error.reason}") from None
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise UserError(f"{url}: cannot be reached ({getattr(error, 'reason', None) or error})") from None
    if len(body) > most:
        raise UserError(f"{url}: answers with more than {most:,} bytes")
    return body.decode(errors="replace")


def _complete(
    url: str,
    stream: IO[bytes],
    wait: Callable[[float], None],
    headers: Mapping[str, str],
    report: Callable[[int], None],
) -> None:
    """Append to `stream` until all of `url` is there."""
    failures = 0
    while True:
        before = stream.seek(0, os.SEEK_END)
        try:
            whole = _append(url, stream, headers, report)
            stream.flush()
            if whole:
                return
            trouble = "the connection broke off"
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:  # nothing after what is here: whole, or another file; the checksum tells
                return
            if error.code not in (408, 429, 500, 502, 503, 504):
                raise UserError(f"{url}: the server answers {error.code} {error.reason}") from None
            trouble = f"the server answers {error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            trouble = str(getattr(error, "reason", None) or error) or type(error).__name__
        failures = failures + 1 if stream.tell() == before else 1
        if failures >= TRIES:
            kept = f"; {stream.tell():,} bytes are kept, run it again to go on" if stream.tell() else ""
            raise UserError(f"{url}: cannot be downloaded ({trouble}){kept}")
        wait(min(0.5 * 2**failures, 8.0))


def _append(url: str, stream: IO[bytes], headers: Mapping[str, str], report: Callable[[int], None]) -> bool:
    """Ask for what is missing and append it. Returns whether the answer came to its end."""
    start = stream.tell()
    asked = request(url, headers)
    if start:
        asked.add_header("Range", f"bytes={start}-")
    opener = urllib.request.build_opener(_SafeRedirects)
    with opener.open(asked, timeout=30) as answer:
        span = re.fullmatch(r"bytes (\d+)-\d+/(?:\d+|\*)", answer.headers.get("Content-Range", ""))
        if start and not (answer.status == 206 and span and int(span.group(1)) == start):
            stream.truncate(0)  # the server does not do ranges, and sends all of it
            start = 0
        length = answer.headers.get("Content-Length")
        received = 0
        while block := answer.read(BLOCK):
            stream.write(block)
            received += len(block)
            report(start + received)
    # A short body ends like a whole one in http.client when it is read in blocks, so the length is compared.
    return length is None or received == int(length)


def _lock(stream: IO[bytes], part: Path) -> None:
    """Two processes that append to one file would spoil it; the lock goes with the process."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{part}: another process is downloading it; wait for it, then run this again") from None


def _check_scheme(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise UserError(f"{url}: only https:// addresses are downloaded")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects must stay on https: a checksum protects the content, not who sees the request."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
