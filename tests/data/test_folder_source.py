"""Image files with captions beside them or in a table; nothing outside the folder is read."""

import csv
import json
import os
import pickle

import pytest

from clipjax.config import DataConfig
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources import FolderConfig, csv_tables, open_source
from clipjax.data.sources.folder import one_spelling
from clipjax.data.sources.image_files import Sidecars
from clipjax.data.sources.tables import Columns
from data_pipelines import image_folder, tables
from data_pipelines.command import Skips
from tests.data.samples import encoded, picture
from tests.data.test_pipeline import stream


def open_images(path, **changes):
    return open_source(FolderConfig(path=str(path), **changes))


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def cause_of(source, index):
    with pytest.raises(RecordError) as caught:
        source[index]
    return caught.value.cause


def test_images_of_a_folder_have_the_captions_beside_them(tmp_path):
    files = {
        "b.jpg": "B", "b.txt": "\ufeffone\n\n two \none\n", "sub/a.PNG": "A", "sub/a.txt": "größe", "notes.txt": "x",
        "sub/deep/c.webp": "C", "sub/deep/c.txt": "three",
    }  # fmt: skip
    source = open_images(write(tmp_path, files))
    assert [source[i] for i in range(3)] == [
        {"image": b"B", "texts": ["one", "two"], "key": "b.jpg", "label": -1, "pair_id": -1},
        {"image": b"A", "texts": ["größe"], "key": "sub/a.PNG", "label": -1, "pair_id": -1},
        {"image": b"C", "texts": ["three"], "key": "sub/deep/c.webp", "label": -1, "pair_id": -1},
    ]
    assert len(source) == 3 and source.where(1) == (str(tmp_path / "sub/a.PNG"), 0)
    assert pickle.loads(pickle.dumps(source))[2] == source[2]
    for beyond in (-1, 3):
        with pytest.raises(IndexError):
            source[beyond]


def test_a_split_is_a_subfolder(tmp_path):
    write(tmp_path, {"train/a.jpg": "A", "train/a.txt": "a", "test/b.jpg": "B", "test/b.txt": "b"})
    assert [open_images(tmp_path)[0]["key"], open_images(tmp_path, split="test")[0]["key"]] == ["a.jpg", "b.jpg"]
    assert len(open_images(tmp_path, split="")) == 2


def test_a_split_without_a_folder_is_refused_where_other_splits_have_one(tmp_path):
    write(tmp_path, {"training/a.jpg": "A", "val/b.jpg": "B"})
    for split in ("train", "validation", "test"):
        with pytest.raises(ManifestError, match=f"no folder '{split}' .*, only training, val. Set split to one"):
            open_images(tmp_path, split=split)
    assert [len(open_images(tmp_path, split=split)) for split in ("val", "")] == [1, 2]
    coco = write(tmp_path / "coco", {"train2017/a.jpg": "A", "val2017/b.jpg": "B", "Images/c.jpg": "C"})
    layout = write(tmp_path / "layout", {"train_images/a.jpg": "A", "test_images/b.jpg": "B"})
    for folder in (coco, layout):
        with pytest.raises(ManifestError, match="no folder 'train'"):
            open_images(folder)
    assert len(open_images(coco, split="val2017")) == len(open_images(layout, split="test_images")) == 1
    assert len(open_images(write(tmp_path / "one", {"test shots/a.jpg": "A", "b.jpg": "B"}))) == 2
    flat = write(tmp_path / "flat", {"a.jpg": "A", "cat/b.jpg": "B"})
    assert len(open_images(flat, split="validation")) == 2


def test_a_path_that_does_not_exist_is_told_with_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("table/photos.csv", "photos"):
        with pytest.raises(ManifestError, match=rf"'{name}' does not exist \(looked from {tmp_path}\)"):
            open_images(name)
        with pytest.raises(ManifestError, match=rf"'{tmp_path}/{name}' does not exist\."):
            open_images(tmp_path / name)


