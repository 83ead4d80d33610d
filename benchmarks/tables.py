"""Writes benchmarks/README.md and benchmarks/details.md from benchmarks/results/*.json.

    python -m benchmarks.tables            # rewrites the pages
    python -m benchmarks.tables --check    # exits with 1 when a page is not what the JSON gives

README.md is one table, made in benchmarks.overview; details.md has all figures. A section of it is a function below: its
words stand beside the numbers that they explain. Every JSON file must belong to a section and to a row of the table, so
that no result is forgotten.
"""
# Lines of the page's Markdown may be long.
# ruff: noqa: E501

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks import kept_memory, scaling_plan, startup
from benchmarks.gpu_tables import gpu_step
from benchmarks.overview import make_overview, table, unique

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent / "README.md"
DETAILS = Path(__file__).parent / "details.md"

HEAD = """\
# Benchmarks in detail

`python -m benchmarks.tables` writes this page, and the table of [all benchmarks](README.md), from the JSON files in
[results](results); edit the script, not the page. Each section gives the command, the machine that its JSON records, and
how to read the table. "Not recorded" means that the JSON was written before the scripts recorded processor and versions.
If a section names a source, its numbers were copied into the JSON by hand."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a page would change")
    args = parser.parse_args()
    for path, text in make_pages().items():
        if not args.check:
            path.write_text(text, encoding="utf-8")
        elif not is_current(text, path):
            sys.exit(f"{path} is not what the JSON gives; run: python -m benchmarks.tables")


def is_current(text: str, page: Path) -> bool:
    """Whether the page exists and holds exactly this text."""
    return page.exists() and page.read_text(encoding="utf-8") == text


def make_pages(results: Path = RESULTS) -> dict[Path, str]:
    """Returns {page: its text}. Raises ValueError when a JSON file belongs to no section or row."""
    documents = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))}
    return {PAGE: make_overview(documents), DETAILS: make_details(documents)}


def make_details(documents: dict[str, Any]) -> str:
    """Returns the page of all sections. documents: {name of the JSON: its content}."""
    left = dict(documents)
    parts = [HEAD]
    for prefixes, section in SECTIONS.items():
        mine = {name: left.pop(name) for name in documents if name in left and name.startswith(prefixes)}
        parts.append(section(mine))
    if left:
        raise ValueError(f"No section of benchmarks/tables.py shows {', '.join(left)}.")
    return "\n\n".join(filter(None, parts)) + "\n"


# Sections: {name of the JSON: its content} -> Markdown.


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


def plans(documents: dict[str, Any]) -> str:
    rows = []
    for name in ("plan_siglip_b16_v5e_16x16", "plan_clip_l14_v5p_8x8x4", "plan_siglip_so400m_v6e_16x16"):
        for plan in documents[name]:
            memory, time, mesh = plan["memory"], plan["time"], plan["mesh"]
            rows.append(
                [
                    MODELS[name],
                    f"`loss.comm={plan['loss']['comm']}`"
                    + (f", `mesh.fsdp={mesh['fsdp']}`" if mesh["fsdp"] > 1 else ""),
                    f"`{plan['topology']}`",
                    f"{plan['global_batch_size']:,}",
                    f"{memory['total'] / 2**30:.2f} of {memory['available'] / 2**30:.2f}",
                    f"{time['estimated_seconds'] * 1e3:.1f}",
                    f"{time['estimated_mfu']:.1%}",
                    f"{time['at_least']['matrix units'] * 1e3:.1f}",
                    f"{plan['compile_seconds']:.0f} s",
                ]
            )
    header = [
        "Model", "Settings", "Slice", "Global batch", "Memory of a device, GiB", "Step, ms (estimated)",
        "MFU (estimated)", "Matrix units alone, ms", "Compiled in",
    ]  # fmt: skip
    plan_files = {name: documents[name] for name in MODELS}
    changes, remat = documents["plan_changes_siglip_b16"], documents["remat_siglip_b16"]
    change_rows = [
        [row["change"], row["slice"], f"{row['milliseconds']}", f"{row['mfu']:.1%}"] for row in changes["rows"]
    ]
    remat_rows = [
        [
            f"`{row['remat']}`", f"`{row['attention']}`", row["layers"], f"{row['temporaries_gib']:.2f}",
            f"{row['milliseconds']:.1f}",
        ]
        for row in remat["rows"]
    ]  # fmt: skip
    return f"""\
