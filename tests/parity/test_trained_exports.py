"""Other people's weights imported, trained for twenty steps on eight devices and exported: their library computes what
ours does then."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.commands import export, import_weights
from clipjax.config import LossConfig, MeshConfig
from clipjax.interop.names import InteropError, flatten
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.models import DualEncoder
from clipjax.optim.adamw import AdamWConfig
from clipjax.runs import open_run
from clipjax.runs.checkpoint import save_weights
from clipjax.runs.weights import first_state
from clipjax.training.step import make_train_step
from tests.parity.conv_towers import randomise
from tests.parity.test_conv_models import MODELS
from tests.parity.test_interop import hf_model, outputs, randomised
from tests.torch_reference import import_torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = import_torch()
transformers = import_torch("transformers")
open_clip = import_torch("open_clip")


def imported(kind, path):
    """A run directory of a random original of this family, which lies beside it."""
    torch.manual_seed(0)
    if kind.startswith("hf_"):
        randomised(hf_model(kind)).save_pretrained(path / "original")
    else:
        model = open_clip.model.CLIP(**MODELS[kind]).eval()
        randomise(model)
        (path / "original").mkdir()
        (path / "original" / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODELS[kind]}))
        torch.save(model.state_dict(), path / "original" / "open_clip_pytorch_model.bin")
    import_weights.run(path / "original", path / "imported", parity=False)
    return path / "imported"


def trained(source, path, loss, logit_bias_init):
    """Twenty steps from source's weights; (configuration, variables), saved at path."""
    with open_run(source) as run:
        start = run.config
    config = dataclasses.replace(
        start,
        model=dataclasses.replace(start.model, logit_bias_init=logit_bias_init),
        mesh=MeshConfig(data=2, fsdp=4),
        loss=LossConfig(loss),
        optimizer=AdamWConfig(learning_rate=1e-3),
        global_batch_size=16,
        total_steps=20,
        init_from=str(source),
    )
    mesh = make_mesh(config.mesh)
    prints = import_weights.weights_fingerprint(config)
    state = first_state(config, mesh, prints)
    before = jax.tree.map(np.asarray, {"params": state.params, "batch_stats": state.batch_stats})
    step = make_train_step(config, mesh, state)
    rng = np.random.default_rng(0)
    size, text = config.model.image.image_size, config.model.text
    batch = {
        "image": jax.device_put(rng.integers(0, 256, (16, size, size, 3), dtype=np.uint8), batch_sharding(mesh)),
        "text": jax.device_put(
            rng.integers(3, text.vocab_size, (16, text.context_length), dtype=np.int32), batch_sharding(mesh)
        ),
    }
    losses = []
    for _ in range(20):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] and np.isfinite(losses).all()
    variables = jax.tree.map(np.asarray, {"params": state.params, "batch_stats": state.batch_stats})
    still = [name for name, leaf in flatten(variables).items() if np.array_equal(leaf, flatten(before)[name])]
    still = [name for name in still if name.startswith(("image/", "batch_stats:")) and name != NO_GRADIENT]
    assert not still
    save_weights(path, variables, config=config, fingerprint=prints)
    return config, variables


# It adds the same number to all logits of the one query.
NO_GRADIENT = "image/map_head/attention/key/bias"
# family of the original, its loss, the bias that training adds or keeps, what it is exported as
CASES = [
    ("hf_clip", "softmax", None, "hf"),
    ("hf_clip", "sigmoid", None, "hf"),
    ("hf_siglip", "sigmoid", -10.0, "hf"),
    ("open_clip_resnet", "sigmoid", -10.0, "open_clip"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "loss", "bias", "format"), CASES)
def test_twenty_steps_from_imported_weights_and_out_again(kind, loss, bias, format, tmp_path):
    config, variables = trained(imported(kind, tmp_path), tmp_path / "run", loss, bias)
    export.run(tmp_path / "run", tmp_path / "out", format=format)
    if format == "hf":
        theirs, info = transformers.AutoModel.from_pretrained(
            tmp_path / "out", dtype=torch.float32, output_loading_info=True
        )
        assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    else:
        theirs = open_clip.create_model(f"local-dir:{tmp_path / 'out'}", load_weights=False)
        incompatible = open_clip.load_checkpoint(theirs, str(tmp_path / "out" / "open_clip_model.safetensors"))
        assert not incompatible.missing_keys and not incompatible.unexpected_keys
        running = variables["batch_stats"]["image"]["bn_1"]["mean"]
        np.testing.assert_array_equal(theirs.visual.bn1.running_mean.numpy(), running)

    rng, model = np.random.default_rng(1), config.model
    image = rng.normal(size=(3, model.image.image_size, model.image.image_size, 3)).astype(np.float32)
    text = rng.integers(3, model.text.vocab_size, (3, model.text.context_length), dtype=np.int32)
    out = jax.jit(DualEncoder(model).apply)(variables, image=jnp.asarray(image), text=jnp.asarray(text))
    logits = out.logit_scale * out.image_embedding @ out.text_embedding.T + out.logit_bias
    with torch.no_grad():
        expected = outputs(kind, theirs.eval(), (image, text))
    for found, wanted in zip((out.image_embedding, out.text_embedding, logits), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5 * np.abs(wanted.numpy()).max())


@pytest.mark.slow
def test_a_bias_that_transformers_clip_has_no_place_for_is_refused_by_name(tmp_path):
    source = imported("hf_clip", tmp_path)
    with open_run(source) as run:
        config = run.config
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, logit_bias_init=-10.0))
    prints = import_weights.weights_fingerprint(config)
    state = first_state(dataclasses.replace(config, init_from=str(source)), make_mesh(config.mesh), prints)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    save_weights(tmp_path / "run", variables, config=config, fingerprint=prints)
    with pytest.raises(InteropError, match="hf_clip: cannot express a model with logit_bias"):
        export.run(tmp_path / "run", tmp_path / "out", format="hf")
    assert not (tmp_path / "out").exists()
    export.run(tmp_path / "run", tmp_path / "out", format="open_clip")
    written = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())["model_cfg"]
    assert written["init_logit_bias"] == -10.0
