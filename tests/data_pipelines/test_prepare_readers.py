"""What people have is read as it is meant, and what is wrong with it is told by cause."""

import contextlib
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources import FolderConfig, ParquetConfig, WebDatasetConfig, open_source
from data_pipelines.command import PipelineError
from data_pipelines.prepare.check import check
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.readers import READERS
from data_pipelines.prepare.staging import read_images, stage
from tests.data.samples import encoded, picture, run_script, write_folder
from tests.data.test_tfds import BUILDER
from tests.data_pipelines.debs import tar_bytes
from tests.eval.wds_sets import write_retrieval


def read(reader: str, *inputs, **fields):
    """(units, {key: example}, [(cause, key, count)]) of all units."""
    options = Options(reader=reader, input=tuple(map(str, inputs)), **fields)
    check(options)
    listing, notes, examples = READERS[reader].units(options), [], []
    for unit in listing.units:
        note = lambda cause, key, text, count=1: notes.append((cause, key, count))  # noqa: E731
        examples += READERS[reader].read(unit, options, note)
    found = {example.key: example for example in examples}
    assert len(found) == len(examples)
    return listing, found, notes


def test_a_published_retrieval_set_keeps_its_captions_apart(tmp_path):
    folder = write_retrieval(tmp_path, captions=(("a cat", "one\nline"), ("a dog",)))
    found = read("webdataset", folder / "test")[1]
    assert [found[key].texts for key in sorted(found)] == [("a cat", "one\nline"), ("a dog",)]


def test_webdataset_samples_are_files_of_one_name(tmp_path):
    sample = {
        "a/0.jpg": b"zero", "a/0.txt": b"caption of zero",
        "a/0.json": b'{"caption": ["more", "yet more"], "kind": "x"}',
        "a/1.seg.png": b"mask", "a/1.png": b"one", "a/1.json": b'{"caption": ["one", 1], "meta": {"alt": "1"}}',
        "a/2.txt": b"no image here",
        "a/3.JPG": b"three", "a/3.txt": b"\xff",
        "../4.jpg": b"evil", "link.jpg": "/etc/passwd",
    }  # fmt: skip
    (tmp_path / "in/b").mkdir(parents=True)
    (tmp_path / "in/00.tar").write_bytes(tar_bytes(sample))
    (tmp_path / "in/b/01.tar").write_bytes(tar_bytes({"0.webp": b"w", "0.txt": b"w's"}))
    (tmp_path / "in/other.txt").write_text("not a tar")
    listing, found, notes = read("webdataset", tmp_path / "in", label_column="kind")
    assert [unit.name for unit in listing.units] == [str(tmp_path / "in/00.tar"), str(tmp_path / "in/b/01.tar")]
    assert {key: (e.image, e.texts, e.label) for key, e in found.items()} == {
        "00/a/0": (b"zero", ("caption of zero", "more", "yet more"), "x"),
        "00/a/1": (b"one", ("one",), ""),
        "b/01/0": (b"w", ("w's",), ""),
    }
    assert sorted(notes) == [
        ("caption is not UTF-8 or JSON", "00/a/3", 1),
        ("caption is not text", "00/a/1", 1),
        ("link or device", "00.tar", 1),
        ("name climbs out of the archive", "00.tar", 1),
        ("no image", "00/a/2", 1),
    ]
    assert read("webdataset", tmp_path / "in", caption_columns=("meta/alt",))[1]["00/a/1"].texts == ("1",)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PipelineError, match="empty: no file in it named \\*.tar"):
        read("webdataset", tmp_path / "empty")
    with pytest.raises(PipelineError, match="nothing: no file named"):
        read("webdataset", tmp_path / "nothing")


