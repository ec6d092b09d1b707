"""The words that say nothing of what a text is about, in English and Chinese; and which of the two a text is written in."""

from __future__ import annotations

import re
from functools import lru_cache

from tinyseek.knowledge.segment import words

_ENGLISH = """
a about above after again all also although am an and another any are as at be because been before being below between both but
by can cannot could did do does doing done down during each either else ever every few for from further get gets give given go
had has have having he her here hers him his how however i if in into is it its itself just least less let like made make many
may me might more most much must my need neither no nor not now of off often on once one only onto or other others our out over
own per perhaps please quite rather same say says see seem shall she should show since so some still such tell than that the
their them then there these they this those through thus to together too toward under until up upon us use used using very via
was we well were what whatever when where whether which while who whom whose why will with within without would yes yet you your
"""
_CHINESE = """
的 了 是 在 和 与 及 或 或者 以及 有 没有 不 也 都 就 而 但 但是 因为 所以 如果 那么 则 被 把 将 对 对于 关于 从 到 向 由 以 为
为了 之 其 它 他 她 它们 他们 我 我们 你 你们 您 这 那 这个 那个 这些 那些 哪 哪个 哪些 哪里 哪儿 什么 怎么 怎样 如何 为什么
为何 何 何时 何处 谁 多少 几 几个 吗 呢 吧 啊 呀 么 着 过 得 地 很 更 最 非常 比较 可以 能 能够 会 要 应该 需要 请 请问 说 讲
告诉 一 一个 一种 一些 上 下 中 里 内 外 时 时候 后 前 之后 之前 其中 并 并且 而且 还 又 再 只 才 等 所 于 即 是否 有没有 是不是
进行 通过 使用 用 做 作为 来 去 给 让 使 比 跟 同 于是 此 该 各 每 某 另 另外 且 若 虽然 然而 不过 无法 关系 介绍 一下 个 是什么
多大 多长 多久 哪一
"""
_HAN = re.compile("[\u3400-\u9fff]")
_SPELT = re.compile(r"[^\W\d_\u3400-\u9fff][^\s\u3400-\u9fff]*")  # what is written in letters, up to a blank


@lru_cache(maxsize=1)
def stopwords() -> frozenset[str]:
    """As `segment.words` cuts and stems them."""
    return frozenset(
        word for text in (_ENGLISH, _CHINESE) for listed in text.split() for word in (listed, *words(listed))
    )


def content_words(text: str) -> list[str]:
    """The different words of a text that say what it is about, in order; all of them where there is no other."""
    found = list(dict.fromkeys(words(text)))
    return [word for word in found if word not in stopwords()] or found


def is_chinese(text: str) -> bool:
    """Whether a text is Chinese rather than written in letters: two Chinese characters count as much as one spelt word."""
    return not text.isascii() and len(_HAN.findall(text)) > 2 * len(_SPELT.findall(text))
