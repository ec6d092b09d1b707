"""The report card: one HTML page on everything that a run made, back to the raw text. It shows whatever stages are finished.

It reads only what stages leave behind: manifests, metrics.jsonl, scores.json, samples.jsonl, data's report.json, config.json.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyseek import __version__, artifact
from tinyseek.artifact import MANIFEST, Manifest
from tinyseek.errors import UserError
from tinyseek.evaluate import charts
from tinyseek.evaluate.options import ReportSettings
from tinyseek.evaluate.page import Html, document, el, join, table
from tinyseek.evaluate.words import Words

TRAINED = ("pretrain", "sft")
_LONGEST_OUTPUT = 700  # characters of an answer that are shown


@dataclass(frozen=True)
class Node:
    """A finished folder of the run."""

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.path.name


@dataclass
class Run:
    """What the page tells of: finished folders, ancestors first, and stages that are still at work or waiting."""

    title: str
    nodes: list[Node] = field(default_factory=list)
    working: list[Path] = field(default_factory=list)  # NAME.work folders
    waiting: list[str] = field(default_factory=list)
    tips: list[Path] = field(default_factory=list)  # what nothing else here was made from

    def of_kind(self, *kinds: str) -> list[Node]:
        return [node for node in self.nodes if node.manifest.kind in kinds]


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
        run.waiting = _waiting(run_folder, {node.name for node in run.nodes} | {path.stem for path in run.working})
        if not made and not run.working:
            raise UserError(f"{run_folder}: nothing of a run in it yet; `tinyseek run RECIPE` makes one")
    else:
        raise UserError(f"{run_folder}: no such folder; give the folder of a run, for example runs/quickstart")
    out_html.parent.mkdir(parents=True, exist_ok=True)
    artifact.write_text(out_html, render(run, settings))


def collect(paths: Sequence[Path], title: str) -> Run:
    """Every finished folder that `paths` were made from, themselves included, each once and after its ancestors."""
    run = Run(title)
    found: dict[Path, Node] = {}
    inner: set[Path] = set()
    for path in paths:
        rows = artifact.lineage(path)
        for depth, _, ancestor, manifest in reversed(rows):
            place = ancestor.resolve()
            if manifest is not None and place not in found:
                found[place] = Node(ancestor, manifest)
            if depth:
                inner.add(place)
    run.nodes = sorted(found.values(), key=lambda node: node.manifest.created)
    run.tips = [node.path for place, node in found.items() if place not in inner]
    return run


def _waiting(folder: Path, there: set[str]) -> list[str]:
    """The stages of the run's recipe that have not begun."""
    from tinyseek.settings import read_yaml

    try:
        stages = read_yaml(folder / "recipe.yaml").get("stages", {})
    except UserError:
        return []
    return [str(name) for name in stages if name not in there and name != "report"]


def render(run: Run, settings: ReportSettings) -> str:
    """The page as one string."""
    t = Words(settings.language)
    evals = [(node, _json(node.path / "scores.json")) for node in run.of_kind("eval")]
    scores = [entry for _, found in evals for entry in _list(_dict(found).get("models")) if isinstance(entry, dict)]
    sections = [
        _headline(run, scores, t),
        _unfinished(run, t),
        _scores(scores, t),
        *[_samples(node.path / "samples.jsonl", settings.samples, t) for node, _ in evals],
        _learning(run, t),
        _model(run, t),
        _data(run, t),
        _tasks(run, t),
        _lineage(run, t),
    ]
    first = min((node.manifest.created for node in run.nodes), default="")
    header = el(
        "header",
        el("p", t("tinyseek report card"), class_="over"),
        el("h1", run.title),
        el("p", t("From raw text to a model that answers. Built {when}.").format(when=_when(first)) if first else ""),
    )
    footer = el("footer", t("Made by tinyseek {version} on {when}. This page holds everything that it shows.").format(
        version=__version__, when=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    ))  # fmt: skip
    return document(
        f"{run.title} · tinyseek", "zh-CN" if settings.language == "zh" else "en", join(header, *sections, footer)
    )


# --------------------------------------------------------------------------------------------------------- sections


def _section(title: str, about: str, *parts: Html) -> Html:
    return el("section", el("h2", title), el("p", about) if about else Html(""), *parts)


def _card(*parts: Html) -> Html:
    return el("div", *parts, class_="card")


