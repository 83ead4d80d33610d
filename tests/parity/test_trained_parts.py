"""Layer-wise rates as timm's. A run's adapters alone, read by peft, and their sum, which all that reads a run gets."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest

import clipjax
from clipjax.commands import export, import_weights
from clipjax.config import LoraConfig
from clipjax.interop.names import InteropError
from clipjax.interop.safetensors import open_safetensors
from clipjax.mesh import make_mesh, named_leaves
from clipjax.optim.layers import rate_multipliers
from clipjax.runs import open_run
from clipjax.runs.checkpoint import save_weights
from clipjax.runs.weights import first_state
from clipjax.training.lora import merged
from clipjax.training.state import initializer
from clipjax.training.trainable import heads_of
from tests.parity.test_interop import hf_model, randomised
from tests.tiny import tiny_config
from tests.torch_reference import import_torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = import_torch()
transformers = import_torch("transformers")

RANK, ALPHA = 3, 6.0


def host(tree):
    return {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}


def adapted_run(folder, kind, **lora):
    """A run whose adapters are random, at folder/run, over the original at folder/original."""
    torch.manual_seed(0)
    randomised(hf_model(kind)).save_pretrained(folder / "original")
    import_weights.run(folder / "original", folder / "imported", parity=False)
    with open_run(folder / "imported") as run:
        config = run.config
    matrices = ("query", "value", "out", "up", "down")
    config = dataclasses.replace(
        config, init_from=str(folder / "imported"), lora=LoraConfig(RANK, ALPHA, matrices, **lora)
    )
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    params = first_state(config, mesh, import_weights.weights_fingerprint(config)).params
    rng = np.random.default_rng(0)
    noise = jax.tree.map(lambda a: (0.3 * rng.normal(size=a.shape)).astype(np.float32), params["lora"])
    params = {**params, "lora": {**noise, "scale": params["lora"]["scale"]}}
    fingerprint = import_weights.weights_fingerprint(config)
    save_weights(folder / "run", {"params": params}, config=config, fingerprint=fingerprint)
    return config, params, mesh


@pytest.fixture(scope="module", params=["hf_clip", "hf_siglip"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return folder, request.param, *adapted_run(folder, request.param)


def test_the_first_step_is_the_base_and_all_that_reads_a_run_gets_the_sum(run):
    folder, _, config, params, mesh = run
    with open_run(folder / "imported") as imported, open_run(folder / "run") as opened:
        base, sums = host(imported.variables(mesh)["params"]), host(opened.variables(mesh)["params"])
    assert base.keys() == sums.keys()
    expected = host(merged(params))
    names = {"attention/qkv/kernel", "attention/out/kernel", "mlp/up/kernel", "mlp/down/kernel"}
    for name, value in sums.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
        np.testing.assert_array_equal(host(params)[name], base[name], err_msg=name)  # the base keeps its bits
        adapted = "/block" in name and name.split("/", 2)[2] in names
        assert np.array_equal(value, base[name]) != adapted, name
    again = dataclasses.replace(config, init_from=str(folder / "run"))
    state = first_state(again, mesh, import_weights.weights_fingerprint(again))
    for name, value in host({n: tree for n, tree in state.params.items() if n != "lora"}).items():
        np.testing.assert_array_equal(value, sums[name], err_msg=name)
    assert not any(value.any() for name, value in host(state.params["lora"]).items() if name.endswith("/b"))


def test_peft_reads_the_adapters_and_computes_what_the_run_does(run, tmp_path):
    peft = import_torch("peft")
    folder, kind, config, _, _ = run
    export.run(folder / "run", tmp_path / "adapters", format="peft")
    size = (tmp_path / "adapters" / "adapter_model.safetensors").stat().st_size
    assert size < 0.5 * (folder / "original" / "model.safetensors").stat().st_size
    original = type(hf_model(kind)).from_pretrained(folder / "original")
    model = peft.PeftModel.from_pretrained(original, tmp_path / "adapters").eval()

    rng = np.random.default_rng(1)
    side, text = config.model.image.image_size, config.model.text
    ids = rng.integers(3, text.vocab_size - 1, (4, text.context_length)).astype(np.int32)
    ids[:, -1] = text.vocab_size - 1 if text.eos_id < 0 else text.eos_id
    images = rng.integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    pixels = config.data.pixels
    normal = (images / 255 - np.array(pixels.mean)) / np.array(pixels.std)
    with torch.no_grad():
        inputs = dict(pixel_values=torch.tensor(normal.transpose(0, 3, 1, 2), dtype=torch.float32))
        out = model.get_base_model()(input_ids=torch.tensor(ids).long(), **inputs)
    loaded = clipjax.load(folder / "run")
    np.testing.assert_allclose(loaded.embed_images(images), unit(out.image_embeds), atol=2e-5)
    np.testing.assert_allclose(loaded.embed_texts(ids), unit(out.text_embeds), atol=2e-5)


def unit(embeddings):
    embeddings = embeddings.numpy()
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def test_a_merged_export_is_pefts_merge(run, tmp_path):
    peft = import_torch("peft")
    folder, kind, *_ = run
    export.run(folder / "run", tmp_path / "adapters", format="peft")
    export.run(folder / "run", tmp_path / "whole", format="hf", nearest_pixels=True)
    original = type(hf_model(kind)).from_pretrained(folder / "original")
    theirs = peft.PeftModel.from_pretrained(original, tmp_path / "adapters").merge_and_unload().state_dict()
    ours = open_safetensors(tmp_path / "whole" / "model.safetensors")
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor.read(), theirs[name].numpy(), atol=2e-6, err_msg=name)


def test_adapters_with_heads_are_no_pefts_but_are_saved_under_our_names(tmp_path):
    config, params, _ = adapted_run(tmp_path, "hf_siglip", heads=True, text=False)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, text_lr_multiplier=0.0))
    save_weights(tmp_path / "heads", {"params": params}, config=config, fingerprint={})
    with pytest.raises(InteropError, match=r"also trained image/ln_post/bias.*Use --format=adapters"):
        export.run(tmp_path / "heads", tmp_path / "peft", format="peft")
    export.run(tmp_path / "heads", tmp_path / "adapters", format="adapters")
    found = open_safetensors(tmp_path / "adapters" / "adapters.safetensors")
    expected = host(params)
    assert {name.split("/")[0] for name in found} == {"image", "lora", "logit_scale", "logit_bias"}
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor.read(), expected[name], err_msg=name)
    assert json.loads((tmp_path / "adapters" / "adapters.json").read_text())["rank"] == RANK
    with pytest.raises(InteropError, match=r"is for runs with adapters.*--format=hf"):
        export.run(tmp_path / "imported", tmp_path / "none", format="peft")
    assert not (tmp_path / "peft").exists() and not (tmp_path / "none").exists()


def test_layer_decay_is_timms_except_for_the_last_norm():
    timm, optim = import_torch("timm"), import_torch("timm.optim")
    depth = 3
    vit = timm.create_model("vit_tiny_patch16_224", depth=depth, num_classes=4)
    groups = optim.param_groups_layer_decay(vit, weight_decay=0.0, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in vit.named_parameters()}
    theirs = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    config = tiny_config(layer_decay=0.5)
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, image=dataclasses.replace(config.model.image, depth=depth))
    )
    params = jax.eval_shape(initializer(config)).params
    rates = named_leaves(rate_multipliers(config.optimizer, params, heads_of(config)))
    np.testing.assert_allclose(
        rates["image/blocks/mlp/up/kernel"].ravel(), [theirs[f"blocks.{i}.mlp.fc1.weight"] for i in range(depth)]
    )
    assert rates["image/position_embedding"] == theirs["pos_embed"] == theirs["patch_embed.proj.weight"] == 0.5**4
    assert rates["image/map_head/mlp/up/kernel"] == theirs["head.weight"] == 1.0
    assert (rates["image/ln_post/scale"], theirs["norm.weight"]) == (1.0, 0.5)
