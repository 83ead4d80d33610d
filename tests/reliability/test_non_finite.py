"""A NaN in the data costs its step and nothing else."""

import jax
import numpy as np
import pytest

from tests.tiny import start, tiny_batches, tiny_config


@pytest.mark.slow
def test_a_nan_in_a_batch_leaves_the_run_where_a_step_that_was_left_out_would():
    config = tiny_config(grad_clip_norm=1.0, ema_decay=0.9)
    mesh, poisoned, step = start(config)
    _, clean, _ = start(config)
    found, expected = [], []
    for number, batch in enumerate(tiny_batches(5)):
        batch = {**batch, "image": batch["image"].astype(np.float32)}
        if number == 2:
            clean = clean.replace(step=clean.step + 1)
            spoilt = batch["image"].copy()
            spoilt[3, 5, 7, 1] = np.nan
            before = jax.tree.map(np.array, (poisoned.params, poisoned.opt_state, poisoned.ema_params))
            poisoned, metrics = step(poisoned, {**batch, "image": spoilt})
            assert not np.isfinite(metrics["loss"]) and int(metrics["skipped_in_a_row"]) == 1
            after = (poisoned.params, poisoned.opt_state, poisoned.ema_params)
            jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, after))
            continue
        poisoned, metrics = step(poisoned, batch)
        found.append(float(metrics["loss"]))
        clean, metrics = step(clean, batch)
        expected.append(float(metrics["loss"]))
    assert np.isfinite(found).all() and found == expected
    assert int(poisoned.skipped) == 1 and int(poisoned.skipped_in_a_row) == 0
    for name in ("params", "opt_state", "ema_params"):
        pairs = (jax.tree.map(np.array, getattr(state, name)) for state in (poisoned, clean))
        jax.tree.map(np.testing.assert_array_equal, *pairs)
