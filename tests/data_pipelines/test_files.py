"""The pipelines over a user's own images: csv, jsonl and image_folder."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from clipjax.config import SourceConfig
from clipjax.data.records import ManifestError
from clipjax.data.sources import open_source
from data_pipelines import csv, image_folder, jsonl
from data_pipelines.command import PipelineError
from data_pipelines.files import read_image, split_by_share

ALL = "all=1"


def encoded(seed: int, image_format: str = "PNG", size: tuple[int, int] = (12, 10)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


def read(folder, split="all") -> list[dict]:
    source = open_source(SourceConfig(path=str(folder), split=split))
    return [source[i] for i in range(len(source))]


@pytest.fixture
def photos(tmp_path):
    """Three good images in three formats, one cut short, one that is text, one of zero bytes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, image_format in enumerate(("PNG", "JPEG", "WEBP")):
        (folder / f"{index}.{image_format.lower()}").write_bytes(encoded(index, image_format))
    (folder / "cut.png").write_bytes(encoded(9, size=(200, 200))[:20_000])
    (folder / "text.jpg").write_text("this is no picture")
    (folder / "empty.jpg").write_bytes(b"")
    return folder


BAD_IMAGES = {"corrupt image": 1, "not an image": 1, "empty image": 1}


def test_csv_keeps_the_files_bytes_joins_rows_of_one_image_and_counts_what_it_leaves_out(photos, tmp_path, capsys):
    rows = [
        "image,caption,second",
        'photos/0.png,"a cat, asleep",one cat',
        "photos/1.jpeg,a dog,",
        "photos/0.png,a cat at home,",
        "photos/2.webp,A Dog,",
        "photos/cut.png,cut,",
        "photos/text.jpg,text,",
        "photos/empty.jpg,empty,",
        "photos/nowhere.jpg,nothing,",
        "photos/1.jpeg,,",
        ",no path,",
        "photos/1.jpeg,an unquoted, comma, too",
    ]
    (tmp_path / "table.csv").write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    manifest = csv.build(
        tmp_path / "out", table=tmp_path / "table.csv", caption_columns="caption,second", splits=ALL, licence="CC0-1.0"
    )
    records = {record["key"]: record for record in read(tmp_path / "out")}
    assert records["photos/0.png"]["texts"] == ["a cat, asleep", "one cat", "a cat at home"]
    assert records["photos/0.png"]["image"] == (photos / "0.png").read_bytes()
    assert sorted(records) == ["photos/0.png", "photos/1.jpeg", "photos/2.webp"]
    assert records["photos/1.jpeg"]["pair_id"] == records["photos/2.webp"]["pair_id"]
    assert records["photos/1.jpeg"]["pair_id"] != records["photos/0.png"]["pair_id"]
    assert manifest["skipped"] == BAD_IMAGES | {
        "file cannot be read": 1,
        "no caption": 1,
        "no image path": 1,
        "more fields than columns": 1,
    }
    printed = capsys.readouterr().out
    assert "table.csv line 12" in printed and "cut.png" in printed and "CC0-1.0" in printed


def test_jsonl_takes_lists_of_captions_and_labels_and_counts_bad_lines(photos, tmp_path):
    lines = [
        json.dumps({"image": "0.png", "caption": ["one", "two", "one"], "kind": "b"}),
        json.dumps({"image": "1.jpeg", "caption": "three", "kind": "a"}),
        json.dumps({"image": "2.webp", "caption": 7}),
        "[1, 2]",
        "{not json",
        "",
    ]
    (tmp_path / "table.jsonl").write_text("\n".join(lines))
    manifest = jsonl.build(
        tmp_path / "out", table=tmp_path / "table.jsonl", image_root=photos, label_column="kind", splits=ALL
    )
    assert manifest["class_names"] == ["a", "b"]
    assert manifest["skipped"] == {"not JSON": 1, "not a JSON object": 1, "caption is not text": 1}
    records = {record["key"]: record for record in read(tmp_path / "out")}
    assert (records["0.png"]["texts"], records["0.png"]["label"]) == (["one", "two"], 1)
    assert records["1.jpeg"]["label"] == 0


def test_captions_that_are_not_text_are_counted_and_the_first_is_named(photos, tmp_path, capsys):
    captions = {"0.png": ["one", 42], "1.jpeg": ["two", None], "2.webp": [["nested"], "three"], "3.png": {"t": 1}}
    rows = [json.dumps({"image": image, "caption": caption}) for image, caption in captions.items()]
    rows.append(json.dumps({"image": "4.png", "caption": None}))
    (tmp_path / "table.jsonl").write_text("\n".join(rows))
    manifest = jsonl.build(tmp_path / "out", table=tmp_path / "table.jsonl", image_root=photos, splits=ALL)
    assert manifest["skipped"] == {"caption is not text": 4, "no caption": 1}
    assert {record["key"]: record["texts"] for record in read(tmp_path / "out")} == {
        "0.png": ["one"], "1.jpeg": ["two"], "2.webp": ["three"]
    }  # fmt: skip
    assert "caption is not text\n    table.jsonl line 1: 0.png: 42\n" in capsys.readouterr().out


