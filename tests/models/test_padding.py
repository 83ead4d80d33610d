"""What a text tower says it needs is all it needs: the embedding is the same without the other columns."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.models.towers import text_tower
from clipjax.models.towers.bert import BertConfig
from clipjax.models.towers.text import TextTransformerConfig

WHOLE, CUT, END, VOCAB = 24, 16, 63, 64
SMALL = dict(vocab_size=VOCAB, context_length=WHOLE, width=16, depth=2, num_heads=2, mlp_dim=32, scan_layers=False)
CLIP = TextTransformerConfig(**SMALL)
COCA = TextTransformerConfig(pool="cls", eos_id=END, **SMALL)
BERT = BertConfig(**SMALL)
TOWERS = {
    "clip, largest id": CLIP,
    "clip, first end of text": replace(CLIP, eos_id=END),
    "clip with rotary positions": replace(CLIP, position="none", rope=True),
    "coca": COCA,
    "coca, not causal": replace(COCA, causal=False),
    "bert": BERT,
    "bert, first position": replace(BERT, pool="cls"),
    "roberta": replace(BERT, pad_id=1, positions_after_padding=True, num_positions=WHOLE + 2),
}


def texts(pad_id=0):
    """Seven texts of 2 to CUT - 1 tokens, [7, WHOLE]; one has the end of text twice."""
    rng = np.random.default_rng(0)
    ids = np.full((7, WHOLE), pad_id, np.int32)
    for row, length in zip(ids, (2, 3, 5, 8, 11, 14, 15), strict=True):
        row[: length - 1], row[length - 1] = rng.integers(2, 60, length - 1), END
    ids[2, 2] = END
    return ids


def pooled(config, ids):
    tower = text_tower(config).module(config, 8, jnp.float32)
    variables = jax.jit(tower.init)(jax.random.key(0), jnp.zeros((1, WHOLE), jnp.int32))
    variables = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), variables)
    return np.asarray(jax.jit(lambda ids: tower.apply(variables, ids).pooled)(ids))


@pytest.mark.parametrize("name", TOWERS)
def test_the_embedding_of_a_text_is_the_same_without_the_columns_that_its_tower_does_not_need(name):
    config = TOWERS[name]
    ids = texts(getattr(config, "pad_id", 0))
    needed = text_tower(config).needed(config)(ids)
    assert needed.max() <= CUT < WHOLE
    np.testing.assert_allclose(pooled(config, ids[:, :CUT]), pooled(config, ids), atol=2e-6, rtol=1e-5)


def test_what_a_tower_needs_ends_with_the_pooled_token_the_padding_that_coca_sees_or_the_last_word():
    ids = texts()
    needed = {name: text_tower(config).needed(config)(ids).tolist() for name, config in TOWERS.items()}
    assert needed["clip, first end of text"] == [2, 3, 3, 8, 11, 14, 15]
    assert needed["clip, largest id"] == needed["clip, first end of text"]
    assert needed["bert"] == [2, 3, 5, 8, 11, 14, 15]
    assert needed["coca"] == [3, 4, 6, 9, 12, 15, 16]


def test_a_text_that_fills_the_context_or_has_no_token_needs_all_columns():
    full, empty = np.full((1, WHOLE), 5, np.int32), np.zeros((1, WHOLE), np.int32)
    full[0, -1] = END
    for config in (CLIP, COCA, BERT):
        assert text_tower(config).needed(config)(full).tolist() == [WHOLE]
    assert text_tower(BERT).needed(BERT)(empty).tolist() == [WHOLE], "with every key masked, all are seen"


def test_captions_of_an_image_are_measured_one_by_one():
    ids = np.stack([texts(), texts()[::-1]], axis=1)
    assert text_tower(CLIP).needed(CLIP)(ids).shape == (7, 2)


@pytest.mark.parametrize(("change", "reason"), [
    ({"causal": False, "pool": "last"}, "causal=False"), ({"pool": "last"}, "pool='last' reads the padding"),
    ({"pool": "gap"}, "pool='gap' reads the padding"), ({"pool": "cls", "rope": True}, "rope"),
])  # fmt: skip
def test_a_tower_that_reads_the_padding_says_what_reads_it(change, reason):
    config = replace(CLIP, **change)
    assert reason in text_tower(config).needed(config)
