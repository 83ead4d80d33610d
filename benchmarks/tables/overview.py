"""The table of benchmarks/README.md: each script with its command, headline and files. `python -m benchmarks.tables`
writes it; benchmarks/details.md has the tables that the headlines are taken from.

A row's headline is a function of its JSON files; it says for each processor what the script measured there.
"""
# Cells of the table may be long.
# ruff: noqa: E501

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmarks.tables.words import plural, processor, table, unique

HEAD = """\
# Benchmarks

Each ratio was measured side by side, in one run, and holds for the processor that it names. [Details](details.md) has all
figures, the machines, and how to read them. `make bench-quick` compares a change with this processor's last figures in
under four minutes: [how it decides](details.md#the-ratios-that-matter-in-four-minutes).
"""
FOOT = """\
`python -m benchmarks.tables` writes this page and [details](details.md) from the JSON files in [results](results); edit the
scripts, not the pages. Dates of JSON files that record none are those of their commits. The times are rough, on two cores.
`train_step`, `input_pipeline` and `quick` compare clipjax with libraries that `make parity` installs.
"""

# Results that were written before the scripts recorded a date: the date of their commit.
COMMITTED = {
    "emoji": "2026-11-26",
    "frozen_tower": "2026-11-25",
    "fuzz": "2026-11-27",
    "input_pipeline": "2026-11-25",
    "kills_1_process": "2026-11-27",
    "loss_memory_cpu_1": "2026-11-25",
    "loss_memory_cpu_8": "2026-11-25",
    "loss_memory_v5e_16x16": "2026-11-25",
    "plan_changes_siglip_b16": "2026-11-26",
    "plan_clip_l14_v5p_8x8x4": "2026-11-25",
    "plan_siglip_b16_v5e_16x16": "2026-11-25",
    "plan_siglip_so400m_v6e_16x16": "2026-11-25",
    "readers": "2026-11-25",
    "remat_siglip_b16": "2026-11-26",
    "soak_emoji_30_minutes": "2026-11-25",
    "soak_openclipart_30_minutes": "2026-11-26",
    "soak_scenes_100_kills": "2026-11-25",
    "train_step_batch_32": "2026-11-26",
    "train_step_batch_32_huge_pages": "2026-11-26",
    "train_step_batch_4": "2026-11-26",
    "train_step_batch_4_huge_pages": "2026-11-26",
    "train_step_intel_amx": "2026-11-26",
}
Headline = Iterator[tuple[str, str]]  # (processor, what was measured there)


class Row(NamedTuple):
    """A row of the table; files: prefixes of its JSON files' names; section: its heading in details.md, "" for none."""

    script: str
    measures: str
    command: str
    takes: str
    section: str = ""
    files: tuple[str, ...] = ()
    headline: Callable[[dict[str, Any]], Headline] | None = None


def train_step(documents: dict[str, Any]) -> Headline:
    """Ratios to open_clip: batch, dtype where one is recorded, malloc's setting."""
    found: dict[str, list[str]] = {}
    for document in documents.values():
        for row in document.get("rows", [document]):
            if "ratio" in row:
                words = [f"batch {row['batch']}"]
                words += [row["dtype"]] if "dtype" in row else []
                memory = row.get("memory", "huge_pages" if row.get("huge_pages") else "plain").replace("_", " ")
                words += [] if memory == "plain" else [f"memory {memory}" if memory == "kept" else memory]
                cell = (-row["batch"], f"{row['ratio']:.2f} ({', '.join(words)})")
                found.setdefault(document["machine"]["processor"], []).append(cell)
    for name, cells in sorted(found.items()):
        yield name, "open_clip's speed × " + ", ".join(text for _, text in sorted(cells))


def input_pipeline(documents: dict[str, Any]) -> Headline:
    for document in documents.values():
        ratios = [
            max(c["ratio_to_pytorch"] for name, c in size.items() if name.startswith("clipjax"))
            for size in document["sizes"].values()
        ]
        yield processor(document), f"PyTorch's images per core second × {min(ratios):.1f} to {max(ratios):.1f}"


def frozen_tower(documents: dict[str, Any]) -> Headline:
    for document in documents.values():
        yield processor(document), f"the step is {document['ratio']:.1f} times as fast"


def readers(documents: dict[str, Any]) -> Headline:
    for document in documents.values():
        rates = document["records_per_cpu_second"]
        yield (
            processor(document),
            ", ".join(f"{name} {rates[name] / rates['tarfile']:.2f}" for name in rates if name != "tarfile")
            + " of tarfile's rate",
        )


