"""Captions of other languages go, those that tell no language are undecided, and each is counted."""

import collections
import json
import sys
import threading

import pytest

from clipjax.data.records import ManifestError, RecordError
from data_pipelines.command import PipelineError
from data_pipelines.prepare import run
from data_pipelines.prepare.check import check
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.steps import languages
from data_pipelines.prepare.types import Example
from tests.data.samples import ROOT, encoded, picture
from tests.data_pipelines.debs import tar_bytes

CAPTIONS = {
    "en": ("a small bird sitting on a branch", "Living Room Interior Design Ideas", "two cats on a sofa"),
    "de": ("ein kleiner Vogel sitzt auf einem Ast", "zwei Katzen auf dem Sofa", "MENSCHEN WARTEN IM REGEN AUF DEN BUS"),
    "fr": ("un petit oiseau posé sur une branche", "coucher de soleil rouge sur la mer"),
    "nl": ("de keuken heeft een witte koelkast en een gootsteen", "mensen wachten in de regen op de bus"),
    "pl": ("mały ptak siedzi na gałęzi", "dwa koty na kanapie"),
    "uk": ("маленька пташка сидить на гілці", "люди чекають на автобус під дощем"),
    "ja": ("枝にとまった小さな鳥", "公園でサッカーをする子供たち"),
    "zh": ("孩子们在公园里踢足球", "厨房里有一台白色冰箱"),
}
UNDECIDED = ("Paris", "Mona Lisa", "Nike Air Max 90", "Angela Merkel", "BMW E30", "犬", "Logo", "a dog", "Hund", "007")
LIKE_ANOTHER = {"old wooden door": ("en", "nl"), "спящий щенок": ("ru", "uk")}  # by the model


def options(*asked: str, **fields) -> Options:
    return Options(reader="webdataset", input=("x",), languages=asked, **fields)


def example(*texts: str) -> Example:
    return Example("k", b"", texts)


class Notes(list):
    def __call__(self, cause, key, text, count=1):
        self.append((cause, text))


@pytest.fixture
def model():
    pytest.importorskip("py3langid", reason="pip install 'clipjax[pipelines]'")


def test_short_captions_of_eight_languages_are_told_apart(model):
    for language, texts in CAPTIONS.items():
        assert [languages.judge(text, options(language))[0] for text in texts] == [language] * len(texts)
        other = "en" if language != "en" else "de"
        assert [languages.judge(text, options(other))[0] for text in texts] == [language] * len(texts)
        assert [languages.judge(text, options(other, language))[0] for text in texts] == [language] * len(texts)


def test_names_numbers_and_single_words_are_undecided_and_kept_unless_told_otherwise(model):
    assert {text: languages.judge(text, options("en"))[0] for text in UNDECIDED} == dict.fromkeys(UNDECIDED, "")
    kept = languages.languages(example(*UNDECIDED), options("en"), notes := Notes())
    assert kept.texts == UNDECIDED
    assert notes == [("caption in an undecided language, kept", text) for text in UNDECIDED]
    with pytest.raises(RecordError) as caught:
        languages.languages(example(*UNDECIDED), options("en", keep_undecided=False), notes := Notes())
    assert caught.value.cause == "no caption left: language undecided"
    assert {cause for cause, _ in notes} == {"caption left out: language undecided"}


def test_captions_of_other_languages_go_and_every_one_is_noted_by_language(model):
    texts = (*CAPTIONS["de"], *CAPTIONS["en"], *CAPTIONS["zh"], "Mona Lisa")
    kept = languages.languages(example(*texts), options("en", "zh"), notes := Notes())
    assert kept.texts == (*CAPTIONS["en"], *CAPTIONS["zh"], "Mona Lisa")
    assert collections.Counter(cause for cause, _ in notes) == {
        "caption left out: another language: de": 3,
        "caption in en": 3,
        "caption in zh": 2,
        "caption in an undecided language, kept": 1,
    }
    # With the probability, to judge the judge by.
    assert all(text[:2] in ("0.", "1.") and text[4:6] == ": " for cause, text in notes if "left out" in cause)
    with pytest.raises(RecordError) as caught:
        languages.languages(example(*CAPTIONS["fr"], *CAPTIONS["de"]), options("en"), Notes())
    assert caught.value.cause == "no caption left: another language: fr"


def test_a_language_asked_for_is_not_lost_to_a_likelier_relative(model):
    for text, (own, other) in LIKE_ANOTHER.items():
        language, likely = languages.judge(text, options("ja"))
        assert language == other and likely > 0.5
        assert languages.judge(text, options(own)) == ("", likely)
        assert languages.judge(text, options(own, other)) == (other, likely)
        assert languages.languages(example(text), options(own), Notes()).texts == (text,)


