"""What the knowledge page can do beside answering from text, in a real browser: tables, summaries, what is remembered."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fake_knowledge import KEYS
from studio_browser import Served, ask, done, nothing_sticks_out, tab

LAST = ".message.assistant >> nth=-1"


def choose(page: Any, task: str) -> None:
    page.click(f'[data-act="task"][data-name="{task}"]')
    page.wait_for_selector(f'[data-act="task"][data-name="{task}"].on')


def test_a_question_over_a_sheet_shows_query_chart_and_cells(read: Any) -> None:
    page = read().open()
    page.select_option(".who", "")
    choose(page, "tables")
    ask(page, "repairs by lighthouse")
    assert page.locator(f"{LAST} >> tbody tr").all_inner_texts() == [
        "Ardnamurchan\t95",
        "Dhu Heartach\t870",
        "Rinns of Islay\t140",
        "Skerryvore\t1250",
    ]
    assert page.locator(f"{LAST} >> .chart .name").all_inner_texts()[3] == "Skerryvore"
    widths = [bar.bounding_box()["width"] for bar in page.locator(f"{LAST} >> .chart .track i").all()]
    assert [round(width / widths[3], 2) for width in widths] == [0.08, 0.70, 0.11, 1.0]
    page.click(f"{LAST} >> .query summary")
    assert "GROUP BY" in page.inner_text(f"{LAST} >> .query pre")
    ask(page, "total wages")
    assert page.inner_text(f"{LAST} >> .result") == "total Wages: 2125"
    assert page.locator(f"{LAST} >> .chart").count() == 0
    page.locator(f"{LAST} >> .from-cells").click()
    page.wait_for_selector(".viewer .grid .hit")
    assert page.locator(".viewer .grid .hit").all_inner_texts() == ["640", "655", "420", "410"]
    page.keyboard.press("Escape")
    page.wait_for_selector(".viewer", state="hidden")
    page.reload()  # it is kept with the conversation
    page.wait_for_selector(".chart")
    assert page.locator(".from-cells").count() == 9
    ask(page, "who is the tallest keeper of unicorns?")
    page.wait_for_selector(f"{LAST} >> .reckoned")


def test_an_answer_out_of_a_sheet_offers_to_work_it_out(read: Any) -> None:
    page = read().open()
    page.select_option(".who", "")
    ask(page, "What did the repairs of Dhu Heartach cost?")
    page.click(f"{LAST} >> .reckon button")
    page.wait_for_selector(".reckoned")
    done(page)
    assert page.locator(".message.user").last.inner_text() == "What did the repairs of Dhu Heartach cost?"


def test_a_summary_tells_how_far_it_is_and_leads_to_its_places(read: Any) -> None:
    page = read().open()
    tab(page, "documents")
    page.click('[data-document]:has-text("skerryvore.pdf") [data-act="summarise"]')
    page.wait_for_selector(".summing >> text=/\\d of \\d parts summarised/")
    done(page)
    assert page.inner_text(".message.user .said") == "Summary of skerryvore.pdf"
    assert page.inner_text(f"{LAST} >> .prose").startswith("How high is the tower")  # what the fake model says
    assert "scripted" in page.inner_text(f"{LAST} >> .facts")
    page.click(f"{LAST} >> .looked summary")
    page.click(f"{LAST} >> .parts .leads")
    page.wait_for_selector(".viewer .mark")
    page.keyboard.press("Escape")
    page.select_option(".who", "")
    choose(page, "summary")
    page.click('[data-act="send"]')  # all of the collection, about nothing above all
    page.wait_for_selector(".sentences")
    done(page)
    assert page.locator(".message.user .said").last.inner_text() == "Summary of default"
    assert len(set(page.locator(".sentences .leads").all_inner_texts())) > 2
    page.fill("#ask", "electricity and oil")
    page.press("#ask", "Enter")
    page.wait_for_function("document.querySelectorAll('.sentences').length == 2")
    done(page)
    assert "colza oil" in page.locator(".sentences").last.inner_text()
    page.locator(".sentences").last.locator("li", has_text="colza").locator(".leads").click()
    page.wait_for_selector(".viewer .cited >> text=colza")
    page.wait_for_selector(".viewer .page-text[value='3']", state="attached")


def test_a_summary_that_is_stopped_stays_stopped(read: Any) -> None:
    page = read().open()
    choose(page, "summary")
    page.fill("#ask", "the doctor, and nobody else")
    page.click('[data-act="send"]')
    page.wait_for_selector(".summing")
    page.click('[data-act="stop"]')
    done(page)
    assert "stopped" in page.inner_text(f"{LAST} >> .facts")
    page.click(f'{LAST} >> [data-act="retry"]')
    page.wait_for_selector(f"{LAST} >> .prose >> text=How high")
    done(page)
    assert page.locator(".message.assistant").count() == 1


def test_facts_are_remembered_shown_edited_and_forgotten(read: Any) -> None:
    page = read().open()
    tab(page, "facts")
    page.wait_for_selector("text=Nothing is remembered yet.")
    tab(page, "ask")
    ask(page, "Remember that the key lies under <b>the third stone</b>.")
    assert page.inner_text(f"{LAST} >> .prose") == "Remembered: the key lies under <b>the third stone</b>."
    assert page.locator(f"{LAST} >> .looked").count() == 0  # nothing was looked up
    tab(page, "facts")
    page.wait_for_selector(".fact")
    for text in ("The boat leaves at seven.", "工位是4B", "The dog is called Fog."):
        page.fill(".new-fact", text)
        page.press(".new-fact", "Enter")
        page.wait_for_selector(f'.fact >> text="{text}"')
    assert page.input_value(".new-fact") == ""
    page.fill(".find-facts", "boat")
    page.wait_for_function("document.querySelectorAll('.fact').length == 1")
    page.click('[data-act="tag-fact"]')
    page.wait_for_selector(".tag-text:focus")
    page.fill(".tag-text", "travel, 旅行")
    page.press(".tag-text", "Enter")
    page.wait_for_selector(".fact-list .tag >> text=旅行")
    page.click('[data-act="edit-fact"]')
    page.wait_for_selector(".fact-text:focus")
    page.fill(".fact-text", "The boat leaves at eight.")
    page.keyboard.press("Escape")
    page.wait_for_selector('.fact >> text="The boat leaves at seven."')
    page.click('[data-act="edit-fact"]')
    page.fill(".fact-text", "The boat leaves at eight.")
    page.click('[data-act="save-fact"]')
    page.wait_for_selector('.fact >> text="The boat leaves at eight."')
    page.click('[data-act="forget-fact"]')
    page.wait_for_selector(".fact-list >> text=Nothing found.")
    page.click('.snack [data-act="bring-back"]')
    page.wait_for_selector('.fact >> text="The boat leaves at eight."')
    assert page.locator(".fact-list .tag").all_inner_texts() == ["travel", "旅行"]
    page.fill(".find-facts", "")
    page.wait_for_function("document.querySelectorAll('.fact').length == 4")
    page.fill(".new-fact", "x" * 2000)
    page.click('[data-act="remember"]')
    page.wait_for_function("document.querySelectorAll('.fact').length == 5")


def enter(browser: Any, locked: Served, key: str) -> Any:
    """The page behind the door, opened with a key."""
    locked.wait()
    page = browser.new_context(locale="en-US").new_page()
    page.set_default_timeout(15_000)
    page.goto(locked.url)
    page.fill("input[name=key]", key)
    page.press("input[name=key]", "Enter")
    page.wait_for_url("**/kb")
    page.wait_for_function("window.did_handshake")
    return page


def test_a_socket_speaks_for_pages_of_its_own_key_alone(browser: Any, desk: dict[str, Served]) -> None:
    every, theirs = (enter(browser, desk["locked"], key) for key in KEYS)
    again = enter(browser, desk["locked"], KEYS[0])
    # What every's page sends when a tab is clicked; then the other key's socket, which learnt it, says the same.
    every.evaluate(
        """() => { const emit = window.socket.emit.bind(window.socket); window.said = [];
        window.socket.emit = (name, ...rest) => { window.said.push([name, ...rest]); return emit(name, ...rest); }; }"""
    )
    tab(every, "search")
    every.wait_for_selector('.top [data-name="search"].on')
    clicked = every.evaluate("JSON.stringify(window.said.filter(([name]) => name == 'event').at(-1)[1])")
    assert "client_id" in clicked
    tab(every, "documents")
    every.wait_for_selector('.top [data-name="documents"].on')
    say = "(said) => window.socket.emit('event', JSON.parse(said))"
    theirs.evaluate(say, clicked)
    theirs.wait_for_timeout(700)
    assert every.locator('.top [data-name="documents"].on').count() == 1  # nothing happened
    again.evaluate(say, clicked)  # the same key may: this is what would have happened
    every.wait_for_selector('.top [data-name="search"].on')
    for page in (every, theirs, again):
        page.context.close()


def test_each_key_has_facts_of_its_own(browser: Any, desk: dict[str, Served]) -> None:
    shown = []
    for key in KEYS:
        page = enter(browser, desk["locked"], key)
        tab(page, "facts")
        page.wait_for_selector("text=Nothing is remembered yet.")
        page.fill(".new-fact", f"my key begins with {key[:5]}")
        page.press(".new-fact", "Enter")
        page.wait_for_selector(".fact")
        shown.append(page.locator(".fact").all_inner_texts())
        page.context.close()
    assert shown == [[f"my key begins with {key[:5]}"] for key in KEYS]


def test_all_of_it_on_a_phone_in_the_dark_in_chinese(read: Any, tmp_path: Path) -> None:
    page = read(
        viewport={"width": 360, "height": 780}, has_touch=True, is_mobile=True, color_scheme="dark", locale="zh-CN"
    ).open()
    page.tap('[data-act="drawer"]')
    page.select_option(".who", "")
    page.tap('[data-act="close-drawer"] >> visible=true')
    page.tap('[data-act="task"][data-name="tables"]')
    ask(page, "每个Lighthouse的Repairs总和")
    nothing_sticks_out(page)
    page.locator(f"{LAST} >> .from-cells").last.tap()
    page.wait_for_selector(".viewer .hit")
    nothing_sticks_out(page)
    page.tap('[data-act="close-panel"]')
    page.tap('[data-act="task"][data-name="summary"]')
    page.tap('[data-act="send"]')
    page.wait_for_selector(".sentences")
    done(page)
    nothing_sticks_out(page)
    page.tap('.top [data-name="facts"]')
    page.fill(".new-fact", "很长的一句话" * 60)
    page.tap('[data-act="remember"]')
    page.wait_for_selector(".fact")
    page.locator('[data-act="edit-fact"]').first.tap()
    page.wait_for_selector(".fact-text")
    nothing_sticks_out(page)
    said = page.inner_text(".studio")
    assert not re.search(r"Summar|Remember|Tables|Forget", said)
    page.screenshot(path=str(tmp_path / "facts.png"))
