"""One rule says what a label is, in every kind of source: right, or refused with the reason."""

import decimal
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipjax.data.labels import ClassNames, match_names, names_beside, names_of_texts, read_label
from clipjax.data.records import ManifestError, RecordError, encode_record, read_manifest
from clipjax.data.sources import FolderConfig, ParquetConfig, WebDatasetConfig, open_source
from clipjax.data.write import write_records
from data_pipelines import csv as csv_pipeline
from data_pipelines import image_folder
from data_pipelines.command import PipelineError
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.readers import READERS
from data_pipelines.prepare.steps.repeats import merge, merge_votes, same_pixels
from data_pipelines.prepare.types import Row
from tests.data.samples import encoded, open_folder, picture

NAMES = ClassNames(("cat", "dog", "crane", "crane", "caf\u00e9", "6", "5"), "names.txt")


@pytest.mark.parametrize(
    "value, label",
    [
        (7, 7), ("7", 7), (" 7\n", 7), ("7\r\n".encode("utf-16"), 7), ("007", 7),
        ("7.0", 7), ("7.", 7), (7.0, 7), (b"7\n", 7), (np.int32(7), 7),
        (np.float32(7), 7), (decimal.Decimal("7.00"), 7), (0, 0), (-0.0, 0), ("\ufeff7", 7), (2**31 - 1, 2**31 - 1),
        ("cat", "cat"), (b"cat\r\n", "cat"), ("\ufeffcat", "cat"), ("1_000", "1_000"), ("7 up", "7 up"),
        ("a\u2028b", "a\u2028b"), (None, None), ("", None), ("  ", None), (b"\n", None), (-1, None), ("-1", None),
        (-1.0, None), ("True", "True"),
    ],
)  # fmt: skip
def test_a_value_is_a_line_a_text_or_no_label(value, label):
    assert read_label(value, "label") == label and type(read_label(value, "label")) is type(label)


@pytest.mark.parametrize(
    "value",
    [7.5, float("nan"), float("inf"), -float("inf"), True, False, np.bool_(True), -2, "-2", -7.0, 2**31, "9" * 5000,
     1e30, [1], {"a": 1}, (), 1j, decimal.Decimal("NaN"), np.float64("nan"), b"caf\xe9", "caf\udce9"],
)  # fmt: skip
def test_anything_else_is_no_label_and_refused(value):
    with pytest.raises(RecordError, match="^label of 3 ") as error:
        read_label(value, "label of 3")
    assert error.value.cause == "unusable label"


def test_labels_are_looked_up_in_the_names_exactly():
    assert [NAMES.number(value, "label") for value in (1, "0", "dog", "cafe\u0301", None, "")] == [1, 0, 1, 4, -1, -1]
    for value, message in {
        7: "label is 7, but names.txt has 7 names",
        "9.0": "label is 9, but names.txt has 7 names",
        "bird": "label is 'bird', which is not among the names in names.txt",
        "dgo": "Did you mean 'dog'",
        "Cat": "Did you mean 'cat'",
        "crane": "the name in lines 2, 3 .from 0. of names.txt. Write the number",
        "5": "'5', which is the number of a line and also the name in line 6",
        "7.5": "'7.5', which is not among the names",
    }.items():
        with pytest.raises(RecordError, match=message):
            NAMES.number(value, "label")
    assert NAMES.number(5, "label") == 5  # a number that is no text is a line
    with pytest.raises(RecordError, match="no class names to look it up in. Expected a whole number, or a file classn"):
        ClassNames().number("cat", "label")


def test_texts_are_their_own_names_and_numbers_have_none():
    found = lambda *labels: names_of_texts([(label, f"line {i}") for i, label in enumerate(labels)], "t.csv").names  # noqa: E731
    assert found("dog", None, "cat", "dog") == ("cat", "dog")
    assert found(0, 10, None, 2) == () == found()
    with pytest.raises(ManifestError, match=r"t.csv has numbers and texts as labels: 3 \(line 1\) and 'cat' \(line"):
        found("cat", 3)
    for text in ("7.5", "7,0", "nan", "NaN", "1e3", "-inf"):
        with pytest.raises(ManifestError, match=f"line 1: the label is {text}, expected a whole number or a class"):
            found("cat", text)


