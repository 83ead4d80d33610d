"""--topology=h100:8: which GPUs can be planned for, what is refused, and plans where the CUDA plugin is installed."""

import importlib.util
import json
from dataclasses import replace

import jax
import pytest

from clipjax.commands.plan import run
from clipjax.config import ConfigError
from clipjax.machine.gpu import MEMORY_FRACTION
from clipjax.machine.xla_options import SWITCHES
from clipjax.planning import gpu_topology
from clipjax.planning.chips import CHIPS, GIB, chip_of_kind
from clipjax.planning.compile import _refused
from clipjax.planning.gpu_cards import FRACTION_VARIABLES, GPUS, target_config
from clipjax.planning.measured import measured_steps
from clipjax.planning.table import plan_table
from clipjax.planning.targets import target_of
from clipjax.planning.topology import Topology, open_topology
from tests.tiny import tiny_config

needs_plugin = pytest.mark.skipif(
    not any(importlib.util.find_spec(plugin) for plugin in gpu_topology.PLUGINS), reason="no CUDA plugin"
)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h10:8", "'h10' is not a chip that plans can be made for. Did you mean 'h100'.*a100, b200, h100, h200, l4"),
        ("h100:3x3", "GPUs of a host have no shape.*h100:8, or h100:8[*]4"),
        ("h100:0", "must be at least 1"),
        ("h100:8*0", "that of hosts 1 to 4,096"),
        ("h100:8*99999999999", "that of hosts 1 to 4,096"),
        ("h100:16", "a host has at most 8 cards; for more, write h100:8[*]N for N hosts, here h100:8[*]2"),
        ("h100:12", "a host has at most 8 cards; for more, write h100:8[*]N for N hosts[.]"),
        ("h100", "is not understood.*GPU:N, such as h100:8"),
    ],
)
def test_gpu_topologies_that_cannot_be_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        open_topology(name)


