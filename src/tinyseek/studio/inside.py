"""A look inside an answer, as HTML: its tokens shaded by surprise; and of one token its alternatives, its experts, its attention.

Every part says in a line what it shows. Nothing here computes: the figures are `engine.inspect`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tinyseek.evaluate.page import Html, el, join
from tinyseek.studio.pieces import button, icon
from tinyseek.studio.words import Words

if TYPE_CHECKING:
    from tinyseek.engine.inspect import Guesses, Inspection
    from tinyseek.text.tokenizer import Tokenizer

MOST_SHOWN = 1_200  # tokens of context in the picture of attention; what is further back is summed up
CLICK = (
    "Click a token of the answer to see what else the model considered, which experts worked on it and where it looked."
)
_SURPRISING = 8.0  # bits at which the shade is full: one in 256


@dataclass
class Look:
    """One answer with all that the panel needs to show it."""

    message: int
    tokenizer: Tokenizer
    seen: Inspection
    start: int  # where the answer begins in the text
    token: int | None = None  # the one that is looked at
    layer: int | None = None  # whose attention; none: the mean of all
    head: int | None = None
    _known: tuple[int, NDArray[np.float32], Guesses | None] | None = (
        None  # the token's attention, and how it came about
    )
    texts: list[str] = field(init=False)  # what each token adds to the text; "" for a part of a character
    controls: dict[int, str] = field(init=False)  # control tokens' names without their brackets

    def __post_init__(self) -> None:
        decoder = self.tokenizer.stream()
        self.texts = [decoder.push(index) for index in self.seen.ids]
        self.controls = {
            index: text.strip("<>｜|").replace("▁", " ").strip() or text
            for text, index in self.tokenizer.controls.items()
        }

    @property
    def end(self) -> int:
        return len(self.seen.ids)

    def step(self, by: int) -> None:
        """Look at a neighbour, within the answer."""
        if self.token is not None:
            self.token = min(max(self.token + by, self.start), self.end - 1)

    def prepare(self) -> tuple[NDArray[np.float32], Guesses | None]:
        """What is shown of the chosen token, computed if it is not known yet: [layers, H, token + 1], and the layers' guesses."""
        assert self.token is not None
        if self._known is None or self._known[0] != self.token:
            token = self.token
            self._known = (token, self.seen.attention(token), self.seen.guesses(token) if token else None)
        return self._known[1:]

    def attention(self) -> NDArray[np.float32]:
        """The chosen layer's and head's weights from the token to each position up to its own."""
        rows, _ = self.prepare()
        rows = rows if self.layer is None else rows[self.layer : self.layer + 1]
        rows = rows if self.head is None else rows[:, self.head : self.head + 1]
        mean: NDArray[np.float32] = rows.mean(axis=(0, 1))
        return mean


# ---- tokens as text ----


def _shown(text: str) -> Html:
    """Text with its white space made visible where it would be lost."""
    marks = {"\n": "↵", "\t": "⇥", "\r": "␍"}
    parts: list[str] = []
    for number, char in enumerate(text):
        if char in marks or (char == " " and (number == 0 or number == len(text) - 1)):
            parts.append(el("span", marks.get(char, "·"), class_="ws"))
        else:
            parts.append(char)
    return join(*parts)


def _name(look: Look, index: int) -> Html:
    """One token by itself: its text, a control token's name, or the bytes of a part of a character."""
    if index in look.controls:
        return el("span", look.controls[index], class_="tok mark")
    data = look.tokenizer.token_bytes(index)
    try:
        said = data.decode()
    except UnicodeDecodeError:
        said = ""
    if said and all(char.isprintable() or char in "\n\t\r" for char in said):
        return _shown(said)
    return el("span", "⟨" + data.hex(" ") + "⟩", class_="hex")


def _chip(look: Look, token: int, shade: float, tip: str, chosen: bool) -> Html:
    """A token within the running text."""
    control, text = look.controls.get(look.seen.ids[token]), look.texts[token]
    kind, inside = "tok", Html("")
    if control is not None:
        kind, inside = "tok mark", el("span", control)
    elif text:
        breaks = text.count("\n")
        inside = join(el("span", "↵" * breaks, class_="ws"), text) if breaks else join(text)
    else:
        kind = "tok part-of"
    return el(
        "span",
        inside,
        class_=kind + (" here" if chosen else ""),
        data_act="token",
        data_token=token,
        title=tip,
        style=f"--s:{shade:.3f}",
    )


def percent(share: float) -> str:
    """`93 %`, `4.2 %`, `0.03 %`, `<0.01 %`."""
    value = share * 100
    if value >= 99.95 and share < 1:
        return ">99.9 %"
    if 0 < value < 0.01:
        return "<0.01 %"
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.1f} %" if value >= 1 else f"{value:.2g} %"


def surprise(probability: float) -> float:
    """0 for a token that had to come, 1 for one that nobody expected: the bits of its surprise, small ones stressed."""
    return float(min(1.0, -math.log2(max(probability, 2**-64)) / _SURPRISING) ** 0.7)


