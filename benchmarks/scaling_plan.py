"""Models a train step from 8 to 1,024 TPU chips, with 128 pairs a chip, for both losses and each `comm`.

    python -m benchmarks.scaling_plan                               # seconds; compiles nothing
    python -m benchmarks.scaling_plan --plans plan_a.json b.json    # also compares with plans of `clipjax plan --out`
    python -m benchmarks.scaling_plan --compile                     # minutes; losses of two slices (needs libtpu)

Writes benchmarks/results/scaling_plan.json, in which plans of earlier runs stay. What is compiled and what is modelled:

  towers, optimizer   compiled: the committed plans of 256 chips. A chip's rows are as many for every number of chips.
  loss                modelled, by the cost model with which comm="auto" chooses (clipjax/losses/comm/cost.py), with the
                      chip's published rates
  sum of gradients    modelled: bytes over the links of a slice, and between slices over the data-centre network

The plans of 256 chips, the losses of benchmarks/results/loss_memory_v5e_16x16.json and the plans given are compiled.
The modelled losses are compared with theirs.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine import command, machine
from benchmarks.tables.words import table

RESULTS = Path(__file__).parent / "results"
ROWS = 128  # pairs a chip
HOW = ("compiled", "modelled")
BACKWARD = 2 / 3  # of the towers' time, beside which gradients are summed
LOSSES = ("softmax", "sigmoid")
SLICES = "v5e:2x2*2"  # whose losses compile in a minute or two each
# Name: the compiled plan, the width of an embedding, the slice and how many of them for each number of chips.
MODELS = {
    "SigLIP B/16": (
        "plan_siglip_b16_v5e_16x16",
        768,
        ("2x4", "4x4", "4x8", "8x8", "8x16", "16x16", "16x16*2", "16x16*4"),
    ),
    "CLIP L/14": (
        "plan_clip_l14_v5p_8x8x4",
        768,
        ("2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16"),
    ),
}


class Network(NamedTuple):
    """The chips of a topology."""

    chip: Any  # clipjax.planning.tpu_chips.Tpu
    per_slice: int
    slices: int

    @property
    def chips(self) -> int:
        return self.per_slice * self.slices

    @property
    def links(self) -> float:
        """Bytes/s that a chip receives inside a slice."""
        return 2 * self.chip.torus * self.chip.ici_link


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", nargs="*", type=Path, default=[], help="JSON of clipjax plan --out to compare with")
    parser.add_argument("--compile", action="store_true", help=f"compile losses for {SLICES} again (needs libtpu)")
    args = parser.parse_args()
    document = {"command": command("benchmarks.scaling_plan"), "machine": machine(), "rows_a_chip": ROWS}
    document["models"] = [scaled(name) for name in MODELS]
    document["losses_compared"] = compared_losses()
    given = [(path.stem, plan) for path in args.plans for plan in read(path)]
    committed = [(source, plan) for source, *_ in MODELS.values() for plan in read(RESULTS / f"{source}.json")]
    out = RESULTS / "scaling_plan.json"
    before = read(out) if out.exists() else {}
    compared = [compared_plan(*named) | step_of(named[1], document["models"]) for named in committed + given]
    document["plans_compared"] = compared + not_again(before.get("plans_compared", []), compared)
    document["slices_compared"] = compiled_slices() if args.compile else before.get("slices_compared", [])
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(efficiencies(document), checks(document), sep="\n\n")


def not_again(before: list[dict[str, Any]], compared: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of plans that only an earlier run was given: compiling one takes minutes or hours."""
    names = {row["plan"] for row in compared}
    return [row for row in before if row["plan"] not in names]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def network(topology: str) -> Network:
    from clipjax.planning.tpu_chips import TPUS

    name, _, shape = topology.partition(":")
    shape, _, slices = shape.partition("*")
    return Network(TPUS[name], math.prod(map(int, shape.split("x"))), int(slices or 1))


