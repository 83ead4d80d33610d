"""The BERT text tower equals transformers' AlignTextModel and open_clip's HFTextEncoder on random weights."""

import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.config import ModelConfig
from clipjax.interop.names import our_names, their_names
from clipjax.interop.open_clip_bert import text_tensors
from clipjax.models.towers.bert import BertConfig, BertEncoder
from clipjax.models.transformer import stack_layers
from tests.torch_reference import import_torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = import_torch()
transformers = import_torch("transformers")
hf_model = import_torch("open_clip.hf_model")

WIDTH, DEPTH, EMBED, VOCAB, CONTEXT, ROWS = 32, 2, 24, 97, 12, 20
SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    num_hidden_layers=DEPTH,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=ROWS,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
OURS = BertConfig(
    vocab_size=VOCAB,
    context_length=CONTEXT,
    num_positions=ROWS,
    width=WIDTH,
    depth=DEPTH,
    num_heads=4,
    mlp_dim=48,
    norm_eps=1e-5,
    scan_layers=False,
)
ALIGN = replace(OURS, pool="cls", pooler=True, pad_id=0, norm_eps=1e-12, projection_bias=True)
BERT = replace(ALIGN, pool="pooler", projection_bias=False)
XLMR = replace(OURS, pool="mean", pooler=True, pad_id=1, positions_after_padding=True, token_types=1, projection="mlp")


class AlignText(torch.nn.Module):
    """The text half of AlignModel.forward."""

    def __init__(self):
        super().__init__()
        self.transformer = transformers.AlignTextModel(transformers.AlignTextConfig(**SIZES))
        self.proj = torch.nn.Linear(WIDTH, EMBED)

    def forward(self, ids):
        return self.proj(self.transformer(input_ids=ids, attention_mask=(ids != 0).long())[0][:, 0, :])


def open_clip_text(config, pooler, proj):
    return hf_model.HFTextEncoder("", EMBED, config=config, pooler_type=pooler, proj_type=proj)


REFERENCES = {
    "align": (ALIGN, AlignText),
    "bert": (
        BERT,
        lambda: open_clip_text(transformers.BertConfig(**SIZES, pad_token_id=0), "cls_pooler", "linear"),
    ),
    "xlm_roberta": (
        XLMR,
        lambda: open_clip_text(
            transformers.XLMRobertaConfig(**SIZES, pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5),
            "mean_pooler",
            "mlp",
        ),
    ),
}


def to_clipjax(p):
    """Arrays of one of the references, by their names, as the tower's parameters (unrolled)."""
    linear = lambda name: {"kernel": p[f"{name}.weight"].T} | ({"bias": p[b]} if (b := f"{name}.bias") in p else {})  # noqa: E731
    norm = lambda name: {"scale": p[f"{name}.weight"], "bias": p[f"{name}.bias"]}  # noqa: E731
    table = lambda name: p[f"transformer.embeddings.{name}_embeddings.weight"]  # noqa: E731
    params = {
        "token_embedding": {"embedding": table("word")},
        "position_embedding": table("position"),
        "token_type_embedding": table("token_type"),
        "ln_embedding": norm("transformer.embeddings.LayerNorm"),
        "pooler": linear("transformer.pooler.dense"),
    }
    if "proj.0.weight" in p:
        params |= {"projection_hidden": linear("proj.0"), "projection": linear("proj.2")}
    else:
        params["projection"] = linear("proj")
    for i in range(DEPTH):
        at = f"transformer.encoder.layer.{i}"
        qkv = [linear(f"{at}.attention.self.{n}") for n in ("query", "key", "value")]
        params[f"block_{i}"] = {
            "attention": {
                "qkv": {n: np.stack([part[n] for part in qkv], axis=-2) for n in ("kernel", "bias")},
                "out": linear(f"{at}.attention.output.dense"),
            },
            "ln_1": norm(f"{at}.attention.output.LayerNorm"),
            "mlp": {"up": linear(f"{at}.intermediate.dense"), "down": linear(f"{at}.output.dense")},
            "ln_2": norm(f"{at}.output.LayerNorm"),
        }
    return params


@pytest.fixture(scope="module", params=list(REFERENCES))
def pair(request):
    config, make = REFERENCES[request.param]
    torch.manual_seed(0)
    theirs = make().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # biases, norms and padding rows too: zeros would hide a missing one
            parameter.add_(0.1 * torch.randn_like(parameter))
    rng = np.random.default_rng(0)
    text = rng.integers(2, VOCAB, (5, CONTEXT), dtype=np.int32)
    for row, length in enumerate((CONTEXT, 7, 3, 1, 10)):
        text[row, length:] = config.pad_id
    params = to_clipjax({name: p.detach().numpy() for name, p in theirs.named_parameters()})
    return config, theirs, jax.tree.map(jnp.asarray, params), text


def embed(config, params, text):
    return BertEncoder(config, EMBED, jnp.float32).apply({"params": params}, text).pooled


@pytest.mark.slow
def test_embeddings_and_gradients_equal_the_reference(pair):
    config, theirs, params, text = pair
    weight = np.random.default_rng(1).normal(size=(len(text), EMBED)).astype(np.float32)
    found, back = jax.vjp(lambda params: embed(config, params, text), params)
    (grads,) = back(jnp.asarray(weight))
    expected = theirs(torch.tensor(text).long())
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    theirs.zero_grad()
    (expected * torch.tensor(weight)).sum().backward()
    zero = lambda p: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()  # noqa: E731
    wanted = to_clipjax({name: zero(p) for name, p in theirs.named_parameters()})
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        ours = np.asarray(leaf_at(grads, path))
        assert np.abs(ours - leaf).max() <= 1e-4 * np.abs(leaf).max() + 1e-6 * scale, jax.tree_util.keystr(path)


def leaf_at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


def test_padding_changes_no_embedding(pair):
    config, _, params, text = pair
    padded = np.pad(text, ((0, 0), (0, 5)), constant_values=config.pad_id)
    longer = replace(config, context_length=CONTEXT + 5)
    np.testing.assert_allclose(embed(config, params, text), embed(longer, params, padded), atol=1e-6)


def test_scanned_and_rematerialised_layers_equal_unrolled_ones(pair):
    config, _, params, text = pair
    expected = embed(config, params, text)
    for remat in ("none", "attention", "full"):
        scanned = replace(config, scan_layers=True, remat=remat)
        np.testing.assert_allclose(embed(scanned, stack_layers(params), text), expected, atol=1e-6)


def test_the_table_of_open_clips_text_towers_is_theirs(pair):
    """Every tensor of theirs once, read into the parameters that the comparison above used, and written back equal."""
    config, theirs, params, _ = pair
    model = ModelConfig(text=config, embed_dim=EMBED)
    found = {f"text.{name}": p.detach().numpy() for name, p in theirs.named_parameters()}
    seen = []
    for tensor in text_tensors(model):
        for i, names in enumerate(their_names(tensor, model)):
            path = our_names(tensor, model)[i].removeprefix("text/").split("/")
            leaf = params
            for part in path:
                leaf = leaf[part]
            arrays = [found[name] for name in names]
            np.testing.assert_array_equal(tensor.layout.read(arrays), leaf)
            for array, back in zip(arrays, tensor.layout.write(np.asarray(leaf)), strict=True):
                np.testing.assert_array_equal(back, array)
            seen += names
    assert sorted(seen) == sorted(found)
