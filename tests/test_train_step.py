"""The step: what it changes, and what it must not."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.mesh import make_mesh
from clipjax.train_step import abstract_state, create_state, make_train_step
from tests.tiny import tiny_batches, tiny_config


def steps(config, batches, state=None):
    mesh = make_mesh(config.mesh)
    step = make_train_step(config, mesh, abstract_state(config, mesh))
    state = create_state(config, mesh) if state is None else state
    for batch in batches:
        state, metrics = step(state, batch)
    return state, metrics


def host(tree):
    return jax.tree.map(np.array, tree)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_non_finite_loss_changes_no_parameter_and_is_counted():
    config = tiny_config(ema_decay=0.9)
    mesh = make_mesh(config.mesh)
    state, _ = steps(config, tiny_batches(2))
    before = host((state.params, state.opt_state, state.ema_params))
    poisoned = jax.tree.map(jnp.copy, state)
    # A NaN logit scale makes this step's loss NaN; the parameters it must protect are all the others.
    params = {**poisoned.params, "logit_scale": jnp.full((), jnp.nan)}
    step = make_train_step(config, mesh, abstract_state(config, mesh))
    after, metrics = step(poisoned.replace(params=jax.device_put(params, jax.tree.map(lambda a: a.sharding, state.params))),
                          tiny_batches(1)[0])  # fmt: skip
    assert not np.isfinite(metrics["loss"])
    assert int(after.skipped) == int(after.skipped_in_a_row) == 1
    assert int(after.step) == 3
    found = host((after.params, after.opt_state, after.ema_params))
    found[0]["logit_scale"] = before[0]["logit_scale"]
    assert_equal(found, before)


def test_a_good_step_ends_the_count_in_a_row_but_not_the_total():
    config = tiny_config()
    state, _ = steps(config, tiny_batches(1))
    state = state.replace(skipped=state.skipped + 3, skipped_in_a_row=state.skipped_in_a_row + 3)
    state, metrics = steps(config, tiny_batches(1), state)
    assert int(metrics["skipped"]) == 3
    assert int(metrics["skipped_in_a_row"]) == 0


def test_logit_scale_is_clipped_at_its_maximum_after_the_update_and_can_come_back():
    config = tiny_config(learning_rate=1.0, weight_decay=0.0)
    config = replace(config, model=replace(config.model, logit_scale_init=99.0, logit_scale_max=100.0))
    state, _ = steps(config, tiny_batches(1))
    assert float(state.params["logit_scale"]) <= np.log(100.0) + 1e-6
    gradient_seen = float(steps(config, tiny_batches(2), None)[0].params["logit_scale"])
    assert gradient_seen != float(state.params["logit_scale"]) or gradient_seen < np.log(100.0)


def test_a_frozen_tower_does_not_move_and_has_no_optimizer_state():
    config = tiny_config(image_lr_multiplier=0.0)
    mesh = make_mesh(config.mesh)
    before = host(create_state(config, mesh).params)
    state, metrics = steps(config, tiny_batches(3))
    assert_equal(host(state.params["image"]), before["image"])
    assert (
        np.abs(np.array(state.params["text"]["projection"]["kernel"]) - before["text"]["projection"]["kernel"]).max()
        > 0
    )
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)]
    assert names
    assert not any("image" in name for name in names)


def test_ema_parameters_are_the_running_average():
    config = tiny_config(ema_decay=0.75)
    mesh = make_mesh(config.mesh)
    expected = host(create_state(config, mesh).params)
    step = make_train_step(config, mesh, abstract_state(config, mesh))
    state = create_state(config, mesh)
    for batch in tiny_batches(3):
        state, _ = step(state, batch)
        expected = jax.tree.map(lambda e, p: 0.75 * e + 0.25 * np.asarray(p), expected, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), host(state.ema_params), expected)


def test_two_runs_are_equal_to_the_bit():
    a, b = (host(steps(tiny_config(), tiny_batches(5))[0]) for _ in range(2))
    assert_equal(a, b)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_memory_not_numbers(remat):
    def config(remat):
        config = tiny_config()
        model = config.model
        towers = {"image": replace(model.image, remat=remat), "text": replace(model.text, remat=remat)}
        return replace(config, model=replace(model, **towers))

    a, b = (float(steps(config(r), tiny_batches(3))[1]["loss"]) for r in ("none", remat))
    assert a == pytest.approx(b, rel=1e-5)