def _headline(run: Run, scores: list[dict[str, Any]], t: Words) -> Html:
    tiles: list[Html] = []

    def tile(value: str, name: str, more: str = "") -> None:
        tiles.append(el("div", el("b", value), el("span", name), el("small", more) if more else "", class_="tile"))

    asked = [(str(s.get("name")), _dict(s.get("tasks"))) for s in scores if s.get("tasks")]
    if asked:
        name, last = asked[-1]
        before = (
            t("before fine-tuning: {share}").format(share=_percent(asked[0][1].get("share")))
            if len(asked) > 1
            else name
        )
        tile(_percent(last.get("share")), t("of held-out tasks answered exactly"), before)
    read = [(str(s.get("name")), _dict(s.get("text"))) for s in scores if s.get("text")]
    if read:
        name, first = read[0]
        tile(
            _number(first.get("bits_per_byte"), 3),
            t("bits per byte on held-out text"),
            t("{name}; less is better").format(name=name),
        )
    for node in reversed(run.of_kind(*TRAINED)):
        if counts := _counts(node.path):
            active = t("{active} active a token").format(active=charts.short(counts.active))
            tile(charts.short(counts.total), t("parameters"), active if counts.active < counts.total else "")
            break
    trained = [node.manifest.figures for node in run.of_kind("pretrain") if node.manifest.figures.get("tokens")]
    if trained:
        tokens = sum(_float(figures["tokens"]) for figures in trained)
        rate = _float(trained[-1].get("tokens_per_s"))
        tile(
            charts.short(tokens),
            t("tokens read in pre-training"),
            t("{rate} a second").format(rate=charts.short(rate)) if rate else "",
        )
    seconds = sum(node.manifest.seconds for node in run.nodes if node.manifest.kind not in TRAINED)
    seconds += sum(
        _float(n.manifest.figures.get("training_seconds", n.manifest.seconds)) for n in run.of_kind(*TRAINED)
    )
    if run.nodes:
        tile(_duration(seconds), t("from raw text to here"), t("{count} stages").format(count=len(run.nodes)))
    return el("div", tiles, class_="tiles") if tiles else Html("")


def _unfinished(run: Run, t: Words) -> Html:
    if not run.working and not run.waiting:
        return Html("")
    rows = [(path.stem, t("stopped or at work: step {step}").format(step=_last_step(path))) for path in run.working]
    rows += [(name, t("not begun")) for name in run.waiting]
    return _section(
        t("Not finished yet"),
        t("The page grows with the run: make it again later."),
        _card(table((t("stage"), ""), rows)),
    )


def _scores(scores: list[dict[str, Any]], t: Words) -> Html:
    if not scores:
        return Html("")
    colours = {str(entry.get("name")): _colour(index) for index, entry in enumerate(scores)}
    cards: list[Html] = []
    asked = [(str(s.get("name")), _dict(s.get("tasks"))) for s in scores if s.get("tasks")]
    if asked:
        groups = [(t("all"), [(name, tasks) for name, tasks in asked])]
        for by in ("by_kind", "by_lang"):
            for value in dict.fromkeys(value for _, tasks in asked for value in _dict(tasks.get(by))):
                groups.append((t(str(value)), [(n, _dict(_dict(tasks.get(by)).get(value))) for n, tasks in asked]))
        drawn = [
            (f"{label} ({_int(parts[0][1].get('total'))})", [_bar(share, colours[name]) for name, share in parts])
            for label, parts in groups
        ]
        legend = charts.legend([(name, colours[name]) for name, _ in asked])
        cards.append(
            _card(el("h3", t("Held-out tasks answered exactly, with 95 % intervals")), legend, charts.bars(drawn))
        )
    read = [(str(s.get("name")), _dict(s.get("text"))) for s in scores if s.get("text")]
    if read:
        worst = max(_float(score.get("bits_per_byte")) for _, score in read) or 1.0
        drawn = [
            (
                name,
                [
                    charts.Bar(
                        el("b", _number(s.get("bits_per_byte"), 3)),
                        _float(s.get("bits_per_byte")) / worst,
                        colours[name],
                    )
                ],
            )
            for name, s in read
        ]
        rows = [
            (n, _number(s.get("perplexity"), 2), f"{_int(s.get('bytes')):,}", f"{_int(s.get('documents')):,}")
            for n, s in read
        ]
        head = (t("model"), t("perplexity a token"), t("bytes"), t("documents"))
        cards.append(
            _card(
                el("h3", t("Bits per byte on held-out text; less is better")),
                charts.bars(drawn),
                el("br"),
                table(head, rows, (1, 2, 3)),
            )
        )
    about = t("The same questions and the same text for every model, none of it seen in training. Answers are greedy.")
    return _section(t("Scores before and after"), about, el("div", cards, class_="grid"))


def _bar(share: dict[str, Any], colour: str) -> charts.Bar:
    interval = (_float(share.get("low")), _float(share.get("high"))) if share else None
    return charts.Bar(el("b", _percent(share.get("share"))), _float(share.get("share")), colour, interval)


