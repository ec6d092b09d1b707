"""Questions and answers: the same questions to every model, and what a model said while rewards taught it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinyseek.evaluate.cards.numbers import number
from tinyseek.evaluate.cards.reading import as_dict, as_float, as_int, json_lines
from tinyseek.evaluate.cards.run import Run
from tinyseek.evaluate.page import Html, card, el, join, section
from tinyseek.evaluate.words import Words

LONGEST = 700  # characters of an answer that are shown
_COLUMNS = 3  # answers beside each other


def samples(file: Path, most: int, t: Words) -> Html:
    """Some of the tasks, spread over kinds and languages, with every model's answer."""
    records = [record for record in json_lines(file) if isinstance(record.get("outputs"), dict) and record["outputs"]]
    if not records or not most:
        return Html("")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((str(record.get("kind")), str(record.get("lang"))), []).append(record)
    chosen = [group[turn] for turn in range(most) for group in groups.values() if turn < len(group)][:most]
    cards = [_sample(record, t) for record in chosen]
    about = t("The same question to each model; what a model thinks before it answers is in grey.")
    shown = min(8 if len(records[0]["outputs"]) <= _COLUMNS else 4, len(cards))
    rest = el("details", el("summary", t("{count} more").format(count=len(cards) - shown)), el("br"), cards[shown:])
    return section(t("Samples"), about, *cards[:shown], *([rest] if cards[shown:] else []))


def _sample(record: dict[str, Any], t: Words) -> Html:
    right, sampled = as_dict(record.get("right")), as_dict(record.get("sampled"))
    parts = [
        el(
            "div",
            str(record.get("prompt", "")),
            el("span", t(str(record.get("kind", ""))), class_="tag"),
            class_="asked",
        ),
        el("div", t("expected: {answer}").format(answer=_expected(record, t)), class_="expected"),
    ]
    for name, output in record["outputs"].items():
        who: list[Html | str] = [str(name), mark(right.get(name))]
        if drawn := as_dict(sampled.get(name)):
            of = t("{right} of {of} samples right").format(right=as_int(drawn.get("right")), of=as_int(drawn.get("of")))
            who.append(el("span", of, class_="tag"))
        parts.append(el("div", el("div", who, class_="who"), el("p", answer(str(output), t))))
    columns = min(_COLUMNS, len(record["outputs"]))
    return card(el("div", parts, class_="sample", style=f"--columns:{columns}"))


def mark(right: Any) -> Html:
    """✓ or ✗, or nothing where that is not known."""
    if right is None:
        return Html("")
    return el("span", "✓" if right else "✗", class_=f"mark {'right' if right else 'wrong'}")


def _expected(record: dict[str, Any], t: Words) -> str:
    answer = str(record.get("answer", ""))
    return t("{start} ... (a refusal)").format(start=answer) if record.get("kind") == "refusal" else answer


def answer(output: str, t: Words) -> Html:
    """An answer with its thought apart; a long one is cut."""
    cut = output[:LONGEST] + (" …" if len(output) > LONGEST else "")
    thought, closed, final = cut.rpartition("</think>")
    if not closed:
        return join(cut.strip() or el("span", t("(nothing)"), class_="pending"))
    return join(el("span", thought.replace("<think>", "").strip(), class_="think"), final.strip())


def while_learning(run: Run, t: Words) -> Html:
    """For each stage that learned by rewards: one question of its first batch, of its middle and of its last, with every answer."""
    cards = []
    for node in run.of_kind("grpo", "ppo"):
        steps: dict[int, list[dict[str, Any]]] = {}
        for record in json_lines(node.path / "samples.jsonl"):
            if "completion" in record:
                steps.setdefault(as_int(record.get("step")), []).append(record)
        if not steps:
            continue
        order = sorted(steps)
        chosen = dict.fromkeys((order[0], order[len(order) // 2], order[-1]))
        parts = [_answers_at(step, steps[step], t) for step in chosen]
        cards.append(card(el("h3", node.name), *parts))
    if not cards:
        return Html("")
    about = t("Of one question each, all answers of its group, the best rewarded first.")
    return section(t("Answers while it learned"), about, *cards)


def _answers_at(step: int, records: list[dict[str, Any]], t: Words) -> Html:
    ranked = sorted(records, key=lambda record: -as_float(record.get("reward")))
    question = str(ranked[0].get("prompt", ""))
    rewards = [as_float(record.get("reward")) for record in ranked]
    told = t("step {step}: mean reward {mean}").format(step=step, mean=number(sum(rewards) / len(rewards), 2))
    quotes = []
    for record in ranked:
        facts = t("reward {reward}, {tokens} tokens").format(
            reward=number(record.get("reward"), 2), tokens=as_int(record.get("tokens"))
        )
        quotes.append(el("div", el("small", facts), answer(str(record.get("completion", "")), t), class_="quote"))
    first = [quote for at, quote in enumerate(quotes) if at in (0, len(quotes) - 1)]
    rest = [quote for at, quote in enumerate(quotes) if at not in (0, len(quotes) - 1)]
    more = [el("details", el("summary", t("{count} more").format(count=len(rest))), *rest)] if rest else []
    asked = el("div", question, el("span", told, class_="tag"), class_="question")
    return el("div", asked, el("div", first, class_="pair"), *more, class_="turn")
