"""Runs whose texts are cut to the batch: the losses of whole texts, killed, resumed, and on two processes."""

import json
import random
import signal
import time

import numpy as np
import pytest

from clipjax.commands import train
from clipjax.config import from_config_dict
from clipjax.runs.goodput import read_goodput
from clipjax.runs.metrics_log import read_metrics
from tests import runs
from tests.ports import free_port

pytestmark = pytest.mark.slow  # whole runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("text_lengths")
    runs.build_data(path)
    (path / "experiment.py").write_text(
        "from pathlib import Path\nfrom tests.runs import run_config\n\n\n"
        f"def get_config():\n    config = run_config(Path({str(path)!r}))\n"
        "    config.model.text.update(causal=True, pool='eos', eos_id=1, context_length=64)\n"
        "    config.tokenizer.add_eos = True\n    config.data.text_buckets = (24, 32, 40)\n"
        "    config.eval.evaluators = {}\n    return config\n"
    )
    return path


def config_of(folder, **data):
    namespace = {}
    exec((folder / "experiment.py").read_text(), namespace)
    config = namespace["get_config"]()
    config.data.update(data)
    return from_config_dict(config)


def lengths(workdir):
    """The text_length of every logged step."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["text_length"] for line in lines if "text_length" in line]


@pytest.fixture(scope="module")
def uninterrupted(folder):
    train.run(config_of(folder), folder / "uninterrupted")
    return folder / "uninterrupted"


def start(folder, workdir, *extra, devices=8):
    return runs.start("train", f"--config={folder}/experiment.py", f"--workdir={workdir}", *extra, devices=devices)


def test_a_killed_run_goes_on_with_the_uninterrupted_losses_to_the_bit_and_the_same_lengths(folder, uninterrupted):
    assert len(set(lengths(uninterrupted))) > 1, "the batches of this test should have several lengths"
    workdir, stop = folder / "killed", random.randint(4, 11)
    process = start(folder, workdir)
    while not ((workdir / "metrics.jsonl").exists() and max(runs.losses(workdir), default=0) >= stop):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    train.run(config_of(folder), workdir)
    assert runs.losses(workdir) == runs.losses(uninterrupted)
    assert lengths(workdir) == lengths(uninterrupted)


def test_the_losses_are_those_of_whole_texts_and_a_run_may_change_between_them(folder, uninterrupted, capfd):
    whole = folder / "whole"
    train.run(config_of(folder, text_buckets=(64,)), whole)
    found, expected = runs.losses(uninterrupted), runs.losses(whole)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=2e-5)
    (whole / "checkpoints" / "12").rename(folder / "last")
    train.run(config_of(folder), whole)
    assert "config.data.text_buckets: [64] -> [24, 32, 40]" in capfd.readouterr().out
    np.testing.assert_allclose(list(runs.losses(whole).values()), list(expected.values()), rtol=2e-5)


def test_two_processes_cut_every_batch_alike_and_give_the_losses_of_one(folder, uninterrupted):
    workdir = folder / "two_processes"
    port = free_port()
    processes = [
        start(folder, workdir, f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2", f"--process_id={i}",
              "--config.log.profile=4:5", "--config.log.profile_hosts=all", devices=4)
        for i in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=500)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "compiled the step for texts of" in outputs[0]
    np.testing.assert_allclose(
        list(runs.losses(workdir).values()), list(runs.losses(uninterrupted).values()), rtol=1e-5
    )
    assert lengths(workdir) == lengths(uninterrupted)
    (of_both,) = workdir.glob("profile/plugins/profile/*")
    assert {path.name.partition("_process_")[2] for path in of_both.glob("*.pb")} == {"0.xplane.pb", "1.xplane.pb"}
    found = read_goodput(workdir)
    assert found.seconds["compile"] > 0 and found.step == 12 and found.memory["host"] > 0


def test_shorter_texts_count_fewer_flops(uninterrupted):
    lines = [line for line in read_metrics(uninterrupted) if "text_length" in line]
    flops = {line["text_length"]: line["model_flops_per_second"] * line["seconds_per_step"] for line in lines}
    assert flops[min(flops)] < flops[max(flops)]
