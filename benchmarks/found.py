"""How well it is known whether the documents answer a question at all; and the weights by which that is judged.

    python benchmarks/found.py RETRIEVAL DOCUMENTS [--keep VECTORS.npz] [--each 160]

RETRIEVAL and DOCUMENTS as for benchmarks/retrieve.py and benchmarks/cite.py.

Questions that are answered: ours about the documents in both languages, CMRC's about its paragraphs, ours in English about them.
Questions that are not: CMRC's with their own paragraph taken away among 847 others, ours that the documents seem to be about and
do not answer, questions about something else. The weights are fitted on a random half and the errors counted on the other, 20 times
over; the last columns have the weights as they are in knowledge/answer/confidence.py, on all questions. `--fit` prints new ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from kept import Kept, cmrc, put_files, put_texts, questions, show
from numpy.typing import NDArray
from retrieve import read_cranfield

from tinyseek.knowledge.answer.confidence import FEATURES, WEIGHTS, Evidence
from tinyseek.knowledge.base import KnowledgeBase
from tinyseek.knowledge.embed.open import open_embedder
from tinyseek.knowledge.index.base import Filters
from tinyseek.knowledge.retrieve import find

SPLITS, RIDGE = 20, 1e-2
UNUSED = {"hybrid": (), "dense": ("agreed",), "lexical": ("nearest", "background", "agreed")}


@dataclass
class Case:
    evidence: Evidence
    answered: bool

    @property
    def kind(self) -> tuple[bool, bool]:
        return self.evidence.across, self.evidence.chinese


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("retrieval", type=Path)
    parser.add_argument("documents", type=Path)
    parser.add_argument("--keep", type=Path, help="a file for vectors, so that a second run is quick")
    parser.add_argument("--each", type=int, default=160, help="questions of CMRC, with and without their paragraph")
    parser.add_argument("--fit", action="store_true", help="print weights fitted on all questions")
    arguments = parser.parse_args()
    started = time.perf_counter()
    embedder = Kept(open_embedder("e5"), arguments.keep)
    with tempfile.TemporaryDirectory() as home:
        cases = collected(Path(home), embedder, arguments.retrieval, arguments.documents, arguments.each)
    embedder.close()
    figures = report(cases)
    if arguments.fit:
        print_weights(cases)
    print(json.dumps({"benchmark": "found", "errors": figures, "seconds": round(time.perf_counter() - started)}))


# ---- questions ------------------------------------------------------------------------------------------------------------------


def collected(home: Path, embedder: Kept, retrieval: Path, documents: Path, each: int) -> list[Case]:
    draw = random.Random(5)
    entries = questions("documents.jsonl")
    paragraphs, asked = cmrc(retrieval)
    _, cranfield, _ = read_cranfield(retrieval / "cranfield")
    cases: list[Case] = []

    def add(kb: KnowledgeBase, question: str, answered: bool, across: bool, without: str = "") -> None:
        others = Filters()
        if without:
            others = Filters(documents=tuple(d.id for d in kb.index.documents() if d.name != without))
        for evidence in find(kb, question, limit=10, filters=others).evidence:
            if evidence.across == across or not answered:
                cases.append(Case(evidence, answered))

    with KnowledgeBase.open(home, "documents", embedder=embedder) as kb:
        put_files(kb, [documents / name for name in sorted({e["document"] for e in entries if e["document"]})])
        for entry in entries:
            add(kb, entry["en"], entry["document"] is not None, across=False)
            add(kb, entry["zh"], entry["document"] is not None, across=True)
        for question in draw.sample(cranfield, 60):
            add(kb, question, answered=False, across=False)
        for _, question, _ in draw.sample(asked, 100):
            add(kb, question, answered=False, across=True)
    with KnowledgeBase.open(home, "cmrc", embedder=embedder) as kb:
        put_texts(kb, ((name, "", text) for name, text in paragraphs))
        for _, question, name in draw.sample(asked, each):
            add(kb, question, answered=True, across=False)
            add(kb, question, answered=False, across=False, without=name)
        english = {entry["id"]: entry["en"] for entry in questions("cmrc_english.jsonl")}
        for number, _, name in asked:
            if number in english:
                add(kb, english[number], answered=True, across=True)
                add(kb, english[number], answered=False, across=True, without=name)
        for entry in draw.sample(entries, 60):
            add(kb, entry["en"], answered=False, across=True)
            add(kb, entry["zh"], answered=False, across=False)
    return cases


# ---- fitting --------------------------------------------------------------------------------------------------------------------


def fit(cases: list[Case], how: str) -> tuple[float, ...]:
    """Ridge logistic regression by Newton's method; both answers count alike."""
    x = np.array([features(case, how) for case in cases])
    y = np.array([case.answered for case in cases], float)
    weight = np.where(y == 1, 0.5 / max(1.0, y.sum()), 0.5 / max(1.0, (1 - y).sum()))
    mean, spread = x.mean(0), x.std(0)
    spread[spread < 1e-9] = 1
    z = np.c_[(x - mean) / spread, np.ones(len(x))]
    ridge = RIDGE * np.diag([*[1.0] * x.shape[1], 0.0])
    theta = np.zeros(z.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-z @ theta))
        gradient = z.T @ (weight * (p - y)) + ridge @ theta
        curvature = (z * (weight * p * (1 - p))[:, None]).T @ z + ridge + 1e-9 * np.eye(len(theta))
        theta -= np.linalg.solve(curvature, gradient)
    slopes = theta[:-1] / spread
    return (*slopes.tolist(), float(theta[-1] - slopes @ mean))


