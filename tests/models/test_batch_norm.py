"""BatchNorm's running statistics: of the global batch, kept by checkpoints, untouched by what must not touch them."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clipjax.config import CheckpointConfig, ConfigError, from_json_dict, to_json_dict
from clipjax.mesh import batch_sharding, make_mesh, partition_spec
from clipjax.models.conv import BatchNorm
from clipjax.models.towers.conv_stem_vit import ConvStemViTConfig
from clipjax.models.towers.efficientnet import EfficientNetConfig
from clipjax.models.towers.resnet import ResNetConfig
from clipjax.planning.hlo import collectives, parse
from clipjax.runs import checkpoint as checkpoints
from clipjax.runs import open_run
from clipjax.training.check import check
from clipjax.training.gradients import make_loss_and_gradients
from clipjax.training.state import abstract_state, create_state, eval_variables
from clipjax.training.step import lower_step
from tests.tiny import start, tiny_batches, tiny_config

BATCH = tiny_batches(1)[0]
BATCH["image"] = BATCH["image"].repeat(2, 1).repeat(2, 2)  # 32 x 32, the least a ResNet takes


def resnet_config(mesh=(1, 1, 1), width=4, **optimizer):
    config = tiny_config(mesh, **optimizer)
    image = ResNetConfig(image_size=32, stages=(1, 1, 1, 1), width=width, num_heads=2)
    return replace(config, model=replace(config.model, image=image))


def host(tree):
    return jax.tree.map(np.array, tree)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, host(a), host(b))


def differs(a, b):
    return max(np.abs(x - y).max() for x, y in zip(jax.tree.leaves(host(a)), jax.tree.leaves(host(b)), strict=True))


@pytest.mark.slow
def test_statistics_and_gradients_of_eight_devices_are_those_of_one():
    found = []
    for mesh, devices in (((1, 1, 1), 1), ((4, 2, 1), 8)):
        config = resnet_config(mesh)
        mesh = make_mesh(config.mesh, jax.devices()[:devices])
        state = create_state(config, mesh)
        # The last BatchNorm of a block starts with gains of zero, which hide the branch from its gradient.
        params = jax.tree.map(lambda p: jnp.where(p.ndim == 1, p + 0.3, p), state.params)
        batch = jax.device_put(BATCH, batch_sharding(mesh))
        run = jax.jit(make_loss_and_gradients(config, mesh))
        loss, _, grads, batch_stats = run(params, state.batch_stats, batch, jax.random.key(0))
        assert differs(batch_stats, state.batch_stats) > 0.01
        found.append(host((loss, grads, batch_stats)))
    one, eight = found
    assert eight[0] == pytest.approx(one[0], rel=1e-6)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(one[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest), eight[1], one[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), eight[2], one[2])


@pytest.mark.slow
def test_a_skipped_step_leaves_them_and_a_good_one_moves_them_and_their_average():
    _, state, step = start(resnet_config(ema_decay=0.75), num_devices=1)
    before = host(state.batch_stats)
    state, _ = step(state, BATCH)
    once = host(state.batch_stats)
    assert differs(once, before) > 0.01
    expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, before, once)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), host(state.ema_batch_stats), expected)
    averages = host(state.ema_batch_stats)
    poisoned = {**state.params, "logit_scale": jnp.full_like(state.params["logit_scale"], jnp.nan)}
    state, metrics = step(state.replace(params=poisoned), BATCH)
    assert int(metrics["skipped"]) == 1
    assert_equal(state.batch_stats, once)
    assert_equal(state.ema_batch_stats, averages)


@pytest.mark.slow
def test_a_frozen_tower_normalises_by_them_and_leaves_them():
    config = resnet_config(image_lr_multiplier=0.0)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    state = create_state(config, mesh)
    run = jax.jit(make_loss_and_gradients(config, mesh))
    moved = jax.tree.map(lambda s: s + 0.5, state.batch_stats)
    results = [run(state.params, stats, BATCH, jax.random.key(0)) for stats in (state.batch_stats, moved)]
    assert_equal(results[0][3], state.batch_stats)
    assert_equal(results[1][3], moved)
    assert abs(results[0][0] - results[1][0]) > 1e-4, "they count in the loss"


@pytest.mark.slow
@pytest.mark.parametrize(("unlocked", "moves"), [(-1, True), (1, False)])
def test_a_vit_s_convolutional_stem_moves_them_only_while_it_trains(unlocked, moves):
    config = tiny_config(image_unlocked_blocks=unlocked)
    shape = dict(image_size=32, patch_size=4, width=16, depth=2, num_heads=2, mlp_dim=32)
    image = ConvStemViTConfig(stem_strides=(2, 2), stem_width=8, **shape)
    config = replace(config, model=replace(config.model, image=image))
    check(config, num_devices=1)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    state = create_state(config, mesh)
    run = jax.jit(make_loss_and_gradients(config, mesh))
    loss, _, grads, after = run(state.params, state.batch_stats, BATCH, jax.random.key(0))
    assert np.isfinite(loss) and ("conv_1" in grads["image"]) == moves
    assert (differs(after, state.batch_stats) > 1e-3) == moves


@pytest.mark.slow
def test_checkpoints_hold_them_for_towers_that_have_them_only(tmp_path):
    for name, config in (("resnet", resnet_config(ema_decay=0.5)), ("vit", tiny_config((1, 1, 1), ema_decay=0.5))):
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        state = create_state(config, mesh)
        numbered = jax.tree.map(lambda s: s + 1 + jnp.arange(s.size), state.batch_stats)
        state = state.replace(batch_stats=numbered, ema_batch_stats=jax.tree.map(jnp.negative, numbered))
        with checkpoints.open_checkpoints(tmp_path / name, CheckpointConfig()) as manager:
            checkpoints.save(manager, state, data_state={}, config=config, fingerprint={})
            manager.wait_until_finished()
        items = {path.name for path in (tmp_path / name / "checkpoints" / "0").iterdir() if path.is_dir()}
        own = {"batch_stats", "ema_batch_stats"}
        assert items & own == (own if name == "resnet" else set())

        with open_run(tmp_path / name) as run:
            assert_equal(run.state(mesh), state)
        # On another mesh, for evaluation: the averages.
        other = make_mesh(replace(config.mesh, data=2, fsdp=4))
        with open_run(tmp_path / name) as run:
            assert_equal(run.variables(other), eval_variables(state))


def test_accumulation_is_refused_unless_the_tower_is_frozen():
    config = replace(resnet_config(), accumulation_steps=2)
    with pytest.raises(ConfigError, match="accumulation_steps=2 with .*'resnet': BatchNorm normalises by statistics"):
        check(config, num_devices=1)
    check(replace(config, optimizer=replace(config.optimizer, image_lr_multiplier=0.0)), num_devices=1)
    check(replace(config, accumulation_steps=1), num_devices=1)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (ResNetConfig(stages=(1, 1, 1)), "four stages of blocks"),
        (ResNetConfig(image_size=40), "must be a multiple of 32"),
        (ResNetConfig(num_heads=3), "num_heads=3 does not divide 32 width = 2048"),
        (ResNetConfig(name="efficientnet"), "'efficientnet' goes with EfficientNetConfig, not with ResNetConfig"),
        (EfficientNetConfig(width=640), "with width_coefficient=1.0 the last stage is 320 wide"),
    ],
)
def test_options_that_do_not_fit_are_refused(image, message):
    config = resnet_config()
    with pytest.raises(ConfigError, match=message):
        check(replace(config, model=replace(config.model, image=image)), num_devices=1)


@pytest.mark.parametrize("option", ["scan_layers", "drop_path", "projection"])
def test_an_option_of_another_tower_is_an_unknown_field(option):
    tree = to_json_dict(resnet_config())
    tree["model"]["image"][option] = 0
    with pytest.raises(ConfigError, match=f"Unknown field config.model.image.{option}: 'resnet' has no such field"):
        from_json_dict(tree)


def test_statistics_stay_float32_when_activations_are_not():
    x = 100 + jax.random.normal(jax.random.key(0), (4096, 3))
    norm = BatchNorm(eps=1e-5, momentum=0.0)
    variables = norm.init(jax.random.key(0), x, False)
    # 100 +- 1 has 0.5 between neighbours in bfloat16; sums of it in bfloat16 would stop at 256.
    y, changed = norm.apply(variables, x.astype(jnp.bfloat16), True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    stats = changed["batch_stats"]
    assert stats["mean"].dtype == stats["var"].dtype == jnp.float32
    np.testing.assert_allclose(stats["mean"], x.mean(0), atol=0.02)
    np.testing.assert_allclose(stats["var"], x.var(0), rtol=0.1)


@pytest.mark.slow
def test_fsdp_gathers_convolutions_and_no_activations():
    config = replace(resnet_config((1, 8, 1), width=16), global_batch_size=512)
    mesh = make_mesh(config.mesh, jax.devices())
    state = abstract_state(config, mesh)
    params = sum(leaf.size * 4 for leaf in jax.tree.leaves(state.params))
    shards = [np.prod(leaf.sharding.shard_shape(leaf.shape)) * 4 for leaf in jax.tree.leaves(state.params)]
    assert sum(shards) < 0.2 * params
    moved = collectives(parse(lower_step(config, mesh, state, None).compile().as_text()), 8)
    gathered = [c for c in moved if c.kind == "all-gather" and "shard_map" not in c.op_name]
    assert 0 < sum(c.bytes_out * c.times for c in gathered) <= 2.1 * params
    assert not [c for c in moved if c.kind in ("all-to-all", "collective-permute")]
    # What is summed over devices on the way forward is statistics: two numbers a channel of each BatchNorm.
    forward = [c for c in moved if c.kind == "all-reduce" and re.match(r"jit\(train_step\)/jvp\(Dual", c.op_name)]
    statistics = sum(leaf.size * 4 for leaf in jax.tree.leaves(state.batch_stats))
    assert 0 < sum(c.bytes_out * c.times for c in forward) <= 1.01 * statistics


def test_depthwise_kernels_stay_whole_and_the_others_are_cut_by_output_channel():
    """A cut depthwise kernel makes the partitioner cut, and move, the activations by channel."""
    mesh = make_mesh(replace(resnet_config().mesh, data=1, fsdp=8))
    for name in ("stage_0_block_0/depthwise", "block_3/depthwise"):
        assert partition_spec(f"image/{name}/kernel", (7, 7, 1, 64), mesh) == P()
    for name in ("stem", "downsample_1", "block_3/expand", "block_3/project", "stage_0_block_0/conv_2"):
        assert partition_spec(f"image/{name}/kernel", (1, 1, 64, 64), mesh) == P(None, None, None, "fsdp")
