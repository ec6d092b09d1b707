"""A run does what is missing, skips what is built, says why, and never shares its folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinyseek import artifact, run
from tinyseek.errors import UserError
from tinyseek.recipe import load_recipe
from tinyseek.run import clock

TEXT = """\
stages:
  cook:
    source: [soup.txt]
  serve: {}
"""


@pytest.fixture(autouse=True)
def _supper(fake_kinds: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("soup.txt").write_text("soup")
    Path("supper.yaml").write_text(TEXT)


def do(*overrides: str, until: str | None = None) -> dict[str, str]:
    """Run, and tell why each stage was built; an empty reason is a stage that was kept."""
    said: list[str] = []
    done = run.run(load_recipe("supper.yaml", overrides), until, said.append)
    for outcome in done:
        line = next(line for line in said if f"] {outcome.stage}: " in line)
        assert ("building" in line) == bool(outcome.why_built)
        assert outcome.why_built in line
    return {outcome.stage: outcome.why_built for outcome in done}


def test_everything_is_built_once() -> None:
    assert do() == {"cook": "not built yet", "serve": "not built yet"}
    assert Path("runs/supper/serve/dish").read_text() == "soup"
    assert do() == {"cook": "", "serve": ""}


def test_what_changed_is_built_again_and_what_depends_on_it() -> None:
    do()
    assert do("cook.times=2") == {"cook": "times was 1, is 2", "serve": "dish changed"}
    assert Path("runs/supper/serve/dish").read_text() == "soupsoup"
    Path("soup.txt").write_text("broth")
    assert do("cook.times=2") == {"cook": "source.0 changed", "serve": "dish changed"}
    Path("more.txt").write_text("!")
    assert do("cook.times=2", "cook.source=[soup.txt, more.txt]")["cook"] == "source.1 is new"
    assert do("cook.times=2", "cook.source=[soup.txt]", "cook.shape.width=3")["cook"] == (
        "shape.width was 8, is 3; source.1 is gone"
    )
    assert do("cook.times=2", "cook.shape.width=3", "serve.seed=1") == {"cook": "", "serve": "seed was 0, is 1"}


def test_what_has_no_effect_builds_nothing_again() -> None:
    do()
    assert do("cook.trouble=x") == {"cook": "", "serve": ""}


def test_a_file_with_the_same_bytes_is_the_same_input() -> None:
    do()
    Path("soup.txt").rename("renamed.txt")
    assert do("cook.source=[renamed.txt]") == {"cook": "", "serve": ""}


def test_a_failing_stage_leaves_what_was_built_before() -> None:
    do()
    with pytest.raises(UserError, match="too hot"):
        do("cook.times=2", "cook.trouble=too hot")
    assert Path("runs/supper/cook/dish").read_text() == "soup"
    assert do() == {"cook": "", "serve": ""}


def test_until_stops_after_a_stage() -> None:
    assert do(until="cook") == {"cook": "not built yet"}
    with pytest.raises(UserError, match='no stage "cok"'):
        do(until="cok")


def test_a_damaged_or_missing_stage_is_built_again() -> None:
    do()
    Path("runs/supper/cook/manifest.json").write_text("{")
    assert do() == {"cook": "its manifest is damaged", "serve": ""}  # what it makes is the same, so serve stands
    (Path("runs/supper/serve") / artifact.MANIFEST).unlink()
    with pytest.raises(UserError, match="choose another name"):
        do()


def test_an_input_that_is_gone_is_said_before_anything_runs() -> None:
    loaded = load_recipe("supper.yaml")
    Path("soup.txt").unlink()
    with pytest.raises(UserError, match=r"cook\.source\.0: soup\.txt: no such file"):
        run.run(loaded, say=lambda _: None)
    assert not Path("runs").exists()


def test_a_killed_run_goes_on_and_its_lock_does_not_outlive_it() -> None:
    here = Path(__file__).parent
    code = (
        "import sys; from tinyseek import recipe, run; from tinyseek.recipe import Kind\n"
        "kinds = {k: Kind(f'fake_stages:{k.title()}Settings', 'fake_stages', '') for k in ('cook', 'serve')}\n"
        "recipe.KINDS = run.KINDS = kinds\n"
        "run.run(recipe.load_recipe('supper.yaml', ['cook.times=2', 'cook.trouble=wait']), say=lambda _: None)\n"
    )
    do()
    other = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(here)})
    for _ in range(200):
        if Path("runs/supper/cook.partial/begun").exists():
            break
        time.sleep(0.05)
    with pytest.raises(UserError, match=rf"another run is at work here \(process {other.pid}\)"):
        do()
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert Path("runs/supper/cook.partial").exists()
    assert do("cook.times=2") == {"cook": "times was 1, is 2", "serve": "dish changed"}
    assert not Path("runs/supper/cook.partial").exists()


def test_a_run_can_be_moved_and_gone_on_with_by_its_folder() -> None:
    do()
    Path("runs/supper").rename("elsewhere")
    done = run.run(load_recipe("elsewhere", ["out=elsewhere"]), say=lambda _: None)
    assert [outcome.why_built for outcome in done] == ["", ""]


def test_clock() -> None:
    assert [clock(s) for s in (0.42, 12.3, 200, 7500)] == ["0.4 s", "12 s", "3 min 20 s", "2 h 5 min"]