def _samples(file: Path, most: int, t: Words) -> Html:
    """Some of the tasks, spread over kinds and languages, with every model's answer."""
    records = [record for record in _json_lines(file) if isinstance(record.get("outputs"), dict) and record["outputs"]]
    if not records or not most:
        return Html("")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((str(record.get("kind")), str(record.get("lang"))), []).append(record)
    chosen = [group[turn] for turn in range(most) for group in groups.values() if turn < len(group)][:most]
    cards = [_sample(record, t) for record in chosen]
    about = t("The same question to each model; what a model thinks before it answers is in grey.")
    shown = min(8, len(cards))
    rest = el("details", el("summary", t("{count} more").format(count=len(cards) - shown)), el("br"), cards[shown:])
    return _section(t("Samples"), about, *cards[:shown], *([rest] if cards[shown:] else []))


def _sample(record: dict[str, Any], t: Words) -> Html:
    right = _dict(record.get("right"))
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
        ok = right.get(name)
        mark = Html("") if ok is None else el("span", "✓" if ok else "✗", class_=f"mark {'right' if ok else 'wrong'}")
        parts.append(el("div", el("div", str(name), mark, class_="who"), el("p", _answer(str(output), t))))
    return el(
        "div", el("div", parts, class_="sample", style=f"--columns:{min(3, len(record['outputs']))}"), class_="card"
    )


def _expected(record: dict[str, Any], t: Words) -> str:
    answer = str(record.get("answer", ""))
    return t("{start} ... (a refusal)").format(start=answer) if record.get("kind") == "refusal" else answer


def _answer(output: str, t: Words) -> Html:
    """An answer with its thought apart; a long one is cut."""
    cut = output[:_LONGEST_OUTPUT] + (" …" if len(output) > _LONGEST_OUTPUT else "")
    thought, closed, final = cut.rpartition("</think>")
    if not closed:
        return join(cut.strip() or el("span", t("(nothing)"), class_="pending"))
    return join(el("span", thought.replace("<think>", "").strip(), class_="think"), final.strip())


def _learning(run: Run, t: Words) -> Html:
    sources: list[tuple[str, Path, Manifest | None]] = [(n.name, n.path, n.manifest) for n in run.of_kind(*TRAINED)]
    sources += [(path.stem, path, None) for path in run.working]
    cards = []
    for name, path, manifest in sources:
        records = [record for record in _json_lines(path / "metrics.jsonl") if "step" in record]
        train = [(_float(r["step"]), _float(r["loss"])) for r in records if "loss" in r]
        val = [(_float(r["step"]), _float(r["val_loss"])) for r in records if r.get("val_loss") is not None]
        if not train:
            continue
        lines = [charts.Line(t("training"), _colour(0), train, band=True)]
        lines += [charts.Line(t("validation"), _colour(1), val, dots=len(val) <= 30)] if val else []
        figures = manifest.figures if manifest else {}
        facts = [
            t("{count} steps").format(count=f"{int(train[-1][0]):,}"),
            t("{count} tokens").format(count=charts.short(_float(records[-1].get("tokens")))),
            t("{count} tokens a second").format(count=charts.short(_float(figures["tokens_per_s"])))
            if "tokens_per_s" in figures
            else "",
            _duration(_float(figures.get("training_seconds", records[-1].get("seconds")))),
            t("last validation loss {loss}").format(loss=_number(val[-1][1], 3)) if val else "",
        ]
        facts = [fact for fact in facts if fact]
        cards.append(
            _card(
                el("h3", name),
                charts.line_chart(lines, t("step"), t("loss")),
                el("p", " · ".join(facts), class_="facts"),
            )
        )
    if not cards:
        return Html("")
    about = t(
        "Cross-entropy of the next token, in nats. The pale band is how far single steps stray from the mean that is drawn."
    )
    return _section(t("Learning curves"), about, el("div", cards, class_="grid"))


