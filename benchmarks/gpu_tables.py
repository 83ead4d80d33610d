"""The section of benchmarks/details.md about train steps on GPUs."""
# Lines of the page's Markdown may be long.
# ruff: noqa: E501

from __future__ import annotations

from typing import Any

from benchmarks.overview import table

STEP_COMMAND = "python -m benchmarks.gpu_step"


def gpu_step(documents: dict[str, Any]) -> str:
    head = "## A train step on a GPU, beside open_clip and transformers"
    if not documents:
        return f"""\
{head}

No card was at hand, so there is no figure. `{STEP_COMMAND}` measures one in under ten minutes:
[what it does](../docs/gpu.md#measure)."""
    parts = [head, f"- Command: `{STEP_COMMAND}`\n- JSON: " + ", ".join(f"[{n}](results/{n}.json)" for n in documents)]
    header = ["Model", "Loss", "Batch", "Library", "Images/s", "ms a step", "MFU", "Peak memory, GiB", "Planned, ms"]
    for document in documents.values():
        rows = [
            [
                cell["model"],
                cell["loss"],
                f"{cell['batch']:,}",
                cell["contender"],
                *(
                    [
                        f"{cell['images_per_second']:,.0f}",
                        f"{cell['milliseconds']:.1f}",
                        f"{cell['mfu']:.1%}" if "mfu" in cell else "-",
                        f"{(cell['peak_memory_bytes'] or 0) / 2**30:.1f}",
                        f"{cell['planned_milliseconds']:.1f}" if "planned_milliseconds" in cell else "-",
                    ]
                    if "images_per_second" in cell
                    else [cell["error"].replace("|", "/"), *"----"]
                ),
            ]
            for cell in document["cells"]
        ]
        versions = ", ".join(f"{name} {version}" for name, version in document["machine"]["versions"].items())
        parts += [f"### {document['card']['name']}", f"Driver {document['card']['driver_version']}; {versions}."]
        parts.append(table(header, rows))
    return "\n\n".join(parts)