def bucket_data(documents: dict[str, Any]) -> Headline:
    for document in documents.values():
        rates = {(row["kind"], row["mode"]): row["images_per_second"][0] for row in document["rows"]}
        kinds = dict.fromkeys(kind for kind, mode in rates if mode == "kept")
        shown = ", ".join(f"{kind} {rates[kind, 'kept'] / rates[kind, 'local']:.2f}" for kind in kinds)
        yield processor(document), f"{shown} of the local rate in the first epoch (a server on loopback)"


def losses(documents: dict[str, Any]) -> Headline:
    for name, document in documents.items():
        rows = [row for rows in document["tables"].values() for row in rows if row.get("fits", True)]
        other, own = ("dense", "all_gather") if name.endswith("cpu_1") else ("reference", "chunked")
        batch = max(row["batch"] for row in rows if row["form"] == other)
        cells = {row["form"]: row for row in rows if (row["loss"], row["batch"]) == ("softmax", batch)}
        memory = cells[other]["temporaries_a_device"] / max(1, cells[own]["temporaries_a_device"])
        parts = [f"1/{memory:,.0f} of {other}'s temporaries"]
        if "seconds" in cells[own]:
            parts.append(f"{cells[own]['seconds'] / cells[other]['seconds']:.2f} of its time")
        where = document["topology"]
        where += f", {processor(document)}" if where.startswith("cpu") else ", planned"
        yield where, f"softmax at {batch:,}, `{own}`: " + ", ".join(parts)


def plans(documents: dict[str, Any]) -> Headline:
    """The best plan of each file: its estimated MFU."""
    for name, document in sorted(documents.items()):
        if isinstance(document, list) and "time" in document[0]:
            best = max(document, key=lambda plan: plan["time"].get("estimated_mfu") or 0.0)
            if best["time"].get("estimated_mfu"):
                model = name.removeprefix("plan_").removesuffix(
                    "_" + best["topology"].replace(":", "_").replace("*", "x")
                )
                yield f"{best['topology']}, planned", f"{model}: MFU {best['time']['estimated_mfu']:.1%}"


def scaling(documents: dict[str, Any]) -> Headline:
    """The efficiency of 1,024 chips with the exchange that auto takes, of each model and loss."""
    for document in documents.values():
        for model in document["models"]:
            last = [row for row in model["rows"] if row["chips"] == 1024 and row["auto"]]
            parts = ", ".join(f"{row['loss']} {row['efficiency']:.1%}" for row in last)
            yield f"{model['model']}, 1,024 {model['chip']} chips, modelled", parts


def gpu_step(documents: dict[str, Any]) -> Headline:
    """The ratio to the fastest of the others, for each model and loss that both measured."""
    for document in documents.values():
        if ratios := gpu_ratios(document["cells"]):
            yield document["card"]["name"], "the faster PyTorch step's speed × " + shown_ratios(ratios)


def gpu_ratios(cells: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[str, float]]:
    """{(model, loss): (the fastest other, clipjax's images/s over its)}."""
    rates: dict[tuple[str, str], dict[str, float]] = {}
    for cell in cells:
        if "images_per_second" in cell and not cell.get("variant"):
            rates.setdefault((cell["model"], cell["loss"]), {})[cell["contender"]] = cell["images_per_second"]
    ratios = {}
    for key, own in rates.items():
        others = {name: rate for name, rate in own.items() if name != "clipjax"}
        if "clipjax" in own and others:
            fastest = max(others, key=others.get)
            ratios[key] = fastest, own["clipjax"] / others[fastest]
    return ratios


def shown_ratios(ratios: dict[tuple[str, str], tuple[str, float]]) -> str:
    """Those of gpu_ratios, as text."""
    return ", ".join(f"{ratio:.2f} ({model}, {loss})" for (model, loss), (_, ratio) in ratios.items())


def startup(documents: dict[str, Any]) -> Headline:
    for document in documents.values():
        totals = ", ".join(f"{case} {one['total']:.1f} s" for case, one in document["medians"].items())
        model = document["model"] + (f" of {document['depth']} layers" if document["depth"] else "")
        yield processor(document), f"{model}: {totals}"


def kept_memory(documents: dict[str, Any]) -> Headline:
    for document in documents.values():
        medians = document["medians"]
        if {"plain", "kept"} <= medians.keys():
            ratio = medians["plain"]["milliseconds"] / medians["kept"]["milliseconds"]
            yield processor(document), f"{ratio:.2f} times as fast with memory kept"


