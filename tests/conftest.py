"""What the tests at the top share."""

from __future__ import annotations

import pytest

from tinyseek import recipe
from tinyseek.recipe import Kind


@pytest.fixture
def fake_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes of two small stages, `cook` and `serve`, in place of the real ones."""
    kinds = {
        "cook": Kind("fake_stages:CookSettings", "fake_stages", "cook text"),
        "serve": Kind("fake_stages:ServeSettings", "fake_stages", "serve it"),
    }
    monkeypatch.setattr("tinyseek.run.KINDS", kinds)  # first: this may be what imports it, and it takes recipe's
    monkeypatch.setattr(recipe, "KINDS", kinds)