@pytest.mark.parametrize("pipeline, name", [(csv, "table.csv"), (jsonl, "table.jsonl")])
def test_missing_column_is_refused_naming_those_found(pipeline, name, tmp_path):
    content = "imagee,text\nx.png,hello\n" if pipeline is csv else '{"imagee": "x.png", "text": "hello"}\n'
    (tmp_path / name).write_text(content)
    with pytest.raises(PipelineError, match="no column 'image'. It has 'imagee', 'text'. Did you mean 'imagee'?"):
        pipeline.build(tmp_path / "out", table=tmp_path / name)
    assert not (tmp_path / "out").exists()


def test_csv_in_another_encoding_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "t.csv").write_bytes("image,caption\nx.png,café\n".encode("latin-1"))
    with pytest.raises(SystemExit) as stop:
        csv.main([f"--table={tmp_path / 't.csv'}", f"--out={tmp_path / 'out'}"])
    assert stop.value.code == 1
    assert "is not UTF-8" in capsys.readouterr().err


def test_table_without_a_usable_row_is_refused_with_the_causes(tmp_path):
    (tmp_path / "t.csv").write_text("image,caption\nx.png,\n,hello\n")
    with pytest.raises(PipelineError, match="1 skipped: no caption. 1 skipped: no image path"):
        csv.build(tmp_path / "out", table=tmp_path / "t.csv")


def test_image_folder_reads_a_caption_a_line_from_the_file_beside_the_image(photos, tmp_path):
    for path in photos.iterdir():
        path.with_suffix(".txt").write_text(f"caption of {path.stem}\n\nsecond\n")
    (photos / "2.txt").unlink()
    (photos / "notes.pdf").write_bytes(b"")
    manifest = image_folder.build(tmp_path / "out", images=photos, splits=ALL)
    assert {r["key"]: r["texts"] for r in read(tmp_path / "out")} == {
        "0.png": ["caption of 0", "second"],
        "1.jpeg": ["caption of 1", "second"],
    }
    assert manifest["skipped"] == BAD_IMAGES | {"no caption file, or an empty one": 1, "not an image file (.pdf)": 1}


def test_image_folder_makes_labels_and_captions_of_folder_names(tmp_path):
    for index, name in enumerate(("train/red_rose/1.png", "train/tulip/deep/1.png", "test/tulip/1.png", "train/0.png")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(encoded(index))
    manifest = image_folder.build(
        tmp_path / "out", images=tmp_path / "in", captions="folders", template=("{}", "a {}"), splits="folders"
    )
    assert manifest["class_names"] == ["red rose", "tulip"]
    assert manifest["skipped"] == {"in no class folder": 1}
    assert [(r["key"], r["label"], r["texts"]) for r in read(tmp_path / "out", "train")] == [
        ("train/red_rose/1.png", 0, ["red rose", "a red rose"]),
        ("train/tulip/deep/1.png", 1, ["tulip", "a tulip"]),
    ]
    assert [r["key"] for r in read(tmp_path / "out", "test")] == ["test/tulip/1.png"]


def test_image_folder_that_changed_is_not_taken_for_the_old_one(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(encoded(0))
    (tmp_path / "in/a.txt").write_text("one")
    first = image_folder.build(tmp_path / "out", images=tmp_path / "in", splits=ALL)
    assert image_folder.build(tmp_path / "out", images=tmp_path / "in", splits=ALL) == first
    (tmp_path / "in/a.txt").write_text("two")
    with pytest.raises(ManifestError, match="other settings"):
        image_folder.build(tmp_path / "out", images=tmp_path / "in", splits=ALL)
    (tmp_path / "in/a.txt").write_text("one")
    (tmp_path / "in").rename(tmp_path / "moved")
    assert image_folder.build(tmp_path / "out", images=tmp_path / "moved", splits=ALL)["splits"] == first["splits"]
    (tmp_path / "moved/a.png").write_bytes(encoded(0, "BMP"))
    image_folder.build(tmp_path / "out", images=tmp_path / "moved", splits=ALL, overwrite=True)
    (tmp_path / "moved/a.png").write_bytes(encoded(1, "BMP"))  # of equal size
    with pytest.raises(ManifestError, match="other settings"):
        image_folder.build(tmp_path / "out", images=tmp_path / "moved", splits=ALL)


def test_splits_follow_the_shares_and_a_key_never_moves():
    split_of = split_by_share("train=0.9,validation=0.1")
    splits = [split_of(f"photo {i}") for i in range(4000)]
    # Four standard deviations of a binomial of 4000 draws are 76.
    assert abs(splits.count("validation") - 400) < 76
    assert [split_of(f"photo {i}") for i in range(4000)] == splits
    assert split_by_share("train=1")("x") == "train"


@pytest.mark.parametrize("splits", ["train", "train=0.5", "train=0.9,validation=0.2", "train=1.5,validation=-0.5", ""])
def test_shares_that_do_not_add_up_are_refused(splits):
    with pytest.raises(PipelineError, match="sum 1"):
        split_by_share(splits)


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".x"])
def test_splits_that_cannot_name_files_are_refused(name):
    with pytest.raises(PipelineError, match="cannot name a split"):
        split_by_share(f"{name}=0.5,b=0.5")


