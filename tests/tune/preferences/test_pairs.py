"""Preference data: what is learned from, what is held out, and that nothing is left out in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from preference_toys import make_base, make_pairs, settings_of

from tinyseek.errors import UserError
from tinyseek.text.chat import encode_completion
from tinyseek.text.tokenizer import Tokenizer
from tinyseek.tune.preferences.options import DpoSettings, KtoSettings
from tinyseek.tune.preferences.pairs import gather_pairs, gather_thumbs, report


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    make_base(folder / "base")
    make_pairs(folder / "pairs.jsonl", 40)
    return folder


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def gathered(folder: Path, tmp_path: Path, records: list[Any], **changes: Any) -> Any:
    file = tmp_path / "some.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = settings_of(folder, data=[str(file)], val_fraction=0, **changes)
    return gather_pairs(settings.data, Tokenizer.load(folder / "base"), settings), settings


def test_what_cannot_be_learned_from_is_counted_and_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "how " * 60
    records = [
        pair("how many", "seven", "basket"),
        pair("how many", "seven", "seven"),
        pair("how many", "", "seven"),
        {"prompt": "how many", "chosen": "seven"},
        pair("how many", "seven", "seven<｜end▁of▁sentence｜>"),  # not the same: it is typed, no control token
        pair("how many", "seven", long),
        {
            "prompt": [{"role": "user", "content": "how many"}],
            "chosen": [{"role": "assistant", "content": "seven", "weight": 0}],
            "rejected": [{"role": "assistant", "content": "of them"}],
        },
        pair("many", "<think>Ann</think>seven", "<think>Ann</think>seven "),
    ]
    found, settings = gathered(folder, tmp_path, records)
    assert len(found.ids["train"]) == 2 * 3
    assert (found.too_long, found.cut, found.equal, found.empty, found.unreadable) == (1, 0, 0, 1, 3)
    report(found, settings, "pairs", 2)
    said = capsys.readouterr().err
    assert "3 pairs to learn from, 0 held out" in said
    assert '3 records were left out (1 chosen and rejected are the same; 1 "chosen" is empty; 1 no chosen and' in said
    assert "some.jsonl, line 2: chosen and rejected are the same" in said
    assert "1 pairs longer than seq_len=48 were left out; too_long=keep_start or keep_end cuts them" in said
    assert "1 pairs without anything said by the assistant were left out" in said
    figures = found.figures(2)
    assert figures["train_examples"] == 3
    assert figures["unreadable_because"]["chosen and rejected are the same"] == 1


def test_too_long_texts_are_cut_as_asked(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder / "base")
    records = [
        pair("how many", "seven", "of them " * 40),
        pair("Ann and Bob " * 30, "seven", "of them"),
        pair("how many", "of them " * 40 + "seven", "of them " * 40 + "basket"),  # differ only where they are cut off
    ]
    texts = [
        encode_completion(
            tokenizer, [{"role": "user", "content": r["prompt"]}], [{"role": "assistant", "content": r[s]}]
        )
        for r in records
        for s in ("chosen", "rejected")
    ]
    start, _ = gathered(folder, tmp_path, records, too_long="keep_start")
    assert [ids.tolist() for ids in start.ids["train"]] == [texts[0][0], texts[1][0][:49]]
    assert (start.cut, start.too_long, start.equal) == (3, 1, 1)  # of the second the prompt alone is too long
    end, _ = gathered(folder, tmp_path, records, too_long="keep_end")
    assert [ids.tolist() for ids in end.ids["train"]] == [ids[-49:] for ids, _ in texts]
    assert [said.tolist() for said in end.said["train"]] == [[int(one) for one in said[-49:]] for _, said in texts]
    assert (end.cut, end.too_long, end.equal) == (5, 0, 0)


def test_answers_to_one_prompt_fall_on_one_side(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder / "base")
    records = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    swapped = [record | {"chosen": record["rejected"], "rejected": record["chosen"]} for record in records]
    file = tmp_path / "both.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in [*records, *swapped]))
    settings = settings_of(folder, data=[str(file)], val_fraction=0.3)
    found = gather_pairs(settings.data, tokenizer, settings)

    def prompts(split: str) -> set[tuple[int, ...]]:
        both = zip(found.ids[split], found.said[split], strict=True)
        return {tuple(ids[: said.index(1)]) for ids, said in both}

    assert prompts("train")
    assert prompts("val")
    assert not prompts("train") & prompts("val")
    assert sum(len(found.ids[split]) for split in found.ids) == 160


def test_thumbs_come_from_their_own_records_and_from_pairs(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder / "base")
    file = tmp_path / "thumbs.jsonl"
    thumbs = [{"prompt": "how many", "completion": word, "label": good} for word, good in (("seven", 1), ("of", 0))]
    factory = {"messages": [{"role": "user", "content": "how"}, {"role": "assistant", "content": "so"}], "label": True}
    file.write_text("".join(json.dumps(record) + "\n" for record in [*thumbs, factory]))
    plain = {"model": str(folder / "base"), "val_fraction": 0, "seq_len": 48}
    settings = KtoSettings.read(plain | {"data": [str(file), str(folder / "pairs.jsonl")]})
    found = gather_thumbs(settings.data, tokenizer, settings)
    assert found.good["train"] == [True, False, True] + [True, False] * 40
    assert len(found.ids["train"]) == 83
    with pytest.raises(UserError, match="no usable preference pair among 3 records"):
        gather_pairs([str(file)], tokenizer, settings_of(folder))


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"loss": "simpo", "reference": "base"}, "loss=simpo has no reference"),
        ({"loss": "ipo", "reference": "none"}, "loss=ipo compares with a reference"),
        ({"loss": "hinge", "label_smoothing": 0.1}, "label_smoothing means nothing to loss=hinge"),
        ({"loss": "orpo", "rpo_alpha": 1}, "orpo has the chosen answers' own loss already"),
        ({"reference": "base", "lora": {"save": ["lm_head"]}}, "take reference=precomputed"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
        ({"losss": "ipo"}, 'did you mean "loss"'),
    ],
)
def test_settings_that_do_not_go_together_are_refused(values: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        DpoSettings.read(values)
