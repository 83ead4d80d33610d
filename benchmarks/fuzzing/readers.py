"""The readers that are fuzzed: small valid files for each, how they are mutated, and what a right value is.

A reader is a list of cases. A case is a folder of files, the mutation of each that is mutated, and a function that
reads the folder as clipjax does. It returns, or raises one of clipjax's own errors; AssertionError is a wrong value.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.fuzzing import model_files, run_files
from benchmarks.fuzzing import mutations as m
from clipjax.config import AugmentConfig, DataConfig, SourceConfig
from clipjax.data.images.decode import open_image
from clipjax.data.images.transforms import eval_image, train_image
from clipjax.data.records import RecordError, decode_record, encode_record, read_manifest
from clipjax.data.sources import FolderConfig, ParquetConfig, WebDatasetConfig, open_source
from clipjax.data.sources.annotations import read_rows
from clipjax.data.sources.tar_captions import parse_json
from clipjax.data.write import write_records
from clipjax.eval.prompt_files import read_class_names, read_class_prompts, read_templates


class Case(NamedTuple):
    """A folder of files; changes: the mutations of those that are mutated, by name."""

    label: str
    files: dict[str, bytes]
    changes: dict[str, m.Mutation]
    read: Callable[[Path], Any]


def picture(side: int = 12, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A small picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 4, 4), np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    """A picture as a file."""
    out = io.BytesIO()
    (image or picture()).save(out, kind, **options)
    return out.getvalue()


JPEG = encoded("JPEG")


def images() -> list[Case]:
    """Encoded images of each format, decoded for evaluation and for training."""
    frames = [picture(seed=seed).convert("P") for seed in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "jpeg": JPEG,
        "jpeg_progressive": encoded("JPEG", progressive=True, exif=exif),
        "jpeg_cmyk": encoded("JPEG", picture(mode="CMYK")),
        "jpeg_large": encoded("JPEG", picture(200)),
        "png": encoded("PNG"),
        "png_palette": encoded("PNG", picture(mode="P"), transparency=3),
        "png_grey16": encoded("PNG", Image.fromarray(np.arange(192, dtype=np.uint16).reshape(12, 16) * 300)),
        "webp": encoded("WEBP"),
        "webp_lossless": encoded("WEBP", picture(mode="RGBA"), lossless=True),
        "gif": encoded("GIF", frames[0], save_all=True, append_images=frames[1:]),
        "tiff": encoded("TIFF"),
        "tiff_deflate": encoded("TIFF", compression="tiff_adobe_deflate"),
        "tiff_lzw": encoded("TIFF", picture(mode="L"), compression="tiff_lzw"),
        "tiff_float": encoded("TIFF", Image.fromarray(np.linspace(0, 1, 192, dtype=np.float32).reshape(12, 16))),
        "bmp": encoded("BMP"),
    }
    return [Case(label, {"image": data}, {"image": m.mutate_bytes}, _read_image) for label, data in files.items()]


def _read_image(folder: Path) -> None:
    data, pixels = (folder / "image").read_bytes(), DataConfig().pixels
    try:
        image = open_image(data)
    except RecordError:
        return
    assert image.mode == "RGB" and image.width * image.height > 0, image
    small = eval_image(data, 8, pixels)
    assert small.shape == (8, 8, 3) and small.dtype == np.uint8
    for decoder in ("pillow", "simplejpeg"):
        with contextlib.suppress(RecordError):
            train_image(data, 8, pixels, AugmentConfig(), np.random.default_rng(0), decoder)


def _records(config: SourceConfig, most: int = 5) -> None:
    """Opens a source and reads its first records, as training would."""
    source = open_source(config)
    for index in range(min(most, len(source))):
        source.where(index)
        try:
            record = source[index]
        except RecordError as error:
            assert error.cause and str(error)
            continue
        assert isinstance(record["image"], bytes) and record["texts"], record
        for text in record["texts"]:
            assert isinstance(text, str)
            text.encode()
        assert isinstance(record["key"], str) and -1 <= record["label"] < 2**31 and -1 <= record["pair_id"] < 2**31
        assert record["label"] < (len(source.class_names) or 2**31)


def tars() -> list[Case]:
    """WebDataset's tars, with a text, a JSON and a class beside each image; the files around them; their indexes."""
    import tarfile

    def tar(members: Iterable[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=format) as archive:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return out.getvalue()

    def members(count: int = 2, folder: str = "") -> Iterable[tuple[str, bytes]]:
        for i in range(count):
            yield f"{folder}{i:04d}.jpg", JPEG
            yield f"{folder}{i:04d}.txt", f"a caption \u00e9 {i}".encode()
            yield f"{folder}{i:04d}.json", json.dumps({"caption": f"text {i}", "alt": ["x", "y"]}).encode()
            yield f"{folder}{i:04d}.cls", str(i).encode()

    names = b"cat\ndog\nemu\n"
    files = {
        "ustar": tar(members()),
        "pax": tar(members(folder="p\u00e4th/" * 20), tarfile.PAX_FORMAT),
        "gnu": tar(members(folder="long/" * 40), tarfile.GNU_FORMAT),
        "joined": tar(members(1)) + tar(members(1)),
    }

    def read(folder: Path) -> None:
        _records(WebDatasetConfig(path=str(folder), data_dir=str(folder / "index"), split="train"))

    def read_json(folder: Path) -> None:
        _records(WebDatasetConfig(path=str(folder), data_dir=str(folder / "index"), text_key="alt", label_key="n"))

    cases = [
        Case(label, {"0.tar": data, "classnames.txt": names}, {"0.tar": m.of_tar, "classnames.txt": m.of_lines}, read)
        for label, data in files.items()
    ]
    row = io.BytesIO()
    np.save(row, np.array([0, 1, 1], np.uint8))
    layout = {
        "0.tar": tar([("a.jpg", JPEG), ("a.npy", row.getvalue()), ("b.jpg", JPEG), ("b.npy", row.getvalue())]),
        "classnames.txt": names,
        "dataset_type.txt": b"multilabel",
        "nshards.txt": b"1",
        "zeroshot_classification_templates.txt": b"a photo of {c}.\na drawing of a {c}.\n",
    }
    around = {name: m.of_lines for name in layout if name.endswith(".txt")}

    def read_layout(folder: Path) -> None:
        source = open_source(WebDatasetConfig(path=str(folder), data_dir=str(folder / "index")))
        for index in range(min(3, len(source))):
            with contextlib.suppress(RecordError):
                source[index]

    cases.append(Case("json", {"0.tar": files["ustar"]}, {"0.tar": m.either(m.of_tar, m.mutate_bytes)}, read_json))
    return [*cases, Case("layout", layout, {"0.tar": m.of_tar, **around}, read_layout)]


def captions() -> list[Case]:
    """The JSON of a tar's sample, and records of msgpack."""

    def read_json(folder: Path) -> None:
        parse_json((folder / "a.json").read_bytes(), "a.json")

    def read_record(folder: Path) -> None:
        record = decode_record((folder / "record").read_bytes())
        assert record["texts"] and isinstance(record["image"], bytes)

    document = json.dumps({"caption": "a cat", "meta": {"alt": ["x", {"y": [1, 2.5, None]}]}}).encode()
    record = encode_record(b"image", ["a", "b \u00e9"], key="k", label=1, pair_id=7)
    return [
        Case("json", {"a.json": document}, {"a.json": m.of_json}, read_json),
        Case("msgpack", {"record": record}, {"record": m.mutate_bytes}, read_record),
    ]


def tables() -> list[Case]:
    """Tables of paths and captions, and folders of images with captions beside them."""
    rows = [("image", "caption", "label"), ("a.jpg", "a cat, sitting", "cat"), ("b.jpg", 'a "big" dog\u00e9', "dog")]
    rows += [("a.jpg", "two\nlines", "cat"), ("c.jpg", "", "")]
    quote = lambda field: '"' + field.replace('"', '""') + '"' if set(field) & set('",\n') else field  # noqa: E731
    flat = [tuple(field.replace("\n", " ") for field in row) for row in rows]
    objects = [dict(zip(rows[0], row, strict=True)) | {"meta": {"alt": [1, "x"]}} for row in rows[1:]]
    files = {
        "table.csv": "\n".join(",".join(map(quote, row)) for row in rows),
        "semicolons.csv": "\r\n".join(";".join(row) for row in flat),
        "table.tsv": "\n".join("\t".join(row) for row in flat),
        "table.jsonl": "\n".join(map(json.dumps, objects)),
    }
    images = {"a.jpg": JPEG, "b.jpg": JPEG}
    cases = [
        Case(
            name,
            {name: text.encode("utf-16") if name == "semicolons.csv" else text.encode(), **images},
            {name: m.of_json_lines if name.endswith("jsonl") else m.of_lines},
            lambda folder, name=name: _records(FolderConfig(path=str(folder / name))),
        )
        for name, text in files.items()
    ]
    beside = {"x/a.jpg": JPEG, "x/a.txt": b"a cat\na dog\n", "x/b.jpg": JPEG, "x/b.jpg.caption": "caf\u00e9".encode()}
    changes = {"x/a.txt": m.of_lines, "x/b.jpg.caption": m.mutate_bytes}
    return [*cases, Case("folder", beside, changes, lambda folder: _records(FolderConfig(path=str(folder), split="")))]


def parquet() -> list[Case]:
    """Parquet files as pyarrow and Hugging Face's datasets write them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(columns: dict[str, Any], metadata: dict | None = None, **options: Any) -> bytes:
        out, table = io.BytesIO(), pa.table(columns)
        if metadata:
            table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
        pq.write_table(table, out, row_group_size=2, **options)
        return out.getvalue()

    image = b"image bytes, which are not decoded here"
    plain = {"image": [image] * 3, "text": ["a", "b \u00e9", "c"], "label": [0, 1, 2], "pair_id": [1, 2, 3]}
    hub = {"image": [{"bytes": image, "path": "a.jpg"}] * 3, "text": [["a", "b"], ["c"], []], "label": [0, 1, 0]}
    names = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    files = {
        "plain": write(plain),
        "hub": write(hub, names, compression="zstd"),
        "checksums": write(plain, write_page_checksum=True, use_dictionary=False, compression="none"),
    }
    read = lambda folder: _records(ParquetConfig(path=str(folder / "a.parquet")))  # noqa: E731
    return [Case(label, {"a.parquet": data}, {"a.parquet": m.mutate_bytes}, read) for label, data in files.items()]


def array_record() -> list[Case]:
    """A folder of records: the manifest, and a shard, whose size the manifest is told."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        records = [encode_record(JPEG, [f"caption {i}"], key=str(i), label=i % 2) for i in range(3)]
        write_records(Path(folder) / "r", {"train": records}, name="r", class_names=["a", "b"], source={})
        files = {path.name: path.read_bytes() for path in (Path(folder) / "r").iterdir()}
    shard = next(name for name in files if name.endswith("arrayrecord"))

    def read(folder: Path) -> None:
        _records(SourceConfig(path=str(folder), split="train"))

    def read_shard(folder: Path) -> None:
        manifest = json.loads(files["manifest.json"])
        manifest["splits"]["train"]["shards"][0]["bytes"] = (folder / shard).stat().st_size
        (folder / "manifest.json").write_text(json.dumps(manifest))
        read(folder)

    return [
        Case("manifest", files, {"manifest.json": m.of_json}, read),
        Case("shard", files, {shard: m.mutate_bytes}, read_shard),
        Case("reading", {"manifest.json": files["manifest.json"]}, {"manifest.json": m.of_json}, read_manifest),
    ]


def annotations() -> list[Case]:
    """JSON and JSON Lines of annotations, prompts and class names."""
    rows = {"0": {"filename": "a.jpg", "caption": "a cat", "negative_caption": "a dog"}, "1": {"caption": "x"}}
    prompts = {"cat": ["a cat.", "one cat."], "dog": ["a dog.", "my dog."]}
    prompts_of = {"imagenet": {"en": ["a photo of {c}.", "{c}"], "de": ["ein Foto von {c}."]}}

    def texts(name: str) -> Callable[[Path], Any]:
        def read(folder: Path) -> None:
            for row in read_rows(folder / name):
                row.text("caption")

        return read

    return [
        Case("json", {"a.json": json.dumps(rows).encode()}, {"a.json": m.of_json}, texts("a.json")),
        Case(
            "jsonl",
            {"a.jsonl": b"\n".join(json.dumps(row).encode() for row in rows.values())},
            {"a.jsonl": m.of_json_lines},
            texts("a.jsonl"),
        ),
        Case(
            "prompts",
            {"p.json": json.dumps(prompts).encode()},
            {"p.json": m.of_json},
            lambda f: read_class_prompts(f / "p.json"),
        ),
        Case(
            "templates",
            {"t.json": json.dumps(prompts_of).encode()},
            {"t.json": m.of_json},
            lambda f: read_templates(f / "t.json", "imagenet", "en"),
        ),
        Case(
            "lines", {"t.txt": b"a photo of {c}.\n{}\n"}, {"t.txt": m.of_lines}, lambda f: read_templates(f / "t.txt")
        ),
        Case("names", {"n.txt": b"cat\ndog\nemu\n"}, {"n.txt": m.of_lines}, lambda f: read_class_names(f / "n.txt")),
    ]


# reader -> (its cases, its share of the inputs)
READERS: dict[str, tuple[Callable[[], list[Case]], int]] = {
    "tars": (tars, 12),
    "captions": (captions, 6),
    "tables": (tables, 12),
    "parquet": (parquet, 6),
    "array_record": (array_record, 6),
    "annotations": (annotations, 8),
    "images": (images, 14),
    "weights": (lambda: [Case(*case) for case in model_files.weights()], 14),
    "model_directories": (lambda: [Case(*case) for case in model_files.directories()], 8),
    "tokenizers": (lambda: [Case(*case) for case in model_files.tokenizers()], 6),
    "checkpoints": (lambda: [Case(*case) for case in run_files.checkpoints()], 4),
    "experiments": (lambda: [Case(*case) for case in run_files.experiments()], 2),
    "logs": (lambda: [Case(*case) for case in run_files.logs()], 6),
}