# ---- the answer ----


def answer_tokens(look: Look, words: Words) -> Html:
    """The answer's tokens, warmer the less they were expected."""
    probs = look.seen.probs_T
    chips = [
        _chip(look, token, surprise(probs[token]), percent(probs[token]), token == look.token)
        for token in range(look.start, look.end)
    ]
    scale = el("span", words("expected"), el("i"), words("surprising"), class_="scale surprise")
    return join(el("div", chips, class_="tokens answer-tokens"), scale)


# ---- the panel ----


def overview(look: Look, words: Words) -> Html:
    """Before a token is chosen: how sure the model was of the whole, and where it hesitated."""
    probs = look.seen.probs_T[look.start :]
    bits = [-math.log2(max(float(p), 2**-64)) for p in probs]
    sure = float((look.seen.ranks_T[look.start :] == 1).mean()) if len(probs) else 0.0
    order = sorted(range(len(probs)), key=lambda number: probs[number])[:8]
    hesitant = [number for number in order if probs[number] < 0.9]
    figures = [
        (str(len(probs)), words("tokens in the answer")),
        (percent(sure), words("were the likeliest choice")),
        (f"{np.mean(bits) if bits else 0:.2f}", words("bits of surprise a token")),
    ]
    parts: list[str] = [
        el("p", words(CLICK), class_="why"),
        el("div", [el("div", el("b", figure), el("span", name)) for figure, name in figures], class_="bigs"),
    ]
    if hesitant:
        chips = [
            el(
                "button",
                el("code", _name(look, look.seen.ids[look.start + number])),
                el("small", percent(float(probs[number]))),
                type="button",
                data_act="token",
                data_token=look.start + number,
                style=f"--s:{surprise(float(probs[number])):.3f}",
            )
            for number in sorted(hesitant)
        ]
        head = el("h3", words("Where it hesitated"))
        why = el(
            "p",
            words("The answer's least expected tokens, with the probability that the model gave them."),
            class_="why",
        )
        parts.append(el("div", head, why, el("div", chips, class_="hesitations"), class_="part"))
    return join(*parts)


def token_head(look: Look, words: Words) -> Html:
    """The chosen token: what it is, how probable it was, which choice."""
    assert look.token is not None
    seen, token = look.seen, look.token
    facts = [
        (percent(float(seen.probs_T[token])), words("probability")),
        (words("no. {rank}", rank=f"{seen.ranks_T[token]:,}"), words("of {count}", count=f"{seen.vocabulary:,}")),
    ]
    steps = el(
        "span",
        button("step", words("Token before"), icon("left"), data_by=-1),
        button("step", words("Token after"), icon("right"), data_by=1),
        class_="steps",
    )
    figures = el("dl", [join(el("dd", value), el("dt", name)) for value, name in facts])
    return el("div", el("span", _name(look, seen.ids[token]), class_="word"), figures, steps, class_="chosen")


def alternatives(look: Look, words: Words) -> Html:
    """What the model thought could stand here, as bars; the token that does is marked."""
    assert look.token is not None
    seen, token = look.seen, look.token
    rows: list[str] = []

    def row(index: int, probability: float) -> None:
        kind = " it" if index == seen.ids[token] else ""
        bar = el("i", style=f"--w:{100 * probability:.2f}")
        rows.append(el("span", _name(look, index), class_="name" + kind))
        rows.append(el("span", bar, class_="track" + kind))
        rows.append(el("span", percent(probability), class_="value" + kind))

    shown = list(zip(seen.top_ids_TK[token].tolist(), seen.top_probs_TK[token].tolist(), strict=True))[:7]
    for index, probability in shown:
        row(index, probability)
    if seen.ids[token] not in [index for index, _ in shown]:
        rows.append(el("span", class_="apart"))
        row(seen.ids[token], float(seen.probs_T[token]))
    choices = 2 ** float(seen.entropy_T[token])
    openness = (
        words("as open as {count} equal choices", count=f"{choices:.1f}")
        if choices >= 1.05
        else words("no doubt at all")
    )
    aside = el("span", openness, class_="aside")
    why = words("What the model thought could come here, before temperature and top‑p have their say.")
    return el(
        "div",
        el("h3", words("Alternatives"), aside),
        el("p", why, class_="why"),
        el("div", rows, class_="bars"),
        class_="part",
    )


def guesses(look: Look, words: Words) -> Html:
    """What the model would have said after each layer; those that hit on the token that came are framed."""
    assert look.token is not None
    found, token = look.prepare()[1], look.seen.ids[look.token]
    if found is None:
        return Html("")
    cells = []
    for layer, (index, probability, own) in enumerate(zip(found.ids_L, found.probs_L, found.own_L, strict=True), 1):
        tip = words(
            "after layer {layer}: {share}; the token that came: {own}",
            layer=layer,
            share=percent(float(probability)),
            own=percent(float(own)),
        )
        kind = "guess it" if index == token else "guess"
        cells.append(
            el(
                "span",
                el("small", str(layer)),
                el("code", _name(look, int(index))),
                class_=kind,
                title=tip,
                style=f"--s:{probability:.3f}",
            )
        )
    why = words(
        "What the model would have said had it stopped after each layer; the stronger the shade, the surer. Framed: what came."
    )
    return el(
        "div",
        el("h3", words("Layer by layer")),
        el("p", why, class_="why"),
        el("div", cells, class_="guesses"),
        class_="part",
    )


