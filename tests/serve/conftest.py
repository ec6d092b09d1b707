"""One tiny model for all tests of the server, and a server over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from http_models import LastingEngine, Running, ScriptedChat, Stage, make_folder, running, scripted

from tinyseek.engine.options import EngineSettings
from tinyseek.llm.local import LocalChat


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("serve") / "tiny")


@pytest.fixture(scope="session")
def chat(folder: Path) -> LocalChat:
    settings = EngineSettings(max_sequences=8, max_waiting=64, cache_tokens=8192)
    return LocalChat(LastingEngine.load(folder, settings), "tiny")


@pytest.fixture(scope="session")
def tiny(chat: LocalChat) -> Iterator[Running]:
    """The tiny model, served."""
    with running(chat) as server:
        yield server


@pytest.fixture(scope="session")
def stage(chat: LocalChat) -> Iterator[Stage]:
    """A server whose model says what a script says."""
    model = ScriptedChat(chat.engine, scripted([]))
    with running(model) as server:
        yield Stage(server, model)
