"""Conversations: writing them as one text with a chat template, turning them into ids and a loss mask, and answers back.

One idea carries the safety of it: only the template may write control tokens. Before a conversation is rendered, every control
token that stands inside a content is broken by a guard character, which is taken out again after the control tokens have been
found. So a user who types `<｜Assistant｜>` has typed eleven letters and some signs, whatever template is in use.

The template is DeepSeek's (R1 and V3.1; see `TEMPLATE`).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from tinyseek.errors import UserError
from tinyseek.text.conversations import Message, to_messages
from tinyseek.text.examples import Examples, read_conversations

if TYPE_CHECKING:
    import jinja2

    from tinyseek.text.tokenizer import Tokenizer

__all__ = [  # how conversations come out of files is told in conversations.py and examples.py
    "TEMPLATE",
    "Answer",
    "Examples",
    "Message",
    "decode_answer",
    "encode_completion",
    "encode_conversation",
    "encode_examples",
    "encode_prompt",
    "read_conversations",
    "render_template",
    "split_reasoning",
    "to_messages",
]

# System text follows the first token without a role token, the tools after it; then
#   <｜User｜>question<｜Assistant｜>answer<｜end▁of▁sentence｜>
# An assistant message may hold reasoning: under "reasoning_content", or in its content as "<think>...</think>answer". It is kept
# after the last user message (across the tool calls of that turn) and dropped from the turns before, as in R1. Tool calls and
# outputs are V3.1's: no text between the control tokens, and the answer after an output has no <｜Assistant｜>.
# {% generation %} encloses what the assistant said, for loss masks. A turn whose reasoning was dropped is not what it said, so it
# stands outside: training on it would teach the model to answer hard questions without thinking (see `encode_examples`). So does a
# message of "weight" 0, which is how OpenAI's fine-tuning files mark what should not be learnt.
TEMPLATE = """\
{%- set ns = namespace(system='', tools=none, last_user=-1, after_output=false) -%}
{%- if tools -%}{%- set ns.tools = tools -%}{%- endif -%}
{%- for message in messages -%}
  {%- if message['content'] and message['content'] is not string -%}
    {{- raise_exception('the content of a message must be a string') -}}
  {%- endif -%}
  {%- if message['role'] in ['system', 'developer'] -%}
    {%- if message['content'] -%}
      {%- set ns.system = ns.system + ('\\n\\n' if ns.system else '') + message['content'] -%}
    {%- endif -%}
    {%- if message['tools'] -%}{%- set ns.tools = message['tools'] -%}{%- endif -%}
  {%- elif message['role'] == 'user' -%}
    {%- set ns.last_user = loop.index0 -%}
  {%- elif message['role'] not in ['assistant', 'tool'] -%}
    {{- raise_exception('unknown role: ' + message['role']|string) -}}
  {%- endif -%}
{%- endfor -%}
{{- bos_token + ns.system -}}
{%- if ns.tools -%}
  {{- '\\n\\n' if ns.system else '' -}}
  {{- '## Tools' -}}
  {%- for tool in ns.tools -%}
    {%- set function = tool['function'] if tool['function'] else tool -%}
    {{- '\\n\\n### ' + function['name'] -}}
    {{- '\\n' + function['description'] if function['description'] else '' -}}
    {{- '\\nParameters: ' + (function['parameters'] or {})|tojson -}}
  {%- endfor -%}
{%- endif -%}
{%- for message in messages -%}
  {%- set content = message['content'] or '' -%}
  {%- if message['role'] == 'user' -%}
    {{- '<｜User｜>' + content -}}
  {%- elif message['role'] == 'tool' -%}
    {{- '<｜tool▁output▁begin｜>' + content + '<｜tool▁output▁end｜>' -}}
  {%- elif message['role'] == 'assistant' -%}
    {%- set reasoning = message['reasoning_content'] or none -%}
    {%- if reasoning is none and content.startswith('<think>') and '</think>' in content -%}
      {%- set reasoning = content.split('</think>')[0][7:] -%}
      {%- set content = content[reasoning|length + 15:] -%}
    {%- endif -%}
    {%- set dropped = reasoning is not none and loop.index0 < ns.last_user -%}
    {%- set calls = namespace(text='') -%}
    {%- for call in message['tool_calls'] or [] -%}
      {%- set arguments = call['function']['arguments'] -%}
      {%- set arguments = arguments if arguments is string else arguments|tojson -%}
      {%- set calls.text = calls.text + '<｜tool▁call▁begin｜>' + call['function']['name'] + '<｜tool▁sep｜>' + arguments
          + '<｜tool▁call▁end｜>' -%}
    {%- endfor -%}
    {%- if calls.text -%}
      {%- set calls.text = '<｜tool▁calls▁begin｜>' + calls.text + '<｜tool▁calls▁end｜>' -%}
    {%- endif -%}
    {%- if dropped -%}
      {%- set said = content.lstrip('\\n') -%}
    {%- else -%}
      {%- set said = ('<think>' + reasoning + '</think>' if reasoning is not none else '') + content -%}
    {%- endif -%}
    {%- set said = said + calls.text + eos_token -%}
    {{- '' if ns.after_output else '<｜Assistant｜>' -}}
    {%- if dropped or message['weight'] == 0 -%}
      {{- said -}}
    {%- else -%}
      {%- generation -%}{{- said -}}{%- endgeneration -%}
    {%- endif -%}
  {%- endif -%}
  {%- if message['role'] in ['user', 'assistant', 'tool'] -%}
    {%- set ns.after_output = message['role'] == 'tool' -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '' if ns.after_output else '<｜Assistant｜>' -}}
  {{- '<think>' if thinking else '' -}}
{%- endif -%}
"""

_THINK, _THOUGHT = "<think>", "</think>"


# ---- rendering -------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    """A template in the dialect that Hugging Face's are written in, in Jinja's sandbox: a checkpoint's template is not our code."""
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """`{% generation %}`: what the assistant said. Encloses it in the characters of `generation_marks`, if that is given."""

        tags = {"generation"}  # noqa: RUF012  (Jinja's own protocol)

        def parse(self, parser: Any) -> jinja2.nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            mark = self.call_method("_mark", [jinja2.nodes.ContextReference()])
            return jinja2.nodes.CallBlock(mark, [], [], body).set_lineno(line)

        def _mark(self, context: Mapping[str, Any], caller: Any) -> str:
            opening, closing = context.get("generation_marks") or ("", "")
            return f"{opening}{caller()}{closing}"

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def render_template(template: str, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
    """The text of a conversation.

    Args:
        template: Jinja, as in a checkpoint's chat_template.jinja.
        messages: the conversation.
        variables: what else the template sees: bos_token, add_generation_prompt, tools, ...
    Raises:
        UserError: the template is broken or refuses these messages.
    """
    import jinja2

    try:
        return _compiled(template).render(messages=list(messages), **variables)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template cannot be read: line {error.lineno}: {error.message}") from None
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"the chat template refuses these messages: {error}") from None