def test_files_that_are_not_read_are_told(tmp_path, caplog):
    files = {"a.jpg": "A", "b.JFIF": "B", "c.jpe": "C", "d.heic": "D", "e.heic": "E", "a.json": "{}", "README": "x"}
    write(tmp_path, files | {"a.txt": "a", "b.caption": "b", ".hidden.heic": "x"})
    assert [open_images(tmp_path)[i]["key"] for i in range(2)] == ["a.jpg", "b.JFIF"]
    assert f"Files in {tmp_path} that are not read: 2 .heic, " in caplog.text and "1 no suffix" in caplog.text
    assert ".txt" not in caplog.text and "itself" not in caplog.text
    write(tmp_path, {"train/f.jpg": "F"})
    assert len(open_images(tmp_path)) == 1
    assert f"3 images in {tmp_path} itself, such as a.jpg, are not read" in caplog.text


def test_images_that_differ_in_their_suffix_have_their_own_captions(tmp_path):
    captions = {"a.txt": "of either", "a.PNG.TXT": "of the PNG", "b.txt": "first", "b.jpg.txt": "second"}
    write(tmp_path, {"a.jpg": "A", "a.PNG": "P", "b.jpg": "B", "sub/b.png": "C", "sub/b.txt": "x"} | captions)
    source = open_images(tmp_path)
    texts = {source[i]["key"]: source[i]["texts"] for i in range(4)}
    assert texts == {"a.jpg": ["of either"], "a.PNG": ["of the PNG"], "b.jpg": ["first"], "sub/b.png": ["x"]}
    sidecars = Sidecars()
    assert len(list(image_folder.list_images(tmp_path, Skips(), sidecars))) == 4
    assert image_folder.sidecar(tmp_path / "a.PNG", sidecars) == ("of the PNG",)


def test_rows_of_one_image_are_one_record_however_its_path_is_spelled(tmp_path):
    rows = "image,caption,label\n./a.jpg,one,1\na.jpg,two,1\nx/../b.jpg,three,\nx//c.jpg,four,1\nx/./c.jpg,five,2\n"
    write(tmp_path, {"t.csv": rows, "a.jpg": "A", "b.jpg": "B", "x/c.jpg": "C"})
    source = open_images(tmp_path / "t.csv")
    assert len(source) == 3
    assert (source[0]["key"], source[0]["texts"], source[1]["key"]) == ("a.jpg", ["one", "two"], "x/../b.jpg")
    assert cause_of(source, 2) == "unusable label"
    gathered = tables.gather(tmp_path / "t.csv", tables.csv_rows, Columns(), Skips())
    assert {key: entry.texts for key, entry in gathered.items()} == {
        "a.jpg": ["one", "two"], "x/../b.jpg": ["three"], "x/c.jpg": ["four", "five"]
    }  # fmt: skip
    foreign = {r"photos\a.jpg": "write folders with /", "https://x/a.jpg": "URLs are not fetched"}
    for path, cure in foreign.items():
        with pytest.raises(RecordError, match=cure):
            open_images(write(tmp_path, {"u.csv": f"image,caption\n{path},x\n"}) / "u.csv")[0]
    assert [one_spelling(path) for path in (" /a//b.jpg", "./", "..", "")] == ["/a/b.jpg", "", "..", ""]


def test_images_without_or_with_unreadable_captions_are_bad_records(tmp_path):
    files = {"0.jpg": "x", "1.jpg": "x", "1.txt": " \n", "2.jpg": "x", "2.txt": b"caf\xe9", "3.jpg": "x"}
    source = open_images(write(tmp_path, {**files, "3.txt": "x" * (1 << 20 | 1)}))
    assert [cause_of(source, i) for i in range(4)] == ["no caption", "no caption", "not UTF-8", "record too large"]


