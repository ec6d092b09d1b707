"""The knowledge page in a real browser: documents that the tests write, the built-in embedder, a model that follows a script.

`TINYSEEK_PICTURE=docs/pictures/knowledge.png pytest tests/studio/test_kb_page.py -k citation` makes the guide's picture.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from fake_knowledge import KEYS, write_pdf, write_sheet
from studio_browser import Served, ask, done, nothing_sticks_out, tab
from studio_payloads import PAYLOADS

LAST = ".message.assistant >> nth=-1"


@pytest.fixture
def visit(read: Any) -> Any:
    return read


def collection(page: Any, name: str) -> None:
    """A new, empty collection, its documents shown."""
    page.click('[data-act="make"]')
    page.wait_for_selector(".make-text:focus")
    page.fill(".make-text", name)
    page.press(".make-text", "Enter")
    page.wait_for_selector(f'.top h1 >> text="{name}"')
    page.wait_for_selector('.top [data-name="documents"].on')


def upload(page: Any, *files: Path) -> None:
    page.set_input_files("#kb-files", files)


def drawn(page: Any) -> None:
    """The page's picture is there."""
    page.wait_for_function(
        "[...document.querySelectorAll('.viewer img')].every((at) => at.complete && at.naturalWidth)"
    )


def test_a_citation_is_clicked_and_the_passage_is_marked(visit: Any) -> None:
    page = visit(viewport={"width": 1280, "height": 860}).open()
    ask(page, "When was the light made automatic, and how often does it flash?")
    text = page.inner_text(f"{LAST} >> .prose")
    assert text.startswith("The light was made automatic on 31 March 1994")
    assert page.locator(f"{LAST} >> button.cite").count() == 2
    assert "did not hold: 1" in page.inner_text(f"{LAST} >> .facts")  # the model's [2] says nothing of the kind
    page.locator("button.cite").first.click()
    page.wait_for_selector(".viewer .mark")
    assert page.inner_text(".viewer h2") == "skerryvore.pdf"
    assert page.input_value(".viewer .page-text") == "3"
    assert page.inner_text(".viewer .cited").split("\n") == ["page 3", "The light was made automatic on 31 March 1994."]
    drawn(page)
    mark, sheet = page.locator(".viewer .mark").bounding_box(), page.locator(".viewer .sheet").bounding_box()
    assert mark["height"] < 0.03 * sheet["height"]  # that sentence's line, not its paragraph
    assert 0.3 < mark["width"] / sheet["width"] < 0.8
    pane = page.locator(".viewer .original").bounding_box()
    assert pane["y"] < mark["y"] < pane["y"] + pane["height"]  # it is in sight
    shown = page.locator(".viewer .mark").screenshot()
    assert len(set(_pixels(shown))) > 20  # there are letters in it
    if picture := os.environ.get("TINYSEEK_PICTURE"):
        take_picture(visit(viewport={"width": 1280, "height": 860}).open(), picture)
    page.locator(f"{LAST} >> .sources:not(.plain) button").click()  # the card leads there too
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(".viewer .page-text[value='2']", state="attached")
    page.wait_for_selector(".viewer .mark", state="detached")
    page.keyboard.press("Escape")
    page.wait_for_selector(".viewer", state="hidden")
    assert page.evaluate("document.activeElement.closest('.sources') !== null")  # the focus is where it was
    page.reload()
    page.wait_for_selector("button.cite")
    assert page.inner_text(f"{LAST} >> .prose") == text
    page.click(".follow button >> nth=0")
    page.wait_for_function("document.querySelectorAll('.message.assistant').length == 2")
    done(page)
    assert page.locator(".message.user").last.inner_text() == "How high is the tower of Skerryvore?"
    page.wait_for_selector(f"{LAST} >> .follow")
    assert page.locator(".follow").count() == 1  # under the last answer alone


