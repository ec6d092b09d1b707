"""The form of a conversation's settings, made of the fields of `Talk`: their bounds, their meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinyseek.evaluate.page import Html, el, join
from tinyseek.studio.options import Talk
from tinyseek.studio.words import Words

# What each field is called, and how it is set; a slider's third is its step, its fourth where it stands while nothing is chosen.
PLAIN: dict[str, tuple[Any, ...]] = {
    "system": ("System prompt", "text"),
    "thinking": ("Thinking", "choice"),
    "temperature": ("Temperature", "slider", 0.05, 0.7),
    "top_p": ("Top-p", "slider", 0.01, 0.95),
    "max_tokens": ("Longest answer", "number"),
}
MORE: dict[str, tuple[Any, ...]] = {
    "seed": ("Seed", "number"),
    "top_k": ("Top-k", "number"),
    "min_p": ("Min-p", "slider", 0.01, 0.05),
    "repetition_penalty": ("Repetition penalty", "slider", 0.05, 1.0),
    "presence_penalty": ("Presence penalty", "slider", 0.1, 0.0),
    "frequency_penalty": ("Frequency penalty", "slider", 0.1, 0.0),
    "tools": ("Tools", "code"),
}
_FIELDS = PLAIN | MORE


def field(name: str, talk: Talk, words: Words) -> Html:
    """One field, with its name, its meaning, and what is chosen."""
    title, kind, *how = _FIELDS[name]
    info, value = Talk.model_fields[name], getattr(talk, name)
    low, high = (
        next((getattr(rule, key) for rule in info.metadata if hasattr(rule, key)), None) for key in ("ge", "le")
    )
    known = {"data_field": name, "aria_label": words(title)}
    now = "" if kind in ("text", "code", "choice", "number") else words("automatic") if value is None else f"{value:g}"
    reset = (
        el("button", words("Automatic"), type="button", class_="quiet", data_act="reset", data_field=name)
        if kind == "slider"
        else ""
    )
    if kind == "slider":
        control = el(
            "input",
            type="range",
            min=low,
            max=high,
            step=how[0],
            value=f"{how[1] if value is None else value:g}",
            **known,
        )
    elif kind == "number":
        shown = None if value is None else str(value)
        control = el(
            "input",
            type="number",
            min=low,
            max=high,
            step=1,
            value=shown,
            placeholder=words("automatic"),
            inputmode="numeric",
            **known,
        )
    elif kind == "choice":
        options = [("", None, words("automatic")), ("1", True, words("on")), ("0", False, words("off"))]
        control = el(
            "div", [_option(name, key, label, chosen is value) for key, chosen, label in options], class_="segments"
        )
    else:
        style = "code-like" if kind == "code" else None
        control = el("textarea", "\n", value, class_=style, rows=3, spellcheck="false" if style else None, **known)
    line = el("div", el("span", words(title)), el("span", now, class_="now"), reset, class_="line")
    why = el("p", words(info.description or ""), class_="why")
    return el(
        "div",
        line,
        control,
        why,
        el("p", class_="bad", role="alert"),
        class_="field unset" if value is None else "field",
        data_of=name,
    )


def models(names: Sequence[str], chosen: str, words: Words) -> Html:
    """Whom to talk with, where there are several."""
    line = el("div", el("span", words("Model")), class_="line")
    buttons = [_option("model", name, name, name == chosen) for name in names]
    info = Talk.model_fields["model"]
    why = el("p", words(info.description or ""), class_="why")
    return el("div", line, el("div", buttons, class_="segments"), why, class_="field", data_of="model")


def _option(name: str, key: str, label: str, chosen: bool) -> Html:
    pressed = "true" if chosen else "false"
    return el(
        "button",
        label,
        type="button",
        class_="on" if chosen else None,
        data_act="choose",
        data_field=name,
        data_value=key,
        aria_pressed=pressed,
    )


def parsed(name: str, text: str) -> Any:
    """What was typed into a field, as settings have it: nothing is none, where none means automatic."""
    if name in ("system", "tools"):
        return text
    if name == "thinking":
        return {"1": True, "0": False}.get(text)
    text = text.strip()
    return text or None


def settings(talk: Talk, words: Words) -> tuple[dict[str, Html], dict[str, Html]]:
    """Every field: those that show at once, and those that are folded."""
    return ({name: field(name, talk, words) for name in PLAIN}, {name: field(name, talk, words) for name in MORE})


def intro(words: Words) -> Html:
    """What the form is about."""
    return join(
        el("p", words("How the model answers in this conversation. New ones begin with the same."), class_="why")
    )
