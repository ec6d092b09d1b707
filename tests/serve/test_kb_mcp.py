"""The MCP server, by the protocol's own client: over standard input and output, and over HTTP behind keys."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from http_models import Running
from kb_models import kb_server, make_home
from knowledge.memory_index import HashEmbedder

from tinyseek.knowledge.answer.options import AnswerSettings
from tinyseek.knowledge.shelf import Shelf

pytest.importorskip("mcp")
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from tinyseek.serve.mcp import Documents

Work = Callable[[Client], Awaitable[None]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("kb"))


@pytest.fixture(scope="module")
def shelf(home: Path) -> Iterator[Shelf]:
    shelf = Shelf(home, embedder=HashEmbedder(), read_only=True)
    yield shelf
    shelf.close()


def in_process(shelf: Shelf, work: Work, *collections: str) -> None:
    """Do something with a client of a server in this process."""
    from concurrent.futures import ThreadPoolExecutor

    async def main() -> None:
        with ThreadPoolExecutor(2) as threads:
            server = Documents(shelf, AnswerSettings(found_from=0), threads, collections).server()
            async with Client(server) as client:
                await work(client)

    anyio.run(main)


def over_http(server: Running, key: str, work: Work) -> None:
    async def main() -> None:
        headers = {"authorization": f"Bearer {key}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=30) as http,
            Client(streamable_http_client(f"{server.url}/mcp", http_client=http)) as client,
        ):
            await work(client)

    anyio.run(main)


def text_of(result: Any) -> str:
    return "".join(part.text for part in result.content)


# ---- tools


def test_every_tool_says_what_it_takes_and_changes_nothing(shelf: Shelf) -> None:
    async def work(client: Client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {"search", "ask", "ask_tables", "read_document", "list_documents"}
        for tool in tools.values():
            assert tool.description
            assert tool.annotations is not None
            assert tool.annotations.read_only_hint
            assert "collection" in tool.input_schema["properties"]
        assert tools["search"].input_schema["required"] == ["query"]

    in_process(shelf, work)


def test_search_ask_read_and_list(shelf: Shelf, home: Path) -> None:
    async def work(client: Client) -> None:
        found = await client.call_tool("search", {"query": "how many steps does the keeper climb?"})
        assert "[1] lighthouse.pdf, page" in text_of(found)
        assert found.structured_content is not None
        assert "212 steps" in found.structured_content["hits"][0]["passage"]["text"]
        answer = await client.call_tool("ask", {"question": "What is the fare of the ferry?"})
        assert "12 crowns" in text_of(answer)
        assert "lighthouse.pdf, page" in text_of(answer)
        read = await client.call_tool("read_document", {"document": "lighthouse.pdf", "pages": "2"})
        assert "whale oil" in text_of(read)
        assert "--- page" in text_of(read)
        listed = await client.call_tool("list_documents", {})
        assert "3 documents in the collection default; collections: default, pirates" in text_of(listed)
        assert "garden.md" in text_of(listed)
        assert str(home.parent) not in str([found, answer, read, listed])

    in_process(shelf, work)


def test_a_long_document_is_read_in_pieces_that_make_it_whole(home: Path) -> None:
    text = "\n\n".join(f"Paragraph {number} tells of the sea and of ship number {number}." for number in range(2000))
    shelf = Shelf(home, embedder=HashEmbedder())
    base = shelf.make(b"", "long")
    assert base.add_bytes("long.txt", text.encode()).outcome == "added"
    pieces: list[str] = []

    async def work(client: Client) -> None:
        start: int | None = 0
        while start is not None:
            asked = {"document": "long.txt", "collection": "long", "start": start}
            plain = (await client.call_tool("read_document", asked)).structured_content
            assert plain is not None
            assert len(plain["text"]) < 25_000
            pieces.append(plain["text"])
            start = plain["next"]
        resource = await client.read_resource(f"kb://long/{base.index.by_name('long.txt')[0].id}")
        assert resource.contents[0].text.count("Paragraph") == 2000  # type: ignore[union-attr]

    in_process(shelf, work)
    shelf.delete(b"", "long")
    shelf.close()
    assert len(pieces) > 2
    whole = "\n".join(pieces)
    assert [f"ship number {number}." in whole for number in range(2000)] == [True] * 2000
    assert whole.count("Paragraph") == 2000


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("search", {}, "query"),
        ("search", {"query": ""}, "query"),
        ("search", {"query": "x", "collection": "nothing"}, "no such collection"),
        ("search", {"query": "x", "limit": 1000}, "limit"),
        ("read_document", {"document": "none.pdf"}, "list_documents"),
        ("read_document", {"document": "lighthouse.pdf", "pages": "all"}, "pages"),
        ("read_document", {"document": "99999999999999999999"}, "list_documents"),
        ("ask", {"question": "x" * 5000}, "question"),
    ],
)
def test_what_cannot_be_done_is_said(shelf: Shelf, tool: str, arguments: dict[str, Any], words: str) -> None:
    async def work(client: Client) -> None:
        result = await client.call_tool(tool, arguments)
        assert result.is_error
        assert words in text_of(result)

    in_process(shelf, work)


def test_documents_are_resources(shelf: Shelf) -> None:
    async def work(client: Client) -> None:
        listed = (await client.list_resources()).resources
        names = {resource.name: resource for resource in listed}
        assert set(names) == {"lighthouse.pdf", "garden.md", "灯塔.md", "plans.md"}
        read = await client.read_resource(names["garden.md"].uri)
        assert "The barrel holds 300 litres of rain water." in read.contents[0].text  # type: ignore[union-attr]
        chinese = await client.read_resource(names["灯塔.md"].uri)
        assert "二百一十二级" in chinese.contents[0].text  # type: ignore[union-attr]
        for wrong in ("kb://default/999", "kb://nothing/1", "file:///etc/passwd", "kb://default/..", "kb://"):
            with pytest.raises(MCPError):
                await client.read_resource(wrong)
        assert (await client.list_resource_templates()).resource_templates[
            0
        ].uri_template == "kb://{collection}/{document}"

    in_process(shelf, work)


def test_a_server_of_one_collection_shows_no_other(shelf: Shelf) -> None:
    async def work(client: Client) -> None:
        listed = await client.call_tool("list_documents", {})  # without a name: the one that there is
        assert "plans.md" in text_of(listed)
        assert "default" not in text_of(listed)
        hidden = await client.call_tool("search", {"query": "keeper", "collection": "notes"})
        assert hidden.is_error
        assert {resource.name for resource in (await client.list_resources()).resources} == {"plans.md"}
        with pytest.raises(MCPError):
            await client.read_resource("kb://default/1")

    in_process(shelf, work, "pirates")


# ---- ways in


def test_over_http_a_key_sees_its_own(home: Path) -> None:
    async def land(client: Client) -> None:
        listed = await client.call_tool("list_documents", {})
        assert "lighthouse.pdf" in text_of(listed)
        hidden = await client.call_tool("search", {"query": "secret meeting", "collection": "pirates"})
        assert hidden.is_error
        assert "Tortuga" not in str(hidden)
        assert {r.name for r in (await client.list_resources()).resources} == {"lighthouse.pdf", "garden.md", "灯塔.md"}
        with pytest.raises(MCPError):
            await client.read_resource("kb://pirates/1")

    async def sea(client: Client) -> None:
        found = await client.call_tool("search", {"query": "secret meeting", "collection": "pirates"})
        assert "Tortuga" in text_of(found)

    with kb_server(home, kb_access={"land": ["default"], "sea": ["pirates"]}) as locked:
        over_http(locked, "land", land)
        over_http(locked, "sea", sea)
        assert locked.post("/mcp", {}).status_code == 401
        assert locked.post("/mcp", {}, headers={"host": "evil.example"}).status_code == 403
        assert locked.post("/mcp", {}, headers={"authorization": "Bearer land"}).status_code in (400, 406)


def test_over_standard_input_and_output(home: Path) -> None:
    """The command itself, as a program would start it; without a search, so that no weights are read."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = ["-m", "tinyseek", "kb", "mcp", "--home", str(home), "-c", "default"]
    server = StdioServerParameters(command=sys.executable, args=arguments, env=environment)

    async def main() -> None:
        async with Client(server) as client:
            read = await client.call_tool("read_document", {"document": "garden.md"})
            assert "The roses are cut in March." in text_of(read)
            assert not read.is_error

    anyio.run(main)


