"""Tiny sets of true and false captions, laid out on disk as the published ones are.

Picture n is grey of level 10 n; its true caption begins with "picture n", and false ones with "no n".
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.data.samples import encoded


def picture(number: int, width: int = 12, height: int = 8) -> bytes:
    return encoded(Image.fromarray(np.full((height, width, 3), 10 * number, np.uint8)))


def in_a_box(number: int) -> bytes:
    """Picture n only in the box 4, 2 of 6 x 5 pixels; the rest is picture 0's grey."""
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[2:7, 4:10] = 10 * number
    return encoded(Image.fromarray(pixels))


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_images(folder: Path, images: dict[str, bytes]) -> None:
    for name, data in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def write_rows(path: Path, rows: list[dict], image_columns: tuple[str, ...]) -> None:
    """Parquet as Hugging Face writes it: images are {bytes, path}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    arrays = {
        name: pa.array([{"bytes": data, "path": "x.png"} for data in values], image)
        if name in image_columns
        else values
        for name, values in columns.items()
    }
    pq.write_table(pa.table(arrays), path, row_group_size=3)


def sugarcrepe(folder: Path) -> Path:
    """Two of the seven files, 4 and 2 records, whose keys are not contiguous, beside val2017."""
    sizes, number = {"add_att": 4, "swap_obj": 2}, 0
    for name, size in sizes.items():
        records = {}
        for key in range(size):
            number += 1
            records[str(3 * key)] = {
                "filename": f"{number:012d}.png",
                "caption": f"picture {number}",
                "negative_caption": f"no {number}",
            }
        write_json(folder / f"{name}.json", records)
    write_images(folder / "val2017", {f"{n:012d}.png": picture(n) for n in range(1, number + 1)})
    return folder


def sugarcrepe_parquet(folder: Path) -> Path:
    rows = [{"images": picture(n), "caption": f"picture {n}", "negative_caption": f"no {n}"} for n in range(1, 7)]
    write_rows(folder / "data" / "train-00000-of-00001.parquet", rows, ("images",))
    return folder / "data"


def aro(folder: Path, attributes: bool = False) -> Path:
    """Six records in three groups, whose picture is in the box only."""
    records = []
    for n in range(1, 7):
        group = {"attributes": ["open", f"white{n % 3}"]} if attributes else {"relation_name": f"on{n % 3}"}
        records.append(
            {
                "image_id": n,
                "image_path": f"{n}.png",
                "bbox_x": 4,
                "bbox_y": 2,
                "bbox_w": 6,
                "bbox_h": 5,
                "true_caption": f"picture {n}",
                "false_caption": f"no {n}",
                **group,
            }
        )
    path = folder / ("visual_genome_attribution.json" if attributes else "visual_genome_relation.json")
    write_json(path, records)
    write_images(folder / "images", {f"{n}.png": in_a_box(n) for n in range(1, 7)})
    return path


def aro_order(folder: Path) -> Path:
    """Six records with four false captions each; one of record 0 is the true one again."""
    rows = []
    for n in range(1, 7):
        false = {f"hard_text_{k}": f"no {n} {k}" for k in range(1, 5)}
        rows.append({"images": picture(n), "correct_caption": f"picture {n}", **false})
    rows[0]["hard_text_3"] = rows[0]["correct_caption"]
    write_rows(folder / "test-00000-of-00001.parquet", rows, ("images",))
    return folder


def winoground_records() -> list[dict]:
    return [
        {
            "id": n,
            "image_0": f"ex_{n}_img_0",
            "image_1": f"ex_{n}_img_1",
            "caption_0": f"picture {2 * n + 1}",
            "caption_1": f"picture {2 * n + 2}",
            "tag": "Noun",
            "collapsed_tag": "Object" if n % 2 else "Relation",
        }
        for n in range(5)
    ]


def winoground(folder: Path) -> Path:
    lines = [json.dumps(record) for record in winoground_records()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "examples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_images(folder / "images", {f"ex_{n}_img_{i}.png": picture(2 * n + 1 + i) for n in range(5) for i in range(2)})
    return folder


def winoground_parquet(folder: Path) -> Path:
    rows = [
        {**record, "image_0": picture(2 * n + 1), "image_1": picture(2 * n + 2)}
        for n, record in enumerate(winoground_records())
    ]
    write_rows(folder / "test-00000-of-00001.parquet", rows, ("image_0", "image_1"))
    return folder


def crossmodal(folder: Path) -> Path:
    """XM3600 in two languages as CLIP_benchmark writes it, with the paths of the machine where it was written."""
    paths = [f"/elsewhere/root/xm3600/images/{n:02d}.png" for n in range(1, 7)]
    for language, captions in (("de", [f"picture {n}" for n in range(1, 7)]),
                               ("fil", [[f"picture {n}", f"picture {n}"] for n in range(1, 7)])):  # fmt: skip
        document = {"image_paths": paths, "annotations": captions, "indicies": list(range(6))}
        write_json(folder / f"crossmodal3600_captions-{language}.json", document)
    write_images(folder / "xm3600" / "images", {f"{n:02d}.png": picture(n) for n in range(1, 7)})
    return folder
