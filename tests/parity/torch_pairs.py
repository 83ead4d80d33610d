"""Comparing a model with its original in PyTorch: same weights through the tables of clipjax.interop, same inputs."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from clipjax.config import LossConfig
from clipjax.interop.convert import read_variables, their_arrays
from clipjax.interop.names import check_tensors, flatten, stored, their_shapes
from clipjax.losses import make_loss
from clipjax.models import DualEncoder
from tests.torch_reference import import_torch

torch = import_torch()

IMAGE, PATCH, VOCAB, CONTEXT, BATCH = 16, 4, 99, 10, 4


def shapes_of(model):
    """{"params": ...} of jax.ShapeDtypeStruct without shardings."""
    image, text = model.image, model.text
    return jax.eval_shape(
        lambda: DualEncoder(model).init(
            jax.random.key(0),
            image=jnp.zeros((1, image.image_size, image.image_size, 3)),
            text=jnp.zeros((1, text.context_length), jnp.int32),
        )
    )


def perturb(module, seed=0):
    """Every parameter becomes a random number: zeros and ones of an initialisation would hide a missing one."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def arrays(module, gradients=False):
    """Parameters, or their gradients, by name."""
    if gradients:  # of what the loss does not see: none
        return {n: (torch.zeros_like(p) if p.grad is None else p.grad).numpy() for n, p in module.named_parameters()}
    return {name: p.detach().numpy() for name, p in module.named_parameters()}


def read(tensors, model, theirs):
    """Their arrays -> our parameters; a name too many or too few fails."""
    shapes = shapes_of(model)
    check_tensors(theirs, their_shapes(tensors, model, flatten(shapes)), where="the original", family="test")
    return read_variables(tensors, model, stored(theirs), shapes)["params"]


def inputs():
    """image [4, 16, 16, 3] and text [4, 10]: a begin, words, the largest id at different places, zeros."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(BATCH, IMAGE, IMAGE, 3)).astype(np.float32)
    text = rng.integers(2, VOCAB - 1, (BATCH, CONTEXT), dtype=np.int32)
    for row, end in enumerate((3, 6, 8, 9)):
        text[row, end] = VOCAB - 1
        text[row, end + 1 :] = 0
    return image, text


def as_torch(image, text):
    return torch.tensor(image.transpose(0, 3, 1, 2)), torch.tensor(text).long()


def loss_and_gradients(model, params, image, text, caption_weight=0.0):
    """(loss, outputs, gradients): the softmax loss, and the mean of the captions' tokens where it has a weight."""
    loss_fn = make_loss(LossConfig("softmax", "dense"), None)
    encoder = DualEncoder(model)

    def loss(params):
        out = encoder.apply({"params": params}, image=image, text=text)
        total, _ = loss_fn(
            out.image_embedding, out.text_embedding, logit_scale=out.logit_scale, logit_bias=out.logit_bias
        )
        if caption_weight:
            tokens = encoder.apply({}, text, method=DualEncoder.caption_tokens).sum()
            total += caption_weight * out.caption_nll.sum() / tokens
        return total, out

    (value, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return value, out, gradients


def torch_softmax_loss(image_features, text_features, logit_scale):
    logits = logit_scale * image_features @ text_features.T
    labels = torch.arange(len(logits))
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def assert_equal_gradients(found, wanted):
    """Every leaf to 1e-4 of its own largest entry (and 1e-6 of the largest of all)."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        error = np.abs(np.asarray(a) - b).max()
        assert error <= 1e-4 * np.abs(b).max() + 1e-6 * scale, (jax.tree_util.keystr(path), error, np.abs(b).max())


def assert_same_model(tensors, model, module, *, encode):
    """Embeddings, logits and gradients of the contrastive loss; then the weights back, bit for bit; then bfloat16.

    encode: (torch image, torch text) -> unit embeddings and the scale.
    """
    image, text = inputs()
    theirs = arrays(module)
    params = read(tensors, model, theirs)
    value, out, gradients = loss_and_gradients(model, params, image, text)
    image_features, text_features, scale = encode(*as_torch(image, text))
    loss = torch_softmax_loss(image_features, text_features, scale)
    module.zero_grad()
    loss.backward()
    np.testing.assert_allclose(out.image_embedding, image_features.detach().numpy(), atol=5e-6)
    np.testing.assert_allclose(out.text_embedding, text_features.detach().numpy(), atol=5e-6)
    logits = (scale * image_features @ text_features.T).detach().numpy()
    ours = out.logit_scale * out.image_embedding @ out.text_embedding.T
    np.testing.assert_allclose(ours, logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-4)
    assert_equal_gradients(gradients, read(tensors, model, arrays(module, gradients=True)))

    back = dict(their_arrays(tensors, model, {"params": params}))
    assert back.keys() == theirs.keys()
    for name, array in back.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)

    rounded = DualEncoder(replace(model, dtype="bfloat16")).apply({"params": params}, image=image, text=text)
    for name in ("image_embedding", "text_embedding"):
        assert np.sum(getattr(out, name) * getattr(rounded, name), axis=1).min() > 0.998, name
