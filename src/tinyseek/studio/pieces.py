"""The page's own HTML, from plain values: the messages and what can be done with them. Text is escaped where it enters.

Buttons carry `data-act` and what it acts on; the page listens once for all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tinyseek.evaluate.page import Child, Html, el, join
from tinyseek.studio.chats import Message
from tinyseek.studio.words import Words

_ICONS = {
    "plus": "M12 5v14M5 12h14",
    "search": "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM20 20l-4-4",
    "pen": "M4 20h4L19 9l-4-4L4 16zM13.5 6.5l4 4",
    "bin": "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5",
    "copy": "M9 9h11v11H9zM5 15H4V4h11v1",
    "again": "M20 11a8 8 0 1 0-2.3 6.3M20 4v7h-7",
    "eye": "M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12 18 18.5 12 18.5 2.5 12 2.5 12zM12 9.2a2.8 2.8 0 1 0 0 5.6 2.8 2.8 0 0 0 0-5.6z",
    "sliders": "M4 7h9M17 7h3M4 17h3M11 17h9M15 4.5v5M9 14.5v5",
    "left": "M14.5 6l-6 6 6 6",
    "right": "M9.5 6l6 6-6 6",
    "down": "M6 9.5l6 6 6-6",
    "up": "M12 19V5M6 11l6-6 6 6",
    "close": "M6 6l12 12M18 6L6 18",
    "menu": "M4 7h16M4 12h16M4 17h16",
    "sun": "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M18 18l1 1M19 5l-1.4 1.4M6.4 18L5 19",
    "moon": "M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5z",
    "half": "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM12 3v18M12 7l6.4-1M12 12h9M12 17l6.4 1",
    "tool": "M14.5 6.5a4 4 0 0 0 5 5L11 20l-4-4zM14.5 6.5L17 4M4 20l3-4",
    "alert": "M12 4L2.5 20h19zM12 10v4M12 17v.3",
    "stack": "M12 3.5l9 4.5-9 4.5-9-4.5zM3 12l9 4.5 9-4.5M3 16l9 4.5 9-4.5",
    "folder": "M3 6.5h6l2 2.5h10v10H3z",
    "file": "M6 3.5h8l4 4v13H6zM14 3.5v4h4",
    "check": "M5 12.5l4.5 4.5L19 7.5",
    "save": "M12 4v11M7 10.5l5 5 5-5M5 20h14",
    "wide": "M14 4h6v6M20 4l-7 7M10 20H4v-6M4 20l7-7",
    "minus": "M5 12h14",
    "sum": "M17.5 7V4.500h-11l6 7.500-6 7.500h11V17",
    "list": "M4 6.500h16M4 12h16M4 17.500h9",
    "book": "M4 5.5c3-1.3 5.7-1 8 .6 2.300-1.600 5-1.900 8-.6v13c-3-1.300-5.700-1-8 .6-2.300-1.600-5-1.900-8-.6zM12 6.100v13",
}
MARK = Html(
    '<svg class="mark" viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="9" fill="var(--accent)"/>'
    '<circle cx="14" cy="14" r="6.2" fill="none" stroke="var(--on-accent)" stroke-width="2.6"/>'
    '<path d="M18.8 18.8L25 25" stroke="var(--on-accent)" stroke-width="2.8" stroke-linecap="round"/>'
    '<circle cx="14" cy="14" r="2.3" fill="var(--on-accent)"/></svg>'
)


def icon(name: str) -> Html:
    """A line drawing, 24 units square, in the colour of the text around it."""
    return el("svg", el("path", d=_ICONS[name]), class_="icon", viewBox="0 0 24 24", aria_hidden="true")


def button(act: str, label: str, *inside: Child, class_: str = "quiet", **data: str | float | None) -> Html:
    """A button that says what it does to those who cannot see its picture."""
    return el("button", *inside, type="button", class_=class_, title=label, aria_label=label, data_act=act, **data)


def welcome(words: Words, tries: Sequence[tuple[str, str]], name: str) -> Html:
    """What an empty conversation shows: who is here, and what one may ask."""
    return el(
        "div",
        MARK,
        el("h2", words("What would you like to know?")),
        el("p", words("You are talking to {name}, and can look inside every answer.", name=name)),
        el(
            "div",
            [
                el(
                    "button",
                    el("small", topic) if topic else "",
                    prompt,
                    type="button",
                    data_act="try",
                    data_text=prompt,
                )
                for topic, prompt in tries
            ],
            class_="tries",
        ),
        class_="welcome",
    )


def thought_label(message: Message, words: Words) -> Html:
    """The line above the model's thinking: that it thinks, or how long it thought and how much."""
    seconds, tokens = message.facts.get("thinking_seconds"), message.facts.get("reasoning_tokens")
    if message.state == "writing" and not message.content and not message.calls:
        label = words("Thinking …")
    elif seconds is not None:
        label = words("Thought for {time}", time=duration(seconds, words))
        if tokens:
            label += " · " + words("{count} tokens", count=f"{tokens:,}")
    else:
        label = words("Thoughts")
    return join(icon("right"), el("span", label, class_="label"))


