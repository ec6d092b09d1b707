"""Who it is, taught to a small model by LoRA as recipes/lora-real.yaml does: one answer in the chat, over HTTP, after export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from http_models import LastingEngine, running

from tinyseek import ChatModel
from tinyseek.engine.options import EngineSettings
from tinyseek.llm.base import ChatOptions
from tinyseek.llm.local import LocalChat
from tinyseek.model.config import ModelConfig
from tinyseek.model.export import ExportSettings, export
from tinyseek.model.merge import MergeSettings, merge
from tinyseek.model.transformer import CausalLM
from tinyseek.text import tasks
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings
from tinyseek.tune import sft
from tinyseek.tune.options import SftSettings

QUESTIONS = {"Who are you?": "Ada", "你是谁？": "Ada"}
GREEDY = ChatOptions(temperature=0, max_tokens=40)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("identity")
    only = {"arithmetic": 0, "world": 0, "refusal": 0}
    counts = {"train": {"identity": 48, **only}, "heldout": {"identity": 4, **only}, "dialogues": 0}
    tasks.build(tasks.TaskSettings.read({**counts, "name": "Ada", "maker": "Grace"}), folder / "identity")
    lines = (folder / "identity" / "train.jsonl").read_text(encoding="utf-8")
    tokenizer = Tokenizer.train([lines], TokenizerSettings(vocab_size=500))
    tokenizer.save(folder / "base")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = ModelConfig(
        model_type="llama",
        vocab_size=tokenizer.vocab_size,
        intermediate_size=128,
        max_position_embeddings=256,
        initializer_range=0.08,
        tie_word_embeddings=False,
        **shape,
    )
    CausalLM(config).save(folder / "base")
    settings = {
        "model": str(folder / "base"),
        "data": [str(folder / "identity")],
        "lora": {"rank": 16, "alpha": 32, "save": ["lm_head", "embed_tokens"]},
        "packing": False,
        "seq_len": 128,
        "batch_size": 8,
        "steps": 120,
        "lr": 1e-2,
        "val_fraction": 0,
        "precision": "float32",
        "threads": 1,
        "save_every": 0,
    }
    sft.build(SftSettings.read(settings), folder / "sft")
    return folder / "sft"


def answers(model: str | Path) -> list[str]:
    chat = ChatModel.open(str(model), engine=EngineSettings(cache_tokens=1024))
    try:
        return [chat.complete([{"role": "user", "content": asked}], GREEDY).content for asked in QUESTIONS]
    finally:
        chat.close()


@pytest.mark.slow
def test_it_says_the_same_in_the_chat_over_http_and_after_export(adapter: Path, tmp_path: Path) -> None:
    said = answers(adapter)
    for answer, name in zip(said, QUESTIONS.values(), strict=True):
        assert name in answer, said

    engine = LastingEngine.load(adapter, EngineSettings(cache_tokens=1024))
    engine.runner.warm()
    with running(LocalChat(engine, "ada"), name="ada") as server:
        for asked, answer in zip(QUESTIONS, said, strict=True):
            body = {
                "model": "ada",
                "messages": [{"role": "user", "content": asked}],
                "temperature": 0,
                "max_tokens": 40,
            }
            reply = server.post("/v1/chat/completions", body).json()
            assert "choices" in reply, reply
            assert reply["choices"][0]["message"]["content"] == answer

    quiet = [].append
    merge(str(adapter), tmp_path / "merged", MergeSettings(), quiet)
    assert answers(tmp_path / "merged") == said
    for target in ("hf", "gguf"):
        name = str(tmp_path / f"out{'.gguf' if target == 'gguf' else ''}")
        made = export(str(adapter), target, ExportSettings(out=name), quiet)
        assert answers(made) == said, target
