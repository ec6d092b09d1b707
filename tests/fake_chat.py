"""A chat model that says what the question asks it to say, over a real (tiny, untrained) engine that can be looked into.

As a program it serves the chat page behind the server's own guard on one port, and the same page behind a key on another:
`python fake_chat.py PORT LOCKED_PORT FOLDER`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import torch
from studio_payloads import KEY

from tinyseek.engine.engine import Engine, EngineSettings
from tinyseek.engine.runner import TorchForward
from tinyseek.llm.base import DEFAULT, ChatDelta, ChatError, ChatOptions, Message, ToolCallDelta, Usage
from tinyseek.llm.local import LocalChat
from tinyseek.model.config import ModelConfig
from tinyseek.model.transformer import CausalLM
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings

TEXTS = [
    "The lighthouse stands on the rock and looks at the sea. ",
    "灯塔立在礁石上，望着大海。",
    "You said: hello. ",
] * 20


def tiny_engine() -> Engine:
    """Random weights, three layers, eight experts, latent attention."""
    torch.set_num_threads(1)
    torch.manual_seed(7)
    tokenizer = Tokenizer.train(TEXTS, TokenizerSettings(vocab_size=340, sample_mb=1))
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=4096,
        initializer_range=0.3,
        kv_lora_rank=16,
        qk_nope_head_dim=12,
        qk_rope_head_dim=4,
        v_head_dim=8,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
    )
    engine = Engine(CausalLM(config).eval(), tokenizer, EngineSettings(cache_tokens=4096))
    engine.runner.forward = TorchForward(engine.model, engine.cache)  # it writes nothing here, so nothing is compiled
    return engine


class FakeChat(LocalChat):
    """`say X` says X; `slow N` says N words, one every twentieth of a second; `think`, `tool`, `fail` and `options` do that."""

    def __init__(self, engine: Engine, name: str = "a fake model") -> None:
        super().__init__(engine, name)
        self.asked: list[tuple[list[Message], ChatOptions]] = []

    async def astream(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> AsyncIterator[ChatDelta]:
        self.asked.append((list(messages), options))
        said = str(messages[-1]["content"])
        word, _, rest = said.partition(" ")
        ids: list[int] = []
        if word == "fail":
            yield ChatDelta(content="Half of ")
            raise ChatError("the server broke off")
        if word == "tool":
            call = ToolCallDelta(0, "call_1", "weather", json.dumps({"city": rest or "Paris"}))
            yield ChatDelta(tool_calls=(call,))
            yield ChatDelta(finish="tool_calls", usage=Usage(9, 5))
            return
        if word == "think":
            for part in ("Let me ", "think about ", "it."):
                yield ChatDelta(reasoning=part)
                await asyncio.sleep(0.02)
        if word == "slow":
            parts = [f"word{number} " for number in range(int(rest))]
        elif word == "say":
            parts = [rest[start : start + 40] for start in range(0, len(rest), 40)]
        elif word == "options":
            system = messages[0]["content"] if messages[0]["role"] == "system" else ""
            given = [
                options.temperature,
                options.max_tokens,
                options.seed,
                options.thinking,
                system,
                len(options.tools or []),
            ]
            parts = [json.dumps(given)]
        elif messages[-1]["role"] == "tool":
            parts = [f"The tool says {said}."]
        else:
            parts = ["You said: " if self.name == "a fake model" else f"To {self.name} you said: ", said]
        for part in parts:
            tokens = self.tokenizer.encode(part)
            ids += tokens
            yield ChatDelta(content=part, ids=tuple(tokens))
            await asyncio.sleep(0.05 if word == "slow" else 0)
        prompt = len(self.prompt(messages, options).ids)
        yield ChatDelta(finish="stop", usage=Usage(prompt, len(ids), cached_tokens=prompt // 2))


async def main(port: int, locked: int, folder: str) -> None:
    """Serve the page until killed."""
    import uvicorn

    from tinyseek.knowledge.shelf import Shelf
    from tinyseek.serve.app import make_app
    from tinyseek.serve.guard import Guard
    from tinyseek.serve.metrics import Metrics
    from tinyseek.serve.options import ServeSettings
    from tinyseek.studio.app import mount
    from tinyseek.studio.options import StudioSettings

    engine = tiny_engine()
    app = make_app(FakeChat(engine), ServeSettings(port=port))
    knowledge = Shelf(Path(folder) / "knowledge")
    mount(app, FakeChat(engine), StudioSettings(data=folder), [FakeChat(engine, "another")], knowledge)
    behind_a_key = Guard(app, ServeSettings(port=locked, api_key=KEY), Metrics())
    doors = [(app, port, "on"), (behind_a_key, locked, "off")]
    servers = [
        uvicorn.Server(uvicorn.Config(door, port=number, log_level="warning", lifespan=lifespan))  # type: ignore[arg-type]
        for door, number, lifespan in doors
    ]
    await asyncio.gather(*(server.serve() for server in servers))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
