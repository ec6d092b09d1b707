"""A chat template in Ollama's language (Go's text/template), found by what the Jinja template does and not by how it is written.

Most templates are *linear*: each message is its content between two texts that depend on the role alone. Rendering a few trying
conversations shows those texts; the template put together from them must then render every trying conversation as the original
does, or it is not used. Ours is not linear (reasoning of earlier turns is dropped, tools are called), so it is written out below.

The begin token stands in no Go template: Ollama puts it before every prompt when the GGUF says so (`add_bos_token`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tinyseek.errors import UserError
from tinyseek.text import chat
from tinyseek.text.chat import Message
from tinyseek.text.tokenizer import Tokenizer

# The same conversation as `text.chat.TEMPLATE` writes it. "<think>" stands there as bare text around .Thinking, because that is how
# Ollama learns what to look for in an answer. Whether to think is left to the model, as it is there.
OURS = """\
{{- $last := -1 }}{{ $output := false }}{{ $open := true }}
{{- range $i, $m := .Messages }}{{ if eq $m.Role "user" }}{{ $last = $i }}{{ end }}{{ end }}
{{- .System }}
{{- if .Tools }}{{ if .System }}{{ "\\n\\n" }}{{ end }}## Tools
{{- range .Tools }}{{ "\\n\\n### " }}{{ .Function.Name }}
{{- if .Function.Description }}{{ "\\n" }}{{ .Function.Description }}{{ end }}
{{- "\\nParameters: " }}{{ .Function.Parameters }}
{{- end }}{{ end }}
{{- range $i, $m := .Messages }}{{ $open = true }}
{{- if eq $m.Role "user" }}<｜User｜>{{ $m.Content }}
{{- else if eq $m.Role "tool" }}<｜tool▁output▁begin｜>{{ $m.Content }}<｜tool▁output▁end｜>
{{- else if eq $m.Role "assistant" }}{{ if not $output }}<｜Assistant｜>{{ end }}
{{- if and $m.Thinking (gt $i $last) }}<think>{{ $m.Thinking }}</think>{{ end }}{{ $m.Content }}
{{- if $m.ToolCalls }}<｜tool▁calls▁begin｜>
{{- range $m.ToolCalls }}<｜tool▁call▁begin｜>{{ .Function.Name }}<｜tool▁sep｜>
{{- .Function.Arguments }}<｜tool▁call▁end｜>{{ end }}
{{- "" }}<｜tool▁calls▁end｜>{{ end }}
{{- $open = eq (len (slice $.Messages $i)) 1 | not }}{{ if $open }}<｜end▁of▁sentence｜>{{ end }}
{{- end }}
{{- if ne $m.Role "system" }}{{ $output = eq $m.Role "tool" }}{{ end }}
{{- end }}
{{- if and $open (not $output) }}<｜Assistant｜>{{ end }}"""

CONTINUATION = "{{ .Prompt }}"  # of a model without a chat template


@dataclass(frozen=True)
class Linear:
    """The texts around the contents of a conversation."""

    no_system: str  # how a conversation without a system message begins: perhaps with a default one
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    opening: str  # where the assistant speaks

    def render(self, messages: Sequence[Message], opened: bool) -> str:
        """A conversation, as the original should render it too."""
        around = {"system": self.system, "user": self.user, "assistant": self.assistant}
        parts = [] if messages and messages[0]["role"] == "system" else [self.no_system]
        for message in messages:
            before, after = around[message["role"]]
            parts.append(before + message["content"] + after)
        return "".join(parts) + (self.opening if opened else "")

    def go(self, begin: str) -> str:
        """The same as a Go template.

        Args:
            begin: the begin token, if Ollama puts it there itself.
        """

        def said(text: str) -> str:
            return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""

        head, bare = (text.removeprefix(begin) for text in (self.system[0], self.no_system))
        default = f"{{{{ else }}}}{said(bare)}" if bare else ""
        thinks = "<think>" in self.opening
        thought = "{{ if and $last .Thinking }}<think>{{ .Thinking }}</think>{{ end }}" if thinks else ""
        ended = f"{{{{ if not $last }}}}{said(self.assistant[1])}{{{{ end }}}}" if self.assistant[1] else ""
        lines = (
            f"{{{{- if .System }}}}{said(head)}{{{{ .System }}}}{said(self.system[1])}{default}{{{{ end }}}}",
            "{{- range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}",
            f'{{{{- if eq .Role "user" }}}}{said(self.user[0])}{{{{ .Content }}}}{said(self.user[1])}',
            f'{{{{- else if eq .Role "assistant" }}}}{said(self.assistant[0])}{thought}{{{{ .Content }}}}{ended}',
            "{{- end }}",
            f'{{{{- if and $last (ne .Role "assistant") }}}}{said(self.opening)}{{{{ end }}}}',
            "{{- end }}",
        )
        return "\n".join(lines)


def go_template(tokenizer: Tokenizer, adds_begin: bool, say: Callable[[str], None]) -> str | None:
    """The Go template that writes conversations as the tokenizer's Jinja template does.

    Args:
        adds_begin: whether Ollama puts the begin token before every prompt.
        say: is told what the translation leaves out.
    Returns:
        The template; None, after `say` was told why, where none would be faithful.
    """
    template = tokenizer.chat_template
    if template is None:
        return CONTINUATION
    if template == chat.TEMPLATE:
        return OURS
    if "strftime_now" in template or "date_string" in template:
        say("the chat template writes today's date, which Ollama's language cannot")
        return None
    try:
        linear = _read_off(tokenizer)
        wrong = linear is not None and next((m for m in _TRIALS if not _agrees(tokenizer, linear, m)), None)
    except UserError as error:
        say(f"the chat template cannot be tried out: {error}")
        return None
    if linear is None or wrong:
        say("the chat template does more than put each message between two texts, which cannot be translated")
        return None
    if not _agrees(tokenizer, linear, _turns("S \n", "U \n", "A \n", "U\n ")):
        say("the chat template takes spaces off the ends of messages, which Ollama's language cannot")
    if "tools" in template:
        say("tools are left out of the Modelfile's template; conversations without tools are exact")
    begin = tokenizer.decode([tokenizer.bos_id]) if adds_begin else ""
    return linear.go(begin)


_S, _U, _A, _V, _B = "SYSTEM\ue000", "USER\ue001", "ASSISTANT\ue002", "USER\ue003", "ASSISTANT\ue004"


def _turns(*contents: str) -> list[Message]:
    """Contents to messages; a system message is known by its text."""
    roles = {"S": "system", "U": "user", "A": "assistant"}
    return [{"role": roles[content[0]], "content": content} for content in contents]


_TRIALS: list[list[Message]] = [
    _turns("U1"),
    _turns("S1", "U1"),
    _turns("U1", "A1", "U2"),
    _turns("S1", "U1", "A1", "U2", "A2", "U3"),
    _turns("U two\nlines", "A `code`\n\n- list", "U {{ braces }} \"quotes\" \\ and 中文"),
]  # fmt: skip


def _read_off(tokenizer: Tokenizer) -> Linear | None:
    """The texts around the contents, or none where the contents do not come out one after the other."""

    def around(contents: Sequence[str], opened: bool = False) -> list[str] | None:
        text = tokenizer.render(_turns(*contents), add_generation_prompt=opened)
        parts = []
        for content in contents:
            before, found, text = text.partition(content)
            if not found:
                return None
            parts.append(before)
        return [*parts, text]

    whole, bare, single, opened = (
        around([_S, _U, _A, _V, _B]),
        around([_U, _A, _V, _B]),
        around([_U]),
        around([_U], True),
    )
    if whole is None or bare is None or single is None or opened is None or not opened[1].startswith(single[1]):
        return None
    begins, between, answered, asked, _, ended = whole
    user_after, opening = single[1], opened[1].removeprefix(single[1])
    if not answered.startswith(user_after) or not asked.startswith(ended):
        return None
    user_before = asked.removeprefix(ended)
    if not between.endswith(user_before) or not bare[0].endswith(user_before):
        return None
    return Linear(
        no_system=bare[0].removesuffix(user_before),
        system=(begins, between.removesuffix(user_before)),
        user=(user_before, user_after),
        assistant=(answered.removeprefix(user_after), ended),
        opening=opening,
    )


def _agrees(tokenizer: Tokenizer, linear: Linear, messages: list[Message]) -> bool:
    """Whether both render a conversation alike, as it stands and opened for the assistant."""
    return all(
        linear.render(messages, opened) == tokenizer.render(messages, add_generation_prompt=opened)
        for opened in (False, True)
    )