def test_a_damaged_tar_gives_what_comes_before_the_damage_and_is_told(tmp_path):
    good = {f"{i}.png": encoded(picture(i)) for i in range(3)} | {f"{i}.txt": b"a dog" for i in range(3)}
    data = tar_bytes({name: good[name] for name in sorted(good)})
    (tmp_path / "0.tar").write_bytes(data[: data.index(good["2.png"]) + 100])
    options = Options(reader="webdataset", input=(str(tmp_path / "0.tar"),))
    (unit,) = READERS["webdataset"].units(options).units
    staged = stage(unit, options, tmp_path)
    # Whether 1.txt is the last file of its sample only the next header can tell, and its file is cut.
    assert [row.key for row in staged.rows] == ["0/0"] and staged.read == 1
    (event,) = staged.events
    assert (event.cause, event.dropped) == ("damaged input, read up to the damage", False)
    assert "0.tar is damaged" in event.text
    assert read_images(tmp_path, 0, [0]) == [good["0.png"]]


def test_odd_tars_give_the_pairs_that_training_reads(tmp_path):
    parts = [{"0.jpg": b"zero", "0.jpg.txt": b"a zero"}, {"0.jpg": b"other", "0.caption": b"another"}]
    odd = b"caf\xe9".decode("utf-8", "surrogateescape"), b"caf\xe8".decode("utf-8", "surrogateescape")
    parts += [{f"{odd[0]}.jpg": b"image", f"{odd[1]}.txt": b"of another file", "1.jpg": b"one", "1.txt": b"a one"}]
    parts[2] |= {"__MACOSX/._1.jpg": b"x", ".ipynb_checkpoints/1.jpg": b"x", ".ipynb_checkpoints/1.txt": b"x"}
    (tmp_path / "a.tar").write_bytes(b"".join(map(tar_bytes, parts)) + b"trailing")
    options = Options(reader="webdataset", input=(str(tmp_path / "a.tar"),))
    notes, (unit,) = [], READERS["webdataset"].units(options).units
    found = list(READERS["webdataset"].read(unit, options, lambda cause, key, text: notes.append((cause, key, text))))
    assert [(e.key, e.image, e.texts) for e in found] == [
        ("a/0", b"zero", ("a zero",)), ("a/0", b"other", ("another",)), ("a/caf\\xe9", b"image", ()),
        ("a/1", b"one", ("a one",)),
    ]  # fmt: skip
    assert [cause for cause, *_ in notes] == ["no image", "no part of the archive"]
    assert notes[0][1] == "a/caf\\xe8"


def test_an_unsorted_tar_is_told_with_the_way_to_sort_it(tmp_path):
    names = [f"{i}.{kind}" for kind in ("jpg", "txt") for i in range(5)]
    (tmp_path / "a.tar").write_bytes(tar_bytes({name: b"x" for name in names} | {"5.jpg": b"x", "5.JPG": b"y"}))
    options = Options(reader="webdataset", input=(str(tmp_path / "a.tar"),))
    (unit,) = READERS["webdataset"].units(options).units
    staged = stage(unit, options, tmp_path)
    told = {event.cause: event for event in staged.events if event.count}
    (cause,) = [cause for cause in told if "tar --sort=name" in cause]
    assert told[cause].count == 5 and told["two files of one name"].count == 1


def test_img2dataset_brings_its_own_account(tmp_path):
    sample = {"000000001.jpg": b"1", "000000001.txt": b"a dog", "000000001.json": b'{"caption": "a dog", "url": "u"}'}
    (tmp_path / "00000.tar").write_bytes(tar_bytes(sample))
    with pytest.raises(PipelineError, match="00000_stats.json is not there: img2dataset had not finished"):
        read("img2dataset", tmp_path)
    stats = {"count": 10, "status_dict": {"success": 1, "HTTP Error 404: Not Found": 7, "timed out": 2}}
    (tmp_path / "00000_stats.json").write_text(json.dumps(stats))
    (tmp_path / "00000.parquet").write_bytes(b"not needed")
    _, found, notes = read("img2dataset", tmp_path)
    assert found["00000/000000001"].texts == ("a dog",)
    assert notes == [
        ("not downloaded by img2dataset: HTTP Error 404: Not Found", "00000_stats.json", 7),
        ("not downloaded by img2dataset: timed out", "00000_stats.json", 2),
    ]