def take_picture(page: Any, file: str) -> None:
    """The guide's picture: an answer from two documents, and the first one's page."""
    ask(page, "How did the light of Skerryvore change over the years, and what do its repairs cost?")
    page.locator("button.cite").nth(1).click()
    page.wait_for_selector(".viewer .mark")
    drawn(page)
    page.mouse.move(640, 600)
    page.wait_for_timeout(500)
    page.screenshot(path=file)


def _pixels(png: bytes) -> list[Any]:
    import io

    from PIL import Image

    return list(Image.open(io.BytesIO(png)).convert("L").getdata())


def test_quotes_without_a_model_and_what_is_not_found(visit: Any) -> None:
    page = visit(locale="zh-CN").open()
    page.select_option(".who", "")
    ask(page, "大雾时雾号多久响一次？")
    assert "每九十秒一次" in page.inner_text(f"{LAST} >> .prose")
    page.locator("button.cite").first.click()
    page.wait_for_selector(".viewer .paper mark")
    assert "能见度低于两海里时必须鸣响雾号" in page.locator(".viewer .paper p:has(mark) mark").first.inner_text()
    assert "每周一清洗透镜" not in "".join(page.locator(".viewer .paper mark").all_inner_texts())
    ask(page, "谁赢得了2031年的国际象棋世界杯？")
    assert "文档中没有这个问题的答案" in page.inner_text(".nothing")
    assert page.locator(f"{LAST} >> .looked li").count() == 3
    assert page.locator(f"{LAST} >> button.cite").count() == 0
    page.locator(f"{LAST} >> .looked li button").first.click()
    page.wait_for_selector(".viewer h2")


def test_search_tells_scores_and_a_sheet_has_its_cells_marked(visit: Any) -> None:
    page = visit().open()
    tab(page, "search")
    page.fill("#kb-search", "repairs of Dhu Heartach")
    page.press("#kb-search", "Enter")
    page.wait_for_selector(".hits li")
    first = page.locator(".hits li").first
    assert first.locator(".head b").inner_text() == "upkeep.xlsx"
    assert first.locator(".place").inner_text() == "sheet Upkeep, B3:E7"
    assert {"repairs", "Dhu", "Heartach"} <= {*first.locator("mark").all_inner_texts(), "repairs"}
    words, meaning, score = (float(text) for text in first.locator("dd").all_inner_texts())
    assert words > 0
    assert 0.7 < meaning < 1
    assert 0 < score <= 1
    first.locator(".head").click()
    page.wait_for_selector(".viewer table.grid .hit")
    assert page.locator(".viewer .grid .ruler").all_inner_texts() == ["", "B", "C", "D", "E", "3", "4", "5", "6", "7"]
    assert "655" in page.locator(".viewer .grid .hit").all_inner_texts()
    page.click('[data-act="how"][data-name="lexical"]')
    page.wait_for_function("document.querySelector('.scores').textContent.includes('–')")
    page.fill("#kb-search", "   ")
    page.press("#kb-search", "Enter")
    page.wait_for_selector(".hits", state="detached")


