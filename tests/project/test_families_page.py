"""docs/interop.md says of every family of weights what families.json says was tried, and nothing was found wrong."""

import json

import pytest

from clipjax.interop import FAMILIES
from docs import families

RESULTS = json.loads(families.RESULTS.read_text(encoding="utf-8"))


def test_the_page_has_the_tables_of_the_json():
    page = families.PAGE.read_text(encoding="utf-8")
    assert page == families.with_tables(page, RESULTS), "run python -m docs.families --draw"


def test_every_family_has_its_words_and_was_tried():
    assert FAMILIES.keys() == families.WORDS.keys() == RESULTS["families"].keys()
    for name, models in RESULTS["families"].items():
        for model, tried in models.items():
            assert tried.get("exported_as", name) in FAMILIES
            for output, error in tried["outputs"].items():
                most = 1e-4 if output == "logits" else 1e-5  # logits: times the scale
                assert error["max_abs_error"] <= most and error["cosine_error"] <= 1e-9, (name, model, output)


def test_every_model_that_the_script_makes_was_tried():
    pytest.importorskip("torch")
    from docs.family_models import MODELS

    assert {name: models.keys() for name, models in MODELS.items()} == {
        name: models.keys() for name, models in RESULTS["families"].items()
    }


def test_the_families_that_read_open_clip_s_configurations_exist():
    outcomes = RESULTS["open_clip"].values()
    assert all(outcome in FAMILIES if isinstance(outcome, str) else outcome["refused"] for outcome in outcomes)


def test_a_file_of_holes_has_its_names_and_shapes(tmp_path):
    from clipjax.interop.safetensors import open_safetensors

    shapes = {"a.weight": (3, 2), "b": ()}
    families.write_holes(tmp_path / "holes.safetensors", shapes)
    found = open_safetensors(tmp_path / "holes.safetensors")
    assert {name: tensor.shape for name, tensor in found.items()} == shapes
    assert not found["a.weight"].read().any()