def test_lists_of_names_are_matched_where_that_is_certain():
    assert match_names(["a", "b"], ["a", "b", "c"]) == [0, 1]
    assert match_names(["a", "c"], ["c", "b", "a"]) == [2, 0]
    assert match_names(["cafe\u0301"], ["b", "caf\u00e9"]) == [1]
    assert match_names(["crane", "crane", "b"], ["crane", "crane", "b"]) == [0, 1, 2]
    assert match_names(["0", "1", "2"], ["c", "b", "a"]) == [0, 1, 2]  # classes that have numbers and no names
    for own in (["a", "d"], ["c", "crane"], ["b", "b"], ["a", "b", "c", "crane", "e"], ["0", "1", "2", "3", "4", "5"]):
        assert match_names(own, ["crane", "a", "b", "c", "crane"]) is None


def test_a_file_of_names_is_read_as_all_numbered_files_are(tmp_path, caplog):
    path = tmp_path / "classnames.txt"
    path.write_bytes("\ufeffcat\r\n a\u2028b \r\ncrane\r\ncrane\r\n\r\n".encode())
    assert names_beside(tmp_path / "no", tmp_path).names == ("cat", "a\u2028b", "crane", "crane")
    assert "more than once, which only numbers can tell apart: 'crane' in lines 2, 3" in caplog.text
    path.write_text("0: cat\n1: dog\n")
    assert names_beside(tmp_path).names == ("0: cat", "1: dog") and "begins with its number" in caplog.text
    for content, message in (("'cat',\n'dog',", "is in quotation marks"), ("cat,\ndog,\n", "ends with a comma")):
        path.write_text(content)
        assert names_beside(tmp_path).names == tuple(content.split()) and message in caplog.text
    for content, message in (("cat\n\ndog\n", "line 2 is empty"), ("", "is empty"), ("caf\xe9\n", "not UTF-8")):
        path.write_bytes(content.encode("latin-1"))
        with pytest.raises(ManifestError, match=message):
            names_beside(tmp_path)


def test_a_class_label_of_numbers_has_the_names_of_the_file_beside_it(tmp_path):
    write_parquet(tmp_path / "x.parquet", pa.array([1, 0]), ["0", "1"])
    assert open_source(ParquetConfig(path=str(tmp_path))).class_names == ("0", "1")
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    assert open_source(ParquetConfig(path=str(tmp_path))).class_names == ("cat", "dog")


def results(source) -> list:
    """The label of each record, or why it has none."""
    found = []
    for i in range(len(source)):
        try:
            found.append(source[i]["label"])
        except RecordError as error:
            found.append(f"{error.cause}: {error}")
    return found


def open_table(folder, text, name="t.csv", **options):
    for i in range(6):
        (folder / f"{i}.png").write_bytes(b"image")
    (folder / name).write_text(text, encoding="utf-8")
    return open_source(FolderConfig(path=str(folder / name), text_key="text", **options))


def test_rows_of_a_table_have_the_label_they_say_or_are_bad_records(tmp_path):
    rows = (
        "image,text,label\n0.png,a,10\n1.png,b,2\n2.png,c,\n3.png,d,-2\n4.png,e,3\n4.png,f,3.0\n5.png,g,1\n5.png,h,4\n"
    )
    *good, negative, same, two = results(open_table(tmp_path, rows))
    assert (good, same) == ([10, 2, -1], 3)
    assert negative == "unusable label: label of line 5 is -2 (str), not in 0 to 2^31 - 1 (-1: no label)"
    assert two == "unusable label: '5.png': label of line 8 is '1', label of line 9 is '4'"
    with pytest.raises(ManifestError, match="has numbers and texts as labels: 1 .label of line 2. and 'cat' .label"):
        open_table(tmp_path, "image,text,label\n0.png,a,1\n1.png,b,cat\n")
    with pytest.raises(ManifestError, match="label of line 3: the label is nan"):
        open_table(tmp_path, "image,text,label\n0.png,a,cat\n1.png,b,nan\n")
    with pytest.raises(ManifestError, match="no column 'kind'"):
        open_table(tmp_path, "image,text,label\n0.png,a,1\n", label_key="kind")
    assert results(open_table(tmp_path, "image,text,label\n0.png,a,cat\n1.png,b,1\n", label_key="")) == [-1, -1]
    (tmp_path / "classnames.txt").write_text("dog\ncat\n")
    source = open_table(tmp_path, "image,text,label\n0.png,a,1\n1.png,b,cat\n2.png,b,2\n3.png,c,bird\n")
    assert source.class_names == ("dog", "cat")
    assert results(source) == [
        1, 1,
        f"unusable label: '2.png': label of line 4 is 2, but {tmp_path}/classnames.txt has 2 names; labels count its "
        "lines from 0",
        "unusable label: '3.png': label of line 5 is 'bird', which is not among the names in "
        f"{tmp_path}/classnames.txt.",
    ]  # fmt: skip