def test_parquet_holds_bytes_or_hugging_faces_images(tmp_path):
    images = [{"bytes": b"0", "path": "x"}, {"bytes": None, "path": "y"}, {"bytes": b"2", "path": None}]
    table = pa.table({"image": images, "caption": [["a", "b"], ["c"], None], "id": [7, 8, 9], "name": ["x", "y", None]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    listing, found, notes = read("parquet", tmp_path, label_column="name")
    assert len(listing.units) == 2
    assert {key: (e.image, e.texts, e.label) for key, e in found.items()} == {
        "t/00000000": (b"0", ("a", "b"), "x"),
        "t/00000002": (b"2", (), ""),
    }
    assert notes == [("no image", "t/00000001", 1)]
    assert set(read("parquet", tmp_path, key_column="id")[1]) == {"7", "9"}
    assert set(read("parquet", tmp_path, key_column="name")[1]) == {"x", "t/00000002"}
    nested = {"image": [b"0", b"1"], "caption": ["a", None], "groups": [[["b", "c"]], None]}
    pq.write_table(pa.table(nested), tmp_path / "n.parquet")
    _, found, notes = read("parquet", tmp_path / "n.parquet", caption_columns=("caption", "groups"))
    assert [example.texts for example in found.values()] == [("a",), ()]
    assert notes == [("caption is not text", "n/00000000", 1)]
    pq.write_table(pa.table({"png": [b"0"], "text": ["a dog"]}), tmp_path / "u.parquet")
    _, found, _ = read("parquet", tmp_path / "u.parquet", image_column="png", caption_columns=("text",))
    assert found["u/00000000"].texts == ("a dog",)
    with pytest.raises(PipelineError, match="has no column 'image'. It has 'png', 'text'"):
        read("parquet", tmp_path / "u.parquet")
    (tmp_path / "v.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ManifestError, match="v.parquet cannot be read as Parquet"):
        read("parquet", tmp_path / "v.parquet")


def test_records_keep_their_keys_captions_and_class_names(tmp_path):
    write_folder(tmp_path / "set", 5)
    listing, found, _ = read("records", tmp_path / "set")
    assert listing.class_names == ["even", "odd"]
    assert [(e.key, e.label, len(e.texts)) for e in found.values()] == [
        ("key0", 0, 1), ("key1", 1, 2), ("key2", 0, 3), ("key3", 1, 1), ("key4", 0, 2),
    ]  # fmt: skip


TFDS = """
import sys
sys.path.insert(0, sys.argv[1])
from pictures import pictures_dataset_builder
pictures_dataset_builder.Builder(data_dir=sys.argv[1] + "/data", file_format="array_record").download_and_prepare()
"""


def test_tensorflow_datasets_are_read_without_tensorflow(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "__init__.py").touch()
    (tmp_path / "pictures" / "pictures_dataset_builder.py").write_text(BUILDER)
    (tmp_path / "make.py").write_text(TFDS)
    made = run_script(tmp_path / "make.py", tmp_path)
    assert made.returncode == 0, made.stderr
    listing, found, _ = read("tfds", tmp_path / "data/pictures/1.0.0", caption_columns=("captions/text",))
    assert listing.class_names == ["cat", "dog"]
    assert sorted((e.texts, e.label) for e in found.values())[:2] == [
        (("first 0", "second 0"), ""),
        (("first 1", "second 1"), 0),
    ]
    assert encoded(picture(3), "JPEG") in {example.image for example in found.values()}


def test_a_folder_and_tables_name_files_by_path(tmp_path):
    folder = tmp_path / "photos"
    (folder / "a").mkdir(parents=True)
    for name in ("0.jpg", "a/1.jpg"):
        (folder / name).write_bytes(name.encode())
    (folder / "0.txt").write_text("one\ntwo\n")
    (folder / "x.pdf").write_text("x")
    _, found, notes = read("folder", folder)
    assert {key: (e.image, e.texts) for key, e in found.items()} == {
        "0.jpg": (b"0.jpg", ("one", "two")),
        "a/1.jpg": (b"a/1.jpg", ()),
    }
    assert notes == [("not an image file (.pdf)", str(folder / "x.pdf"), 1)]

    (tmp_path / "t.csv").write_text(
        "image,caption,kind\nphotos/0.jpg,one,x\nphotos/no.jpg,two,y\nphotos/0.jpg,three,x\n,,\n"
    )
    listing, found, notes = read("csv", tmp_path / "t.csv", label_column="kind")
    assert listing.class_names == ["x", "y"]
    assert found["photos/0.jpg"].texts == ("one", "three") and found["photos/0.jpg"].label == 0
    assert [(cause, key) for cause, key, _ in notes] == [
        ("no image path", "t.csv line 5"),
        ("file cannot be read", "photos/no.jpg"),
    ]

    (tmp_path / "t.jsonl").write_text('{"image": "0.jpg", "caption": ["one", "two"]}\nnot json\n')
    _, found, notes = read("jsonl", tmp_path / "t.jsonl", image_root=str(folder))
    assert found["0.jpg"].texts == ("one", "two")
    assert [cause for cause, *_ in notes] == ["not JSON"]


def test_a_unit_is_read_once_until_something_changes(tmp_path):
    path = tmp_path / "0.tar"
    path.write_bytes(tar_bytes({"0.png": encoded(picture(0)), "0.txt": b"a dog", "1.png": b"no image", "1.txt": b"a"}))
    options = Options(reader="webdataset", input=(str(path),))

    def unit():
        return READERS["webdataset"].units(options).units[0]

    first = stage(unit(), options, tmp_path)
    images = tmp_path / "unit-000000.arrayrecord"
    written = images.stat().st_mtime_ns
    assert stage(unit(), options, tmp_path) == first
    assert images.stat().st_mtime_ns == written

    def changes(action):
        before = images.stat().st_mtime_ns
        action()
        result = stage(unit(), options, tmp_path)
        assert images.stat().st_mtime_ns != before
        return result

    # Damage by a disk, another file of the same size, other options; and not options that concern later steps.
    assert changes(lambda: images.write_bytes(images.read_bytes()[:-5] + b"xxxxx")) == first
    assert changes(lambda: images.unlink()) == first
    assert changes(lambda: os.utime(path, ns=(1, 1))) == first
    options = Options(reader="webdataset", input=(str(path),), min_words=3)
    assert changes(lambda: None).rows == []
    options = Options(reader="webdataset", input=(str(path),), min_words=3, near_duplicates=3, splits="a=1")
    before = images.stat().st_mtime_ns
    stage(unit(), options, tmp_path)
    assert images.stat().st_mtime_ns == before


def test_preparation_and_training_read_the_same_examples(tmp_path):
    files = {f"{i}.{kind}": b for i in range(3) for kind, b in (("gif", b"image %d" % i), ("txt", b"caption %d" % i))}
    files |= {"README": b"of no sample", "__shard__.json": b"nor this"}
    (tmp_path / "0.tar").write_bytes(tar_bytes(files))
    rows = {"image": [b"image 0", None, b"image 2"], "text": ["caption 0", "caption 1", "caption 2"]}
    pq.write_table(pa.table(rows), tmp_path / "0.parquet", row_group_size=2)
    (tmp_path / "photos/b").mkdir(parents=True)
    for name in ("b/1", "0", "c"):
        (tmp_path / f"photos/{name}.TIF").write_bytes(name.encode())
        (tmp_path / f"photos/{name}.txt").write_text(f"caption of {name}\n")
    for config, fields in (
        (WebDatasetConfig(path=str(tmp_path / "0.tar")), {}),
        (ParquetConfig(path=str(tmp_path / "0.parquet")), {"caption_columns": ("text",)}),
        (FolderConfig(path=str(tmp_path / "photos")), {}),
    ):
        trained = []
        source = open_source(config)
        for i in range(len(source)):
            with contextlib.suppress(RecordError):
                trained.append((source[i]["image"], tuple(source[i]["texts"])))
        _, prepared, _ = read(config.name, config.path, **fields)
        assert sorted(trained) == sorted((e.image, e.texts) for e in prepared.values()) and len(trained) >= 2
