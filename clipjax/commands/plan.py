"""Estimates what an experiment costs on a TPU slice, GPU hosts, a mesh of CPUs or this machine, before anyone pays.

    clipjax plan --config=experiments/siglip_b16.py --topology=v5e:16x16
    clipjax plan --config=experiments/siglip_b16.py --topology=v5e:16x16 --compare=loss.comm=ring --out=plan.json
    clipjax plan --config=experiments/clip_b32.py:clip_vit_l14 --topology=v5p:8x8x4 --config.model.image.remat=dots
    clipjax plan --config=experiments/siglip_b16.py --topology=h100:8
    clipjax plan --config=experiments/siglip_b16.py --topology=h100:8*4
    clipjax plan --config=experiments/quickstart.py --topology=cpu:8

Compiles the real train step for that topology (TPUs: with the libtpu package; GPUs: with JAX's CUDA plugin; neither
must be there) and reads the compiled program: memory, collectives, an estimate of time.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from clipjax.commands import flags as cli
from clipjax.commands.preflight import check_out
from clipjax.config import ConfigError, ExperimentConfig, from_config_dict, require, to_config_dict
from clipjax.files import write_text
from clipjax.machine.compute_dtype import check_dtype, choose_dtype
from clipjax.mesh import mesh_shape
from clipjax.models import image_tower
from clipjax.planning.chips import GIB
from clipjax.planning.compile import OutOfMemory, check_plan, plan_step
from clipjax.planning.table import compare_table, plan_table
from clipjax.planning.topology import Topology, host_devices_flag, open_topology
from clipjax.storage import as_path
from clipjax.training.check import check_batch

PLANS = '[\n  {\n    "overrides": '  # how --out's file begins


def run(
    config: ExperimentConfig, topology: str, *, compare: str = "", search: bool = True, out: str | Path | None = None
) -> list[dict[str, Any]]:
    """Plans config, and with `compare` also config with overrides such as "loss.comm=ring,model.image.remat=full".

    Prints a table for each, writes the plans to `out` as JSON, and returns them. A plan that does not fit has "fits":
    False and, with `search`, "nearest": the plan of the smallest change that fits.
    Raises ConfigError, before compiling, for an unknown topology, an impossible combination, and an existing file `out`
    that holds no plans.
    """
    if out:
        out = as_path(out)
        check_out(out, lambda head: head.startswith(PLANS), "a file of plans that clipjax plan wrote")
    devices = open_topology(topology)
    configs = {"": config} | ({compare: override(config, compare)} if compare else {})
    for one in configs.values():  # compiling the first may take minutes
        check_plan(one, devices)
    plans = []
    for name, one in configs.items():
        model, line = choose_dtype(one.model, devices.devices)
        check_dtype(model, devices.devices)
        if line:
            print(line, flush=True)
        one = dataclasses.replace(one, model=model)
        print(f"Compiling {name or 'the experiment'} for {topology} ({len(devices.devices)} devices) ...", flush=True)
        if needs := evaluation_needs(one, len(devices.devices)):
            print(needs, flush=True)
        plans.append({"overrides": name} | plan_or_nearest(one, devices, search=search))
        print(plan_table(plans[-1]), flush=True)
    if compare:
        print(compare_table(plans))
    if out:
        write_text(out, json.dumps(plans, indent=2))
        print(f"Wrote {out}")
    return plans


def evaluation_needs(config: ExperimentConfig, num_devices: int) -> str:
    """What to say if a run on num_devices would refuse config.eval.batch_size; "" if it would not."""
    try:
        check_batch("eval.batch_size", config.eval.batch_size, mesh_shape(config.mesh, num_devices), 1)
    except ConfigError as error:
        return f"A run there will need another batch for evaluations: {error}"
    return ""


def override(config: ExperimentConfig, overrides: str) -> ExperimentConfig:
    """config with "section.field=value,..." changed. Raises ConfigError for an unknown field or a wrong type."""
    tree = to_config_dict(config)
    for item in overrides.split(","):
        name, equals, value = item.strip().removeprefix("config.").partition("=")
        require(bool(equals), f"--compare={overrides}: '{item}' is not name=value, such as loss.comm=ring.")
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = {"True": True, "False": False, "None": None}.get(value, value)
        try:
            with tree.ignore_type():
                tree.update_from_flattened_dict({name: parsed})
        except (KeyError, AttributeError, ValueError) as error:
            raise ConfigError(f"--compare={overrides}: config.{name} does not exist ({error}).") from None
    return from_config_dict(ConfigDict(tree))


def plan_or_nearest(config: ExperimentConfig, topology: Topology, *, search: bool) -> dict[str, Any]:
    """The plan; where it does not fit, "nearest" is the plan of the smallest change that does, or None."""
    plan = plan_step(config, topology)
    if isinstance(plan, OutOfMemory):
        plan = {
            "topology": topology.name,
            "devices": len(topology.devices),
            "fits": False,
            "memory": {"total": plan.needed, "available": plan.available},
            "message": plan.message,
        }
    if plan["fits"] is not False:
        return plan
    plan["nearest"] = None
    memory = plan["memory"]
    for change, candidate in nearest_that_may_fit(config) if search else ():
        print(
            f"Needs {memory['total'] / GIB:.1f} of {memory['available'] / GIB:.2f} GiB a device. Trying {change} ...",
            flush=True,
        )
        other = plan_step(candidate, topology)
        if not isinstance(other, OutOfMemory) and other["fits"]:
            return plan | {"nearest": {"change": change} | other}
    return plan


def nearest_that_may_fit(config: ExperimentConfig) -> Iterator[tuple[str, ExperimentConfig]]:
    """Yields (what to change, the config), the smallest change first: remat, then micro-batches."""
    order = ("none", "attention", "dots", "full")
    now = config.model.image.remat
    for remat in order[order.index(now) + 1 :] if now in order else ():
        if remat == "attention":
            continue  # "dots" saves much more and costs little
        change = f"model.image.remat={remat} model.text.remat={remat}"
        yield change, _with_remat(config, remat)
    if image_tower(config.model.image).running_statistics and config.optimizer.image_lr_multiplier:
        return  # training/check.py refuses micro-batches with BatchNorm
    base, prefix = (config, "") if now == "full" else (_with_remat(config, "full"), "remat=full for both towers and ")
    for factor in (2, 4, 8, 16):
        steps = config.accumulation_steps * factor
        yield f"{prefix}accumulation_steps={steps}", dataclasses.replace(base, accumulation_steps=steps)


def _with_remat(config: ExperimentConfig, remat: str) -> ExperimentConfig:
    image, text = (dataclasses.replace(t, remat=remat) for t in (config.model.image, config.model.text))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, image=image, text=text))


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string(
            "topology", None, "v5e:16x16, v5e:16x16*2, h100:8, h100:8*4, cpu:8 or local.", flag_values=values
        )
        flags.DEFINE_string("compare", "", "Also plan with these overrides: loss.comm=ring,...", flag_values=values)
        flags.DEFINE_bool(
            "search", True, "If it does not fit, look for the smallest change that does.", flag_values=values
        )
        flags.DEFINE_string("out", None, "Also write the plans as JSON.", flag_values=values)

    values = cli.parse(argv, __doc__, define, required=("config", "topology"), processes=False)
    if flag := host_devices_flag(values.topology):
        # JAX reads it when it first looks for devices, which happens later.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    if values.topology != "local":
        jax.config.update("jax_platforms", "cpu")  # planning for another machine must not occupy a device of this one
    options = dict(compare=values.compare, search=values.search, out=values.out)
    cli.run_command(
        values, lambda: run(cli.experiment_of(values, fetch=False), values.topology, **options), cache=False
    )
