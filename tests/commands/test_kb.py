"""`tinyseek kb`: what it prints for people and for programs, its exit statuses, and what it says of mistakes."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kb_models import make_docs, make_home, make_pdf
from knowledge.memory_index import HashEmbedder

from tinyseek.cli import main

PROGRAM = Path(__file__).with_name("kb_program.py")
ALWAYS = "found_from=0"  # hashed words' cosines are no probabilities


class Desk:
    """The command in this process."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys

    def __call__(self, *arguments: str | Path, status: int = 0) -> str:
        """Standard output; what it said beside it is in `said`."""
        got = main(["kb", *map(str, arguments)])
        captured = self._capsys.readouterr()
        self.said = captured.err
        assert got == status, captured.out + captured.err
        return captured.out

    def json(self, *arguments: str | Path, status: int = 0) -> list[Any]:
        return [json.loads(line) for line in self(*arguments, "--json", status=status).splitlines()]


@pytest.fixture
def kb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Desk:
    monkeypatch.setenv("TINYSEEK_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tinyseek.knowledge.embed.open.open_embedder", lambda *_: HashEmbedder())
    monkeypatch.chdir(tmp_path)
    return Desk(tmp_path / "docs", capsys)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("made"))


@pytest.fixture
def full(kb: Desk, made: Path, tmp_path: Path) -> Desk:
    """With documents in it, and others in the collection pirates."""
    shutil.copytree(made, tmp_path / "home" / "knowledge")
    kb.folder = made.parent / "docs"
    return kb


# ---- bringing in


def test_a_folder_is_read_listed_and_read_no_more(kb: Desk) -> None:
    make_docs(kb.folder)
    assert re.fullmatch(r"3 added, \d+ passages, in [\d.]+ s \(collection default\)\n", kb("add", kb.folder))
    assert re.match(r"3 unchanged, in ", kb("add", kb.folder))
    listed = kb("list")
    assert re.search(r"lighthouse\.pdf +pdf +3 +\d", listed)
    assert "3 documents, " in listed
    assert [entry["name"] for entry in kb.json("list", "*.md")] == ["garden.md", "灯塔.md"]
    assert kb.json("list", "--kind", "pdf")[0]["source"] == str(kb.folder / "lighthouse.pdf")
    assert "nothing" in kb("list", "*.xyz", status=1)
    (kb.folder / "garden.md").unlink()
    assert "1 removed, 2 unchanged" in kb("add", kb.folder)


def test_a_file_that_cannot_be_read_is_a_line_and_the_others_go_on(kb: Desk) -> None:
    make_docs(kb.folder)
    (kb.folder / "broken.pdf").write_bytes(b"%PDF-1.7\nno")
    (kb.folder / "empty.txt").write_bytes(b"")
    assert "3 added, 2 failed" in kb("add", kb.folder, status=1)
    lines = [line for line in kb.said.splitlines() if line.startswith("x ")]
    assert [line.split(":")[0] for line in lines] == ["x broken.pdf", "x empty.txt"]
    assert all(line.split(": ", 1)[1] for line in lines)
    told = kb.json("add", kb.folder, status=1)
    assert {entry["file"]: entry["outcome"] for entry in told}["broken.pdf"] == "failed"
    assert [entry["done"] for entry in told] == [1, 2, 3, 4, 5]


