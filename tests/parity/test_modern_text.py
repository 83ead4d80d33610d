"""The text tower of RMSNorm, rotary positions and SwiGLU is transformers' Llama: every state and every gradient."""

import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from clipjax.interop.convert import read_variables
from clipjax.interop.layouts import Layout, linear
from clipjax.interop.names import Tensor, check_tensors, flatten, stored, their_shapes, weight_and_bias
from clipjax.models import DualEncoder
from tests.parity.torch_pairs import arrays, assert_equal_gradients, perturb
from tests.tiny import tiny_config
from tests.torch_reference import import_torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = import_torch()
transformers = import_torch("transformers")

WIDTH, HEADS, DEPTH, MLP, VOCAB, LENGTH, EMBED, BATCH = 32, 2, 2, 48, 99, 7, 12, 4


def neighbours(rows):
    """Llama turns channel i with channel i + d / 2 of a head; we turn channel 2 i with 2 i + 1."""
    return rows.reshape(HEADS, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def stacked(theirs, axis):
    q, k, v = theirs
    return np.stack([a.T for a in (neighbours(q), neighbours(k), v)], axis)


def apart(ours, axis):
    """For shapes alone: nothing is written here."""
    return [part.T for part in np.moveaxis(ours, axis, 0)]


def tensors():
    at, layer = "text/block_{i}", "layers.{i}"
    names = [f"{layer}.self_attn.{name}_proj" for name in "qkv"]
    kernel = Layout(lambda theirs: stacked(theirs, 1), lambda ours: apart(ours, 1))
    bias = Layout(lambda theirs: stacked(theirs, 0), lambda ours: apart(ours, 0))
    return [
        Tensor("logit_scale", ("logit_scale",)),
        Tensor("text/token_embedding/embedding", ("embed_tokens.weight",)),
        Tensor(f"{at}/ln_1/scale", (f"{layer}.input_layernorm.weight",)),
        Tensor(f"{at}/attention/qkv/kernel", tuple(f"{name}.weight" for name in names), kernel),
        Tensor(f"{at}/attention/qkv/bias", tuple(f"{name}.bias" for name in names), bias),
        *weight_and_bias(f"{at}/attention/out", f"{layer}.self_attn.o_proj", linear),
        Tensor(f"{at}/ln_2/scale", (f"{layer}.post_attention_layernorm.weight",)),
        *weight_and_bias(f"{at}/mlp/gate", f"{layer}.mlp.gate_proj", linear),
        *weight_and_bias(f"{at}/mlp/up", f"{layer}.mlp.up_proj", linear),
        *weight_and_bias(f"{at}/mlp/down", f"{layer}.mlp.down_proj", linear),
        Tensor("text/ln_final/scale", ("norm.weight",)),
        *weight_and_bias("text/projection", "projection", linear),
    ]


def test_states_embeddings_and_gradients_equal_llama():
    modern = dict(
        width=WIDTH, num_heads=HEADS, depth=DEPTH, mlp_dim=MLP, vocab_size=VOCAB, context_length=LENGTH, norm="rms",
        norm_eps=1e-6, rope=True, position="none", mlp="swiglu", causal=True, pool="last", projection_bias=True,
        scan_layers=False,
    )  # fmt: skip
    model = tiny_config().model
    model = replace(model, text=replace(model.text, **modern), embed_dim=EMBED, logit_bias_init=None)
    llama = transformers.LlamaModel(
        transformers.LlamaConfig(
            hidden_size=WIDTH, num_attention_heads=HEADS, num_hidden_layers=DEPTH, intermediate_size=MLP,
            vocab_size=VOCAB, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-6, attn_implementation="eager",
        )
    )  # fmt: skip
    llama.projection = torch.nn.Linear(WIDTH, EMBED)
    llama.logit_scale = torch.nn.Parameter(torch.zeros(()))
    perturb(llama)
    rng = np.random.default_rng(0)
    text = rng.integers(0, VOCAB, (BATCH, LENGTH), dtype=np.int32)
    direction = rng.normal(size=(BATCH, EMBED)).astype(np.float32)

    target = jax.eval_shape(lambda: DualEncoder(model).init(jax.random.key(0), text=jnp.asarray(text)))
    check_tensors(arrays(llama), their_shapes(tensors(), model, flatten(target)), where="Llama", family="test")
    read = lambda found: read_variables(tensors(), model, stored(found), target)["params"]  # noqa: E731

    def loss(params):
        out = DualEncoder(model).apply({"params": params}, text=text, hidden_layers=(0, 1, -1))
        return (out.text_embedding * direction).sum() * out.logit_scale, out

    (value, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(read(arrays(llama)))
    states = llama(torch.tensor(text).long(), output_hidden_states=True)
    embedding = torch.nn.functional.normalize(llama.projection(states.last_hidden_state[:, -1]), dim=-1)
    expected = (embedding * torch.tensor(direction)).sum() * llama.logit_scale.exp()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(out.text_embedding, embedding.detach().numpy(), atol=2e-6)
    np.testing.assert_allclose(out.text_hidden[0].state, states.hidden_states[0].detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(out.text_hidden[1].state, states.hidden_states[1].detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(out.text_hidden[2].normed, states.last_hidden_state.detach().numpy(), atol=1e-5)
    assert_equal_gradients(gradients, read(arrays(llama, gradients=True)))
