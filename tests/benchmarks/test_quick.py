"""benchmarks.quick: what it calls a move, for which processor a baseline holds, its exit codes. Nothing is timed."""

import itertools
import json

import pytest

from benchmarks import machine, quick, quick_work

KEY = {"processor": "A", "cores": 2, "bfloat16": "no bfloat16 units", "jaxlib": "1.0", "size": "standard"}
NAME = "softmax loss, speed beside dense"


def document(samples, name=NAME, kind="time", **changes):
    return {
        "key": KEY,
        "runs": 1,
        "cores_used_by_others": 0.0,
        "ratios": {name: {"kind": kind, "samples": samples}},
    } | changes


@pytest.mark.parametrize(
    ("old", "new", "kind", "said"),
    [
        ([1.0, 1.1, 1.2], [0.8, 0.9, 0.95], "time", "worse (-18.2%)"),
        ([1.0, 1.1, 1.2], [1.3, 1.4, 1.5], "time", "better (+27.3%)"),
        ([1.0, 1.1, 1.2], [0.8, 0.9, 1.0], "time", ""),  # the ranges touch
        ([1.0, 1.0, 1.0], [0.96, 0.96, 0.96], "time", ""),  # apart, but by less than is worth saying
        ([1.0, 1.0, 1.0], [0.96, 0.96, 0.96], "count", "worse (-4.0%)"),  # bytes have no noise
        ([1.0, 1.0, 1.0], [0.996, 0.996, 0.996], "count", ""),
        ([1.0, 1.0], [0.5, 0.5, 0.5], "time", "too few rounds to tell"),
        ([1.0, 1.0, 1.0], [0.5], "time", "too few rounds to tell"),
    ],
)
def test_a_ratio_moved_when_all_rounds_lie_beyond_the_baselines_and_the_medians_differ(old, new, kind, said):
    assert quick.verdict({"kind": kind, "samples": old}, {"kind": kind, "samples": new}) == said


def test_what_only_one_side_measured_is_said_and_is_no_move():
    one, other = document([1.0, 1.0, 1.0]), document([1.0, 1.0, 1.0], name="reading parquet, speed beside tarfile")
    lines, worse = quick.compare(one, other)
    assert not worse and "Nothing moved beyond noise." in lines
    assert any(line.startswith(NAME) and line.endswith("not measured") for line in lines)
    assert any(line.startswith("reading parquet") and line.endswith("not in the baseline") for line in lines)


def test_the_last_lines_name_what_moved_in_each_direction():
    ratios = {"a": [1.0, 1.0, 1.0], "b": [1.0, 1.0, 1.0], "c": [1.0, 1.0, 1.0]}
    old = document([]) | {"ratios": {name: {"kind": "time", "samples": values} for name, values in ratios.items()}}
    moved = {"a": [2.0, 2.0, 2.0], "b": [0.5, 0.5, 0.5], "c": [1.0, 1.0, 1.0]}
    new = document([]) | {"ratios": {name: {"kind": "time", "samples": values} for name, values in moved.items()}}
    lines, worse = quick.compare(old, new)
    assert worse and "Worse, beyond noise: b." in lines and "Better, beyond noise: a." in lines
    del new["ratios"]["b"]
    lines, worse = quick.compare(old, new)
    assert not worse and "--write" in lines[-1]


def test_a_busy_machine_and_another_processor_are_told():
    new = document([1.0, 1.0, 1.0], cores_used_by_others=1.3)
    old = document([1.0, 1.0, 1.0]) | {"key": KEY | {"processor": "B"}}
    text = "\n".join(quick.compare(old, new)[0])
    assert (
        "This run was measured while other programs used 1.3 cores" in text and "The baseline was measured" not in text
    )
    assert "another machine or version: B, 2 cores, no bfloat16 units, jaxlib 1.0" in text


