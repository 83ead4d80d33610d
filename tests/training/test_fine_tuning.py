"""Last blocks, heads, layer-wise rates and adapters: what trains, what it costs, and whose gradients it gets."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.config import ConfigError, LoraConfig, MeshConfig
from clipjax.mesh import batch_sharding, make_mesh, named_leaves
from clipjax.models import IMAGE_TOWERS, TEXT_TOWERS
from clipjax.models.pixels import Patches
from clipjax.models.presets import get_preset
from clipjax.models.towers.bert import BertConfig
from clipjax.models.towers.naflex import NaFlexConfig
from clipjax.models.transformer import unstack_layers
from clipjax.optim.adamw import AdamWConfig
from clipjax.optim.layers import TOWERS, rate_multipliers
from clipjax.planning.flops import step_flops, traced_flops
from clipjax.runs.checkpoint import open_checkpoints, open_read_only, restore, restore_variables, save
from clipjax.training.check import check
from clipjax.training.gradients import make_loss_and_gradients
from clipjax.training.lora import merged, with_adapters
from clipjax.training.state import abstract_state, create_state, eval_variables, initializer
from clipjax.training.trainable import heads_of, trained
from tests.tiny import start, tiny_batches, tiny_config

DEPTH = 3
KEY = jax.random.key(0)
ALL = ("query", "key", "value", "out", "up", "down")


def config_for(mesh=(1, 1, 1), scan=True, lora=None, remat="none", **optimizer):
    """tiny_config with towers of three blocks."""
    config = tiny_config(mesh, loss="softmax", **optimizer)
    towers = {
        side: replace(getattr(config.model, side), depth=DEPTH, scan_layers=scan, remat=remat)
        for side in ("image", "text")
    }
    return replace(config, model=replace(config.model, **towers), lora=lora or LoraConfig())


def on_one_device(config):
    return make_mesh(config.mesh, jax.devices()[:1])


def params_of(config):
    return jax.eval_shape(initializer(config)).params


def shapes_of(config):
    """name -> shape of what trains."""
    params = params_of(config)
    part = jax.eval_shape(lambda params: trained(config, params), params)
    return {name: leaf.shape for name, leaf in named_leaves(part).items()}


def host(tree):
    return {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}


# What trains.


@pytest.mark.parametrize("scan", [True, False])
def test_the_last_blocks_and_what_follows_them_train_and_only_they_have_optimizer_state(scan):
    config = config_for(scan=scan, image_unlocked_blocks=2, text_unlocked_blocks=0)
    found = shapes_of(config)
    blocks = {name.split("/")[1] for name in found if name.startswith("image/block")}
    assert blocks == ({"blocks"} if scan else {"block_1", "block_2"})
    assert found[f"image/{min(blocks)}/mlp/up/kernel"] == ((2, 32, 64) if scan else (32, 64))
    assert {name.split("/")[1] for name in found if name.startswith("image/")} - blocks == {"ln_post", "map_head"}
    assert {name.split("/")[1] for name in found if name.startswith("text/")} == {"ln_final", "projection"}
    state = abstract_state(config, on_one_device(config))
    moments = {name.partition("/mu/")[2]: leaf.shape for name, leaf in named_leaves(state.opt_state).items()}
    assert {name: shape for name, shape in moments.items() if name} == found


def test_the_heads_of_every_kind_of_tower_train_alone():
    for preset, heads in {
        "clip_rn50": {"attention_pool"},
        "open_clip_convnext_base": {"ln_head", "projection"},
    }.items():
        model = get_preset(preset)
        model = replace(model, image=replace(model.image, stages=(1, 1, 1, 1)))
        config = replace(config_for(image_unlocked_blocks=0), model=model)
        check(config, num_devices=1)
        assert {name.split("/")[1] for name in shapes_of(config) if name.startswith("image/")} == heads


def test_every_parameter_outside_the_blocks_is_known_to_precede_or_to_follow_them():
    first = {"patch_embed", "cls_token", "position_embedding", "ln_pre"}
    first |= {"token_embedding", "token_type_embedding", "ln_embedding"}
    for preset in ("clip_vit_b16", "siglip2_naflex_b16", "coca_vit_b32", "open_clip_xlm_roberta_base_vit_b32"):
        model = get_preset(preset)
        model = replace(model, image=replace(model.image, depth=1), text=replace(model.text, depth=1))
        config = replace(config_for(), model=model)
        params = params_of(config)
        for side, heads in heads_of(config).items():
            outside = {name for name in params[side] if not name.startswith("block")}
            assert outside - set(heads) <= first, (preset, side)


@pytest.mark.parametrize(("heads", "scan"), [(False, True), (True, False)])
def test_adapters_train_instead_of_their_towers(heads, scan):
    config = config_for(scan=scan, lora=LoraConfig(rank=4, text=False, heads=heads), text_lr_multiplier=0.0)
    found = shapes_of(config)
    layers, block = ((DEPTH,), "blocks") if scan else ((), "block_2")
    adapters = {name: shape for name, shape in found.items() if name.startswith("lora/")}
    assert len(adapters) == 4 * (1 if scan else DEPTH)
    assert adapters[f"lora/image/{block}/attention/query/a"] == (*layers, 32, 4)
    assert adapters[f"lora/image/{block}/attention/value/b"] == (*layers, 4, 32)
    rest = {name.split("/")[1] if "/" in name else name for name in set(found) - set(adapters)}
    assert rest == {"logit_scale", "logit_bias"} | ({"ln_post", "map_head"} if heads else set())
    assert not shapes_of(replace(config, optimizer=replace(config.optimizer, temperature_lr_multiplier=0.0))).keys() & {
        "logit_scale",
        "logit_bias",
    }


# Layer-wise learning rates.


@pytest.mark.parametrize("scan", [True, False])
def test_layer_decay_is_the_rule_of_beit_for_scanned_and_unrolled_blocks(scan):
    config = config_for(scan=scan, layer_decay=0.5, text_lr_multiplier=0.1)
    params = params_of(config)
    rates = named_leaves(rate_multipliers(config.optimizer, params, heads_of(config)))

    def beit(name):
        """scale ** (layers - 1 - layer id), layers = depth + 2; microsoft/unilm beit/optim_factory.py."""
        tower, _, inside = name.partition("/")
        if tower not in ("image", "text"):
            return 1.0
        if inside.startswith(("ln_post", "map_head", "ln_final", "projection")):
            layer = DEPTH + 1
        else:
            layer = np.arange(1, DEPTH + 1) if inside.startswith("blocks") else 0
            layer = int(inside.split("/")[0][6:]) + 1 if inside.startswith("block_") else layer
        return (0.1 if tower == "text" else 1.0) * 0.5 ** (DEPTH + 1 - layer)

    for name, rate in rates.items():
        np.testing.assert_allclose(rate.ravel(), np.ravel(beit(name)), rtol=1e-6, err_msg=name)


# What it costs.


def test_the_backward_pass_ends_behind_what_is_frozen():
    def program(scan, changes):
        config = config_for(scan=scan, **changes)
        state = jax.eval_shape(initializer(config))
        return make_loss_and_gradients(config, on_one_device(config)), (state.params, {}, tiny_batches(1)[0], KEY)

    def flops(scan=True, **changes):
        function, arguments = program(scan, changes)
        return traced_flops(function, *arguments)

    def compiled_flops(**changes):
        function, arguments = program(False, changes)
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]

    frozen = dict(text_lr_multiplier=0.0)
    whole, last, heads = (flops(image_unlocked_blocks=k, **frozen) for k in (DEPTH, 1, 0))
    image = step_flops(config_for())["image tower"] + step_flops(config_for())["image attention"]
    per_block = (whole - last) / (DEPTH - 1)
    # Two products for each of the forward pass, in three blocks of which the rest of the tower is a small part.
    assert per_block == pytest.approx(2 / 3 * image / DEPTH, rel=0.35)
    assert heads < last - 0.9 * per_block
    assert flops(scan=False, image_unlocked_blocks=1, **frozen) == last
    # The compiler leaves out the gradients of the matrices that adapters replace: a third of their products, or less.
    lora = compiled_flops(lora=LoraConfig(rank=2, text=False), **frozen)
    assert lora < 0.9 * compiled_flops(image_unlocked_blocks=DEPTH, **frozen)


# Gradients.


@pytest.mark.slow
def test_gradients_of_last_blocks_and_adapters_are_parts_of_the_whole_gradient():
    mesh, batch, lora = on_one_device(config_for()), tiny_batches(1)[0], LoraConfig(rank=2, alpha=3.0, matrices=ALL)
    last = dict(image_unlocked_blocks=2, text_unlocked_blocks=1)

    def gradients(params, scan=True, **changes):
        return make_loss_and_gradients(config_for(scan=scan, **changes), mesh)(params, {}, batch, KEY)[2]

    @jax.jit
    def all_of_them():
        adapted = noisy(initializer(config_for(lora=lora))().params)
        stacked = merged(adapted)
        unrolled = {name: unstack_layers(tree) if name in TOWERS else tree for name, tree in stacked.items()}
        return (
            adapted,
            gradients(stacked),
            gradients(stacked, remat="full", **last),
            gradients(unrolled, scan=False, **last),
            gradients(adapted, lora=lora),
        )

    adapted, whole, scanned, unrolled, ours = map(host, all_of_them())
    for name, value in scanned.items():
        expected = whole[name][-len(value) :] if "/blocks/" in name else whole[name]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6, err_msg=name)
        for i in range(DEPTH - len(value), DEPTH) if "/blocks/" in name else ():
            one = unrolled[name.replace("blocks", f"block_{i}")]
            np.testing.assert_allclose(one, whole[name][i], rtol=1e-5, atol=1e-6, err_msg=name)
    assert {len(value) for name, value in scanned.items() if "/blocks/" in name} == {2, 1}
    assert {name for name in ours if not name.startswith("lora/")} == {"logit_scale", "logit_bias"}
    for name in (name for name in ours if name.endswith("/a")):
        _, tower, block, part, matrix, _ = name.split("/")
        fused = {"query": 0, "key": 1, "value": 2}.get(matrix)
        kernel = whole[f"{tower}/{block}/{part}/{'qkv' if fused is not None else matrix}/kernel"].astype(np.float64)
        dw = kernel if fused is None else kernel[..., fused, :]
        a, b = (adapted[f"{name[:-1]}{letter}"].astype(np.float64) for letter in "ab")
        for letter, expected in {"a": dw @ b.swapaxes(1, 2), "b": a.swapaxes(1, 2) @ dw}.items():
            found = ours[f"{name[:-1]}{letter}"]
            np.testing.assert_allclose(found, 3.0 / 2 * expected, rtol=1e-4, atol=1e-6, err_msg=name)


def noisy(params):
    """params with adapters that are not zero."""
    rng = np.random.default_rng(0)
    noise = jax.tree.map(lambda a: jnp.asarray(0.1 * rng.normal(size=a.shape), jnp.float32), params["lora"])
    return {**params, "lora": {**noise, "scale": params["lora"]["scale"]}}


def towers_of_blocks():
    """(row, config, input) of the kinds of towers that tiny_config does not have."""
    rng = np.random.default_rng(0)
    shared = dict(width=16, depth=DEPTH, num_heads=2, mlp_dim=24)
    bert = BertConfig(vocab_size=20, context_length=6, **shared)
    yield TEXT_TOWERS["bert"], bert, rng.integers(0, 20, (3, 6)).astype(np.int32)
    naflex = NaFlexConfig(image_size=16, patch_size=4, max_patches=12, **shared)
    shape = np.array([[3, 4], [2, 2], [1, 5]], np.int32)
    yield IMAGE_TOWERS["naflex"], naflex, Patches(rng.normal(size=(3, 12, 48)).astype(np.float32), shape)


@pytest.mark.slow
def test_in_every_tower_frozen_blocks_change_no_output_and_get_no_gradient():
    @jax.jit
    def compared():
        results = []
        for row, config, x in towers_of_blocks():
            whole, part = (row.module(config, 8, jnp.float32, frozen_blocks=frozen) for frozen in (0, 2))
            params = whole.init(KEY, x)
            value = lambda params, tower, x=x: 100 * jnp.sum(tower.apply(params, x).pooled)  # noqa: E731
            results.append([jax.value_and_grad(value)(params, tower) for tower in (whole, part)])
        return results

    for (value, grads), (same, some) in compared():
        assert float(same) == pytest.approx(float(value), rel=1e-4)
        expected = host(grads)
        for name, found in host(some).items():
            trains = name.split("/")[1] in ("ln_post", "map_head", "projection")
            if "/blocks/" in name:
                trains = (np.arange(DEPTH) >= 2).reshape(-1, *(1,) * (found.ndim - 1))
            np.testing.assert_allclose(found, trains * expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


# Steps.

BOTH = dict(image_unlocked_blocks=1, layer_decay=0.7, grad_clip_norm=1.0, ema_decay=0.5)
TEXT = LoraConfig(rank=2, matrices=("query", "value", "out", "down"), image=False)


def three_steps(mesh, devices, accumulation=1):
    config = replace(config_for(mesh, lora=TEXT, **BOTH), accumulation_steps=accumulation)
    mesh, state, step = start(config, devices)
    first = jax.tree.map(np.array, state)
    for batch in tiny_batches(3):
        state, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
    return config, first, state, float(metrics["loss"])


@pytest.mark.slow
def test_frozen_rows_and_adapted_matrices_keep_their_bits_in_parameters_and_averages():
    config, first, state, _ = three_steps((1, 1, 1), 1)
    for before, after in ((first.params, state.params), (first.ema_params, state.ema_params)):
        before, after = host(before), host(after)
        for name, value in before.items():
            rows = slice(0, DEPTH - 1) if name.startswith("image/blocks") else slice(None)
            follows = name.startswith(("image/ln_post", "image/map_head", "logit_", "lora/"))
            if name == "lora/scale" or not follows:
                np.testing.assert_array_equal(
                    after[name][rows if value.ndim else ...], value[rows if value.ndim else ...]
                )
        moved = {name for name in before if not np.array_equal(before[name], after[name])}
        assert {"image/blocks/mlp/up/kernel", "image/ln_post/scale", "lora/text/blocks/mlp/down/a"} <= moved
    evaluated, shapes = eval_variables(state)["params"], eval_variables(abstract_state(config, on_one_device(config)))
    assert jax.tree.structure(evaluated) == jax.tree.structure(shapes["params"])
    name = "text/blocks/mlp/down/kernel"
    assert not np.array_equal(host(evaluated)[name], host(state.ema_params)[name])


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "accumulation"), [((2, 2, 2), 2), ((1, 8, 1), 1)])
def test_steps_of_part_of_the_model_are_the_same_on_any_mesh(mesh, accumulation):
    _, _, alone, loss = three_steps((1, 1, 1), 1)
    _, _, state, other = three_steps(mesh, 8, accumulation)
    assert other == pytest.approx(loss, rel=1e-5)
    for tree, expected in ((state.params, alone.params), (eval_variables(state), eval_variables(alone))):
        expected = host(expected)
        for name, value in host(tree).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_adapters_start_at_the_base_and_within_pefts_bound():
    base = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), params_of(config_for()))
    params = with_adapters(config_for(lora=LoraConfig(rank=4, matrices=ALL)), base, KEY)
    for name, value in host(merged(params)).items():
        np.testing.assert_array_equal(value, host(base)[name], err_msg=name)
    for name, value in host(params["lora"]).items():
        if name.endswith("/a"):
            assert 0.9 * value.shape[1] ** -0.5 < np.abs(value).max() <= value.shape[1] ** -0.5


def test_a_checkpoint_of_part_of_the_model_is_restored_on_another_mesh(tmp_path):
    config = config_for(lora=TEXT, **BOTH)
    state = create_state(config, on_one_device(config))
    with open_checkpoints(tmp_path, config.checkpoint) as manager:
        save(manager, state, data_state={}, config=config, fingerprint={})
    mesh = make_mesh(MeshConfig(2, 2, 2))
    with open_read_only(tmp_path / "checkpoints") as manager:
        restored = restore(manager, 0, config, mesh)
        variables = restore_variables(manager, 0, config, mesh)
    found, expected = host(restored), host(state)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    specs = {name: leaf.sharding.spec for name, leaf in named_leaves(restored.opt_state).items()}
    (rows,) = (spec for name, spec in specs.items() if name.endswith("mu/image/blocks/mlp/up/kernel"))
    (factor,) = (spec for name, spec in specs.items() if name.endswith("mu/lora/text/blocks/mlp/down/a"))
    assert (tuple(rows), tuple(factor)) == ((None, "fsdp", "tensor"), (None, "tensor", None))
    assert "lora" not in variables["params"] and not any("image/patch_embed" in name for name in specs)


# Bad values.


@pytest.mark.parametrize(
    ("optimizer", "lora", "message"),
    [
        (
            {"image_unlocked_blocks": 4},
            {},
            r"image_unlocked_blocks=4 is more than the 3 blocks of config\.model",
        ),
        ({"text_unlocked_blocks": 1, "text_lr_multiplier": 0.0}, {}, r"no effect with config\.optimizer\.text_lr_mult"),
        ({}, {"alpha": 32.0}, r"config\.lora\.alpha=32\.0 has no effect with config\.lora\.rank=0.*such as 8"),
        ({}, {"rank": 4, "matrices": ("qeury",)}, r"has 'qeury', which is no matrix.*query"),
        ({}, {"rank": 4, "matrices": ()}, r"must name at least one of query, key"),
        ({}, {"rank": 4, "matrices": ("up", "up")}, r"each once"),
        ({}, {"rank": 4, "matrices": ("up", "gate")}, r"has 'gate', which no adapted tower has"),
        ({}, {"rank": 4, "matrices": ("gate",)}, r"tower 'vit' has none of the matrices gate"),
        ({}, {"rank": 4, "image": False, "text": False}, r"adapts no tower"),
        ({}, {"rank": 64}, r"rank=64 is more than config\.model\.image\.width=32"),
        ({"image_lr_multiplier": 0.0}, {"rank": 4}, r"the adapters would not train\. Set config\.lora\.image=False"),
        ({"text_unlocked_blocks": 1}, {"rank": 4}, r"freezes all blocks.*Leave it at -1"),
        ({"layer_decay": 0.0}, {}, r"layer_decay=0\.0 must be above 0"),
    ],
)
def test_what_could_not_train_is_refused_before_compiling(optimizer, lora, message):
    config = config_for(lora=LoraConfig(**lora), **optimizer)
    with pytest.raises(ConfigError, match=message):
        check(config, num_devices=1)


@pytest.mark.parametrize(
    ("optimizer", "lora", "message"),
    [
        ({"image_unlocked_blocks": 1}, {}, r"tower 'resnet' has no blocks of one kind to count.*0 \(only what follows"),
        ({"layer_decay": 0.7}, {}, r"layer_decay=0\.7: tower 'resnet' has no blocks"),
        ({}, {"rank": 4}, r"tower 'resnet' has none of the matrices.*Set config\.lora\.image=False"),
    ],
)
def test_a_tower_of_stages_has_no_blocks_to_count_or_adapt(optimizer, lora, message):
    config = replace(config_for(lora=LoraConfig(**lora)), model=get_preset("clip_rn50"))
    config = replace(config, optimizer=AdamWConfig(**optimizer))
    with pytest.raises(ConfigError, match=message):
        check(config, num_devices=1)
