"""The house's rules: who may import whom, how long files and functions are, and where a part's name may be compared."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Rooms from the top down. A room imports only from rooms above it; those on one line know nothing of each other.
ORDER = (
    ("config", "signals", "jax_private"),
    ("storage",),
    ("files",),
    ("json_files",),
    ("processes",),
    ("machine",),
    ("mesh",),
    ("data", "models", "losses", "optim"),
    ("training",),
    ("runs",),
    ("eval",),  # its evaluators see only functions that embed
    ("inference",),
    ("report", "planning", "interop"),
    ("commands",),
    ("__init__", "__main__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}
LONGEST_FILE, LONGEST_FUNCTION = 300, 80
REASON = "Longer than 300 lines"  # how the reason begins, in the docstring at the file's top
TABLES = {
    "clipjax.losses": ("LOSSES",),
    "clipjax.optim": ("OPTIMIZERS",),
    "clipjax.models": ("IMAGE_TOWERS", "TEXT_TOWERS"),
    "clipjax.data.sources": ("SOURCES",),
    "clipjax.data.tokenizers": ("TOKENIZERS",),
    "clipjax.eval": ("EVALUATORS",),
}


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Dotted name -> syntax tree of every module of clipjax, data_pipelines and benchmarks."""
    trees = {}
    for package in ("clipjax", "data_pipelines", "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            trees[name] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


def imports_of(name: str) -> set[str]:
    """The project's modules that a module imports, wherever in it the statement stands."""
    imported = set()
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` is the module's, not the package's.
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = inside & modules().keys()
            imported |= submodules if submodules == inside else submodules | {node.module}
    return imported & modules().keys() - {name}


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_every_room_has_its_place_in_the_order():
    assert {room(name) for name in modules() if name.split(".")[0] == "clipjax"} == set(FLOOR)


@pytest.mark.parametrize("own", [name for name in FLOOR])
def test_a_room_imports_only_rooms_above_it(own):
    wrong = [
        f"{name} imports {other}"
        for name in modules()
        if name.split(".")[0] == "clipjax" and room(name) == own
        for other in imports_of(name)
        if room(other) != own and FLOOR[room(other)] >= FLOOR[own]
    ]
    assert not wrong


def test_a_library_imports_no_program_of_the_project():
    for name in modules():
        others = {other.split(".")[0] for other in imports_of(name)}
        allowed = {"clipjax": {"clipjax"}, "data_pipelines": {"clipjax", "data_pipelines"}}
        assert others <= allowed.get(name.split(".")[0], {"clipjax", "data_pipelines", "benchmarks"}), name
    for path in (ROOT / "benchmarks").rglob("*.py"):
        assert "from tests" not in path.read_text(encoding="utf-8"), f"{path} imports from the tests"


def test_no_files_import_each_other_in_a_circle():
    done, path = set(), []

    def visit(name: str) -> None:
        assert name not in path, "circle: " + " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for other in sorted(imports_of(name)):
            visit(other)
        done.add(path.pop())

    for name in modules():
        visit(name)


@pytest.mark.parametrize("path", sorted((ROOT / "clipjax").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short_or_say_why_not(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = len(text.splitlines())
    assert lines <= LONGEST_FILE or REASON in (ast.get_docstring(tree) or ""), f"{path}: {lines} lines without a reason"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{path}: {node.name} has {length} lines"


def test_the_top_of_the_package_is_a_hallway_of_ten_files_at_most():
    assert len(list((ROOT / "clipjax").glob("*.py"))) <= 10


def test_no_name_of_a_part_is_compared_outside_the_parts_own_file():
    names = set()
    for module, tables in TABLES.items():
        imported = __import__(module, fromlist=tables)
        names |= {name for table in tables for name in getattr(imported, table)}
    wrong = []
    for module, tree in modules().items():
        if module.split(".")[0] != "clipjax":
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.Compare):
                continue
            sides = [node.left, *node.comparators]
            constants = {leaf.value for side in sides for leaf in ast.walk(side) if isinstance(leaf, ast.Constant)}
            asks_a_name = any(isinstance(side, ast.Attribute) and side.attr == "name" for side in sides)
            if asks_a_name and constants & names - {module.rpartition(".")[2]}:
                wrong.append(f"{module}, line {node.lineno}: {ast.unparse(node)}")
    assert not wrong
