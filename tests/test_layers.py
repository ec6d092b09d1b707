"""Data flows one way: what may import what (docs/architecture.md), read off the source without running it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src/tinyseek"

# Each room with the rooms that it may import from. Whatever is not named stands on top, and only the top may import it.
LEAVES = {"errors", "settings", "artifact"}
ROOMS = {
    "errors": set(),
    "settings": {"errors"},
    "artifact": {"errors"},
    "text": LEAVES,
    "model": LEAVES | {"text"},
    "train": LEAVES | {"text", "model"},
    "tune": LEAVES | {"text", "model", "train", "engine", "llm"},
    "engine": LEAVES | {"text", "model"},
    "evaluate": LEAVES | {"text", "model", "engine", "llm"},
    "llm": LEAVES | {"text", "model", "engine"},
    "serve": LEAVES | {"text", "model", "engine", "llm", "knowledge"},
    "knowledge": LEAVES | {"text", "model", "llm"},
    "agents": LEAVES | {"text", "llm"},
}
TOP = {"recipe", "run", "plan", "talk", "studio", "terminal", "commands", "cli", "__main__"}
NEVER = {
    "recipe": TOP - {"recipe"},
    "run": TOP - {"recipe", "run"},
    "plan": TOP - {"recipe", "run", "plan"},
    "talk": TOP - {"talk"},
    "studio": {"run", "plan", "talk", "commands", "cli", "__main__"},
    "terminal": {"commands", "cli", "__main__"},
    "commands": {"cli", "__main__"},
}

HEAVY = {"torch", "transformers", "matplotlib", "pyarrow", "tensorboard", "llguidance", "fastapi", "nicegui"}
# What --help, recipes and the tokenizer use; and everything these import.
LIGHT = (
    "tinyseek",
    "tinyseek.cli",
    "tinyseek.commands.evaluate",
    "tinyseek.commands.follow",
    "tinyseek.commands.kb",
    "tinyseek.commands.models",
    "tinyseek.commands.recipes",
    "tinyseek.commands.serve",
    "tinyseek.run",
    "tinyseek.llm.base",
    "tinyseek.llm.open",
    "tinyseek.llm.options",
    "tinyseek.serve.options",
    "tinyseek.talk",
    "tinyseek.terminal",
    "tinyseek.text.chat",
    "tinyseek.text.clean",
    "tinyseek.text.shards",
    "tinyseek.text.sources",
    "tinyseek.text.tasks",
    "tinyseek.text.tokenizer",
    "tinyseek.model.config",
    "tinyseek.model.presets",
    "tinyseek.commands.label",
    "tinyseek.train.options",
    "tinyseek.tune.classify.options",
    "tinyseek.tune.reward_options",
    "tinyseek.train.background",
    "tinyseek.evaluate.options",
    "tinyseek.tune.distill.options",
    "tinyseek.tune.rl.options",
    "tinyseek.knowledge.answer.options",
    "tinyseek.knowledge.options",
    "tinyseek.knowledge.base",
    "tinyseek.knowledge.documents.read",
    "tinyseek.knowledge.memory",
    "tinyseek.knowledge.tables.options",
    "tinyseek.knowledge.templates",
)


def sources() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def module_name(file: Path) -> str:
    parts = ["tinyseek", *file.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> Iterator[tuple[str, ast.AST]]:
    """Every module that a file imports anywhere, but for those that only the type checker sees."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for part in node.body
        for inner in ast.walk(part)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import; write the whole name"
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def room_of(name: str) -> str | None:
    """`tinyseek.text.bpe` is in `text`; the package itself is in no room."""
    parts = name.split(".")
    known = {*ROOMS, *TOP} | {path.stem for path in SOURCE.iterdir()}
    return parts[1] if parts[0] == "tinyseek" and len(parts) > 1 and parts[1] in known else None


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(SOURCE)))
def test_a_room_imports_only_what_lies_before_it(file: Path) -> None:
    here = room_of(module_name(file))
    for name, node in imports(file):
        there = room_of(name)
        if there is None or there == here or here is None:
            continue
        place = f"{file.relative_to(SOURCE)}:{node.lineno}"  # type: ignore[attr-defined]
        if here in ROOMS:
            assert there in ROOMS[here], f"{place}: {here} may not import {there}"
        else:
            assert here in TOP, f"{place}: {here} is in no layer; add it to docs/architecture.md and to this test"
            assert there not in NEVER.get(here, set()), f"{place}: {here} may not import {there}"


def test_every_room_is_a_package() -> None:
    for folder in SOURCE.iterdir():
        if folder.is_dir() and any(folder.glob("*.py")):
            assert (folder / "__init__.py").is_file(), f"{folder.name} has no __init__.py, so it would not be installed"


def test_what_help_and_recipes_need_imports_nothing_heavy() -> None:
    """In a process of its own, for what it really loads, at any depth."""
    code = f"import sys, importlib\nfor name in {LIGHT}: importlib.import_module(name)\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(run.stdout.split())


def test_nothing_is_run_from_text() -> None:
    """No eval, exec, pickle or shell: a checkpoint, a recipe or a corpus must not be able to run code."""
    for file in sources():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for name, node in imports(file):
            assert name.split(".")[0] not in {"pickle", "marshal", "shelve", "dill"}, f"{file}:{node.lineno}"  # type: ignore[attr-defined]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "os.system", "os.popen", "yaml.unsafe_load"}, (
                    f"{file}:{node.lineno}: {called}"
                )
                assert not any(k.arg == "shell" for k in node.keywords), f"{file}:{node.lineno}: a shell"
                if called == "torch.load":
                    assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), (
                        f"{file}:{node.lineno}: torch.load without weights_only=True"
                    )


def test_no_source_names_a_place_outside_the_project() -> None:
    home = os.path.expanduser("~")  # noqa: PTH111
    for file in sources():
        text = file.read_text(encoding="utf-8")
        assert "../shared" not in text
        assert home == "/" or f"{home}/" not in text
