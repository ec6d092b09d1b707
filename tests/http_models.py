"""A tiny model with random weights behind a real server on a free port; and a server whose model says what a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn

from tinyseek.engine.engine import Engine
from tinyseek.llm.base import DEFAULT, ChatDelta, ChatOptions, Message, Usage
from tinyseek.llm.local import LocalChat
from tinyseek.model.config import ModelConfig
from tinyseek.model.transformer import CausalLM
from tinyseek.serve.app import make_app
from tinyseek.serve.options import ServeSettings
from tinyseek.serve.server import address_of, listen, make_server
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings

CONTEXT = 512
LINES = [
    "In the beginning there was a river, and by the river stood a house.",
    "The weather in Paris is mild; the weather in Oslo is cold.",
    '{"city": "Paris", "celsius": 21}',
    "小梅喜欢吃苹果，也喜欢在河边散步。",
]

os.environ.pop("TINYSEEK_API_KEY", None)


def make_folder(where: Path) -> Path:
    """A model folder: two layers of random weights, a tokenizer that learnt four lines."""
    tokenizer = Tokenizer.train(LINES * 20, TokenizerSettings(vocab_size=420))
    config = ModelConfig(
        model_type="deepseek_v3",
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=CONTEXT,
        initializer_range=0.15,
        kv_lora_rank=12,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=6,
        n_routed_experts=4,
        moe_intermediate_size=16,
        n_shared_experts=1,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
    )
    torch.manual_seed(0)
    CausalLM(config).save(where)
    tokenizer.save(where)
    return where


@dataclass
class Running:
    """A server that runs in a thread."""

    url: str
    server: uvicorn.Server
    thread: threading.Thread
    client: httpx.Client

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        return self.client.post(path, json=body, **more)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.client.get(path, **more)


@contextlib.contextmanager
def running(
    chat: LocalChat, routes: Sequence[tuple[str, Any]] = (), beside: Sequence[LocalChat] = (), **settings: Any
) -> Iterator[Running]:
    """A server on a free port; `routes` are web sockets to add, `beside` further models."""
    chosen = ServeSettings(port=0, **{"name": "tiny", **settings})
    bound = listen(chosen)
    app = make_app(chat, chosen, beside)
    for path, answer in routes:
        app.add_api_websocket_route(path, answer)
    server = make_server(app, chosen)
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    url = address_of(bound)
    try:
        with httpx.Client(
            base_url=url, timeout=30, verify=False
        ) as client:  # to load certificates takes longer than the tests
            yield Running(url, server, thread, client)
    finally:
        server.should_exit = True
        thread.join(20)


class LastingEngine(Engine):
    """An engine over which servers come and go."""

    def close(self, drain_seconds: float = 0) -> None:
        """Not yet."""


Answer = Callable[[Sequence[Message], ChatOptions], Iterable[ChatDelta]]


class ScriptedChat(LocalChat):
    """A model that says what a script says; its engine counts and embeds."""

    def __init__(self, engine: Engine, answer: Answer, pause: float = 0.0) -> None:
        super().__init__(engine, "tiny")
        self.answer, self.pause = answer, pause
        self.asked: list[tuple[list[Message], ChatOptions]] = []
        self.cancelled = 0

    async def astream(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> AsyncIterator[ChatDelta]:
        """The script's deltas."""
        self.asked.append((list(messages), options))
        complete = False
        try:
            for delta in self.answer(messages, options):
                await asyncio.sleep(self.pause)
                yield delta
            complete = True
        finally:
            self.cancelled += not complete


def said(*texts: str, finish: str = "stop") -> list[ChatDelta]:
    """An answer of some pieces of text."""
    return [*(ChatDelta(content=text) for text in texts), ChatDelta(finish=finish, usage=Usage(7, len(texts), 3))]


def scripted(deltas: list[ChatDelta]) -> Answer:
    """A script that always says the same."""
    return lambda *_: deltas


class Stage:
    """A server that stays, and whose model plays one script after another."""

    def __init__(self, server: Running, model: ScriptedChat) -> None:
        self.server, self.model = server, model

    @contextlib.contextmanager
    def plays(self, answer: Answer, pause: float = 0.0) -> Iterator[Running]:
        """The server, with a model that says this and remembers nothing."""
        self.model.answer, self.model.pause = answer, pause
        self.model.asked.clear()
        self.model.cancelled = 0
        yield self.server