def test_json_lines_keep_the_types_of_labels(tmp_path):
    values = ("0", "2.0", "null", "true", "1.5", "[1]")
    rows = [f'{{"image": "{i}.png", "text": "x", "label": {value}}}' for i, value in enumerate(values)]
    zero, two, none, *wrong = results(open_table(tmp_path, "\n".join(rows), "t.jsonl"))
    assert (zero, two, none) == (0, 2, -1)
    assert [message.split(",")[0] for message in wrong] == [
        "unusable label: label of line 4 is True (bool)",
        "unusable label: label of line 5 is 1.5 (float)",
        "unusable label: label of line 6 is [1] (list)",
    ]


def write_parquet(path, label, names=None) -> None:
    count = len(label)
    table = pa.table({"image": pa.array([b"x"] * count, pa.binary()), "text": ["a"] * count, "label": label})
    if names:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()})
    pq.write_table(table, path)


def test_parquet_takes_whole_numbers_of_any_type_and_null_for_none(tmp_path):
    open_parquet = lambda **options: open_source(ParquetConfig(path=str(tmp_path), **options))  # noqa: E731
    write_parquet(tmp_path / "x.parquet", pa.array([0.0, 1.0, None, 1.5, float("nan")]))
    *good, half, nan = results(open_parquet())
    assert good == [0, 1, -1] and "1.5 (float), expected a whole number" in half and "null or an empty field" in nan
    write_parquet(tmp_path / "x.parquet", pa.array([0, -1, None, 3, -2]), ["cat", "dog"])
    *good, beyond, negative = results(open_parquet())
    assert good == [0, -1, -1] and f"is 3, but the ClassLabel of {tmp_path}/x.parquet has 2 names" in beyond
    assert "is -2 (int)" in negative
    write_parquet(tmp_path / "x.parquet", pa.array(["1", None, ""]))
    assert results(open_parquet()) == [1, -1, -1]
    for values in ([True, False], [[1], [2]], [{"a": 1}]):
        write_parquet(tmp_path / "x.parquet", pa.array(values))
        with pytest.raises(ManifestError, match="column 'label' has the type .* which is not one class of a record"):
            open_parquet()
        assert set(results(open_parquet(label_key=""))) == {-1}
    with pytest.raises(ManifestError, match="no column 'labels'.*Did you mean 'label'.*label_key"):
        open_parquet(label_key="labels")


def test_parquet_files_that_disagree_about_classes_are_refused_by_name(tmp_path):
    open_parquet = lambda: open_source(ParquetConfig(path=str(tmp_path)))  # noqa: E731
    a, b = tmp_path / "a.parquet", tmp_path / "b.parquet"
    write_parquet(a, pa.array([0, 1]), ["cat", "dog"])
    write_parquet(b, pa.array([0, 1]), ["dog", "cat"])
    with pytest.raises(ManifestError, match=f"{a} and the ClassLabel of {b} differ: line 0 .from 0. is 'cat' in"):
        open_parquet()
    write_parquet(b, pa.array([0, 1]))
    with pytest.raises(ManifestError, match=f"{b} has numbers as labels and no ClassLabel names"):
        open_parquet()
    write_parquet(b, pa.array([None, None], pa.float64()))
    assert results(open_parquet()) == [0, 1, -1, -1]
    write_parquet(b, pa.array(["dog", "cat"]))
    assert results(open_parquet()) == [0, 1, 1, 0]
    write_parquet(a, pa.array([0, 1]))
    with pytest.raises(ManifestError, match=f"numbers and texts as labels: 0 .the column's type in {a}.* and 'dog'"):
        open_parquet()
    write_parquet(a, pa.array([0, 1]), ["cat", "dog"])
    write_parquet(b, pa.array([0, 1]), ["cat", "dog"])
    (tmp_path / "classnames.txt").write_text("cat\nhound\n")
    with pytest.raises(ManifestError, match="classnames.txt differ: line 1 .from 0. is 'dog' in the first and 'hound'"):
        open_parquet()


