"""A question that leans on the conversation ("and in 2023?", 那它呢？) made to stand alone, before anything is searched.

With a model, the model writes it. Without one, a question that leans (it has a word that points back, or says too little) is
searched together with the words of the question before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tinyseek.errors import UserError
from tinyseek.knowledge.answer.prompt import language_of, turns
from tinyseek.knowledge.segment import words
from tinyseek.knowledge.stopwords import content_words
from tinyseek.llm.base import ChatModel, ChatOptions, Message

_ENGLISH = "it its they them their theirs he she his her him these those this former latter same"
_CHINESE = "它 它们 他 他们 她 她们 这 这个 这些 这样 那 那个 那些 那么 其 前者 后者 该 上述 上面 刚才"
_BACK = {"en": frozenset(_ENGLISH.split()), "zh": frozenset(_CHINESE.split())}  # words that point back
_OPENS = {  # words that only go on from something
    "en": re.compile(
        r"(?:and|or|but|so|why|how so|which one|more|go on|continue)\b|(?:what|how) about\b|.*\bthat\W*$", re.I
    ),
    "zh": re.compile(r"还有|另外|为什么[？?]?$|怎么会|继续|然后|详细|具体|.*呢[？?]?$"),
}
_FEW = 2  # words that say something: a question with fewer leans
_LONGEST = 400  # characters of a question that a model may write
_ASKED = {
    "en": "Rewrite the last question so that it can be understood without the conversation: put in what it refers to, keep its "
    "language and its meaning, add nothing else. Write the question alone.\n\n{talk}\n\nLast question: {question}",
    "zh": "改写最后一个问题，使它脱离对话也能看懂：补上所指的内容，保持原来的语言和意思，不要添加别的。"
    "只写出问题。\n\n{talk}\n\n最后一个问题：{question}",
}
_WHO = {"en": {"user": "Person", "assistant": "Answer"}, "zh": {"user": "人", "assistant": "回答"}}


def leans(question: str) -> bool:
    """Whether a question seems to need what was said before."""
    language = language_of(question)
    said = words(question) if language == "zh" else re.findall(r"[a-z]+", question.casefold())
    points_back = not _BACK[language].isdisjoint(said)
    return points_back or bool(_OPENS[language].match(question.strip())) or len(content_words(question)) < _FEW


def rewrite(question: str, history: Sequence[Message], model: ChatModel | None = None) -> str:
    """The question as it should be searched for.

    Args:
        history: the conversation before it, OpenAI's messages.
        model: writes it; none for the plain way. Where its answer is no question of a sensible length, the plain way too.
    """
    said = turns(history)
    if not said or not leans(question):
        return question
    if model is not None:
        written = _written(question, said, model)
        if written:
            return written
    before = next((m["content"] for m in reversed(said) if m["role"] == "user"), "")
    new = {word.casefold() for word in content_words(question)}
    kept = [word for word in _tokens(before) if not set(content_words(word)) <= new]
    return f"{question} {' '.join(kept)}".strip()


def _tokens(text: str) -> list[str]:
    """The words of a question as they are written, without those that say nothing."""
    if language_of(text) == "zh":
        return [text]
    said = set(content_words(text))
    return [word for word in re.findall(r"[\w.%'-]+", text) if set(content_words(word)) & said]


def _written(question: str, said: Sequence[Message], model: ChatModel) -> str | None:
    language = language_of(question)
    talk = "\n".join(f"{_WHO[language][m['role']]}: {m['content'][:600]}" for m in said)
    asked = _ASKED[language].format(talk=talk, question=question)
    options = ChatOptions(temperature=0, max_tokens=200, thinking=False)
    try:
        written = model.complete([{"role": "user", "content": asked}], options).content
    except UserError:  # too long for it, say; the answer itself will tell if it is more
        return None
    written = written.rpartition("</think>")[2].strip()
    written = re.sub(r"^(?:Question|Last question|问题|最后一个问题)\s*[:：]\s*", "", written).strip("\"'“”「」 ")
    return written if written and len(written) <= _LONGEST and "\n" not in written else None
