"""Streams over time: clients that hang up or do not read, answers that take too long, and how a server ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from http_models import Running, ScriptedChat, Stage, running, said, scripted

from tinyseek.cli import main
from tinyseek.errors import UserError
from tinyseek.llm.base import DEFAULT, ChatDelta, ChatOptions, Message
from tinyseek.llm.local import LocalChat
from tinyseek.serve.options import ServeSettings
from tinyseek.serve.server import listen

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = {"model": "tiny", "messages": HELLO, "stream": True}
LONG = {"model": "tiny", "prompt": "by the river", "max_tokens": 500, "ignore_eos": True}


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether it comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


# ---- clients that go


def test_a_client_that_hangs_up_frees_its_blocks(tiny: Running, chat: LocalChat) -> None:
    stats = chat.engine.stats
    assert until(lambda: stats().blocks_used == 0)
    for path, body in (
        ("/v1/completions", {**LONG, "stream": True}),
        ("/v1/completions", {**LONG, "prompt": ["by the river", "by the house"], "stream": True}),
        ("/v1/completions", LONG),
        ("/v1/chat/completions", {**CHAT, "logit_bias": {"1": -100}}),
        ("/v1/chat/completions", {**CHAT, "logit_bias": {"1": -100}, "stream": False}),
        ("/v1/responses", {"model": "tiny", "input": "Hi", "stream": True}),
        ("/api/generate", {"model": "tiny", "prompt": "x", "raw": True}),
    ):
        before = stats().finished.get("cancelled", 0)
        with httpx.Client(base_url=tiny.url, verify=False) as client, pytest.raises(httpx.ReadTimeout):
            if body.get("stream", path.startswith("/api")):
                with client.stream("POST", path, json=body) as stream:
                    next(stream.iter_raw())
                    raise httpx.ReadTimeout("seen enough")
            client.post(path, json=body, timeout=0.15)
        assert until(lambda: stats().blocks_used == 0 and stats().running == 0, 2), path
        assert stats().finished.get("cancelled", 0) >= before + 1, path


def test_a_client_that_hangs_up_while_it_waits(stage: Stage) -> None:
    with stage.plays(scripted(said("x")), pause=30) as server:
        for streamed in (True, False):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(
                    f"{server.url}/v1/chat/completions", json={**CHAT, "stream": streamed}, timeout=0.2, verify=False
                )
        assert until(lambda: stage.model.cancelled == 2)


def test_a_client_that_does_not_read_is_cut_off(chat: LocalChat) -> None:
    def endless(*_: Any) -> Iterator[ChatDelta]:
        while True:
            yield ChatDelta(content="x" * 60_000)

    model = ScriptedChat(chat.engine, endless, pause=0.001)
    with running(model, write_seconds=0.5) as server:
        body = json.dumps(CHAT).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect(("127.0.0.1", server.port))
            reader.sendall(head + body)
            for _ in range(20):  # a byte now and then is not reading
                reader.recv(1)
                if until(lambda: model.cancelled == 1, 0.2):
                    break
            assert model.cancelled == 1


# ---- time


def test_a_silent_stream_says_that_it_is_alive(chat: LocalChat) -> None:
    model = ScriptedChat(chat.engine, scripted(said("Well.")), pause=0.35)
    with running(model, beat_seconds=0.1) as server:
        text = server.post("/v1/chat/completions", CHAT).text
        assert 2 <= text.count(": keep-alive\n\n") <= 6
        assert text.endswith("data: [DONE]\n\n")
        assert server.post("/api/chat", {"model": "tiny", "messages": HELLO}).text.count("\n") == 2


def test_an_answer_that_takes_too_long(chat: LocalChat) -> None:
    model = ScriptedChat(chat.engine, scripted(said(*"abcdefgh")), pause=0.2)
    with running(model, request_seconds=0.5) as server:
        whole = server.post("/v1/chat/completions", {**CHAT, "stream": False})
        assert whole.status_code == 504
        assert whole.json()["error"]["type"] == "timeout_error"
        lines = [line for line in server.post("/v1/chat/completions", CHAT).text.split("\n\n") if line]
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "timeout"
        assert lines[-1] == "data: [DONE]"
        assert until(lambda: model.cancelled == 2)
        errors = re.findall(r'tinyseek_errors_total\{code="504"\} (\d+)', server.get("/metrics").text)
        assert errors == ["2"]


def test_a_fault_is_told_without_its_story(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    def breaks(*_: Any) -> Iterator[ChatDelta]:
        raise RuntimeError("the secret of the house")

    with stage.plays(breaks) as server:
        for path, body in (
            ("/v1/chat/completions", CHAT),
            ("/v1/chat/completions", {**CHAT, "stream": False}),
            ("/v1/responses", {"model": "tiny", "input": "x"}),
            ("/api/chat", {"model": "tiny", "messages": HELLO}),
        ):
            answer = server.post(path, body)
            assert answer.status_code == 500
            assert "secret" not in answer.text
            assert "Traceback" not in answer.text
        assert server.get("/health").status_code == 200
    assert "the secret of the house" in caplog.text


# ---- the end


def test_a_server_that_stops_finishes_what_runs(chat: LocalChat) -> None:
    model = ScriptedChat(chat.engine, scripted(said(*"abcdefgh")), pause=0.3)

    def refuses() -> bool:
        try:
            httpx.get(f"{server.url}/health", verify=False)
        except httpx.ConnectError:
            return True
        except httpx.TimeoutException:  # a busy machine: ask again
            return False
        return False

    with running(model) as server:
        texts: list[str] = []
        asking = threading.Thread(target=lambda: texts.append(server.post("/v1/chat/completions", CHAT).text))
        asking.start()
        assert until(lambda: bool(model.asked))
        server.server.should_exit = True
        assert until(refuses)
        assert asking.is_alive()
        asking.join(10)
        server.thread.join(5)
    assert texts[0].count('"content":"') == 9  # the first is empty
    assert texts[0].endswith("data: [DONE]\n\n")
    assert model.cancelled == 0


def test_a_server_that_stops_waits_no_longer_than_it_was_told(chat: LocalChat) -> None:
    def slow(messages: Sequence[Message], options: ChatOptions) -> Iterator[ChatDelta]:
        if messages[-1]["content"] == "Begin":
            yield ChatDelta(content="Once")
        yield ChatDelta(content="upon")

    class Slow(ScriptedChat):
        async def astream(
            self, messages: Sequence[Message], options: ChatOptions = DEFAULT
        ) -> AsyncIterator[ChatDelta]:
            async for delta in super().astream(messages, options):
                if delta.content == "upon":
                    await asyncio.sleep(60)
                yield delta

    model = Slow(chat.engine, slow)
    with running(model, drain_seconds=1) as server:
        answers: dict[str, httpx.Response] = {}

        def ask(words: str) -> None:
            body = {**CHAT, "messages": [{"role": "user", "content": words}]}
            answers[words] = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=20, verify=False)

        asking = [threading.Thread(target=ask, args=(words,)) for words in ("Begin", "Wait")]
        for thread in asking:
            thread.start()
        assert until(lambda: len(model.asked) == 2)
        started = time.monotonic()
        server.server.should_exit = True
        server.thread.join(10)
        assert 0.9 < time.monotonic() - started < 5
        for thread in asking:
            thread.join(5)
    assert model.cancelled == 2
    assert answers["Wait"].status_code == 503
    *_, error, done, _ = answers["Begin"].text.split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["message"] == "the server is stopping"
    assert done == "data: [DONE]"


def test_the_command(folder: Path, tmp_path: Path) -> None:
    """In a process of its own: what it prints, curl as it says, SIGTERM while an answer is written."""
    command = [
        sys.executable,
        "-m",
        "tinyseek",
        "serve",
        str(folder),
        "port=0",
        "page=false",
        "name=my model",
        "cache_tokens=4096",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            lines = [server.stdout.readline() for _ in range(4)]
            assert lines[0].startswith("my model: 44.3k parameters, context 512 tokens")
            (address,) = re.findall(r"OpenAI API +(http://127\.0\.0\.1:\d+)/v1$", lines[1].strip())
            curl = re.fullmatch(r"try it: curl (\S+) -d '(.*)'\n", lines[3])
            assert curl is not None
            run = subprocess.run(
                ["curl", "-sS", curl[1], "-d", curl[2]], capture_output=True, text=True, check=True, timeout=60
            )
            assert json.loads(run.stdout)["choices"][0]["message"]["role"] == "assistant"
            run = subprocess.run(["curl", "-sS", "-i", "-H", "Host: evil.example", f"{address}/v1/models"],
                                 capture_output=True, text=True, check=True, timeout=10)  # fmt: skip
            assert run.stdout.startswith("HTTP/1.1 403")
            large = tmp_path / "large.json"
            large.write_bytes(b" " * 10_000_000)
            run = subprocess.run(["curl", "-sS", "-o", "-", "-w", "%{http_code}", "--data-binary", f"@{large}", curl[1]],
                                 capture_output=True, text=True, check=True, timeout=10)  # fmt: skip
            assert run.stdout.endswith("413")
            asking = [
                "curl",
                "-sS",
                "-N",
                f"{address}/v1/completions",
                "-d",
                json.dumps({**LONG, "model": "my model", "stream": True}),
            ]
            with subprocess.Popen(asking, stdout=subprocess.PIPE, text=True) as stream:
                assert stream.stdout is not None
                assert stream.stdout.readline().startswith("data: {")
                server.send_signal(signal.SIGTERM)
                rest = stream.stdout.read()
                assert rest.endswith("data: [DONE]\n\n")
            assert server.wait(20) == 0
        finally:
            server.kill()


def test_a_port_in_use(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listen(ServeSettings(port=0)) as bound:
        port = bound.getsockname()[1]
        assert main(["serve", str(folder), f"port={port}"]) == 2
        assert f"127.0.0.1:{port} is in use by another program" in capsys.readouterr().err
    with pytest.raises(UserError, match="no such address"):
        listen(ServeSettings(host="no.such.host.invalid", api_key="key"))
    with pytest.raises(UserError, match="cannot listen there"):
        listen(ServeSettings(host="203.0.113.9", api_key="key"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "no such folder"),
        (["x", "host=0.0.0.0"], "a key is needed"),
        (["x", "quantise=int8"], 'did you mean "quantize"'),
        (["http://127.0.0.1:1/v1"], "is served already"),
    ],
)
def test_mistakes_at_the_command_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *words, "port=0"]) == 2
    assert told in capsys.readouterr().err
