"""benchmarks.soak at a small size; docs/reliability.md is about the long runs."""

import json
import random
import threading

import pytest

from benchmarks import soak
from tests import runs


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_one_left_alone(folder, tmp_path):
    command = [f"--config={runs.write_experiment(folder)}", "--config.eval.batch_size=16"]
    whole, killed = soak.Run(tmp_path / "whole", command, core=0), soak.Run(tmp_path / "killed", command, core=1)
    thread = threading.Thread(target=whole.to_the_end)
    thread.start()
    soak.kill_again_and_again(killed, 4, 0, 4, random.Random(5))
    thread.join()
    found = soak.compare(whole, killed)
    assert found["equal"], {name: value for name, value in found.items() if name != "lives"}
    assert found["steps"] == 12 and found["arrays"] > 50
    assert json.loads(soak.to_json(found))["lives"]["killed"][-1]["signal"] == ""
    soak.draw(tmp_path / "soak.png", whole, killed, found)
    assert (tmp_path / "soak.png").stat().st_size > 10_000


def test_any_difference_is_found(folder, whole, tmp_path):
    """The soak's comparison of a run with itself, and with one that has another number in its curve."""
    same, other = soak.Run(whole, [], core=0), soak.Run(tmp_path, [], core=0)
    for run in (same, other):
        run.lives = [{"signal": "", "last_step": 12, "seconds": 1.0, "samples": [(t, 100.0, t) for t in range(9)]}]
    assert soak.compare(same, same)["equal"]
    (tmp_path / "checkpoints").symlink_to(whole / "checkpoints")
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    lines[7]["loss"] += 1e-7
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = soak.compare(same, other)
    assert not found["equal"] and not found["curves_equal"] and found["arrays_that_differ"] == []
