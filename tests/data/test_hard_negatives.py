"""Sets of true and false captions are read as they are published, and refused where they contradict themselves."""

import io
import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipjax.config import ConfigError, DataConfig
from clipjax.data.mixture import open_train
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources import HardNegativesConfig, open_source
from tests.data import hard_negative_sets as sets


def opened(path, **options):
    return open_source(HardNegativesConfig(path=str(path), **options))


def level(record) -> int:
    pixels = np.asarray(Image.open(io.BytesIO(record["image"])))
    assert (pixels == pixels[0, 0]).all()
    return int(pixels[0, 0, 0]) // 10


def test_a_folder_of_sugarcrepe_is_one_set_with_a_group_for_each_file(tmp_path):
    source = opened(sets.sugarcrepe(tmp_path))
    assert len(source) == 6 and source.class_names == ("add_att", "swap_obj")
    records = [source[i] for i in range(6)]
    assert [level(record) for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record["texts"] for record in records] == [[f"picture {n}", f"no {n}"] for n in range(1, 7)]
    assert [record["label"] for record in records] == [0, 0, 0, 0, 1, 1]
    assert [record["key"] for record in records][1:5:3] == ["add_att/3", "swap_obj/0"]
    assert {record["pair_id"] for record in records} == {-1}
    assert source.where(4) == (str(tmp_path / "swap_obj.json"), 0)
    assert source.captions(5) == ["picture 6", "no 6"] and pickle.loads(pickle.dumps(source))[3] == records[3]
    for index in (-1, 6):
        with pytest.raises(IndexError):
            source[index]


def test_one_file_of_sugarcrepe_has_no_groups_and_a_pattern_names_some_files(tmp_path):
    sets.sugarcrepe(tmp_path)
    source = opened(tmp_path / "swap_obj.json")
    assert len(source) == 2 and source.class_names == () and source[0]["label"] == -1
    assert opened(tmp_path / "{add_att,swap_obj}.json").class_names == ("add_att", "swap_obj")
    shutil.move(tmp_path / "val2017", tmp_path / "elsewhere")
    with pytest.raises(ManifestError, match=r"swap_obj.json, record '0', field 'filename': found '000000000005.png'"):
        opened(tmp_path / "swap_obj.json")
    assert level(opened(tmp_path / "swap_obj.json", images=str(tmp_path / "elsewhere"))[1]) == 6


@pytest.mark.parametrize("attributes", [False, True])
def test_aro_is_cropped_to_the_box_first_and_grouped(tmp_path, attributes):
    source = opened(sets.aro(tmp_path, attributes))
    assert source.class_names == tuple(f"open_white{n}" if attributes else f"on{n}" for n in range(3))
    for n, record in enumerate(map(source.__getitem__, range(6)), 1):
        assert Image.open(io.BytesIO(record["image"])).size == (6, 5)
        assert (level(record), record["label"], record["texts"]) == (n, n % 3, [f"picture {n}", f"no {n}"])


def test_relations_and_attributes_in_one_folder_are_two_sets(tmp_path):
    sets.aro(tmp_path), sets.aro(tmp_path, True)
    with pytest.raises(
        ManifestError, match=r"attribution.json has the fields .*attributes, but .*relation.json has image_path"
    ):
        opened(tmp_path)


def test_order_sets_have_any_number_of_false_captions_without_those_that_equal_the_true_one(tmp_path):
    source = opened(sets.aro_order(tmp_path))
    assert source[0]["texts"] == ["picture 1", "no 1 1", "no 1 2", "no 1 4"]
    assert source[5]["texts"] == ["picture 6", *(f"no 6 {k}" for k in range(1, 5))] and level(source[5]) == 6
    rows = [{"image": f"{n}.png", "caption": f"picture {n}", "negative_captions": ["a", "b", "c"][:n]} for n in (1, 2)]
    sets.write_json(tmp_path / "x" / "my.json", rows)
    sets.write_images(tmp_path / "x", {f"{n}.png": sets.picture(n) for n in (1, 2)})
    assert [len(opened(tmp_path / "x" / "my.json").captions(i)) for i in range(2)] == [2, 3]