def test_what_is_asked_for_together_counts_together(model):
    alone = {code: value for code, value in languages._load().rank("en hund")}
    assert max(alone["sv"], alone["da"], alone["no"]) < 0.25 < alone["sv"] + alone["da"] + alone["no"]
    assert languages.judge("en hund", options("sv", language_confidence=0.25))[0] == ""
    assert languages.judge("en hund", options("sv", "da", "no", language_confidence=0.25))[0] == "da"


def test_a_higher_confidence_decides_less(model):
    texts = [text for texts in CAPTIONS.values() for text in texts]
    decided = []
    for confidence in (0.0, 0.3, 0.8, 1.0):
        judged = [languages.judge(text, options("en", language_confidence=confidence))[0] for text in texts]
        decided.append({text for text, language in zip(texts, judged, strict=True) if language})
    assert decided[0] == decided[1] == set(texts)
    assert decided[3] < decided[2] < decided[1]


def test_threads_load_one_model(model, monkeypatch):
    from py3langid.langid import LanguageIdentifier

    loads, load = [], LanguageIdentifier.from_model_file
    monkeypatch.setattr(
        LanguageIdentifier, "from_model_file", lambda *args, **kwargs: loads.append(0) or load(*args, **kwargs)
    )
    languages._loaded.cache_clear()
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(languages.judge("ein kleiner Vogel sitzt da", options("de"))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len(found) == 4 and {language for language, _ in found} == {"de"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"languages": ("eng",)}, "--languages=eng is unknown. Did you mean 'en'"),
        ({"languages": ("zxx",)}, "--languages=zxx is unknown"),
        ({"languages": ("en",), "language_confidence": 1.5}, "--language_confidence=1.5 is not in 0..1"),
        ({"keep_undecided": False}, "--no-keep_undecided needs --languages"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(model, fields, message):
    with pytest.raises(PipelineError, match=message):
        check(Options(reader="webdataset", input=("x",), **fields))
    check(options("en", "no", "nn"))


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid", None)
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    languages._loaded.cache_clear()
    with pytest.raises(PipelineError, match=r"--languages needs py3langid.*pip install 'clipjax\[pipelines\]'"):
        check(options("en"))
    with pytest.raises(PipelineError, match="--languages needs py3langid"):
        languages.model(options("en"))  # a worker that lacks it
    assert languages.model(options()) == ""
    check(options())  # and nothing is needed when no language is asked for
    languages._loaded.cache_clear()


@pytest.mark.parametrize("mode", ["in_memory", pytest.param("multi_processing", marks=pytest.mark.slow)])
def test_the_pipeline_counts_captions_by_language(model, tmp_path, mode, monkeypatch):
    pytest.importorskip("apache_beam", reason="pip install 'clipjax[pipelines]'")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    texts = [*CAPTIONS["en"], *CAPTIONS["de"], *CAPTIONS["fr"], *CAPTIONS["ja"], "Mona Lisa"]
    for tar in range(2):
        members = {}
        for i, text in enumerate(texts):
            members[f"{i:04d}.jpg"] = encoded(picture(100 * tar + i), "JPEG")
            members[f"{i:04d}.txt"] = text.encode()
        (tmp_path / f"{tar}.tar").write_bytes(tar_bytes(members))
    flags = {"reader": "webdataset", "input": (str(tmp_path / "*.tar"),), "languages": ("en", "ja")}
    flags |= {"splits": "all=1", "beam_flags": ["--direct_num_workers=2", f"--direct_running_mode={mode}"]}
    manifest = run.build(tmp_path / "set", **flags)
    assert manifest["splits"]["all"]["records"] == 2 * (3 + 2 + 1)
    assert manifest["skipped"] == {
        "languages: no caption left: another language: de": 6,
        "languages: no caption left: another language: fr": 4,
    }
    (step,) = (s for s in json.loads((tmp_path / "set/report.json").read_text())["steps"] if s["step"] == "languages")
    assert {cause: entry["count"] for cause, entry in step["noted"].items()} == {
        "caption in en": 6,
        "caption in ja": 4,
        "caption in an undecided language, kept": 2,
        "caption left out: another language: de": 6,
        "caption left out: another language: fr": 4,
    }
    assert run.build(tmp_path / "set", **flags) == manifest
    # Another version of the model may judge otherwise: what is there was not made with it.
    monkeypatch.setattr(languages, "model", lambda options: "py3langid 99")
    with pytest.raises(ManifestError):
        run.build(tmp_path / "set", **flags)