def write_tar(path, labels) -> None:
    with tarfile.open(path, "w") as tar:
        for i, label in enumerate(labels):
            for extension, data in {"png": encoded(picture(i)), "txt": b"a dog", "cls": label}.items():
                member = tarfile.TarInfo(f"{i}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def test_samples_of_a_tar_have_the_label_they_say_or_are_bad_records(tmp_path):
    write_tar(tmp_path / "0.tar", [b"1\n", b"\xef\xbb\xbf0", b"dog", b"7.5", b"", b"-1", b"5"])
    source = open_source(WebDatasetConfig(path=str(tmp_path)))
    one, zero, text, half, empty, none, five = results(source)
    assert (one, zero, empty, none, five) == (1, 0, -1, -1, 5)
    assert text.startswith("unusable label: label '2.cls' is 'dog', and there are no class names to look it up in")
    assert "label '3.cls' is '7.5'" in half
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    found = results(open_source(WebDatasetConfig(path=str(tmp_path))))
    assert found[:3] == [1, 0, 1] and f"'6.cls' is 5, but {tmp_path}/classnames.txt has 2 names" in found[6]


def test_records_hold_whole_numbers_that_are_lines_of_the_manifests_names(tmp_path):
    image = encoded(picture(0))
    records = [
        encode_record(image, ["a"], key=f"k{i}", label=label) for i, label in enumerate((1, 1.0, np.int64(0), 2))
    ]
    for label in (7.5, True, "cat", float("nan"), -2):
        with pytest.raises(RecordError, match="field 'label'"):
            encode_record(image, ["a"], key="k", label=label)
    write_records(tmp_path / "out", {"train": records}, name="n", class_names=["cat", "dog"], source={})
    *good, beyond = results(open_folder(tmp_path / "out"))
    assert good == [1, 1, 0]
    assert beyond.startswith(f"unusable label: label of 'k3' is 2, but the manifest of {tmp_path}/out has 2 names")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    for names in ("cat", {"cat": 0}, [0, 1]):
        (tmp_path / "out/manifest.json").write_text(json.dumps(manifest | {"class_names": names}))
        with pytest.raises(ManifestError, match="class_names is a list of texts"):
            read_manifest(tmp_path / "out")


def test_a_pipeline_counts_rows_whose_label_is_no_class(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(encoded(picture(i)))
    rows = "image,caption,kind\n0.png,a,0\n1.png,b,1.5\n2.png,c,2\n2.png,c,3\n3.png,d,\n"
    (tmp_path / "t.csv").write_text(rows)
    build = lambda **options: csv_pipeline.build(  # noqa: E731
        tmp_path / "out", table=tmp_path / "t.csv", splits="train=1", overwrite=True, **options
    )
    with pytest.raises(ManifestError, match="the label is 1.5"):
        build(label_column="kind")
    (tmp_path / "t.csv").write_text(rows.replace("1.5", "-5"))
    manifest = build(label_column="kind")
    assert manifest["skipped"] == {"unusable label": 2} and manifest["class_names"] == []
    assert results(open_folder(tmp_path / "out")) == [0, -1]
    (tmp_path / "names.txt").write_text("cat\n\ndog\n")
    with pytest.raises(ManifestError, match="names.txt, line 2 is empty"):
        build(label_column="kind", class_names=tmp_path / "names.txt")


def test_class_folders_are_numbers_or_names_and_not_both(tmp_path, caplog):
    def names_of(*folders, class_names=None):
        return image_folder.class_folders(tmp_path, folders, class_names)

    assert names_of("red_rose", "ant")[1] == {"red_rose": 1, "ant": 0} and not caplog.records
    names, labels = names_of("0", "1", "10")
    assert labels == {"0": 0, "1": 1, "10": 10} and names.names == tuple(map(str, range(11)))
    assert "class folders" in caplog.text and "--class_names=FILE" in caplog.text
    with pytest.raises(ManifestError, match="numbers and texts as labels: 1 .folder '1'. and 'cat' .folder 'cat'."):
        names_of("cat", "1")
    (tmp_path / "n.txt").write_text("dog\nred_rose\nant hill\n")
    assert names_of("1", "ant_hill", "red_rose", class_names=tmp_path / "n.txt")[1] == {
        "1": 1, "ant_hill": 2, "red_rose": 1
    }  # fmt: skip
    for folder, message in (
        ("3", "folder '3' is 3, but .*n.txt has 3 names"),
        ("cat", "folder 'cat' is 'cat', which is"),
    ):
        with pytest.raises(PipelineError, match=message):
            names_of(folder, class_names=tmp_path / "n.txt")
    with pytest.raises(PipelineError, match="folder '-7' is -7"):
        names_of("-7")


OPTIONS = Options(reader="csv", input=("x",))


def row(**changes) -> Row:
    known = dict(key="k", unit=0, position=0, texts=("a dog",), label="", scores=(), image_sha="", pixels_sha="p")
    return Row(**{**known, "image_hash": 0, "colours": "", **changes})


def prepare_labels(reader, path, **options):
    """(class names, labels, notes) of what a reader of prepare reads."""
    options, notes = Options(reader=reader, input=(str(path),), **options), []
    listing, note = READERS[reader].units(options), lambda cause, key, text, count=1: notes.append((cause, text))
    examples = [example for unit in listing.units for example in READERS[reader].read(unit, options, note)]
    return listing.class_names, [example.label for example in examples], notes


def test_readers_of_prepare_keep_numbers_and_names(tmp_path):
    write_tar(tmp_path / "0.tar", [b"1\n", b"0", b"-1", b"3"])
    assert prepare_labels("webdataset", tmp_path) == ([], [1, 0, "", 3], [])
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    names, labels, notes = prepare_labels("webdataset", tmp_path)
    assert (names, labels) == (["cat", "dog"], [1, 0, ""])
    assert [(cause, "'0/3.cls' is 3, but" in text) for cause, text in notes] == [("unusable label", True)]
    (tmp_path / "other.txt").write_text("a\nb\nc\nd\n")
    names, labels, _ = prepare_labels("webdataset", tmp_path, class_names=str(tmp_path / "other.txt"))
    assert (names, labels) == (["a", "b", "c", "d"], [1, 0, "", 3])
    (tmp_path / "classnames.txt").unlink()
    options = dict(caption_columns=("text",), label_column="label")
    write_parquet(tmp_path / "x.parquet", pa.array([1.0, None, 1.5]))
    names, labels, notes = prepare_labels("parquet", tmp_path, **options)
    assert (names, labels, [cause for cause, _ in notes]) == ([], [1, ""], ["unusable label"])
    write_parquet(tmp_path / "x.parquet", pa.array([1, 0, 2]), ["cat", "dog"])
    names, labels, notes = prepare_labels("parquet", tmp_path, **options)
    assert (names, labels, len(notes)) == (["cat", "dog"], [1, 0], 1)
    write_parquet(tmp_path / "x.parquet", pa.array(["dog", "cat", None]))
    assert prepare_labels("parquet", tmp_path, **options)[:2] == ([], ["dog", "cat", ""])


def test_records_of_one_image_become_one_with_the_label_that_any_of_them_has():
    def merged(*labels):
        rows = [row(key=f"k{i}", label=label, unit=i) for i, label in enumerate(labels)]
        votes = merge_votes(sorted(vote for one in rows for _, vote in same_pixels(one, OPTIONS)), OPTIONS)
        notes = []
        kept = merge(
            rows[0], [vote for to, vote in votes if to == rows[0].id], OPTIONS, lambda *note: notes.append(note)
        )
        return kept.label, notes

    assert merged("", "") == ("", []) and merged(0, 0) == (0, [])
    assert merged("", 0, 0) == (0, []) and merged("cat", "") == ("cat", [])
    assert merged(1, 0) == (1, [("the same image has several labels, the first is kept", "k0", "1 | 0")])
