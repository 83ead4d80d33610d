"""Sections about steps that are compiled for TPUs."""
# Lines of the page's Markdown may be long.
# ruff: noqa: E501

from __future__ import annotations

import statistics
from typing import Any

from benchmarks import scaling_plan
from benchmarks.tables.gpu_plans import gpu_plans, so400m_changes
from benchmarks.tables.words import origin, table

MODELS = {
    "plan_siglip_b16_v5e_16x16": "SigLIP B/16",
    "plan_clip_l14_v5p_8x8x4": "CLIP L/14",
    "plan_siglip_so400m_v6e_16x16": "SigLIP So400m/14",
}


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