def test_a_baseline_holds_for_one_processor_one_count_of_cores_and_one_jaxlib(tmp_path):
    (tmp_path / "quick_a.json").write_text(json.dumps(document([1.0])))
    (tmp_path / "quick_b.json").write_text(json.dumps(document([2.0]) | {"key": KEY | {"processor": "B"}}))
    assert quick.find_baseline(tmp_path, KEY)["ratios"][NAME]["samples"] == [1.0]
    assert quick.find_baseline(tmp_path, KEY | {"processor": "B"})["ratios"][NAME]["samples"] == [2.0]
    for other in ({"cores": 4}, {"jaxlib": "1.1"}, {"bfloat16": "amx_bf16"}, {"size": "toy"}):
        assert quick.find_baseline(tmp_path, KEY | other) is None
    names = {quick.file_name(KEY | other) for other in ({}, {"cores": 4}, {"jaxlib": "1.1"}, {"bfloat16": "amx_bf16"})}
    assert len(names) == 4 and "quick_a_2_cores_no_bfloat16_units_jaxlib_1.0.json" in names
    xeon = quick.file_name(KEY | {"processor": "Intel(R) Xeon(R) Processor @ 2.50GHz"})
    assert xeon == "quick_intel_xeon_processor_2.50ghz_2_cores_no_bfloat16_units_jaxlib_1.0.json"


def test_the_units_that_multiply_bfloat16_are_flags_of_the_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    assert machine.bfloat16_units() == [], "not Linux"
    for text, units in (
        ("model name : A\nflags\t\t: fpu amx_bf16 avx512_bf16 sse\n", ["amx_bf16", "avx512_bf16"]),
        ("Features\t: fp asimd bf16\n", ["bf16"]),
        ("flags : fpu amx_bf16x\n", []),
    ):
        (tmp_path / "cpuinfo").write_text(text)
        assert machine.bfloat16_units() == units
    assert quick.key("toy")["bfloat16"] == "no bfloat16 units"


def test_a_name_without_a_number_gets_the_numbers_that_tell_processors_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    cpu = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: {}\nstepping\t: 1\n"
    for given, name in (
        ("AMD EPYC", "AMD EPYC (family 25, model 17)"),
        ("AMD EPYC 9634 84-Core Processor", "AMD EPYC 9634 84-Core Processor"),
        ("Intel(R) Xeon(R) Processor @ 2.50GHz", "Intel(R) Xeon(R) Processor @ 2.50GHz"),
    ):
        (tmp_path / "cpuinfo").write_text(cpu.format(given) * 2)
        assert machine.processor() == name
    (tmp_path / "cpuinfo").write_text("model name : A\n")
    assert machine.processor() == "A", "no numbers"


