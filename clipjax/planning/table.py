"""Plans as text: memory, collectives, time, and for each figure whether it is exact, counted or estimated."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from clipjax.planning.chips import GIB

EXACT, COUNTED, ESTIMATED = "exact", "counted", "estimated"
MOST_OF_A_CARD = 0.95  # that a GPU's program may be given, the rest being CUDA's, NCCL's and cuDNN's


def plan_table(plan: dict[str, Any]) -> str:
    """The tables that `clipjax plan` prints; plan: from plan_step, with "fits" and, if it does not fit, "nearest"."""
    if "collectives" not in plan:
        return _does_not_fit(plan)
    compiler = ", ".join(f"{name} {version}" for name, version in plan["compiled_by"].items())
    lines = [
        "",
        f"{plan['topology']}: {plan['devices']} x {plan['device_kind']}, mesh {_mesh(plan['mesh'])}, global batch "
        f"{plan['global_batch_size']:,}, {plan['parameters'] / 1e6:.1f}M parameters, loss {_loss(plan['loss'])}, "
        f"compiled in {plan['compile_seconds']} s by {compiler}",
        *filter(None, [plan.get("texts")]),
        *_memory_lines(plan),
        *_collective_lines(plan),
        *_time_lines(plan),
    ]
    if plan["loops_of_unknown_length"]:
        lines.append(f"Loops of unknown length, counted once: {', '.join(plan['loops_of_unknown_length'])}")
    return "\n".join(lines + _nearest_lines(plan))


def compare_table(plans: list[dict[str, Any]]) -> str:
    """The main figures of several plans, side by side."""
    rows = [("", *(plan["overrides"] or "the experiment" for plan in plans))]
    for title, figure in (
        ("fits", lambda p: {True: "yes", False: "no", None: "-"}[p["fits"]]),
        ("memory a device, GiB", lambda p: f"{p['memory']['total'] / GIB:.2f}"),
        ("temporaries, GiB", lambda p: f"{p['memory']['temporaries'] / GIB:.2f}"),
        (
            "received a device, MB",
            lambda p: f"{sum(c['bytes_received'] * c['times'] for c in p['collectives']) / 1e6:,.0f}",
        ),
        ("of that for the loss, MB", lambda p: f"{_received(p, 'loss') / 1e6:,.1f}"),
        ("step, ms (estimated)", lambda p: f"{p['time']['estimated_seconds'] * 1e3:.1f}"),
        ("of that the loss, ms", lambda p: f"{p['time']['estimated_seconds_by_part'].get('loss', 0) * 1e3:.2f}"),
        ("MFU (estimated)", lambda p: f"{p['time']['estimated_mfu']:.1%}"),
    ):
        rows.append((title, *(_or_dash(figure, plan) for plan in plans)))
    return "\n" + "\n".join(_columns(rows))


def _does_not_fit(plan: dict[str, Any]) -> str:
    memory = plan["memory"]
    lines = [
        "",
        f"{plan['topology']}: does not fit: it needs {memory['total'] / GIB:.2f} GiB a device and has "
        f"{memory['available'] / GIB:.2f}. The compiler: {plan['message']}",
    ]
    return "\n".join(lines + _nearest_lines(plan))


def _nearest_lines(plan: dict[str, Any]) -> list[str]:
    if plan["fits"] is not False:
        return []
    if plan["nearest"]:
        return ["", f"Nearest that fits: {plan['nearest']['change']}", plan_table(plan["nearest"])]
    return ["Use more devices, a smaller global_batch_size, config.mesh.fsdp, or more accumulation_steps."]


def _memory_lines(plan: dict[str, Any]) -> list[str]:
    memory, rows = plan["memory"], [("memory a device", "GiB", "")]
    for title, name, known in (
        ("parameters", "params", EXACT),
        ("optimizer and EMA", "optimizer", EXACT),
        ("batch", "batch", EXACT),
        ("temporaries", "temporaries", EXACT),
        ("  gradients", "gradients", ESTIMATED),
        ("  activations and buffers", "activations", ESTIMATED),
        ("all, with outputs and code", "total", EXACT),
    ):
        rows.append((title, f"{memory[name] / GIB:.2f}", known))
    if memory.get("device") and memory["device"] > memory["available"]:
        rows.append(("the card's memory", f"{memory['device'] / GIB:.2f}", ""))
    if memory["available"]:
        free = memory["available"] - memory["total"]
        rows.append(
            (
                "available",
                f"{memory['available'] / GIB:.2f}",
                f"{'fits, free' if free >= 0 else 'MISSING'}: {abs(free) / GIB:.2f}",
            )
        )
    return ["", *_columns(rows), *_reserved_lines(memory)]


def _reserved_lines(memory: dict[str, float]) -> list[str]:
    """Why a GPU's program may not use all of the card, and whether more of it would be enough."""
    device, available = memory.get("device"), memory["available"]
    if not device or device <= available:
        return []
    fraction, needed = available / device, memory["total"] / device
    lines = [
        f"Available is the {fraction:.0%} of the card that a run reserves; XLA_PYTHON_CLIENT_MEM_FRACTION sets another "
        "share. CUDA, NCCL and cuDNN need one to three GiB of the rest."
    ]
    if fraction < needed <= MOST_OF_A_CARD:
        share = math.ceil(needed * 100) / 100
        lines.append(f"It would fit with XLA_PYTHON_CLIENT_MEM_FRACTION={share:.2f}.")
    return lines


