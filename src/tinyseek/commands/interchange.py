"""Commands that bring models in and take them out: `pull`, `merge`, `export`."""

from __future__ import annotations

from tinyseek.commands import Parser, say, settings_text
from tinyseek.errors import UserError


def pull(arguments: list[str]) -> int:
    """A model fetched by name."""

    def more() -> str:
        from tinyseek.model.hub import KNOWN, models_home, pulled

        known = "\n".join(f"  {name:<20}{what}" for name, what in KNOWN.items())
        here = "\n".join(f"  {name}" for name in pulled()) or "  none yet"
        return (
            f"names:\n{known}\n  ORG/NAME[@REVISION] any model of the Hugging Face hub of a supported family\n"
            "  FILE.gguf, https://...gguf   a GGUF file\n\n"
            f"pulled so far, in {models_home()}:\n{here}\n\n"
            "HF_TOKEN opens gated models; HF_ENDPOINT names a mirror of the hub; TINYSEEK_CACHE says where models are kept."
        )

    parser = Parser(
        "pull",
        "Fetch a model, so that chat, generate, serve and export know it by its name. Goes on where it stopped.",
        more,
    )
    parser.add_argument("name", metavar="NAME", help="a name, ORG/NAME of the hub, or a .gguf file or its address")
    chosen = parser.parse_intermixed_args(arguments)
    from tinyseek.model.pull import pull as fetch

    print(fetch(chosen.name, say))
    return 0


def merge(arguments: list[str]) -> int:
    """An adapter and its base as one model."""
    from tinyseek.model.merge import MergeSettings

    parser = Parser(
        "merge",
        "Write the model that an adapter makes of its base as a folder of its own, which needs neither.",
        settings_text(lambda: MergeSettings),
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="an adapter's folder, ours or PEFT's, or that of its run")
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    chosen = parser.parse_intermixed_args(arguments)
    from pathlib import Path

    from tinyseek.model.merge import merge as write
    from tinyseek.settings import nested

    print(write(chosen.adapter, Path(chosen.out), MergeSettings.read(nested(chosen.settings), "command line"), say))
    return 0


def export(arguments: list[str]) -> int:
    """A model written for other programs."""
    from tinyseek.model.export import TARGETS, ExportSettings

    parser = Parser(
        "export",
        "Write a model for other programs:\n"
        "  gguf    one file for llama.cpp, LM Studio and their kin\n"
        "  ollama  a folder with a GGUF and a Modelfile that has the model's own template\n"
        "  hf      a plain Hugging Face folder for transformers, vLLM and their kin",
        settings_text(lambda: ExportSettings),
    )
    parser.add_argument(
        "model", metavar="MODEL", help="the folder of a model or of a run, a .gguf file, or a pulled name"
    )
    parser.add_argument("--to", choices=TARGETS, help="for what")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    chosen = parser.parse_intermixed_args(arguments)
    if chosen.to is None:
        raise UserError(f"for what? tinyseek export {chosen.model} --to {' | '.join(TARGETS)}")
    from tinyseek.model.export import export as write
    from tinyseek.settings import nested

    settings = ExportSettings.read(nested(chosen.settings), "command line")
    out = write(chosen.model, chosen.to, settings, say)
    if chosen.to == "ollama":
        say(f"use it: cd {out} && ollama create {out.name} -f Modelfile && ollama run {out.name}")
    print(out)
    return 0
