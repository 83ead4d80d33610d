"""What the tables' cells and the lines above them say: origins, machines, versions, numbers."""
# Lines of the page's Markdown may be long.
# ruff: noqa: E501

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

NONE_YET = "No results are kept yet."


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


def describe_key(key: dict[str, Any]) -> str:
    return f"{key['processor']}, {key['cores']} cores, {key['bfloat16']}; jaxlib {key['jaxlib']}"


def table(header: list[str], rows: Iterable[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def plural(word: str, count: int) -> str:
    return word if count == 1 else word + ("es" if word.endswith("s") else "s")


def processor(document: dict[str, Any]) -> str:
    return document.get("machine", {}).get("processor", "processor not recorded")


def spread(ratio: dict[str, Any]) -> str:
    samples = ratio["samples"]
    return f"{statistics.median(samples):.2f} ({min(samples):.2f} to {max(samples):.2f})"


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
