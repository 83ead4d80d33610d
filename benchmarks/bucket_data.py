"""Measures how fast records come from a bucket, beside local files: kept on disk, being fetched, and never kept.

    python -m benchmarks.bucket_data                   # writes benchmarks/results/bucket_data.json

A server on loopback that answers Google Cloud Storage's requests for objects waits --latency_ms before each answer, as
a bucket in the machine's region does, and counts what is asked for. The same records (--image_bytes of random bytes as
the image, one caption) are read as tars, Parquet files and ArrayRecord in the order of a run, by --num_threads threads,
without decoding images. Loopback has no limit of bytes a second, which a real network has, and the server shares this
machine's cores: the numbers compare ways of reading, and are no measurement of a cloud.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import shutil
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import command, machine
from benchmarks.readers import write_tars
from clipjax.config import SourceConfig
from clipjax.data.mixture import fetch_ahead, make_order
from clipjax.data.read_ahead import read_batches
from clipjax.data.records import encode_record, write_records
from clipjax.data.sources import ParquetConfig, WebDatasetConfig, open_source
from clipjax.storage import as_path
from clipjax.storage.data_cache import use_cache

SHARDS, BATCH, ROWS = 8, 256, 100
NAMED = {"tars": WebDatasetConfig, "parquet": ParquetConfig, "records": SourceConfig}
MODES = ("local", "kept", "not kept")  # kept: in config.data.cache_dir; not kept: as where the data do not fit there


async def answer(folder: Path, latency: float, counts: dict[str, int], reader: Any, writer: Any) -> None:
    """One connection: objects' ranges, facts and lists, as far as gcsfs asks for them to read."""
    try:
        while request := await reader.readline():
            headers = {}
            while line := (await reader.readline()).strip():
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            url = urllib.parse.urlsplit(request.split()[1].decode())
            status, body = respond(folder, url, headers.get("range", ""))
            if url.path == "/counts":
                status, body = 200, json.dumps(counts).encode()
            else:
                counts["requests"] += 1
                counts["bytes"] += len(body)
                await asyncio.sleep(latency)
            writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


def respond(folder: Path, url: urllib.parse.SplitResult, wanted: str) -> tuple[int, bytes]:
    """(status, body). The bucket's objects are the files in `folder`."""

    def facts(path: Path) -> dict[str, Any]:
        name = path.relative_to(folder).as_posix()
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": "bucket",
            "size": str(path.stat().st_size),
            "generation": "1",
        }

    name = urllib.parse.unquote(url.path.partition("/o/")[2])
    if not name and url.path.endswith("/o"):
        prefix = urllib.parse.parse_qs(url.query).get("prefix", [""])[0]
        found = [facts(path) for path in sorted(folder.rglob("*")) if path.is_file()]
        return 200, json.dumps({"items": [row for row in found if row["name"].startswith(prefix)]}).encode()
    path = folder / name
    if not name or not path.is_file():
        return 404, b"{}"
    if not url.path.startswith("/download"):
        return 200, json.dumps(facts(path)).encode()
    span = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
    with open(path, "rb") as file:
        file.seek(int(span[1]) if span else 0)
        return (206 if span else 200), file.read(int(span[2]) + 1 - int(span[1]) if span and span[2] else -1)


