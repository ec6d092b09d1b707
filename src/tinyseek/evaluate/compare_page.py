"""The page of a comparison: totals, then prompt by prompt what each model said, differences marked, thoughts folded.

It is one file without a script. Whatever a model or a prompt says is text (page.py), never markup.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Sequence

from tinyseek import __version__
from tinyseek.evaluate import charts
from tinyseek.evaluate.cards.numbers import colour, duration, number, percent
from tinyseek.evaluate.compare import Comparison, Reply, Side
from tinyseek.evaluate.estimates import Mean
from tinyseek.evaluate.options import CompareSettings
from tinyseek.evaluate.page import Child, Html, card, document, el, join, section, table
from tinyseek.evaluate.words import Words

_LONGEST = 6000  # characters of an answer that are shown
_WORD = re.compile(r"\s+|[A-Za-z0-9_']+|.", re.S)  # what differs: words, and single signs of other scripts
_OPEN = 12  # prompts of a group that are not folded


def render(comparison: Comparison, settings: CompareSettings) -> str:
    """The page as one string."""
    t = Words(settings.language)
    names = [side.name for side in comparison.sides]
    title = settings.title or t("{names}, side by side").format(names=" · ".join(names))
    about = t("{count} prompts from {source}").format(count=f"{len(comparison.prompts):,}", source=comparison.source)
    how = t("greedy") if settings.temperature == 0 else t("temperature {value}").format(value=settings.temperature)
    header = el(
        "header",
        el("p", t("tinyseek side by side"), class_="over"),
        el("h1", title),
        el("p", f"{about} · {how} · ", t("at most {count} tokens").format(count=f"{settings.max_tokens:,}")),
    )
    footer = el("footer", t("Made by tinyseek {version} on {when}. This page holds everything that it shows.").format(
        version=__version__, when=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    ))  # fmt: skip
    body = join(header, _totals(comparison, t), *_groups(comparison, settings.shown, t), footer)
    return document(f"{title} · tinyseek", "zh-CN" if settings.language == "zh" else "en", body)


# ---- totals ----------------------------------------------------------------------------------------------------------------------


def _totals(comparison: Comparison, t: Words) -> Html:
    sides = comparison.sides
    judged = [(index, side, side.mean) for index, side in enumerate(sides)]
    cards: list[Html] = []
    means = [mean for _, _, mean in judged if mean is not None]
    if means:
        shares = all(mean.low >= 0 and mean.high <= 1 for mean in means)
        rows: list[tuple[Child, list[charts.Bar]]] = [
            (side.name, [_score_bar(mean, colour(index + 1), shares, means)]) for index, side, mean in judged if mean
        ]
        name = t("Right") if comparison.judged_by is None else comparison.judged_by
        heading = t("{what}, of {count} prompts with 95 % intervals").format(what=name, count=means[0].prompts)
        cards.append(card(el("h3", heading), charts.bars(rows)))
    for other in range(1, len(sides)):
        cards.append(_duel(comparison, other, t))
    head = [t("model"), t("tokens an answer"), t("thinks first"), t("cut off"), t("failed"), t("time")]
    lines = [
        (
            side.name,
            number(side.tokens, 1),
            percent(side.count(lambda reply: bool(reply.reasoning)) / len(side.replies)),
            percent(side.count(lambda reply: reply.cut) / len(side.replies)),
            f"{side.count(lambda reply: reply.error is not None):,}",
            duration(side.seconds),
        )
        for side in sides
    ]
    like = card(el("h3", t("What the answers are like")), table(head, lines, range(1, len(head))))
    return section(t("Totals"), "", el("div", cards, class_="grid"), like)


def _score_bar(mean: Mean, shade: str, shares: bool, means: Sequence[Mean]) -> charts.Bar:
    if shares:
        return charts.Bar(el("b", percent(mean.mean)), mean.mean, shade, (mean.low, mean.high))
    low, high = min(0.0, *(m.mean for m in means)), max(m.mean for m in means)
    return charts.Bar(el("b", number(mean.mean, 3)), (mean.mean - low) / ((high - low) or 1), shade)


def _duel(comparison: Comparison, other: int, t: Words) -> Html:
    """Wins, losses and ties of one model over the first, as one bar in three parts."""
    duel = comparison.duel(other)
    first, second = comparison.sides[0].name, comparison.sides[other].name
    title = el("h3", t("{name} over {other}").format(name=second, other=first))
    facts = [
        t("the same answer to {count}").format(count=duel.same),
        t("shorter on {shorter}, longer on {longer}").format(shorter=duel.shorter, longer=duel.longer),
    ]
    total = duel.wins + duel.losses + duel.ties
    if not total:
        return card(title, el("p", " · ".join(facts), class_="facts"))
    parts = [
        (t("wins"), duel.wins, colour(other + 1)),
        (t("ties"), duel.ties, "var(--models-0)"),
        (t("losses"), duel.losses, colour(1)),
    ]
    bar = [el("i", style=f"flex:{count} 0 0;background:{shade}", title=name) for name, count, shade in parts if count]
    legend = charts.legend([(f"{name} {count}", shade) for name, count, shade in parts])
    if duel.gain is not None:
        low, high = f"{100 * duel.gain.low:+.1f}", f"{100 * duel.gain.high:+.1f}"
        reach = t("{mean} points (95 %: {low} to {high})").format(
            mean=f"{100 * duel.gain.mean:+.1f}", low=low, high=high
        )
        facts.insert(0, reach.replace("-", "−"))
    return card(title, legend, el("div", bar, class_="stack"), el("p", " · ".join(facts), class_="facts"))


# ---- prompt by prompt ------------------------------------------------------------------------------------------------------------


def _groups(comparison: Comparison, most: int, t: Words) -> list[Html]:
    """The prompts by how the models did on them; what tells them apart comes first."""
    groups: dict[tuple[int, str], list[int]] = {}
    for index in range(len(comparison.prompts)):
        groups.setdefault(_kind(comparison, index, t), []).append(index)
    made = []
    left = most
    for (_, title), indices in sorted(groups.items()):
        shown = indices[:left]
        left -= len(shown)
        heading = t("{title}: {count}").format(title=title, count=len(indices))
        boxes = [_prompt(comparison, index, t) for index in shown]
        rest = boxes[_OPEN:]
        if rest:
            more = el("summary", t("{count} more").format(count=len(rest)))
            boxes = [*boxes[:_OPEN], el("details", more, el("br"), *rest)]
        note = len(indices) - len(shown)
        tail = [el("p", t("{count} more are in the .jsonl beside this page.").format(count=note), class_="facts")]
        made.append(section(heading, "", *boxes, *(tail if note else [])))
    return made


def _kind(comparison: Comparison, index: int, t: Words) -> tuple[int, str]:
    """In which group a prompt is shown, with its place in the order of groups."""
    replies = [side.replies[index] for side in comparison.sides]
    names = [side.name for side in comparison.sides]
    scores = [reply.score for reply in replies]
    if any(reply.error is not None for reply in replies):
        return 90, t("Not answered by all")
    if any(score is None for score in scores):
        same = len({reply.content.strip() for reply in replies}) == 1
        return (60, t("The same answer")) if same else (50, t("Different answers"))
    known = [score for score in scores if score is not None]
    best = max(known)
    if min(known) < best:
        winners = [at for at, score in enumerate(known) if score == best]
        who = t(" and ").join(names[at] for at in winners)
        return 10 + winners[-1] - 5 * (len(winners) > 1), t("Better: {names}").format(names=who)
    if best <= 0:
        return 30, t("All wrong") if comparison.judged_by is None else t("All alike")
    return 40, t("All right") if comparison.judged_by is None else t("All alike")


def _prompt(comparison: Comparison, index: int, t: Words) -> Html:
    prompt = comparison.prompts[index]
    replies = [side.replies[index] for side in comparison.sides]
    earlier = [
        el("div", el("small", str(message["role"])), str(message.get("content") or ""), class_="quote")
        for message in prompt.messages[:-1]
    ]
    parts: list[Html] = [el("div", str(prompt.messages[-1].get("content") or ""), class_="asked")]
    if prompt.columns.get("answer") is not None:
        said = t("expected: {answer}").format(answer=str(prompt.columns["answer"]))
        parts.append(el("div", said, class_="expected"))
    if earlier:
        summary = el("summary", t("{count} messages before").format(count=len(earlier)))
        parts.append(el("details", summary, *earlier, class_="expected"))
    against = _shown(replies[1]) if len(replies) > 1 else ""
    for place, (side, reply) in enumerate(zip(comparison.sides, replies, strict=True)):
        other = against if place == 0 else _shown(replies[0])
        parts.append(_column(side, reply, other, colour(place + 1), comparison.judged_by is None, t))
    return card(el("div", parts, class_="sample", style=f"--columns:{len(replies)}"))


def _column(side: Side, reply: Reply, other: str, shade: str, right_or_wrong: bool, t: Words) -> Html:
    who: list[Child] = [el("i", class_="dot", style=f"background:{shade}"), side.name]
    if reply.score is not None and right_or_wrong:
        right = reply.score >= 0.5
        who.append(el("span", "✓" if right else "✗", class_=f"mark {'right' if right else 'wrong'}"))
    elif reply.score is not None:
        who.append(el("span", number(reply.score, 2), class_="mark"))
    facts = [t("{count} tokens").format(count=f"{reply.tokens:,}")] if reply.tokens is not None else []
    facts += [t("cut off")] if reply.cut else []
    who.append(el("span", " · ".join(facts), class_="tag"))
    if reply.error is not None:
        return el(
            "div", el("div", *who, class_="who"), el("p", t("failed: {why}").format(why=reply.error), class_="wrong")
        )
    thought = []
    if reply.reasoning:
        text = reply.reasoning.strip()
        thought = [el("details", el("summary", t("thought")), el("p", _cut(text), class_="think"), class_="folded")]
    shown = _shown(reply)
    said = marked(shown, other) if shown else el("span", t("(nothing)"), class_="pending")
    return el("div", el("div", *who, class_="who"), *thought, el("p", said))


def _shown(reply: Reply) -> str:
    return _cut(reply.content.strip())


def _cut(text: str) -> str:
    return text[:_LONGEST] + (" …" if len(text) > _LONGEST else "")


def marked(text: str, other: str) -> Html:
    """A text with the words marked that another does not have in their place; nothing where they have nothing in common."""
    if text == other:
        return join(text)
    mine, theirs = _WORD.findall(text), _WORD.findall(other)
    matcher = difflib.SequenceMatcher(None, theirs, mine, autojunk=False)
    if matcher.ratio() < 0.2:  # two other texts: marks would be all over
        return join(text)
    parts: list[Child] = []
    for tag, _, _, start, end in matcher.get_opcodes():
        piece = "".join(mine[start:end])
        parts.append(el("span", piece, class_="other") if tag != "equal" and piece.strip() else piece)
    return join(*parts)