# ---- tables


def test_sheets_are_asked_by_a_query_that_is_told(tmp_path: Path) -> None:
    home = make_home(tmp_path / "kb")
    own = Shelf(home, embedder=HashEmbedder())
    sales = "Region,Revenue\nNorth,800\nSouth,1250\nNorth,900\n"
    assert own.base(b"").add_bytes("sales.csv", sales.encode()).outcome == "added"
    assert own.base(b"").add_bytes("costs.csv", b"Region,Cost\nNorth,1\nSouth,2\n").outcome == "added"

    async def work(client: Client) -> None:
        asked = {"question": "total revenue by region", "names": ["sales*"]}
        found = await client.call_tool("ask_tables", asked)
        assert not found.is_error
        assert found.structured_content["rows"] == [["North", 1700], ["South", 1250]]
        assert "GROUP BY" in found.structured_content["sql"]
        assert found.structured_content["cells"][0][1] == "B2, B4"
        text = found.content[0].text
        assert "| North | 1700 |" in text
        assert "From sales.csv, A1:B4" in text
        none = await client.call_tool("ask_tables", {"question": "total revenue", "names": ["nothing*"]})
        assert none.is_error
        assert "no table to ask" in none.content[0].text
        hidden = await client.call_tool("ask_tables", {"question": "total revenue", "collection": "secret"})
        assert hidden.is_error
        assert "no such collection" in hidden.content[0].text
        wrong = await client.call_tool("ask_tables", {"question": ""})
        assert wrong.is_error

    try:
        in_process(own, work)
    finally:
        own.close()