def test_without_the_cuda_plugin_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(gpu_topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs JAX's CUDA plugin.*no GPU is needed.*\[gpu-plan\]"):
        open_topology("h100:8")


def test_without_cudnn_the_message_says_how_to_get_it(monkeypatch):
    class Versions:
        @staticmethod
        def cudnn_get_version():
            raise RuntimeError("cuDNN not found.")

    monkeypatch.setattr(gpu_topology.importlib, "import_module", lambda name: Versions)
    monkeypatch.setattr(gpu_topology.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(ConfigError, match=r"the CUDA plugin finds no cuDNN \(cuDNN not found.\).*\[gpu-plan\]"):
        open_topology("h100:8")


def test_the_share_of_a_cards_memory_that_a_run_reserves_is_what_a_step_may_use(monkeypatch):
    for name in (*FRACTION_VARIABLES, SWITCHES["gpu"]):
        monkeypatch.delenv(name, raising=False)
    card = CHIPS["h100"].in_this_environment()
    assert card.hbm == float(MEMORY_FRACTION) * card.memory == 0.9 * 84_942_979_072
    monkeypatch.setenv(SWITCHES["gpu"], "off")
    assert card.in_this_environment().hbm == 0.75 * card.memory
    monkeypatch.setenv(FRACTION_VARIABLES[1], "0.8")
    assert card.in_this_environment().hbm == 0.8 * card.memory
    for wrong in ("90", "-1", "nan", "most"):
        monkeypatch.setenv(FRACTION_VARIABLES[1], wrong)
        with pytest.raises(ConfigError, match=f"MEM_FRACTION={wrong} in the environment is not a share"):
            card.in_this_environment()


def test_cards_are_known_by_the_names_that_drivers_give_them():
    assert chip_of_kind("NVIDIA H100 80GB HBM3") is GPUS["h100"]
    assert chip_of_kind("NVIDIA GeForce GTX 970") is None
    text = target_config(GPUS["l4"], (9, 8))
    assert "core_count: 58" in text and "major: 8 minor: 9" in text and "shared_memory_per_block_optin: 101376" in text


def test_a_table_says_that_nothing_was_measured_or_what_was(tmp_path):
    step = {"contender": "clipjax", "model": "b16", "loss": "softmax", "batch": 256, "milliseconds": 110.0}
    cells = [step | {"planned_milliseconds": 100.0}, step | {"contender": "open_clip"}, {"error": "no"} | step]
    name = "NVIDIA H100 80GB HBM3"
    (tmp_path / "gpu_step_h100.json").write_text(json.dumps({"card": {"name": name}, "cells": cells}))
    (tmp_path / "gpu_step_damaged.json").write_text("{")
    (found,) = measured_steps(CHIPS["h100"], tmp_path)
    assert found["planned_milliseconds"] == 100 and found["file"] == "gpu_step_h100.json"
    assert measured_steps(CHIPS["a100"], tmp_path) == []
    plan = a_plan()
    plan["time"]["measured"] = []
    assert "No step measured on this card has checked it yet" in plan_table(plan)
    plan["time"]["measured"] = [found]
    assert "Measured on this card: b16 softmax, batch 256: 110.0 ms, 1.10 of its plan" in plan_table(plan)


def test_a_step_that_fits_only_a_larger_share_of_the_card_is_told():
    plan = a_plan()
    plan["memory"]["total"] = 73 * GIB
    plan |= {"fits": False, "nearest": None}
    assert "It would fit with XLA_PYTHON_CLIENT_MEM_FRACTION=0.93." in plan_table(plan)
    plan["memory"]["total"] = 78 * GIB
    assert "It would fit" not in plan_table(plan)


def a_plan():
    names = ("params", "optimizer", "batch", "temporaries", "gradients", "activations", "total")
    card = CHIPS["h100"]
    time = {name: {} for name in ("estimated_seconds_by_part", "estimated_mfu_by_part", "at_least")}
    work = {"kind": "product", "times": 2.0, "flops": 1e12, "bytes": 1e9, "seconds": 0.1, "limited_by": {"memory": 0.1}}
    return {
        "topology": "h100:8",
        "devices": 8,
        "device_kind": card.device_kind,
        "mesh": {"data": 8},
        "global_batch_size": 64,
        "loss": {"name": "sigmoid", "comm": "ring"},
        "parameters": 10,
        "compile_seconds": 1.0,
        "compiled_by": {"jax": "1"},
        "memory": dict.fromkeys(names, float(GIB)) | {"available": card.hbm, "device": card.memory},
        "fits": True,
        "collectives": [],
        "kernels": [],
        "flops": {},
        "time": time
        | {"estimated_seconds": 0.1, "estimated_mfu": 0.5, "factors": {"launch": 1e-6}}
        | {"work": [work], "transfers": {"seconds": 0.02, "waited_for": 0.01}, "measured": []},
        "loops_of_unknown_length": [],
    }


@needs_plugin
def test_hosts_of_gpus_are_described_host_after_host():
    devices = open_topology("h100:8*4").devices
    assert [device.process_index for device in devices] == [i // 8 for i in range(32)]
    assert {device.device_kind for device in devices} == {"NVIDIA H100 80GB HBM3"}


@needs_plugin
@pytest.mark.slow
def test_a_plan_for_gpus_that_are_not_here():
    config = replace(tiny_config((4, 2, 1)), global_batch_size=64)
    (found,) = run(config, "h100:8")
    assert found["fits"] is True
    assert found["memory"]["available"] < found["memory"]["device"] == CHIPS["h100"].memory
    assert {"image tower", "text tower", "loss", "optimizer"} <= found["time"]["estimated_seconds_by_part"].keys()
    assert 0 < found["time"]["estimated_mfu"] < 1
    assert found["time"]["estimated_seconds"] > found["time"]["at_least"]["matrix units"]
    assert any(row["kind"] == "product" for row in found["time"]["work"])
    assert found["time"]["transfers"]["seconds"] > found["time"]["transfers"]["waited_for"] >= 0
    assert any("cudnn" in package for package in found["compiled_by"])


def test_a_compiler_that_gives_up_is_one_line():
    error = jax.errors.JaxRuntimeError("INTERNAL: libdevice not found at ./libdevice.10.bc\nmore")
    refused = _refused(error, Topology("h100:8", [], CHIPS["h100"]), target_of(CHIPS["h100"]))
    assert "--topology=h100:8: the compiler gives up: INTERNAL: libdevice not found" in str(refused)
    assert "jax-cuda12-plugin" in str(refused) and "[gpu-plan]" in str(refused) and "\n" not in str(refused)
    assert _refused(error, Topology("cpu:8", [], None), target_of(None)) is error
