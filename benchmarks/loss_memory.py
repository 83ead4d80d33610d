"""Measures memory, time and traffic of the losses for each `comm`, and of gather + reduce-scatter.

    python -m benchmarks.loss_memory --topology=cpu:1       # one CPU device; a minute
    python -m benchmarks.loss_memory                        # eight CPU devices; minutes
    python -m benchmarks.loss_memory --topology=v5e:16x16   # planned for a slice, to a million (needs libtpu)

Writes benchmarks/results/loss_memory_TOPOLOGY.json and prints its rows. The forms compared:

  dense       the textbook formula on a [B, B] matrix, on one device or partitioned by GSPMD, with plain autodiff
  reference   what open_clip does with local_loss and gather_with_grad: all-gather, [b, B] logits of images and of
              texts, and autodiff, which reduce-scatters the gradients in float32 (softmax only; written here)
  all_gather, chunked, ring   clipjax's
  ... bf16    the same with embeddings moved as bfloat16 (config.loss.dtype)
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import statistics
import sys
import time
from pathlib import Path

from benchmarks.machine import command, machine

RESULTS = Path(__file__).parent / "results"
WIDTH = 512
MEASURED = (4096, 8192)
COMPILED = (32_768, 131_072, 262_144)
PLANNED = (32_768, 131_072, 524_288, 1_048_576)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="cpu:8", help="cpu:1, cpu:8, or a slice such as v5e:16x16")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each form; the forms take turns")
    args = parser.parse_args()
    planned = not args.topology.startswith("cpu")
    import jax

    jax.config.update("jax_platforms", "cpu")
    from clipjax.planning.topology import host_devices_flag, open_topology

    flags = (os.environ.get("XLA_FLAGS", ""), host_devices_flag(args.topology) or "")
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()

    topology = open_topology(args.topology)
    document = {"topology": args.topology, "width": WIDTH, "jax": jax.__version__, "tables": {}}
    document |= {"command": command("benchmarks.loss_memory"), "machine": machine()}
    if planned:
        document["libtpu"] = importlib.metadata.version("libtpu")
        for name in ("softmax", "sigmoid"):
            document["tables"][name] = [row for batch in PLANNED for row in plan_rows(name, batch, topology)]
    elif len(topology.devices) == 1:
        one = functools.partial(measured_rows, devices=topology.devices, rounds=args.rounds)
        document["tables"]["one device"] = [*one("softmax", 8192), *one("sigmoid", 8192)]
    else:
        for name in ("softmax", "sigmoid"):
            rows = [r for b in MEASURED for r in measured_rows(name, b, devices=topology.devices, rounds=args.rounds)]
            rows += [r for b in COMPILED for r in measured_rows(name, b, devices=topology.devices, rounds=0)]
            document["tables"][name] = rows
    RESULTS.mkdir(exist_ok=True)
    out = RESULTS / f"loss_memory_{args.topology.replace(':', '_')}.json"
    out.write_text(json.dumps(document, indent=1) + "\n")
    for title, rows in document["tables"].items():
        print(f"\n{title}\n{markdown(rows)}")
    print(f"\nWrote {out}", file=sys.stderr)


def forms(name: str, devices: int) -> list[str]:
    if devices == 1:
        return ["dense", "all_gather"]
    ours = ["dense", "all_gather", "chunked", "ring", "all_gather bf16", "chunked bf16", "ring bf16"]
    return (["reference", "reference bf16"] if name == "softmax" else []) + ours


def compiled_loss(name: str, form: str, batch: int, devices: list):
    """Compiles the loss and its gradients (embeddings, scale, bias) for [batch, WIDTH] float32 embeddings."""
    import jax
    import jax.numpy as jnp

    from clipjax.config import LossConfig, MeshConfig
    from clipjax.losses import make_loss
    from clipjax.mesh import batch_sharding, make_mesh, replicated

    mesh = make_mesh(MeshConfig(), devices)
    form, rounds = form.removesuffix(" bf16"), form.endswith(" bf16")
    if form == "reference":
        loss = reference_softmax(mesh, rounds)
    else:
        loss_fn = make_loss(LossConfig(name, form, dtype="bfloat16" if rounds else "float32"), mesh)
        loss = lambda x, y, scale, bias: loss_fn(x, y, logit_scale=scale, logit_bias=bias)[0]  # noqa: E731
    rows, scalar = batch_sharding(mesh), replicated(mesh)
    embedding = jax.ShapeDtypeStruct((batch, WIDTH), jnp.float32, sharding=rows)
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=scalar)
    step = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)), out_shardings=(scalar, (rows, rows, scalar, scalar)))
    return step.lower(embedding, embedding, number, number).compile(), rows, scalar


def reference_softmax(mesh, rounds: bool):
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec as P

    from clipjax.mesh import BATCH_AXES

    @jax.custom_vjp
    def gather(a):
        if not rounds:
            return jax.lax.all_gather(a, BATCH_AXES, tiled=True)
        # Moved as integers: the CPU's compiler would move bfloat16 as float32.
        bits = jax.lax.bitcast_convert_type(a.astype(jnp.bfloat16), jnp.uint16)
        bits = jax.lax.all_gather(bits, BATCH_AXES, tiled=True)
        return jax.lax.bitcast_convert_type(bits, jnp.bfloat16).astype(jnp.float32)

    gather.defvjp(lambda a: (gather(a), None), lambda _, g: (jax.lax.psum_scatter(g, BATCH_AXES, tiled=True),))

    def device(x, y, scale):
        all_x, all_y = gather(x), gather(y)
        own = jax.lax.axis_index(BATCH_AXES) * len(x) + jnp.arange(len(x))
        entropy = 0.0
        for mine, others in ((x, all_y), (y, all_x)):
            logits = scale * jnp.matmul(mine, others.T, precision=jax.lax.Precision.HIGHEST)
            picked = jnp.take_along_axis(logits, own[:, None], axis=1)[:, 0]
            entropy += 0.5 * (jax.nn.logsumexp(logits, axis=1) - picked).mean()
        return jax.lax.pmean(entropy, BATCH_AXES)

    rows = P(BATCH_AXES)
    sharded = jax.shard_map(device, mesh=mesh, in_specs=(rows, rows, P()), out_specs=P())
    return lambda x, y, scale, bias: sharded(x, y, scale) + 0.0 * bias


def measured_rows(name: str, batch: int, *, devices: list, rounds: int) -> list[dict]:
    """Returns a row for each form: the compiler's count of temporaries and, unless rounds is 0, median times."""
    import jax
    import numpy as np

    from clipjax.planning.hlo import collectives, parse

    steps, rows = {}, []
    for form in forms(name, len(devices)):
        compiled, sharding, scalar = compiled_loss(name, form, batch, devices)
        moved = collectives(parse(compiled.as_text()), len(devices))
        rows.append(
            {
                "loss": name,
                "batch": batch,
                "form": form,
                "temporaries_a_device": compiled.memory_analysis().temp_size_in_bytes,
                "received_a_device": sum(c.bytes_received * c.times for c in moved),
            }
        )
        steps[form] = compiled
    if rounds:
        rng = np.random.default_rng(0)
        x, y = (rng.normal(size=(batch, WIDTH)).astype(np.float32) for _ in range(2))
        x, y = (jax.device_put(a / np.linalg.norm(a, axis=1, keepdims=True), sharding) for a in (x, y))
        numbers = [jax.device_put(np.float32(v), scalar) for v in (10.0, -10.0)]
        seconds: dict[str, list[float]] = {form: [] for form in steps}
        cpu: dict[str, list[float]] = {form: [] for form in steps}
        for turn in range(rounds + 1):
            for form, step in steps.items():
                started, cpu_started = time.perf_counter(), time.process_time()
                jax.block_until_ready(step(x, y, *numbers))
                if turn:  # the first run warms up
                    seconds[form].append(time.perf_counter() - started)
                    cpu[form].append(time.process_time() - cpu_started)
        for row in rows:
            row["seconds"] = statistics.median(seconds[row["form"]])
            row["cpu_seconds"] = statistics.median(cpu[row["form"]])
            row["samples"] = [round(s, 4) for s in seconds[row["form"]]]
    return rows


