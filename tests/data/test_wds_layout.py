"""CLIP_benchmark's WebDatasets are read as they lie: what the text files around the tars say holds, or is refused."""

import logging
import pickle
import shutil

import numpy as np
import pytest

from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources import WebDatasetConfig, open_source
from tests.eval import wds_sets
from tests.eval.wds_sets import NAMES, TEMPLATES, image, npy, write_lists, write_split, write_tar


def open_set(folder, split="test", **options):
    return open_source(WebDatasetConfig(path=str(folder), split=split, **options))


def refused(folder, message, split="test"):
    with pytest.raises(ManifestError, match=message):
        open_set(folder, split)


def cause_of(source, index, message=""):
    with pytest.raises(RecordError, match=message) as caught:
        source[index]
    return caught.value.cause


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(logging.getLogger("absl"), "handle", lambda record: lines.append(record.getMessage()))
    return lines


@pytest.mark.parametrize("extension", ["webp", "png", "jpg", "jpeg"])
def test_a_classification_set_gives_labels_names_and_templates(tmp_path, extension):
    folder = wds_sets.write_classification(tmp_path, "vtab/cats", extension=extension)
    assert folder.name == "wds_vtab-cats"
    source = pickle.loads(pickle.dumps(open_set(folder)))
    assert (source.task, source.templates, source.class_names) == ("classification", TEMPLATES, NAMES)
    assert [source[i]["label"] for i in range(len(source))] == [0, 1, 2] * 3
    expected = {"key": "s0000004", "label": 1, "texts": ["dog"], "pair_id": -1, "image": image(4, extension)}
    assert source[4] == expected


def test_the_training_split_is_read_for_probes_and_a_missing_split_lists_those_there(tmp_path):
    wds_sets.write_classification(tmp_path, labels=(0, 1))
    folder = wds_sets.write_classification(tmp_path, split="train", labels=(2, 1, 0, 0))
    assert [len(open_set(folder, split)) for split in ("test", "train")] == [2, 4]
    refused(
        folder, r"wds_cats has no \.tar file.*no folder 'validation' for the split.*: 'test', 'train'", "validation"
    )
    refused(folder, "Set split to one of the folders that it has: 'test', 'train'", "")


def test_datacomps_copies_are_named_after_the_split_too(tmp_path):
    folder = wds_sets.write_classification(tmp_path, "cats_test")
    assert len(open_set(folder)) == len(open_set(folder / "test")) == len(open_set(folder / "test", "")) == 9
    refused(tmp_path / "wds_cats", "There is no file '.*wds_cats'. There is '.*wds_cats_test'")
    flat = tmp_path / "flat_test"
    shutil.copytree(folder / "test", flat)
    assert len(open_set(flat)) == 9
    refused(flat, "no file named after the split 'val'", "val")


def test_tars_are_read_in_the_order_of_their_numbers(tmp_path):
    folder = wds_sets.write_classification(tmp_path, labels=range(12), names=[f"n{i}" for i in range(12)], shards=12)
    source = open_set(folder)
    assert [source[i]["label"] for i in range(12)] == list(range(12))
    pattern = open_set(folder / "test/{2,10}.tar")
    assert [pattern[i]["label"] for i in range(2)] == [2, 10] and pattern.templates == TEMPLATES


def test_lines_end_in_blanks_and_windows_newlines_and_both_places_are_read(tmp_path):
    folder = wds_sets.write_classification(tmp_path, labels=(0, 1, 2))
    (folder / "classnames.txt").write_bytes("\ufeffcat \r\ndog\t\r\nred bird  \r\n".encode())
    (folder / "zeroshot_classification_templates.txt").write_bytes(b"a {c}. \r\n\r\nthe {}.  \r\n")
    (folder / "dataset_type.txt").write_bytes(b"Classification \r\n")
    (folder / "test/nshards.txt").write_bytes(b" 2 \r\n\r\n")
    source = open_set(folder)
    assert (source.class_names, source.templates) == (NAMES, ("a {c}.", "the {}."))


def test_a_number_in_a_cls_is_a_line_even_where_a_name_is_that_number(tmp_path):
    names = ("9", "0", "45", "-30")  # as of an angle
    source = open_set(wds_sets.write_classification(tmp_path, names=names, labels=(0, 1, 2, 3)))
    assert [source[i]["label"] for i in range(4)] == [0, 1, 2, 3]
    source = open_set(wds_sets.write_classification(tmp_path, "short", labels=(0, 3, 1)))
    assert cause_of(source, 1, "'s0000001.cls' is 3, but .*classnames.txt has 3 names") == "unusable label"