def scaled(name: str) -> dict[str, Any]:
    """One model: a row for each number of chips, loss and comm."""
    from clipjax.losses.comm import COMMS

    source, width, shapes = MODELS[name]
    plan = read(RESULTS / f"{source}.json")[0]
    parts = plan["time"]["estimated_seconds_by_part"]
    fixed = sum(seconds for part, seconds in parts.items() if part != "loss")
    towers = sum(seconds for part, seconds in parts.items() if part.split()[0] in ("image", "text"))
    # FLOPs of the whole step, without those of the loss, a chip.
    flops = sum(value for part, value in plan["flops"].items() if part != "loss") / plan["devices"]
    chip, rows = plan["topology"].partition(":")[0], []
    for shape in shapes:
        net = network(f"{chip}:{shape}")
        inside, between = gradients(net, plan["parameters"])
        waited = max(0.0, inside + between - BACKWARD * towers)
        for loss in LOSSES:
            taken = choice(net, loss, width)
            for comm in (comm for comm, row in COMMS.items() if row.work is not None):
                modelled = loss_seconds(net, loss, comm, width)
                step = fixed + modelled + waited
                rows.append(
                    {
                        "topology": f"{chip}:{shape}",
                        "chips": net.chips,
                        "batch": ROWS * net.chips,
                        "loss": loss,
                        "comm": comm,
                        "auto": comm == taken,
                        "loss_seconds": modelled,
                        "gradients_seconds": {"links": inside, "between slices": between, "waited": waited},
                        "step_seconds": step,
                        "mfu": flops / step / net.chip.peak,
                        "efficiency": fixed / step,
                        "efficiency_at_least": fixed / (fixed + modelled + inside + between),
                    }
                )
    return {"model": name, "chip": chip, "plan": source, "width": width, "fixed_seconds": fixed, "rows": rows}


def gradients(net: Network, parameters: int) -> tuple[float, float]:
    """Seconds to sum float32 gradients over the links of a slice, and between slices, each chip its part."""
    size, k, s = 4 * parameters, net.per_slice, net.slices
    return 2 * size * (k - 1) / k / net.links, 2 * size * (s - 1) / s / k / net.chip.dcn


def meeting_of(devices: int, rows: int, width: int, loss: str, dtype: str = "bfloat16") -> Any:
    from clipjax.losses.comm.cost import Meeting
    from clipjax.losses.tile_sizes import LARGEST

    itemsize, passes = {"bfloat16": 2, "float32": 4}[dtype], 2 if loss == "softmax" else 1
    return Meeting(rows, devices, width, LARGEST["tpu"], itemsize, passes)


def loss_seconds(net: Network, loss: str, comm: str, width: int, rows: int = ROWS, dtype: str = "bfloat16") -> float:
    """The cost model's time of the loss, with the published rates of the chip; its products as those of v5e, scaled."""
    from clipjax.losses.comm import COMMS
    from clipjax.losses.comm.cost import FAR, RATES, seconds
    from clipjax.planning.tpu_chips import TPUS

    rates = RATES["tpu"]
    rates = rates._replace(flops=rates.flops * net.chip.peak / TPUS["v5e"].peak, bandwidth=net.links)
    if net.slices > 1:
        rates = rates._replace(latency=FAR["latency"], far=net.chip.dcn, sharing=net.chips / (net.slices - 1))
    meeting = meeting_of(net.chips, rows, width, loss, dtype)
    return seconds(COMMS[comm].work(meeting), meeting, rates)