# ---- conversations to ids --------------------------------------------------------------------------------------------------------


def encode_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    thinking: bool | None = None,
) -> list[int]:
    """Ids of a conversation up to where the assistant speaks. Contents cannot write control tokens.

    Args:
        tokenizer: with a chat template.
        messages: the conversation so far.
        tools: functions that the assistant may call, as OpenAI describes them.
        thinking: True opens the reasoning; None leaves the choice to the model (or to a published template's default).
    """
    guard, opening, closing = _unused_characters(messages, tools)
    text = tokenizer.render(
        [_guarded(tokenizer, message, guard) for message in messages],
        add_generation_prompt=True,
        tools=_guard_all(tokenizer, tools, guard),
        thinking=thinking,
    )
    return _encode_marked(tokenizer, text, guard, opening, closing)[0]


def encode_conversation(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """Ids of a whole conversation, and which of them to learn.

    The ids are those of `tokenizer.encode(tokenizer.render(messages), specials=True)`, except that control tokens written inside a
    content stay plain text. (`<think>...</think>` at the start of an assistant's content is its reasoning, and is no such text.)

    Args:
        tokenizer: with a chat template. One without `{% generation %}` must render a longer conversation as a continuation of a
            shorter one, as Qwen2.5's does.
        messages: at least one of them the assistant's.
    Returns:
        Ids, and a mask of the same length: True on the tokens that the assistant produced, its end token included. A turn of the
        history whose reasoning the template drops is False: see `encode_examples`.
    Raises:
        UserError: no template, or one that refuses the messages or does not show what the assistant said.
    """
    guard, opening, closing = _unused_characters(messages)
    safe = [_guarded(tokenizer, message, guard) for message in messages]
    if "endgeneration" in (tokenizer.chat_template or ""):
        text = tokenizer.render(safe, generation_marks=(opening, closing))
    else:
        text = _marked_by_prefixes(tokenizer, safe, opening, closing)
    return _encode_marked(tokenizer, text, guard, opening, closing)


def encode_examples(
    tokenizer: Tokenizer, messages: Sequence[Message], learn: Literal["answers", "last", "all"] = "answers"
) -> list[tuple[list[int], list[bool]]]:
    """A conversation as the training examples in which each assistant turn is learnt once, as the model will have to say it.

    A conversation is one example, unless an earlier turn holds reasoning. History drops reasoning, so that turn can only be learnt
    where it is the last: the conversation up to its end becomes an example of its own, with the loss on that turn alone.

    What stands after the assistant's last turn is left out: nobody answers it.

    Args:
        learn: "last" learns the assistant's last turn alone (what it said since the user last spoke), "all" every token, the
            prompts' too.
    Returns:
        (ids, mask) as `encode_conversation` gives them.
    """
    messages = messages[: 1 + max((at for at, m in enumerate(messages) if m["role"] == "assistant"), default=-1)]
    if learn == "all":
        ids, _ = encode_conversation(tokenizer, messages)
        return [(ids, [True] * len(ids))]
    if learn == "last":
        spoke = max((at for at, message in enumerate(messages) if message["role"] == "user"), default=0)
        before = [message | {"weight": 0} for message in messages[:spoke]]
        return [encode_conversation(tokenizer, [*before, *messages[spoke:]])]
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    examples = []
    learnt: set[int] = set()
    for start, end in itertools.pairwise(users):
        if any(_has_reasoning(message) for message in messages[start:end]):
            before = [message | {"weight": 0} for message in messages[:start]]
            examples.append(encode_conversation(tokenizer, [*before, *messages[start:end]]))
            learnt.update(range(start, end))
    rest = [message | {"weight": 0} if index in learnt else message for index, message in enumerate(messages)]
    return [*examples, encode_conversation(tokenizer, rest)]


def encode_completion(
    tokenizer: Tokenizer, prompt: Sequence[Message], completion: Sequence[Message]
) -> tuple[list[int], list[bool]]:
    """A prompt and a continuation of it, with the loss on the continuation alone.

    Returns:
        (ids, mask) as `encode_conversation` gives them.
    """
    return encode_conversation(tokenizer, [*(message | {"weight": 0} for message in prompt), *completion])


def _has_reasoning(message: Message) -> bool:
    if message["role"] != "assistant":
        return False
    return bool(message.get("reasoning_content")) or split_reasoning(message.get("content") or "")[0] is not None


def _unused_characters(*values: Any) -> tuple[str, str, str]:
    """Three noncharacters (U+FDD0 to U+FDEF, which Unicode keeps for such use) that occur nowhere in `values`."""
    text = json.dumps(values, ensure_ascii=False, default=str)
    free = [char for char in map(chr, range(0xFDD0, 0xFDF0)) if char not in text]
    if len(free) < 3:
        raise UserError("a message holds nearly every noncharacter U+FDD0 to U+FDEF; it is not text")
    return free[0], free[1], free[2]


def _guarded(tokenizer: Tokenizer, message: Message, guard: str) -> Message:
    """The message with its control tokens broken, but for an assistant's own `<think>` and `</think>`."""
    content = message.get("content")
    safe: Message = {
        key: value if key == "role" else _guard_all(tokenizer, value, guard) for key, value in message.items()
    }
    if message.get("role") == "assistant" and isinstance(content, str) and not message.get("reasoning_content"):
        reasoning, answer = split_reasoning(content)
        if reasoning is not None:
            reasoning, answer = (_guard_all(tokenizer, part, guard) for part in (reasoning, answer))
            safe["content"] = f"{_THINK}{reasoning}{_THOUGHT}{answer}"
    return safe


def _guard_all(tokenizer: Tokenizer, value: Any, guard: str) -> Any:
    if isinstance(value, str):
        # After the first character of every control token, those that overlap another included: none can remain or arise.
        return tokenizer.control_starts.sub(lambda match: match.group() + guard, value)
    if isinstance(value, Mapping):
        return {_guard_all(tokenizer, key, guard): _guard_all(tokenizer, entry, guard) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_guard_all(tokenizer, entry, guard) for entry in value]
    return value


def _marked_by_prefixes(tokenizer: Tokenizer, messages: Sequence[Message], opening: str, closing: str) -> str:
    """The rendered conversation with marks around the assistant's turns, for a template that does not mark them itself.

    A turn begins where the rendering of all before it, opened for the assistant, ends; it ends with its last control token.
    """
    text = tokenizer.render(messages)
    for index in reversed(range(len(messages))):
        if messages[index]["role"] != "assistant" or messages[index].get("weight") == 0:
            continue
        before = tokenizer.render(messages[:index], add_generation_prompt=True)
        through = tokenizer.render(messages[: index + 1])
        if not (text.startswith(through) and through.startswith(before)):
            raise UserError(
                f"the chat template rewrites earlier turns (message {index}) and has no {{% generation %}} block, so it "
                "does not show what the assistant said; train on single exchanges, or use tinyseek's template"
            )
        ends = [match.end() for match in tokenizer.controls_pattern.finditer(through, len(before))]
        end = ends[-1] if ends else len(through)
        text = text[: len(before)] + opening + text[len(before) : end] + closing + text[end:]
    return text


def _encode_marked(
    tokenizer: Tokenizer, text: str, guard: str, opening: str, closing: str
) -> tuple[list[int], list[bool]]:
    """Ids and mask of rendered text. Tokens never cross a mark: the model, too, starts its answer with a token of its own."""
    ids: list[int] = []
    mask: list[bool] = []
    said = False
    for part in re.split(f"([{opening}{closing}])", text):
        if part in (opening, closing):
            said = part == opening
            continue
        done = 0
        for match in tokenizer.controls_pattern.finditer(part):
            if match.start() > done:
                ids += tokenizer.encode(part[done : match.start()].replace(guard, ""))
            ids.append(tokenizer.controls[match.group()])
            done = match.end()
        if done < len(part):
            ids += tokenizer.encode(part[done:].replace(guard, ""))
        mask += [said] * (len(ids) - len(mask))
    return ids, mask


# ---- ids to an answer ------------------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """What the assistant said, taken apart."""

    content: str
    reasoning: str | None = None  # None: it did not think
    tool_calls: list[dict[str, Any]] = field(default_factory=list)  # {"type", "function": {"name", "arguments": str}}

    def message(self) -> Message:
        """As the message to add to the conversation."""
        message: Message = {"role": "assistant", "content": self.content}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        return message


def split_reasoning(text: str, *, thinking: bool = False) -> tuple[str | None, str]:
    """The text between `<think>` and the first `</think>`, and the text after it.

    Args:
        text: an assistant's content.
        thinking: the prompt had opened the reasoning already, so there is no `<think>` in the text.
    Returns:
        (reasoning, content); reasoning is None where there is none, or where `<think>` is never closed.
    """
    if not thinking and not text.startswith(_THINK):
        return None, text
    reasoning, closed, content = text.removeprefix(_THINK).partition(_THOUGHT)
    return (reasoning, content) if closed else (None, text)


def decode_answer(tokenizer: Tokenizer, ids: Sequence[int], *, thinking: bool = False) -> Answer:
    """Take generated ids apart into reasoning, content and tool calls.

    Works on ids, so that an answer which only *quotes* `</think>` is not cut there. Reasoning that was never closed (the answer was
    cut off) is reasoning all the same; a tool call also ends it. Tool calls are V3.1's.

    Args:
        tokenizer: the one that the ids are of.
        ids: generated ids, with or without the end token.
        thinking: the prompt had opened the reasoning already.
    """
    end = next((at for at, index in enumerate(ids) if index in tokenizer.stop_ids), len(ids))
    body = list(ids[:end])
    think, thought = tokenizer.token_id(_THINK), tokenizer.token_id(_THOUGHT)
    first_call = tokenizer.token_id("<｜tool▁calls▁begin｜>")
    calls_at = body.index(first_call) if first_call in body else len(body)
    body, called = body[:calls_at], body[calls_at:]

    def text_of(part: Sequence[int]) -> str:
        return tokenizer.decode(part, skip_specials=True)

    if think is None or thought is None:  # a vocabulary in which the tags are plain text
        reasoning, content = split_reasoning(text_of(body), thinking=thinking)
        return Answer(content, reasoning)
    reasoning = None
    if thinking or body[:1] == [think]:
        inside = body[1:] if body[:1] == [think] else body
        cut = inside.index(thought) if thought in inside else len(inside)
        reasoning, body = text_of(inside[:cut]), inside[cut + 1 :]
    calls = list(_read_calls(tokenizer, called))
    return Answer(text_of(body) if calls or not called else text_of([*body, *called]), reasoning, calls)


def _read_calls(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    begin, sep, end = (tokenizer.token_id(f"<｜tool▁{name}｜>") for name in ("call▁begin", "sep", "call▁end"))
    at = 0
    while begin in ids[at:]:
        at = ids.index(begin, at) + 1
        call = list(ids[at : ids.index(end, at)] if end in ids[at:] else ids[at:])
        if sep in call:
            cut = call.index(sep)
            name, arguments = tokenizer.decode(call[:cut]).strip(), tokenizer.decode(call[cut + 1 :])
            yield {"type": "function", "function": {"name": name, "arguments": arguments}}
