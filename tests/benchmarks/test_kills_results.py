"""A thousand kills are made in several sittings, and their results become one."""

import json

import pytest

from benchmarks import kills_results


def sitting(seed=0, **changes):
    return {
        "command": f"python -m benchmarks.kills --workdir=/mnt/kills --processes=2 --out=/mnt/x.json --seed={seed}",
        "machine": {"processor": "A"},
        "commit": "abc",
        "processes": 2,
        "seed": seed,
        "kills": 5,
        "runs": 1,
        "lives": 6,
        "by_signal": {"SIGKILL": 3, "SIGTERM": 2},
        "by_phase": {"step": 4, "compile": 1},
        "others_left_to_notice": 1,
        "arrays": 165,
        "equal": True,
        "seconds": 60,
    } | changes


def test_kills_of_several_sittings_are_added_and_each_sitting_is_listed():
    other = sitting(1, commit="def", by_signal={"SIGKILL": 5}, by_phase={"restore": 3, "compile": 2})
    whole = kills_results.merged([sitting(), other])
    assert [whole[name] for name in kills_results.SUMS] == [10, 2, 12, 2, 120]
    assert whole["by_signal"] == {"SIGKILL": 8, "SIGTERM": 2}
    assert whole["by_phase"] == {"step": 4, "compile": 3, "restore": 3}
    assert [(s["seed"], s["commit"], s["kills"]) for s in whole["sittings"]] == [(0, "abc", 5), (1, "def", 5)]
    assert "seed" not in whole and "commit" not in whole
    again = kills_results.merged([whole, sitting(2)])
    assert again["kills"] == 15 and [s["seed"] for s in again["sittings"]] == [0, 1, 2]


def test_a_merged_result_names_no_path_of_the_machine_and_every_machine():
    whole = kills_results.merged(
        [sitting(), sitting(1, machine={"processor": "B"}), sitting(2, machine={"processor": "A"})]
    )
    assert whole["command"] == "python -m benchmarks.kills --workdir=runs/kills --processes=2 --kills=15"
    assert "/mnt" not in json.dumps(whole)
    assert whole["machine"] == {"processor": "A"} and whole["earlier_machines"] == [{"processor": "B"}]


@pytest.mark.parametrize(
    ("documents", "told"),
    [
        ([sitting(), sitting(1, processes=4)], "of 2, 4 processes"),
        ([sitting(), sitting(1, equal=False)], "a run differed"),
        ([sitting(), sitting(1), sitting()], '"seed": 0.* is there twice'),
    ],
)
def test_what_must_not_be_added_is_refused(documents, told):
    with pytest.raises(ValueError, match=told):
        kills_results.merged(documents)


def test_the_command_adds_files_to_one_that_exists(tmp_path, monkeypatch, capsys):
    out, first, second = (tmp_path / name for name in ("out.json", "1.json", "2.json"))
    first.write_text(json.dumps(sitting()))
    second.write_text(json.dumps(sitting(1)))
    for path in (first, second):
        monkeypatch.setattr("sys.argv", ["kills_results", f"--out={out}", str(path)])
        kills_results.main()
    assert json.loads(out.read_text())["kills"] == 10 and "10 kills in 2 sittings" in capsys.readouterr().out
    before = out.read_bytes()
    with pytest.raises(SystemExit, match="Nothing was added.*there twice"):
        kills_results.main()
    first.write_text("{}")
    monkeypatch.setattr("sys.argv", ["kills_results", f"--out={out}", str(first)])
    with pytest.raises(SystemExit, match="not a result of benchmarks.kills"):
        kills_results.main()
    first.write_text("[1")
    with pytest.raises(SystemExit, match="not JSON"):
        kills_results.main()
    assert out.read_bytes() == before