def _model(run: Run, t: Words) -> Html:
    """The parameter table, and how busy each expert is."""
    nodes = run.of_kind(*TRAINED)
    cards: list[Html] = []
    for node in reversed(nodes):
        counts = _counts(node.path)
        if counts is None:
            continue
        rows = [(t(row.name), f"{row.parameters:,}", f"{row.active:,}") for row in counts.rows]
        parts = table((t("part"), t("parameters"), t("active a token")), rows, (1, 2))
        config = _dict(_json(node.path / "config.json"))
        facts = [
            (t("in all"), f"{counts.total:,}"),
            (t("active a token"), f"{counts.active:,}"),
            (t("multi-token prediction, beside these"), f"{counts.mtp:,}" if counts.mtp else t("none")),
            (t("cache, bytes a token (bfloat16)"), f"{counts.cache_bytes_per_token():,}"),
            (t("forward FLOPs a token at 512"), charts.short(counts.flops_per_token(512))),
            (t("architecture"), str(config.get("model_type", ""))),
        ]
        cards += [
            _card(el("h3", t("Parameters by part")), parts),
            _card(el("h3", t("Size")), table(("", ""), facts, (1,))),
        ]
        break
    heat = [card for node in nodes if (card := _heat(node, t))]
    if not cards and not heat:
        return Html("")
    about = t(
        "Counted on the model itself. Of the experts a token meets only a few, so fewer parameters are active than there are."
    )
    grid = el("div", cards, class_="grid")
    return _section(t("The model"), about, grid, *heat)


def _heat(node: Node, t: Words) -> Html | None:
    load = _dict(node.manifest.figures.get("expert_load"))
    if not load:
        records = [r for r in _json_lines(node.path / "metrics.jsonl") if isinstance(r.get("expert_load"), dict)]
        load = records[-1]["expert_load"] if records else {}
    rows = {
        str(layer): [_float(share) for share in shares]
        for layer, shares in load.items()
        if isinstance(shares, list) and len(shares) > 1 and sum(map(_float, shares)) > 0
    }
    if not rows:
        return None
    title = t("Load of the experts in {name}: 1 is a fair share").format(name=node.name)
    return _card(el("h3", title), charts.heat_map(rows, t("layer")))


def _data(run: Run, t: Words) -> Html:
    parts: list[Html] = []
    for node in run.of_kind("data"):
        report = _dict(_json(node.path / "report.json"))
        steps = [step for step in _list(report.get("steps")) if isinstance(step, dict)]
        if not steps:
            continue
        most = max(_float(step.get("bytes")) for step in steps) or 1.0
        dropped = _dict(report.get("dropped"))
        rows, drawn = [], []
        before = None
        for step in steps:
            documents, size = _int(step.get("documents")), _int(step.get("bytes"))
            name = t(str(step.get("step")))
            lost = before[0] - documents if before else 0
            rows.append((name, f"{documents:,}", f"−{lost:,}" if lost else "", _bytes(size)))
            drawn.append((name, [charts.Bar(_bytes(size), size / most, "var(--models-1)")]))
            before = (documents, size)
        sides = [(t(name), _dict(report.get(name))) for name in ("train", "val") if report.get(name)]
        split = " · ".join(
            t("{split}: {documents} documents, {size}").format(
                split=name, documents=f"{_int(side.get('documents')):,}", size=_bytes(_int(side.get("bytes")))
            )
            for name, side in sides
        )
        head = (t("after the step"), t("documents"), t("dropped"), t("text"))
        parts.append(
            el(
                "div",
                _card(el("h3", t("Text left after each step")), charts.bars(drawn)),
                _card(
                    el("h3", t("Documents left after each step")),
                    table(head, rows, (1, 2, 3)),
                    el("p", split, class_="facts"),
                ),
                class_="grid",
            )
        )
        samples = [_dropped(name, entry, t) for name, entry in dropped.items() if _int(_dict(entry).get("documents"))]
        if samples:
            parts.append(_card(el("h3", t("Samples of what was dropped")), *samples))
    if not parts:
        return Html("")
    return _section(
        t("The data before and after"),
        t("Nothing is dropped in silence: each step says how much it took, and shows some."),
        *parts,
    )


def _dropped(name: str, entry: Any, t: Words) -> Html:
    entry = _dict(entry)
    quotes = []
    for sample in _list(entry.get("samples"))[:5]:
        sample = _dict(sample)
        original = _dict(sample.get("original"))
        note = " · ".join(part for part in (str(sample.get("source", "")), str(sample.get("why", ""))) if part)
        like = (
            el("small", t("like {source}").format(source=original.get("source")))
            if original.get("source")
            else Html("")
        )
        quotes.append(el("div", el("small", note), str(sample.get("text", "")), like, class_="quote"))
    title = t("{name}: {count} documents").format(name=t(name), count=f"{_int(entry.get('documents')):,}")
    return el("details", el("summary", title), *quotes)


