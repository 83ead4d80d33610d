"""clipjax init looks at data of any kind and writes an experiment that every command reads."""

import io
import json
import os
import tarfile

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece

from clipjax.commands import check, init, init_file, train
from clipjax.commands.config_file import load_config_file
from clipjax.commands.init_look import PROMPTS, look, train_tokenizer
from clipjax.commands.preflight import Preflight
from clipjax.config import ConfigError, from_config_dict
from clipjax.data.finding import find_data
from clipjax.data.mixture import open_train
from clipjax.data.records import encode_record
from clipjax.data.write import write_records
from tests.data.samples import encoded, picture

IMAGES = [encoded(picture(number), "PNG") for number in range(12)]
CAPTIONS = [f"a {('red', 'blue')[number % 2]} picture number {number}" for number in range(12)]


def images(folder, *, captions=True, classes=(), count=12):
    """Images of a folder, in folders named after classes or with caption files."""
    for number in range(count):
        inner = folder / classes[number % len(classes)] if classes else folder
        inner.mkdir(parents=True, exist_ok=True)
        (inner / f"{number}.png").write_bytes(IMAGES[number])
        if captions:
            (inner / f"{number}.txt").write_text(CAPTIONS[number])
    return folder


def table(folder, name="pairs.csv", rows=range(12), header="filepath,title"):
    images(folder / "files", captions=False)
    mark = "\t" if name.endswith(".tsv") else ","
    lines = [f"files/{number}.png{mark}{CAPTIONS[number]}" for number in rows]
    (folder / name).write_text("\n".join([header.replace(",", mark), *lines]) + "\n")
    return folder / name


