"""The knowledge base over HTTP: collections, uploads, pages with passages marked, questions; what is refused; what a key sees."""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from http_models import Running
from kb_models import NOTES, PAGES, kb_server, kb_settings, make_home, make_pdf
from PIL import Image

from tinyseek.errors import UserError


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("kb"))


@pytest.fixture(scope="module")
def open_(home: Path) -> Iterator[Running]:
    """A server without keys, for reading."""
    with kb_server(home, kb_read_only=True) as server:
        yield server


@pytest.fixture(scope="module")
def own(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server over a copy of it, to be changed: each test has files of its own names."""
    copy = tmp_path_factory.mktemp("own") / "home"
    shutil.copytree(home, copy)
    with kb_server(copy, kb_upload_mb=2, max_body_mb=0.1) as server:
        yield server


def documents(server: Running, **asked: Any) -> dict[str, int]:
    found = server.get("/v1/kb/documents", params=asked).json()
    assert found["total"] == len(found["data"])
    return {entry["name"]: entry["id"] for entry in found["data"]}


def events(text: str) -> list[tuple[str, Any]]:
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert blocks.pop() == "data: [DONE]"
    named = [block.partition("\n") for block in blocks]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, _, data in named]


# ---- looking


def test_collections_and_documents_are_listed_without_their_places_on_the_server(open_: Running, home: Path) -> None:
    found = open_.get("/v1/kb/collections").json()["data"]
    assert [(one["name"], one["documents"], one["model"]) for one in found] == [
        ("default", 3, "kb"),
        ("pirates", 1, "kb:pirates"),
    ]
    names = documents(open_)
    assert set(names) == {"lighthouse.pdf", "garden.md", "灯塔.md"}
    assert set(documents(open_, name="*.md")) == {"garden.md", "灯塔.md"}
    assert set(documents(open_, kind="pdf")) == {"lighthouse.pdf"}
    one = open_.get(f"/v1/kb/documents/{names['lighthouse.pdf']}").json()
    assert (one["kind"], one["pages"]) == ("pdf", 3)
    everything = open_.get("/v1/kb/documents").text + open_.post("/v1/kb/search", {"query": "lighthouse"}).text
    assert str(home.parent) not in everything


def test_passages_come_in_order_and_by_page(open_: Running) -> None:
    number = documents(open_)["lighthouse.pdf"]
    whole = open_.get(f"/v1/kb/documents/{number}/chunks").json()
    assert [chunk["number"] for chunk in whole["data"]] == list(range(whole["total"]))
    text = " ".join(chunk["text"] for chunk in whole["data"])
    assert all(sentence.rstrip(".") in " ".join(text.split()) for page in PAGES for sentence in page.split(". "))
    second = open_.get(f"/v1/kb/documents/{number}/chunks", params={"page": 2}).json()
    assert second["total"] >= 1
    assert all(any(place["page"] == 2 for place in chunk["places"]) for chunk in second["data"])
    one = second["data"][0]
    assert open_.get(f"/v1/kb/chunks/{one['id']}").json() == one


def test_a_page_is_drawn_with_the_passage_marked_where_it_stands(open_: Running) -> None:
    number = documents(open_)["lighthouse.pdf"]
    plain = open_.get(f"/v1/kb/documents/{number}/pages/2.png?scale=1")
    assert plain.headers["content-type"] == "image/png"
    before = Image.open(io.BytesIO(plain.content)).convert("RGB")
    chunk = open_.get(f"/v1/kb/documents/{number}/chunks", params={"page": 2}).json()["data"][0]
    marked = open_.get(f"/v1/kb/documents/{number}/pages/2.png?scale=1&chunk={chunk['id']}")
    after = Image.open(io.BytesIO(marked.content)).convert("RGB")
    assert before.size == after.size == (596, 842)
    changed = [
        (x, y) for y in range(842) for x in range(0, 595, 5) if before.getpixel((x, y)) != after.getpixel((x, y))
    ]
    boxes = [box for place in chunk["places"] if place["page"] == 2 for box in place["boxes"]]
    assert changed
    assert all(any(b[0] - 3 <= x <= b[2] + 3 and b[1] - 3 <= y <= b[3] + 3 for b in boxes) for x, y in changed)
    assert any(118 < y < 150 for _, y in changed)  # the sentences stand 142 points below the upper edge


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/kb/documents/{pdf}/pages/4.png", 404),
        ("/v1/kb/documents/{pdf}/pages/0.png", 404),
        ("/v1/kb/documents/{pdf}/pages/x.png", 400),
        ("/v1/kb/documents/{pdf}/pages/1.png?scale=900", 400),
        ("/v1/kb/documents/{pdf}/pages/1.png?box=a,b", 400),
        ("/v1/kb/documents/{pdf}/pages/1.png?box=1,2,3,1e99", 400),
        ("/v1/kb/documents/{pdf}/pages/1.png?box=nan,2,3,4", 400),
        ("/v1/kb/documents/{md}/pages/1.png", 404),
        ("/v1/kb/documents/999/pages/1.png", 404),
        ("/v1/kb/documents/99999999999999999999", 404),
        ("/v1/kb/documents/-1", 404),
        ("/v1/kb/chunks/999999", 404),
        ("/v1/kb/documents?collection=nothing", 404),
        ("/v1/kb/documents?collection=../x", 404),
        ("/v1/kb/documents?limit=0", 400),
    ],
)
def test_what_is_not_there_is_said_in_a_line(open_: Running, path: str, status: int) -> None:
    names = documents(open_)
    answer = open_.get(path.format(pdf=names["lighthouse.pdf"], md=names["garden.md"]))
    assert answer.status_code == status, answer.text
    assert "\n" not in answer.json()["error"]["message"]


def test_the_file_itself_is_handed_out_while_it_is_what_was_read(own: Running, home: Path) -> None:
    number = documents(own)["garden.md"]
    answer = own.get(f"/v1/kb/documents/{number}/file")
    assert answer.text == NOTES
    assert answer.headers["content-disposition"].startswith("attachment")
    assert "sandbox" in answer.headers["content-security-policy"]
    file = home.parent / "docs" / "garden.md"
    file.unlink()
    try:
        file.symlink_to(home.parent / "pirates" / "plans.md")  # what is put in its place later is nobody's to see
        again = own.get(f"/v1/kb/documents/{number}/file")
        assert again.status_code == 404
        assert "Tortuga" not in again.text
    finally:
        file.unlink()
        file.write_text(NOTES, encoding="utf-8")


# ---- questions


def test_a_search_finds_the_page(open_: Running) -> None:
    found = open_.post("/v1/kb/search", {"query": "how many steps does the keeper climb?", "limit": 3}).json()["data"]
    assert found[0]["document"]["name"] == "lighthouse.pdf"
    assert found[0]["passage"]["places"][0]["page"] == 1
    assert "212 steps" in found[0]["passage"]["text"]
    assert open_.client.get(found[0]["url"]).headers["content-type"] == "image/png"
    filtered = {"query": "steps", "filters": {"names": ["garden*"]}}
    assert {hit["document"]["name"] for hit in open_.post("/v1/kb/search", filtered).json()["data"]} == {"garden.md"}


def test_an_answer_is_quoted_with_its_page(open_: Running) -> None:
    answer = open_.post("/v1/kb/ask", {"question": "What is the fare of the ferry?"}).json()
    assert "12 crowns" in answer["answer"]
    assert answer["how"] == "extractive"
    cited = answer["citations"][0]
    assert (cited["document"]["name"], cited["where"]) == ("lighthouse.pdf", "page 3")
    assert "12 crowns" in cited["quote"]
    assert open_.client.get(cited["url"]).status_code == 200


def test_an_answer_streams_as_events(open_: Running) -> None:
    asked = {"question": "What is the fare of the ferry?", "stream": True}
    told = events(open_.post("/v1/kb/ask", asked).text)
    names = [name for name, _ in told]
    assert (names[0], names[-1]) == ("hits", "reply")
    text = "".join(data["text"] for name, data in told if name == "text")
    assert text == told[-1][1]["answer"]
    assert {data["number"] for name, data in told if name == "citation"} == {
        c["number"] for c in told[-1][1]["citations"]
    }


@pytest.mark.parametrize(
    "body",
    [
        {"question": ""},
        {"question": "x" * 20_001},
        {"question": "x", "collection": "nothing"},
        {"question": "x", "model": "gpt-5"},
        {"question": "x", "filters": {"since": "yesterday"}},
        {"question": "x", "filters": {"pages": [1]}},
        {"question": "x", "passages": 0},
        {"question": 3},
        {"question": "x", "history": [{"role": "tool", "content": "x"}]},
    ],
)
def test_a_wrong_question_is_refused(open_: Running, body: dict[str, Any]) -> None:
    answer = open_.post("/v1/kb/ask", body)
    assert answer.status_code in (400, 404), answer.text


# ---- changing


def test_uploads_are_read_found_corrected_tagged_and_removed(own: Running, tmp_path: Path) -> None:
    pdf = make_pdf(tmp_path / "ship.pdf", ["The ship Estrella carries 40 barrels of rum."]).read_bytes()
    form = {"file": ("../ship.pdf", pdf)}
    refused = own.client.post("/v1/kb/documents", files=form)
    assert refused.status_code == 400, refused.text
    added = own.client.post("/v1/kb/documents", files={"file": ("ship.pdf", pdf)}, data={"tag": "sea"}).json()["data"][
        0
    ]
    assert (added["outcome"], added["done"], added["total"]) == ("added", 1, 1)
    number = documents(own, tag="sea")["ship.pdf"]
    again = own.client.post("/v1/kb/documents", files={"file": ("ship.pdf", pdf)}).json()["data"][0]
    assert again["outcome"] == "unchanged"
    hit = own.post("/v1/kb/search", {"query": "barrels of rum"}).json()["data"][0]
    assert hit["document"]["id"] == number
    chunk = hit["passage"]["id"]
    changed = own.client.patch(
        f"/v1/kb/chunks/{chunk}", json={"text": "The ship Estrella carries 40 barrels of syrup."}
    ).json()
    assert changed["corrected"]
    assert "rum" in changed["original"]
    assert own.post("/v1/kb/search", {"query": "barrels of syrup"}).json()["data"][0]["passage"]["id"] == chunk
    assert own.client.patch(f"/v1/kb/documents/{number}", json={"tags": ["a", "b"]}).json()["tags"] == ["a", "b"]
    assert own.client.delete(f"/v1/kb/documents/{number}").json() == {"removed": "ship.pdf"}
    assert "ship.pdf" not in documents(own)
    assert own.get(f"/v1/kb/chunks/{chunk}").status_code == 404


def test_a_body_with_a_name_is_an_upload_too_and_many_files_are_told_one_by_one(own: Running) -> None:
    put = own.client.post("/v1/kb/documents?name=note.txt", content=b"The anchor weighs 900 pounds.")
    assert put.json()["data"][0]["outcome"] == "added"
    many = [
        ("file", ("a.txt", b"First of the notes.")),
        ("file", ("b.pdf", b"%PDF-1.7 broken")),
        ("file", ("c.txt", b"Third.")),
    ]
    told = events(own.client.post("/v1/kb/documents?stream=true", files=many).text)
    assert [(name, data["file"], data["outcome"]) for name, data in told] == [
        ("progress", "a.txt", "added"),
        ("progress", "b.pdf", "failed"),
        ("progress", "c.txt", "added"),
    ]
    assert told[1][1]["why"]
    assert own.client.post("/v1/kb/documents", content=b"x").status_code == 400
    assert own.client.post("/v1/kb/documents", files={}).status_code == 400


def test_uploads_may_be_larger_than_other_requests_and_not_larger_than_allowed(own: Running) -> None:
    text = ("The harbour is full of boats. " * 10_000).encode()[:300_000]
    assert own.client.post("/v1/kb/documents?name=long.txt", content=text).json()["data"][0]["outcome"] == "added"
    assert own.post("/v1/kb/search", {"query": "x" * 150_000}).status_code == 413
    refused = own.client.post("/v1/kb/documents?name=huge.txt", content=b"x" * 2_100_000)
    assert refused.status_code == 413
    assert "kb_upload_mb" in refused.json()["error"]["message"]


def test_an_upload_goes_to_the_disk_as_it_comes_and_is_gone_with_its_sender(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "home")
    with kb_server(tmp_path / "home", kb_upload_mb=2, max_body_mb=0.1) as own:
        _send_half(own, tmp_path / "home" / "collections" / "default" / "incoming")


def _send_half(own: Running, incoming: Path) -> None:
    address = urlsplit(own.url)
    with socket.create_connection((address.hostname or "", address.port or 0)) as sender:
        head = (
            f"POST /v1/kb/documents?name=slow.txt HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 1900000\r\n\r\n"
        )
        sender.sendall(head.encode() + b"word " * 300_000)
        for _ in range(200):
            sizes = [file.stat().st_size for file in incoming.iterdir()] if incoming.exists() else []
            if sizes and sizes[0] > 1_000_000:
                break
            time.sleep(0.05)
        assert sizes
        assert 1_000_000 < sizes[0] < 1_900_000
    for _ in range(200):
        if not list(incoming.iterdir()):
            break
        time.sleep(0.05)
    assert list(incoming.iterdir()) == []
    assert "slow.txt" not in documents(own)


def test_collections_are_made_and_deleted(own: Running) -> None:
    made = own.post("/v1/kb/collections", {"name": "ships"})
    assert (made.status_code, made.json()["documents"]) == (201, 0)
    assert own.post("/v1/kb/collections", {"name": "Ships"}).status_code == 400
    assert own.post("/v1/kb/collections", {"name": "../x"}).status_code == 400
    own.client.post("/v1/kb/documents?name=anchor.txt&collection=ships", content=b"The anchor weighs 900 pounds.")
    assert set(documents(own, collection="ships")) == {"anchor.txt"}
    assert "anchor.txt" not in documents(own)
    assert own.client.delete("/v1/kb/collections/ships").status_code == 200
    assert own.get("/v1/kb/documents?collection=ships").status_code == 404
    assert own.client.delete("/v1/kb/collections/ships").status_code == 404


def test_a_server_that_only_answers_changes_nothing(open_: Running) -> None:
    number = documents(open_)["garden.md"]
    tries = [
        open_.post("/v1/kb/collections", {"name": "new"}),
        open_.client.post("/v1/kb/documents?name=a.txt", content=b"x"),
        open_.client.delete(f"/v1/kb/documents/{number}"),
        open_.client.patch(f"/v1/kb/documents/{number}", json={"tags": []}),
        open_.post(f"/v1/kb/documents/{number}/read"),
        open_.client.patch("/v1/kb/chunks/1", json={"text": "x"}),
        open_.client.delete("/v1/kb/collections/pirates"),
    ]
    assert {answer.status_code for answer in tries} == {403}
    assert set(documents(open_)) == {"lighthouse.pdf", "garden.md", "灯塔.md"}


# ---- who sees what

KEYS = {"landlubber-key": ["default"], "pirate-key": ["pirates"], "admiral-key": ["*"], "stranger-key": []}


@pytest.fixture(scope="module")
def locked(home: Path) -> Iterator[Running]:
    with kb_server(home, kb_access=KEYS) as server:
        yield server


def as_(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_a_key_sees_its_own_collections_everywhere_and_no_trace_of_others(locked: Running) -> None:
    """The secret's words, its file and its collection's name come to no other key, by any route."""
    assert locked.get("/v1/kb/collections").status_code == 401
    chunk = locked.post(
        "/v1/kb/search", {"query": "Tortuga", "collection": "pirates"}, headers=as_("pirate-key")
    ).json()
    assert "Tortuga" in chunk["data"][0]["passage"]["text"]
    number, passage = chunk["data"][0]["document"]["id"], chunk["data"][0]["passage"]["id"]
    for key in ("landlubber-key", "stranger-key"):
        headers = as_(key)
        answers = [
            locked.get("/v1/kb/collections", headers=headers),
            locked.get("/v1/models", headers=headers),
            locked.get("/v1/models/kb:pirates", headers=headers),
            locked.get("/v1/kb/documents?collection=pirates", headers=headers),
            locked.get(f"/v1/kb/documents/{number}?collection=pirates", headers=headers),
            locked.get(f"/v1/kb/documents/{number}/file?collection=pirates", headers=headers),
            locked.get(f"/v1/kb/documents/{number}/chunks?collection=pirates", headers=headers),
            locked.get(f"/v1/kb/chunks/{passage}?collection=pirates", headers=headers),
            locked.post("/v1/kb/search", {"query": "secret meeting", "collection": "pirates"}, headers=headers),
            locked.post("/v1/kb/search", {"query": "secret meeting of the pirates"}, headers=headers),
            locked.post("/v1/kb/ask", {"question": "When is the secret meeting?"}, headers=headers),
            locked.post("/v1/kb/ask", {"question": "When?", "collection": "pirates"}, headers=headers),
            locked.post("/v1/chat/completions", chat("kb:pirates"), headers=headers),
            locked.post("/v1/chat/completions", chat("kb"), headers=headers),
            locked.client.delete("/v1/kb/collections/pirates", headers=headers),
            locked.post("/v1/kb/collections", {"name": "pirates"}, headers=headers),
            locked.post("/v1/kb/collections", {"name": "mine"}, headers=headers),
            locked.client.post("/v1/kb/documents?collection=pirates&name=a.txt", content=b"x", headers=headers),
            locked.post("/mcp", call("search", query="secret meeting", collection="pirates"), headers=headers | MCP),
            locked.post("/mcp", call("list_documents"), headers=headers | MCP),
        ]
        for answer in answers:
            assert "Tortuga" not in answer.text, answer.request.url
            assert "plans.md" not in answer.text, answer.request.url
            named = "pirates" in answer.text
            asked = "pirates" in str(answer.request.url) + answer.request.content.decode()
            assert not named or asked, answer.text
            assert "midnight" not in answer.text
        assert all(answer.status_code != 500 for answer in answers)


def test_a_collection_that_a_key_may_not_see_looks_like_one_that_is_not_there(locked: Running) -> None:
    hidden, absent = (
        locked.get(f"/v1/kb/documents?collection={name}", headers=as_("landlubber-key"))
        for name in ("pirates", "absentx")
    )
    assert hidden.status_code == absent.status_code == 404
    assert hidden.text.replace("pirates", "absentx") == absent.text


def test_keys_with_collections_see_them(locked: Running) -> None:
    def models(key: str) -> list[str]:
        return [one["id"] for one in locked.get("/v1/models", headers=as_(key)).json()["data"]]

    assert models("landlubber-key") == ["kb"]
    assert models("pirate-key") == ["kb:pirates"]
    assert models("admiral-key") == ["kb", "kb:pirates"]
    assert models("stranger-key") == []
    said = locked.post("/v1/chat/completions", chat("kb:pirates"), headers=as_("pirate-key")).json()
    assert "Tortuga" in said["choices"][0]["message"]["content"]


def chat(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Where is the secret meeting of the pirates?"}]}


MCP = {"accept": "application/json, text/event-stream", "content-type": "application/json"}


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}


def test_access_is_read_from_a_file_and_its_keys_open_the_door(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("k1: [default]\nk2: ['*']\n")
    settings = kb_settings(kb_access=str(file), api_key="k0", host="0.0.0.0")
    assert settings.api_keys == ["k0", "k1", "k2"]
    assert settings.access == {b"k0": [], b"k1": ["default"], b"k2": ["*"]}
    assert kb_settings().access is None
    with pytest.raises(UserError, match="no such file"):
        kb_settings(kb_access=str(tmp_path / "none.yaml"))
    file.write_text("k1: default\n")
    with pytest.raises(UserError, match="kb_access"):
        kb_settings(kb_access=str(file))


def test_a_client_that_hangs_up_stops_its_answer(home: Path) -> None:
    from knowledge.scripted_model import ScriptedModel

    model = ScriptedModel(lambda _: "The keeper climbs 212 steps [1]. " * 50_000)
    with kb_server(home, [model]) as server:
        asked = {"question": "How many steps does the keeper climb?", "stream": True, "follow_ups": 0}
        with server.client.stream("POST", "/v1/kb/ask", json=asked) as answer:
            for number, _ in enumerate(answer.iter_lines()):
                if number > 20:
                    break
        end = time.monotonic() + 10
        while model.at_once and time.monotonic() < end:
            time.sleep(0.02)
        assert model.at_once == 0
        assert server.get("/health").status_code == 200


# ---- sheets, summaries, facts


def test_sheets_are_asked_and_the_query_is_shown(own: Running) -> None:
    put = own.client.post("/v1/kb/documents?name=sales.csv", content=b"region,revenue\nNorth,10\nSouth,32\n")
    assert put.json()["data"][0]["outcome"] == "added"
    asked = {"question": "total revenue by region", "chart": True}
    first = own.post("/v1/kb/table", asked).json()
    assert sorted(first["rows"]) == [["North", 10], ["South", 32]]
    assert first["sql"].upper().startswith("SELECT")
    assert base64.b64decode(first["picture"]).startswith(b"\x89PNG")
    own.client.post("/v1/kb/documents?name=more.csv", content=b"city,people\nOslo,7\n")  # the tables are read anew then
    assert own.post("/v1/kb/table", {"question": "total people"}).json()["rows"] == [[7]]
    assert own.post("/v1/kb/table", {"question": "total", "collection": "pirates"}).status_code == 400


def test_a_summary_comes_whole_or_with_its_progress(open_: Running) -> None:
    asked = {"filters": {"names": ["lighthouse.pdf"]}}
    whole = open_.post("/v1/kb/summary", asked).json()
    assert (whole["how"], bool(whole["summary"])) == ("extractive", True)
    told = events(open_.post("/v1/kb/summary", asked | {"stream": True}).text)
    assert told[-1] == ("summary", whole)
    assert open_.post("/v1/kb/summary", {"filters": {"names": ["nothing"]}}).status_code == 400


def test_facts_are_those_of_the_key_alone(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "home")
    with kb_server(tmp_path / "home", api_key=["anna-key", "bert-key"]) as server:
        made = server.post(
            "/v1/kb/facts", {"text": "I hide the rum in Tortuga.", "tags": ["sea"]}, headers=as_("anna-key")
        )
        assert made.status_code == 201
        number = made.json()["id"]
        assert [fact["text"] for fact in server.get("/v1/kb/facts", headers=as_("anna-key")).json()["data"]] == [
            "I hide the rum in Tortuga."
        ]
        changed = {"text": "I hide the rum at home.", "tags": []}
        for answer in (
            server.get("/v1/kb/facts", headers=as_("bert-key")),
            server.get("/v1/kb/collections", headers=as_("bert-key")),
            server.client.patch(f"/v1/kb/facts/{number}", json=changed, headers=as_("bert-key")),
            server.client.delete(f"/v1/kb/facts/{number}", headers=as_("bert-key")),
            *(
                server.get(f"/v1/kb/documents?collection={entry.name}", headers=as_("bert-key"))
                for entry in (tmp_path / "home" / "collections").glob("personal*")
            ),
        ):
            assert "rum" not in answer.text
            assert "personal" not in answer.text or answer.status_code == 404
        assert server.client.patch(f"/v1/kb/facts/{number}", json=changed, headers=as_("anna-key")).json()["tags"] == []
        assert server.client.delete(f"/v1/kb/facts/{number}", headers=as_("anna-key")).json() == {"forgotten": 1}
        assert server.client.delete(f"/v1/kb/facts/{number}", headers=as_("anna-key")).status_code == 404


def test_many_ask_while_others_add_and_remove(own: Running) -> None:
    """Questions, uploads and deletions side by side: each is answered, none sees half a document."""
    from concurrent.futures import ThreadPoolExecutor

    def work(number: int) -> list[int]:
        name = f"crew-{number}.txt"
        text = f"Sailor number {number} owns {number + 100} parrots and a wooden leg."
        put = own.client.post(f"/v1/kb/documents?name={name}", content=text.encode())
        found = own.post("/v1/kb/search", {"query": f"Sailor number {number} parrots", "filters": {"names": [name]}})
        assert [hit["passage"]["text"] for hit in found.json()["data"]] == [text]
        asked = own.post("/v1/kb/ask", {"question": "What is the fare of the ferry?", "filters": {"names": ["light*"]}})
        assert "12 crowns" in asked.json()["answer"]
        gone = own.client.delete(f"/v1/kb/documents/{put.json()['data'][0]['document']}")
        return [put.status_code, found.status_code, asked.status_code, gone.status_code]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(16))) == [[200] * 4] * 16
    assert not [name for name in documents(own) if name.startswith("crew")]