def _tasks(run: Run, t: Words) -> Html:
    cards = []
    for node in run.of_kind("tasks"):
        figures = node.manifest.figures
        splits = [(split, _dict(figures.get(split))) for split in ("train", "heldout") if figures.get(split)]
        kinds = dict.fromkeys(kind for _, split in splits for kind in _dict(split.get("kinds")))
        rows = [(t(kind), *(f"{_int(_dict(split.get('kinds')).get(kind)):,}" for _, split in splits)) for kind in kinds]
        head = (t("kind"), *(t(name) for name, _ in splits))
        rejected = sum(_int(count) for count in _dict(figures.get("rejected_as_duplicates")).values())
        note = t("{count} prompts were thrown away because training or the held-out set had them already.").format(
            count=f"{rejected:,}"
        )
        card = [table(head, rows, range(1, len(head)))] + ([el("p", note, class_="facts")] if rejected else [])
        cards.append(_card(el("h3", node.name), *card))
    if not cards:
        return Html("")
    about = t(
        "Questions with an answer that a program can check. No held-out question occurs in training; its facts do, in other words."
    )
    return _section(t("The tasks"), about, el("div", cards, class_="grid"))


def _lineage(run: Run, t: Words) -> Html:
    if not run.nodes:
        return Html("")
    lines: list[Html] = []
    seen: set[Path] = set()
    for tip in run.tips:
        hidden_below = math.inf
        above: dict[int, Manifest] = {}
        for depth, role, path, manifest in artifact.lineage(tip):
            if depth > hidden_below:
                continue
            hidden_below = math.inf
            if manifest is None:
                lines.append(_raw(depth, role, path, above.get(depth - 1), t))
                continue
            above[depth] = manifest
            again = path.resolve() in seen
            if again:
                hidden_below = depth
            lines.append(_ancestor(depth, path, manifest, again, t))
            seen.add(path.resolve())
    about = t("What each folder was made from, back to the raw text. A key is the hash of settings and inputs.")
    return _section(t("Lineage"), about, _card(*lines))


def _raw(depth: int, role: str, path: Path, maker: Manifest | None, t: Words) -> Html:
    """What no stage made: a file, or a corpus known by its hash alone."""
    key = maker.inputs[role].key if maker and role in maker.inputs else ""
    name = str(maker.settings.get(role, path)) if maker else str(path)
    about = join(el("b", name), " ", el("span", t("raw input"), class_="facts"), " ", el("code", key))
    return el("div", about, class_="tree", style=f"--depth:{depth}")


def _ancestor(depth: int, path: Path, manifest: Manifest, again: bool, t: Words) -> Html:
    kind = f"({manifest.kind})" if manifest.kind != path.name else ""
    title = join(el("b", path.name), " ", el("span", kind, class_="facts") if kind else "", " ")
    if again:
        about = join(title, el("span", t("see above"), class_="pending"))
    else:
        facts = " · ".join([_when(manifest.created), _duration(manifest.seconds), *_figures(manifest)])
        settings = json.dumps(manifest.settings, indent=2, ensure_ascii=False)
        versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
        more = el("details", el("summary", t("settings")), el("pre", settings), el("p", versions, class_="facts"))
        about = join(title, el("code", manifest.key[:12]), el("div", facts, class_="facts"), more)
    return el("div", about, class_="tree", style=f"--depth:{depth}")


def _figures(manifest: Manifest) -> list[str]:
    """A few of a stage's plain numbers."""
    plain = [
        f"{name.replace('_', ' ')} {value:,.4g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value:,}"
        for name, value in manifest.figures.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    ]
    return plain[:5]


# ------------------------------------------------------------------------------------------------- reading and numbers


def _counts(folder: Path) -> Any:
    """The sizes of the model in a folder, or None where its config cannot be read."""
    from tinyseek.model.checkpoint import read_config
    from tinyseek.model.counts import count

    try:
        return count(read_config(folder))
    except UserError:
        return None


def _json(file: Path) -> Any:
    """A file's JSON; None where there is none, or a damaged one: the page then goes without it."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _json_lines(file: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file; a line that is no record (the last one of a killed run) is left out."""
    records = []
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _last_step(work: Path) -> int:
    records = _json_lines(work / "metrics.jsonl")
    return _int(records[-1].get("step")) if records else 0


def _dict(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan if value == "NaN" else 0.0


def _int(value: Any) -> int:
    number = _float(value)
    return int(number) if math.isfinite(number) else 0


def _number(value: Any, digits: int) -> str:
    return f"{value:,.{digits}f}" if isinstance(value, int | float) else "–"


def _percent(value: Any) -> str:
    return f"{100 * value:.1f}\u00a0%" if isinstance(value, int | float) else "–"


def _bytes(size: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s"


def _when(created: str) -> str:
    return created.replace("T", " ").removesuffix("Z")[:16] + " UTC" if created else ""


def _colour(index: int) -> str:
    return f"var(--models-{min(index, 3)})"
