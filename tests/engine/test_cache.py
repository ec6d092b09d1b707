"""The paged cache: what it holds in bytes, and that blocks anywhere read like one piece."""

import random

import pytest
import torch
from small_models import CONFIGS, fresh

from tinyseek.engine.cache import PackedView, PagedCache, View, bytes_per_token, default_tokens
from tinyseek.model.config import ModelConfig
from tinyseek.model.counts import count
from tinyseek.model.presets import PRESETS, from_preset

CPU = torch.device("cpu")


def test_mla_holds_the_latent_and_the_rotary_key_and_nothing_else() -> None:
    """kv_lora_rank + qk_rope_head_dim numbers a token and layer: DeepSeek-V3's 576; its 128 heads' keys and values were 40,960."""
    config = CONFIGS["mla"]
    assert config.kv_lora_rank is not None
    cache = PagedCache(config, 10, 16, torch.bfloat16)
    numbers = (config.kv_lora_rank + config.qk_rope_head_dim) * config.num_hidden_layers
    assert sum(store.nbytes for stores in cache.layers for store in stores) == 2 * numbers * 160
    assert cache.bytes_per_token == 2 * numbers
    shape = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_hidden_layers": 61}
    v3 = ModelConfig(model_type="deepseek_v3", **shape)
    assert bytes_per_token(v3, torch.bfloat16, 61) == 2 * 576 * 61


def test_grouped_queries_hold_keys_and_values_of_their_groups() -> None:
    config = CONFIGS["llama-gqa"]
    assert PagedCache(config, 10, 16).bytes_per_token == 4 * 2 * 2 * 8 * config.num_hidden_layers


@pytest.mark.parametrize("name", sorted({*CONFIGS, *PRESETS}))
def test_bytes_are_those_that_a_config_counts(name: str) -> None:
    config = CONFIGS[name] if name in CONFIGS else from_preset(name, {})
    assert bytes_per_token(config, torch.bfloat16, config.num_hidden_layers) == count(config).cache_bytes_per_token()


def test_the_default_size_holds_the_context_at_least_and_all_texts_at_most() -> None:
    config = CONFIGS["mla"]
    assert default_tokens(config, 1, CPU, 4) == 4 * config.max_position_embeddings
    assert default_tokens(config, 1 << 40, CPU, 4) == config.max_position_embeddings
    assert default_tokens(config, 1 << 24, CPU, 100) == config.max_position_embeddings


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_paged_equals_uncached_for_any_cut(name: str) -> None:
    """Rows of different lengths, in random steps, over shuffled blocks, against one pass of each without a cache."""
    model = fresh(name)
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    size, rows = rng.choice([1, 3, 4, 16]), 3
    ids = torch.randint(0, 97, (rows, 60), generator=torch.Generator().manual_seed(seed))
    expected = model(ids)
    per_row = -(-60 // size)
    cache = PagedCache(model.config, rows * per_row, size)
    for stores in cache.layers:
        for store in stores:
            store.normal_(0, 100)  # what lies in blocks from before must not matter
    blocks = list(range(rows * per_row))
    rng.shuffle(blocks)
    tables = torch.tensor(blocks).view(rows, per_row)
    starts = [0] * rows
    while min(starts) < 60:
        new = rng.choice([1, 1, 2, 7, 20])
        chosen = [row for row in range(rows) if starts[row] + new <= 60 and rng.random() < 0.7]
        if not chosen:
            new, chosen = 1, [row for row in range(rows) if starts[row] < 60][:1]
        begins = [starts[row] for row in chosen]
        if rng.random() < 0.5:
            counts = [new] * len(chosen)
            inputs = torch.stack([ids[row, starts[row] : starts[row] + new] for row in chosen])
            logits = model(inputs, cache=View(cache, tables[chosen], begins, new))
        else:  # each its own number of new tokens, one after the other in a row
            counts = [rng.randrange(1, new + 1) for _ in chosen]
            parts = [ids[row, starts[row] : starts[row] + n] for row, n in zip(chosen, counts, strict=True)]
            packed = PackedView(cache, tables[chosen].tolist(), begins, counts)
            logits = model(torch.cat(parts)[None], cache=packed)[0].split(counts)
        for got, row, n in zip(logits, chosen, counts, strict=True):
            assert (got - expected[row, starts[row] : starts[row] + n]).abs().max() < 1e-4, (row, starts, counts)
            starts[row] += n
