"""The pages of benchmarks/ are what the JSON gives and name every JSON file; benchmarks do not depend on the tests."""

import ast
import json
from pathlib import Path

import pytest

from benchmarks import startup
from benchmarks.tables import __main__ as tables
from benchmarks.tables import overview, training, words
from benchmarks.tables.details import make_details

BENCHMARKS = tables.BENCHMARKS


def test_the_pages_are_what_the_json_gives():
    for path, text in tables.make_pages().items():
        assert tables.is_current(text, path), "run: python -m benchmarks.tables"


def test_check_exits_with_1_when_a_page_differs(monkeypatch, tmp_path):
    text = tables.make_pages()[tables.DETAILS]
    page = tmp_path / "details.md"
    page.write_text(text.replace("| 5.89 |", "| 9.89 |"))
    assert not tables.is_current(text, page)
    monkeypatch.setattr(tables, "is_current", lambda text, page: page.name != "details.md")
    monkeypatch.setattr("sys.argv", ["tables", "--check"])
    with pytest.raises(SystemExit, match="details.md is not .* python -m benchmarks.tables"):
        tables.main()


def test_readme_is_one_table_with_every_script_and_every_result():
    page = tables.make_pages()[tables.PAGE]
    lines = page.splitlines()
    rows = [number for number, line in enumerate(lines) if line.startswith("| ")]
    assert rows == list(range(rows[0], rows[0] + len(rows))), "one table"
    scripts = [path.name for path in BENCHMARKS.glob("*.py") if "\ndef main()" in path.read_text()]
    scripts.remove("quick_work.py")  # a part of quick
    assert len(scripts) >= 8 and [name for name in scripts if f"]({name})" not in page] == []
    assert [path.name for path in tables.RESULTS.glob("*.json") if f"results/{path.name}" not in page] == []


def test_a_result_that_no_section_or_no_row_shows_is_an_error(tmp_path):
    for path in tables.RESULTS.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "forgotten.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="forgotten"):
        tables.make_pages(tmp_path)
    with pytest.raises(ValueError, match="forgotten"):
        make_details({path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")})


def test_headlines_are_of_each_processor():
    steps = {
        "a": {"machine": {"processor": "B"}, "batch": 4, "huge_pages": True, "ratio": 1.5},
        "b": {"machine": {"processor": "A"}, "rows": [{"batch": 32, "ratio": 0.9, "dtype": "bfloat16"}, {"batch": 4}]},
        "c": {"machine": {"processor": "B"}, "batch": 32, "ratio": 2.0},
    }
    assert list(overview.train_step(steps)) == [
        ("A", "open_clip's speed × 0.90 (batch 32, bfloat16)"),
        ("B", "open_clip's speed × 2.00 (batch 32), 1.50 (batch 4, huge pages)"),
    ]


def test_days_and_versions_are_those_that_the_result_records():
    machine = {"date": "2027-01-02", "versions": {"jax": "1.0", "jaxlib": "1.0", "torch": "3"}}
    assert overview.dates_and_versions({"new": {"machine": machine}}) == "2027-01-02, jax 1.0, torch 3"
    assert overview.dates_and_versions({"emoji": {}}) == "2026-11-26"
    assert overview.dates_and_versions({"new": [{"jax": "1", "libtpu": "2"}]}) == "date not recorded, jax 1, libtpu 2"


def test_each_script_of_which_no_result_is_kept_yet_has_its_table_and_headline():
    on = {"machine": {"processor": "A"}}
    phases = dict.fromkeys(startup.PHASES, 1.0)
    case = {"seconds": phases, "total": 3.0, "processor_seconds": 4.0, "programs": 9, "found": 4, "peak_mb": 5}
    start = {"startup_x": on | {"model": "x", "depth": 0, "medians": {"no cache": case}}}
    assert list(overview.startup(start)) == [("A", "x: no cache 3.0 s")]
    assert "| programs, found in the cache | 9, 4 |" in training.start(start)
    form = {"images_per_second": 5.0, "system_share": 0.1, "faults": 7.0, "held_mb": 1, "peak_mb": 2}
    medians = {"plain": form | {"milliseconds": 150.0}, "kept": form | {"milliseconds": 100.0}}
    memory = {"kept_memory": on | {"config": "x.py", "medians": medians}}
    assert list(overview.kept_memory(memory)) == [("A", "1.50 times as fast with memory kept")]
    assert "| kept | 100 | 5 | 10% | 7 | 1 | 2 |" in training.memory(memory)
    ratios = {"whole": 1.0, "one length": 1.3}
    texts = {"captions": "drawn", "model": "x", "ratio": ratios, "ratio_by_flops": ratios, "processor_seconds": ratios}
    assert list(overview.text_buckets({"text_buckets": on | texts}))[0][1].endswith("one length 1.30")
    assert "| x | drawn | one length | 1.300 | 1.30 | 1.30 |" in training.text_buckets({"text_buckets": on | texts})
    for section in (training.start, training.memory):
        assert words.NONE_YET in section({})
    assert training.text_buckets({}) == ""


def test_quick_baselines_stand_side_by_side():
    def baseline(processor, samples):
        key = {"processor": processor, "cores": 2, "bfloat16": "amx_bf16", "jaxlib": "1.0"}
        return {"key": key, "ratios": {"train step x": {"kind": "time", "samples": samples}}}

    documents = {"quick_a": baseline("A", [1.0, 2.0, 3.0]), "quick_b": baseline("B", [5.0])}
    text = training.quick(documents)
    assert "| Ratio | A, 2 cores, amx_bf16; jaxlib 1.0 | B, 2 cores, amx_bf16; jaxlib 1.0 |" in text
    assert "| train step x | 2.00 (1.00 to 3.00) | 5.00 (5.00 to 5.00) |" in text
    assert list(overview.quick(documents))[0] == ("A", "1 ratio: train step x 2.00")


def test_what_a_result_does_not_record_is_said():
    assert words.describe_machine({"cores": 2}) == "2 cores, processor not recorded; versions not recorded"
    recorded = {"machine": {"cores": 2, "processor": "AMD EPYC", "python": "3.11.7", "versions": {"jax": "0.10.2"}}}
    assert words.describe_machine(recorded) == "2 cores, AMD EPYC; Python 3.11.7; jax 0.10.2"


def test_benchmarks_import_nothing_from_tests():
    imports = {path.name: set(imported_packages(path)) for path in BENCHMARKS.glob("*.py")}
    assert {name for name, packages in imports.items() if "tests" in packages} == set()
    # Scripts that a benchmark writes for another process are text to the parser.
    assert [path.name for path in BENCHMARKS.glob("*.py") if "from tests" in path.read_text()] == []


def imported_packages(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]