def test_paths_that_are_not_there_and_names_from_standard_input(kb: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    kb("add", "nowhere/", status=1)
    assert "no such file or folder" in kb.said
    make_docs(kb.folder)
    monkeypatch.setattr("sys.stdin", iter([f"{kb.folder / 'garden.md'}\n"]))
    assert kb("add", "-").startswith("1 added")


def test_tags_and_their_filter(full: Desk) -> None:
    assert full("tag", "garden.md", "home", "2026") == "garden.md: home, 2026\n"
    assert [entry["name"] for entry in full.json("list", "--tag", "home")] == ["garden.md"]
    assert full("tag", "garden.md", "--", "-home") == "garden.md: 2026\n"
    full("add", full.folder, "--tag", "all")
    assert all("all" in entry["tags"] for entry in full.json("list"))


def test_documents_are_forgotten_by_name_or_pattern_and_files_stay(full: Desk) -> None:
    assert full("remove", "*.md") == "forgot garden.md\nforgot 灯塔.md\n"
    assert (full.folder / "garden.md").exists()
    full("remove", "gardn.md", status=2)
    assert "lighthouse.pdf" in full.said


# ---- looking


def test_a_document_is_shown_passage_by_passage(full: Desk) -> None:
    shown = full("show", "light")
    assert "lighthouse.pdf" in shown
    assert "pdf, 3 pages" in shown
    assert "212 steps" in shown
    assert re.search(r"passage \d+ · pages? 1", shown)
    assert "Dogs" not in full("show", "lighthouse.pdf", "--pages", "1")
    plain = full.json("show", "garden.md")[0]
    assert plain["chunks"][0]["text"]
    full("show", "nothing.pdf", status=2)
    assert "did you mean" in full.said or "there are" in full.said
    full("show", "lighthouse.pdf", "--pages", "one", status=2)


def test_a_page_is_written_as_a_picture(full: Desk, tmp_path: Path) -> None:
    passage = full.json("search", "fare of the ferry")[0]["passage"]
    assert full("open", "lighthouse.pdf", "--passage", str(passage["id"]), "--out", "page.png") == "page.png\n"
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    full("open", "lighthouse.pdf", "9", status=2)
    assert "no page 9" in full.said
    full("open", "garden.md", status=2)
    assert "only a PDF" in full.said


def test_a_passage_is_corrected(full: Desk) -> None:
    passage = full.json("search", "barrel of rain water")[0]["passage"]
    full("correct", str(passage["id"]), "The barrel holds 500 litres of rain water.")
    again = full.json("search", "barrel of 500 litres")[0]["passage"]
    assert (again["id"], again["corrected"]) == (passage["id"], True)
    assert "300" in again["original"]
    full("correct", "999999", "x", status=2)


# ---- questions


def test_a_search_shows_file_page_and_words(full: Desk) -> None:
    found = full("search", "how many steps does the keeper climb")
    assert found.startswith(" 1. lighthouse.pdf, page")
    assert "212 steps" in found
    hit = full.json("search", "how many steps does the keeper climb", "limit=1")
    assert len(hit) == 1
    assert hit[0]["document"]["source"].endswith("lighthouse.pdf")
    assert full.json("search", "看守人", "--file", "灯塔*")[0]["document"]["name"] == "灯塔.md"
    full("search", "steps", "--tag", "none", status=1)
    full("search", "steps", "how=magic", status=2)
    assert "how" in full.said
    full("search", "steps", "--since", "yesterday", status=2)
    assert "2026-01-31" in full.said


def test_an_answer_has_its_sources_below(full: Desk) -> None:
    answer = full("ask", "What is the fare of the ferry?", ALWAYS)
    assert "The fare of the ferry is 12 crowns. [1]" in answer
    assert "\n[1] lighthouse.pdf, page 3\n" in answer
    plain = full.json("ask", "What is the fare of the ferry?", ALWAYS)[0]
    assert plain["citations"][0]["document"]["source"].endswith("lighthouse.pdf")
    assert plain["citations"][0]["where"] == "page 3"


def test_questions_of_standard_input_are_a_conversation(full: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["What is the fare of the ferry?", "", "How many litres does the barrel hold?"])

    def typed(prompt: str = "") -> str:
        assert prompt == ""
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    said = full("ask", ALWAYS)
    assert said.count("\n? ") + said.startswith("? ") == 2
    assert "12 crowns" in said
    assert "300 litres" in said


def test_what_the_documents_do_not_say_is_not_answered(full: Desk) -> None:
    said = full("ask", "What is the fare of the ferry?", "found_from=1", status=1)
    assert "The documents do not answer this." in said
    assert "The nearest passages:" in said
    assert full.json("ask", "谁赢了比赛？", "found_from=1", status=1)[0]["answer"] == "文档中没有这个问题的答案。"


def test_eval_scores_the_search_and_the_citations(full: Desk, tmp_path: Path) -> None:
    questions = [
        {"question": "How many steps does the keeper climb?", "document": "lighthouse.pdf", "page": 1},
        {"question": "What is the fare of the ferry?", "file": "docs/lighthouse.pdf", "pages": [3]},
        {
            "question": "Which oil does the lamp burn?",
            "document": "lighthouse.pdf",
            "page": 1,
        },  # a wrong page: 2 is right
        {"question": "How many litres does the barrel hold?", "document": "garden.md"},
        {"question": "Who won the cup?", "document": None},
    ]
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(json.dumps(question) for question in questions) + "\n")
    figures = full.json("eval", file, ALWAYS, "--out", "out.jsonl")[0]
    assert figures["questions"] == 5
    assert figures["search"]["hybrid"]["document@1"]["mean"] == 1.0
    assert figures["answers"]["first citation right"]["mean"] == 0.75
    assert figures["answers"]["rightly not answered"]["mean"] == 0.0
    outcomes = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert outcomes[1]["cited"][0] == ["lighthouse.pdf", 3]
    printed = full("eval", file, ALWAYS)
    assert "hybrid" in printed
    assert "75.0" in printed
    assert "wanted lighthouse.pdf, page 1; cited lighthouse.pdf, page 2" in printed
    assert "hybrid" in full("eval", file, "answers=false")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1: is no JSON"),
        ("[]", "line 1"),
        ('{"document": "lighthouse.pdf"}', "no question"),
        ('{"question": "x"}', "no document"),
        ('{"question": "x", "document": "lighthouse.pdf", "page": "three"}', "whole numbers"),
        ('{"question": "x", "document": "other.pdf", "page": 3}', "other.pdf"),
        ("", "no questions"),
    ],
)
def test_a_wrong_file_of_questions_is_refused(full: Desk, tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "q.jsonl").write_text(line)
    full("eval", tmp_path / "q.jsonl", status=2)
    assert words in full.said