def experts(look: Look, words: Words) -> Html:
    """Layers by experts, a cell for each, shaded by the weight that the token gave it."""
    assert look.token is not None
    seen, token = look.seen, look.token
    if not seen.routing:
        why = words("This model has no experts: every token goes through the same layers.")
        return el("div", el("h3", words("Experts")), el("p", why, class_="why", style="margin:0"), class_="part")
    columns = seen.routed + (1 if seen.shared else 0)
    tight = seen.routed > 24
    cells: list[str] = []
    if not tight:
        cells += [el("span"), *(el("span", str(number + 1), class_="number") for number in range(seen.routed))]
        cells += [el("span", words("all"), class_="number")] if seen.shared else []
    for layer in range(seen.layers):
        cells.append(el("span", str(layer + 1), class_="label"))
        if layer not in seen.routing:
            cells.append(el("span", words("one dense layer for all"), class_="dense"))
            continue
        routing = seen.routing[layer]
        total = float(routing.weights_TA[token].sum()) or 1.0
        weights = dict(zip(routing.experts_TA[token].tolist(), routing.weights_TA[token].tolist(), strict=True))
        for expert in range(seen.routed):
            share = weights.get(expert, 0.0) / total
            hit = expert in weights
            tip = (
                words(
                    "layer {layer}, expert {expert}: {share}", layer=layer + 1, expert=expert + 1, share=percent(share)
                )
                if hit
                else None
            )
            kind = "cell" + (" hit" if hit else "") + (" pale" if hit and share < 0.7 else "")
            inside = f"{100 * share:.0f}" if hit and not tight else ""
            cells.append(el("span", inside, class_=kind, style=f"--s:{share:.3f}" if hit else None, title=tip))
        if seen.shared:
            cells.append(el("span", class_="cell shared", title=words("shared: every token goes here")))
    active = next(iter(seen.routing.values())).experts_TA.shape[1]
    aside = el("span", words("{active} of {count} a layer", active=active, count=seen.routed), class_="aside")
    why = words(
        "In each layer (a row) a router sent this token to a few experts; the figure is each one's share of the work, in per cent."
    )
    if seen.shared:
        why += words(" The striped one is shared by all tokens.")
    grid = el("div", cells, class_="experts tight" if tight else "experts", style=f"--n:{columns}")
    return el("div", el("h3", words("Experts"), aside), el("p", why, class_="why"), grid, class_="part")


def attention(look: Look, words: Words) -> Html:
    """The text up to the token, bluer where the token looked."""
    assert look.token is not None
    weights = look.attention()
    first = max(0, len(weights) - MOST_SHOWN)
    # The first token draws attention that has nowhere else to go; it would drown the rest, so the scale is set by the others.
    most = float(weights[1:].max()) if len(weights) > 1 else 1.0
    chips: list[str] = []
    if first:
        gone = float(weights[:first].sum())
        chips.append(
            el(
                "span",
                words("… {count} earlier tokens: {share} ", count=f"{first:,}", share=percent(gone)),
                class_="ws",
            )
        )
    for token in range(first, len(weights)):
        shade = min(1.0, float(weights[token]) / (most or 1.0)) ** 0.8
        chips.append(_chip(look, token, shade, percent(float(weights[token])), token == look.token))
    top = [int(token) for token in np.argsort(-weights)[:5] if weights[token] >= 0.005]
    most_seen = [el("span", el("code", _name(look, look.seen.ids[t])), " ", percent(float(weights[t]))) for t in top]
    why = words("Everything that the model had read when it stood at this token; the bluer, the more it looked there.")
    return el(
        "div",
        el("h3", words("Attention")),
        el("p", why, class_="why"),
        _pick("layer", words("layer"), look.seen.layers, look.layer, words),
        _pick("head", words("head"), look.seen.heads, look.head, words),
        el("div", chips, class_="tokens attended"),
        el("p", most_seen, class_="most"),
        class_="part",
    )


def _pick(act: str, name: str, count: int, chosen: int | None, words: Words) -> Html:
    """Which layer, or which head."""
    options = [(None, words("mean"))] + [(number, str(number + 1)) for number in range(count)]
    buttons = [
        el(
            "button",
            label,
            type="button",
            class_="on" if number == chosen else None,
            data_act=act,
            data_value="" if number is None else number,
            aria_pressed="true" if number == chosen else "false",
        )
        for number, label in options
    ]
    return el("div", el("span", name, class_="what"), el("span", buttons), class_="pick")
