"""The settings of the server. No torch, and no web framework, here."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from tinyseek.engine.options import EngineSettings
from tinyseek.knowledge.answer.options import AnswerSettings
from tinyseek.knowledge.options import KnowledgeSettings
from tinyseek.settings import Settings, read_yaml

KEY_VARIABLE = "TINYSEEK_API_KEY"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class DoorSettings(Settings):
    """Where to listen, whom to answer, and how much to take."""

    host: str = Field(
        "127.0.0.1", description="address to listen on; any but this computer's own (0.0.0.0 for all) needs an api_key"
    )
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 for any that is free")
    name: str | None = Field(
        None, min_length=1, max_length=200, description="the model's name in requests; if none, that of its folder"
    )
    adapters: dict[str, str] = Field(
        {},
        description="adapters to serve over the model, by the names that requests use: adapters.poet=runs/poet/sft; a model that "
        "is an adapter itself is served beside its base",
    )
    api_key: str | list[str] = Field(
        "",
        description=f"the key that clients must send (or several: [a,b]); better given as {KEY_VARIABLE} in the environment, "
        "since others on this computer can read command lines",
    )
    allowed_hosts: list[str] = Field(
        [], description="names under which this server is reached, beside this computer's own (model.example.org)"
    )
    allowed_origins: list[str] = Field(
        [], description="web pages of other origins that may use this server (https://chat.example.org)"
    )
    max_body_mb: float = Field(4.0, gt=0, le=1024, description="megabytes of a request; larger ones are refused")
    requests_per_minute: int | None = Field(
        None, ge=1, description="requests of one key (without keys: of all) in a minute; more are told to wait"
    )
    max_prompts: int = Field(256, ge=1, description="prompts, or texts to embed, in one request")
    read_seconds: float = Field(
        30.0, gt=0, description="a client that takes longer to send a request's head, or its body, is cut off"
    )
    write_seconds: float = Field(
        60.0, gt=0, description="a client that takes nothing of its answer for so long is cut off"
    )
    request_seconds: float = Field(600.0, gt=0, description="an answer that takes longer is cancelled")
    beat_seconds: float = Field(
        10.0, gt=0, description="a stream that is silent for so long says that it is alive, with a comment"
    )
    drain_seconds: float = Field(30.0, ge=0, description="when stopped, time for running answers to end")
    kept_responses: int = Field(1000, ge=0, description="answers of /v1/responses remembered for previous_response_id")
    kept_responses_mb: float = Field(64.0, ge=0, description="megabytes of memory for them")

    @model_validator(mode="before")
    @classmethod
    def _key_of_the_environment(cls, values: Any) -> Any:
        if isinstance(values, dict) and "api_key" not in values and os.environ.get(KEY_VARIABLE):
            values = {**values, "api_key": os.environ[KEY_VARIABLE]}
        return values

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if not all(self.api_keys) or not all(key.isascii() and key.isprintable() for key in self.api_keys):
            raise ValueError("an api_key is made of printable ASCII characters, and is not empty")
        if not self.is_local and not self.api_keys:
            raise ValueError(
                f"host={self.host} can be reached from other computers, so a key is needed: set {KEY_VARIABLE} in the environment"
            )
        for origin in self.allowed_origins:
            parts = urlsplit(origin)
            if origin != "*" and (not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}".lower()):
                raise ValueError(f'allowed_origins: "{origin}" is no origin; write it like https://chat.example.org')
        if "*" in self.allowed_origins and not self.api_keys:
            raise ValueError("allowed_origins=[*] lets any web page use the server, so a key is needed: set api_key")
        return self

    @property
    def api_keys(self) -> list[str]:
        """Every key that opens the server; none where it is open."""
        own = [self.api_key] if isinstance(self.api_key, str) and self.api_key else list(self.api_key)
        return [*own, *(key for key in self.more_keys if key not in own)]

    @property
    def more_keys(self) -> list[str]:
        """Keys that are said elsewhere."""
        return []

    @property
    def is_local(self) -> bool:
        """Whether only this computer can reach the server."""
        name = self.host.strip("[]").lower()
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return name in LOOPBACK_NAMES


class KnowledgeDoorSettings(DoorSettings):
    """Which documents are asked over HTTP and MCP, by whom, and how."""

    kb: bool = Field(
        False, description="serve the knowledge base too: /v1/kb, the model name kb, MCP at /mcp, the page at /kb"
    )
    kb_home: str = Field("", description="folder of its collections; if none, TINYSEEK_HOME/knowledge")
    kb_access: dict[str, list[str]] = Field(
        {},
        description="the collections that each API key sees, * for all, as a YAML file (kb_access=keys.yaml) of lines "
        "KEY: [notes, reports]; these keys open the server beside api_key, whose own see none then. If none, all see all",
    )
    kb_read_only: bool = Field(
        False, description="answer questions only: nothing is added, changed or removed over HTTP or MCP"
    )
    kb_model: str = Field(
        "",
        description="who writes its answers: ollama:NAME, deepseek, http://host:port, another model's folder; quotes for the "
        "documents' own sentences; if none, the model that is served",
    )
    kb_upload_mb: float = Field(100.0, gt=0, le=4096, description="megabytes of one upload; larger ones are refused")
    kb_threads: int = Field(16, ge=1, le=256, description="questions and uploads that are worked on at once; more wait")
    knowledge: KnowledgeSettings = KnowledgeSettings()
    answers: AnswerSettings = AnswerSettings()

    @model_validator(mode="before")
    @classmethod
    def _access_of_a_file(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("kb_access"), str):
            values = {**values, "kb_access": read_yaml(Path(values["kb_access"]).expanduser())}
        return values

    @property
    def more_keys(self) -> list[str]:
        return list(self.kb_access)

    @property
    def access(self) -> dict[bytes, list[str]] | None:
        """The collections of each key; None where every key has all."""
        if not self.kb_access:
            return None
        return {key.encode(): self.kb_access.get(key, []) for key in self.api_keys}


class ServeSettings(EngineSettings, KnowledgeDoorSettings):
    """All of the server's settings, and how the model runs."""