def calls(message: Message, answered: Mapping[str, str], words: Words, asks: bool) -> Html:
    """The tools that the model wants to call, each with its arguments, and its result or a field for it."""
    cards = []
    for number, call in enumerate(message.calls):
        function = call.get("function") or {}
        result = answered.get(str(call.get("id")))
        reply = ""
        if result is not None:
            reply = join(el("div", el("span", words("Result")), class_="head"), el("pre", result))
        elif asks:
            field = el(
                "input", class_="reply-text", placeholder=words("Type the tool's result"), aria_label=words("Result")
            )
            send = el(
                "button",
                words("Send"),
                type="button",
                class_="pill",
                data_act="reply",
                data_id=str(message.id),
                data_call=number,
            )
            reply = el("div", field, send, class_="reply")
        cards.append(
            el(
                "div",
                el(
                    "div",
                    icon("tool"),
                    el("span", words("Calls a tool")),
                    el("b", str(function.get("name") or "?")),
                    class_="head",
                ),
                el("pre", _pretty(str(function.get("arguments") or ""))),
                reply,
                class_="call",
            )
        )
    return join(*cards)


def _pretty(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):  # not whole yet, or never
        return arguments


def failed(message: Message, words: Words) -> Html:
    """What to say where an answer broke off."""
    again = el(
        "button", words("Try again"), type="button", class_="pill plain", data_act="again", data_id=str(message.id)
    )
    said = el("div", el("b", words("The answer could not be finished.")), el("span", message.error or ""))
    return el("div", icon("alert"), said, el("div", again, style="margin-left:auto"), class_="failed", role="alert")


def user_bar(message: Message, siblings: Sequence[int], words: Words) -> Html:
    """What can be done with a question."""
    return join(
        _turns(message, siblings, words),
        button("copy", words("Copy"), icon("copy"), data_id=message.id),
        button("edit", words("Edit"), icon("pen"), data_id=message.id),
    )


def answer_bar(message: Message, siblings: Sequence[int], words: Words, looks: bool, looking: bool) -> Html:
    """What can be done with an answer, and what it took."""
    if message.state == "writing":
        return Html("")
    parts = [
        _turns(message, siblings, words),
        button("copy", words("Copy"), icon("copy"), data_id=message.id),
        button("again", words("Another answer"), icon("again"), data_id=message.id),
    ]
    if looks and not message.empty:
        kind = "quiet on" if looking else "quiet"
        parts.append(button("look", words("Look inside"), icon("eye"), class_=kind, data_id=message.id))
    return join(*parts, el("span", [el("span", fact) for fact in _facts(message, words)], class_="facts"))


