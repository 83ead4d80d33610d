"""Servers that fail while a checkpoint is written: it is written after all, or it is no checkpoint."""

import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.commands import train
from clipjax.runs import checkpoint as checkpoints
from clipjax.runs.integrity import CheckpointError, damage_of
from clipjax.runs.steps import MARKER, checkpoints_of, remove_unfinished, unfinished, whole_steps
from clipjax.storage import StorageError, write_bytes
from tests.storage.faults import faulty
from tests.storage.servers import BUCKETS, gcs_server, objects, s3_server
from tests.tiny import tiny_config

SERVERS = {"gs": gcs_server, "s3": s3_server}
ARRAYS = r"params.*(ocdbt|/d/)"  # written by TensorStore
LAST = f"checkpoints/0/{MARKER}"


@pytest.fixture(params=sorted(BUCKETS))
def place(request):
    """(rules of the failing server, workdir)"""
    with faulty(SERVERS[request.param]()) as faults, BUCKETS[request.param](faults.url) as bucket:
        yield faults, f"{bucket}/run"


def write(workdir):
    variables = {"params": {"w": jnp.arange(1000.0), "b": jnp.ones(3)}}
    checkpoints.save_weights(workdir, variables, config=tiny_config(), fingerprint={})


@pytest.mark.parametrize(
    "how", [dict(drop=True), dict(lose=True), pytest.param(dict(status=503), marks=pytest.mark.slow)], ids=str
)
def test_arrays_are_written_whole_by_a_server_that_fails_twice(place, how):
    faults, workdir = place
    rule = faults.add("PUT|POST", ARRAYS, times=2, **how)
    write(workdir)
    assert rule.seen == 2
    assert whole_steps(checkpoints_of(workdir)) == [0] and not damage_of(checkpoints_of(workdir) / "0")
    with checkpoints.open_read_only(checkpoints_of(workdir)) as manager:
        args = checkpoints.ocp.args.Composite(params=checkpoints.ocp.args.StandardRestore())
        found = manager.restore(0, args=args)["params"]
    np.testing.assert_array_equal(found["w"], np.arange(1000.0))


@pytest.mark.parametrize("what", [ARRAYS, LAST])
def test_what_cannot_be_written_is_one_error_and_no_checkpoint_and_the_next_try_replaces_it(place, what):
    faults, workdir = place
    if what == LAST and workdir.startswith("gs"):
        pytest.skip("gcsfs writes the name of what it uploads into the request's body")
    rule = faults.add("PUT|POST", what, times=-1, status=403)
    with pytest.raises(CheckpointError, match="could not be written to .*run/checkpoints: (?!.*tensorstore_spec)"):
        write(workdir)
    directory = checkpoints_of(workdir)
    assert whole_steps(directory) == [] and [path.name for path in unfinished(directory)] == ["0"]
    rule.times = 0
    remove_unfinished(directory)
    # With all else in place, it may have been copied from elsewhere: it stays until the same step is saved again.
    assert len(unfinished(directory)) == (what == LAST)
    write(workdir)
    assert whole_steps(directory) == [0] and not damage_of(directory / "0")


def test_a_run_in_a_bucket_that_cannot_be_written_is_refused_before_anything_is_read_or_changed(place, monkeypatch):
    faults, workdir = place
    write_bytes(f"{workdir}/config.json", b"{}")
    faults.add("PUT|POST|DELETE", ".", times=-1, status=403)
    monkeypatch.setattr(train, "locked_run", lambda *_: pytest.fail("went on"))
    with pytest.raises(StorageError, match="permission denied .* needs"):
        train.run(tiny_config(), workdir)
    faults.rules.clear()
    assert objects(workdir) == {"run/config.json": b"{}"}
