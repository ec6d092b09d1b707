"""Questions to offer for a model that a run of ours made: held-out tasks of that run, which it has never seen."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

MOST_READ = 2_000  # lines


def examples(model: str | Path, most: int = 4) -> list[str]:
    """Short questions for the model in `RUN/STAGE`, or in `RUN`: one of each kind and language, none that is to be refused.

    Returns:
        At most `most` a language; none where there are no tasks beside the model.
    """
    folder = Path(model)
    files = [place / "tasks" / "heldout.jsonl" for place in (folder, folder.parent)]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return []
    kinds: dict[tuple[str, str], list[str]] = {}
    try:
        with file.open(encoding="utf-8") as stream:
            for line in itertools.islice(stream, MOST_READ):
                task = json.loads(line)
                first = task["messages"][0]
                if first["role"] == "user" and len(first["content"]) <= 60 and task["kind"] != "refusal":
                    kinds.setdefault((str(task["lang"]), str(task["kind"])), []).append(first["content"])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return []
    chosen = []
    for language in dict.fromkeys(language for language, _ in kinds):
        chosen += [min(texts, key=_plainness) for (lang, _), texts in sorted(kinds.items()) if lang == language][:most]
    return chosen


def _plainness(text: str) -> tuple[bool, int]:
    """Words before signs, and the shorter the better."""
    return sum(char.isalpha() for char in text) < 4, len(text)