def test_folders_of_splits_are_not_taken_for_classes(tmp_path):
    for index, name in enumerate(("train/cat", "train/dog", "val/cat")):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "a.png").write_bytes(encoded(index))
    with pytest.raises(PipelineError, match="train, val are named after splits.*--splits=folders"):
        image_folder.build(tmp_path / "out", images=tmp_path / "in", captions="folders")
    options = {"images": tmp_path / "in", "captions": "folders", "splits": "folders"}
    assert image_folder.build(tmp_path / "out", **options)["class_names"] == ["cat", "dog"]
    with pytest.raises(PipelineError, match="--shorter_side=-8 is negative"):
        image_folder.build(tmp_path / "out2", **options, shorter_side=-8)


def test_larger_images_are_shrunk_to_the_shorter_side_and_smaller_ones_kept(tmp_path):
    for name, size in (("large.png", (90, 60)), ("small.png", (30, 20))):
        (tmp_path / name).write_bytes(encoded(0, size=size))
    with Image.open(io.BytesIO(read_image(tmp_path / "large.png", shorter_side=32))) as image:
        assert (image.format, image.size) == ("JPEG", (48, 32))
    assert read_image(tmp_path / "small.png", shorter_side=32) == (tmp_path / "small.png").read_bytes()


@pytest.mark.parametrize("pipeline", ["csv", "image_folder"])
def test_input_of_which_no_image_can_be_read_is_refused_in_one_line_and_nothing_is_written(tmp_path, capsys, pipeline):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/empty.png").write_bytes(b"")
    (tmp_path / "in/empty.txt").write_text("nothing")
    (tmp_path / "t.csv").write_text("image,caption\nhttps://x/a.png,one\na\\b.png,two\nin/empty.png,three\n")
    with pytest.raises(SystemExit) as stop:
        if pipeline == "csv":
            csv.main([f"--table={tmp_path / 't.csv'}", f"--out={tmp_path / 'out'}"])
        else:
            image_folder.main([f"--images={tmp_path / 'in'}", f"--out={tmp_path / 'out'}"])
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    expected = {
        "csv": "No image of t.csv can be read (file cannot be read: 2, empty image: 1). The first is "
        f"{tmp_path}/https:/x/a.png: [Errno 2] No such file or directory",
        "image_folder": "No image of in can be read (empty image: 1). The first is",
    }
    assert line.startswith(f"error: {expected[pipeline]}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "t.csv"]


@pytest.mark.parametrize("link, target", [("loop", "."), ("sub/up", ".."), ("sub/deep/two_up", "../..")])
def test_links_to_folders_above_are_not_entered_and_links_to_others_are(tmp_path, link, target):
    folder = tmp_path / "in"
    for seed, name in enumerate(("a", "sub/b", "sub/deep/c")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.png").write_bytes(encoded(seed))
        (folder / f"{name}.txt").write_text(f"caption {name}")
    shutil.copytree(folder / "sub/deep", tmp_path / "other")
    (folder / "linked").symlink_to(tmp_path / "other")
    (folder / link).symlink_to(target)
    image_folder.build(tmp_path / "out", images=folder, splits=ALL)
    keys = [record["key"] for record in read(tmp_path / "out")]
    assert keys == ["a.png", "linked/c.png", "sub/b.png", "sub/deep/c.png"]


def test_a_dead_link_is_counted_as_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(encoded(0))
    (tmp_path / "in/b.png").symlink_to("nowhere.png")
    for name in "ab":
        (tmp_path / f"in/{name}.txt").write_text(name)
    manifest = image_folder.build(tmp_path / "out", images=tmp_path / "in", splits=ALL)
    assert (manifest["splits"]["all"]["records"], manifest["skipped"]) == (1, {"file cannot be read": 1})
