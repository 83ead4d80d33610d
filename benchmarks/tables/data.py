"""Sections about reading and preparing data."""
# Lines of the page's Markdown may be long.
# ruff: noqa: E501

from __future__ import annotations

from typing import Any

from benchmarks.tables.words import origin, table


def input_pipeline(documents: dict[str, Any]) -> str:
    (document,) = documents.values()
    names = {
        "clipjax, processes": "clipjax, `worker_count=2`",
        "clipjax, threads": "clipjax, `num_threads=2`",
        "clipjax, threads, Pillow": 'clipjax, `num_threads=2`, `decoder="pillow"`',
        "tf.data": "tf.data, 2 threads",
        "PyTorch": "PyTorch, 2 workers",
    }
    rows = []
    for size, contenders in document["sizes"].items():
        cells = (contenders.get(name) for name in names)
        rows.append(
            [
                size.replace("x", " x "),
                *(f"{c['images_per_core_second']:.0f} ({c['ratio_to_pytorch']:.1f})" for c in cells),
            ]
        )
    turns = len(next(iter(contenders.values()))["turns"])
    return f"""\
## Training input beside PyTorch and tf.data

{origin(documents, f"python -m benchmarks.input_pipeline --rounds={turns}")}

Images per second of one core, and in parentheses the ratio to PyTorch's DataLoader with WebDataset and open_clip's
transform. Higher is better. Core seconds count only the time that a process computes, not the time that it waits for
other processes.

{table(["JPEG size", *names.values()], rows)}

Medians of {turns} turns. All contenders read the same JPEGs and return {document["output"]}. clipjax gains by decoding at a
fraction of the size and by leaving normalisation to the device. It gains nothing in Pillow's bicubic resize, which
clipjax and PyTorch's transform both run and which is most of the work at 256 x 256. The pictures are drawn (noise with a photograph's spectrum, and
ellipses); their sizes in bytes are those of photographs. tf.data's captions are not tokenised.

`data_wait`, the share of time a step waits for data, was at most {max(document["data_wait"]):.5f} after the first step of a
training run on the {size.replace("x", " x ")} pictures (ViT-B/32 with three layers in each tower, batch 32)."""


def frozen_tower(documents: dict[str, Any]) -> str:
    (document,) = documents.values()
    seconds = document["processor_seconds"]
    rows = [[name, f"{value:.2f}"] for name, value in seconds.items()]
    return f"""\
## A frozen tower's embeddings, stored

{origin(documents, "python -m benchmarks.frozen_tower --batch=16")}

{document["model"]}. Processor seconds of a step; lower is better.

{table(["Step", "Processor seconds"], rows)}

Reading the embeddings that `clipjax embed` stored makes the step {document["ratio"]:.1f} times as fast. By the towers' FLOPs
it would be {document["ratio_by_flops"]:.1f} times; the difference is the optimizer and the embedding table's gradient, which
both steps have. Decoding, which only the step with the image tower needs, is not included."""


def readers(documents: dict[str, Any]) -> str:
    (document,) = documents.values()
    rows = []
    for name, rate in document["records_per_cpu_second"].items():
        slowest, fastest = document["slowest_and_fastest_repeat"][name]
        opens = (document[key].get(name) for key in ("cpu_seconds_to_open", "cpu_seconds_to_open_again"))
        seconds = ["-" if value is None else f"{value:.3f}" for value in opens]
        rows.append([name, f"{rate:,}", f"{slowest:,} to {fastest:,}", *seconds])
    header = ["Source", "Records per CPU second", "Slowest and fastest repeat", "CPU s to open", "CPU s to open again"]
    return f"""\
## Reading records

{origin(documents, "python -m benchmarks.readers")}

{document["records"]:,} records with {document["image_bytes"]:,} bytes of image each, read in a random order by one thread,
without decoding. Higher is better.

{table(header, rows)}

The machine was busy (load average {document["load_average"]:.0f}), so compare only large differences. `tarfile` is Python's
module, reading the same tars after they were opened and listed. WebDataset opens slowly the first time because it indexes the tars.
Parquet decodes a whole row group ({document["rows_of_a_parquet_group"]} rows) at once, so its repeats differ widely."""


def bucket_data(documents: dict[str, Any]) -> str:
    (document,) = documents.values()
    rows = [
        [
            row["kind"],
            row["mode"],
            f"{row['seconds_to_open']:.1f}",
            *(f"{rate:,}" for rate in row["images_per_second"]),
            f"{row['requests_per_image']:.3f}",
            f"{row['bytes_per_image']:,}",
        ]
        for row in document["rows"]
    ]
    header = [
        "Data",
        "Read",
        "Seconds to open",
        "Images/s, epoch 1",
        "Epoch 2",
        "Requests per image",
        "Bytes per image",
    ]
    return f"""\
## Data in a bucket

{origin(documents, "python -m benchmarks.bucket_data")}

{document["records"]:,} records with {document["image_bytes"]:,} bytes of image each, in the order of a run, by {document["num_threads"]} threads,
without decoding. The server was {document["server"]} ({document["latency_ms"]:.0f} ms): no cloud was measured, and loopback has no
limit of bytes per second. Requests and bytes are those of opening and two epochs, per image that was read.

{table(header, rows)}

"kept" are blocks (ArrayRecord: whole shards) in `config.data.cache_dir`; opening tars reads them once for their indexes, which
also fills the cache. "not kept" is how data are read that are larger than the cache: one request per sample or row group. The
machine was busy (load average {document["load_average"]:.0f}), so compare only large differences. These Parquet files fit into the decoded
row groups that a process keeps, so that their second epoch reads nothing."""


def emoji(documents: dict[str, Any]) -> str:
    (document,) = documents.values()
    rows = [
        [
            row["loss"],
            f"{row['top1']:.1%} ({row['top1_low']:.1%} to {row['top1_high']:.1%})",
            f"{row['top5']:.1%}",
            f"{row['times_chance']} times",
            f"{row['cpu_minutes']} min",
        ]
        for row in document["rows"]
    ]
    return f"""\
## Emoji in a style never seen

{origin(documents, "clipjax train --config=experiments/emoji.py --config.total_steps=650 --config.loss.name=LOSS")}

Zero-shot accuracy on Twemoji's drawings, choosing among {document["names"]:,} names, after {document["steps"]} steps with a
batch of {document["batch"]} on the drawings of three other artists. In parentheses are 95% intervals. Higher is better.

{table(["Loss", "Top-1", "Top-5", "Top-1 over chance", "CPU time"], rows)}

The intervals overlap: this run does not tell the two losses apart. [docs/emoji.md](../docs/emoji.md) says what limits both."""
