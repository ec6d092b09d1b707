"""The chat page in a real browser, over a model that says what it is told to say."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from studio_payloads import KEY, PAYLOADS

from tinyseek.studio.markdown import blocks

LAST = ".message.assistant >> nth=-1"


def ask(page: Any, text: str, wait: bool = True) -> None:
    """Type a question and send it; wait for the whole answer."""
    count = page.locator(".message.assistant").count()
    page.fill("#ask", text)
    page.press("#ask", "Enter")
    page.wait_for_function(f"document.querySelectorAll('.message.assistant').length > {count}")
    if wait:
        done(page)


def done(page: Any) -> None:
    page.wait_for_selector(".composer:not(.busy)")
    page.wait_for_selector(".message.writing", state="detached")


def prose(page: Any) -> str:
    text: str = page.locator(LAST).locator(".prose").last.inner_text()
    return text


def click(page: Any, act: str, within: str = "body") -> None:
    page.locator(within).locator(f'[data-act="{act}"]').last.click()


def test_a_conversation(visit: Any) -> None:
    page = visit().open()
    assert page.locator(".tries button").count() == 4
    page.fill("#ask", "one")
    page.press("#ask", "Shift+Enter")
    page.type("#ask", "two")
    assert page.input_value("#ask") == "one\ntwo"
    page.press("#ask", "Enter")
    page.wait_for_selector(f"{LAST} >> text=two")
    done(page)
    assert prose(page) == "You said: one\ntwo"
    assert page.input_value("#ask") == ""
    assert re.search(r"/c/[0-9a-f]{32}$", page.url)
    facts = page.inner_text(f"{LAST} >> .facts")
    assert re.search(r"\d+ tokens.*\d+ read, \d+ of them from memory", facts.replace("\n", " "))
    ask(page, "think about it")
    thought = page.locator(LAST).locator(".thought")
    assert re.match(r"Thought for 0\.\d s", thought.locator("summary").inner_text())
    assert not thought.locator(".inner").is_visible()
    thought.locator("summary").click()
    assert thought.locator(".inner").inner_text() == "Let me think about it."
    ask(page, "fail")
    assert "the server broke off" in page.inner_text(".failed")
    assert prose(page) == "Half of"
    page.fill("#ask", "   ")
    page.press("#ask", "Enter")
    assert page.locator(".message.user").count() == 3


def test_streaming_stop_and_reload(visit: Any) -> None:
    page = visit().open()
    ask(page, "slow 200", wait=False)
    page.wait_for_selector("text=word3")
    seen = prose(page)
    page.wait_for_selector("text=word12")
    assert len(prose(page)) > len(seen)
    assert page.locator(".message.writing").count() == 1
    page.fill("#ask", "too early")
    page.press("#ask", "Enter")
    assert page.input_value("#ask") == "too early"
    page.press("#ask", "Escape")
    done(page)
    assert "stopped" in page.inner_text(f"{LAST} >> .facts")
    said = prose(page)
    assert said.startswith("word0 word1")
    assert "word150" not in said
    page.reload()
    page.wait_for_selector("text=word12")
    assert prose(page) == said
    assert page.input_value("#ask") == "too early"  # a draft outlives a reload

    ask(page, "slow 40", wait=False)
    page.wait_for_selector(f"{LAST} >> text=word5")
    page.reload()
    page.wait_for_selector(".message.writing")  # it goes on
    done(page)
    assert prose(page).split() == [f"word{number}" for number in range(40)]


def test_other_answers_edits_and_their_branches(visit: Any) -> None:
    visitor = visit()
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = visitor.open()
    ask(page, "first")
    ask(page, "second")
    click(page, "again")
    page.wait_for_selector("text=2/2")
    done(page)
    assert page.locator(".message").count() == 4
    page.locator(".message.user").first.hover()
    page.locator('.message.user [data-act="edit"]').first.click()
    page.wait_for_selector(".edit-text:focus")
    assert page.input_value(".edit-text") == "first"
    page.fill(".edit-text", "changed")
    page.press(".edit-text", "Enter")
    page.wait_for_selector("text=You said: changed")
    done(page)
    assert page.locator(".message").count() == 2
    assert page.inner_text(".message.user .turns") == "2/2"
    page.locator('.message.user [data-act="turn"]').first.click()
    page.wait_for_selector("text=You said: second")
    assert page.locator(".message").count() == 4
    click(page, "copy")
    page.wait_for_selector(".snack >> text=Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "You said: second"
    page.locator(".message.user").last.hover()
    page.locator('.message.user [data-act="edit"]').last.click()
    page.wait_for_selector(".edit-text:focus")
    page.press(".edit-text", "Escape")
    page.wait_for_selector(".edit-text", state="detached")
    ask(page, "say ```python\nx = 1\n```")
    page.click('[data-act="copy-code"]')
    page.wait_for_selector(".done")
    assert page.evaluate("navigator.clipboard.readText()").strip() == "x = 1"


def test_the_list_of_conversations(visit: Any) -> None:
    page = visit().open()
    for text in ("about lighthouses", "about ships"):
        click(page, "new")
        page.wait_for_selector(".welcome")
        ask(page, text)
    assert page.locator(".list .open").all_inner_texts() == ["about ships", "about lighthouses"]
    page.locator(".list .item").last.hover()
    page.locator('.list [data-act="rename"]').last.click()
    page.wait_for_selector(".rename-text:focus")
    page.fill(".rename-text", "Beacons <b>")
    page.press(".rename-text", "Enter")
    page.wait_for_selector(".list .open >> text=Beacons <b>")
    page.fill(".find input", "lighthouses")  # it is still in a message
    page.wait_for_function("document.querySelectorAll('.list .open').length == 1")
    page.locator(".list .open").click()
    page.wait_for_selector("text=You said: about lighthouses")
    assert page.inner_text(".top h1") == "Beacons <b>"
    page.fill(".find input", "")
    page.wait_for_function("document.querySelectorAll('.list .open').length == 2")
    page.locator(".list .item.here").hover()
    page.locator('.list .here [data-act="delete"]').click()
    page.wait_for_selector(".welcome")
    assert page.locator(".list .open").all_inner_texts() == ["about ships"]
    page.click('[data-act="undo"]')
    page.wait_for_selector("text=You said: about lighthouses")
    assert page.locator(".list .open").count() == 2
    page.go_back()
    page.wait_for_selector(".welcome")


def test_tabs_share_and_visitors_do_not(visit: Any) -> None:
    ann, bob = visit(), visit()
    first = ann.open()
    ask(first, "a secret of Ann's")
    second = ann.open(first.url.removeprefix(ann.server.url))
    assert prose(second) == "You said: a secret of Ann's"
    ask(first, "and more", wait=False)
    second.wait_for_selector("text=You said: and more")
    done(first)
    ask(second, "from the other tab", wait=False)
    first.wait_for_selector("text=You said: from the other tab")
    stranger = bob.open(first.url.removeprefix(ann.server.url))
    assert stranger.inner_text(".snack") == "This conversation is gone."
    assert stranger.locator(".list .open").count() == 0
    assert "secret" not in stranger.content()


def test_settings_reach_the_model(visit: Any) -> None:
    page = visit().open()
    page.click('.top [data-act="settings"]')
    page.fill('[data-field="system"]', "Answer like a pirate.")
    page.locator('[data-field="temperature"][type="range"]').fill("1.3")
    assert page.inner_text('.field[data-of="temperature"] .now') == "1.3"
    page.fill('[data-field="max_tokens"]', "99")
    page.click('[data-act="choose"] >> text=off')
    page.click("details.more summary")
    page.fill('[data-field="seed"]', "-4")
    page.fill('[data-field="tools"]', "no json")
    page.press('[data-field="tools"]', "Tab")
    page.wait_for_function("document.querySelector('.field[data-of=tools] .bad').textContent.includes('no JSON')")
    assert "greater than or equal to 0" in page.inner_text('.field[data-of="seed"] .bad')
    page.fill('[data-field="seed"]', "4")
    page.fill('[data-field="tools"]', '[{"name": "weather"}]')
    page.press('[data-field="tools"]', "Tab")
    page.wait_for_function("document.querySelector('.field[data-of=tools] .bad').textContent == ''")
    ask(page, "options")
    assert json.loads(prose(page)) == [1.3, 99, 4, False, "Answer like a pirate.", 1]
    page.click('.field[data-of="temperature"] [data-act="reset"]')
    page.wait_for_selector('.field.unset[data-of="temperature"]')
    page.reload()
    page.wait_for_selector(".message")
    ask(page, "options")
    assert json.loads(prose(page)) == [None, 99, 4, False, "Answer like a pirate.", 1]


def test_a_conversation_is_had_with_the_model_that_was_chosen(visit: Any) -> None:
    page = visit().open()
    assert "a fake model" in page.inner_text(".foot")
    page.click('.top [data-act="settings"]')
    page.click('.field[data-of="model"] >> text=another')
    page.wait_for_selector('.field[data-of="model"] [aria-pressed="true"] >> text=another')
    ask(page, "hello")
    assert prose(page) == "To another you said: hello"
    assert "another" in page.inner_text(".foot")
    click(page, "look")
    page.wait_for_selector(".answer-tokens")
    page.reload()
    page.wait_for_selector(".message")
    assert "another" in page.inner_text(".foot")


def test_tools_are_shown_and_answered(visit: Any) -> None:
    page = visit().open()
    ask(page, "tool Oslo")
    assert page.inner_text(".call .head b") == "weather"
    assert json.loads(page.inner_text(".call pre")) == {"city": "Oslo"}
    page.fill(".reply-text", "rain <b>")
    page.press(".reply-text", "Enter")
    page.wait_for_selector("text=The tool says rain <b>.")
    assert page.locator(".call pre").last.inner_text() == "rain <b>"
    ask(page, "fail")
    click(page, "again", ".failed")
    page.wait_for_selector("text=2/2")


def test_two_languages_two_themes(visit: Any) -> None:
    page = visit().open()

    def ground() -> str:
        colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return colour

    light = ground()
    assert page.get_attribute("html", "lang") == "en"
    page.click('[data-act="language"]')
    page.wait_for_selector("text=想聊点什么？")
    assert page.get_attribute("html", "lang") == "zh-CN"
    page.click('[data-act="theme"]')  # light
    page.click('[data-act="theme"]')  # dark
    page.wait_for_selector('[data-act="theme"][title="主题：深色"]')
    dark = ground()
    assert dark != light
    page.reload()
    page.wait_for_selector("text=想聊点什么？")
    assert ground() == dark
    page.click('[data-act="theme"]')  # as the system again
    page.wait_for_function(f"getComputedStyle(document.body).backgroundColor == {light!r}")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"getComputedStyle(document.body).backgroundColor == {dark!r}")


def test_a_phone(visit: Any) -> None:
    page = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True).open()

    def nothing_sticks_out() -> None:
        wide = page.evaluate(
            """() => [document.documentElement, ...document.querySelectorAll(".talk, .scroll, .panel, .panel .body, .thread")]
            .filter((at) => at.checkVisibility() && at.scrollWidth > at.clientWidth + 1).map((at) => at.className)"""
        )
        assert wide == []

    nothing_sticks_out()
    page.fill(
        "#ask", "say " + "wide" * 80 + "\n\n```\n" + "code " * 60 + "\n```\n\n|" + "cell|" * 20 + "\n|" + "-|" * 20
    )
    page.tap('[data-act="send"]')
    page.wait_for_selector(".prose table")
    done(page)
    nothing_sticks_out()
    assert not page.locator(".side").is_visible()
    page.tap('[data-act="drawer"]')
    page.wait_for_selector(".list .open >> visible=true")
    page.tap(".veil", position={"x": 370, "y": 500})
    page.wait_for_selector(".side", state="hidden")
    page.tap('.top [data-act="inside"]')
    page.wait_for_selector(".answer-tokens")
    page.locator(".answer-tokens .tok").nth(3).tap()
    page.wait_for_selector(".experts")
    nothing_sticks_out()
    page.tap('[data-act="close-panel"]')
    page.tap('.top [data-act="settings"]')
    page.wait_for_selector(".field")
    nothing_sticks_out()


def test_markdown_that_carries_script_runs_nothing(visit: Any) -> None:
    page = visit().open()
    page.evaluate("document.addEventListener('securitypolicyviolation', (e) => (window.broke = e.violatedDirective))")
    whole = "\n\n".join(PAYLOADS)
    ask(page, "say " + whole)
    ask(page, "<img src=x onerror=window.hit=1><script>window.hit=1</script>")
    page.reload()
    page.wait_for_selector(".message.assistant")
    page.mouse.move(600, 400)
    page.locator(".prose a").first.hover()
    page.wait_for_timeout(200)
    assert page.evaluate("window.hit") is None
    assert page.evaluate("window.broke") is None  # it never came to the policy
    for link in page.locator(".prose a[href]").all():
        assert link.get_attribute("rel") == "noopener noreferrer nofollow"
    assert (
        page.locator(".prose :is(img, script, iframe, object, style, svg, form, input, base, meta, link)").count() == 0
    )
    page.locator(".list .item").hover()  # and as a title
    click(page, "rename", ".list")
    page.wait_for_selector(".rename-text:focus")
    page.fill(".rename-text", "<img src=x onerror=window.hit=1>")
    page.press(".rename-text", "Enter")
    page.wait_for_selector(".top h1 >> text=<img")
    assert page.evaluate("window.hit") is None

    bare = page.context.new_page()  # without the policy
    bare.set_content("".join("".join(blocks(payload)) for payload in PAYLOADS))
    bare.wait_for_timeout(100)
    assert bare.evaluate("window.hit") is None


def test_the_policy_stops_what_slips_through(visit: Any) -> None:
    visitor = visit()
    page = visitor.open()
    page.evaluate(
        """() => { const at = document.createElement("div"); document.body.append(at);
        at.innerHTML = '<img src="data:," onerror="window.hit = 1"><a id=bad onclick="window.hit = 1">x</a>';
        document.getElementById("bad").click(); }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.hit") is None
    assert len(visitor.troubles) == 2
    assert all("inline event handler" in trouble for trouble in visitor.troubles)
    visitor.troubles.clear()


