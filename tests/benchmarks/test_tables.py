"""benchmarks/README.md is what the JSON gives, names every JSON file, and benchmarks do not depend on the tests."""

import ast
import json
from pathlib import Path

import pytest

from benchmarks import tables

BENCHMARKS = Path(tables.__file__).parent


def test_the_page_is_what_the_json_gives():
    assert tables.is_current(tables.make_page()), "run: python -m benchmarks.tables"


def test_check_exits_with_1_when_the_page_differs(monkeypatch, tmp_path):
    page = tmp_path / "README.md"
    page.write_text(tables.make_page().replace("AMD EPYC | 32 | no | 5.89", "AMD EPYC | 32 | no | 9.89"))
    assert not tables.is_current(tables.make_page(), page)
    monkeypatch.setattr(tables, "is_current", lambda text: False)
    monkeypatch.setattr("sys.argv", ["tables", "--check"])
    with pytest.raises(SystemExit, match="python -m benchmarks.tables"):
        tables.main()


def test_every_result_is_on_the_page(tmp_path):
    page = tables.make_page()
    assert [path.name for path in tables.RESULTS.glob("*.json") if f"results/{path.name}" not in page] == []
    for path in tables.RESULTS.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "forgotten.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="forgotten"):
        tables.make_page(tmp_path)


def test_every_script_is_on_the_page():
    page = tables.make_page()
    scripts = [path.name for path in BENCHMARKS.glob("*.py") if "def main()" in path.read_text()]
    assert len(scripts) >= 7 and [name for name in scripts if f"]({name})" not in page] == []


def test_what_a_result_does_not_record_is_said():
    assert tables.describe_machine({"cores": 2}) == "2 cores, processor not recorded; versions not recorded"
    recorded = {"machine": {"cores": 2, "processor": "AMD EPYC", "python": "3.11.7", "versions": {"jax": "0.10.2"}}}
    assert tables.describe_machine(recorded) == "2 cores, AMD EPYC; Python 3.11.7; jax 0.10.2"


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
