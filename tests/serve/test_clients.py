"""Programs that people point at such servers: the openai-agents SDK, lm-eval, and schemathesis with random requests."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import openai
import pytest
import schemathesis
from http_models import LINES, Running, ScriptedChat, Stage, running, said
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tinyseek.llm.base import ChatDelta, ChatModel, ChatOptions, Message, ToolCallDelta, Usage
from tinyseek.llm.local import LocalChat

# ---- our own


def test_our_own_client(tiny: Running, chat: LocalChat) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
    with ChatModel.open(tiny.url) as remote:
        assert remote.name == "tiny"
        for options in (
            ChatOptions(max_tokens=12),
            ChatOptions(max_tokens=12, n=2, temperature=1, seed=3),
            ChatOptions(max_tokens=99, tools=tools, tool_choice="required", thinking=False),
            ChatOptions(max_tokens=5, logprobs=True, top_logprobs=2),
        ):
            for ours, theirs in zip(
                chat.complete_all(messages, options), remote.complete_all(messages, options), strict=True
            ):
                assert theirs.content == ours.content
                assert theirs.finish == ours.finish
                assert [call["function"] for call in theirs.tool_calls] == [
                    call["function"] for call in ours.tool_calls
                ]
                assert [one.logprob for one in theirs.logprobs] == [one.logprob for one in ours.logprobs]


# ---- openai-agents


def office(messages: Sequence[Message], options: ChatOptions) -> Iterator[ChatDelta]:
    """A model with two roles: the desk hands questions on to the weather service, which asks its tool and answers."""
    names = [tool["function"]["name"] for tool in options.tools or []]
    last = messages[-1]
    if "transfer_to_weather" in names:
        yield from call("transfer_to_weather", "{}")
    elif last["role"] == "tool" and "cold" in last["content"]:
        yield from said("It is ", "cold ", "in Oslo.")
    else:
        assert names == ["weather"]
        yield ChatDelta(reasoning="They ask for Oslo.")
        yield from call("weather", '{"city": "Oslo"}')


def call(name: str, arguments: str) -> Iterator[ChatDelta]:
    half = len(arguments) // 2
    yield ChatDelta(tool_calls=(ToolCallDelta(0, f"call_{name}", name, ""),))
    for part in (arguments[:half], arguments[half:]):
        yield ChatDelta(tool_calls=(ToolCallDelta(0, arguments=part),))
    yield ChatDelta(finish="tool_calls", usage=Usage(20, 5))


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize("streamed", [True, False])
def test_agents_hand_over_and_use_tools(stage: Stage, api: str, streamed: bool) -> None:
    import agents

    agents.set_tracing_disabled(True)
    asked: list[str] = []

    @agents.function_tool
    def weather(city: str) -> str:
        """The weather of a city."""
        asked.append(city)
        return f"cold in {city}"

    async def run(server: Running) -> tuple[str, str, str]:
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none")
        kind = agents.OpenAIChatCompletionsModel if api == "chat" else agents.OpenAIResponsesModel
        model: Any = kind(model="tiny", openai_client=client)
        service = agents.Agent(name="Weather", model=model, tools=[weather], instructions="Tell the weather.")
        desk = agents.Agent(
            name="Desk", model=model, handoffs=[agents.handoff(service, tool_name_override="transfer_to_weather")]
        )
        text = ""
        if streamed:
            result: Any = agents.Runner.run_streamed(desk, "How is Oslo?")
            async for event in result.stream_events():
                if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                    text += event.data.delta
        else:
            result = await agents.Runner.run(desk, "How is Oslo?")
            text = result.final_output
        await client.close()
        return text, result.final_output, result.last_agent.name

    with stage.plays(office) as server:
        assert asyncio.run(run(server)) == ("It is cold in Oslo.", "It is cold in Oslo.", "Weather")
    assert asked == ["Oslo"]


# ---- lm-eval


def write_task(where: Path) -> None:
    """A small task on this disk: which of three words goes on, and how likely lines are."""
    rng = random.Random(0)
    words = ("river", "house", "weather", "苹果", "Oslo", "mild")
    rows = []
    for _ in range(12):
        choices = rng.sample(words, 3)
        rows.append({"text": rng.choice(LINES)[: rng.randint(3, 30)], "choices": choices, "label": rng.randrange(3)})
    (where / "rows.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    (where / "lines.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in LINES), encoding="utf-8")
    head = "dataset_path: json\ntest_split: test\nvalidation_split: null\n"
    (where / "words.yaml").write_text(
        f"task: words\n{head}dataset_kwargs:\n  data_files:\n    test: {where / 'rows.jsonl'}\noutput_type: multiple_choice\n"
        'doc_to_text: "{{text}}"\ndoc_to_target: label\ndoc_to_choice: choices\n'
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n",
        encoding="utf-8",
    )
    (where / "lines.yaml").write_text(
        f"task: lines\n{head}dataset_kwargs:\n  data_files:\n    test: {where / 'lines.jsonl'}\n"
        'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
        "metric_list:\n  - metric: bits_per_byte\n",
        encoding="utf-8",
    )


@pytest.mark.slow
def test_lm_eval_scores_as_by_its_own_backend(
    tiny: Running, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    write_task(tmp_path)
    tasks: Any = {
        "tasks": ["words", "lines"],
        "task_manager": TaskManager(include_path=str(tmp_path), include_defaults=False),
        "bootstrap_iters": 0,  # no error bars
    }
    served = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "tiny",
            "base_url": f"{tiny.url}/v1/completions",
            "tokenizer": str(folder),
            "tokenizer_backend": "huggingface",
            "max_length": 512,
        },
        batch_size=5,
        log_samples=True,
        **tasks,
    )
    own = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32", "device": "cpu", "max_length": 512},
        log_samples=True,
        **tasks,
    )
    for task in ("words", "lines"):
        pairs = list(zip(served["samples"][task], own["samples"][task], strict=True))
        assert pairs
        for ours, theirs in pairs:
            (numbers, expected) = (flat(sample["filtered_resps"]) for sample in (ours, theirs))
            assert numbers == pytest.approx(expected, abs=2e-3)
    assert served["results"]["words"]["acc,none"] == own["results"]["words"]["acc,none"]
    key = "bits_per_byte,none"
    assert served["results"]["lines"][key] == pytest.approx(own["results"]["lines"][key], abs=1e-4)
    assert served["results"]["words"]["acc_norm,none"] == own["results"]["words"]["acc_norm,none"]


def flat(value: Any) -> list[float]:
    if isinstance(value, list | tuple):
        return [number for entry in value for number in flat(entry)]
    return [float(value)]


# ---- schemathesis


@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
def test_random_requests_by_our_own_document(chat: LocalChat, mode: Any) -> None:
    """Whatever the document allows or forbids: no fault of the server, and every answer as the document says."""
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    settings = hypothesis.settings(
        max_examples=4,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )

    def check(case: Any) -> None:
        if mode is schemathesis.GenerationMode.POSITIVE and isinstance(case.body, dict):
            case.body |= {key: value for key, value in {"model": "tiny", "max_tokens": 3}.items() if key in case.body}
        case.call_and_validate(checks=checks, timeout=10)

    with running(ScriptedChat(chat.engine, lambda *_: said("Well.")), request_seconds=5) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        tried = 0
        for result in schema.get_all_operations():
            operation = result.ok()
            if mode is schemathesis.GenerationMode.NEGATIVE and operation.method.upper() != "POST":
                continue
            settings(hypothesis.given(case=operation.as_strategy(generation_mode=mode))(check))()
            tried += 1
        assert tried >= 10
