"""A checkpoint leaves nothing of ours in memory."""

import gc
import statistics
import sys
from collections.abc import Callable

import jax
import pytest
import tensorstore

from clipjax.config import CheckpointConfig
from clipjax.runs import checkpoint as checkpoints
from tests.tiny import start, tiny_config

FEW = 60  # blocks per checkpoint that may come and go


def blocks_kept(action: Callable[[], object], times: int, rounds: int = 5) -> float:
    """How many allocated blocks of Python's each call leaves behind: the median of the rounds after the first, because
    what threads of earlier tests still hold may be freed during one of them."""
    kept = []
    for _ in range(1 + rounds):
        gc.collect()
        before = sys.getallocatedblocks()
        for _ in range(times):
            action()
        gc.collect()
        kept.append((sys.getallocatedblocks() - before) / times)
    return statistics.median(kept[1:])


@pytest.mark.slow
def test_checkpoints_leave_nothing_but_what_tensorstore_does(tmp_path):
    """TensorStore (0.1.86) keeps every key and value that it returns as JSON. Orbax asks for some twice for each tree
    and once for each array of a checkpoint. A version that keeps less makes this bound tighter by itself."""
    spec = tensorstore.KvStore.Spec({"driver": "file", "path": f"{tmp_path}/"})
    of_array = blocks_kept(spec.to_json, 200)
    config = tiny_config((1, 1, 1))
    _, state, _ = start(config, num_devices=1)
    arrays = len(jax.tree.leaves((state.params, checkpoints._train_item(state))))
    step = iter(range(1, 100))
    with checkpoints.open_checkpoints(tmp_path, CheckpointConfig(keep_last=2)) as manager:

        def save() -> None:
            checkpoints.save(
                manager, state.replace(step=state.step * 0 + next(step)), data_state={}, config=config, fingerprint={}
            )
            manager.wait_until_finished()

        kept = blocks_kept(save, 4)
    # JAX creates its metrics at the first write.
    of_tree = 2 * blocks_kept(lambda: tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/"), 20)
    assert kept < of_array * arrays + of_tree * 2 + FEW