def features(case: Case, how: str) -> NDArray[np.float64]:
    known = dict(zip(FEATURES, case.evidence.features(), strict=True)) | dict.fromkeys(UNUSED[how], 0.0)
    return np.array([known[name] for name in FEATURES])


def says(weights: tuple[float, ...], case: Case, how: str) -> bool:
    return float(features(case, how) @ weights[:-1] + weights[-1]) > 0


def report(cases: list[Case]) -> dict[str, Any]:
    names = {
        (False, False): "English on English",
        (False, True): "Chinese on Chinese",
        (True, True): "Chinese on English",
        (True, False): "English on Chinese",
    }
    draw = random.Random(1)
    errors: dict[Any, list[bool]] = defaultdict(list)
    for kind in names:
        some = [case for case in cases if case.kind == kind]
        for _ in range(SPLITS):
            half = set(draw.sample(range(len(some)), len(some) // 2))
            weights = fit([some[at] for at in half], "hybrid")
            for at, case in enumerate(some):
                if at not in half:
                    errors["apart", kind, case.answered].append(says(weights, case, "hybrid") != case.answered)
        for case in some:
            wrong = says(WEIGHTS[*kind, "hybrid"], case, "hybrid") != case.answered
            errors["shipped", kind, case.answered].append(wrong)
    rows, figures = [], {}
    for kind, name in names.items():
        counts = [sum(case.kind == kind and case.answered == answered for case in cases) for answered in (True, False)]
        shares = [
            float(np.mean(errors[weights, kind, answered] or [0]))
            for weights in ("apart", "shipped")
            for answered in (True, False)
        ]
        rows.append((name, f"{counts[0]} / {counts[1]}", *(f"{share:.1%}" for share in shares)))
        figures[name] = {
            "missed": round(shares[0], 3),
            "false": round(shares[1], 3),
            "shipped": [round(s, 3) for s in shares[2:]],
        }
    columns = (
        "question on documents",
        "answered / not",
        "missed",
        "false alarm",
        "missed (shipped)",
        "false (shipped)",
    )
    show("Is there an answer?", columns, rows)
    return figures


def print_weights(cases: list[Case]) -> None:
    for kind in itertools.product((False, True), repeat=2):
        for how in UNUSED:
            weights = fit([case for case in cases if case.kind == kind], how)
            print(f'    ({kind[0]}, {kind[1]}, "{how}"): {tuple(round(weight, 3) for weight in weights)},')


if __name__ == "__main__":
    main()
