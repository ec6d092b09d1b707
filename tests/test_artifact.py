"""The one shape that every stage leaves: whole or not there, whatever kills its writer."""

from __future__ import annotations

import errno
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinyseek import artifact
from tinyseek.errors import UserError


def write(folder: Path, text: str, settings: dict[str, object] | None = None, **more: object) -> artifact.Manifest:
    with artifact.writing(folder, "data", settings or {"a": 1}, **more) as (partial, figures):
        (partial / "text").write_text(text)
        figures["characters"] = len(text)
    return artifact.read(folder)


def beside(folder: Path) -> set[str]:
    return {p.name for p in folder.parent.iterdir()}


def test_a_folder_is_written_with_its_manifest_and_nothing_beside_it(tmp_path: Path) -> None:
    manifest = write(tmp_path / "one", "hello")
    assert (tmp_path / "one/text").read_text() == "hello"
    assert manifest.figures == {"characters": 5}
    assert manifest.key == artifact.make_key("data", {"a": 1}, {})
    assert beside(tmp_path / "one") == {"one"}


def test_the_key_follows_kind_settings_and_inputs_and_not_the_place(tmp_path: Path) -> None:
    raw = tmp_path / "raw.txt"
    raw.write_text("abc")
    first = write(tmp_path / "one", "x", inputs={"corpus": raw})
    second = write(tmp_path / "two", "x", inputs={"corpus": raw})
    assert first.key == second.key
    raw.write_text("abd")
    assert write(tmp_path / "two", "x", inputs={"corpus": raw}).key != first.key
    assert write(tmp_path / "two", "x", {"a": 2}).key != write(tmp_path / "two", "x", {"a": 1}).key
    downstream = write(tmp_path / "three", "y", inputs={"data": tmp_path / "one"})
    assert downstream.inputs["data"] == artifact.Input(first.key, "one")


def test_a_failure_leaves_nothing_and_harms_nothing(tmp_path: Path) -> None:
    write(tmp_path / "one", "old")
    with pytest.raises(ZeroDivisionError), artifact.writing(tmp_path / "one", "data", {}) as (partial, _):
        (partial / "text").write_text("new")
        raise ZeroDivisionError
    assert (tmp_path / "one/text").read_text() == "old"
    assert beside(tmp_path / "one") == {"one"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path / "one", "old")
    with pytest.raises(UserError, match="disk is full"), artifact.writing(tmp_path / "one", "data", {}) as (partial, _):
        (partial / "text").symlink_to("/dev/full")  # every write to it fails as on a full disk
        (partial / "text").write_text("new")
    assert (tmp_path / "one/text").read_text() == "old"
    assert beside(tmp_path / "one") == {"one"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ],
)
def test_libraries_words_for_a_full_disk_are_understood(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(UserError, match=r"one: the disk.*nothing was changed"),
        artifact.writing(tmp_path / "one", "data", {}),
    ):
        raise error


def test_an_error_that_is_not_about_writing_is_not_called_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), artifact.writing(tmp_path / "one", "data", {}):
        (tmp_path / "elsewhere/missing").read_text()


def test_a_folder_of_the_users_own_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="choose another name"):
        write(tmp_path / "home", "x")
    assert (tmp_path / "home/thesis.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        write(tmp_path / "file", "x")
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "file/below", "x")


@pytest.mark.parametrize("whole", [True, False])
def test_a_kill_between_the_two_renames_is_put_right(tmp_path: Path, whole: bool) -> None:
    """The old folder has stepped aside, the new one has not taken its name yet."""
    write(tmp_path / "one", "old")
    write(tmp_path / "new", "new")
    (tmp_path / "one").rename(tmp_path / "one.old")
    (tmp_path / "new").rename(tmp_path / "one.partial")
    if not whole:
        (tmp_path / "one.partial" / artifact.MANIFEST).unlink()
    artifact.read(tmp_path / "one")
    assert (tmp_path / "one/text").read_text() == ("new" if whole else "old")
    write(tmp_path / "one", "newer")
    assert (tmp_path / "one/text").read_text() == "newer"
    assert beside(tmp_path / "one") == {"one"}