def test_adding_a_run_widens_the_baseline():
    old, new = document([1.0, 1.1, 1.2]), document([0.8, 0.9, 0.95], cores_used_by_others=0.5)
    both = quick.joined(old, new)
    assert both["ratios"][NAME]["samples"] == [1.0, 1.1, 1.2, 0.8, 0.9, 0.95]
    assert both["runs"] == 2 and both["cores_used_by_others"] == 0.5
    assert quick.verdict(both["ratios"][NAME], new["ratios"][NAME]) == ""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command with fabricated samples; returns its exit code and what it printed."""
    monkeypatch.setattr(quick, "key", lambda size: KEY)

    def run(samples, *flags):
        monkeypatch.setattr(quick, "measure", lambda *args: document(samples))
        monkeypatch.setattr("sys.argv", ["quick", f"--results={tmp_path}", *flags])
        try:
            quick.main()
            code = 0
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_the_exit_code_says_what_came_of_it(command, tmp_path):
    code, text = command([1.0, 1.0, 1.0])
    assert code == 3 and "no baseline for this processor: A, 2 cores" in text and "--write" in text
    code, text = command([1.0, 1.0, 1.0], "--add")
    assert code == 2 and "no baseline to add to" in text
    code, text = command([1.0, 1.0, 1.0], "--write")
    (path,) = tmp_path.glob("*.json")
    assert code == 0 and path.name == quick.file_name(KEY) and "benchmarks.tables" in text
    assert command([1.0, 1.0, 1.01])[0] == 0
    code, text = command([0.5, 0.6, 0.7])
    assert code == 1 and f"Worse, beyond noise: {NAME}." in text
    assert command([1.5, 1.6, 1.7])[0] == 0
    assert command([0.5, 0.6, 0.7], "--add")[0] == 0
    assert command([0.5, 0.6, 0.7])[0] == 0, "the baseline has these rounds now"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(document([9.0, 9.0, 9.0])))
    assert command([1.0, 1.0, 1.0], f"--baseline={other}")[0] == 1
    for content in (
        "{",
        "[]",
        '{"ratios": {"x": {"samples": [], "kind": "time"}}, "key": {}}',
        json.dumps({"ratios": {}}),
    ):
        other.write_text(content)
        code, text = command([1.0, 1.0, 1.0], f"--baseline={other}")
        assert code == 2 and f"{other} is not a baseline" in text
    code, text = command([1.0, 1.0, 1.0], f"--baseline={tmp_path}/none.json")
    assert code == 2 and "none.json" in text


@pytest.mark.parametrize("flags", [["--rounds=0"], ["--write", "--only=train"], ["--write", "--add"], ["--size=huge"]])
def test_options_that_make_no_sense_end_with_2(command, flags):
    assert command([1.0], *flags)[0] == 2


def test_only_chooses_ratios_by_a_word_of_their_name(command):
    assert list(quick.chosen("tarfile, quickstart")) == [
        name for name in quick.RATIOS if "tarfile" in name or "quick" in name
    ]
    assert quick.chosen("") == quick.RATIOS
    code, text = command([1.0], "--only=nothing")
    assert code == 2 and "contains 'nothing'" in text and NAME in text


def test_contenders_take_turns_in_alternating_order_and_stop_in_time(monkeypatch):
    clock = itertools.count(0, 10.0)
    monkeypatch.setattr(quick.time, "monotonic", lambda: next(clock))
    order = []
    turns = {name: lambda name=name: order.append(name) or 1.0 for name in "ab"}
    samples, _ = quick.take_turns(turns, 100, 0.0, [])
    assert order[:6] == ["a", "b", "b", "a", "a", "b"]
    assert quick.FEWEST <= len(samples["a"]) == len(samples["b"]) < 12
    monkeypatch.setattr(quick.time, "monotonic", lambda: 1e6)
    samples, _ = quick.take_turns(turns, 100, 0.0, [])
    assert len(samples["a"]) == quick.FEWEST, "three rounds are always run"


def test_every_ratio_names_contenders_that_its_parts_make():
    made = {part for parts in quick_work.WORK.values() for part in parts}
    assert {part for ratio in quick.RATIOS.values() for part in ratio.parts} == made
    assert {ratio.kind for ratio in quick.RATIOS.values()} == set(quick.FLOOR)


def test_a_worker_that_ends_early_ends_the_script_with_2_and_its_last_words(monkeypatch, capsys):
    worker = quick.Worker("nothing", "toy", ["losses"])
    with pytest.raises(SystemExit) as end:
        worker.hear()
    worker.end()
    assert end.value.code == 2
    assert "KeyError: 'nothing'" in (text := capsys.readouterr().err) and "The nothing worker ended early" in text


def test_the_script_measures_records_and_losses_at_toy_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["quick", "--size=toy", "--rounds=3", "--only=tarfile,loss", f"--results={tmp_path}"]
    )
    with pytest.raises(SystemExit) as end:
        quick.main()
    assert end.value.code == 3, "no baseline"
    printed = capsys.readouterr().out
    for name in quick.chosen("tarfile,loss"):
        assert f"\n{name}" in "\n" + printed


@pytest.mark.slow
def test_the_whole_script_runs_at_toy_size(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # the tests' eight devices; it measures one
    found = quick.measure("toy", quick.RATIOS, 1, no_torch=True)
    assert {name for name in quick.RATIOS if name not in found["ratios"]} == {
        name for name in quick.RATIOS if "open_clip" in name
    }
    assert all(sample > 0 for ratio in found["ratios"].values() for sample in ratio["samples"])
