"""Class names and templates are read from the files in which published sets have them, or refused by name."""

import json

import pytest

from clipjax.config import ConfigError
from clipjax.eval.prompts import (
    TEMPLATES,
    fill,
    prompts_of_classes,
    read_class_names,
    read_class_prompts,
    read_templates,
    read_translated_classes,
)

NAMES = {"it": {"cars": ["rossa", "blu"], "angles": ["vicino", ""]}, "en": {"cars": ["red", "blue"], "vtab": ["x"]}}
PROMPTS = {"en": {"cars": ["a {c} car.", "the {c}."], "imagenet1k": ["a {c}."]}, "it": {"cars": ["una {c}."]}}
CUPL = {"cars": {"red": ["A red car is red.", "Red paint."], "Blue_car": ["It is blue."]}}
BABEL = {"SW": [[4, 1, 9], ["tembo", "paka", "ndege"]], "DE": [[0], ["Schleie"]]}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    for language in ("it", "en"):
        (folder / f"{language}_classnames.json").write_text(json.dumps(NAMES[language]), encoding="utf-8")
        path = folder / f"{language}_zeroshot_classification_templates.json"
        path.write_text(json.dumps(PROMPTS[language], ensure_ascii=False), encoding="utf-8")
    (folder / "names.txt").write_text("red \nblue\n", encoding="utf-8")
    (folder / "templates.txt").write_text("a {c}. \n\nthe {}.\n", encoding="utf-8")
    (folder / "cupl.json").write_text(json.dumps(CUPL), encoding="utf-8")
    (folder / "babel.json").write_text(json.dumps(BABEL), encoding="utf-8")
    (folder / "by_language.json").write_text(json.dumps({"JA": ["{}。"], "DE": ["ein {}."]}), encoding="utf-8")
    (folder / "nested.json").write_text(json.dumps(NAMES), encoding="utf-8")
    (folder / "list.json").write_text('["red", "blue"]', encoding="utf-8")
    return folder


def test_names_and_templates_by_data_set_and_language(files):
    assert read_class_names(files, "cars") == read_class_names(files, "wds/cars") == ("red", "blue")
    assert read_class_names(files, "cars", language="it") == ("rossa", "blu")
    assert read_class_names(files / "it_classnames.json", "angles", "it") == ("vicino", "")
    assert read_class_names(files / "nested.json", "cars", "it") == ("rossa", "blu")
    assert read_class_names(files / "list.json") == read_class_names(files / "names.txt") == ("red", "blue")
    assert read_templates(files, "cars") == ("a {c} car.", "the {c}.")
    assert read_templates(files, "cars", language="it") == ("una {c}.",)
    assert read_templates(files / "by_language.json", language="ja") == ("{}。",)
    assert read_templates(files / "templates.txt") == ("a {c}.", "the {}.")


def test_prompts_of_each_class_follow_the_class_names(files):
    prompts = read_class_prompts(files / "cupl.json", "cars")
    assert prompts == {"red": ("A red car is red.", "Red paint."), "Blue_car": ("It is blue.",)}
    assert prompts_of_classes(prompts, ("blue car", "red")) == [prompts["Blue_car"], prompts["red"]]
    with pytest.raises(ConfigError, match="1 of 2 classes have no prompts, such as 'redd'. Did you mean 'red'"):
        prompts_of_classes(prompts, ("redd", "red"))


def test_translated_classes_are_numbers_of_classes_and_their_names(files):
    assert read_translated_classes(files / "babel.json", "sw") == ((1, 4, 9), ("paka", "tembo", "ndege"))


