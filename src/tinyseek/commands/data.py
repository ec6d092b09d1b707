"""`tinyseek data preview`: what fine-tuning data will look like to a model."""

from __future__ import annotations

from pathlib import Path

from tinyseek.commands import Parser
from tinyseek.errors import UserError


def preview(arguments: list[str]) -> int:
    """The first examples of a file or data set, and what there is in all."""

    def more() -> str:
        from tinyseek.text.datasets import known_sets

        known = "\n".join(f"  {name:<24}{place}" for name, place in known_sets()) or "  none"
        return f"data sets that are known by name here:\n{known}\n"

    parser = Parser(
        "data preview",
        "Show examples of fine-tuning data as a model will read them, the trained tokens in colour (⟦...⟧ where there is none).\n"
        "Conversations, preference pairs, thumbs, prompts for rewards and labelled texts are told apart by their columns.",
        more,
    )
    parser.add_argument("source", metavar="NAME_OR_FILE", help="a file, a folder, a data set's name, or FILE:NAME")
    parser.add_argument(
        "-t", "--tokenizer", metavar="MODEL", help="whose template and tokens; without: the messages alone"
    )
    parser.add_argument("-n", "--count", type=int, default=3, help="how many examples (3)")
    parser.add_argument(
        "--kind",
        choices=("chat", "preference", "thumbs", "prompt", "label"),
        help="what to read it as, if not what it seems",
    )
    parser.add_argument("--learn", choices=("answers", "last", "all"), default="answers", help="as the setting of sft")
    chosen = parser.parse_intermixed_args(arguments)
    if chosen.count < 1:
        raise UserError(f"--count {chosen.count}: show one at least")
    from tinyseek import terminal
    from tinyseek.text import datasets
    from tinyseek.text import preview as made
    from tinyseek.text.tokenizer import Tokenizer

    tokenizer = None
    if chosen.tokenizer:
        from tinyseek.talk import model_folder

        is_folder = (Path(chosen.tokenizer) / "tokenizer.json").is_file()
        tokenizer = Tokenizer.load(chosen.tokenizer if is_folder else model_folder(chosen.tokenizer))
    data = datasets.find_data(chosen.source)
    blocks, summary = made.preview(data, chosen.count, tokenizer, chosen.kind, chosen.learn)
    console = terminal.console()
    for block in blocks:
        console.print(made.render(block, tokenizer, colours=console.is_terminal))
    print(f"{chosen.source}: {summary.kind}, {summary.good:,} examples in {', '.join(map(str, data.files))}")
    if summary.lengths:
        total = sum(summary.lengths)
        print(
            f"tokens: {total / len(summary.lengths):,.0f} an example, {max(summary.lengths):,} at most, "
            f"{summary.trained / max(total, 1):.0%} of them trained (of the first {len(summary.lengths):,})"
        )
    if summary.unfilled:
        fill = "give its value in a datasets.yaml: fill: {name: ...}"
        print(f"{summary.unfilled:,} hold a placeholder such as {{{{name}}}}; {fill}")
    if summary.bad:
        print(f"{summary.bad:,} records cannot be used:")
        for problem in summary.problems[:5]:
            print(f"  {problem}")
    return 0
