"""Captions in many languages are read as CLIP_benchmark writes them, one language at a time."""

import json

import pytest

from clipjax.config import ConfigError
from clipjax.data.records import ManifestError
from clipjax.data.sources import MultilingualConfig, open_source
from clipjax.data.sources.multilingual import languages_in
from clipjax.eval import RetrievalConfig, multilingual
from tests.data import hard_negative_sets as sets


def opened(path, language="", **options):
    return open_source(MultilingualConfig(path=str(path), language=language, **options))


@pytest.fixture
def folder(tmp_path):
    return sets.crossmodal(tmp_path)


def test_a_language_is_chosen_in_a_folder_by_a_pattern_or_by_its_file(folder):
    file = folder / "crossmodal3600_captions-fil.json"
    for path, language in ((folder, "fil"), (folder / "crossmodal3600_captions-{language}.json", "fil"), (file, "")):
        source = opened(path, language)
        assert len(source) == 6 and source.class_names == ()
        assert source[1] == {
            "image": sets.picture(2),
            "texts": ["picture 2", "picture 2"],
            "key": "crossmodal3600_captions-fil/1",
            "label": -1,
            "pair_id": -1,
        }
    assert source.captions(3) == ["picture 4"] * 2 and source.where(3) == (str(file), 3)
    assert opened(folder, "de")[5]["texts"] == ["picture 6"]
    assert languages_in(folder) == languages_in(folder / "crossmodal3600_captions-{language}.json") == ["de", "fil"]


def test_paths_of_another_machine_start_in_the_folder_of_images(folder):
    assert opened(folder, "de", images=str(folder / "xm3600" / "images"))[0]["image"] == sets.picture(1)
    assert opened(folder, "de", images=str(folder / "xm3600"))[0]["image"] == sets.picture(1)


def test_all_languages_may_be_in_one_file_or_in_xm3600_s_own(folder):
    paths = [f"{n:02d}.png" for n in (1, 2)]
    annotations = {"de": ["eins", "zwei"], "fr": [["un"], ["deux", "2"]]}
    sets.write_json(folder / "all.json", {"image_paths": paths, "annotations": annotations})
    images = str(folder / "xm3600" / "images")
    assert opened(folder / "all.json", "fr", images=images)[1]["texts"] == ["deux", "2"]
    assert languages_in(folder / "all.json") == ["de", "fr"]
    with pytest.raises(ManifestError, match=r"has no language 'it'. The languages there are de, fr\."):
        opened(folder / "all.json", "it", images=images)
    lines = [{"image/key": f"{n:02d}", "de": {"caption": [f"Bild {n}", f"{n}"]}, "image/locale": "de"} for n in (1, 2)]
    jsonl = folder / "xm3600" / "captions.jsonl"
    jsonl.write_text("\n".join(map(json.dumps, lines)))
    assert opened(jsonl, "de")[1]["texts"] == ["Bild 2", "2"] and languages_in(jsonl) == ["de"]
    with pytest.raises(ManifestError, match=r"has no language 'image/locale'. The languages there are de\."):
        opened(jsonl, "image/locale")
    jsonl.write_text("\n".join(map(json.dumps, [lines[0], {"image/key": "02", "de": {"caption": []}}])))
    with pytest.raises(ManifestError, match="record '2', field 'de/caption': found a list without elements"):
        opened(jsonl, "de")


def test_a_language_that_is_not_there_is_refused_with_those_that_are(folder):
    with pytest.raises(
        ManifestError, match=r"no file NAME-fi.json. Did you mean 'fil'\? The languages there are de, fil"
    ):
        opened(folder, "fi")
    with pytest.raises(ManifestError, match="captions-xx.json does not exist. The languages there are de, fil"):
        opened(folder / "crossmodal3600_captions-{language}.json", "xx")
    with pytest.raises(
        ManifestError, match="language is empty, and .* is a folder of several. The languages there are"
    ):
        opened(folder)
    with pytest.raises(ManifestError, match="is named after the language 'de', but the source's language is 'fil'"):
        opened(folder / "crossmodal3600_captions-de.json", "fil")
    sets.write_json(folder / "xtd10-de.json", {})
    with pytest.raises(
        ManifestError, match=r"has 2 files of the language 'de': .*Set the source's path to '.*\{language"
    ):
        opened(folder, "de")


DOCUMENTS = [
    (dict(image_paths=["a.png"]), "'image_paths' has 1 elements, but 'annotations' has 6"),
    (dict(annotations=["x"] * 7), "'image_paths' has 6 elements, but 'annotations' has 7"),
    (dict(annotations=None), "field 'annotations': found null, expected a list"),
    (dict(image_paths={}), "field 'image_paths': found an object without elements, expected a list"),
    (dict(image_paths=[], annotations=[]), "has no records"),
    (
        dict(annotations=["x"] * 5 + [""]),
        "record '5', field 'annotations': found '', expected a text that is not empty",
    ),
    (dict(annotations=["x"] * 5 + [[]]), "record '5', field 'annotations': found a list without elements, expected at"),
    (dict(annotations=["x"] * 5 + [["y", 3]]), r"record '5', field 'annotations\[1\]': found 3, expected a text"),
    (
        dict(image_paths=["01.png"] * 5 + ["absent.png"]),
        "record '5', field 'image_paths': found 'absent.png', expected",
    ),
    (dict(image_paths=["01.png"] * 5 + [None]), "record '5', field 'image_paths': found null"),
]


@pytest.mark.parametrize("fields, message", DOCUMENTS)
def test_a_document_that_contradicts_itself_is_refused(folder, fields, message):
    path = folder / "crossmodal3600_captions-de.json"
    document = {"image_paths": [f"{n:02d}.png" for n in range(1, 7)], "annotations": ["x"] * 6} | fields
    sets.write_json(path, document)
    with pytest.raises(ManifestError, match=f"captions-de.json.*{message}"):
        opened(folder, "de", images=str(folder / "xm3600" / "images"))


def test_a_document_without_its_lists_is_refused(folder):
    for value, message in (
        ([], "found a list without elements, expected an object"),
        ({}, "has no field 'image_paths'"),
    ):
        sets.write_json(folder / "crossmodal3600_captions-de.json", value)
        with pytest.raises(ManifestError, match=message):
            opened(folder, "de")


def test_an_image_that_is_named_twice_matches_all_its_captions(folder):
    paths = ["01.png", "02.png", "01.png"]
    sets.write_json(folder / "crossmodal3600_captions-de.json", {"image_paths": paths, "annotations": ["a", "b", "c"]})
    source = opened(folder, "de", images=str(folder / "xm3600" / "images"))
    assert [source[i]["pair_id"] for i in range(3)] == [0, -1, 0]


def test_one_line_makes_an_evaluator_of_each_language(folder):
    found = multilingual(folder, name="xm3600")
    assert list(found) == ["xm3600_de", "xm3600_fil"]
    assert found["xm3600_de"] == RetrievalConfig(
        source=MultilingualConfig(path=str(folder), language="de"), all_captions=True
    )
    assert list(multilingual("not/there/yet", ["de"])) == ["retrieval_de"]
    with pytest.raises(ConfigError, match="has no files NAME-LANGUAGE.json"):
        multilingual(folder / "xm3600")
