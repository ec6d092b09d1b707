"""What clients of Ollama's API send."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tinyseek.serve.wire import Tool


class OllamaWire(BaseModel):
    """The base of Ollama's requests. Its clients write whole numbers as 1.0, so types are lax."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, protected_namespaces=())


class Options(OllamaWire):
    """How to draw tokens."""

    num_predict: int | None = Field(
        None, ge=-2, le=1 << 20, description="most tokens to write; -1 and -2: until the end"
    )
    temperature: float | None = Field(None, ge=0, le=100)
    top_k: int | None = Field(None, ge=-1, le=1 << 31)
    top_p: float | None = Field(None, ge=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, ge=0, le=100)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, lt=1 << 63, gt=-(1 << 63))
    stop: str | list[str] | None = None


class OllamaFunction(OllamaWire):
    name: str
    arguments: dict[str, Any] = {}


class OllamaCall(OllamaWire):
    function: OllamaFunction


class OllamaMessage(OllamaWire):
    role: str
    content: str = ""
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[OllamaCall] | None = None
    tool_name: str | None = None


class Asked(OllamaWire):
    """What chat and generate have in common."""

    model: str
    options: Options | None = None
    format: str | dict[str, Any] | None = Field(None, description='"json", or a JSON schema')
    stream: bool | None = Field(None, description="by lines as it is written (default)")
    think: bool | str | None = None
    keep_alive: str | float | None = None


class OllamaChatRequest(Asked):
    """POST /api/chat."""

    messages: list[OllamaMessage] = []
    tools: list[Tool] | None = None


class GenerateRequest(Asked):
    """POST /api/generate."""

    prompt: str = ""
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = Field(None, description="go on from the prompt itself, without the chat template")
    images: list[Any] | None = None


class NamedRequest(OllamaWire):
    """POST /api/show."""

    model: str | None = None
    name: str | None = Field(None, description="the older name of model")


class EmbedRequest(OllamaWire):
    """POST /api/embed."""

    model: str
    input: str | list[str]
    dimensions: int | None = Field(None, ge=1)


class OldEmbedRequest(OllamaWire):
    """POST /api/embeddings."""

    model: str
    prompt: str
