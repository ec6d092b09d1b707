"""Bits per byte against known probabilities, and against brute force in float64."""

import json
import math
import random
from types import SimpleNamespace

import pytest
import torch

from tinyseek.errors import UserError
from tinyseek.evaluate.perplexity import bits_per_byte, read_texts, windows


class Bytes:
    """A tokenizer of single bytes and a few pairs of them (which split characters), and a begin token of no bytes."""

    def __init__(self):
        pairs = [a + b for a, b in ((b"t", b"h"), (b"\xe4", b"\xbd"), (b"\xa0", b"\xe5"), (b"e", b" "))]
        self.table = [b"", *(bytes([i]) for i in range(256)), *pairs]
        self.vocab_size, self.bos_id = len(self.table), 0
        self.longest = {entry: index for index, entry in enumerate(self.table)}

    def encode(self, text, **_):
        data, ids = text.encode(), []
        while data:
            size = 2 if data[:2] in self.longest else 1
            ids.append(self.longest[data[:size]])
            data = data[size:]
        return ids

    def token_bytes(self, token):
        return self.table[token]


class Fixed(torch.nn.Module):
    """Says the same distribution everywhere: p(token) known beforehand."""

    def __init__(self, probabilities):
        super().__init__()
        self.log_p = torch.tensor(probabilities, dtype=torch.float64).log().float()
        self.config = SimpleNamespace(vocab_size=len(probabilities), max_position_embeddings=64)
        self.device = torch.device("cpu")

    def forward(self, ids_BT):
        return (self.log_p + 3.0).expand(*ids_BT.shape, -1)  # logits are free up to a constant


class Attentive(torch.nn.Module):
    """Causal and dependent on every earlier token of its window and on how far back it stands."""

    def __init__(self, vocab_size, seq_len):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocab_size, max_position_embeddings=seq_len)
        self.device = torch.device("cpu")
        self.embed = torch.nn.Embedding(vocab_size, 8)
        self.out = torch.nn.Linear(8, vocab_size)
        self.calls = []

    def forward(self, ids_BT):
        assert ids_BT.shape[1] <= self.config.max_position_embeddings
        self.calls.append(tuple(ids_BT.shape))
        ages = torch.arange(ids_BT.shape[1])
        weights = torch.tril(0.9 ** (ages[:, None] - ages[None, :]).clamp(min=0).to(self.out.weight))
        return self.out(weights @ self.embed(ids_BT))


def text_of(rng, length):
    return "".join(rng.choice("the 你好𝄞é\n") for _ in range(length))


def test_known_probabilities_and_bytes_of_split_characters():
    tokenizer = Bytes()
    p = [1.0 / 1024] * tokenizer.vocab_size
    the, ni = tokenizer.longest[b"th"], tokenizer.longest[b"\xe4\xbd"]
    p[the], p[ni] = 1 / 4, 1 / 8
    rest = 1 - sum(p)
    p[0] = p[0] + rest
    # "th" is one token, "你" = e4 bd | a0: the pair, then one byte; "好" starts e5: a0 e5 is a pair that spans two characters
    score = bits_per_byte(Fixed(p), tokenizer, ["th你", "你好", ""], seq_len=8)
    assert tokenizer.encode("你好")[1] == tokenizer.longest[b"\xa0\xe5"]
    assert score.bytes == 2 + 3 + 6
    assert score.documents == 2
    assert score.tokens == (1 + 2) + (1 + 1 + 2)
    assert score.bits == pytest.approx(2 + (3 + 10) + (3 + 10 + 20), abs=1e-4)
    assert score.bits_per_byte == pytest.approx(48 / 11, abs=1e-5)
    assert score.perplexity == pytest.approx(2 ** (48 / 7), rel=1e-5)
    # the score of two texts together is the sum of what each costs: the borders cost nothing
    parts = [bits_per_byte(Fixed(p), tokenizer, [text], seq_len=8) for text in ("th你", "你好")]
    assert score.bits == pytest.approx(sum(part.bits for part in parts), abs=1e-5)


def test_every_token_once_with_the_context_that_the_window_allows():
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(300):
        targets, seq_len = rng.randint(0, 60), rng.randint(1, 20)
        stride = rng.randint(1, seq_len)
        ids = list(range(1000, 1001 + targets))
        seen = []
        for window in windows(ids, seq_len, stride):
            assert len(window.ids) <= seq_len + 1
            start = window.ids[0] - 1000
            assert window.ids == ids[start : start + len(window.ids)]
            for place in range(window.first, len(window.ids) - 1):
                target = start + place + 1
                context = place + 1
                assert context >= min(target, seq_len - stride + 1)
                seen.append(target)
        assert seen == list(range(1, targets + 1))
    with pytest.raises(ValueError, match="stride"):
        list(windows([1, 2, 3], 4, 5))