# ---- memory, sheets, batches


def test_facts_are_remembered_edited_and_forgotten(kb: Desk) -> None:
    kb("remember", status=1)
    fact = kb.json("remember", "I sit at desk 4B.", "--tag", "office")[0]
    assert "desk 4B" in kb("remember")
    kb("remember", "--edit", str(fact["id"]), "I sit at desk 5C.")
    assert "desk 5C" in kb("remember", "--tag", "office")
    assert kb("forget", str(fact["id"])) == "forgot 1\n"
    kb("forget", str(fact["id"]), status=1)
    kb("forget", "all", status=2)


def test_a_table_is_asked_and_shows_its_query(kb: Desk, tmp_path: Path) -> None:
    (tmp_path / "sales.csv").write_text("region,revenue\nNorth,10\nSouth,32\n")
    kb("add", tmp_path / "sales.csv")
    said = kb("table", "total revenue")
    assert "42" in said
    assert "```sql" in said
    assert kb.json("table", "total revenue")[0]["rows"] == [[42]]


def test_a_batch_of_questions_is_answered_in_order(full: Desk, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("What is the fare of the ferry?\nHow many litres does the barrel hold?\n")
    assert "2 of 2" in full("batch", "in.txt", "out.jsonl", ALWAYS)
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert "12 crowns" in str(answers[0])
    assert "300 litres" in str(answers[1])
    assert "lighthouse.pdf" in str(answers[0])


def test_templates_are_kept_filled_and_removed(kb: Desk, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("need: 'Say {word} in {language}.'\nvariables: {language: {default: French}}\n")
    kb("template", "save", "word", "t.yaml")
    assert "Say house in French." in kb("template", "fill", "word", "word=house")
    assert "word" in kb("template", "list")
    kb("template", "fill", "word", status=2)
    assert "word" in kb.said
    kb("template", "remove", "word")
    kb("template", "show", "word", status=2)


def test_a_summary_without_a_model_is_of_the_documents_own_sentences(full: Desk) -> None:
    plain = full.json("summary", "lighthouse.pdf")[0]
    assert plain["how"] == "extractive"
    assert plain["summary"]


# ---- collections, mistakes


def test_collections_are_apart(full: Desk, tmp_path: Path) -> None:
    make_pdf(tmp_path / "ship.pdf", ["The ship carries 40 barrels of rum."])
    full("add", tmp_path / "ship.pdf", "-c", "ships")
    assert [entry["name"] for entry in full.json("list", "-c", "ships")] == ["ship.pdf"]
    assert {entry["name"]: entry["documents"] for entry in full.json("collections")} == {
        "default": 3,
        "pirates": 1,
        "ships": 1,
    }
    assert all(hit["document"]["name"] != "ship.pdf" for hit in full.json("search", "barrels of rum"))
    full("drop", "ships", status=2)
    assert "--yes" in full.said
    assert full("drop", "ships", "--yes") == "deleted the collection ships\n"
    full("list", "-c", "ships", status=2)
    assert 'no collection "ships"' in full.said
    assert (tmp_path / "ship.pdf").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serch", "x"], 'did you mean "search"'),
        (["ask", "x"], "Add documents first"),
        (["list"], "Add documents first"),
        (["add", "docs", "chunks.tokens=1"], "chunks.tokens"),
        (["add", "docs", "embeder=e5"], 'did you mean "embedder"'),
        (["add", "docs", "-c", "../x"], "no name for a collection"),
        (["serve", "kb_accss=x"], 'did you mean "kb_access"'),
        (["mcp", "extra"], "no setting"),
        (["template", "show"], "which template"),
        (["batch", "one.txt"], "that of answers"),
    ],
)
def test_mistakes_are_told_in_a_line(kb: Desk, arguments: list[str], words: str) -> None:
    kb(*arguments, status=2)
    assert words in kb.said
    assert kb.said.count("\n") <= 2