WRITER = """
import sys, pathlib
from tinyseek import artifact
folder = pathlib.Path(sys.argv[1])
for round in range(10**9):
    with artifact.writing(folder, "data", {"round": round}) as (partial, figures):
        for part in range(8):
            (partial / f"{part}.txt").write_text(str(round) * 2000)
        figures["round"] = round
    print(round, flush=True)
"""


def test_kill_9_at_random_moments_always_leaves_a_whole_folder(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    folder = tmp_path / "one"
    for _ in range(12):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(rng.random() * 0.05)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        manifest = artifact.read(folder)
        texts = {(folder / f"{part}.txt").read_text() for part in range(8)}
        assert texts == {str(manifest.figures["round"]) * 2000}
    write(folder, "after all that")
    assert beside(folder) == {"one"}


def test_a_reader_sees_whole_folders_while_a_writer_replaces_them(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    write(folder, "first")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    try:
        writer.stdout.readline()
        seen = {artifact.read(folder).figures["round"] for _ in range(400)}
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    assert len(seen) > 3


def test_two_writers_of_one_folder_do_not_mix(tmp_path: Path) -> None:
    held = (
        "import sys, pathlib, time\nfrom tinyseek import artifact\n"
        "with artifact.writing(pathlib.Path(sys.argv[1]), 'data', {}) as (partial, _):\n"
        "    (partial / 'text').write_text('first'); print('in', flush=True); time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", held, str(tmp_path / "one")], stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    try:
        with pytest.raises(UserError, match="another process"):
            write(tmp_path / "one", "second")
        assert (tmp_path / "one.partial/text").read_text() == "first"
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    write(tmp_path / "one", "second")  # what the dead one left is no hindrance
    assert beside(tmp_path / "one") == {"one"}


def test_what_is_no_artefact_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        artifact.read(tmp_path / "none")
    with pytest.raises(UserError, match=r"no manifest\.json"):
        artifact.read(tmp_path)
    write(tmp_path / "one", "x")
    for damage in ("{", "[]", '{"kind": 1, "inputs": []}', '{"kind": "data", "key": "k", "inputs": {"a": {"b": 1}}}'):
        (tmp_path / "one" / artifact.MANIFEST).write_text(damage)
        with pytest.raises(UserError, match="damaged"):
            artifact.read(tmp_path / "one")


def test_figures_may_be_numpy_numbers(tmp_path: Path) -> None:
    import numpy as np

    with artifact.writing(tmp_path / "one", "data", {}) as (_, figures):
        figures |= {"loss": np.float32(0.5), "count": np.int64(3)}
    assert json.loads((tmp_path / "one/manifest.json").read_text())["figures"] == {"loss": 0.5, "count": 3}


def test_lineage_goes_back_to_the_raw_text_also_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("raw.txt").write_text("abc")
    write(Path("run/data"), "x", inputs={"corpus": Path("raw.txt")})
    write(Path("run/tokens"), "y", inputs={"data": Path("run/data")})
    (tmp_path / "run").rename(tmp_path / "moved")
    monkeypatch.chdir("/")
    rows = artifact.lineage(tmp_path / "moved/tokens")
    assert [(depth, role, path.name, bool(manifest)) for depth, role, path, manifest in rows] == [
        (0, "", "tokens", True),
        (1, "data", "data", True),
        (2, "corpus", "raw.txt", False),
    ]
    assert all(path.exists() for _, _, path, _ in rows)


def test_a_corpus_without_files_keeps_its_name(tmp_path: Path) -> None:
    write(tmp_path / "data", "x", {"corpus": "package:kjv"}, keys={"corpus": "sha256:1"})
    assert [str(row[2]) for row in artifact.lineage(tmp_path / "data")][1] == "package:kjv"


def test_file_key_depends_on_names_and_content(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x").write_text("1")
    first = artifact.file_key(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert artifact.file_key(tmp_path / "b") == first
    (tmp_path / "b/x").rename(tmp_path / "b/y")
    assert artifact.file_key(tmp_path / "b") != first
    with pytest.raises(UserError, match="cannot be read"):
        artifact.file_key(tmp_path / "missing")