def test_files_are_brought_in_and_each_that_fails_says_why(visit: Any, tmp_path: Path) -> None:
    visitor = visit()
    page = visitor.open()
    collection(page, "papers")
    broken, empty = tmp_path / "broken.pdf", tmp_path / "empty.txt"
    broken.write_bytes(b"%PDF-1.7\nnothing of the kind")
    empty.write_bytes(b"")
    large = tmp_path / "large.json"
    large.write_text(
        '{"tide": "' + " " * (5 << 19) + '"}', "utf-8"
    )  # pieces, each cut in two until the server takes it
    upload(page, write_pdf(tmp_path / "report.pdf"), broken, empty)
    page.wait_for_function("document.querySelectorAll('.lines .bad').length == 2")
    page.wait_for_selector(".documents .name >> text=report.pdf")
    lines = {
        line.locator("b").inner_text(): line.locator("span").inner_text() for line in page.locator(".lines .bad").all()
    }
    assert "damaged" in lines["broken.pdf"]
    assert "empty" in lines["empty.txt"]
    row = page.locator("tr[data-document]").first
    cells = row.locator("td").all_inner_texts()
    assert cells[1:4] == ["PDF", "3", cells[3]]
    assert re.fullmatch(r"[\d.]+ kB", cells[3])
    row.locator('[data-act="tags"]').click()
    page.wait_for_selector(".tag-text:focus")
    page.fill(".tag-text", "history, 灯塔")
    page.press(".tag-text", "Enter")
    page.wait_for_selector(".tag >> text=灯塔")
    page.click('[data-act="forget"]')
    page.wait_for_selector(".lines .bad", state="detached")
    upload(page, large, write_sheet(tmp_path / "costs.xlsx"))
    page.wait_for_selector(".documents .name >> text=large.json")
    refused = [trouble for trouble in visitor.troubles if "413" in trouble]
    assert 1 <= len(refused) < len(visitor.troubles) + 1 <= 3
    visitor.troubles.clear()
    assert "2.62 MB" in page.locator("tr", has_text="large.json").inner_text()
    page.wait_for_selector(".documents .name >> text=costs.xlsx")
    page.click(".tag >> text=history")
    page.wait_for_function("document.querySelectorAll('tr[data-document]').length == 1")
    page.click('[data-act="scope"]')  # ask these alone
    page.wait_for_selector(".scope >> text=report.pdf")
    ask(page, "What did the repairs of Rinns of Islay cost?")
    assert page.locator(f"{LAST} >> .looked li b").all_inner_texts().count("costs.xlsx") == 0
    tab(page, "documents")
    page.fill(".find-documents", "")
    page.wait_for_function("document.querySelectorAll('tr[data-document]').length == 3")
    page.locator('[data-act="remove"]').first.click()
    page.wait_for_selector(".confirm >> text=costs.xlsx")
    page.keyboard.press("Escape")
    page.wait_for_selector(".confirm", state="detached")
    page.locator('[data-act="remove"]').first.click()
    page.click('[data-act="really-remove"]')
    page.wait_for_function("document.querySelectorAll('tr[data-document]').length == 2")
    page.hover(".list .here")
    page.click('.list .here [data-act="drop"]')
    page.click('[data-act="really-drop"]')
    page.wait_for_selector('.top h1 >> text="default"')
    assert page.locator('.list [data-act="collection"]').all_inner_texts() == ["default"]


def test_a_passage_is_put_right_and_found_by_its_new_words(visit: Any, tmp_path: Path) -> None:
    page = visit().open()
    collection(page, "mistakes")
    upload(page, write_pdf(tmp_path / "scan.pdf"))
    page.click(".documents .name >> text=scan.pdf")
    page.wait_for_selector(".viewer img")
    page.click('.viewer [data-act="widen"]')
    page.wait_for_selector(".viewer .passage")
    assert page.locator(".viewer .passage").count() == 3
    assert page.locator(".viewer .sheet .box").count() >= 1
    page.locator(".viewer .passage .head").nth(1).click()  # its page comes up, its paragraphs are marked
    page.wait_for_selector(".viewer .page-text[value='2']", state="attached")
    assert page.locator(".viewer .mark").count() == 2
    page.locator('.viewer [data-act="correct"]').nth(1).click()
    page.wait_for_selector(".chunk-text:focus")
    text = page.input_value(".chunk-text")
    page.fill(".chunk-text", text.replace("clockwork", "zorkmid <b>engine</b>"))
    page.click('.viewer [data-act="save-edit"]')
    page.wait_for_selector(".badge")
    assert "zorkmid <b>engine</b>" in page.locator(".viewer .passage").nth(1).inner_text()
    page.keyboard.press("Escape")
    tab(page, "search")
    page.fill("#kb-search", "zorkmid")
    page.press("#kb-search", "Enter")
    page.wait_for_selector(".hits li mark >> text=zorkmid")
    page.locator(".hits .head").first.click()
    page.click('.viewer [data-name="passages"]')
    page.locator('.viewer .passage.here [data-act="correct"]').click()
    page.click('[data-act="restore"]')
    page.wait_for_function("document.querySelector('.passage.here').textContent.includes('clockwork')")


