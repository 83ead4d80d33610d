"""Sections about a train step on a CPU, its start and its losses."""
# Lines of the page's Markdown may be long.
# ruff: noqa: E501

from __future__ import annotations

from typing import Any

from benchmarks import kept_memory, startup
from benchmarks.tables.words import NONE_YET, by_batch, describe_key, megabytes, origin, spread, table, times, unique


def quick(documents: dict[str, Any]) -> str:
    names = unique(name for document in documents.values() for name in document["ratios"])
    cells = [{name: spread(ratio) for name, ratio in document["ratios"].items()} for document in documents.values()]
    rows = [[name, *(cell.get(name, "-") for cell in cells)] for name in names]
    header = ["Ratio", *(describe_key(document["key"]) for document in documents.values())]
    measured = table(header, rows) if documents else "No processor has a baseline yet."
    return f"""\
## The ratios that matter, in four minutes

{origin(documents, "python -m benchmarks.quick --write")}

`make bench-quick` measures these ratios at small sizes, compares them with the baseline of the same processor (name,
cores, bfloat16 units) and jaxlib, and says what moved. [docs/bench_quick.md](../docs/bench_quick.md) has the rule, the
exit codes, and how to make a first baseline. Median, and in parentheses the lowest and the highest round. Higher is better.

{measured}"""


def start(documents: dict[str, Any]) -> str:
    tables = [
        f"{document['model']}"
        + (f", {document['depth']} layers" if document["depth"] else "")
        + ":\n\n"
        + startup.table(document["medians"])
        for document in documents.values()
    ]
    return "\n\n".join(
        [
            "## From the command to the first step",
            origin(documents, "python -m benchmarks.startup [--model=clip_vit_l14]") if documents else NONE_YET,
            "Medians of processes that end after their first step. [docs/startup.md](../docs/startup.md) says what happens "
            "in each phase.",
            *tables,
        ]
    )


def memory(documents: dict[str, Any]) -> str:
    return "\n\n".join(
        [
            "## Memory that is kept",
            origin(documents, "python -m benchmarks.kept_memory") if documents else NONE_YET,
            "A train step on CPU, its batch on the device. `kept` is what `clipjax train` does by default; `tunables` is "
            "the same through `GLIBC_TUNABLES`, and `arenas` is that without its one arena.",
            *(
                f"{document['machine']['processor']}:\n\n{kept_memory.table(document['medians'])}"
                for document in documents.values()
            ),
        ]
    )


def text_buckets(documents: dict[str, Any]) -> str:
    if not documents:
        return ""
    rows = [
        [document["model"], document["captions"], name, f"{seconds:.3f}", f"{document['ratio'][name]:.2f}",
         f"{document['ratio_by_flops'][name]:.2f}"]
        for document in documents.values()
        for name, seconds in document["processor_seconds"].items()
    ]  # fmt: skip
    header = ["Model", "Captions", "Texts", "Processor seconds a step", "Times as fast", "By FLOPs"]
    return f"""\
## Texts cut to the batch

{origin(documents, "python -m benchmarks.text_buckets")}

A step whose texts are cut to one length or to two, beside one that computes the whole context; what it computes is the same.

{table(header, rows)}"""


