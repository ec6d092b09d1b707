"""Commands that use a model or a tokenizer: `chat`, `generate`, `model`, `tokenizer`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tinyseek.commands import Parser, say, settings_text
from tinyseek.commands.recipes import stage
from tinyseek.errors import UserError


def generate(arguments: list[str]) -> int:
    """A text continued."""
    from tinyseek import talk

    parser = Parser("generate", "Continue a text.", settings_text(lambda: talk.TalkSettings))
    parser.add_argument(
        "model", metavar="MODEL", help="a model's or a run's folder, a pulled model's name, a .gguf file"
    )
    parser.add_argument("prompt", help="the text to continue; - reads standard input")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek.settings import nested

    settings = talk.TalkSettings.read(nested(chosen.settings), "command line")
    prompt = _standard_input() if chosen.prompt == "-" else _text(chosen.prompt)
    continuation = talk.continuation(chosen.model, prompt, settings)
    first = next(continuation, "")  # an error comes before anything is printed
    print(prompt, end=first, flush=True)
    for piece in continuation:
        print(piece, end="", flush=True)
    print()
    return 0


def chat(arguments: list[str]) -> int:
    """A conversation, on the terminal or from lines."""
    from tinyseek import talk

    parser = Parser(
        "chat",
        "Talk to a model, here or behind a server. Where standard input is no terminal its lines are the prompts.",
        settings_text(lambda: talk.ChatSettings),
    )
    from tinyseek.llm.open import WHERE, is_remote

    parser.add_argument("model", metavar="MODEL", help=WHERE)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek.llm.base import ChatModel
    from tinyseek.settings import nested

    settings = talk.ChatSettings.read(nested(chosen.settings), "command line")
    where = chosen.model if is_remote(chosen.model) else talk.model_folder(chosen.model)
    engine = None if is_remote(chosen.model) else settings.engine()
    with ChatModel.open(where, model=settings.model, engine=engine) as model:
        talk.chat(talk.Conversation(model, settings.options(), settings.system))
    return 0


def model(arguments: list[str]) -> int:
    """A model's parameter table."""

    def more() -> str:
        from tinyseek.model.presets import PRESETS

        return f"presets: {', '.join(PRESETS)}"

    parser = Parser("model", "Draw the parameter table of a model: total, active, FLOPs and cache bytes a token.", more)
    parser.add_argument("config", metavar="CONFIG", help="a preset, a config.json, or the folder of a model")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="what to change in a preset")
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek import terminal

    terminal.parameters(chosen.config, _config(chosen.config, chosen.settings))
    return 0


def _config(source: str, changes: list[str]) -> Any:
    import json

    from tinyseek.model.hub import pulled
    from tinyseek.model.presets import PRESETS, from_preset
    from tinyseek.settings import nested, suggestion
    from tinyseek.talk import model_folder

    if source in PRESETS:
        return from_preset(source, nested(changes))
    path = Path(source)
    if not path.exists() and not path.suffix and len(path.parts) == 1 and source not in pulled():
        raise UserError(f'no preset, file or folder "{source}"; {suggestion(source, PRESETS)}')
    if changes:
        raise UserError(f"{changes[0]}: only a preset can be changed; edit {source} instead")
    file = model_folder(source) / "config.json" if path.is_dir() or not path.exists() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not a model's config.json ({error})") from None
    from tinyseek.model.interchange import config_from_hf

    return config_from_hf(values, str(file))


def tokenizer(arguments: list[str]) -> int:
    """Train a tokenizer, or look through one."""
    parser = Parser(
        "tokenizer",
        "train OUT [key=value ...]  learn a vocabulary\n"
        "show TEXT                  each token on a colour of its own\n"
        "encode TEXT                token ids\n"
        "decode ID ...              text",
        lambda: "TEXT may be - for standard input.",
    )
    parser.add_argument("action", choices=("train", "show", "encode", "decode"))
    parser.add_argument("rest", nargs="*", metavar="OUT | TEXT | ID")
    parser.add_argument(
        "-t", "--tokenizer", metavar="FOLDER", help="a tokenizer or model folder; by default the newest below runs/"
    )
    if arguments[:1] == ["train"]:
        return stage("tokenizer", arguments[1:], "tokenizer train")
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek import terminal
    from tinyseek.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(chosen.tokenizer or _newest_tokenizer())
    if chosen.action == "decode":
        words = " ".join(chosen.rest).replace(",", " ").split()
        if not all(word.isdecimal() and int(word) < tokenizer.vocab_size for word in words):
            raise UserError(f"ids are whole numbers below {tokenizer.vocab_size}, separated by spaces or commas")
        print(tokenizer.decode([int(word) for word in words]))
        return 0
    text = _standard_input() if chosen.rest == ["-"] or not chosen.rest else _text(" ".join(chosen.rest))
    if chosen.action == "encode":
        print(*tokenizer.encode(text))
    else:
        from tinyseek.text.show import show

        terminal.console().print(show(tokenizer, text))
    return 0


def _newest_tokenizer() -> Path:
    found = sorted(Path("runs").glob("*/tokenizer/tokenizer.json"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise UserError(
            "no tokenizer below runs/ yet; train one (tinyseek run quickstart --until tokenizer) or give --tokenizer FOLDER"
        )
    say(f"(tokenizer of {found[-1].parent})")
    return found[-1].parent


def _text(word: str) -> str:
    """A word of the command line; bytes of it that are no UTF-8 came in as lone surrogates."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raise UserError("the text on the command line is not UTF-8") from None
    return word


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise UserError("standard input is not UTF-8 text") from None
