"""A model that is always right scores 100 % on the same pictures, however their labels and class names are kept."""

import io
import json
import tarfile

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipjax.config import ConfigError, MeshConfig, PixelConfig, SourceConfig
from clipjax.data.pipeline import eval_batches
from clipjax.data.sources import FolderConfig, ParquetConfig, WebDatasetConfig, open_source
from clipjax.eval import ZeroShotConfig, zero_shot
from clipjax.eval.class_names import resolve_names
from clipjax.mesh import batch_sharding, make_mesh
from data_pipelines import csv, image_folder, jsonl
from data_pipelines.prepare.run import build as prepare

# Not sorted; "10" would come before "2" as a text.
NAMES = ("zebra", "cat", "dog", "apple", "yak", "owl", "ant", "bee", "red rose", "fox", "eel", "café\u2028bar")
CLASSES = np.random.default_rng(0).permutation(np.repeat(np.arange(12), 2)).tolist()  # of the 24 pictures
EYE = np.eye(12, dtype=np.float32)
ALL = "train=1"


def picture(number: int) -> bytes:
    """Grey in a level that says the class, with a corner that says which picture it is."""
    pixels = np.full((8, 8, 3), 20 * CLASSES[number], np.uint8)
    pixels[0, 0] = number
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def tokenizer(texts) -> np.ndarray:
    return np.array([[NAMES.index(text) if text in NAMES else 0] for text in texts], np.int32)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


