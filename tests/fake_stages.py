"""Small stages for the tests of recipe, run and cli: they write text in place of models, and can be told to fail or to wait."""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import Field

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.settings import Settings, StageSettings, no_effect, taken_from


class Shape(Settings):
    width: int = Field(8, ge=1, description="how wide")


class CookSettings(StageSettings):
    """Text from files and other stages."""

    source: list[str] = taken_from([], "what to cook")
    times: int = Field(1, ge=1, le=99, description="how often")
    seed: int = 0
    shape: Shape = Shape()
    trouble: str = no_effect("", "an error to raise, or `wait`")


class ServeSettings(StageSettings):
    """One dish."""

    dish: str = taken_from("cook", "what to serve")
    seed: int = 0


def build(settings: CookSettings | ServeSettings, folder: Path) -> None:
    sources = {role: Path(path) for role, path in settings.taken().items()}
    kind = "cook" if isinstance(settings, CookSettings) else "serve"
    with artifact.writing(folder, kind, settings.essence(), inputs=sources) as (partial, figures):
        trouble = getattr(settings, "trouble", "")
        if trouble == "wait":
            (partial / "begun").touch()
            time.sleep(60)
        if trouble:
            raise UserError(trouble)
        read = "".join((path / "dish" if path.is_dir() else path).read_text() for path in sources.values())
        (partial / "dish").write_text(read * getattr(settings, "times", 1))
        figures["letters"] = len(read)
