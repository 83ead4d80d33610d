"""The part of the plans' section about steps that are compiled for GPUs."""
# Lines of the page's Markdown may be long.
# ruff: noqa: E501

from __future__ import annotations

from typing import Any

from benchmarks.tables.words import origin, table

GPU_MODELS = {  # plan_MODEL_h100_8.json, plan_MODEL_h100_8x4.json
    "clip_b32": "CLIP B/32",
    "clip_b16": "CLIP B/16",
    "clip_l14": "CLIP L/14",
    "siglip_b16": "SigLIP B/16",
    "siglip_so400m": "SigLIP So400m/14",
}


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