def json_lines(folder):
    images(folder, captions=False)
    rows = [{"image": f"{number}.png", "captions": [CAPTIONS[number], "another"]} for number in range(12)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def parquet(folder, label=False):
    folder.mkdir(parents=True)
    columns = {"jpg": IMAGES, "description": CAPTIONS}
    columns |= {"class": [f"class {number % 2}" for number in range(12)]} if label else {}
    pq.write_table(pa.table(columns), folder / "part-0.parquet")
    return folder


def tars(folder):
    folder.mkdir(parents=True)
    with tarfile.open(folder / "a.tar", "w") as archive:
        for number in range(12):
            for suffix, content in (("png", IMAGES[number]), ("txt", CAPTIONS[number].encode())):
                entry = tarfile.TarInfo(f"{number:02}.{suffix}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return folder


def records(folder):
    rows = [encode_record(IMAGES[n], [CAPTIONS[n]], key=str(n)) for n in range(12)]
    write_records(folder, {"train": rows[:9], "val": rows[9:]}, name="test", class_names=(), source={})
    return folder


KINDS = {  # what is written -> (records to train on, to evaluate on, evaluators, the source's name)
    "captions": (images, 10, 2, {"retrieval"}, "folder"),
    "classes": (lambda f: images(f, captions=False, classes=("red_rose", "ant")), 10, 2, {"zero_shot"}, "folder"),
    "csv": (table, 10, 2, {"retrieval"}, "folder"),
    "tsv": (lambda f: table(f, "pairs.tsv", header="path,caption"), 10, 2, {"retrieval"}, "folder"),
    "jsonl": (json_lines, 10, 2, {"retrieval"}, "folder"),
    "parquet": (parquet, 10, 2, {"retrieval"}, "parquet"),
    "labelled parquet": (lambda f: parquet(f, label=True), 10, 2, {"retrieval", "zero_shot"}, "parquet"),
    "tars": (tars, 10, 2, {"retrieval"}, "webdataset"),
    "records": (records, 9, 3, {"retrieval"}, "array_record"),
}


def label_table(folder, header):
    images(folder / "files", captions=False)
    lines = [f"files/{number}.png,{('red rose', 'ant')[number % 2]}" for number in range(12)]
    (folder / "labels.csv").write_text("\n".join([header, *lines]) + "\n")
    return folder


def label_parquet(folder):
    folder.mkdir(parents=True)
    columns = {"image": IMAGES, "label": [("red rose", "ant")[number % 2] for number in range(12)]}
    pq.write_table(pa.table(columns), folder / "part-0.parquet")
    return folder


LABELS = {
    "table of labels": lambda folder: label_table(folder, "image,label"),
    "table of few captions": lambda folder: label_table(folder, "filepath,caption"),
    "parquet": label_parquet,
    "class folders": lambda folder: images(folder, captions=False, classes=("red_rose", "ant")),
}


@pytest.mark.parametrize("kind", LABELS)
def test_images_of_a_class_are_positives_of_each_other_wherever_the_class_stands(kind, tmp_path):
    init.run(tmp_path / "mine.py", LABELS[kind](tmp_path / "data"))
    config = written(tmp_path / "mine.py")
    source = open_train(config.data)
    assert config.loss.repeats == "positives" and set(config.eval.evaluators) == {"zero_shot"}
    assert source.class_names == ("ant", "red rose")
    for record in (source[0], source[1]):
        assert record["pair_id"] == record["label"] and record["texts"] == [source.class_names[record["label"]]]
    assert {source[index]["pair_id"] for index in range(len(source))} == {0, 1}


def test_captions_that_seldom_repeat_are_no_classes(tmp_path):
    init.run(tmp_path / "mine.py", table(tmp_path / "d"))
    config = written(tmp_path / "mine.py")
    assert config.loss.repeats == "negatives" and config.data.train.source.prompts == ()


KIND = "tensorflow_datasets.core.features."


@pytest.mark.parametrize("kind", [images, tars])
def test_captions_in_files_of_their_own_that_repeat_are_captions(kind, tmp_path, monkeypatch):
    """No column holds them that could be one of labels."""
    monkeypatch.setattr(f"{__name__}.CAPTIONS", ["a disc", "a ring"] * 6)
    looked = look(str(kind(tmp_path / "data")), {})
    assert looked.train.source.prompts == () and set(looked.texts) == {"a disc", "a ring"}


def test_all_prompts_fit_where_captions_outvote_them(tmp_path):
    names = ["disc", "a very long name of a class with many words in it"]
    looked = look(str(images(tmp_path / "data", captions=False, classes=names)), {})
    texts = ["a disc"] * 1000
    content, _, length = train_tokenizer(looked._replace(texts=texts))
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    prompts = [prompt.format(name.lower()) for name in looked.classes for prompt in PROMPTS]
    assert length == max(len(ids) + 1 for ids in processor.encode(prompts))


def prepared(folder, features=("Image", "ClassLabel"), kind="array_record", splits=("train", "test")):
    """The two JSON files of a dataset that TFDS prepared."""
    made = {name.lower(): {"pythonClassName": f"{KIND}x.{name}"} for name in features}
    captions = {"featuresDict": {"features": {"text": {"pythonClassName": f"{KIND}x.Text"}, "n": {}}}}
    if "Captions" in features:
        made["captions"] = {"pythonClassName": f"{KIND}x.Sequence", "sequence": {"feature": captions}}
    folder.mkdir(parents=True)
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": made}}))
    info = {"name": "d", "splits": [{"name": split} for split in splits], "fileFormat": kind}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def test_a_dataset_that_tfds_prepared_is_found_with_its_features_and_splits(tmp_path):
    found = find_data(prepared(tmp_path / "d" / "1.0.0"))
    assert (found.train.name, found.train.split, found.held_out.split) == ("tfds", "train", "test")
    keys = (found.train.image_key, found.train.text_key, found.train.label_key)
    assert keys == ("image", "classlabel", "classlabel") and "splits train, test" in found.what
    assert find_data(tmp_path / "d").train == found.train, "the folder of its versions"
    nested = find_data(prepared(tmp_path / "e", ("Captions", "Image"), splits=("all",)))
    assert (nested.train.text_key, nested.train.label_key) == ("captions/text", "")
    assert nested.train.split == "all" and nested.held_out is None
    plain = find_data(prepared(tmp_path / "f", ("Captions", "Text", "Image")))
    assert plain.train.text_key == "text"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "tfrecord"}, "prepared by TFDS as tfrecord; expected array_record.*tfds build"),
        ({"features": ("ClassLabel",)}, "its features classlabel have no image"),
        ({"features": ("Image",)}, "its features image have no text and no class label"),
        ({"splits": ()}, "has no splits"),
    ],
)
def test_a_tfds_dataset_that_cannot_be_read_is_told(changes, told, tmp_path):
    folder = prepared(tmp_path / "d", **changes)
    with pytest.raises(ConfigError, match=told):
        find_data(folder)


def test_several_or_damaged_tfds_datasets_are_told(tmp_path):
    for version in ("1.0.0", "2.0.0"):
        prepared(tmp_path / version)
    with pytest.raises(ConfigError, match="holds 2 datasets that TFDS prepared. Name one: --data=.*2.0.0"):
        find_data(tmp_path)
    for content in ("{", "[]", '{"featuresDict": 1}', "{}"):
        (tmp_path / "1.0.0" / "features.json").write_text(content)
        with pytest.raises(ConfigError, match="is damaged"):
            find_data(tmp_path / "1.0.0")


