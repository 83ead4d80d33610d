"""What a step changes, and what it must not change."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.config import ScheduleConfig
from clipjax.optim.lion import LionConfig
from tests.tiny import start, tiny_batches, tiny_config


def steps(config, batches, state=None):
    _, fresh, step = start(config, num_devices=1)
    state = fresh if state is None else state
    for batch in batches:
        state, metrics = step(state, batch)
    return state, metrics


def host(tree):
    return jax.tree.map(np.array, tree)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_non_finite_loss_changes_no_parameter_and_is_counted():
    config = tiny_config(ema_decay=0.9)
    state, _ = steps(config, tiny_batches(2))
    before = host((state.params, state.opt_state, state.ema_params))
    # A NaN logit scale makes this step's loss NaN; the parameters it must protect are all the others.
    poisoned = {**state.params, "logit_scale": jnp.full_like(state.params["logit_scale"], jnp.nan)}
    after, metrics = steps(config, tiny_batches(1), state.replace(params=poisoned))
    assert not np.isfinite(metrics["loss"])
    assert int(after.skipped) == int(after.skipped_in_a_row) == 1
    assert int(after.step) == 3
    found = host((after.params, after.opt_state, after.ema_params))
    found[0]["logit_scale"] = before[0]["logit_scale"]
    assert_equal(found, before)


def test_update_norm_is_the_norm_of_what_the_step_added_to_the_parameters():
    config = tiny_config(ema_decay=0.9)
    state, _ = steps(config, tiny_batches(2))
    before = host(state.params)
    after, metrics = steps(config, tiny_batches(1), state)
    change = jax.tree.map(lambda a, b: np.square(a.astype(np.float64) - b).sum(), host(after.params), before)
    assert float(metrics["update_norm"]) == pytest.approx(sum(jax.tree.leaves(change)) ** 0.5, rel=1e-5)


def with_nan_scale(state):
    return state.replace(params={**state.params, "logit_scale": jnp.full_like(state.params["logit_scale"], jnp.nan)})


@pytest.mark.parametrize("accumulation_steps", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_rate_that_is_logged_is_the_update_s_after_a_skipped_step_and_after_a_restart(accumulation_steps):
    schedule = ScheduleConfig("linear", warmup_steps=2)
    config = replace(
        tiny_config(),
        accumulation_steps=accumulation_steps,
        total_steps=6,
        optimizer=LionConfig(learning_rate=1e-2, weight_decay=0.0, schedule=schedule),
    )
    _, state, step = start(config, num_devices=1)
    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    logged, moved = [], []
    for number, batch in enumerate(tiny_batches(6)):
        before = host(state.params)
        skips = number in (1, 3)
        state, metrics = step(with_nan_scale(state) if skips else state, batch)
        assert int(state.skipped_in_a_row) == skips
        if skips:
            state = state.replace(params=jax.device_put(before, layout.params))
        changes = jax.tree.map(lambda a, b: np.abs(np.array(a) - b).max(), state.params["text"], before["text"])
        logged.append(float(metrics["learning_rate"]))
        moved.append(max(jax.tree.leaves(changes)))
        state = jax.device_put(host(state), layout)  # as a restart restores it
    expected = 1e-2 * np.array([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(logged, expected, rtol=1e-6)
    np.testing.assert_allclose(moved, expected * [1, 0, 1, 0, 1, 1], rtol=1e-3)  # Lion moves every number by the rate


@pytest.mark.slow
def test_a_good_step_ends_the_count_in_a_row_but_not_the_total():
    config = tiny_config()
    state, _ = steps(config, tiny_batches(1))
    state = state.replace(skipped=state.skipped + 3, skipped_in_a_row=state.skipped_in_a_row + 3)
    state, metrics = steps(config, tiny_batches(1), state)
    assert int(metrics["skipped"]) == 3
    assert int(metrics["skipped_in_a_row"]) == 0


def test_logit_scale_is_clipped_at_its_maximum_and_can_come_back():
    config = tiny_config(learning_rate=0.01, weight_decay=0.0)
    config = replace(config, model=replace(config.model, logit_scale_max=100.0))
    state, _ = steps(config, tiny_batches(1))
    above = {**state.params, "logit_scale": jnp.full_like(state.params["logit_scale"], 6.0)}
    state, _ = steps(config, tiny_batches(1), state.replace(params=above))
    at_maximum = float(state.params["logit_scale"])
    assert at_maximum == pytest.approx(np.log(100.0), abs=1e-6)
    # Unrelated pairs at scale 100: the loss pulls the scale down, which a clip in the forward pass would hide.
    state, _ = steps(config, tiny_batches(4), state)
    assert float(state.params["logit_scale"]) < at_maximum - 0.005


def test_a_frozen_tower_does_not_move_and_has_no_optimizer_state():
    config = tiny_config(image_lr_multiplier=0.0)
    before = host(start(config, num_devices=1)[1].params)
    state, _ = steps(config, tiny_batches(3))
    assert_equal(host(state.params["image"]), before["image"])
    kernel = state.params["text"]["projection"]["kernel"]
    assert np.abs(np.array(kernel) - before["text"]["projection"]["kernel"]).max() > 0
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)]
    assert names
    assert not any("image" in name for name in names)


def test_ema_parameters_are_the_running_average():
    config = tiny_config(ema_decay=0.75)
    _, state, step = start(config, num_devices=1)
    expected = host(state.params)
    for batch in tiny_batches(3):
        state, _ = step(state, batch)
        expected = jax.tree.map(lambda e, p: 0.75 * e + 0.25 * np.asarray(p), expected, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), host(state.ema_params), expected)


def test_two_runs_are_equal_to_the_bit():
    a, b = (host(steps(tiny_config(), tiny_batches(5))[0]) for _ in range(2))
    assert_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["attention", "dots", "offload", "full"])
def test_remat_changes_memory_not_numbers(remat):
    def config(remat):
        config = tiny_config()
        model = config.model
        towers = {"image": replace(model.image, remat=remat), "text": replace(model.text, remat=remat)}
        return replace(config, model=replace(model, **towers))

    a, b = (float(steps(config(r), tiny_batches(3))[1]["loss"]) for r in ("none", remat))
    assert a == pytest.approx(b, rel=1e-5)
