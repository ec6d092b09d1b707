"""Exports as other programs see them: transformers reads the folder, Go's template language writes the same prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import gguf_models
import gotpl
import pytest
import torch
from gguf_models import TEXT, save

from tinyseek import cli
from tinyseek.errors import UserError
from tinyseek.model.export import ExportSettings, export, modelfile
from tinyseek.model.gguf import splits
from tinyseek.model.ollama import OURS, go_template
from tinyseek.model.transformer import CausalLM
from tinyseek.text.chat import Message
from tinyseek.text.tokenizer import Tokenizer


def quiet(_: str) -> None:
    pass


@pytest.fixture(autouse=True)
def few_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    few = splits.probes()[-20:]
    monkeypatch.setattr(splits, "probes", lambda: few)


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return gguf_models.tokenizer()


# ---- templates -----------------------------------------------------------------------------------------------------


def written(template: str, messages: list[Message], tools: list[dict[str, Any]] | None = None) -> str:
    """A conversation as Ollama gives it to a Go template, rendered by another's implementation of that language."""
    given = [
        {
            "Role": message["role"],
            "Content": message.get("content") or "",
            "Thinking": message.get("reasoning_content", ""),
            "ToolCalls": [
                {"Function": {"Name": call["function"]["name"], "Arguments": call["function"]["arguments"]}}
                for call in message.get("tool_calls", [])
            ],
        }
        for message in messages
    ]
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    functions = [tool["function"] for tool in tools or []]
    described = [
        {
            "Function": {
                "Name": function["name"],
                "Description": function.get("description", ""),
                "Parameters": json.dumps(function["parameters"]),
            }
        }
        for function in functions
    ]
    out: str = gotpl.render(template, {"System": system, "Messages": given, "Tools": described, "Prompt": ""})
    return out


TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "now", "parameters": {}}},
]
CALLS = [
    {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
    {"type": "function", "function": {"name": "now", "arguments": "{}"}},
]


def said(role: str, content: str, **more: Any) -> Message:
    return {"role": role, "content": content, **more}


CONVERSATIONS: list[tuple[list[Message], list[dict[str, Any]] | None]] = [
    ([said("user", "hi")], None),
    ([said("system", "be kind"), said("user", "hi\n  {{ .Content }}")], None),
    ([said("system", "a"), said("system", "b"), said("user", "hi")], None),
    (
        [
            said("user", "2 + 2?"),
            said("assistant", "4", reasoning_content="two and two"),
            said("user", " more "),
            said("assistant", "no"),
            said("user", "why"),
        ],
        None,
    ),
    (
        [
            said("system", "s"),
            said("user", "2 + 2?"),
            said("assistant", "", reasoning_content="use it", tool_calls=CALLS),
            said("tool", "4"),
            said("tool", "noon"),
        ],
        TOOLS,
    ),
    (
        [
            said("user", "2 + 2?"),
            said("assistant", "x", tool_calls=CALLS[:1]),
            said("tool", "4"),
            said("assistant", "It is 4."),
            said("user", "thanks"),
        ],
        TOOLS,
    ),
]


@pytest.mark.parametrize("number", range(len(CONVERSATIONS)))
def test_our_template_in_go_writes_what_the_original_writes(number: int, words: Tokenizer) -> None:
    messages, tools = CONVERSATIONS[number]
    wanted = words.render(messages, add_generation_prompt=True, tools=tools)
    assert words.decode([words.bos_id]) + written(OURS, messages, tools) == wanted


def test_a_begun_answer_is_gone_on_with(words: Tokenizer) -> None:
    messages = [said("user", "hi"), said("assistant", "The answer")]
    assert written(OURS, messages) == "<｜User｜>hi<｜Assistant｜>The answer"


CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are "
    "\"Small\".<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The bones of DeepSeek-R1's: earlier reasoning is cut off, the next one is opened.
R1 = (
    "{% set ns = namespace(system='') %}{%- for m in messages %}{%- if m['role'] == 'system' %}{% set ns.system = m['content'] %}"
    "{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system }}{%- for m in messages %}{%- if m['role'] == 'user' %}"
    "{{ '<｜User｜>' + m['content'] }}{%- endif %}{%- if m['role'] == 'assistant' %}{% set content = m['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
V2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ 'User: ' + m['content'] + '\n\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ 'Assistant: ' + m['content'] + eos_token }}{% elif m['role'] == 'system' %}"
    "{{ m['content'] + '\n\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@pytest.mark.parametrize("template", [CHATML, R1, V2], ids=["chatml", "deepseek-r1", "deepseek-v2"])
def test_published_templates_are_read_off(template: str, words: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "chat_template", template)
    told: list[str] = []
    go = go_template(words, True, told.append)
    assert go is not None
    assert not told
    begin = words.decode([words.bos_id]) if "bos_token" in template else ""
    for messages, _ in (CONVERSATIONS[0], CONVERSATIONS[1], CONVERSATIONS[3]):
        plain = [said(message["role"], message["content"]) for message in messages]
        assert begin + written(go, plain) == words.render(plain, add_generation_prompt=True)


def test_what_is_not_faithful_is_said(words: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    each = "{% for m in messages %}<{{ m.role }}>HERE</{{ m.role }}>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    for template, words_of, made in (
        (each.replace("HERE", "{{ m.content | trim }}"), "takes spaces off the ends", True),
        (each.replace("HERE", "{{ m.content }}") + "{% if tools %}{{ tools }}{% endif %}", "tools are left out", True),
        ("{{ strftime_now('%Y') }}" + each.replace("HERE", "{{ m.content }}"), "today's date", False),
        (each.replace("HERE", "{{ m.content | upper }}"), "cannot be translated", False),
        (each.replace("HERE", "{{ loop.index }}{{ m.content }}"), "cannot be translated", False),
        ("{{ messages[-1].content }}", "cannot be translated", False),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
            "cannot be tried out",
            False,
        ),
    ):
        monkeypatch.setattr(words, "chat_template", template)
        told: list[str] = []
        assert (go_template(words, True, told.append) is not None) == made, template
        assert len(told) == 1
        assert words_of in told[0]
    monkeypatch.setattr(words, "chat_template", None)
    assert go_template(words, True, quiet) == "{{ .Prompt }}"


# ---- ollama and gguf -----------------------------------------------------------------------------------------------


def test_an_ollama_folder(tmp_path: Path, words: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "myrun" / "sft"
    save(folder, "v3", words)
    drawn = {"bos_token_id": 0, "eos_token_id": [1, 4], "temperature": 0.6, "top_p": 0.95, "repetition_penalty": 1.05}
    (folder / "generation_config.json").write_text(json.dumps(drawn))
    out = tmp_path / "out"
    assert cli.main(["export", str(tmp_path / "myrun"), "--to", "ollama", f"out={out}", "dtype=q8_0"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert {file.name for file in out.iterdir()} == {"myrun-sft.gguf", "Modelfile", "manifest.json"}
    lines = (out / "Modelfile").read_text().splitlines()
    assert "FROM ./myrun-sft.gguf" in lines
    assert [line for line in lines if line.startswith("PARAMETER")] == [
        'PARAMETER stop "<｜end▁of▁sentence｜>"',
        'PARAMETER stop "<｜Assistant｜>"',
        "PARAMETER num_ctx 256",
        "PARAMETER temperature 0.6",
        "PARAMETER top_p 0.95",
        "PARAMETER repeat_penalty 1.05",
    ]
    assert f'TEMPLATE """{OURS}"""' in (out / "Modelfile").read_text()
    assert gguf.GGUFReader(out / "myrun-sft.gguf").fields["general.name"].contents() == "myrun-sft"
    before = (out / "Modelfile").stat().st_ino
    assert cli.main(["export", str(folder), "--to", "ollama", f"out={out}", "dtype=q8_0"]) == 0  # again, over its own
    assert (out / "Modelfile").stat().st_ino != before


def test_a_modelfile_without_a_faithful_template_says_what_to_do(tmp_path: Path, words: Tokenizer) -> None:
    save(tmp_path, "llama", words)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    told: list[str] = []
    text = modelfile(tmp_path, "m", told.append)
    assert "TEMPLATE is missing" in text
    assert 'TEMPLATE """' not in text
    assert "tinyseek serve, or llama-server --jinja" in told[-1]


def test_a_gguf_file(tmp_path: Path, words: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = save(tmp_path / "model", "qwen2", words)
    assert export("model", "gguf", ExportSettings(), quiet) == Path("model-float16.gguf")
    model.save(tmp_path / "model", dtype=torch.bfloat16)
    assert export("model", "gguf", ExportSettings(out="."), quiet) == Path("model-bfloat16.gguf")
    assert export("model", "gguf", ExportSettings(out="new/m.gguf", dtype="q4_0"), quiet).is_file()


# ---- hugging face --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_plain_folder_keeps_the_weights(dtype: Any, tmp_path: Path, words: Tokenizer) -> None:
    model = save(tmp_path / "model", "v3", words)
    out = export(str(tmp_path / "model"), "hf", ExportSettings(out=str(tmp_path / "out"), dtype=dtype), quiet)
    names = {file.name for file in out.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    }
    assert "mtp" not in names
    values = json.loads((out / "config.json").read_text())
    assert values["dtype"] == values["torch_dtype"] == dtype
    assert "tinyseek" not in values
    back = CausalLM.load(out).state_dict()
    for name, tensor in model.state_dict().items():
        if not name.startswith("mtp"):
            kept = (
                tensor if dtype == "float32" or name.endswith("e_score_correction_bias") else tensor.bfloat16().float()
            )
            assert torch.equal(back[name], kept), name


@pytest.mark.slow
def test_transformers_computes_the_same(tmp_path: Path, words: Tokenizer) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in ("v3", "llama", "qwen2"):
        model = save(tmp_path / name, name, words)
        out = export(
            str(tmp_path / name), "hf", ExportSettings(out=str(tmp_path / f"{name}-hf"), dtype="float32"), quiet
        )
        theirs, loading = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
        assert not loading["missing_keys"]
        assert not loading["unexpected_keys"]
        their_words = AutoTokenizer.from_pretrained(out)
        ids = words.encode(TEXT[0])
        assert their_words(TEXT[0], add_special_tokens=False)["input_ids"] == ids
        with torch.inference_mode():
            given = torch.tensor([ids[:50]])
            torch.testing.assert_close(theirs(given).logits, model(given), rtol=1e-4, atol=1e-4)


# ---- mistakes ------------------------------------------------------------------------------------------------------


def test_mistakes_are_told(tmp_path: Path, words: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "model", "llama", words)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("mine")
    for arguments, told in (
        (["model"], "for what? tinyseek export"),
        (["nowhere", "--to", "hf"], "nowhere: no such folder"),
        (["model", "--to", "hf", "dtype=q4_0"], "dtype=q4_0 is for gguf and ollama"),
        (["model", "--to", "hf", "out=model"], "is the model itself"),
        (["model", "--to", "hf", "out=full"], "has files in it that no stage of tinyseek wrote"),
        (["model", "--to", "gguf", "out=model.bin"], "ends in .gguf"),
        (["model", "--to", "gguf", "type=q4_0"], 'did you mean "dtype"'),
    ):
        name, *rest = arguments
        rest = [word.replace("out=", f"out={tmp_path}/") for word in rest]
        assert cli.main(["export", str(tmp_path / name), *rest]) == 2
        assert told in capsys.readouterr().err, arguments
    with pytest.raises(SystemExit):
        cli.main(["export", "model", "--to", "onnx"])
    assert (tmp_path / "full" / "precious").read_text() == "mine"


def test_models_that_have_no_such_form(tmp_path: Path, words: Tokenizer) -> None:
    import small_models

    for name, to, told in (
        ("gpt2", "gguf", "a gpt2 model cannot be written as GGUF; the families that can are llama"),
        ("sinusoidal", "hf", "known to no other program"),
        ("sinusoidal", "ollama", "a tinyseek model cannot be written as GGUF"),
    ):
        small_models.fresh(name).save(tmp_path / name)
        with pytest.raises(UserError, match=told):
            out = str(tmp_path / "out") + (".gguf" if to == "gguf" else "")
            export(str(tmp_path / name), to, ExportSettings(out=out), quiet)  # type: ignore[arg-type]
        assert not list(tmp_path.glob("out*"))
