"""The report card: one HTML page on everything that a run made, back to the raw text. It shows whatever stages are finished.

It reads only what stages leave behind: manifests, metrics.jsonl, scores.json, samples.jsonl, data's report.json, config.json.
"""

from __future__ import annotations

import time
from pathlib import Path

from tinyseek import __version__, artifact
from tinyseek.artifact import MANIFEST
from tinyseek.errors import UserError
from tinyseek.evaluate.cards import classified, collected, data, headline, learning, lineage, model, samples, scores
from tinyseek.evaluate.cards.numbers import when
from tinyseek.evaluate.cards.reading import as_dict, as_list, json_of
from tinyseek.evaluate.cards.run import Run, collect, waiting_in
from tinyseek.evaluate.options import ReportSettings
from tinyseek.evaluate.page import document, el, join
from tinyseek.evaluate.words import Words


def build(settings: ReportSettings, folder: Path) -> None:
    """Write index.html from the folders `settings.of` and everything that they were made from.

    Raises:
        UserError: one of them is no finished folder.
    """
    paths = [Path(path) for path in settings.of]
    if not paths:
        raise UserError("report.of is empty; name at least one finished folder, for example eval")
    inputs = {f"of.{index}": path for index, path in enumerate(paths)}
    with artifact.writing(folder, "report", settings.essence(), inputs=inputs) as (work, figures):
        page = render(collect(paths, settings.title or paths[0].resolve().parent.name), settings)
        artifact.write_text(work / "index.html", page)
        figures["bytes"] = len(page.encode())


def write_report(run_folder: Path, out_html: Path, settings: ReportSettings | None = None) -> None:
    """Write the page of a run's folder, whatever of it is finished, or of one finished folder.

    Raises:
        UserError: no such folder, or nothing of a run in it.
    """
    settings = settings or ReportSettings()
    if (run_folder / MANIFEST).is_file():
        run = collect([run_folder], settings.title or run_folder.resolve().parent.name)
    elif run_folder.is_dir():
        made = [path.parent for path in sorted(run_folder.glob(f"*/{MANIFEST}"))]
        made = [
            path for path in made if artifact.read(path).kind != "report" and path.suffix not in (".partial", ".old")
        ]
        run = collect(made, settings.title or run_folder.resolve().name)
        run.working = [path for path in sorted(run_folder.glob("*.work")) if path.is_dir()]
        run.waiting = waiting_in(run_folder, {node.name for node in run.nodes} | {path.stem for path in run.working})
        if not made and not run.working:
            raise UserError(f"{run_folder}: nothing of a run in it yet; `tinyseek run RECIPE` makes one")
    else:
        raise UserError(f"{run_folder}: no such folder; give the folder of a run, for example runs/quickstart")
    out_html.parent.mkdir(parents=True, exist_ok=True)
    artifact.write_text(out_html, render(run, settings))


def render(run: Run, settings: ReportSettings) -> str:
    """The page as one string."""
    t = Words(settings.language)
    found = [(node, as_dict(json_of(node.path / "scores.json"))) for node in run.of_kind("eval")]
    scored = [entry for _, of in found for entry in as_list(of.get("models")) if isinstance(entry, dict)]
    sections = [
        headline.headline(run, scored, t),
        headline.unfinished(run, t),
        scores.scores(run, scored, t),
        *[samples.samples(node.path / "samples.jsonl", settings.samples, t) for node, _ in found],
        classified.classified(run, t),
        learning.learning(run, t),
        samples.while_learning(run, t),
        collected.collected(run, settings.samples, t),
        model.model(run, t),
        data.cleaned(run, t),
        data.tasks(run, t),
        lineage.lineage(run, t),
    ]
    first = min((node.manifest.created for node in run.nodes), default="")
    header = el(
        "header",
        el("p", t("tinyseek report card"), class_="over"),
        el("h1", run.title),
        el("p", t("From raw text to a model that answers. Built {when}.").format(when=when(first)) if first else ""),
    )
    footer = el("footer", t("Made by tinyseek {version} on {when}. This page holds everything that it shows.").format(
        version=__version__, when=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    ))  # fmt: skip
    return document(
        f"{run.title} · tinyseek", "zh-CN" if settings.language == "zh" else "en", join(header, *sections, footer)
    )
