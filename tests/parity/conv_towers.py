"""What the parity tests of convolutional towers share: someone else's image tower beside ours with its weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from clipjax.config import ModelConfig
from clipjax.interop.convert import read_variables, their_arrays
from clipjax.interop.names import Tensor, check_tensors, flatten, stored, their_shapes
from clipjax.models import image_tower
from clipjax.models.dual_encoder import unit_length
from tests.torch_reference import import_torch

torch = import_torch()
BATCH = 6


def randomise(module: torch.nn.Module) -> None:
    """Every parameter and running statistic away from where it starts: zeros and ones would hide a missing one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            # Biases and gains by a lot; of the zero and 1e-6 gains, a whole branch of the network would see nothing.
            parameter.add_((0.3 if parameter.ndim < 2 else 0.02) * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))


class Pair:
    """One image tower, theirs and ours, with a loss on the unit embeddings.

    module: holds theirs under the names in `table`; embed: it as a function of images [B, 3, H, W]; model: ours.
    The loss is the softmax cross-entropy of the similarities with fixed random text embeddings, at scale 5.
    """

    def __init__(self, module: torch.nn.Module, model: ModelConfig, table: list[Tensor], embed):
        self.module, self.model, self.table = module, model, table
        self.embed = embed
        self.state = {name: value.numpy().copy() for name, value in module.state_dict().items()}
        size = model.image.image_size
        self.tower = image_tower(model.image).module(model.image, model.embed_dim, jnp.dtype(model.dtype))
        rng = np.random.default_rng(0)
        self.image = rng.normal(size=(BATCH, size, size, 3)).astype(np.float32)
        self.text = rng.normal(size=(BATCH, model.embed_dim)).astype(np.float32)
        self.text /= np.linalg.norm(self.text, axis=1, keepdims=True)
        self.target = jax.eval_shape(lambda: self.wrap(self.tower.init(jax.random.key(0), self.image)))
        self.shapes = their_shapes(table, model, flatten(self.target))
        check_tensors(stored(self.state), self.shapes, where="state_dict", family="conv")
        self.variables = read_variables(table, model, stored(self.state), self.target)

    def wrap(self, variables):
        return {name: {"image": tree} for name, tree in variables.items()}

    def apply(self, variables, train=False):
        """(embedding, batch_stats after it)."""
        variables = {name: tree["image"] for name, tree in variables.items()}
        if not train:
            return self.tower.apply(variables, self.image).pooled, None
        key = {"dropout": jax.random.key(0)}
        output, changed = self.tower.apply(variables, self.image, train=True, mutable=["batch_stats"], rngs=key)
        return output.pooled, changed.get("batch_stats", {})

    def loss(self, variables, train=False):
        x, changed = self.apply(variables, train)
        logits = 5 * unit_length(x) @ self.text.T
        rows = jax.nn.logsumexp(logits, 1).mean() + jax.nn.logsumexp(logits, 0).mean()
        return rows / 2 - jnp.trace(logits) / BATCH, changed

    def ours(self, train=False):
        """(loss, gradients under THEIR names, batch_stats after it under their names)."""

        def value(params):
            return self.loss({**self.variables, "params": params}, train)

        (loss, changed), grads = jax.jit(jax.value_and_grad(value, has_aux=True))(
            jax.tree.map(jnp.asarray, self.variables["params"])
        )
        variables = {"params": grads}
        if "batch_stats" in self.variables:
            variables["batch_stats"] = {"image": changed} if train else self.variables["batch_stats"]
        return float(loss), dict(their_arrays(self.table, self.model, variables))

    def theirs(self, train=False):
        """(loss, gradients by name, running statistics by name)."""
        self.module.train(train)
        self.module.zero_grad()
        x = torch.nn.functional.normalize(self.embed(torch.tensor(self.image.transpose(0, 3, 1, 2))), dim=-1)
        logits = 5 * x @ torch.tensor(self.text).T
        labels = torch.arange(BATCH)
        cross_entropy = torch.nn.functional.cross_entropy
        loss = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
        loss.backward()
        grads = {name: p.grad.numpy() for name, p in self.module.named_parameters()}
        running = {name: b.numpy().copy() for name, b in self.module.named_buffers() if "running" in name}
        self.module.load_state_dict({name: torch.tensor(value) for name, value in self.state.items()})
        return loss.item(), grads, running

    def check_embeddings(self, atol):
        self.module.eval()
        with torch.no_grad():
            theirs = self.embed(torch.tensor(self.image.transpose(0, 3, 1, 2))).numpy()
        ours = jax.jit(lambda variables: self.apply(variables)[0])(self.variables)
        scale = np.abs(theirs).max()
        assert theirs.std() > 0.05 * scale
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=atol)

    def check_gradients(self, train):
        """Loss to 1e-5, gradients to 1e-4 of each tensor's largest (and 1e-6 of all), statistics to 1e-5."""
        loss, grads = self.ours(train)
        expected_loss, expected, running = self.theirs(train)
        assert abs(loss - expected_loss) <= 1e-5 * abs(expected_loss)
        largest = max(np.abs(g).max() for g in expected.values())
        for name, wanted in expected.items():
            error = np.abs(grads[name] - wanted).max()
            assert error <= 1e-4 * np.abs(wanted).max() + 1e-6 * largest, name
        for name, wanted in running.items():
            np.testing.assert_allclose(grads[name], wanted, rtol=1e-5, atol=1e-5, err_msg=name)
            if train:
                assert np.abs(wanted - self.state[name]).max() > 1e-4, name

    def check_bfloat16(self, gradients=False):
        """In bfloat16 we are as near to the float32 original as PyTorch's own bfloat16 is, within a factor of 1.5 (and
        a rounding): embeddings, within four roundings of 2^-8 at that, and gradients."""
        rounding, exact, tower = 2.0**-8, self.embed, self.tower
        images = torch.tensor(self.image.transpose(0, 3, 1, 2))

        def rounded(images):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return exact(images).float()

        def error(found, wanted):
            return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)

        self.module.eval()
        self.tower = tower.clone(dtype=jnp.bfloat16)
        with torch.no_grad():
            wanted, theirs = exact(images).numpy(), rounded(images).numpy()
        ours = np.asarray(jax.jit(lambda variables: self.apply(variables)[0])(self.variables), np.float32)
        assert 0 < error(ours, wanted) <= min(4 * rounding, 1.5 * error(theirs, wanted) + rounding)
        if gradients:
            flat = lambda grads: np.concatenate([grads[name].ravel() for name, _ in self.module.named_parameters()])  # noqa: E731
            wanted, ours = flat(self.theirs()[1]), flat(self.ours()[1])
            self.embed = rounded
            assert error(ours, wanted) <= 1.5 * error(flat(self.theirs()[1]), wanted) + rounding
        self.embed, self.tower = exact, tower

    def check_round_trip(self):
        """Written again it is what was read, bit for bit, and the original takes it strictly."""
        written = dict(their_arrays(self.table, self.model, self.variables))
        assert written.keys() == self.state.keys()
        for name, array in written.items():
            if not name.endswith("num_batches_tracked"):
                np.testing.assert_array_equal(array, self.state[name])
        self.module.load_state_dict({name: torch.tensor(array) for name, array in written.items()}, strict=True)


def image_tower_shapes(model: ModelConfig, table: list[Tensor]) -> dict[str, tuple[int, ...]]:
    """Their name -> shape of every tensor of the image tower, without storage."""
    size = model.image.image_size
    tower = image_tower(model.image).module(model.image, model.embed_dim, jnp.float32)
    variables = jax.eval_shape(lambda: tower.init(jax.random.key(0), jnp.zeros((1, size, size, 3))))
    return their_shapes(table, model, flatten({name: {"image": tree} for name, tree in variables.items()}))