def choice(net: Network, loss: str, width: int) -> str:
    """What comm="auto" takes on these chips."""
    from types import SimpleNamespace

    import numpy as np

    from clipjax.config import LossConfig
    from clipjax.losses import chosen_comm

    chips = [SimpleNamespace(platform="tpu", process_index=0, slice_index=i // net.per_slice) for i in range(net.chips)]
    grid = np.array(chips, object).reshape(-1, 1, 1)
    mesh = SimpleNamespace(devices=grid, shape={"data": net.chips, "fsdp": 1, "tensor": 1})
    return chosen_comm(LossConfig(loss, dtype="bfloat16"), mesh, ROWS * net.chips, width)


def compared_losses() -> list[dict[str, Any]]:
    """The compiled losses of the committed table for v5e:16x16, each with its modelled time."""
    from clipjax.losses.comm import COMMS

    document = read(RESULTS / "loss_memory_v5e_16x16.json")
    net, found = network(document["topology"]), []
    for row in (row for rows in document["tables"].values() for row in rows if "seconds" in row):
        comm, _, rounded = row["form"].partition(" ")
        if comm not in COMMS or COMMS[comm].work is None:
            continue
        dtype, rows = "bfloat16" if rounded else "float32", row["batch"] // net.chips
        modelled = loss_seconds(net, row["loss"], comm, document["width"], rows, dtype)
        kept = {name: row[name] for name in ("loss", "batch", "form")}
        found.append(kept | {"compiled_seconds": row["seconds"], "modelled_seconds": modelled})
    return found


def crossing_bytes(net: Network, work: Any) -> float:
    """What a chip receives from other slices, by the cost model."""
    if net.slices == 1:
        return 0.0
    return work.received * (net.slices - 1) / net.chips if work.shared else work.received


def compiled_slices() -> list[dict[str, Any]]:
    """Compiles the softmax loss for two small slices: what crosses between them, and the modelled bytes."""
    from benchmarks.loss_memory import WIDTH, compiled_loss
    from clipjax.losses.comm import COMMS
    from clipjax.planning.hlo import parse
    from clipjax.planning.slices import transfers
    from clipjax.planning.topology import open_topology

    topology, net, found = open_topology(SLICES), network(SLICES), []
    meeting = meeting_of(net.chips, ROWS, WIDTH, "softmax", "float32")
    for comm in (comm for comm, row in COMMS.items() if row.work is not None):
        compiled, _, _ = compiled_loss("softmax", comm, ROWS * net.chips, topology.devices)
        moves = transfers(parse(compiled.as_text()), net.slices)
        work = COMMS[comm].work(meeting)
        found.append(
            {
                "comm": comm,
                "compiled_bytes": sum(move.bytes_received * move.times for move in moves),
                "modelled_bytes": crossing_bytes(net, work),
                "compiled_exchanges": sum(move.times for move in moves),
                "modelled_exchanges": work.collectives,
            }
        )
    return found


def compared_plan(name: str, plan: dict[str, Any], width: int = 768) -> dict[str, Any]:
    """A compiled plan's loss, and what its part of the collectives moves, with the modelled ones."""
    from clipjax.losses.comm import COMMS

    net, loss, comm = network(plan["topology"]), plan["loss"]["name"], plan["loss"]["comm"]
    rows = plan["global_batch_size"] // net.chips
    meeting = meeting_of(net.chips, rows, width, loss)
    work = COMMS[comm].work(meeting)
    far = [c for c in plan["collectives"] if c["kind"].endswith("between slices")]
    moved = sum(c["bytes_received"] * c["times"] for c in far if c["part"] == "loss")
    crossing = crossing_bytes(net, work)
    gradient = 8 * plan["parameters"] * (net.slices - 1) / net.slices / net.per_slice
    return {
        "plan": name,
        "topology": plan["topology"],
        "batch": plan["global_batch_size"],
        "loss": loss,
        "comm": comm,
        "compiled_by": plan["compiled_by"],
        "compiled_loss_seconds": plan["time"]["estimated_seconds_by_part"].get("loss", 0.0),
        "modelled_loss_seconds": loss_seconds(net, loss, comm, width, rows),
        "compiled_bytes_between_slices": {
            "loss": moved,
            "all": sum(c["bytes_received"] * c["times"] for c in far),
        },
        "modelled_bytes_between_slices": {"loss": crossing, "all": crossing + gradient},
    }


def step_of(plan: dict[str, Any], models: list[dict[str, Any]]) -> dict[str, float | None]:
    """The seconds of a compiled plan's whole step, and those of the modelled row for as many chips, if there is one."""
    chip = plan["topology"].partition(":")[0]
    wanted = (
        chip,
        network(plan["topology"]).chips,
        plan["global_batch_size"],
        plan["loss"]["name"],
        plan["loss"]["comm"],
    )
    rows = {
        (model["chip"], row["chips"], row["batch"], row["loss"], row["comm"]): row["step_seconds"]
        for model in models
        for row in model["rows"]
    }
    return {"compiled_step_seconds": plan["time"]["estimated_seconds"], "modelled_step_seconds": rows.get(wanted)}


def efficiencies(document: dict[str, Any]) -> str:
    """The page's tables: a row for each number of chips and loss, a column for each comm."""
    texts = []
    for model in document["models"]:
        comms = list(dict.fromkeys(row["comm"] for row in model["rows"]))
        lines = []
        for key in dict.fromkeys((row["topology"], row["loss"]) for row in model["rows"]):
            by_comm = {row["comm"]: row for row in model["rows"] if (row["topology"], row["loss"]) == key}
            taken = next(row for row in by_comm.values() if row["auto"])
            lines.append(
                [
                    f"{taken['chips']:,}", f"`{key[0]}`", f"{taken['batch']:,}", key[1],
                    *(cell(by_comm[comm]) for comm in comms),
                    f"`{taken['comm']}`", f"{taken['step_seconds'] * 1e3:.1f}", f"{taken['mfu']:.1%}",
                    f"{taken['efficiency_at_least']:.1%}",
                ]
            )  # fmt: skip
        header = [
            "Chips", "Slices", "Global batch", "Loss", *(f"`{comm}`" for comm in comms), "`auto` takes", "Step, ms",
            "MFU", "No transfer hidden",
        ]  # fmt: skip
        texts.append(f"{model['model']} on {model['chip']}:\n\n{table(header, lines)}")
    return "\n\n".join(texts)


def cell(row: dict[str, Any]) -> str:
    return f"{row['efficiency']:.1%} ({row['loss_seconds'] * 1e3:.2f})"


def checks(document: dict[str, Any]) -> str:
    """The page's tables of compiled figures beside modelled ones: losses of plans, and what crosses between slices."""
    plans = [
        [
            f"`{row['topology']}`", row["loss"], f"`{row['comm']}`", f"{row['batch']:,}",
            f"{row['compiled_loss_seconds'] * 1e3:.2f}", f"{row['modelled_loss_seconds'] * 1e3:.2f}",
            *(f"{row[f'{how}_step_seconds'] * 1e3:.1f}" if row[f"{how}_step_seconds"] else "-" for how in HOW),
        ]
        for row in document["plans_compared"]
    ]  # fmt: skip
    between = [
        [f"`{SLICES}`", f"`{row['comm']}`", "softmax alone"] + bytes_and_exchanges(row)
        for row in document["slices_compared"]
    ]
    between += [
        [f"`{row['topology']}`", f"`{row['comm']}`", f"{row['loss']}, whole step"]
        + bytes_and_exchanges({f"{how}_bytes": row[f"{how}_bytes_between_slices"]["all"] for how in HOW})
        for row in document["plans_compared"]
        if "*" in row["topology"]
    ]
    header = [
        "Plan",
        "Loss",
        "`comm`",
        "Global batch",
        "Loss, ms: compiled",
        "modelled",
        "Step, ms: compiled",
        "modelled",
    ]
    crossing = ["Slices", "`comm`", "Program", "MB a chip: compiled", "modelled", "Exchanges: compiled", "modelled"]
    return f"{table(header, plans)}\n\nBetween slices:\n\n{table(crossing, between)}"


def bytes_and_exchanges(row: dict[str, Any]) -> list[str]:
    counts = [f"{row[f'{how}_exchanges']:.0f}" if f"{how}_exchanges" in row else "-" for how in HOW]
    return [f"{row[f'{how}_bytes'] / 1e6:,.2f}" for how in HOW] + counts


if __name__ == "__main__":
    main()