def test_links_that_lead_out_pipes_and_files_that_went_are_bad_records(tmp_path):
    outside = write(tmp_path / "outside", {"secret.jpg": "S", "secret.txt": "secret"})
    folder = write(
        tmp_path / "in", {"0.txt": "a", "1.jpg": "x", "2.txt": "a", "3.jpg": "x", "3.txt": "a", "4.txt": "a"}
    )
    (folder / "0.jpg").symlink_to(outside / "secret.jpg")
    (folder / "1.txt").symlink_to(outside / "secret.txt")
    os.mkfifo(folder / "2.jpg")
    (folder / "4.jpg").symlink_to("4.jpg")
    (folder / "linked").symlink_to(outside, target_is_directory=True)
    source = open_images(folder)
    assert [entry.path for entry in source.entries] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    (folder / "3.jpg").unlink()
    causes = [cause_of(source, i) for i in range(5)]
    assert causes == ["path outside the folder"] * 2 + ["unreadable record"] * 3


def test_a_folder_that_is_a_link_itself_is_read(tmp_path):
    write(tmp_path / "real", {"a.jpg": "A", "a.txt": "a"})
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    assert open_images(tmp_path / "link")[0]["image"] == b"A"


CSV = """\ufeffimage,text,alt,label
a.jpg,one,"two, with a comma",cat
sub/b.jpg,three,,dog
a.jpg,four,one,
missing.jpg,five,,cat
,six,,
c.jpg,,,
d.jpg,a,b,c,d
"""


def test_rows_of_a_csv_table_are_joined_by_image_with_classes(tmp_path):
    write(tmp_path, {"table.csv": CSV, "a.jpg": "A", "sub/b.jpg": "B", "c.jpg": "C", "d.jpg": "D"})
    source = open_images(tmp_path / "table.csv", text_key="text,alt")
    assert source.class_names == ("cat", "dog")
    assert source[0] == {
        "image": b"A", "texts": ["one", "two, with a comma", "four"], "key": "a.jpg", "label": 0, "pair_id": -1
    }  # fmt: skip
    assert (source[1]["texts"], source[1]["label"]) == (["three"], 1)
    causes = ["unreadable record", "no image path", "no caption", "corrupt record"]
    assert [cause_of(source, i) for i in range(2, len(source))] == causes
    assert source.where(1) == (str(tmp_path / "table.csv"), 3) and source.where(3) == (str(tmp_path / "table.csv"), 6)


def test_tsv_and_jsonl_tables_are_read_with_their_images_elsewhere(tmp_path):
    write(tmp_path, {"images/a.jpg": "A", "t.tsv": "file\tcaption\na.jpg\tone\n"})
    lines = ['{"file": "a.jpg", "caption": ["one", "two"]}', "", "nonsense", "[1]", '{"file": 3, "caption": "x"}']
    lines += ['{"file": "a.jpg", "caption": "three"}', '{"file": "b.jpg", "caption": "\\ud800"}']
    write(tmp_path, {"t.jsonl": "\n".join(lines)})
    keys = {"image_key": "file", "text_key": "caption", "data_dir": str(tmp_path / "images")}
    assert open_images(tmp_path / "t.tsv", **keys)[0]["texts"] == ["one"]
    source = open_images(tmp_path / "t.jsonl", **keys)
    assert source[0]["texts"] == ["one", "two", "three"]
    causes = ["corrupt record", "corrupt record", "no image path", "not UTF-8"]
    assert [cause_of(source, i) for i in range(1, 5)] == causes
    assert source.where(2) == (str(tmp_path / "t.jsonl"), 4)


def test_paths_of_a_table_that_climb_out_are_bad_records(tmp_path):
    write(tmp_path, {"secret.jpg": "S", "in/sub/a.jpg": "A"})
    paths = [
        "../secret.jpg",
        str(tmp_path / "secret.jpg"),
        "sub/../../secret.jpg",
        "/etc/passwd",
        "a\0b",
        "sub/../sub/a.jpg",
    ]
    rows = [json.dumps({"image": path, "caption": "x"}) for path in paths]
    source = open_images(write(tmp_path / "in", {"t.jsonl": "\n".join(rows)}) / "t.jsonl")
    causes = ["path outside the folder"] * 4 + ["unreadable record"]
    assert [cause_of(source, i) for i in range(5)] == causes
    assert source[5]["image"] == b"A"