def test_folders_only_for_who_sits_here(visit: Any, browser: Any, tmp_path: Path) -> None:
    write_pdf(tmp_path / "a.pdf")
    page = visit().open()
    collection(page, "folders")
    page.fill("#kb-path", "not/whole")
    page.press("#kb-path", "Enter")
    page.wait_for_selector(".snack >> text=whole path")
    page.fill("#kb-path", str(tmp_path))
    page.press("#kb-path", "Enter")
    page.wait_for_selector(".documents .name >> text=a.pdf")
    assert str(tmp_path) in page.inner_text(".folders")
    (tmp_path / "b.md").write_text("# More\n\nOf the same.", encoding="utf-8")
    page.click('[data-act="look-again"]')
    page.wait_for_selector(".documents .name >> text=b.md")
    far = visit(extra_http_headers={"X-Forwarded-For": "203.0.113.9"}).open("/kb/in/folders")
    tab(far, "documents")
    far.wait_for_selector(".documents .name >> text=a.pdf")
    assert far.locator("#kb-path").count() == 0
    assert far.locator(".folder").count() == 0
    far.evaluate(  # and not by asking the server itself either
        """() => { const at = document.createElement("button"); at.dataset.act = "add-path"; at.id = "sneak";
        const path = document.createElement("div"); path.className = "path"; const field = document.createElement("input");
        field.value = "/etc"; path.append(field, at); document.querySelector(".documents-list").append(path); at.click(); }"""
    )
    far.wait_for_selector(".snack >> text=where the server runs")


def test_documents_that_carry_script_run_nothing(visit: Any, tmp_path: Path) -> None:
    visitor = visit()
    page = visitor.open()
    page.evaluate("document.addEventListener('securitypolicyviolation', (e) => (window.broke = e.violatedDirective))")
    collection(page, "hostile")
    notes = tmp_path / "<img src=x onerror=window.hit=1>.txt"
    notes.write_text("A word on skullduggery.\n\n" + "\n\n".join(PAYLOADS), encoding="utf-8")
    table = tmp_path / "cells.csv"
    rows = [f'"{payload.replace(chr(34), chr(34) * 2)}",skullduggery' for payload in PAYLOADS]
    table.write_text("payload,what\n" + "\n".join(rows), encoding="utf-8")
    upload(page, notes, table)
    page.wait_for_function("document.querySelectorAll('tr[data-document]').length == 2")
    page.fill(".find-documents", "<img src=x onerror=window.hit=1>")
    page.wait_for_function("document.querySelectorAll('tr[data-document]').length == 1")
    tab(page, "search")
    page.fill("#kb-search", "skullduggery <script>window.hit=1</script>")
    page.press("#kb-search", "Enter")
    page.wait_for_selector(".hits li")
    for number in range(2):
        page.locator(".hits .head").nth(number).click()
        page.wait_for_selector(".viewer .paper")
        page.click('.viewer [data-name="passages"]')
        page.wait_for_selector(".viewer .passage")
        page.keyboard.press("Escape")
    page.select_option(".who", "")
    tab(page, "ask")
    ask(page, "What is said on skullduggery?")
    page.locator("button.cite, .looked button").first.click()
    page.wait_for_selector(".viewer .paper")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hit") is None
    assert page.evaluate("window.broke") is None  # it never came to the policy
    inside = ".viewer, .thread, .hits, .documents-list"
    assert (
        page.evaluate(
            f"[...document.querySelectorAll('{inside}')].flatMap((at) => [...at.querySelectorAll("
            "'script, iframe, object, style, form, base, meta, link, img, math')]).length"
        )
        == page.locator(".viewer .sheet img").count()
    )
    page.evaluate("document.querySelector('.paper').innerHTML += '<img src=\"data:,\" onerror=\"window.hit = 1\">'")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hit") is None
    assert page.evaluate("window.broke") == "script-src-attr"  # the wall behind the wall is there on this page too
    assert all("inline event handler" in trouble for trouble in visitor.troubles)
    visitor.troubles.clear()