REFUSED = {
    "no such language in a folder": (read_class_names, ("", "cars", "xx"), "no xx_classnames.json; .* are en, it"),
    "a folder of other files": (
        read_templates,
        ("sub",),
        "has no file LANGUAGE_zeroshot_classification_templates.json",
    ),
    "a file of another language": (read_class_names, ("it_classnames.json", "cars", "en"), "of the language 'it', not"),
    "no such data set": (read_class_names, ("", "carz"), "has no 'carz'. It has 2: 'cars', 'vtab'"),
    "no data set": (read_templates, ("en_zeroshot_classification_templates.json",), "say which of them: 'cars', 'imag"),
    "no language": (read_templates, ("by_language.json",), "has several lists; say which of them: 'JA', 'DE'"),
    "no such language": (read_templates, ("by_language.json", "", "fr"), "has no 'fr'. It has 2: 'JA', 'DE'"),
    "no data set of a language": (read_class_names, ("nested.json", "", "it"), "'it' has several lists; .* 'cars'"),
    "a data set of a list": (read_class_names, ("list.json", "cars"), "has one list, and none for 'cars'"),
    "a data set of a text file": (read_class_names, ("names.txt", "cars"), "text file with one list; .* 'cars'"),
    "prompts of classes": (read_templates, ("cupl.json", "cars"), "read them with read_class_prompts"),
    "translated names": (read_class_names, ("babel.json", "", "sw"), "read them with read_translated_classes"),
    "translations of no language": (read_translated_classes, ("babel.json", "zz"), "has no 'zz'. It has 2: 'SW', 'DE'"),
    "templates as prompts": (read_class_prompts, ("by_language.json", "JA"), "is no object of lists of prompts"),
    "a missing file": (read_templates, ("none.json",), "none.json is not a file"),
    "a missing text file": (read_class_names, ("none.txt",), "none.txt is not a file"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_there_is_refused_with_what_is(files, kind):
    read, (path, *which), message = REFUSED[kind]
    (files / "sub").mkdir(exist_ok=True)
    with pytest.raises(ConfigError, match=message):
        read(files / path, *which)


BROKEN = {
    "no JSON": ('{"a": ', "cannot be read as JSON"),
    "empty": ("", "cannot be read as JSON"),
    "a number": ('{"a": 3}', "'a' has no templates; expected a list of texts"),
    "an empty list": ('{"a": []}', "'a' has no templates"),
    "numbers": ('{"a": ["{c}", 3]}', "'a', number 1 is '3', expected a text"),
    "an empty template": ('{"a": ["{c}", " "]}', "'a', number 1 is empty"),
    "no place": ('{"a": ["{c}", "a photo"]}', "'a', number 1: Template 'a photo' has no {} or {c}"),
    "both places": ('{"a": ["{c} {}"]}', "'a', number 0: Template '{c} {}' has both"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_templates_are_refused_by_file_and_number(tmp_path, kind):
    text, message = BROKEN[kind]
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_templates(tmp_path / "t.json", "a")
    assert str(tmp_path / "t.json") in str(caught.value)


def test_a_line_without_a_place_is_refused_by_file_and_line(tmp_path):
    (tmp_path / "t.txt").write_text("a {c}\n\na photo\n")
    with pytest.raises(ConfigError, match="t.txt, line 3: Template 'a photo' has no {} or {c} for the class name"):
        read_templates(tmp_path / "t.txt")
    (tmp_path / "t.txt").write_text("\n \n")
    with pytest.raises(ConfigError, match="t.txt is empty; expected one template a line"):
        read_templates(tmp_path / "t.txt")
    with pytest.raises(ConfigError, match="t.txt is empty; expected one class name per line"):
        read_class_names(tmp_path / "t.txt")


@pytest.mark.parametrize(
    "lists", [[[1, 2], ["a"]], [[1, 1], ["a", "b"]], [[-1], ["a"]], [["1"], ["a"]], [[True], ["a"]], [[1], [2]], ["a"]]
)
def test_translations_that_contradict_themselves_are_refused(tmp_path, lists):
    (tmp_path / "b.json").write_text(json.dumps({"DE": lists}))
    with pytest.raises(ConfigError, match="b.json, 'DE'"):
        read_translated_classes(tmp_path / "b.json", "de")


@pytest.mark.parametrize("template", ["a {c}", "{c}{c}", "{{c}} {c}", "{{}} {c}}}", "{{{c}}}", "a {c} {{x}}"])
def test_a_template_of_clip_benchmark_is_filled_as_pythons_format_does(template):
    assert fill((template,), ("{}s", "cat")) == [template.format(c="{}s"), template.format(c="cat")]


@pytest.mark.parametrize("template", ["{{c}}", "a {C}", "a { c }", "a {0}", "a {c", "{ }"])
def test_what_is_no_place_for_the_name_is_refused(template):
    with pytest.raises(ConfigError, match="has no {} or {c} for the class name"):
        fill((template,), ("cat",))


def test_our_eighty_templates_are_eighty():
    assert len(set(fill(TEMPLATES["clipjax_80"], ("zebra",)))) == 80