def written(path):
    return from_config_dict(load_config_file(str(path)))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_data_gives_an_experiment_that_passes_every_check(kind, tmp_path, monkeypatch):
    write, trained, held_out, evaluators, name = KINDS[kind]
    monkeypatch.chdir(tmp_path)
    place = os.path.relpath(write(tmp_path / "my dätä"), tmp_path)
    init.run("mine.py", place)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # the file names everything from where it is
    config = written(tmp_path / "mine.py")
    source = open_train(config.data)
    assert len(source) == trained and set(config.eval.evaluators) == evaluators
    assert getattr(config.data.train, "source", config.data.train).name == name
    start = Preflight(config)
    for _, refuse in (*start.before_data(), *start.of_data()):
        refuse()
    assert {len(each) for each in start.eval_sources.values()} == {held_out}
    tokens = start.tokenizer([source[0]["texts"][0]])
    assert (tokens != start.tokenizer.model.unk_id()).all()
    assert config.model.text.vocab_size >= start.tokenizer.vocab_size
    text = (tmp_path / "mine.py").read_text()
    assert max(map(len, text.splitlines())) <= 120 and "<" not in text.split('"""')[2]


def test_absolute_paths_stay_and_relative_ones_start_at_the_file(tmp_path, monkeypatch):
    images(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    init.run("one.py", tmp_path / "photos")
    init.run("deep/er/two.py", "photos")
    assert f'DATA = "{tmp_path}/photos"' in (tmp_path / "one.py").read_text()
    assert 'DATA = str(HERE / "../../photos")' in (tmp_path / "deep/er/two.py").read_text()
    assert written("deep/er/two.py").tokenizer.path == str(tmp_path / "deep/er/two.model")


def test_nothing_is_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images(tmp_path / "photos")
    for name in ("mine.model", "mine.py"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(ConfigError, match=f"{name} exists already"):
            init.run("mine.py", "photos")
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    for name in ("mine.txt", "a:b.py"):
        with pytest.raises(ConfigError, match="expected the name of a Python file"):
            init.run(name, "photos")


def both(folder):
    parquet(folder / "inner")
    images(folder)


def two_tables(folder):
    table(folder, "a.csv")
    table(folder, "b.csv")


def table_beside_captions(folder):
    images(folder)
    table(folder, "meta.csv", rows=range(5))


def table_beside_classes(folder):
    images(folder, captions=False, classes=("cat", "dog"))
    table(folder, "notes.csv", rows=range(3))


def no_captions(folder):
    images(folder, captions=False)


def empty(folder):
    folder.mkdir()


def text_only(folder):
    folder.mkdir()
    (folder / "notes.md").write_text("x")


def odd_columns(folder):
    (folder).mkdir()
    (folder / "a.csv").write_text("where,what\nx.png,a cat\n")


def two_captions(folder):
    folder.mkdir()
    table = pa.Table.from_arrays(
        [pa.array(IMAGES), pa.array(CAPTIONS), pa.array(CAPTIONS)], ["jpg", "caption", "caption"]
    )
    pq.write_table(table, folder / "a.parquet")


WRONG = {
    both: "several kinds of data: 1 .parquet files, 12 images. Name one",
    two_tables: r"holds 2 tables \(a.csv, b.csv\) and 12 images. Name one: --data=.*a.csv",
    table_beside_captions: "two kinds of data: 24 images with caption files, and .*meta.csv, with 5 records. Name",
    table_beside_classes: "two kinds of data: 24 images in class folders, and .*notes.csv, with 3 records. Name",
    no_captions: "12 images, 0 caption files .* and 0 folders with images. Expected a file NAME.txt",
    empty: "holds no data that is known: there are no files",
    text_only: "there are 1 .md. Expected images",
    two_captions: r"--data=.*a.parquet has 2 columns 'caption'. Give each a name of its own.",
    odd_columns: "has the columns where, what; none is known to hold images. Name it with --image_key",
}


@pytest.mark.parametrize("write", WRONG, ids=lambda write: write.__name__)
def test_nothing_or_several_things_are_told_with_counts(write, tmp_path):
    write(tmp_path / "data")
    with pytest.raises(ConfigError, match=WRONG[write]) as error:
        init.run(tmp_path / "mine.py", tmp_path / "data")
    assert "\n" not in str(error.value) and not (tmp_path / "mine.py").exists()


def test_a_path_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        find_data(tmp_path / "no")
    (tmp_path / "a.zip").touch()
    with pytest.raises(ConfigError, match="no kind of file that is known"):
        find_data(tmp_path / "a.zip")


def test_the_tables_that_img2dataset_writes_beside_tars_are_no_second_kind(tmp_path):
    tars(tmp_path / "shards")
    (tmp_path / "shards" / "a.parquet").write_bytes(b"")
    assert find_data(tmp_path / "shards").train.name == "webdataset"


def test_named_columns_are_read(tmp_path):
    path = table(tmp_path / "d", header="where,what")
    init.run(tmp_path / "mine.py", path, image_key="where", text_key="what")
    assert open_train(written(tmp_path / "mine.py").data)[0]["texts"] == [CAPTIONS[0]]


def test_splits_are_found_in_folders_and_tables(tmp_path):
    for split, count in (("train", 12), ("val", 4)):
        images(tmp_path / "folders" / split, captions=False, classes=("cat", "dog"), count=count)
    found = find_data(tmp_path / "folders")
    assert (found.train.split, found.held_out.split) == ("train", "val") and found.train.captions == "folders"
    table(tmp_path / "tables", "train.csv")
    table(tmp_path / "tables", "test.csv", rows=range(3))
    init.run(tmp_path / "mine.py", tmp_path / "tables")
    evaluator = written(tmp_path / "mine.py").eval.evaluators["retrieval"]
    assert evaluator.source.path.endswith("test.csv")


def test_records_that_cannot_be_used_are_counted_and_allowed_for(tmp_path, capsys):
    images(tmp_path / "photos")
    (tmp_path / "photos" / "4.png").write_bytes(b"no image")
    (tmp_path / "photos" / "notes.md").write_text("x")
    init.run(tmp_path / "mine.py", tmp_path / "photos")
    assert "1 cannot be used" in capsys.readouterr().out
    assert 0.1 < written(tmp_path / "mine.py").data.max_bad_share < 0.5


def without_images(folder, count, missing):
    """A table of `count` records, of which the first `missing` name images that are not there."""
    (folder / "files").mkdir(parents=True)
    for number in range(missing, count):
        (folder / "files" / f"{number}.png").write_bytes(IMAGES[number % 12])
    lines = [f"files/{number}.png,picture number {number}" for number in range(count)]
    (folder / "pairs.csv").write_text("\n".join(["filepath,title", *lines]) + "\n")
    return folder / "pairs.csv"


@pytest.mark.parametrize(("missing", "told"), [(40, "none of 36 records can be used: 36 "), (28, "2[0-9] of 36 rec")])
def test_mostly_bad_records_are_refused_with_the_first_of_them(missing, told, tmp_path):
    path = without_images(tmp_path / "d", 40, missing)
    with pytest.raises(ConfigError, match=rf"{told}.*The first: .*'files/[0-2]\.png' is not a file") as error:
        init.run(tmp_path / "mine.py", path)
    assert "\n" not in str(error.value) and not (tmp_path / "mine.py").exists()


def test_records_to_evaluate_on_that_are_all_bad_are_told_as_such(tmp_path):
    path = without_images(tmp_path / "d", 20, 0)
    for number in (9, 19):
        (path.parent / f"files/{number}.png").unlink()
    with pytest.raises(ConfigError, match=r"none of 2 records to evaluate on \(every 10th record\) can be used: 2 "):
        init.run(tmp_path / "mine.py", path)


def test_sizes_follow_from_the_records_that_can_be_used(tmp_path, capsys):
    path = without_images(tmp_path / "d", 200, 80)
    init.run(tmp_path / "mine.py", path)
    assert "72 cannot be used: 72 " in capsys.readouterr().out
    config, usable = written(tmp_path / "mine.py"), init_file.choose_size(108, "cpu", jax.device_count())
    assert config.global_batch_size == usable.batch < init_file.choose_size(180, "cpu", jax.device_count()).batch


def test_sizes_follow_from_the_data_and_the_machine():
    small, large = (init_file.choose_size(records, "cpu", 1) for records in (6, 100_000))
    assert small.batch == 8 and small.steps == 100 and large.batch == 256
    assert large.batch * large.steps <= init_file.CPU_IMAGES * 1.1
    pod = init_file.choose_size(5_000_000, "tpu", 8)
    assert pod.width == 768 and pod.batch == 1024 and pod.dtype == "bfloat16"
    for records, devices in ((10, 8), (1_000, 3), (50_000, 6)):
        assert init_file.choose_size(records, "gpu", devices).batch % devices == 0
    assert [init_file.round_off(number) for number in (0.3, 12.2, 1289.06)] == [1, 13, 1300]


def test_help_shows_examples_and_a_missing_flag_is_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        init.main(["init", "mine.py"])
    assert end.value.code == 2 and "--data is missing" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        init.main(["init", "--data=x"])
    assert end.value.code == 2 and "usage: clipjax init FILE.py --data=PATH" in capsys.readouterr().err


@pytest.mark.slow
def test_what_it_writes_trains_and_checks(tmp_path, monkeypatch):
    images(tmp_path / "photos", captions=False, classes=("red rose", "ant"), count=8)
    init.run(tmp_path / "mine.py", tmp_path / "photos")
    raw = load_config_file(str(tmp_path / "mine.py"))
    raw.total_steps, raw.optimizer.schedule.warmup_steps = 2, 0
    config = from_config_dict(raw)
    check.run(config)
    results = train.run(config, tmp_path / "run")
    assert np.isfinite(results["zero_shot/top1"]) and (tmp_path / "run/report.html").exists()
