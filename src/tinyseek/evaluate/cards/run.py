"""What the page tells of: a run's finished folders with their ancestors, and what is still at work or waiting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tinyseek import artifact
from tinyseek.artifact import Manifest
from tinyseek.errors import UserError

TRAINED = (
    "pretrain",
    "sft",
    "dpo",
    "kto",
    "reward",
    "grpo",
    "ppo",
    "distill",
    "classify",
)  # kinds with a metrics.jsonl


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


def waiting_in(folder: Path, there: set[str]) -> list[str]:
    """The stages of the run's recipe that have not begun."""
    from tinyseek.settings import read_yaml

    try:
        stages = read_yaml(folder / "recipe.yaml").get("stages", {})
    except UserError:
        return []
    return [str(name) for name in stages if name not in there and name != "report"]


def parent_of(node: Node, nodes: Sequence[Node]) -> Node | None:
    """The model that a model was made from, if that is among `nodes`."""
    key = node.manifest.inputs["model"].key if "model" in node.manifest.inputs else None
    return next((other for other in nodes if key and other.manifest.key == key), None)
