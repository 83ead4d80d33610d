"""The section of benchmarks/details.md about train steps on GPUs."""
# Lines of the page's Markdown may be long.
# ruff: noqa: E501

from __future__ import annotations

import re
from typing import Any

from benchmarks.tables.overview import gpu_ratios, shown_ratios
from benchmarks.tables.words import table

STEP_COMMAND = "python -m benchmarks.gpu_step"
# Kinds of kernels, by the names that cuBLAS, cuDNN and the drivers give them; the first that matches counts.
KINDS = (
    ("attention", r"cudnn.*sdpa|compute_dot_do_o|convert_dq"),
    ("products", r"nvjet|cutlass|gemm|cublas|xmma"),
    ("all other kernels", r""),
)


def gpu_step(documents: dict[str, Any]) -> str:
    head = "## A train step on a GPU, beside open_clip and transformers"
    if not documents:
        return f"""\
{head}

No card was at hand, so there is no figure. `{STEP_COMMAND}` measures one in under ten minutes:
[what it does](../docs/gpu.md#measure)."""
    command = f"- Command: `{STEP_COMMAND}`\n- JSON: " + ", ".join(f"[{n}](results/{n}.json)" for n in documents)
    return "\n\n".join([head, command, *(part for one in documents.values() for part in measured_on(one))])


def measured_on(document: dict[str, Any]) -> list[str]:
    """The paragraphs and tables of one card."""
    machine, card = document["machine"], document["card"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    header = ["Model", "Loss", "Batch", "Library", "Images/s", "ms a step", "MFU", "Peak memory, GiB", "Planned, ms"]
    ratios = shown_ratios(gpu_ratios(document["cells"]))
    parts = [
        f"### {card['name']}",
        f"{machine['date']}; driver {card['driver_version']}, {card['power.limit']}; {machine['cores']} cores of "
        f"{machine['processor']}; {versions}. {document.get('note', '')}".strip(),
        table(header, [step_row(cell) for cell in document["cells"]]),
        f"clipjax over the fastest other that was measured: {ratios}.",
        "MFU counts the products that the mathematics needs: of the last block, those of the row that is pooled. It is "
        'the same count for all libraries. "Planned" is what `clipjax plan` says of the compiled program.',
        "What the steps with softmax consist of, ms, from a profile of two steps. The rest is the time between kernels, "
        "and the 1 to 3% by which a step of a long run takes longer than those two:",
        table(["Model", "Library", *(name for name, _ in KINDS), "the rest"], kind_rows(document["cells"])),
    ]
    if changes := document.get("changes"):
        rows = [[c["change"], f"{c['milliseconds']:.1f}", f"{c['images_per_second']:,.0f}"] for c in changes]
        parts += [
            "What choices give B/16 with 256 pairs and softmax. The first three were measured on another machine with such a "
            "card.",
            table(["Step", "ms", "Images/s"], rows),
        ]
    return parts


def step_row(cell: dict[str, Any]) -> list[str]:
    variant = f" ({cell['variant']})" if cell.get("variant") else ""
    row = [cell["model"], cell["loss"], f"{cell['batch']:,}", cell["contender"] + variant]
    if "images_per_second" not in cell:
        return [*row, cell["error"].replace("|", "/"), *"----"]
    return [
        *row,
        f"{cell['images_per_second']:,.0f}",
        f"{cell['milliseconds']:.1f}",
        f"{cell['mfu']:.1%}" if "mfu" in cell else "-",
        f"{(cell['peak_memory_bytes'] or 0) / 2**30:.1f}",
        f"{cell['planned_milliseconds']:.1f}" if "planned_milliseconds" in cell else "-",
    ]


def kind_rows(cells: list[dict[str, Any]]) -> list[list[str]]:
    """Milliseconds of each kind of kernel in the profile, and what is left of a step of the long run."""
    rows = []
    for cell in cells:
        if cell["loss"] != "softmax" or not cell.get("kernels") or cell.get("variant"):
            continue
        kernels = cell["kernels"]
        whole = kernels[0]["milliseconds"] / kernels[0]["share"]
        sums = dict.fromkeys((name for name, _ in KINDS), 0.0)
        for kernel in kernels:
            sums[next(name for name, pattern in KINDS if re.search(pattern, kernel["name"]))] += kernel["milliseconds"]
        sums[KINDS[-1][0]] += whole - sum(sums.values())  # those that the list leaves out are small
        figures = [f"{value:.1f}" for value in (*sums.values(), cell["milliseconds"] - whole)]
        rows.append([cell["model"], cell["contender"], *figures])
    return rows