## Planned train steps

{origin(plan_files, "clipjax plan --config=experiments/siglip_b16.py --topology=v5e:16x16 --out=FILE.json", planned=True)}

Use these estimates to compare settings: nothing here ran on a TPU. `clipjax plan` compiled each experiment's train step
for the slice on two CPU cores, whose processor the JSON does not record. [docs/plan.md](../docs/plan.md) says how each
figure is known.

{table(header, rows)}

Since [the last block computes only what is pooled](../docs/padding.md#the-last-block-computes-only-what-is-pooled), without keys
and values there and in the MAP head, these steps take 141.2 ms instead of 146.0 (B/16), 212.3 instead of 217.2 (So400m)
and 201.4 instead of 208.7 (L/14), by the same estimate.

Plans depend on the compiler: with libtpu 0.0.52, the MFU of SigLIP B/16 is 57.5%, and 60.4% with `chunked`.

### What each change gave SigLIP B/16

{origin({"plan_changes_siglip_b16": changes}, "clipjax plan --config=experiments/siglip_b16.py", planned=True)}

Each row keeps the changes above it.

{table(["Change", "Planned for", "Step, ms (estimated)", "MFU"], change_rows)}

Of B/16's 150 ms, the matrix units alone need 91 ms. Matrix products, with LayerNorm, GELU and biases fused into them, run
at 72% (image) and 80% (text) of the units' peak. The optimizer takes 15 ms and is limited by memory. Attention takes 14 ms,
because its heads of 64 channels fill half of a 128-wide matrix unit. One copy of the pixels into patches takes 1.3 ms. The
image tower of So400m reaches half of its chip's peak: a v6e has 3.5 times as many FLOPs per byte from memory as a v5p, so
the reads and writes of LayerNorm, GELU and the residuals weigh more.

These changes were tried and not kept. Each is given with the change in time:

- attention logits in bfloat16: -8% of plain attention's time, but the logits are rounded to three digits;
- attention weights normalised after the product: +50% of plain attention's time;
- batch and heads transposed before the products: -2%;
- gradients of the biases as plain sums, with the kernels: +1%;
- `mesh.fsdp=4`: +4%, because transfers no longer fuse with the products;
- the optimizer's state and update divided over the data axis (ZeRO-1): +8%;
- q, k and v as one forward product: a copy of 1 ms in each layer;
- L/14 scanned with `remat=none`: +36% over scanned with `dots`;
- a kernel's products delayed until after the next softmax: no change.

{so400m_changes(documents["plan_changes_so400m"])}

### Rematerialisation of SigLIP B/16

{origin({"remat_siglip_b16": remat}, "clipjax plan --config=experiments/siglip_b16.py --config.model.image.remat=REMAT", planned=True)}

Planned for {remat["device"]}; lower is better. [docs/mesh.md](../docs/mesh.md) says what each setting keeps.

{table(["`remat`", "`attention`", "Layers", "Temporaries, GiB", "Step, ms (estimated)"], remat_rows)}{gpu_plans(documents)}"""


def scaling(documents: dict[str, Any]) -> str:
    document = documents["scaling_plan"]
    ratios = [row["modelled_seconds"] / row["compiled_seconds"] for row in document["losses_compared"]]
    return f"""\
## From 8 to 1,024 chips

{origin(documents, "python -m benchmarks.scaling_plan")}

How much of a step is not exchange and loss, with {document["rows_a_chip"]} pairs a chip, and in brackets the milliseconds
of the loss. Nothing here ran on a TPU. **Compiled**: the towers and the optimizer, from the plans of 256 chips above; a
chip's share of them is the same for every number of chips. **Modelled**: the loss, by the cost model with which
`loss.comm=auto` chooses, and the sum of gradients over the links and the data-centre network, beside the backward pass. In
the last column no transfer is hidden: nothing of the sum runs beside the backward pass. v5e slices end at 256 chips, so
512 and 1,024 are two and four slices. [docs/scaling.md](../docs/scaling.md) explains the rows.

{scaling_plan.efficiencies(document)}

Compiled figures beside modelled ones. Compiled milliseconds are the compiler's estimate. Bytes between slices are counted
in the compiled program of a slice; waiting for them is in no compiled figure, and modelled as 0.2 ms for each exchange that
waits for another. Of the {len(ratios)} compiled losses of [v5e:16x16](#losses), modelled times are {min(ratios):.2f} to
{max(ratios):.2f} times the compiled ones, {statistics.median(ratios):.2f} in the median.

{scaling_plan.checks(document)}

The step of 512 chips takes longer than modelled: between slices `auto` takes `all_gather`, beside which the compiler lays
out the image tower worse (110 ms instead of 91; 101 in one slice), and it sums the gradients in smaller pieces."""


def gpu_plans(documents: dict[str, Any]) -> str:
    """The part of "Planned train steps" about GPUs; "" where no JSON is a plan for one."""
    files = {
        name: document
        for name, document in documents.items()
        if isinstance(document, list) and str(document[0].get("device_kind", "")).startswith("NVIDIA")
    }
    if not files:
        return ""
    rows = []
    for name, document in files.items():
        for plan in document:
            memory, time = plan["memory"], plan["time"]
            kinds = {row["kind"]: row["seconds"] for row in time["work"]}
            products, attention = kinds.pop("product", 0.0), kinds.pop("attention", 0.0)
            parts = (products, attention, sum(kinds.values()), time["transfers"]["waited_for"])
            model = name.removeprefix("plan_").removesuffix("_" + plan["topology"].replace(":", "_").replace("*", "x"))
            rows.append(
                [
                    GPU_MODELS.get(model, model),
                    ", ".join(f"`{setting}`" for setting in gpu_settings(plan)),
                    f"`{plan['topology']}`",
                    f"{plan['global_batch_size']:,}",
                    f"{memory['total'] / 2**30:.2f} of {memory['available'] / 2**30:.2f}",
                    f"{time['estimated_seconds'] * 1e3:.1f}",
                    f"{time['estimated_mfu']:.1%}",
                    *(f"{seconds * 1e3:.1f}" for seconds in parts),
                    f"{plan['compile_seconds']:.0f} s",
                ]
            )
    header = [
        "Model", "Settings", "GPUs", "Global batch", "Memory of a card, GiB", "Step, ms (estimated)", "MFU (estimated)",
        "Products", "Fused attention", "Other kernels", "Waiting for transfers", "Compiled in",
    ]  # fmt: skip
    changes = {
        name: document for name, document in documents.items() if name.startswith("plan_changes_") and "gpu" in name
    }
    return f"""

### Planned for GPUs

{origin(files, "clipjax plan --config=FILE --topology=h100:8 --out=FILE.json", planned=True)}

Nothing here ran on a GPU. The times are a roofline over the compiled instructions, with the factors that each JSON lists
and [docs/plan.md](../docs/plan.md) explains; memory and transfers are those of the compiled program. The four columns after
the MFU say what the step consists of, in milliseconds; what else is missing to its sum is computation that transfers slow
down.

{table(header, rows)}""" + "".join(gpu_changes(name, document) for name, document in changes.items())


def gpu_settings(plan: dict[str, Any]) -> list[str]:
    """The settings that a plan adds to its experiment file: mesh.fsdp, and what --compare overrides."""
    fsdp = plan["mesh"]["fsdp"]
    return ([f"mesh.fsdp={fsdp}"] if fsdp > 1 else []) + ([plan["overrides"]] if plan["overrides"] else [])


def gpu_changes(name: str, document: dict[str, Any]) -> str:
    """What each change to a model gave on GPUs, by plans; each row keeps the changes above it."""
    rows = [
        [row["change"], f"`{row['topology']}`", f"{row['milliseconds']:.1f}", f"{row['mfu']:.1%}"]
        for row in document["rows"]
    ]
    return f"""

### What each change gave {document["model"]} on GPUs

{origin({name: document}, "clipjax plan", planned=True)}

Each row keeps the changes above it. These estimates are older than the measured step that the factors were fitted to; with
today's factors all of them would be slower.

{table(["Change", "Planned for", "Step, ms (estimated)", "MFU (estimated)"], rows)}"""


def so400m_changes(document: dict[str, Any]) -> str:
    rows = [
        [
            row["change"], row["part"],
            *("-" if row[name] is None else f"{row[name]:.2f}" for name in ("before", "predicted", "obtained")),
            "yes" if row["kept"] else "no",
        ]
        for row in document["rows"]
    ]  # fmt: skip
    block = [
        [row["products"], *(f"{row[name]:.2f}" for name in ("ideal", "forward", "input", "weights"))]
        for row in document["block"]
    ]
    others, alone = " and ".join(f"{name} {ms:.2f} ms" for name, ms in document["others"].items()), document["products"]
    return f"""\
### Where SigLIP So400m's time goes

{origin({"plan_changes_so400m": document}, "clipjax plan", planned=True)}

An image block of So400m on one v6e chip with 128 images, in ms by the compiler's estimate: what the matrix units alone
need for each product, what the product takes forward, and what the gradients of its input and of its weights take. Beside
them, {others}.

{table(["Products", "Matrix units alone", "Forward", "Gradient of the input", "Gradient of the weights"], block)}

Predicted (where a figure was) and obtained, in ms; a change that was kept is part of clipjax:

{table(["Change", "Of what", "Before", "Predicted", "Obtained", "Kept"], rows)}

The gradient of the input of `down` takes 0.80 ms with GELU's derivative and 0.79 ms with a product by a stored slope, so
reads and writes of the wide arrays hold it back, not the arithmetic; storing one more of them costs more than computing
GELU again. Rows of an MLP differ in how they add up biases and residuals, and compare only with each other.

What the compiler makes of the products alone sets a limit. One by one, with 48 MiB of vector memory, a block's products
take {alone["forward"]:.2f} ms forward, {alone["input"]:.2f} ms for the gradients of their inputs and {alone["weights"]:.2f} ms for those of the matrices. Of the 0.59 ms
of `up`, the matrix units need 0.35 and rounding the result to bfloat16 takes 0.15. Were norms, GELU, biases and residuals
free, the whole step would reach an MFU of {alone["limit"]:.1%}."""


def soak(documents: dict[str, Any]) -> str:
    rows = []
    for name, document in documents.items():
        data, kills = name.split("_")[1], document["kills"]
        after_step = document.get("kills_after_the_first_step_of_a_life")
        if after_step is None:
            after_step = sum(kills.values()) - document["killed_before_the_first_step_of_that_life"]
        memory = document["memory_mb_per_1000_steps"]["whole"]
        same = "equal" if document["equal"] else "NOT equal"
        rows.append(
            [
                f"{data} ([JSON](results/{name}.json), [picture](../docs/images/{name}.png))",
                f"{sum(kills.values())} ({kills['SIGKILL']} SIGKILL, {kills['SIGTERM']} SIGTERM)",
                after_step,
                f"{document['steps']:,}",
                document["bad_records"],
                f"{same}, all {document['arrays']} arrays" if document["equal"] else same,
                f"{memory:.1f}",
                f"{document['seconds']['killed'] / 60:.0f}",
            ]
        )
    header = [
        "Data", "Kills", "After the life's first step", "Steps", "Damaged records", "Curves, states, bad records",
        "MB gained in 1,000 steps", "Minutes",
    ]  # fmt: skip
    command = "python -m benchmarks.soak --config=benchmarks/soak_DATA.py:data --workdir=runs/soak --name=NAME"
    return f"""\
## Killed and restarted

{origin(documents, f"{command} --kills=100 (or --minutes=30) -- --config.total_steps=STEPS", files=False)}

Two runs of each experiment ran side by side, each on one core. One was left alone; the other was killed at random moments
and started again. The last states must be equal in every bit, the curves in every number, and `bad_records.jsonl` in every
byte.

{table(header, rows)}

"After the life's first step" counts the kills that came after the restarted process had completed a step. Memory is that
of the run left alone. scenes and emoji were measured before the soak set `MALLOC_ARENA_MAX=1`; most of their gain is memory
that glibc keeps for each thread. [docs/reliability.md](../docs/reliability.md) says where the rest goes."""


def kills(documents: dict[str, Any]) -> str:
    rows = []
    for name, document in sorted(documents.items(), key=lambda item: item[1]["processes"]):
        signals, phases = document["by_signal"], document["by_phase"]
        rows.append(
            [
                f"{document['processes']} ([JSON](results/{name}.json))",
                f"{document['kills']} ({signals.get('SIGKILL', 0)} SIGKILL, {signals.get('SIGTERM', 0)} SIGTERM)",
                ", ".join(f"{phase} {count}" for phase, count in phases.items()),
                document["runs"],
                f"equal, all {document['arrays']} arrays" if document["equal"] else "NOT equal",
                f"{document['seconds'] / 60:.0f}",
            ]
        )
    header = ["Processes", "Kills", "In", "Runs", "Curves, states, bad records", "Minutes"]
    return f"""\
## Killed in every phase

{origin(documents, "python -m benchmarks.kills --workdir=runs/kills --processes=N --kills=KILLS", files=False)}

Runs of a tiny model on data with damaged records, killed in each of their lives and started again until they reach their
last step. Every run must end like one left alone: the state in every bit, the curve in every number, `bad_records.jsonl` in
every byte; and a life must end killed, saved, or finished.

{table(header, rows)}

"In" is what the process was doing when the signal came; "checkpoint" includes a checkpoint that a thread was writing while
the run went on. SIGTERM goes to one process, which saves together with the others. SIGKILL to one of several is followed by
SIGKILL to the others; in two lives of a hundred the others are left to notice."""


def fuzz(documents: dict[str, Any]) -> str:
    document = documents["fuzz"]
    rows = [
        [
            reader, f"{row['value'] + row['refused'] + row['fault']:,}", f"{row['value']:,}", f"{row['refused']:,}",
            row["fault"], f"{row['slowest']:.1f}", f"{row['memory'] / 2**20:,.0f}",
        ]
        for reader, row in sorted(document["readers"].items())
    ]  # fmt: skip
    limits = document["limits"]
    return f"""\
## Damaged and hostile files

{origin(documents, document["command"])}

{document["inputs"]:,} small files of every format, changed in bits, lengths, pieces, and in what the format is made of, with
seed {document["seed"]}. "Value": the reader gave one, of the type and within the bounds that it promises. "Refused": one of
clipjax's errors, in clean text. All else is a fault: another exception, the end of the process, more than
{limits["seconds"]} s of processor time or {limits["memory"] >> 20:,} MB for the whole process. The slowest input and the
highest memory, most of which Python and its libraries take before the first input, are in the last columns.

{table(["Reader", "Inputs", "Value", "Refused", "Faults", "Slowest, s", "MB"], rows)}

Native libraries bound what Python cannot: a crash in one would end a command without a clean line. The script found one in
Arrow 25, whose statistics of a damaged Parquet file end the process, and clipjax no longer asks for them."""


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


def spread(ratio: dict[str, Any]) -> str:
    samples = ratio["samples"]
    return f"{statistics.median(samples):.2f} ({min(samples):.2f} to {max(samples):.2f})"


def describe_key(key: dict[str, Any]) -> str:
    return f"{key['processor']}, {key['cores']} cores, {key['bfloat16']}; jaxlib {key['jaxlib']}"


# The first section whose prefix fits takes a file.
NONE_YET = "No results are kept yet."


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


SECTIONS = {
    ("quick_",): quick,
    ("startup_",): start,
    ("kept_memory",): memory,
    ("text_buckets",): text_buckets,
    ("train_step",): train_step,
    ("input_pipeline",): input_pipeline,
    ("frozen_tower",): frozen_tower,
    ("readers",): readers,
    ("bucket_data",): bucket_data,
    ("loss_memory",): losses,
    ("plan_", "remat_"): plans,
    ("scaling_plan",): scaling,
    ("gpu_step",): gpu_step,
    ("soak_",): soak,
    ("kills_",): kills,
    ("fuzz",): fuzz,
    ("emoji",): emoji,
}
MODELS = {
    "plan_siglip_b16_v5e_16x16": "SigLIP B/16",
    "plan_clip_l14_v5p_8x8x4": "CLIP L/14",
    "plan_siglip_so400m_v6e_16x16": "SigLIP So400m/14",
}
GPU_MODELS = {  # plan_MODEL_h100_8.json, plan_MODEL_h100_8x4.json
    "clip_b32": "CLIP B/32",
    "clip_b16": "CLIP B/16",
    "clip_l14": "CLIP L/14",
    "siglip_b16": "SigLIP B/16",
    "siglip_so400m": "SigLIP So400m/14",
}


def origin(documents: dict[str, Any], command: str, *, planned: bool = False, files: bool = True) -> str:
    """Returns a list that says where numbers come from.

    Args:
      documents: {name: JSON}; a plan's JSON is a list whose first entry is read.
      command: shown for files that do not record theirs.
      planned: show the compiler instead of the machine.
      files: link to the JSON files.
    """
    records = [document[0] if isinstance(document, list) else document for document in documents.values()]
    lines = [f"- Command: `{text}`" for text in unique(record.get("command", command) for record in records)]
    if planned:
        lines += [f"- Compiler: {text}" for text in unique(map(describe_compiler, records))]
    else:
        lines += [f"- Machine: {text}" for text in unique(map(describe_machine, records))]
    lines += [f"- Source: {record['source']}" for record in records if "source" in record]
    if files:
        lines.append("- JSON: " + ", ".join(f"[{name}](results/{name}.json)" for name in documents))
    return "\n".join(lines)


def describe_machine(document: dict[str, Any]) -> str:
    """The machine, Python and versions that the JSON records; says what it does not record."""
    machine = {"cores": document.get("cores", document.get("cpus")), "python": document.get("python")}
    machine |= document.get("machine", {})
    cores = f"{machine['cores']} cores, " if machine["cores"] else ""
    known = [cores + machine.get("processor", "processor not recorded")]
    if machine["python"]:
        known.append(f"Python {machine['python']}")
    known.append(describe_compiler(document))
    return "; ".join(known)


def describe_compiler(document: dict[str, Any]) -> str:
    """Versions of jax, libtpu and other libraries that the JSON records."""
    versions = {name: document[name] for name in ("jax", "libtpu") if name in document}
    versions |= document.get("compiled_by", {}) | document.get("machine", {}).get("versions", {})
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "versions not recorded"


def by_batch(document: dict[str, Any], key: str) -> str:
    """A table of one figure: a row for each loss and form, a column for each global batch."""
    rows = [row for rows in document["tables"].values() for row in rows]
    batches = unique(row["batch"] for row in rows if key in row)
    cells = {(row["loss"], row["form"], row["batch"]): row for row in rows}
    lines = []
    for loss, form in unique((row["loss"], row["form"]) for row in rows):
        line = [loss, form]
        for batch in batches:
            row = cells.get((loss, form, batch), {})
            if key != "seconds":
                line.append(megabytes(row, key))
            else:
                milliseconds, cpu = times(row)
                line.append(milliseconds if cpu == "-" else f"{milliseconds} ({cpu})")
        lines.append(line)
    return table(["Loss", "Form", *(f"{batch:,}" for batch in batches)], lines)


def megabytes(row: dict[str, Any], key: str) -> str:
    text = f"{row[key] / 1e6:,.1f}" if key in row else "-"
    return text + ("" if row.get("fits", True) or text == "-" else " (does not fit)")


def times(row: dict[str, Any]) -> tuple[str, str]:
    """Milliseconds and CPU milliseconds; "-" where they were not measured."""
    milliseconds = f"{row['seconds'] * 1e3:,.1f}" if "seconds" in row else "-"
    return milliseconds, f"{row['cpu_seconds'] * 1e3:,.0f}" if "cpu_seconds" in row else "-"


if __name__ == "__main__":
    main()