def serve(folder: Path, latency: float, port: Any) -> None:
    """Serves until it is killed; tells its port."""
    counts = {"requests": 0, "bytes": 0}

    async def run() -> None:
        server = await asyncio.start_server(lambda *streams: answer(folder, latency, counts, *streams), "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def write_all(folder: Path, count: int, image_bytes: int) -> None:
    """The same records as tars, Parquet files and ArrayRecord, SHARDS of each."""
    rng = np.random.default_rng(0)
    records = [(f"{i:08d}", rng.bytes(image_bytes), f"a caption of some ten words, number {i}") for i in range(count)]
    write_tars(folder / "tars", records, SHARDS)
    (folder / "parquet").mkdir()
    for shard in range(SHARDS):
        columns = {
            "image": [image for _, image, _ in records[shard::SHARDS]],
            "text": [t for *_, t in records[shard::SHARDS]],
        }
        pq.write_table(pa.table(columns), folder / "parquet" / f"{shard}.parquet", row_group_size=ROWS)
    write_records(
        folder / "records", {"train": (encode_record(image, [text], key=key) for key, image, text in records)},
        name="bucket_data", source={"count": count}, records_per_shard=-(-count // SHARDS),
    )  # fmt: skip


def epochs(source: Any, num_threads: int) -> list[float]:
    """Seconds of the first and the second epoch, in the order of a run."""
    order = make_order(source, 0)

    def examples(first: int, count: int) -> tuple[dict[str, np.ndarray], list]:
        indices = [order[i] for i in range(first, first + count)]
        fetch_ahead(source, indices)
        return {"bytes": np.array([len(source[index]["image"]) for index in indices])}, []

    batches = len(source) // BATCH
    stream = read_batches(examples, rows=BATCH, first=0, stride=BATCH, num_batches=2 * batches, num_threads=num_threads)
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        for _ in range(batches):
            next(stream)
        seconds.append(time.perf_counter() - started)
    return seconds


def measure(kind: str, mode: str, root: str, server: str, cache: Path, num_threads: int) -> dict[str, Any]:
    """One way of reading, from an empty cache."""

    def counts() -> dict[str, int]:
        with urllib.request.urlopen(f"{server}/counts") as reply:
            return json.load(reply)

    shutil.rmtree(cache, ignore_errors=True)
    use_cache(str(cache), 8 if mode == "kept" else 0)
    before, started = counts(), time.perf_counter()
    source = open_source(NAMED[kind](path=f"{root}/{kind}"))
    opened = time.perf_counter() - started
    first, second = epochs(source, num_threads)
    after = counts()
    read = len(source) // BATCH * BATCH
    return {
        "kind": kind,
        "mode": mode,
        "seconds_to_open": round(opened, 2),
        "images_per_second": [round(read / first), round(read / second)],
        "requests_per_image": round((after["requests"] - before["requests"]) / (2 * read), 3),
        "bytes_per_image": round((after["bytes"] - before["bytes"]) / (2 * read)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=4_096, help="default %(default)s")
    parser.add_argument("--image_bytes", type=int, default=30_000, help="default %(default)s")
    parser.add_argument("--latency_ms", type=float, default=30.0, help="before each answer; default %(default)s")
    parser.add_argument("--num_threads", type=int, default=2, help="config.data.num_threads; default %(default)s")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "bucket_data.json")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "bucket"
        folder.mkdir()
        write_all(folder, options.records, options.image_bytes)
        port = context.Queue()
        process = context.Process(target=serve, args=(folder, options.latency_ms / 1e3, port), daemon=True)
        process.start()
        server = f"http://127.0.0.1:{port.get()}"
        os.environ |= {"STORAGE_EMULATOR_HOST": server, "NO_GCE_CHECK": "true"}
        as_path("gs://bucket").is_dir()  # imports the libraries and connects
        rows = []
        for kind in NAMED:
            for mode in MODES if kind != "records" else MODES[:2]:  # ArrayRecord is always read from copies
                root = str(folder) if mode == "local" else "gs://bucket"
                rows.append(measure(kind, mode, root, server, Path(name) / "cache", options.num_threads))
                print(rows[-1], flush=True)
        process.kill()
    document = {
        "server": "a process of this machine on loopback, with a wait before each answer",
        "records": options.records,
        "image_bytes": options.image_bytes,
        "latency_ms": options.latency_ms,
        "num_threads": options.num_threads,
        "rows": rows,
        "load_average": os.getloadavg()[0],
        "command": command("benchmarks.bucket_data"),
        "machine": machine(),
    }
    options.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