def text_buckets(documents: dict[str, Any]) -> Headline:
    for document in documents.values():
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in document["ratio"].items() if name != "whole")
        yield processor(document), f"times as fast as with the whole context: {ratios}"


def soak(documents: dict[str, Any]) -> Headline:
    kills = sum(sum(document["kills"].values()) for document in documents.values())
    yield "", f"{kills} kills: {'all equal' if all(d['equal'] for d in documents.values()) else 'NOT equal'}"


def kills(documents: dict[str, Any]) -> Headline:
    for document in sorted(documents.values(), key=lambda document: document["processes"]):
        equal = "all equal" if document["equal"] else "NOT equal"
        yield (
            "",
            f"{document['processes']} {plural('process', document['processes'])}: {document['kills']:,} kills, {equal}",
        )


def fuzz(documents: dict[str, Any]) -> Headline:
    for document in documents.values():
        faults = sum(row["fault"] for row in document["readers"].values())
        yield "", f"{document['inputs']:,} inputs, {faults} {plural('fault', faults)}"


def emoji(documents: dict[str, Any]) -> Headline:
    for document in documents.values():
        yield (
            "",
            ", ".join(f"{row['loss']} {row['top1']:.1%}" for row in document["rows"])
            + f" of {document['names']:,} names right",
        )


def quick(documents: dict[str, Any]) -> Headline:
    for document in documents.values():
        medians = {name: statistics.median(ratio["samples"]) for name, ratio in document["ratios"].items()}
        shown = [f"{name} {value:.2f}" for name, value in medians.items() if name.startswith("train step")]
        yield (
            document["key"]["processor"],
            f"{len(medians)} {plural('ratio', len(medians))}" + (": " + ", ".join(shown) if shown else ""),
        )


TABLE = [
    Row("[quick](quick.py)", "the ratios that matter, at small sizes (two layers a tower), beside this processor's last figures", "make bench-quick", "under 4 minutes", "the-ratios-that-matter-in-four-minutes", ("quick_",), quick),
    Row("[train_step](train_step.py)", "images/s of a whole train step, beside open_clip on PyTorch", "python -m benchmarks.train_step [--batch=4]", "8 minutes at batch 32, 5 at batch 4", "a-train-step-beside-open_clip", ("train_step",), train_step),
    Row("[text_buckets](text_buckets.py)", "a step whose texts are cut to the batch, beside one that pads them", "python -m benchmarks.text_buckets", "5 minutes", "texts-cut-to-the-batch", ("text_buckets",), text_buckets),
    Row("[input_pipeline](input_pipeline.py)", "images per core second of the training input, beside PyTorch and tf.data", "python -m benchmarks.input_pipeline --rounds=3", "5 minutes", "training-input-beside-pytorch-and-tfdata", ("input_pipeline",), input_pipeline),
    Row("[frozen_tower](frozen_tower.py)", "a LiT step that reads stored embeddings instead of running its frozen tower", "python -m benchmarks.frozen_tower --batch=16", "2 minutes", "a-frozen-towers-embeddings-stored", ("frozen_tower",), frozen_tower),
    Row("[readers](readers.py)", "records per CPU second of each source", "python -m benchmarks.readers", "2 minutes, 2 GB of disk", "reading-records", ("readers",), readers),
    Row("[bucket_data](bucket_data.py)", "images/s, requests and bytes of data in a bucket, by a server on loopback that waits before it answers", "python -m benchmarks.bucket_data", "3 minutes", "data-in-a-bucket", ("bucket_data",), bucket_data),
    Row("[loss_memory](loss_memory.py)", "memory, time and traffic of the losses for each `comm`, on one device, on eight, and planned for a slice", "python -m benchmarks.loss_memory [--topology=cpu:1\\|v5e:16x16]", "1 minute on one device, several on eight; planned (needs libtpu) half an hour", "losses", ("loss_memory",), losses),
    Row("[clipjax plan](../docs/plan.md)", "train steps planned for pods: nothing ran on them", "clipjax plan --config=experiments/siglip_b16.py --topology=v5e:16x16", "2 minutes a plan", "planned-train-steps", ("plan_", "remat_"), plans),
    Row("[scaling_plan](scaling_plan.py)", "a step's efficiency from 8 to 1,024 TPU chips for each loss and `comm`: modelled, nothing ran on them", "python -m benchmarks.scaling_plan", "seconds; the plans that it compares with take minutes each", "from-8-to-1024-chips", ("scaling_plan",), scaling),
    Row("[gpu_step](gpu_step.py)", "images/s of a whole train step on a GPU, beside open_clip and transformers under torch.compile", "python -m benchmarks.gpu_step", "under ten minutes on a machine with a card", "a-train-step-on-a-gpu-beside-open_clip-and-transformers", ("gpu_step",), gpu_step),
    Row("[gpu_plans](gpu_plans.py)", "train steps planned for H100s, nothing ran on them; the row of clipjax plan has the results", "python -m benchmarks.gpu_plans", "a minute of an idle core a plan", "planned-train-steps"),
    Row("[soak](soak.py)", "whether a run that is killed again and again ends like one left alone", "python -m benchmarks.soak --config=benchmarks/soak_scenes.py:data --workdir=runs/soak --kills=100", "35 to 50 minutes", "killed-and-restarted", ("soak_",), soak),
    Row("[kills](kills.py)", "the same for runs of one, two and four processes, killed while they start, compile, evaluate and save", "python -m benchmarks.kills --workdir=runs/kills --processes=2 --kills=300", "five to twenty seconds a kill; sittings add up", "killed-in-every-phase", ("kills_",), kills),
    Row("[fuzz](fuzz.py)", "whether damaged and hostile files give a right value or one clean line", "python -m benchmarks.fuzz --workers=2", "one hour for a million inputs; it goes on where it was stopped", "damaged-and-hostile-files", ("fuzz",), fuzz),
    Row("[emoji](../docs/emoji.md)", "zero-shot accuracy on emoji in a style never seen", "clipjax train --config=experiments/emoji.py --config.total_steps=650", "half an hour", "emoji-in-a-style-never-seen", ("emoji",), emoji),
    Row("[startup](startup.py)", "what a run does before its first step: import, open, restore, compile, evaluate", "python -m benchmarks.startup [--model=clip_vit_l14]", "5 minutes; 15 for L/14", "from-the-command-to-the-first-step", ("startup_",), startup),
    Row("[kept_memory](kept_memory.py)", "a train step on CPU whose process keeps the memory that it frees", "python -m benchmarks.kept_memory", "3 minutes", "memory-that-is-kept", ("kept_memory",), kept_memory),
    Row("[kills_results](kills_results.py)", "adds results of kills to one another", "python -m benchmarks.kills_results --out=OUT.json FILE.json", "a second"),
    Row("[tables](tables)", "writes this page and its details", "python -m benchmarks.tables", "a second"),
]  # fmt: skip