def train_step(documents: dict[str, Any]) -> str:
    rows = []
    for document in documents.values():
        for result in document.get("rows", [document]):
            if "open_clip" not in result:  # measured with --no_torch
                continue
            ours, theirs, products = result["clipjax"], result["open_clip"], result["matmul_gflops"]
            units = document["machine"].get("bfloat16_units")
            rows.append(
                [
                    document["machine"]["processor"]
                    + ("" if units is None else f", {', '.join(units) or 'no bfloat16'}"),
                    result.get("dtype", "float32"),
                    result["batch"],
                    result.get("memory", "huge pages" if result["huge_pages"] else "plain").replace("_", " "),
                    f"{ours['images_per_second']:.2f}",
                    f"{theirs['images_per_second']:.2f}",
                    f"{result['ratio']:.2f}",
                    f"{ours['share_of_peak']:.0%}",
                    f"{theirs['share_of_peak']:.0%}",
                    ", ".join(
                        f"{products[name]:.0f}" if name in products else "-" for name in ("numpy", "xla", "torch")
                    ),
                ]
            )
    rows.sort(key=lambda row: (row[0], row[1] != "float32", -row[2], row[3] != "plain"))
    header = [
        "Processor", "Precision", "Batch", "Memory", "clipjax, images/s", "open_clip, images/s", "Ratio",
        "clipjax's share of the matmul peak", "open_clip's", "Products: NumPy, XLA, PyTorch, GFLOP/s",
    ]  # fmt: skip
    return f"""\
## A train step beside open_clip

{origin(documents, "python -m benchmarks.train_step [--batch=4]")}

The whole train step of a ViT-B/32 CLIP with AdamW, compared with open_clip 3.3 on PyTorch 2.13 (which `make parity`
installs). A ratio above 1 means that clipjax is faster. bfloat16 is clipjax's `model.dtype`, and PyTorch's `autocast`.

{table(header, rows)}

**The ratio depends on the processor.** On one AMD processor, whose model was not recorded, PyTorch's matrix products run at
half the rate of XLA's; on the others, the three libraries' rates of float32 are within a third of one another. To compare across
processors, use the shares of the peak: they show how much of the machine's speed each library uses. A processor without
bfloat16 units gains nothing from bfloat16. [docs/cpu_speed.md](../docs/cpu_speed.md) says what the step spends its time
on, and what was changed for it.

Each row is the median of the turns that the two libraries take, each in its own process. The peak is the fastest rate
of plain 2,048 x 2,048 products in the same run and precision. Rows without bfloat16 units in their processor's name are
older, and were measured before the changes of that page: the AMD rows among them are medians of seven turns, and the rows of
the Intel processor with AMX of four or five, where the same cell differed by 15 to 20% between runs. Memory is malloc's
setting: `kept` keeps what is freed, as `clipjax train` does on a CPU; `huge pages` is
`GLIBC_TUNABLES=glibc.malloc.hugetlb=1`; `plain` is the default, with which the kernel clears the step's buffers at each
step, 4 KiB at a time."""


def losses(documents: dict[str, Any]) -> str:
    one, eight, planned = (documents[f"loss_memory_{name}"] for name in ("cpu_1", "cpu_8", "v5e_16x16"))
    rows = [
        [row["loss"], f"{row['batch']:,}", row["form"], megabytes(row, "temporaries_a_device"), *times(row)]
        for row in one["tables"]["one device"]
    ]
    header = ["Loss", "Global batch", "Form", "Temporaries, MB", "ms", "CPU ms"]
    return f"""\
## Losses

These tables measure the value and the gradients of the loss alone, for embeddings of width {one["width"]}. The forms are:

- `dense`: the textbook formula on a [B, B] matrix, partitioned by GSPMD.
- `reference`: what open_clip does with `local_loss` and `gather_with_grad`: it all-gathers the embeddings, computes the
  [b, B] logits of images and of texts, and differentiates them automatically.
- `all_gather`, `chunked`, `ring`: clipjax's `loss.comm`. `bf16` moves the embeddings as bfloat16 (`loss.dtype`).

### On one device

{origin({"loss_memory_cpu_1": one}, "python -m benchmarks.loss_memory --topology=cpu:1 --rounds=25")}

Medians of 25 runs; lower is better. "CPU ms" counts all threads.

{table(header, rows)}

The tiles save memory, not arithmetic. For softmax they compute 8 B² d FLOPs where the dense form computes 6 B² d, and take
about the same time with 1/18 of its temporaries. In eight runs of the benchmark, tiled softmax took 0.97 to 1.04 of the
dense time, and on a slower machine 1.08 to 1.09. Huge pages help the dense form more (640 ms). With them, tiled softmax
takes 1.08 to 1.15 of the dense time, at 0.37 to 0.40 TFLOP/s, where XLA's plain products reach 0.46; tiled sigmoid takes
0.83 to 0.91.

### On eight devices of one CPU

{origin({"loss_memory_cpu_8": eight}, "python -m benchmarks.loss_memory")}

Batches above 8,192 were compiled but not run. Lower is better in every table. Temporaries of a device, MB:

{by_batch(eight, "temporaries_a_device")}

Bytes received by a device, MB:

{by_batch(eight, "received_a_device")}

Milliseconds (and CPU milliseconds of all threads), medians of five runs:

{by_batch(eight, "seconds")}

### Planned for 256 TPU chips

{origin({"loss_memory_v5e_16x16": planned}, "python -m benchmarks.loss_memory --topology=v5e:16x16", planned=True)}

These were compiled for a v5e:16x16 slice but not run. Lower is better. Temporaries of a device, MB:

{by_batch(planned, "temporaries_a_device")}

Bytes received by a device, MB:

{by_batch(planned, "received_a_device")}

Milliseconds by the compiler's estimate, without transfers:

{by_batch(planned, "seconds")}"""
