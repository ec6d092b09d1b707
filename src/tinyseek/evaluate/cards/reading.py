"""What stages leave behind, read with patience: a file that is missing or damaged, or a value of another type, leaves a gap."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def json_of(file: Path) -> Any:
    """A file's JSON; None where there is none, or a damaged one: the page then goes without it."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def json_lines(file: Path) -> list[dict[str, Any]]:
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


def as_dict(value: Any) -> dict[str, Any]:
    """A mapping, or an empty one."""
    return dict(value) if isinstance(value, Mapping) else {}


def as_list(value: Any) -> list[Any]:
    """A list, or an empty one."""
    return value if isinstance(value, list) else []


def as_float(value: Any) -> float:
    """A number; NaN for the word that metrics.jsonl has for it; else 0."""
    return float(value) if isinstance(value, int | float) else math.nan if value == "NaN" else 0.0


def as_int(value: Any) -> int:
    """A whole number; 0 for what is none."""
    number = as_float(value)
    return int(number) if math.isfinite(number) else 0