@pytest.mark.parametrize("write", [sets.winoground, sets.winoground_parquet])
def test_an_example_of_winoground_is_two_records_with_each_other_s_caption(tmp_path, write):
    source = opened(write(tmp_path))
    assert len(source) == 10 and source.class_names == ("Object", "Relation")
    for i, record in enumerate(map(source.__getitem__, range(10))):
        other = i + 2 if i % 2 == 0 else i
        assert record["texts"] == [f"picture {i + 1}", f"picture {other}"] and level(record) == i + 1
        assert (record["pair_id"], record["label"]) == (i // 2, (i // 2 + 1) % 2)
        assert record["key"].endswith(f"/image_{i % 2}")
    assert pickle.loads(pickle.dumps(source))[7]["texts"] == source.captions(7)


def test_parquet_copies_are_read_by_folder_or_file_and_by_other_columns_names(tmp_path):
    folder = sets.sugarcrepe_parquet(tmp_path)
    for source in (opened(folder), opened(folder / "train-00000-of-00001.parquet"), opened(folder, split="train")):
        assert source[4]["texts"] == ["picture 5", "no 5"] and level(source[4]) == 5
    rows = [{"photo": sets.picture(n), "right": f"r {n}", "w1": f"a {n}", "w2": f"b {n}", "kind": n} for n in (1, 2)]
    sets.write_rows(tmp_path / "mine.parquet", rows, ("photo",))
    source = opened(
        tmp_path / "mine.parquet", image_key="photo", text_key="right", negative_key="w1, w2", label_key="kind"
    )
    assert source[1]["texts"] == ["r 2", "a 2", "b 2"] and source.class_names == ("1", "2")
    with pytest.raises(
        ManifestError, match="has no field for the image; it has photo, right, w1, w2, kind. Expected ima"
    ):
        opened(tmp_path / "mine.parquet")
    with pytest.raises(
        ManifestError, match="has no field 'wrong', which the source's negative_key names; it has photo"
    ):
        opened(tmp_path / "mine.parquet", image_key="photo", text_key="right", negative_key="wrong")


def changed(record, **fields):
    return {name: value for name, value in {**record, **fields}.items() if value is not ...}


SUGAR = [
    (dict(filename=...), r"record '3' has no field 'filename'; it has caption, negative_caption"),
    (dict(caption=...), r"record '3' has no field 'caption'"),
    (dict(negative_caption=...), r"record '3' has no field 'negative_caption'"),
    (
        dict(filename="absent.png"),
        r"record '3', field 'filename': found 'absent.png', expected the path of an image in",
    ),
    (dict(filename=7), r"record '3', field 'filename': found 7, expected a text that is not empty"),
    (dict(filename=""), r"record '3', field 'filename': found ''"),
    (dict(filename="../val2017/000000000001.png"), r"record '3', field 'filename'.*expected a path without '\.\.'"),
    (dict(filename="http://x/1.png"), r"record '3', field 'filename'.*URLs are not fetched"),
    (dict(caption=None), r"record '3', field 'caption': found null, expected a text that is not empty"),
    (dict(caption=" "), r"record '3', field 'caption': found ' '"),
    (dict(caption=["picture 2"]), r"record '3', field 'caption': found a list of 1, .'picture 2'., expected a text"),
    (dict(caption="\ud83d"), r"record '3', field 'caption'.*expected text without half a surrogate pair"),
    (dict(negative_caption=5), r"record '3', field 'negative_caption': found 5, expected a text"),
    (
        dict(negative_caption=[]),
        r"record '3', field 'negative_caption': found a list without elements, expected at least",
    ),
    (dict(negative_caption=["a", ""]), r"record '3', field 'negative_caption\[1\]': found ''"),
    (dict(negative_caption="picture 2 "), r"record '3', field 'negative_caption': found 'picture 2', expected another"),
]


@pytest.mark.parametrize("fields, message", SUGAR)
def test_every_wrong_field_of_sugarcrepe_is_an_error_that_names_file_record_and_field(tmp_path, fields, message):
    sets.sugarcrepe(tmp_path)
    path = tmp_path / "add_att.json"
    records = json.loads(path.read_text())
    records["3"] = changed(records["3"], **fields)
    path.write_text(json.dumps(records))
    with pytest.raises(ManifestError, match=f"add_att.json, {message}"):
        opened(path)


DOCUMENTS = [
    ("", "is empty, expected JSON"),
    ("{}", "has no records"),
    ("[]", "has no records"),
    ("7", "found 7, expected an object of records or a list of records"),
    ('{"0": {', "is not JSON: "),
    ('{"0": [1]}', "record '0': found a list of 1, .1., expected an object with the record's fields"),
    ('{"0": {}}', "in any of its 1 records, has no field for the image; it has no field"),
    (
        '{"0": {"filename": "a"}, "0": {"filename": "b"}}',
        "the key '0' is there more than once, with an object of 1, .*'a'",
    ),
    (
        '[{"filename": "a", "caption": "x", "caption": "y"}]',
        "the key 'caption' is there more than once, with 'x' and 'y'",
    ),
    (
        '[{"filename": "a.png", "caption": "x"}]',
        "has no field for false captions; it has filename, caption. Expected fal",
    ),
    ('[{"filename": "a.png", "negative_caption": "x"}]', "has no field for the true caption"),
]


@pytest.mark.parametrize("text, message", DOCUMENTS)
def test_a_document_that_holds_no_records_is_refused(tmp_path, text, message):
    (tmp_path / "swap_att.json").write_text(text)
    with pytest.raises(ManifestError, match=f"swap_att.json.*{message}"):
        opened(tmp_path / "swap_att.json")


BOXES = [
    (dict(bbox_w=...), "record '2' has no field 'bbox_w'"),
    (dict(bbox_x="4"), "record '2', field 'bbox_x': found '4', expected a number"),
    (dict(bbox_x=True), "record '2', field 'bbox_x': found True, expected a number"),
    (dict(bbox_h=float("nan")), "record '2', field 'bbox_h': found nan, expected a number"),
    (dict(bbox_y=-1), "record '2', field 'bbox_y': found -1, expected a pixel of the image, 0 or more"),
    (dict(bbox_h=0), "record '2', field 'bbox_h': found 0, expected a side of at least one pixel"),
    (dict(relation_name=None), "record '2', field 'relation_name': found null, expected the name of a group"),
    (dict(relation_name=...), "record '2' has no field 'relation_name'"),
    (dict(false_caption="picture 3"), "record '2', field 'false_caption': found 'picture 3', expected another caption"),
    (dict(image_path="9.png"), "record '2', field 'image_path': found '9.png', expected the path of an image in"),
]


@pytest.mark.parametrize("fields, message", BOXES)
def test_every_wrong_field_of_aro_is_an_error(tmp_path, fields, message):
    path = sets.aro(tmp_path)
    records = json.loads(path.read_text())
    records[2] = changed(records[2], **fields)
    path.write_text(json.dumps(records))
    with pytest.raises(ManifestError, match=f"relation.json, {message}"):
        opened(path)


@pytest.mark.parametrize("fields", [dict(bbox_w=9), dict(bbox_h=7), dict(bbox_x=12), dict(bbox_y=800)])
def test_a_box_outside_its_image_is_a_bad_record_unless_it_may_be_cut(tmp_path, fields):
    path = sets.aro(tmp_path)
    records = json.loads(path.read_text())
    records[2] |= fields
    path.write_text(json.dumps(records))
    with pytest.raises(RecordError, match=r"record 'visual_genome_relation/2': the box is .* but the image is 12 x 8"):
        opened(path)[2]
    assert level(opened(path)[1]) == 2
    if "bbox_w" in fields or "bbox_h" in fields:
        cut = opened(path, clip_boxes=True)[2]
        assert Image.open(io.BytesIO(cut["image"])).size == ((8, 5) if "bbox_w" in fields else (6, 6))
    else:
        with pytest.raises(RecordError, match="the image is 12 x 8$"):
            opened(path, clip_boxes=True)[2]


PAIRS = [
    (dict(image_1=...), "record '2' has no field 'image_1'"),
    (dict(caption_0=...), "record '2' has no field 'caption_0'"),
    (dict(image_0="absent"), "record '2', field 'image_0': found 'absent', expected the path of an image in .*images"),
    (
        dict(image_1="ex_1_img_0"),
        "record '2', field 'image_1': found 'ex_1_img_0', expected another image than the pair",
    ),
    (
        dict(caption_1="picture 3"),
        "record '2', field 'caption_1': found 'picture 3', expected another caption than capt",
    ),
    (dict(caption_1=3), "record '2', field 'caption_1': found 3"),
    (dict(collapsed_tag=""), "record '2', field 'collapsed_tag': found ''"),
]


@pytest.mark.parametrize("fields, message", PAIRS)
def test_every_wrong_field_of_winoground_is_an_error(tmp_path, fields, message):
    path = sets.winoground(tmp_path) / "examples.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(changed(json.loads(lines[1]), **fields))
    path.write_text("\n".join(lines))
    with pytest.raises(ManifestError, match=f"examples.jsonl, {message}"):
        opened(tmp_path)


def test_images_that_are_still_packed_are_told(tmp_path):
    sets.winoground(tmp_path)
    shutil.rmtree(tmp_path / "images")
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(ManifestError, match=r"Unpack .*images.zip"):
        opened(tmp_path)


def test_paths_of_different_folders_are_not_taken_for_one_image(tmp_path):
    rows = [{"image": f"{folder}/1.png", "caption": "a", "negative_caption": "b"} for folder in "xxy"]
    sets.write_json(tmp_path / "my.json", rows)
    sets.write_images(tmp_path, {"1.png": sets.picture(1)})
    with pytest.raises(
        ManifestError, match=r"record '2', field 'image': found 'y/1.png', expected another image than 'x/1"
    ):
        opened(tmp_path / "my.json")
    (tmp_path / "my.json").write_text((tmp_path / "my.json").read_text().replace("y/", "x/"))
    assert level(opened(tmp_path / "my.json")[2]) == 1


def test_missing_images_are_counted(tmp_path):
    sets.sugarcrepe(tmp_path)
    for n in (2, 4):
        (tmp_path / "val2017" / f"{n:012d}.png").unlink()
    with pytest.raises(ManifestError, match=r"record '3'.*000000000002.png.*2 of 6 are missing"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "column, value, message",
    [
        ("caption", None, "record '4', field 'caption': found null"),
        ("negative_caption", "picture 5", "record '4', field 'negative_caption': found 'picture 5', expected another"),
    ],
)
def test_parquet_rows_that_contradict_themselves_are_refused(tmp_path, column, value, message):
    path = sets.sugarcrepe_parquet(tmp_path) / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[4] = value
    pq.write_table(table.set_column(table.schema.names.index(column), column, pa.array(values)), path)
    with pytest.raises(ManifestError, match=message):
        opened(path)


def test_no_training_reads_false_captions_as_true_ones(tmp_path):
    train = HardNegativesConfig(path=str(sets.sugarcrepe(tmp_path)))
    with pytest.raises(ConfigError, match="config.data.train: .* is a set of true and false captions"):
        open_train(DataConfig(train=train))
