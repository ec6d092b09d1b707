"""Commands that look: `show`, and `ps`, `logs`, `stop` for runs in the background."""

from __future__ import annotations

import sys
from pathlib import Path

from tinyseek.commands import Parser


def show(arguments: list[str]) -> int:
    """Where a folder came from."""
    parser = Parser(
        "show", "Print where a folder came from as a tree, back to the raw text, with what was measured on the way."
    )
    parser.add_argument("folder", metavar="FOLDER", help="what a stage made, or the folder of a run")
    folder = Path(parser.parse_args(arguments).folder)
    from tinyseek import artifact, terminal

    if not (folder / artifact.MANIFEST).is_file() and (folder / "recipe.yaml").is_file():
        from tinyseek.settings import read_yaml

        stages = [folder / name for name in read_yaml(folder / "recipe.yaml").get("stages", {})]
        built = [stage for stage in stages if (stage / artifact.MANIFEST).is_file()]
        folder = built[-1] if built else folder
    terminal.lineage(folder)
    return 0


def ps(arguments: list[str]) -> int:
    """The runs in the background."""
    Parser("ps", "List the runs that were started in the background.").parse_args(arguments)
    from tinyseek import terminal
    from tinyseek.train import background

    rows = [
        (run.name, run.status, run.started.replace("T", " ").removesuffix("Z"), run.folder, run.last_line[:80])
        for run in background.runs()
    ]
    if rows:
        terminal.table(("run", "status", "started (UTC)", "folder", "last line"), rows)
    else:
        print("no runs in the background; tinyseek run RECIPE --detach starts one")
    return 0


def logs(arguments: list[str]) -> int:
    """What one has said."""
    parser = Parser("logs", "Print what a run in the background has said.")
    parser.add_argument("run", help="its name or folder")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on until the run ends; Ctrl-C leaves, the run goes on"
    )
    chosen = parser.parse_args(arguments)
    from tinyseek.train import background

    background.follow(background.find(chosen.run), sys.stdout, chosen.follow)
    return 0


def stop(arguments: list[str]) -> int:
    """Stop one, so that it saves."""
    parser = Parser(
        "stop", "Stop a run in the background as Ctrl-C would: it saves, and the same command goes on from there."
    )
    parser.add_argument("run", help="its name or folder")
    chosen = parser.parse_args(arguments)
    from tinyseek.train import background

    print(background.stop(background.find(chosen.run)))
    return 0