def plan_rows(name: str, batch: int, topology) -> list[dict]:
    from clipjax.planning.compile import out_of_memory
    from clipjax.planning.hlo import collectives, parse

    rows = []
    for form in forms(name, len(topology.devices)):
        if form == "dense" and batch > PLANNED[0]:
            continue
        try:
            compiled, _, _ = compiled_loss(name, form, batch, topology.devices)
        except Exception as error:
            memory = out_of_memory(str(error))
            if memory is None:
                raise
            rows.append(
                {"loss": name, "batch": batch, "form": form, "temporaries_a_device": memory.needed, "fits": False}
            )
            continue
        program = parse(compiled.as_text())
        moved = collectives(program, len(topology.devices))
        rows.append(
            {
                "loss": name,
                "batch": batch,
                "form": form,
                "temporaries_a_device": compiled.memory_analysis().temp_size_in_bytes,
                "received_a_device": sum(c.bytes_received * c.times for c in moved),
                "seconds": sum(i.cycles * i.times for i in program.executed()) / topology.chip.clock,
            }
        )
    return rows


def markdown(rows: list[dict]) -> str:
    lines = [
        "| loss | global batch | form | temporaries a device, MB | received a device, MB | ms | CPU ms |",
        "|" + " --- |" * 7,
    ]
    for row in rows:
        received = f"{row['received_a_device'] / 1e6:,.1f}" if "received_a_device" in row else "-"
        ms = f"{row['seconds'] * 1e3:,.1f}" if "seconds" in row else "-"
        cpu = f"{row['cpu_seconds'] * 1e3:,.0f}" if "cpu_seconds" in row else "-"
        temporaries = f"{row['temporaries_a_device'] / 1e6:,.1f}" + ("" if row.get("fits", True) else " (does not fit)")
        lines.append(
            f"| {row['loss']} | {row['batch']:,} | {row['form']} | {temporaries} | {received} | {ms} | {cpu} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