def make_overview(documents: dict[str, Any]) -> str:
    """Returns the page. documents: {name of the JSON: its content}. Raises ValueError when one belongs to no row."""
    left, rows = dict(documents), []
    for row in TABLE:
        mine = {name: left.pop(name) for name in documents if name in left and row.files and name.startswith(row.files)}
        headline = [": ".join(filter(None, pair)) for pair in row.headline(mine)] if row.headline and mine else []
        script = row.script + (f" ([details](details.md#{row.section}))" if mine or row.files == ("quick_",) else "")
        files = ", ".join(f"[{name}](results/{name}.json)" for name in mine)
        rows.append(
            [script, row.measures, "<br>".join(headline) or "-", dates_and_versions(mine) or "-", f"`{row.command}` ({row.takes})", files or "-"]
        )  # fmt: skip
    if left:
        raise ValueError(f"No row of benchmarks/tables/overview.py shows {', '.join(left)}.")
    header = ["Script", "What it measures", "Headline", "Dates, versions", "Command (time it takes)", "JSON"]
    return "\n".join([HEAD, table(header, rows), "", FOOT])


def dates_and_versions(documents: dict[str, Any]) -> str:
    """The days of the results, and the versions of JAX's libraries and of what they are compared with."""
    days, versions = set(), []
    for name, document in documents.items():
        first = document[0] if isinstance(document, list) else document
        machine = first.get("machine", {})
        days.add(first.get("date") or machine.get("date") or COMMITTED.get(name, "date not recorded"))
        known = machine.get("versions", {}) | first.get("compiled_by", {})
        known |= {key: first[key] for key in ("jax", "libtpu") if key in first}
        versions += [f"{key} {known[key]}" for key in ("jax", "jaxlib", "libtpu", "torch") if key in known]
    versions = [text for text in unique(versions) if not text.startswith("jaxlib") or "jax" + text[6:] not in versions]
    return ", ".join([*sorted(days), *versions])