def test_bytes_that_are_no_utf8_spoil_their_row_alone(tmp_path):
    write(tmp_path, {"t.csv": b"image,caption\na.jpg,caf\xe9\nb.jpg,good\n", "a.jpg": "A", "b.jpg": "B"})
    source = open_images(tmp_path / "t.csv")
    assert cause_of(source, 0) == "not UTF-8" and source[1]["texts"] == ["good"]


def test_missing_columns_folders_and_tables_are_named(tmp_path, monkeypatch):
    write(tmp_path, {"t.csv": "file,caption\na.jpg,x\n", "empty.jsonl": "", "t.txt": "x"})
    with pytest.raises(ManifestError, match="no column 'image'. It has 'file', 'caption'.*Set the source's image_key"):
        open_images(tmp_path / "t.csv")
    with pytest.raises(ManifestError, match="no column 'text'.*Set the source's text_key=caption "):
        open_images(tmp_path / "t.csv", image_key="file", text_key="text")
    with pytest.raises(ManifestError, match="no column 'image'. It has none"):
        open_images(tmp_path / "empty.jsonl")
    with pytest.raises(ManifestError, match="neither a folder of images nor a .csv, .tsv, .jsonl table"):
        open_images(tmp_path / "t.txt")
    (tmp_path / "no_images").mkdir()
    with pytest.raises(ManifestError, match="has no records"):
        open_images(tmp_path / "no_images")
    monkeypatch.setattr(csv_tables, "LONGEST_LINE", 3)
    limit = csv.field_size_limit()  # of the process, which the reader sets
    with pytest.raises(ManifestError, match=r"t.csv line \d+ is not CSV: field larger than field limit"):
        open_images(tmp_path / "t.csv", image_key="file", text_key="caption")
    csv.field_size_limit(limit)


def test_a_folder_that_cannot_be_listed_is_an_error_not_fewer_images(tmp_path, monkeypatch):
    write(tmp_path, {"a.jpg": "A", "a.txt": "a", "locked/b.jpg": "B"})
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ManifestError, match="locked cannot be listed: Permission denied"):
        open_images(tmp_path)


def test_a_run_reads_a_folder_and_counts_what_is_bad(tmp_path):
    for i in range(10):
        write(tmp_path, {f"{i}.png": encoded(picture(i)), f"{i}.txt": f"caption 0 of record {i}"})
    write(tmp_path, {"3.png": b"", "4.txt": b"\xff"})
    batch, state = next(stream(open_images(tmp_path), data=DataConfig(max_bad_share=1.0), batch=10))
    assert set(state["bad"]) == {"empty image", "not UTF-8"}
    assert not {3, 4} & set(batch["text"][:, 1])


def test_class_folders_that_are_numbers_are_told_with_an_example(tmp_path, caplog):
    write(tmp_path, {"0/1.jpg": encoded(picture(0)), "2/2.jpg": encoded(picture(1))})
    assert open_images(tmp_path, captions="folders").class_names == ("0", "1", "2")
    assert "are numbers, which the captions will contain: '2'. Give the classes' names" in caplog.text


def test_folders_of_one_class_are_refused_and_folders_without_images_are_told(tmp_path, caplog):
    write(tmp_path, {"red_rose/1.jpg": encoded(picture(0)), "tulip/2.jpg": encoded(picture(1))})
    (tmp_path / "daisy").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    source = open_images(tmp_path, captions="folders")
    assert source.class_names == ("red rose", "tulip")
    assert f"These folders in {tmp_path} hold no images, so they are not classes: daisy" in caplog.text.splitlines()[-1]
    write(tmp_path, {"red rose/3.jpg": encoded(picture(2))})
    with pytest.raises(ManifestError, match="folders 'red rose' and 'red_rose' are both class 'red rose'. Rename one"):
        open_images(tmp_path, captions="folders")
    write(tmp_path, {"classnames.txt": "red rose\ntulip\n"})  # says that they are meant
    assert open_images(tmp_path, captions="folders").class_names == ("red rose", "tulip")
