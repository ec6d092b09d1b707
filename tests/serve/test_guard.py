"""The door: pages of other origins, names bound anew, keys, rates; bodies too large, too slow, too deep, or no JSON at all."""

from __future__ import annotations

import http.client
import json
import socket
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from http_models import LastingEngine, Running, ScriptedChat, running, said, scripted
from starlette.websockets import WebSocket
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tinyseek.engine.options import EngineSettings
from tinyseek.errors import UserError
from tinyseek.llm.local import LocalChat
from tinyseek.serve.guard import page_cookie
from tinyseek.serve.options import ServeSettings

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
PAGE = {"accept": "text/html,*/*"}


@pytest.fixture(scope="module")
def model(chat: LocalChat) -> ScriptedChat:
    return ScriptedChat(chat.engine, scripted(said("Well.")))


@pytest.fixture(scope="module")
def locked(model: ScriptedChat) -> Iterator[Running]:
    """A server with keys, known under a name of its own, open to one page."""
    settings: dict[str, Any] = {
        "api_key": ["first-key", "second-key"],
        "allowed_hosts": ["model.example.org"],
        "allowed_origins": ["https://chat.example.org"],
        "requests_per_minute": 10_000,
    }
    with running(model, **settings) as server:
        yield server


@pytest.fixture(scope="module")
def quick(model: ScriptedChat) -> Iterator[Running]:
    """A server that is soon out of patience."""
    with running(
        model, read_seconds=0.5, write_seconds=0.5, max_body_mb=0.1, request_seconds=0.6, beat_seconds=0.1
    ) as server:
        yield server