def test_keys_see_their_own_collections_alone(browser: Any, desk: dict[str, Served]) -> None:
    locked = desk["locked"]
    locked.wait()

    def enter(key: str) -> Any:
        page = browser.new_context(locale="en-US").new_page()
        page.set_default_timeout(15_000)
        page.goto(locked.url)
        page.fill("input[name=key]", key)
        page.press("input[name=key]", "Enter")
        page.wait_for_url("**/kb")
        page.wait_for_selector("#ask", state="attached")
        page.wait_for_function("window.did_handshake")
        return page

    every, theirs = enter(KEYS[0]), enter(KEYS[1])
    assert every.locator('.list [data-act="collection"]').first.inner_text() == "default"
    assert theirs.locator('.list [data-act="collection"]').count() == 0
    assert "skerryvore" not in theirs.content()
    statuses = {
        page: [
            page.evaluate("(path) => fetch(path).then((got) => got.status)", path)
            for path in ("/kb/pages/default/2/1", "/kb/files/default/2", "/kb/files/default/999")
        ]
        for page in (every, theirs)
    }
    assert statuses[every] == [200, 200, 404]
    assert statuses[theirs] == [404, 404, 404]
    refused = theirs.evaluate(
        """() => fetch(`/kb/upload/default?upload=${"0".repeat(32)}&name=x.txt&at=0&size=1`, { method: "POST", body: "x" })
        .then((got) => got.json().then((said) => [got.status, said.error]))"""
    )
    assert refused[0] == 400
    assert "no such collection" in refused[1]
    theirs.goto(f"{locked.url}/kb/in/default?document=2")
    theirs.wait_for_selector(".snack >> text=no collection")
    assert "Tiree" not in theirs.content()
    ask(every, "When did the fire break out?")
    address = every.url.removeprefix(locked.url)
    theirs.goto(locked.url + address)
    theirs.wait_for_selector(".snack >> text=gone")
    assert "seventh" not in theirs.content()
    for page in (every, theirs):
        page.context.close()


def test_names_of_uploads_that_lead_elsewhere_are_refused(visit: Any) -> None:
    visitor = visit()
    page = visitor.open()
    said = page.evaluate(
        """async () => { const out = []; for (const [upload, name, at, size] of [
            ["0".repeat(32), "../../x.txt", 0, 1], ["0".repeat(32), "/etc/x.txt", 0, 1], ["../x", "x.txt", 0, 1],
            ["0".repeat(32), "x.txt", -1, 1], ["0".repeat(32), "x.txt", 0, 900000000000], ["1".repeat(32), "x.txt", 7, 8]]) {
            const asked = new URLSearchParams({ upload, name, at, size });
            const got = await fetch(`/kb/upload/default?${asked}`, { method: "POST", body: "x" });
            out.push([got.status, (await got.json()).error ?? ""]); } return out; }"""
    )
    assert [status for status, _ in said] == [400, 400, 400, 400, 400, 409]
    assert "is no name for a file" in said[0][1]
    assert "MB" in said[4][1]
    assert all("Failed to load resource" in trouble for trouble in visitor.troubles)
    visitor.troubles.clear()


def test_an_answer_can_be_stopped_and_outlives_a_reload(visit: Any) -> None:
    page = visit().open()
    ask(page, "What does the fire say, slowly, of the seventh floor?", wait=False)
    page.wait_for_selector(f"{LAST} >> text=word word word")
    page.reload()
    page.wait_for_selector(".message.writing")
    page.wait_for_selector(".stop >> visible=true")
    page.press("#ask", "Escape")
    done(page)
    assert "stopped" in page.inner_text(f"{LAST} >> .facts")
    page.locator('.list [data-act="open"]').first.hover()
    page.locator('.list [data-act="delete"]').first.click()
    page.wait_for_selector(".welcome")
    page.click('[data-act="undo"]')
    page.wait_for_selector('.list [data-act="open"] >> text=slowly')


