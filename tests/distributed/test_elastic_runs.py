"""A run that is started again on other numbers of processes and devices goes on as if nothing had changed."""

import shutil

import numpy as np
import pytest

from clipjax.commands import train
from clipjax.config import from_config_dict
from clipjax.runs import open_run
from tests import runs
from tests.ports import free_port

pytestmark = pytest.mark.slow  # whole runs of several processes

BATCH = 24  # what 8, 4, 6 and 1 divide


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, an experiment of 12 steps of 24 pairs, evaluated at 6 and 12, and its run in one process: "whole"."""
    path = tmp_path_factory.mktemp("elastic")
    runs.build_data(path)
    runs.write_experiment(path)
    config = runs.run_config(path)
    config.global_batch_size = config.eval.batch_size = BATCH
    train.run(from_config_dict(config), path / "whole")
    return path


def run_processes(folder, workdir, devices, *extra):
    """(exit code, output) of each process of a training run; devices: how many each process has."""
    port = free_port()
    processes = [
        runs.start(
            "train", f"--config={folder}/experiment.py", f"--workdir={workdir}",
            f"--config.global_batch_size={BATCH}", f"--config.eval.batch_size={BATCH}", *extra,
            f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={len(devices)}", f"--process_id={i}",
            devices=count,
        )
        for i, count in enumerate(devices)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=550)[0] for process in processes]
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def continue_at(step, before, after):
    """A workdir as a run that stopped right after its checkpoint of `step` leaves it."""
    shutil.copytree(before / "checkpoints" / str(step), after / "checkpoints" / str(step))
    return after


def check_losses(workdir, folder, first):
    found, expected = runs.losses(workdir), runs.losses(folder / "whole")
    assert list(found) == list(range(first, 13))
    np.testing.assert_allclose([found[s] for s in found], [expected[s] for s in found], rtol=1e-5)


def test_eight_then_four_then_six_processes_have_the_losses_of_one(folder):
    workdirs = [folder / name for name in ("eight", "four", "six", "one")]
    for i, (workdir, devices) in enumerate(zip(workdirs, ([1] * 8, [1] * 4, [1] * 6, [2]), strict=True)):
        if i:
            continue_at(3 * i, workdirs[i - 1], workdir)
        ended = run_processes(folder, workdir, devices)
        assert [code for code, _ in ended] == [0] * len(devices), ended
        assert i == 0 or f"Restored step {3 * i}" in ended[0][1]
        check_losses(workdir, folder, 3 * i + 1)
        with open_run(workdir) as run:
            assert [state["step"] for state in run.data_states] == [12] * len(devices)
            assert sum(state["read"] for state in run.data_states) == 12 * BATCH


def test_a_tensor_axis_between_two_processes_has_the_losses_of_one(folder):
    """Both processes read the whole batch, in training and in evaluation."""
    workdir = continue_at(9, folder / "whole", folder / "tensor")
    ended = run_processes(folder, workdir, [1, 1], "--config.mesh.data=1", "--config.mesh.tensor=2")
    assert [code for code, _ in ended] == [0, 0], ended
    check_losses(workdir, folder, 10)


def test_unequal_hosts_and_a_batch_that_does_not_divide_are_refused_in_one_line_and_cost_nothing(folder):
    workdir = continue_at(9, folder / "whole", folder / "refused")
    for devices, message in (
        ([2, 4], "error: The processes have different numbers of devices: 1 process(es) with 2, 1 process(es) with 4."),
        ([1] * 5, "error: config.global_batch_size=24 does not divide over the mesh"),
    ):
        ended = run_processes(folder, workdir, devices)
        assert all(code != 0 and "Traceback" not in output for code, output in ended), ended
        assert any(message in output for _, output in ended), ended
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["9"]