# ---- where from


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:{port}"}, 200),
        ({"host": "127.0.0.1:9"}, 200),  # a forwarded port
        ({"host": "[::1]:{port}"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:{port}"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "192.168.1.7:{port}"}, 403),
        ({"host": "0.0.0.0:{port}"}, 403),
        ({"host": ""}, 403),
        ({"host": "localhost:{port}@evil.example"}, 403),
        ({"origin": "http://127.0.0.1:{port}"}, 200),
        ({"origin": "http://127.0.0.1:1"}, 403),  # another program of this computer
        ({"origin": "http://localhost:{port}"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "http://evil.example@127.0.0.1:{port}"}, 403),
        ({"origin": "file://"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
        ({"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}, 200),
    ],
)
def test_who_may_come_in(tiny: Running, headers: dict[str, str], status: int) -> None:
    headers = {name: value.replace("{port}", str(tiny.port)) for name, value in headers.items()}
    for path, method in (("/v1/models", "GET"), ("/api/version", "GET"), ("/health", "GET"), ("/", "HEAD")):
        answer = tiny.client.request(method, path, headers=headers)
        assert answer.status_code == status, (path, headers)
        assert not any(name.startswith("access-control") for name in answer.headers)
    posted = tiny.client.post("/tokenize", headers=headers, json={"prompt": "x"})
    assert posted.status_code == status


def test_a_page_cannot_even_ask(tiny: Running) -> None:
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    answer = tiny.client.options("/v1/chat/completions", headers=asked)
    assert answer.status_code == 403
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_a_page_that_may(locked: Running) -> None:
    origin = "https://chat.example.org"
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    answer = locked.client.options("/v1/chat/completions", headers=asked)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (204, origin)
    assert "authorization" in answer.headers["access-control-allow-headers"]
    headers = {"origin": origin, "authorization": "Bearer first-key", "host": "model.example.org"}
    answer = locked.post("/v1/chat/completions", CHAT, headers=headers)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
    refused = locked.post("/v1/chat/completions", CHAT, headers={"origin": origin})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, origin)


def test_web_sockets_are_behind_the_same_door(model: ScriptedChat) -> None:
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.send_text(socket.scope["tinyseek.key"].decode())  # for whatever asks who it is that speaks
        await socket.close()

    with running(model, api_key="key", routes=[("/echo", echo)]) as server:
        address = server.url.replace("http", "ws") + "/echo"
        key = {"Authorization": "Bearer key"}
        good: list[dict[str, str]] = [key, {"Cookie": f"tinyseek_page={page_cookie('key')}"}]
        for headers in good:
            with connect(address, additional_headers=headers, origin=server.url) as socket:  # type: ignore[arg-type]
                socket.send("hi")
                assert [socket.recv(), socket.recv()] == ["hi", "key"]
        for origin, headers in (
            ("https://evil.example", key),
            (server.url, {}),
            (server.url, {"Authorization": "Bearer no"}),
        ):
            with pytest.raises(InvalidStatus) as error, connect(address, additional_headers=headers, origin=origin):  # type: ignore[arg-type]
                pass
            assert error.value.response.status_code == 403


# ---- who


def test_keys(locked: Running) -> None:
    for given, status in (
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": "Bearer first-ke"}, 401),
        ({"authorization": "Bearer first-keyy"}, 401),
        ({"authorization": "Basic first-key"}, 401),
        ({"authorization": "Bearer fürst".encode("latin-1")}, 401),
        ({"cookie": "tinyseek_page=first-key"}, 401),
        ({"cookie": 'tinyseek_page="\\'}, 401),
        ({"authorization": "Bearer first-key"}, 200),
        ({"authorization": "bearer second-key"}, 200),
        ({"cookie": f"other=1; tinyseek_page={page_cookie('second-key')}"}, 200),
    ):
        headers: Any = given
        for path in ("/v1/models", "/api/tags", "/metrics", "/openapi.json"):
            answer = locked.client.get(path, headers=headers)
            assert answer.status_code == status, (path, given)
        if status == 401:
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
    assert locked.get("/health").status_code == 200


def test_a_browser_gives_its_key_once(locked: Running) -> None:
    asked = locked.get("/", headers=PAGE)
    assert asked.status_code == 401
    assert 'name="key"' in asked.text
    assert "This server wants a key." in asked.text
    chinese = locked.get("/", headers=PAGE | {"accept-language": "zh-CN,zh;q=0.9,en;q=0.8"})
    assert (chinese.status_code, chinese.headers["vary"]) == (401, "Accept-Language")
    assert "这台服务器需要密钥。" in chinese.text
    assert 'lang="zh-CN"' in chinese.text
    assert locked.get("/?key=wrong", headers=PAGE).status_code == 401
    opened = locked.get("/?key=first-key", headers=PAGE)
    assert (opened.status_code, opened.headers["location"]) == (303, "/")
    cookie = opened.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "first-key" not in cookie
    assert locked.get("/", headers=PAGE).status_code == 404  # let in; no page is mounted here
    locked.client.cookies.clear()


def test_requests_of_a_minute(model: ScriptedChat) -> None:
    with running(model, api_key=["a", "b"], requests_per_minute=3) as server:

        def ask(key: str) -> httpx.Response:
            return server.post("/v1/chat/completions", CHAT, headers={"authorization": f"Bearer {key}"})

        assert [ask("a").status_code for _ in range(4)] == [200, 200, 200, 429]
        refused = ask("a")
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert ask("b").status_code == 200
        assert server.get("/v1/models", headers={"authorization": "Bearer a"}).status_code == 200


def test_a_full_queue(folder: Path) -> None:
    engine = LastingEngine.load(folder, EngineSettings(max_sequences=1, max_waiting=0, cache_tokens=1024))
    long = {"model": "tiny", "prompt": "x", "max_tokens": 500, "ignore_eos": True, "stream": True}
    with running(LocalChat(engine, "tiny")) as server:
        with server.client.stream("POST", "/v1/completions", json=long) as first:
            lines = first.iter_lines()
            next(lines)
            for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", {"model": "tiny", "prompt": "x"})):
                refused = server.post(path, body)
                assert refused.status_code == 429
                assert int(refused.headers["retry-after"]) >= 1
                assert refused.json()["error"]["code"] == "queue_full"
        assert server.post("/v1/chat/completions", CHAT).status_code in (200, 429)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"host": "0.0.0.0"}, "a key is needed"),
        ({"host": "::"}, "a key is needed"),
        ({"host": "192.168.1.7"}, "a key is needed"),
        ({"host": "localhost.example.org"}, "a key is needed"),
        ({"host": "127.example.org"}, "a key is needed"),
        ({"allowed_origins": ["https://chat.example.org/"]}, "is no origin"),
        ({"allowed_origins": ["chat.example.org"]}, "is no origin"),
        ({"allowed_origins": ["*"]}, "a key is needed"),
        ({"api_key": "nö"}, "printable ASCII"),
        ({"api_key": [""]}, "not empty"),
        ({"port": 70000}, "65535"),
        ({"prot": 8000}, 'did you mean "port"'),
    ],
)
def test_settings_that_are_not_safe_or_not_sound(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ServeSettings.read(values)


def test_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYSEEK_API_KEY", "secret")
    assert ServeSettings.read({"host": "0.0.0.0"}).api_keys == ["secret"]
    assert ServeSettings.read({"api_key": "other"}).api_keys == ["other"]


# ---- what


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "object"),
        (b"{", "line 1, column 2"),
        (b'{"model": "tiny",}', "not JSON"),
        (b"[" * 100_000, "nested deeper"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "nested deeper"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "nested deeper"),
        (b'{"model": "\xff\xfe"}', "not UTF-8"),
        ('{"model": "tiny"}'.encode("utf-16"), "not UTF-8"),
        (b'{"model": "\\ud800"}', "half a character"),
        (b'{"temperature": NaN}', "NaN"),
        (b'{"temperature": Infinity}', "Infinity"),
        (b'{"temperature": 1e999}', "too large"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "cannot be used"),
        (b'"hello"', "object"),
        (b"null", "object"),
        (b"model=tiny&prompt=x", "not JSON"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_json(tiny: Running, body: bytes, said: str) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/api/chat"):
        answer = tiny.client.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, path
        error = answer.json()["error"]
        assert said in (error if isinstance(error, str) else error["message"])


def test_json_under_other_names(tiny: Running) -> None:
    """`curl -d` says that it sends a form."""
    for kind in ("application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8", None):
        headers = {} if kind is None else {"content-type": kind}
        answer = tiny.client.post(
            "/v1/chat/completions", content=b"\xef\xbb\xbf" + json.dumps(CHAT).encode(), headers=headers
        )
        assert answer.status_code == 200, kind


def test_other_paths_and_methods(tiny: Running) -> None:
    assert tiny.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    assert tiny.get("/v1/chat/completions").status_code == 405
    assert tiny.get("/v1/models/../../etc/passwd").status_code == 404


def send_large(server: Running, chunked: bool) -> tuple[int, dict[str, Any]]:
    """A body of 10 MB, piece by piece; the answer."""

    def pieces() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(160):
            yield b"x" * 65536

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    headers = {"content-type": "application/json"}
    if not chunked:
        headers["content-length"] = str(12 + 160 * 65536)
    connection.request("POST", "/v1/completions", body=pieces(), headers=headers, encode_chunked=chunked)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_and_never_held(tiny: Running, chunked: bool) -> None:
    tracemalloc.start()
    try:
        status, body = send_large(tiny, chunked)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert status == 413
    assert body["error"]["code"] == "request_too_large"
    assert peak < 6e6


def test_a_large_body_that_waits_to_be_asked_for(quick: Running) -> None:
    with socket.create_connection(("127.0.0.1", quick.port), 5) as sender:
        head = b"Host: localhost\r\nExpect: 100-continue\r\nContent-Length: 10000000"
        sender.sendall(b"POST /v1/completions HTTP/1.1\r\n" + head + b"\r\n\r\n")
        assert sender.recv(1000).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "slow",
    [
        b"",
        b"POST /v1/compl",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX: ",
        b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{"mod',
        b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"mod\r\n',
    ],
    ids=["nothing", "line", "head", "body", "chunks"],
)
def test_a_client_that_sends_a_byte_now_and_then_is_cut_off(quick: Running, slow: bytes) -> None:
    with socket.create_connection(("127.0.0.1", quick.port), 5) as sender:
        sender.settimeout(0.1)
        sender.sendall(slow)
        started, told, is_open = time.perf_counter(), b"", True
        while is_open and time.perf_counter() - started < 5:
            try:
                part = sender.recv(1000)
                told += part
                is_open = bool(part)
            except TimeoutError:
                if slow:
                    sender.sendall(b"1\r\n \r\n" if b"chunked" in slow else b" ")
            except ConnectionError:
                is_open = False
        took = time.perf_counter() - started
        assert not is_open
        assert 0.3 < took < 3
        if b"\r\n\r\n" in slow:
            assert told.startswith(b"HTTP/1.1 408")


def test_a_connection_is_used_again(quick: Running) -> None:
    """The clock of a request's head starts anew with each request."""
    connection = http.client.HTTPConnection("127.0.0.1", quick.port, timeout=5)
    for _ in range(3):
        connection.request("POST", "/v1/chat/completions", json.dumps(CHAT), {"content-type": "application/json"})
        answer = connection.getresponse()
        assert (answer.status, b"Well." in answer.read()) == (200, True)
        time.sleep(0.4)


def test_no_http_at_all(quick: Running) -> None:
    with socket.create_connection(("127.0.0.1", quick.port), 5) as sender:
        sender.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert sender.recv(1000).startswith(b"HTTP/1.1 400")
    assert quick.get("/health").status_code == 200
