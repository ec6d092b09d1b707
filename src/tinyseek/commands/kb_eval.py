"""`tinyseek kb eval`: how well a collection answers questions whose pages are known."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tinyseek.commands.kb import parsed, parser_for, print_json
from tinyseek.commands.kb_ask import AskSettings, open_model
from tinyseek.errors import UserError
from tinyseek.knowledge.answer.options import AnswerSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinyseek.evaluate.estimates import Mean
    from tinyseek.knowledge.questions import Outcome

_WORST = 10  # questions that are shown


class EvalSettings(AskSettings):
    """What is scored."""

    answers: bool = Field(True, description="answer the questions too; false scores the search alone, which is quicker")


def evaluate(arguments: list[str]) -> int:
    """Scores, as tables."""
    parser = parser_for(
        "eval",
        "Score the collection on questions of your own. FILE has a line of JSON each:\n"
        '  {"question": "How many days of leave?", "document": "handbook.pdf", "page": 12}   (or "pages": [12, 13])\n'
        '  {"question": "Who won the cup?", "document": null}                                (the documents do not say)\n'
        "The last column of the answers counts how often a citation's page is one of the question's.",
        [EvalSettings],
        knowledge=False,
    )
    parser.add_argument("words", nargs="+", metavar="FILE")
    parser.add_argument("--wrong", action="store_true", help=f"all questions that went wrong, not {_WORST} alone")
    parser.add_argument("--out", metavar="FILE.jsonl", help="write what became of each question")
    chosen, settings = parsed(parser, arguments, EvalSettings)
    assert settings is not None
    from tinyseek.evaluate.progress import counted
    from tinyseek.knowledge.questions import ask_all, check_documents, read_questions

    if len(chosen.words) != 1:
        raise UserError("give one file of questions: tinyseek kb eval questions.jsonl")
    questions = read_questions(Path(chosen.words[0]))
    own = AnswerSettings.model_validate(settings.model_dump(exclude={"model", "answers"}))
    own = own.model_copy(update={"follow_ups": 0})
    outcomes: list[Outcome] = []
    with chosen.open() as base, open_model(settings.model) as model:
        check_documents(base, questions)
        begun = time.monotonic()
        with counted("questions", len(questions)) as update:
            for outcome in ask_all(base, questions, model, own, settings.answers):
                outcomes.append(outcome)
                update(len(outcomes))
        seconds = time.monotonic() - begun
        writer = model.name if model else "quotations"
        name = base.collection
    if chosen.options.out:
        _write(Path(chosen.options.out), outcomes)
    if chosen.options.json:
        print_json(_figures(outcomes))
        return 0
    print(f"{len(outcomes):,} questions to the collection {name}, in {seconds:.0f} s; answers by {writer}\n")
    _tables(outcomes, settings.answers)
    _wrong(outcomes, len(outcomes) if chosen.options.wrong else _WORST)
    return 0


def _write(file: Path, outcomes: Sequence[Outcome]) -> None:
    import json

    from tinyseek.knowledge.files import write_whole

    lines = [json.dumps(outcome.plain(), ensure_ascii=False) for outcome in outcomes]
    write_whole(file, ("\n".join(lines) + "\n").encode())


def _means(outcomes: Sequence[Outcome]) -> tuple[list[tuple[str, dict[str, Mean]]], dict[str, Mean]]:
    """The figures of each way of searching, and of the answers."""
    from tinyseek.evaluate.estimates import mean_over_prompts
    from tinyseek.knowledge.questions import HOWS, found_by

    searched: list[tuple[str, dict[str, Mean]]] = []
    asked = [outcome for outcome in outcomes if outcome.question.document is not None]
    for how in HOWS if asked else ():
        found = found_by(outcomes, how)
        values = {
            "document@1": found.document_at_1,
            "page@1": found.page_at_1,
            "page@5": found.page_at_5,
            "page@10": found.page_at_10,
            "MRR": found.reciprocal_rank,
        }
        searched.append((how, {name: mean_over_prompts(given) for name, given in values.items()}))
    answered: dict[str, Mean] = {}
    replied = [outcome for outcome in asked if outcome.reply is not None]
    if replied:
        given = [outcome for outcome in replied if outcome.cited]
        answered["answered"] = mean_over_prompts([float(o.reply is not None and o.reply.found) for o in replied])
        if given:
            answered["first citation right"] = mean_over_prompts([float(outcome.first_right) for outcome in given])
            answered["any citation right"] = mean_over_prompts([float(outcome.any_right) for outcome in given])
    absent = [outcome for outcome in outcomes if outcome.question.document is None and outcome.reply is not None]
    if absent:
        answered["rightly not answered"] = mean_over_prompts([float(not o.reply.found) for o in absent if o.reply])
    return searched, answered


def _figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    searched, answered = _means(outcomes)

    def plain(means: dict[str, Mean]) -> dict[str, Any]:
        return {
            name: {"mean": round(m.mean, 4), "low": round(m.low, 4), "high": round(m.high, 4)}
            for name, m in means.items()
        }

    return {
        "questions": len(outcomes),
        "search": {how: plain(means) for how, means in searched},
        "answers": plain(answered),
    }


def _tables(outcomes: Sequence[Outcome], answers: bool) -> None:
    from tinyseek.terminal import table

    searched, answered = _means(outcomes)
    if searched:
        asked = sum(outcome.question.document is not None for outcome in outcomes)
        names = list(searched[0][1])
        rows = [(how, *(_share(means[name], name) for name in names)) for how, means in searched]
        table((f"search ({asked:,} questions)", *names), rows, range(1, len(names) + 1))
    if answers and answered:
        print()
        counts = {
            "answered": sum(outcome.question.document is not None for outcome in outcomes),
            "rightly not answered": sum(outcome.question.document is None for outcome in outcomes),
        }
        cited = sum(bool(outcome.cited) for outcome in outcomes if outcome.question.document is not None)
        rows2 = [(name, _share(mean, name), f"{counts.get(name, cited):,}") for name, mean in answered.items()]
        table(("answers", "", "questions"), rows2, (1, 2))


def _share(mean: Mean, name: str) -> str:
    """With its 95 % interval."""
    if name == "MRR":
        return f"{mean.mean:.3f} ({mean.low:.2f}-{mean.high:.2f})"
    return f"{100 * mean.mean:.1f} % ({100 * mean.low:.0f}-{100 * mean.high:.0f})"


def _wrong(outcomes: Sequence[Outcome], most: int) -> None:
    """Questions that went wrong, with what was asked for and what came."""
    from rich.text import Text

    from tinyseek.terminal import console

    wrong: list[tuple[Outcome, str]] = []
    for outcome in outcomes:
        why = _why(outcome)
        if why:
            wrong.append((outcome, why))
    if not wrong:
        return
    out = console()
    out.print(f"\n{len(wrong):,} went wrong{':' if len(wrong) <= most else f'; {most} of them (--wrong shows all):'}")
    for outcome, why in wrong[:most]:
        question = outcome.question
        pages = f", page {', '.join(map(str, question.pages))}" if question.pages else ""
        out.print(Text.assemble("  ", (question.text, "bold"), (f"  line {question.line}", "dim")), soft_wrap=True)
        out.print(Text(f"    wanted {question.document or 'no answer'}{pages}; {why}"), soft_wrap=True)
    sys.stdout.flush()


def _why(outcome: Outcome) -> str:
    question, reply = outcome.question, outcome.reply
    if question.document is None:
        return "was answered" if reply is not None and reply.found else ""
    if reply is None:
        rank = outcome.pages.get("hybrid")
        return "" if rank == 1 else f"came at place {rank}" if rank else "was not among the first ten"
    if outcome.first_right:
        return ""
    if outcome.cited:
        name, page = outcome.cited[0]
        also = "; a later citation is right" if outcome.any_right else ""
        return f"cited {name}{f', page {page}' if page else ''}{also}"
    rank = outcome.pages.get("hybrid")
    return f"not answered; the search has it {f'at place {rank}' if rank else 'not among the first ten'}"