@pytest.mark.parametrize("stride", [1, 5, 12])
def test_equals_brute_force_in_float64(stride):
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    torch.manual_seed(seed)
    tokenizer, seq_len = Bytes(), 12
    model = Attentive(tokenizer.vocab_size, seq_len)
    texts = [text_of(rng, rng.randint(0, 40)) for _ in range(12)]
    score = bits_per_byte(model, tokenizer, texts, stride=stride)

    exact = Attentive(tokenizer.vocab_size, seq_len).double()
    exact.load_state_dict(model.state_dict())
    bits = 0.0
    with torch.no_grad():
        for text in texts:
            ids = [0, *tokenizer.encode(text)]
            done = 0
            while done < len(ids) - 1:  # one target at a time, each with a context of its own
                ends = min(len(ids) - 1, done + (seq_len if done == 0 else stride))
                for target in range(done + 1, ends + 1):
                    start = max(0, ends - seq_len)
                    p = exact(torch.tensor([ids[start:target]]))[0, -1].softmax(-1)[ids[target]]
                    bits -= math.log2(float(p))
                done = ends
    assert score.bytes == sum(len(text.encode()) for text in texts)
    assert score.bits == pytest.approx(bits, rel=1e-6)
    assert score.bits_per_byte == pytest.approx(bits / score.bytes, rel=1e-6)


def test_padding_and_batches_change_nothing_and_the_mode_comes_back(monkeypatch):
    tokenizer = Bytes()
    model = Attentive(tokenizer.vocab_size, 16).train()
    texts = [text_of(random.Random(i), 1 + 7 * (i % 9)) for i in range(40)]
    alone = sum(bits_per_byte(model, tokenizer, [text]).bits for text in texts)
    model.calls.clear()
    done = []
    monkeypatch.setattr("tinyseek.evaluate.perplexity._MOST_TOKENS", 200)
    together = bits_per_byte(model, tokenizer, texts, progress=done.append)
    assert together.bits == pytest.approx(alone, rel=1e-6)
    assert max(rows * (width + 1) for rows, width in model.calls) <= 200
    assert max(rows for rows, _ in model.calls) > 3
    assert done == sorted(done)
    assert done[-1] == together.bytes
    assert model.training


def test_what_cannot_be_scored():
    tokenizer = Bytes()
    with pytest.raises(UserError, match="no text"):
        bits_per_byte(Attentive(tokenizer.vocab_size, 8), tokenizer, ["", ""])
    with pytest.raises(UserError, match="own tokenizer"):
        bits_per_byte(Attentive(100, 8), tokenizer, ["text"])


def test_reading_texts(tmp_path):
    lines = [{"text": f"{i:04d} 你好", "source": "x"} for i in range(200)]
    (tmp_path / "val.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    every = list(read_texts(tmp_path, 10**9))
    assert every == [line["text"] for line in lines]
    some = list(read_texts(tmp_path / "val.jsonl", 1500))
    assert sum(len(text.encode()) for text in some) <= 1500
    assert len(some) >= 25
    assert int(some[0][:4]) < 50
    assert int(some[-1][:4]) > 150, "the choice must be spread over the file"

    plain = tmp_path / "a.txt"
    plain.write_text("你好" * 100, encoding="utf-8")
    assert list(read_texts(plain, 10**6)) == ["你好" * 100]
    assert list(read_texts(plain, 8)) == ["你好"]

    for content, message in (
        (b'{"text": "a"}\n{"txt": 1}\n', r"line 2"),
        (b"[1]\n", "line 1"),
        (b'{"text"\n', "line 1"),
    ):
        (tmp_path / "bad.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=message):
            list(read_texts(tmp_path / "bad.jsonl", 10**6))
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        list(read_texts(tmp_path / "latin.txt", 10**6))
    with pytest.raises(UserError, match="no such file"):
        list(read_texts(tmp_path / "none", 10**6))
    (tmp_path / "half.jsonl").write_text('{"text": "a\\ud83d b"}\n')
    assert list(read_texts(tmp_path / "half.jsonl", 10**6)) == ["a? b"]