def test_an_empty_class_name_keeps_its_line(tmp_path, warnings):
    folder = wds_sets.write_classification(tmp_path, names=("near", "", "far"), labels=(2, 1, 0))
    source = open_set(folder)
    assert source.class_names == ("near", "", "far")
    assert [source[i]["texts"] for i in range(3)] == [["far"], [""], ["near"]]
    assert any("classnames.txt, line 2 is empty: class 1 has an empty name" in line for line in warnings)
    (folder / "zeroshot_classification_templates.txt").unlink()
    refused(folder, "classnames.txt, line 2 is empty")


def test_a_retrieval_set_has_a_caption_a_line_and_backslash_n_inside_one(tmp_path):
    captions = (("a cat", "one cat\nsits", "a cat"), ("Größe\u2028eins",), ("a", "", "b "))
    source = open_set(wds_sets.write_retrieval(tmp_path, captions=captions))
    assert source.task == "retrieval" and source.templates == source.class_names == ()
    texts = [source[i]["texts"] for i in range(3)]
    assert texts == [["a cat", "one cat\nsits", "a cat"], ["Größe\u2028eins"], ["a", "b"]]
    assert [source[i]["label"] for i in range(3)] == [-1] * 3


def test_a_txt_of_other_tars_stays_one_caption(tmp_path):
    write_tar(tmp_path / "0.tar", [("a", {"png": image(0), "txt": b"one\\nline\ntwo"})])
    source = open_source(WebDatasetConfig(path=str(tmp_path)))
    assert source[0]["texts"] == ["one\\nline\ntwo"]
    assert (source.task, source.templates) == ("", ())


def test_captions_of_other_files_are_read_beside_the_lines(tmp_path):
    folder = wds_sets.write_retrieval(tmp_path, captions=())
    write_split(folder, "test", [{"png": image(0), "txt": b"a\nb", "de.txt": b"c\nd"}], shards=1)
    assert open_set(folder, text_key="txt,de.txt")[0]["texts"] == ["a", "b", "c\nd"]
    assert open_set(folder, text_key="de.txt")[0]["texts"] == ["c\nd"]


def test_a_multilabel_set_gives_rows_of_targets(tmp_path):
    rows = ((1, 0, 0), (0, 1, 1), (0, 0, 0))
    source = open_set(wds_sets.write_multilabel(tmp_path, rows=rows))
    assert source.task == "multilabel" and source.class_names == NAMES
    found = [source[i] for i in range(3)]
    assert [record["targets"].tolist() for record in found] == [list(row) for row in rows]
    assert {record["targets"].dtype for record in found} == {np.dtype(np.uint8)}
    assert [record["label"] for record in found] == [-1, -1, -1]
    assert [record["texts"] for record in found] == [["cat"], ["dog", "red bird"], [""]]