def score(mesh, source_config: SourceConfig, class_names: object = "", **options) -> float:
    """The accuracy of a model that sees the class in the picture and knows the names."""
    source = open_source(source_config)
    config = ZeroShotConfig(source=source_config, class_names=str(class_names), **options)
    zero_shot.check(config, class_names=source.class_names)

    def batches():
        batch_of = dict(tokenizer=tokenizer, pixels=PixelConfig(), image_size=8, batch_size=8, num_threads=1)
        for rows in eval_batches(source, **batch_of):
            yield jax.device_put(rows, batch_sharding(mesh))

    found = zero_shot.evaluate(
        config,
        batches=batches,
        embed_images=lambda batch: EYE[np.asarray(batch["image"])[:, 4, 4, 0] // 20],
        embed_texts=lambda tokens: EYE[tokens[:, 0]],
        tokenizer=tokenizer,
        class_names=source.class_names,
        where=source.where,
        mesh=mesh,
    )
    assert (found["examples"], found["classes"], found["unlabelled"]) == (24, 12, 0)
    return found["top1"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for number in range(24):
        (folder / f"{number}.png").write_bytes(picture(number))
    for name, names in (("names", NAMES), ("reversed", NAMES[::-1]), ("sorted", sorted(NAMES))):
        (folder / f"{name}.txt").write_text("\ufeff" + "\r\n".join(names) + "\r\n\r\n", encoding="utf-8", newline="")
    return folder


TABLE_LABELS = {
    "numbers": str,
    "floats": lambda c: f"{c}.0",
    "padded": lambda c: f"{c:03d}",
    "names": lambda c: f" {NAMES[c]}",
}


@pytest.mark.parametrize(
    "suffix, kind", [(suffix, kind) for suffix in ("csv", "jsonl") for kind in TABLE_LABELS] + [("tsv", "names")]
)
def test_a_table_is_scored_right_whatever_its_labels_are(mesh, files, suffix, kind, tmp_path):
    labels = [TABLE_LABELS[kind](c) for c in CLASSES]
    table = files / f"{kind}.{suffix}"
    if suffix == "jsonl":
        value = {"numbers": int, "floats": float}.get(kind, str)
        rows = [json.dumps({"image": f"{i}.png", "text": "x", "label": value(c)}) for i, c in enumerate(labels)]
    else:
        separator = "," if suffix == "csv" else "\t"
        rows = [separator.join(("image", "text", "label"))]
        rows += [separator.join((f"{i}.png", "x", label)) for i, label in enumerate(labels)]
    table.write_text("\n".join(rows), encoding="utf-8")
    config = FolderConfig(path=str(table), text_key="text")
    options = dict(table=table, caption_columns="text", label_column="label", splits=ALL)
    build = jsonl.build if suffix == "jsonl" else csv.build
    records = SourceConfig(path=str(tmp_path / "out"))
    build(tmp_path / "out", **options)
    assert score(mesh, config, files / "names.txt") == score(mesh, records, files / "names.txt") == 1.0
    if kind == "names":
        assert open_source(config).class_names == open_source(records).class_names == tuple(sorted(NAMES))
        assert score(mesh, config) == score(mesh, config, files / "reversed.txt") == 1.0
        assert score(mesh, records) == score(mesh, records, files / "reversed.txt") == 1.0
    else:
        assert open_source(config).class_names == ()
        with pytest.raises(ConfigError, match="names no classes"):
            score(mesh, config)
    build(tmp_path / "out", class_names=files / "names.txt", overwrite=True, **options)
    assert open_source(records).class_names == NAMES and open_source(records)[0]["label"] == CLASSES[0]
    assert score(mesh, records) == score(mesh, records, files / "sorted.txt") == 1.0


PARQUET_LABELS = {
    "int64": pa.array(CLASSES, pa.int64()),
    "uint8": pa.array(CLASSES, pa.uint8()),
    "float": pa.array(CLASSES, pa.float32()),
    "number texts": pa.array([str(c) for c in CLASSES]),
    "numbers in a dictionary": pa.array([str(c) for c in CLASSES]).dictionary_encode(),
    "ClassLabel": pa.array(CLASSES, pa.int64()),
    "texts": pa.array([NAMES[c] for c in CLASSES]),
    "large texts": pa.array([NAMES[c] for c in CLASSES], pa.large_string()),
    "binary texts": pa.array([NAMES[c].encode() for c in CLASSES], pa.binary()),
    "dictionary": pa.array([NAMES[c] for c in CLASSES]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", PARQUET_LABELS)
def test_parquet_is_scored_right_whatever_its_labels_are(mesh, files, kind, tmp_path):
    images = pa.array([picture(number) for number in range(24)], pa.binary())
    table = pa.table({"image": images, "text": ["x"] * 24, "label": PARQUET_LABELS[kind]})
    if kind == "ClassLabel":
        features = {"info": {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()})
    # Each half has classes of its own.
    for part in range(2):
        pq.write_table(table.slice(part * 12, 12), tmp_path / f"train-{part}.parquet", row_group_size=5)
    config = ParquetConfig(path=str(tmp_path))
    expected = NAMES if kind == "ClassLabel" else tuple(sorted(NAMES)) if "text" in kind or "dict" in kind else ()
    expected = () if "number" in kind else expected
    assert open_source(config).class_names == expected
    assert score(mesh, config, files / ("reversed.txt" if expected else "names.txt")) == 1.0
    (tmp_path / "classnames.txt").write_text("\n".join(NAMES), encoding="utf-8")
    assert open_source(config).class_names == NAMES
    assert score(mesh, config) == 1.0


def write_tars(folder, kind):
    folder.mkdir()
    for part in range(2):
        with tarfile.open(folder / f"{part}.tar", "w") as tar:
            for i in range(part * 12, part * 12 + 12):
                label = {"numbers": f"{CLASSES[i]}\n", "names": f"\ufeff{NAMES[CLASSES[i]]}\r\n"}.get(kind, "")
                parts = {"png": picture(i), "txt": f"picture {i}".encode(), "cls": label.encode()}
                if kind == "json":
                    parts |= {"cls": b"", "json": json.dumps({"meta": {"class": CLASSES[i]}}).encode()}
                for extension, data in parts.items():
                    member = tarfile.TarInfo(f"{i:03d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("kind", ["numbers", "names", "json"])
def test_tars_are_scored_right_whatever_their_labels_are(mesh, files, kind, tmp_path):
    write_tars(tmp_path / "tars", kind)
    config = WebDatasetConfig(path=str(tmp_path / "tars"), label_key="meta/class" if kind == "json" else "cls")
    if kind != "names":
        assert score(mesh, config, files / "names.txt") == 1.0
    (tmp_path / "classnames.txt").write_text("\ufeff" + "\r\n".join(NAMES) + "\r\n", encoding="utf-8", newline="")
    assert open_source(config).class_names == NAMES
    assert score(mesh, config) == score(mesh, config, files / "reversed.txt") == 1.0


@pytest.mark.parametrize("spell", [str, lambda c: f"{c:02d}", lambda c: NAMES[c].replace(" ", "_")])
def test_folders_of_classes_are_scored_right_whether_they_are_numbers_or_names(mesh, files, spell, tmp_path):
    for i, c in enumerate(CLASSES):
        (tmp_path / "in" / spell(c)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / spell(c) / f"{i}.png").write_bytes(picture(i))
    options = dict(images=tmp_path / "in", captions="folders", template=("{}",), splits=ALL)
    manifest = image_folder.build(tmp_path / "out", **options)
    records = SourceConfig(path=str(tmp_path / "out"))
    numbers = spell(3)[-1] == "3"
    assert manifest["class_names"] == ([str(c) for c in range(12)] if numbers else sorted(NAMES))
    assert score(mesh, records, files / "names.txt") == 1.0
    manifest = image_folder.build(tmp_path / "out", class_names=files / "names.txt", overwrite=True, **options)
    assert manifest["class_names"] == list(NAMES)
    assert all(
        example["texts"] == [NAMES[example["label"]]] for example in map(open_source(records).__getitem__, range(24))
    )
    assert score(mesh, records) == score(mesh, records, files / "reversed.txt") == 1.0


@pytest.mark.parametrize(
    "kind", [*(pytest.param(kind, marks=pytest.mark.slow) for kind in ("numbers", "names")), "named numbers"]
)
def test_prepare_keeps_the_labels_of_tars_and_their_names(mesh, files, kind, tmp_path):
    write_tars(tmp_path / "tars", kind.split()[-1])
    if kind == "named numbers":
        (tmp_path / "tars/classnames.txt").write_text("\n".join(NAMES), encoding="utf-8")
    prepare(tmp_path / "out", reader="webdataset", input=(str(tmp_path / "tars"),), splits=ALL)
    records = SourceConfig(path=str(tmp_path / "out"))
    expected = {"numbers": (), "names": tuple(sorted(NAMES)), "named numbers": NAMES}[kind]
    assert open_source(records).class_names == expected
    assert score(mesh, records, files / "names.txt") == 1.0


def test_other_names_than_the_datas_own_are_refused_or_said_to_be_renamed(mesh, files, tmp_path):
    rows = [f"{i}.png,x,{NAMES[c]}" for i, c in enumerate(CLASSES)]
    (files / "t.csv").write_text("\n".join(["image,text,label", *rows]), encoding="utf-8")
    config = FolderConfig(path=str(files / "t.csv"), text_key="text")
    ordered = sorted(NAMES)
    other = tmp_path / "other.txt"
    other.write_text("\n".join([*ordered[:4], "hound", *ordered[5:]]), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"line 4 \\(from 0\\) is '{ordered[4]}' in the first and 'hound' in the sec"):
        score(mesh, config, other)
    with pytest.raises(ConfigError, match="rename=True needs one line for each"):
        score(mesh, config, files / "one.txt" if (files / "one.txt").write_text("cat\n") else "", rename=True)
    with pytest.raises(ConfigError, match="rename=True needs class_names"):
        score(mesh, config, rename=True)
    assert score(mesh, config, other, rename=True) < 1.0  # "hound" is no name that the model of this test knows
    other.write_text("\n".join([*ordered, "cat"]), encoding="utf-8")
    assert resolve_names(ZeroShotConfig(class_names=str(other)), ordered)[1] == list(range(12))
    with pytest.raises(ConfigError, match="differ"):  # "cat" is two lines
        resolve_names(ZeroShotConfig(class_names=str(other)), ordered[::-1])
    # Data in which some classes do not occur are matched by name.
    lines = resolve_names(ZeroShotConfig(class_names=str(files / "names.txt")), ["apple", "cat", "zebra"])[1]
    assert lines == [3, 1, 0]