def test_help_names_every_action(kb: Desk) -> None:
    from tinyseek.commands.kb import ACTIONS

    shown = kb()
    assert all(re.search(rf"^  {action}\b", shown, re.MULTILINE) for action in ACTIONS)


# ---- a terminal, and signals


def on_a_terminal(arguments: list[str], home: Path, until: Callable[[str], bool] | None = None) -> tuple[str, int]:
    """What a person sees who runs it; Ctrl-C is pressed when `until` has seen what it waits for."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TINYSEEK_HOME": str(home), "TERM": "xterm-256color", "COLUMNS": "100"}
    command = [sys.executable, str(PROGRAM), *arguments]
    process = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, env=environment, start_new_session=True
    )
    os.close(follower)
    seen = b""
    end = time.monotonic() + 180  # the first embedder of a machine is compiled
    while time.monotonic() < end:
        if select.select([leader], [], [], 0.2)[0]:
            try:
                part = os.read(leader, 65536)
            except OSError:
                break
            if not part:
                break
            seen += part
        if until is not None and until(seen.decode(errors="replace")):
            process.send_signal(signal.SIGINT)
            until = None
    status = process.wait(120)
    os.close(leader)
    return seen.decode(errors="replace"), status


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home and documents beside it."""
    where = tmp_path_factory.mktemp("terminal")
    make_docs(where / "docs")
    return where / "home"


def test_on_a_terminal_there_is_a_bar_and_answers_link_to_their_pages(home: Path) -> None:
    docs = home.parent / "docs"
    (docs / "broken.pdf").write_bytes(b"%PDF-1.7\nno")
    seen, status = on_a_terminal(["add", str(docs)], home)
    assert status == 1
    assert "4/4" in seen
    assert "3 added, 1 failed" in seen
    assert re.search(r"x .*broken\.pdf", seen)
    seen, status = on_a_terminal(["ask", "What is the fare of the ferry?", ALWAYS], home)
    assert status == 0
    target = re.escape(f"file://{docs / 'lighthouse.pdf'}#page=3")
    assert re.search(rf"\x1b\]8;[^;]*;{target}\x1b\\", seen)  # a link, as terminals have it
    assert "\x1b[" in seen


def test_watch_follows_a_folder_until_it_is_stopped(home: Path) -> None:
    folder = home.parent / "watched"
    folder.mkdir()
    (folder / "one.txt").write_text("The first note is about whales.")

    def until(seen: str) -> bool:
        if "one.txt" in seen and not (folder / "two.txt").exists():
            (folder / "two.txt").write_text("The second note is about dolphins.")
        return "two.txt" in seen

    seen, status = on_a_terminal(["watch", str(folder), "-c", "watched"], home, until)
    assert status == 0, seen
    assert re.search(r"added +one\.txt", seen)
    assert re.search(r"added +two\.txt", seen)
    assert "what was read is kept" in seen


def test_reading_that_is_stopped_keeps_what_it_read(home: Path) -> None:
    folder = home.parent / "many"
    folder.mkdir()
    for number in range(300):
        (folder / f"{number:03}.txt").write_text(f"Note {number} tells of whale {number}. " * 40)
    seen, status = on_a_terminal(["add", str(folder), "-c", "many"], home, lambda seen: "/300" in seen)
    assert status == 130
    assert "goes on from there" in seen
    seen, status = on_a_terminal(["add", str(folder), "-c", "many"], home)
    assert status == 0
    assert re.search(r"\d+ added, \d+ unchanged|300 added|300 unchanged", seen)
    seen, _ = on_a_terminal(["list", "-c", "many", "--json"], home)
    assert seen.count('"sha256"') == 300
