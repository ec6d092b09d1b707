"""The chat page's settings, and those of a conversation. No torch, no web framework here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator

from tinyseek.errors import UserError
from tinyseek.llm.base import ChatOptions
from tinyseek.settings import Settings


class StudioSettings(Settings):
    """Where the chat page keeps its conversations, and how it greets."""

    data: str | None = Field(None, description="folder of the conversations; none for ~/.tinyseek/studio")
    language: Literal["auto", "en", "zh"] = Field("auto", description="the page's language; auto asks the browser")
    system: str = Field("", max_length=20_000, description="instructions that a new conversation begins with")
    examples: list[str] = Field(
        [], description="questions that an empty conversation offers, in any languages; if none, some of every day"
    )
    answers: int = Field(4, ge=1, le=64, description="answers that one visitor may have written at once")

    def folder(self) -> Path:
        """Where the conversations are."""
        if self.data:
            return Path(self.data).expanduser()
        return Path(os.environ.get("TINYSEEK_HOME") or Path.home() / ".tinyseek") / "studio"


class Talk(Settings):
    """How the model answers in one conversation. What is none is left to the model. The page's form is made of these fields."""

    model: str = Field("", max_length=200, description="who answers")
    system: str = Field("", max_length=20_000, description="instructions that stand before the conversation")
    thinking: bool | None = Field(None, description="whether the model thinks before it answers")
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token; about 0.7 is lively")
    top_p: float | None = Field(
        None, ge=0.01, le=1, description="draw among the likeliest tokens that together hold this much probability"
    )
    max_tokens: int | None = Field(None, ge=1, le=131_072, description="longest answer, in tokens")
    seed: int | None = Field(None, ge=0, le=2**53, description="the same seed draws the same answer")
    top_k: int | None = Field(None, ge=1, le=1000, description="draw among this many likeliest tokens")
    min_p: float | None = Field(
        None, ge=0, le=1, description="leave out tokens less likely than this share of the likeliest"
    )
    repetition_penalty: float | None = Field(
        None, ge=0.5, le=2, description="above 1 discourages tokens that were used"
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="above 0 asks for new subjects")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="above 0 discourages saying the same often")
    tools: str = Field(
        "", max_length=50_000, description="functions that the model may call: a JSON list, as OpenAI has it"
    )

    @field_validator("tools")
    @classmethod
    def _list_of_functions(cls, text: str) -> str:
        if text.strip():
            _functions(text)
        return text

    @classmethod
    def kept(cls, values: Mapping[str, Any]) -> Self:
        """Out of the store: what an older or newer version wrote and this one does not take is left out."""
        good: dict[str, Any] = {}
        for name in values.keys() & cls.model_fields.keys():
            try:
                cls.read({name: values[name]})
            except UserError:
                continue
            good[name] = values[name]
        return cls.read(good)

    def options(self) -> ChatOptions:
        """The same for a model."""
        chosen = self.model_dump(exclude={"model", "system", "tools"})
        return ChatOptions(**chosen, tools=_functions(self.tools) if self.tools.strip() else None)


def _functions(text: str) -> list[dict[str, Any]]:
    """Tools out of JSON; a bare function is wrapped as OpenAI wants it. ValueError for what is no list of functions."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {error}") from None
    found = []
    for entry in entries if isinstance(entries, list) else [entries]:
        function = entry.get("function", entry) if isinstance(entry, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise ValueError('every function needs a "name"')
        found.append({"type": "function", "function": function})
    return found