def _turns(message: Message, siblings: Sequence[int], words: Words) -> Html:
    if len(siblings) < 2:
        return Html("")
    at = siblings.index(message.id)
    before = siblings[at - 1] if at else None
    after = siblings[at + 1] if at + 1 < len(siblings) else None
    return el(
        "span",
        el(
            "button",
            icon("left"),
            type="button",
            class_="quiet",
            data_act="turn",
            data_id=before,
            aria_label=words("Previous version"),
            disabled="" if before is None else None,
        ),
        f"{at + 1}/{len(siblings)}",
        el(
            "button",
            icon("right"),
            type="button",
            class_="quiet",
            data_act="turn",
            data_id=after,
            aria_label=words("Next version"),
            disabled="" if after is None else None,
        ),
        class_="turns",
    )


def _facts(message: Message, words: Words) -> list[str]:
    facts = message.facts
    said = []
    if message.state == "stopped":
        said.append(words("stopped"))
    elif facts.get("finish") == "length":
        said.append(words("cut off at the longest length"))
    if speed := facts.get("tokens_per_second"):
        said.append(words("{count} tokens/s", count=f"{speed:,.1f}" if speed < 100 else f"{speed:,.0f}"))
    if count := facts.get("completion_tokens"):
        said.append(words("{count} tokens", count=f"{count:,}"))
    if prompt := facts.get("prompt_tokens"):
        cached = facts.get("cached_tokens") or 0
        said.append(
            words("{count} read, {cached} of them from memory", count=f"{prompt:,}", cached=f"{cached:,}")
            if cached
            else words("{count} read", count=f"{prompt:,}")
        )
    if forgotten := facts.get("forgotten"):
        said.append(words("{count} older messages left out", count=forgotten))
    if cost := facts.get("cost"):
        said.append(f"{cost:.4g}")
    return said


def duration(seconds: float, words: Words) -> str:
    """`0.4 s`, `12 s`, `2 min 5 s`."""
    if seconds < 10:
        return words("{count} s", count=f"{max(seconds, 0.1):.1f}")
    whole = round(seconds)
    if whole < 60:
        return words("{count} s", count=str(whole))
    return words("{minutes} min {seconds} s", minutes=str(whole // 60), seconds=str(whole % 60))


def editor(message: Message, words: Words) -> Html:
    """A question being written anew."""
    return edit_box(message.content, words("Edit"), words("Send"), words, data_id=message.id)


def edit_box(
    text: str,
    label: str,
    done: str,
    words: Words,
    before: Child = "",
    class_: str = "edit-text",
    act: str = "save-edit",
    leave: str = "cancel-edit",
    longest: int | None = None,
    **data: str | float | None,
) -> Html:
    """A text to be changed in its place, to be sent or left.

    Args:
        label: what the text is, for those who cannot see it; done: what the button that sends says.
        act, leave: what its buttons do.
        before: what stands left of the buttons.
    """
    area = el("textarea", "\n", text, class_=class_, aria_label=label, rows="1", maxlength=longest)
    buttons = (pill(leave, words("Cancel"), "pill plain", **data), pill(act, done, **data))
    return el("div", area, el("div", before, *buttons, class_="actions"), class_="edit")


def pill(act: str, label: str, class_: str = "pill", /, **data: str | float | None) -> Html:
    """A button that says in words what it does."""
    return el("button", label, type="button", class_=class_, data_act=act, **data)


def segments(
    act: str, names: Mapping[str, Child], here: str, label: str = "", class_: str = "segments", tabs: bool = False
) -> Html:
    """Buttons of which one is on: faces of a page (`tabs`), or ways to do something."""
    chosen = "aria_selected" if tabs else "aria_pressed"
    buttons = [
        el(
            "button",
            inside,
            type="button",
            role="tab" if tabs else None,
            class_="on" if name == here else None,
            data_act=act,
            data_name=name,
            **{chosen: "true" if name == here else "false"},
        )
        for name, inside in names.items()
    ]
    return el("div", buttons, class_=class_, role="tablist" if tabs else "group", aria_label=label or None)