def _collective_lines(plan: dict[str, Any]) -> list[str]:
    rows = [("collective (counted)", "for", "devices", "times", "MB in", "MB received", "at least ms")]
    grouped: dict[tuple, list[dict]] = defaultdict(list)
    for c in plan["collectives"]:
        grouped[c["kind"], c["part"], c["group_size"], c["times"]].append(c)
    for (kind, part, size, times), same in grouped.items():
        received = sum(c["bytes_received"] for c in same)
        slow = sum((c["seconds_at_least"] or 0) * c["times"] for c in same) * 1e3
        rows.append(
            (
                kind + (f" x {len(same)}" if len(same) > 1 else ""),
                part,
                str(size),
                f"{times:g}",
                f"{sum(c['bytes_in'] for c in same) / 1e6:,.2f}",
                f"{received * times / 1e6:,.2f}",
                f"{slow:.2f}" if slow else "-",
            )
        )
    if len(rows) == 1:
        rows.append(("none", "", "", "", "", "", ""))
    return ["", *_columns(rows)]


def _time_lines(plan: dict[str, Any]) -> list[str]:
    time, flops = plan["time"], plan["flops"]
    rows = [("part", "model TFLOP (counted)", "ms (estimated)", "MFU (estimated)")]
    parts = time["estimated_seconds_by_part"] if time else {}
    for part in dict.fromkeys([*flops, *parts]):
        rows.append(
            (
                part,
                f"{flops[part] / 1e12:,.2f}" if part in flops else "-",
                f"{parts[part] * 1e3:.2f}" if part in parts else "-",
                f"{time['estimated_mfu_by_part'][part]:.1%}" if time and part in time["estimated_mfu_by_part"] else "-",
            )
        )
    step = time and time["estimated_seconds"]
    rows.append(
        (
            "step, all devices",
            f"{sum(flops.values()) / 1e12:,.2f}",
            f"{step * 1e3:.2f}" if step else "-",
            f"{time['estimated_mfu']:.1%}" if step else "-",
        )
    )
    lines = ["", *_columns(rows)]
    if time:
        bounds = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in time["at_least"].items())
        lines.append(f"At least (peak rates, nothing overlapped twice): {bounds}")
        lines += _work_lines(time)
    kernels = plan["kernels"]
    if any(kernel["seconds"] is None for kernel in kernels):
        lines.append("NOT in the estimate: attention's kernels, for which this libtpu wrote no schedule.")
    elif kernels:
        seconds = sum(kernel["seconds"] * kernel["times"] for kernel in kernels)
        lines.append(f"Of that {seconds * 1e3:.2f} ms in attention's kernels, by the compiler's schedule (estimated)")
    if step:
        condition = "" if time.get("transfers") else " if every transfer hides behind computation"
        lines.append(f"{plan['global_batch_size'] / step:,.0f} images/s{condition} (estimated)")
    return lines + _measured_lines(plan)


def _work_lines(time: dict[str, Any]) -> list[str]:
    """What a GPU's step consists of, by kind of kernel, and how much of its collectives is waited for."""
    if not time.get("work"):
        return []
    rows = [("kernels (counted)", "times", "TFLOP", "GB", "ms (estimated)", "most of it limited by")]
    for row in time["work"]:
        limit, longest = max(row["limited_by"].items(), key=lambda pair: pair[1])
        rows.append(
            (
                row["kind"],
                f"{row['times']:,.0f}",
                f"{row['flops'] / 1e12:,.2f}" if row["flops"] else "-",
                f"{row['bytes'] / 1e9:,.2f}",
                f"{row['seconds'] * 1e3:.2f}",
                f"{limit} ({longest / row['seconds']:.0%})",
            )
        )
    moves = time["transfers"]
    return [
        "",
        *_columns(rows),
        f"Collectives take {moves['seconds'] * 1e3:.2f} ms, of which {moves['waited_for'] * 1e3:.2f} ms are waited for "
        "and the rest runs beside computation (estimated)",
    ]


def _measured_lines(plan: dict[str, Any]) -> list[str]:
    """For an estimate by roofline: how far other plans were from steps that were measured on this card."""
    time = plan["time"]
    if not time or not time.get("factors"):
        return []
    lines = [
        "The estimate is a roofline over the compiled instructions, with factors that were fitted to an H200's kernels."
    ]
    if not time["measured"]:
        return [f"{lines[0]} No step measured on this card has checked it yet (docs/plan.md)."]
    for step in time["measured"]:
        ratio = step["milliseconds"] / step["planned_milliseconds"]
        lines.append(
            f"Measured on this card: {step['model']} {step['loss']}, batch {step['batch']:,}: "
            f"{step['milliseconds']:.1f} ms, {ratio:.2f} of its plan ({step['file']})"
        )
    return lines


def _received(plan: dict[str, Any], part: str) -> float:
    return sum(c["bytes_received"] * c["times"] for c in plan["collectives"] if c["part"] == part)


def _or_dash(figure: Any, plan: dict[str, Any]) -> str:
    try:
        return figure(plan)
    except (KeyError, TypeError):
        return "-"


def _loss(loss: dict[str, Any]) -> str:
    return f"{loss['name']} ({'auto: ' if loss.get('auto') else ''}{loss['comm']})"


def _mesh(mesh: dict[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items())


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    """Aligned columns: the first to the left, all others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return [line.rstrip() for line in lines]