ROWS = {
    "bool": npy([1, 0, 1], bool),
    "int8": npy([1, 0, 1], np.int8),
    "float32": npy([1, 0, 1], np.float32),
    "big-endian": npy([1, 0, 1], ">i4"),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_row_of_any_type_of_number_is_read(tmp_path, kind):
    folder = wds_sets.write_multilabel(tmp_path)
    write_split(folder, "test", [{"png": image(0), "npy": ROWS[kind]}])
    assert open_set(folder)[0]["targets"].tolist() == [1, 0, 1]


class Opened:
    """What a pickle must not make."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was read",)


HUGE = npy([1, 0, 1]).replace(b"(3,), }", b"(30000000000000,), }")
BAD_ROWS = {
    "longer": (npy([1, 0, 1, 0]), "wrong number of targets", "has 4 numbers, expected one for each of 3"),
    "shorter": (npy([1]), "wrong number of targets", "has 1 numbers"),
    "two": (npy([1, 0, 2]), "unusable label", "has 2 for class 2, expected 0 or 1"),
    "a half": (npy([1, 0.5, 0], float), "unusable label", "has 0.5 for class 1"),
    "NaN": (npy([np.nan, 0, 0], float), "unusable label", "has nan for class 0"),
    "two rows": (npy([[1, 0, 1]]), "corrupt record", r"has the shape \(1, 3\)"),
    "one number": (npy(1), "corrupt record", r"has the shape \(\)"),
    "texts": (npy(["a", "b", "c"], str), "corrupt record", "holds <U1, expected numbers"),
    "objects": (npy([1, None, 0], object), "corrupt record", "pickled objects, which are not read"),
    "a pickle": (pickle.dumps(Opened()), "corrupt record", "is not a .npy file"),
    "cut": (npy([1, 0, 1])[:-1], "corrupt record", "has 23 bytes of data, expected 24"),
    "cut in its header": (npy([1, 0, 1])[:40], "corrupt record", "is not a .npy file"),
    "longer than it says": (npy([1, 0, 1]) + b"x", "corrupt record", "has 25 bytes of data"),
    "huge": (HUGE, "corrupt record", "bytes of data, expected 240000000000000 for"),
    "empty": (b"", "corrupt record", "is not a .npy file"),
    "an archive": (b"PK\3\4" + bytes(60), "corrupt record", "is not a .npy file"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_wrong_row_is_a_bad_record_that_says_why(tmp_path, kind):
    row, cause, message = BAD_ROWS[kind]
    folder = wds_sets.write_multilabel(tmp_path)
    write_split(folder, "test", [{"png": image(0), "npy": npy([0, 1, 0])}, {"png": image(1), "npy": row}])
    source = open_set(folder)
    assert source[0]["targets"].tolist() == [0, 1, 0]
    assert cause_of(source, 1, message) == cause


def test_a_sample_without_its_row_is_a_bad_record(tmp_path):
    folder = wds_sets.write_multilabel(tmp_path)
    write_split(folder, "test", [{"png": image(0), "npy": npy([0, 1, 0])}, {"png": image(1), "cls": b"1"}])
    assert cause_of(open_set(folder), 1, "'s0000001' has .cls, .png, no .npy") == "no targets"


def test_rows_of_another_width_than_the_class_names_are_refused(tmp_path):
    folder = wds_sets.write_multilabel(tmp_path, names=("cat", "dog"))
    refused(folder, "'s0000000' in .*0.tar has 3 targets, but .*classnames.txt has 2 names")
    (folder / "classnames.txt").unlink()
    source = open_set(folder)
    assert source.class_names == () and source[3]["targets"].tolist() == [1, 1, 1] and source[3]["texts"] == [""]


TYPES = {
    "captioning": "dataset_type.txt says 'captioning', expected classification, retrieval, multilabel",
    "": "dataset_type.txt says '', expected",
    "retrieval\nmultilabel": "dataset_type.txt says 'retrieval\nmultilabel', expected",
    "retrieval": "dataset_type.txt says retrieval, whose samples have a .txt, but 's0000000' in .* has .cls, .png",
    "multilabel": "dataset_type.txt says multilabel, whose samples have a .npy, but 's0000000' in .* has .cls, .png",
}


@pytest.mark.parametrize("kind", TYPES)
def test_a_type_that_is_unknown_or_not_that_of_the_samples_is_refused(tmp_path, kind):
    folder = wds_sets.write_classification(tmp_path)
    (folder / "dataset_type.txt").write_text(kind + "\n")
    refused(folder, TYPES[kind])


def test_a_multilabel_set_that_lost_its_type_is_refused(tmp_path):
    folder = wds_sets.write_multilabel(tmp_path)
    (folder / "dataset_type.txt").unlink()
    refused(folder, "There is no .*dataset_type.txt: the set is classification, whose samples have a .cls, but .* .npy")
    write_lists(folder, NAMES, TEMPLATES, "classification")
    refused(folder, "dataset_type.txt says classification, whose samples have a .cls, but .* has .npy, .png")


def test_numbers_beside_a_cls_are_metadata(tmp_path):
    folder = wds_sets.write_classification(tmp_path, "wilds-fmow_test")
    rows = [npy([3, 1]), npy([None, 1], object)]
    write_split(folder, "test", [{"png": image(i), "cls": b"1", "npy": row} for i, row in enumerate(rows)])
    source = open_set(folder)
    assert source[0]["metadata"].tolist() == [3, 1]
    assert "metadata" not in source[1] and source[1]["label"] == 1


def shards(folder, count=None, remove=(), add=()):
    for number in remove:
        (folder / f"test/{number}.tar").unlink()
    for name in add:
        shutil.copy(folder / "test/0.tar", folder / "test" / name)
    if count is not None:
        (folder / "test/nshards.txt").write_text(count)


SHARDS = {
    "one is missing": (dict(remove=(3,)), "nshards.txt says 5 tars, 0.tar to 4.tar, but 3.tar missing .there are 4: 0"),
    "some are missing": (dict(remove=(0, 4)), r"0.tar and 1 more missing \(there are 3: 1.tar, 2.tar, 3.tar\)"),
    "one is too many": (dict(add=("5.tar",)), "says 5 tars.* but there are 6: .*such as 5.tar"),
    "one has another name": (dict(add=("copy.tar",)), "says 5 tars.* but there are 6: .*such as copy.tar"),
    "one of each": (dict(remove=(3,), add=("7.tar",)), "but 3.tar missing .there are 5: 0.tar, 1.tar, 2.tar, 4.tar, 7"),
    "fewer are counted": (dict(count="4"), "says 4 tars, 0.tar to 3.tar, but there are 5"),
    "no number": (dict(count="five"), "nshards.txt says 'five', expected one whole number from 1"),
    "a negative number": (dict(count="-1"), "nshards.txt says '-1'"),
    "zero": (dict(count="0"), "nshards.txt says '0'"),
    "a fraction": (dict(count="5.0"), "nshards.txt says '5.0'"),
    "two numbers": (dict(count="5\n5"), "nshards.txt says '5\n5'"),
    "nothing": (dict(count=""), "nshards.txt says ''"),
    "a page": (dict(count="Entry not found"), "nshards.txt says 'Entry not found'"),
}


@pytest.mark.parametrize("kind", SHARDS)
def test_tars_that_are_not_those_counted_are_refused(tmp_path, kind):
    change, message = SHARDS[kind]
    folder = wds_sets.write_classification(tmp_path, shards=5)
    shards(folder, **change)
    refused(folder, message)


def test_without_a_count_tars_are_read_but_none_may_be_missing_between_others(tmp_path, warnings):
    folder = wds_sets.write_classification(tmp_path, shards=3)
    (folder / "test/nshards.txt").unlink()
    assert len(open_set(folder)) == 9
    assert any("nshards.txt is absent: it cannot be checked whether tars are missing" in line for line in warnings)
    shards(folder, remove=(1,))
    refused(folder, "The tars in .* are numbered from 0 to 2, but 1.tar missing")
    (folder / "zeroshot_classification_templates.txt").unlink()
    assert len(open_set(folder)) == 6  # a folder of tars


TEMPLATE_FILES = {
    "without a place": (b"a {c}.\na photo.\n", "templates.txt, line 2: Template 'a photo.' has no {} or {c} for the"),
    "another word": (b"a {class}.\n", "line 1: Template 'a {class}.' has no .*; write {} instead of {class}"),
    "both places": (b"\na {} {c}\n", "line 2: Template 'a {} {c}' has both {} and {c}"),
    "empty": (b" \n\n", "templates.txt is empty; expected one template a line"),
    "not text": (b"a {c} \xff", "templates.txt, line 1: not UTF-8"),
}


@pytest.mark.parametrize("kind", TEMPLATE_FILES)
def test_templates_that_cannot_be_filled_are_refused_by_file_and_line(tmp_path, kind):
    data, message = TEMPLATE_FILES[kind]
    folder = wds_sets.write_classification(tmp_path)
    (folder / "zeroshot_classification_templates.txt").write_bytes(data)
    refused(folder, message)


def test_a_set_cut_short_is_refused(tmp_path):
    folder = wds_sets.write_classification(tmp_path)
    data = (folder / "test/1.tar").read_bytes()
    (folder / "test/1.tar").write_bytes(data[: len(data) // 2 + 100])
    refused(folder, "1.tar")
    (folder / "test/1.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(folder, "1.tar.*git lfs pull")


def test_tars_of_two_kinds_are_not_read_as_one(tmp_path):
    wds_sets.write_classification(tmp_path, "a")
    wds_sets.write_retrieval(tmp_path, "b")
    refused(
        tmp_path / "wds_*/test/*.tar", "different sets: the task of the first is classification, of the second retr"
    )