def test_a_look_inside(visit: Any) -> None:
    page = visit().open()
    ask(page, "The lighthouse stands on the rock. 灯塔立在礁石上。")
    answer = prose(page)
    page.click('.top [data-act="inside"]')
    page.wait_for_selector(".answer-tokens")
    chips = page.locator(".answer-tokens .tok")
    assert "".join(chips.all_inner_texts()) == answer
    assert int(page.locator(".bigs b").first.inner_text()) == chips.count()
    chips.nth(4).click()
    page.wait_for_selector(".bars")

    def shares(selector: str) -> list[float]:
        return [float(text.replace("%", "").strip(" <>")) for text in page.locator(selector).all_inner_texts()]

    values = shares(".bars .value")
    assert len(values) in (7, 8)
    assert values[:7] == sorted(values[:7], reverse=True)
    assert 0 < sum(values) <= 101
    assert page.inner_text(".chosen dd >> nth=0") == page.inner_text(".bars .value.it")
    layers = page.locator(".guess").all_inner_texts()
    assert [text.split()[0] for text in layers] == ["1", "2", "3"]
    assert layers[-1].split()[1:] == page.locator(".bars .name").first.inner_text().split()
    cells = page.locator(".experts .hit").all_inner_texts()
    assert len(cells) == 2 * 2  # two sparse layers, two of eight experts each
    assert all(99 <= int(first) + int(second) <= 101 for first, second in zip(cells[::2], cells[1::2], strict=True))
    weights = [
        float(chip.get_attribute("title").replace("%", "").strip(" <>"))
        for chip in page.locator(".attended .tok").all()
    ]
    assert sum(weights) == pytest.approx(100, abs=4)
    assert page.locator(".attended .tok").last.get_attribute("class").endswith("here")
    before = page.inner_html(".attended")
    page.locator('[data-act="layer"]').nth(2).click()
    page.wait_for_function(f"document.querySelector('.attended').innerHTML != {json.dumps(before)}")
    page.locator('[data-act="head"]').nth(1).click()
    page.wait_for_selector('[data-act="head"].on >> text=1')
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".answer-tokens .tok.here[data-token]")
    page.wait_for_function(
        "[...document.querySelectorAll('.answer-tokens .tok')].findIndex((at) => at.matches('.here')) == 5"
    )
    assert "reused" in page.inner_text(".keys >> nth=0")
    assert "256 free" in page.inner_text(".keys >> nth=1")
    page.keyboard.press("Escape")
    page.wait_for_selector(".panel", state="hidden")
    assert prose(page) == answer
    assert not page.locator(".answer-tokens").is_visible()


def test_a_key_is_asked_for_once(browser: Any, locked: Any) -> None:
    page = browser.new_page()
    page.goto(locked.url)
    page.fill("input[name=key]", "wrong")
    page.press("input[name=key]", "Enter")
    page.wait_for_selector("input[name=key]")
    assert page.locator("#ask").count() == 0
    page.fill("input[name=key]", KEY)
    page.press("input[name=key]", "Enter")
    page.wait_for_selector("#ask")
    ask(page, "let me in")
    assert KEY not in page.content()
    assert KEY not in page.url
    page.reload()
    page.wait_for_selector("text=You said: let me in")
    page.close()


def test_a_page_left_alone_costs_nothing(visit: Any, server: Any) -> None:
    page = visit().open()
    ask(page, "hello")
    page.wait_for_timeout(300)
    before = server.cpu_seconds()
    began = time.monotonic()
    time.sleep(2)
    assert (server.cpu_seconds() - before) / (time.monotonic() - began) < 0.04
