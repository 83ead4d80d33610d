"""What `import clipjax` offers: namespaces that are imported when first used, each public name with a docstring, all of
them in docs/api.md."""

import importlib
import inspect
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import clipjax
from docs.api_page import api_page

ROOT = Path(__file__).parents[2]
NAMESPACES = [name for name in clipjax.__all__ if name != "load"]


def test_importing_clipjax_imports_none_of_its_rooms_and_no_jax():
    code = "import sys, clipjax; print([m for m in sys.modules if m.startswith('clipjax.') or m in ('jax', 'numpy')])"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "[]"


def test_a_namespace_is_there_when_asked_for_and_an_unknown_one_is_an_attribute_error():
    assert clipjax.models.get_preset("siglip_b16").embed_dim == 768
    assert set(dir(clipjax)) == set(clipjax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'modles'"):
        _ = clipjax.modles


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_every_public_function_and_class_says_what_it_does(namespace):
    module = importlib.import_module(f"clipjax.{namespace}")
    assert module.__doc__ and module.__all__ == sorted(set(module.__all__), key=module.__all__.index)
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isroutine(value) or inspect.isclass(value):
            own = inspect.getdoc(value) if not inspect.isclass(value) else value.__dict__.get("__doc__")
            generated = f"{name}(" in (own or "")[: len(name) + 1]  # what dataclass and NamedTuple write by themselves
            assert own and not generated, f"clipjax.{namespace}.{name} has no docstring"


def test_the_api_page_has_all_of_them_as_they_are():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for namespace in NAMESPACES:
        for name in importlib.import_module(f"clipjax.{namespace}").__all__:
            assert f"### clipjax.{namespace}.{name}\n" in page
    assert api_page() == page, "run python -m docs.generate"


def test_an_editable_install_is_a_path_which_wins_over_a_clone_of_this_name(tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["package-dir"] == {"": "."}, "setuptools then writes a path, not a finder"
    (tmp_path / "clipjax").symlink_to(ROOT)
    code = f"import sys; sys.path.append({str(ROOT)!r}); import clipjax; print(clipjax.__file__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    shown = subprocess.check_output([sys.executable, "-S", "-c", code], cwd=tmp_path, text=True, env=environment)
    assert shown.strip() == str(ROOT / "clipjax" / "__init__.py")
