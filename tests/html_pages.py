"""Reading the pages that we write: nothing in them may run or be fetched, and every phrase has its translation."""

import ast
import re
from html.parser import HTMLParser

HOSTILE = '</p><script>alert("x")</script><img src=http://evil.example/a.png onerror=alert(1)>\u202e\x1b[31m\x00 & "\''
VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Every element, attribute and piece of text of a page; refuses elements that do not nest."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.names, self.attributes, self.words, self.open = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def said(self):
        return " ".join(self.words)


def safe(page):
    """The page as read, after checking that nothing in it runs or is fetched."""
    reader = Reader(page)
    assert not {"script", "img", "iframe", "object", "embed", "link", "form", "a", "base"} & set(reader.names)
    for name, value in reader.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "href", "srcset", "action", "data", "xlink:href")
        assert "url(" not in (value or "")
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "http" not in re.sub(r"http-equiv", "", page.replace("http://evil.example", ""))
    assert any(value.startswith("default-src 'none'") for _, value in reader.attributes)
    return reader


def phrases_of(*files):
    """Every text that is given to `t`, put together as Python does."""
    calls = [
        node for file in files for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call)
    ]
    said = [call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "t" and call.args]
    return {word.value for word in said if isinstance(word, ast.Constant)}
