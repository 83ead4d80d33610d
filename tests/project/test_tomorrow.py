"""Ready for the next versions of JAX and Orbax: no private names of theirs, and no warning of deprecation unheard."""

import ast
import functools
import types
import warnings
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from absl import logging

from clipjax import jax_private
from tests import deprecations

ROOT = Path(__file__).parents[2]
SHIM = "clipjax/jax_private.py"
# What Orbax and epath lack for buckets; tests/storage/ says so where another version of them has changed.
OF_BUCKETS = ("clipjax/runs/orbax_buckets.py", "clipjax/storage/", "tests/storage/")
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax", "grain")
# Public once, and announced to go or gone.
WITHDRAWN = ("jax.interpreters", "jax.lib", "jaxlib.xla_client", "jaxlib.xla_extension", "jax.experimental.maps")
ARGUMENTS = {"CheckpointManager": ("item_handlers", "item_names", "checkpointers")}  # deprecated in a docstring alone
OF_NAMED_TUPLES = ("_replace", "_asdict", "_fields", "_make")
# Private attributes of other libraries, which are not JAX's.
ELSEWHERE = {"_actions", "_ev_writer", "_from_config", "_Hash", "_run_exitfuncs", "_current_frames"}


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Path from the root -> syntax tree of every file of Python."""
    folders = ("clipjax", "tests", "benchmarks", "data_pipelines", "experiments", "docs", "deploy")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def imported(tree: ast.AST):
    """(line, dotted name) of everything that a file imports, names of modules and names from them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value.split()) == 1:
            yield node.lineno, node.value


def is_private(name: str) -> bool:
    parts = name.split(".")
    private = any(part.startswith("_") and not part.startswith("__") for part in parts[1:])
    return parts[0] in LIBRARIES and (private or any(f"{name}.".startswith(f"{gone}.") for gone in WITHDRAWN))


def test_one_module_alone_imports_what_jax_and_its_libraries_keep_private():
    found = {name for _, name in imported(trees()[SHIM]) if is_private(name)}
    assert found == {"jax._src.distributed", "jax._src.cudnn.fused_attention_stablehlo"}
    wrong = [
        f"{path}, line {line}: {name}"
        for path, tree in trees().items()
        if path not in (SHIM, "tests/project/test_tomorrow.py")
        for line, name in imported(tree)
        if is_private(name) and not (path.startswith(OF_BUCKETS) and name.startswith("orbax."))
    ]
    assert not wrong


# tests/parity compares the originals in their parts.
APART = ("tests/parity/", *OF_BUCKETS)


def test_no_private_attribute_of_anothers_object_is_read():
    own = set()
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                own.add(node.id if isinstance(node, ast.Name) else node.attr)
            elif isinstance(node, ast.arg | ast.keyword):
                own.add(node.arg)
    wrong = [
        f"{path}, line {node.lineno}: {ast.unparse(node)}"
        for path, tree in trees().items()
        if path != SHIM
        and not path.startswith(("tests/parity/", *OF_BUCKETS))  # where the originals are compared in their parts
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if node.attr not in own | ELSEWHERE | set(OF_NAMED_TUPLES)
    ]
    assert not wrong


def test_no_argument_is_passed_that_is_deprecated_without_a_warning():
    wrong = [
        f"{path}, line {node.lineno}: {keyword.arg}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg in ARGUMENTS.get(ast.unparse(node.func).rpartition(".")[2], ())
    ]
    assert not wrong


def test_what_the_module_of_private_names_gives_exists_and_is_what_it_says():
    assert jax_private.coordination_client() is None  # this process runs alone
    assert isinstance(jax_private.cudnn_calls(), types.ModuleType)
    assert hasattr(jax_private.cudnn_calls(), "cuda_versions")


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning, PendingDeprecationWarning])
def test_a_warning_of_deprecation_at_a_line_of_ours_is_an_error(category):
    with pytest.raises(category, match="soon gone"):
        warnings.warn("soon gone", category, stacklevel=1)


@pytest.mark.parametrize("module", ["jax._src.api", "flax.linen.module", "optax.losses", "orbax.checkpoint.utils"])
def test_a_warning_at_a_line_of_jax_or_its_libraries_is_an_error_too(module):
    with pytest.raises(DeprecationWarning, match="soon gone"):
        warnings.warn_explicit("soon gone", DeprecationWarning, "file.py", 1, module=module, registry={})


def test_a_warning_at_a_line_of_another_library_is_only_shown():
    with pytest.warns(DeprecationWarning, match="soon gone"):
        warnings.warn_explicit("soon gone", DeprecationWarning, "file.py", 1, module="torch.jit", registry={})


def test_orbax_is_heard_when_it_logs_or_counts_something_deprecated(tmp_path):
    with deprecations.heard() as found:
        options = ocp.CheckpointManagerOptions(create=True)
        ocp.CheckpointManager(tmp_path / "a", ocp.Checkpointer(ocp.PyTreeCheckpointHandler()), options).close()
    assert any("/jax/orbax/deprecation/checkpoint_manager_legacy_init" in line for line in found)
    assert any("deprecated legacy API" in line for line in found)


def test_what_orbax_and_others_log_otherwise_is_not_taken_for_it(tmp_path):
    with deprecations.heard() as found:
        with ocp.CheckpointManager(tmp_path, options=ocp.CheckpointManagerOptions(read_only=True)):
            pass
        logging.warning("A field of the configuration is deprecated.")
        jax.monitoring.record_event("/jax/orbax/checkpoint_manager/init")
        np.zeros(1)
    assert not found