def test_a_phone(visit: Any) -> None:
    page = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True).open()

    nothing_sticks_out(page)
    ask(page, "When was the light made automatic?")
    nothing_sticks_out(page)
    page.locator("button.cite").first.tap()
    page.wait_for_selector(".viewer .mark")
    drawn(page)
    page.wait_for_timeout(150)
    nothing_sticks_out(page)
    mark = page.locator(".viewer .mark").bounding_box()
    assert 0 <= mark["x"] < 390  # it was scrolled to, sideways too
    page.tap('.viewer [data-name="passages"]')
    page.wait_for_selector(".passage.here")
    nothing_sticks_out(page)
    page.tap('.viewer [data-act="close-panel"]')
    for name in ("documents", "search", "facts"):
        page.tap(f'.top [data-name="{name}"]')
        nothing_sticks_out(page)
    page.tap('[data-act="drawer"]')
    page.wait_for_selector(".side >> visible=true")


def test_by_keyboard_and_by_ear(visit: Any) -> None:
    page = visit().open()
    page.keyboard.type("When was the light made automatic?")  # the box has the focus
    page.keyboard.press("Enter")
    page.wait_for_selector("button.cite")
    done(page)
    page.focus("button.cite")
    page.keyboard.press("Enter")
    page.wait_for_selector(".viewer h2:focus")  # whoever listens hears what was opened
    drawn(page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, a, input, select, textarea, img, [role=tab]")]
        .filter((at) => at.checkVisibility())
        .filter((at) => !(at.getAttribute("aria-label") || at.alt || at.textContent.trim() || at.labels?.length))
        .map((at) => at.outerHTML.slice(0, 120))"""
    )
    assert nameless == []
    assert page.get_attribute(".viewer img", "alt") == "skerryvore.pdf, page 3"
    assert page.get_attribute("button.cite >> nth=0", "aria-label") == "Source 1: skerryvore.pdf, page 3"
    assert page.get_attribute('.viewer [role="tab"] >> nth=0', "aria-selected") == "true"
    seen = set()
    for _ in range(60):  # Tab reaches all of it, and leaves nothing
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.dataset.act ?? document.activeElement.id ?? ''"))
    assert {
        "cite",
        "close-panel",
        "pane",
        "step",
        "widen",
        "tab",
        "make",
        "collection",
        "theme",
        "language",
        "ask",
    } <= seen


def test_dark_and_chinese(visit: Any) -> None:
    page = visit().open()

    def ground() -> str:
        colour: str = page.evaluate("getComputedStyle(document.querySelector('.viewer, .studio')).backgroundColor")
        return colour

    light = ground()
    page.click('[data-act="language"]')
    page.wait_for_selector('.top [role="tab"] >> text=提问')
    assert page.get_attribute("html", "lang") == "zh-CN"
    page.click('[data-act="theme"]')
    page.click('[data-act="theme"]')
    page.wait_for_function("document.documentElement.dataset.theme == 'dark'")
    assert ground() != light


def test_the_chat_page_leads_here_and_back(server: Served, browser: Any) -> None:
    server.wait()
    page = browser.new_context(locale="en-US").new_page()
    page.goto(server.url)
    page.click("text=Ask my documents")
    page.wait_for_url("**/kb")
    page.wait_for_selector("text=Which documents shall it know?")
    page.click("text=Back to the chat")
    page.wait_for_selector("text=New chat")
    page.context.close()


def test_a_page_left_alone_costs_nothing(visit: Any, desk: dict[str, Served]) -> None:
    page = visit().open()
    page.wait_for_timeout(400)
    before = desk["open"].cpu_seconds()
    began = time.monotonic()
    time.sleep(2)
    assert (desk["open"].cpu_seconds() - before) / (time.monotonic() - began) < 0.04
