"""Measures how many records each source reads per CPU second, in the order of a run, without decoding images.

    python -m benchmarks.readers                       # writes benchmarks/results/readers.json

The same records (20 KB of random bytes as the image, one caption) are written in every format and read in a random
order by one thread. The script takes the process's CPU time, which a busy machine disturbs less than wall time. Files
are in the page cache. Repeats are interleaved and all of them count: Parquet decodes many rows at once, then hands them
out. `tarfile` is Python's module on the same tars, opened and listed before.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import command, machine
from clipjax.config import SourceConfig
from clipjax.data.mixture import Mixture, make_order
from clipjax.data.records import encode_record
from clipjax.data.sources import FolderConfig, ParquetConfig, WebDatasetConfig, open_source
from clipjax.data.write import write_records

IMAGE_BYTES, GROUP = 20_000, 100


def write_all(folder: Path, count: int) -> dict[str, SourceConfig]:
    """Writes `count` records in each format and returns a source for each."""
    rng = np.random.default_rng(0)
    records = [(f"{i:08d}", rng.bytes(IMAGE_BYTES), f"a caption of some ten words, number {i}") for i in range(count)]
    write_records(
        folder / "records", {"train": (encode_record(image, [text], key=key) for key, image, text in records)},
        name="readers", source={"count": count},
    )  # fmt: skip
    write_tars(folder / "tars", records, 4)
    columns = {"image": [image for _, image, _ in records], "text": [text for _, _, text in records]}
    pq.write_table(pa.table(columns), folder / "rows.parquet", row_group_size=GROUP)
    (folder / "images").mkdir()
    with open(folder / "images" / "table.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"])
        for key, image, text in records:
            (folder / "images" / f"{key}.jpg").write_bytes(image)
            (folder / "images" / f"{key}.txt").write_text(text)
            table.writerow([f"{key}.jpg", text])
    return {
        "array_record": SourceConfig(path=str(folder / "records")),
        "webdataset": WebDatasetConfig(path=str(folder / "tars")),
        "parquet": ParquetConfig(path=str(folder / "rows.parquet")),
        "folder, sidecars": FolderConfig(path=str(folder / "images")),
        "folder, table": FolderConfig(path=str(folder / "images" / "table.csv")),
    }


def write_tars(folder: Path, records: Sequence[tuple[str, bytes, str]], shards: int) -> None:
    """Writes (key, image, caption) as that many tars; record i goes into tar i % shards."""
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for key, image, text in records[shard::shards]:
                for name, content in ((f"{key}.jpg", image), (f"{key}.txt", text.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def reads(source: object, seed: int = 0) -> Callable[[int, int], None]:
    order = make_order(source, seed)

    def read(first: int, count: int) -> None:
        for i in range(first, first + count):
            source[order[i]]

    return read


def tarfile_reads(folder: Path, count: int) -> Callable[[int, int], None]:
    tars = [tarfile.open(path) for path in sorted(folder.glob("*.tar"))]
    members = [list(tar) for tar in tars]
    order = np.random.default_rng(0).permutation(count)

    def read(first: int, number: int) -> None:
        for i in order[first % count : first % count + number]:
            tar, place = divmod(int(i), count // 4)
            for member in members[tar][2 * place : 2 * place + 2]:
                tars[tar].extractfile(member).read()

    return read


def cpu_seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000, help="a multiple of four; default %(default)s")
    parser.add_argument("--reads", type=int, default=2_000, help="of each source in each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "readers.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        configs = write_all(Path(folder), options.records)
        opened = {name: cpu_seconds(lambda c=config: open_source(c)) for name, config in configs.items()}
        again = {name: cpu_seconds(lambda c=config: open_source(c)) for name, config in configs.items()}
        sources = {name: open_source(config) for name, config in configs.items()}
        runs = {name: reads(source) for name, source in sources.items()}
        two = {name: sources[name] for name in ("array_record", "webdataset")}
        runs["mixture of array_record and webdataset"] = reads(Mixture(two, dict.fromkeys(two, 1.0)))
        runs["tarfile"] = tarfile_reads(Path(folder) / "tars", options.records)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(options.repeats):
            for name, read in runs.items():
                first, count = repeat * options.reads, options.reads
                seconds[name].append(cpu_seconds(lambda r=read, f=first, n=count: r(f, n)) / count)
    document = {
        "records": options.records,
        "image_bytes": IMAGE_BYTES,
        "rows_of_a_parquet_group": GROUP,
        "records_per_cpu_second": {name: round(len(values) / sum(values)) for name, values in seconds.items()},
        "slowest_and_fastest_repeat": {
            name: [round(1 / max(values)), round(1 / min(values))] for name, values in seconds.items()
        },
        "cpu_seconds_to_open": {name: round(value, 3) for name, value in opened.items()},
        "cpu_seconds_to_open_again": {name: round(value, 3) for name, value in again.items()},
        "load_average": os.getloadavg()[0],
        "command": command("benchmarks.readers"),
        "machine": machine(),
    }
    options.out.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
