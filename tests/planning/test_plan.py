"""`clipjax plan`: real compiles for CPUs and, where libtpu is installed, for TPU slices nobody has here."""

import importlib.metadata
import importlib.util
import json
import math
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest

from clipjax.commands import plan
from clipjax.commands.plan import nearest_that_may_fit, override, run
from clipjax.config import ConfigError, MeshConfig
from clipjax.mesh import make_mesh
from clipjax.models import image_tower, text_tower
from clipjax.models.presets import PRESETS
from clipjax.planning import compile as compiling
from clipjax.planning import kernels, topology
from clipjax.planning.chips import CHIPS, GIB
from clipjax.planning.compile import OutOfMemory
from clipjax.planning.flops import step_flops
from clipjax.planning.hlo import parse, shapes_in
from clipjax.planning.kernels import kernel_times
from clipjax.planning.table import _time_lines
from clipjax.planning.topology import open_topology
from clipjax.training.state import abstract_state
from clipjax.training.step import lower_step
from tests import runs
from tests.tiny import tiny_config

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@pytest.mark.slow
def test_a_plan_for_the_devices_of_this_process(tmp_path, capsys):
    config = replace(tiny_config((4, 2, 1)), global_batch_size=64)
    ours, other = run(config, "cpu:8", compare="loss.comm=ring", out=tmp_path / "plan.json")
    assert ours["devices"] == 8
    assert ours["fits"] is None
    shards = ours["memory"]
    # Two moments a parameter, in the parameter's layout, and a few counters.
    assert shards["optimizer"] == pytest.approx(2 * shards["params"], rel=0.01)
    assert shards["params"] < 4 * ours["parameters"]
    assert shards["batch"] == 64 // 8 * (16 * 16 * 3 + 8 * 4)
    kinds = [{c["kind"] for c in p["collectives"] if c["part"] == "loss"} for p in (ours, other)]
    assert "all-gather" in kinds[0]
    assert kinds[1] >= {"collective-permute"}
    assert "all-gather" not in kinds[1]
    assert json.loads((tmp_path / "plan.json").read_text()) == json.loads(json.dumps([ours, other]))
    printed = capsys.readouterr().out
    assert "loss.comm=ring" in printed
    assert "collective-permute" in printed


def test_parameters_that_are_frozen_have_no_gradients_to_store():
    config = tiny_config((1, 8, 1), image_lr_multiplier=0.0)
    mesh = make_mesh(config.mesh)
    state = abstract_state(config, mesh)
    sizes = dict.fromkeys(("argument", "output", "alias", "temp", "generated_code"), 10**6)
    analysis = SimpleNamespace(**{f"{name}_size_in_bytes": size for name, size in sizes.items()})
    memory = compiling._memory(SimpleNamespace(memory_analysis=lambda: analysis), config, mesh, state, None)
    frozen = sum(
        4 * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(state.params["image"])
    )
    assert memory["gradients"] == memory["params"] - frozen > 0
    assert memory["gradients"] + memory["activations"] == memory["temporaries"]


def test_model_flops_are_those_of_the_published_tables():
    """GFLOPs of a forward pass as in open_clip's model_profile.csv: image and text towers of ViT-B/32 and ViT-L/14."""
    for preset, image, text in (("clip_vit_b32", 8.82, 5.96), ("clip_vit_l14", 162.0, 13.3)):
        model = PRESETS[preset]
        config = replace(tiny_config(), model=model, global_batch_size=1)
        flops = step_flops(config)
        for name, row, whole in (("image", image_tower, image), ("text", text_tower, text)):
            tower = getattr(model, name)
            products, attention, _, unread = row(tower).flops(tower, model.embed_dim)
            assert (products + attention) / 1e9 == pytest.approx(whole, rel=0.01)
            # Of the last of 12 or 24 blocks, only one row is needed, and attention of its heads to the others.
            assert sum(unread) / (products + attention) == pytest.approx(1 / tower.depth, rel=0.06)
            counted = flops[f"{name} tower"] + flops[f"{name} attention"]
            assert counted == 3 * (products + attention - sum(unread))
    frozen = replace(config, optimizer=replace(config.optimizer, image_lr_multiplier=0.0))
    assert step_flops(frozen)["image tower"] == pytest.approx(flops["image tower"] / 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5x:16x16", "'v5x' is not a chip that plans can be made for. Did you mean 'v5"),
        ("v5e-256", "is not understood. Expected CHIP:AxB"),
        ("cpu:0", "cpu:0: expected a number of devices from 1 to 1,024, such as cpu:8"),
        ("cpu:1025", "cpu:1025: expected a number of devices from 1 to 1,024"),
        ("cpu:99", "this process has 8 CPU device.*xla_force_host_platform_device_count=99"),
    ],
)
def test_unknown_topologies_are_refused_with_what_is_known(name, message):
    with pytest.raises(ConfigError, match=message):
        open_topology(name)


@pytest.mark.parametrize("name", ["cpu:0", "cpu:1025", "cpu:99999999999", "local", "v5e:4x4"])
def test_xla_is_asked_for_no_number_of_devices_that_is_refused(name):
    assert topology.host_devices_flag(name) is None and topology.host_devices_flag("cpu:1024").endswith("=1024")


def test_without_libtpu_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the libtpu package.*no TPU is needed.*\[tpu\]"):
        open_topology("v5e:16x16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(mesh=MeshConfig(3, 1, 1)), "does not fit 8 device"),
        (dict(accumulation_steps=5), "accumulation_steps=5 does not divide the 8 rows of one device"),
        (dict(global_batch_size=60), "config.global_batch_size=60 does not divide over the mesh"),
    ],
)
def test_impossible_combinations_are_refused_before_compiling(changes, message):
    config = replace(replace(tiny_config(), global_batch_size=64), **changes)
    with pytest.raises(ConfigError, match=message):
        run(config, "cpu:8")


def test_a_tile_that_does_not_divide_is_refused_before_compiling():
    config = replace(tiny_config(), global_batch_size=64)
    with pytest.raises(ConfigError, match="config.loss.tile=3 does not divide the 8 rows"):
        run(replace(config, loss=replace(config.loss, tile=3)), "cpu:8")


def test_overrides_are_checked_like_the_command_lines():
    config = tiny_config()
    assert override(config, "loss.comm=ring, model.image.remat=full").model.image.remat == "full"
    assert override(config, "optimizer.learning_rate=0.5").optimizer.learning_rate == 0.5
    with pytest.raises(ConfigError, match="Unknown field config.loss.com. Did you mean .comm"):
        override(config, "loss.com=ring")
    with pytest.raises(ConfigError, match="config.loss.repeats='positive' is not a choice. Did you mean 'positives'"):
        override(config, "loss.repeats=positive")


@pytest.mark.parametrize("compare", ["loss.comm=nosuch", "mesh.tensor=3", "loss.tile=3"])
def test_what_is_compared_is_refused_before_the_experiment_is_compiled(monkeypatch, compare):
    monkeypatch.setattr(plan, "plan_step", lambda *_: pytest.fail("compiled"))
    with pytest.raises(ConfigError, match=compare.partition("=")[0].rpartition(".")[2]):
        run(replace(tiny_config(), global_batch_size=64), "cpu:8", compare=compare)


def test_plans_are_written_again_and_a_folder_or_a_file_of_somebody_else_is_refused_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "plan_step", lambda *_: {"fits": True})
    monkeypatch.setattr(plan, "plan_table", lambda _: "")
    config = replace(tiny_config(), global_batch_size=64)
    for _ in range(2):
        run(config, "cpu:8", out=tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text()) == [{"overrides": "", "fits": True}]
    monkeypatch.setattr(plan, "plan_step", lambda *_: pytest.fail("compiled"))
    (tmp_path / "mine.json").write_text("{}")
    for name, message in (("", "is a folder"), ("mine.json", "exists and is not a file of plans")):
        with pytest.raises(ConfigError, match=message):
            run(config, "cpu:8", out=tmp_path / name)


def test_the_search_goes_from_the_least_change_to_the_greatest():
    changes = [change for change, _ in nearest_that_may_fit(tiny_config())]
    assert changes[0] == "model.image.remat=dots model.text.remat=dots"
    assert "remat=full" in changes[1]
    assert changes[2].endswith("accumulation_steps=2")


@pytest.mark.slow
def test_the_command_prints_a_table_without_a_device(tmp_path):
    runs.build_data(tmp_path)
    experiment = runs.write_experiment(tmp_path)
    process = runs.start("plan", f"--config={experiment}", "--topology=cpu:4", devices=1)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "cpu:4: 4 x cpu, mesh data 4" in output
    assert f" s by jax {jax.__version__}\n" in output
    assert "parameters" in output


@needs_libtpu
def test_a_slice_that_is_not_here():
    config = replace(tiny_config((4, 2, 2)), global_batch_size=256)
    (found,) = run(config, "v5e:4x4")
    assert found["compiled_by"] == {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    assert found["fits"] is True
    assert found["memory"]["available"] == 15.75 * GIB
    parts = found["time"]["estimated_seconds_by_part"]
    assert {"image tower", "image attention", "text tower", "loss", "optimizer"} <= parts.keys()
    assert 0 < found["time"]["estimated_mfu"] < 1
    assert all(bound > 0 for bound in found["time"]["at_least"].values())
    assert found["time"]["estimated_seconds"] > found["time"]["at_least"]["matrix units"]


@needs_libtpu
@pytest.mark.slow
def test_flash_attention_is_four_kernels_whose_schedules_are_read():
    """Forward and backward of both towers, on the examples and heads of one device; no [length, length] in memory."""
    config = tiny_config((2, 1, 2))
    image = replace(
        config.model.image, projection=True, image_size=24, width=256, num_heads=4, mlp_dim=512, attention="flash"
    )
    text = replace(config.model.text, attention="flash", causal=True)
    config = replace(
        config, global_batch_size=32, model=replace(config.model, image=image, text=text, dtype="bfloat16")
    )
    found = open_topology("v5e:2x2")
    mesh = make_mesh(config.mesh, found.devices)
    text = lower_step(config, mesh, abstract_state(config, mesh), None).compile().as_text()
    assert not {shape for shape in shapes_in(text) if shape[-2:] == (36, 36)}
    timed = kernel_times(parse(text), found.chip)
    assert {(k["part"], k["function"], k["times"]) for k in timed} == {
        ("image attention", "flash_forward", 2),
        ("image attention", "flash_backward", 2),
        ("text attention", "flash_forward", 1),
        ("text attention", "flash_backward", 1),
    }
    for k in timed:
        expected = (16, 36, 2, 64, False) if k["part"] == "image attention" else (16, 8, 2, 8, True)
        assert tuple(k[name] for name in ("batch", "length", "heads", "d", "causal")) == expected
        assert k["seconds"] == k["bundles"] * k["steps"] / found.chip.clock > 0


def test_kernels_without_a_schedule_are_not_counted_in_silence(monkeypatch):
    monkeypatch.setattr(kernels, "run_child", lambda *args, **_: subprocess.CompletedProcess(args, 1, "", "no"))
    kernel = kernels.Kernel("flash_forward", 16, 36, 2, 64, False, "bfloat16")
    assert kernels._bundles([kernel], CHIPS["v5e"]) == [None]
    timed = kernels._timed(kernel, "image attention", 2.0, None, CHIPS["v5e"])
    time = {name: {} for name in ("estimated_seconds_by_part", "estimated_mfu_by_part", "at_least")}
    plan = {"flops": {}, "kernels": [timed], "time": time | {"estimated_seconds": None}}
    assert "NOT in the estimate: attention's kernels" in "\n".join(_time_lines(plan))


def test_a_kernel_is_known_by_its_name():
    name = "jit(step)/attention/flash_backward_16x729x16x72_causal_masked"
    kernel = kernels._kernel(name, [("bf16", (3, 11664, 1152))])
    assert kernel == kernels.Kernel("flash_backward", 16, 729, 16, 72, True, "bfloat16", True)
    # Two heads a step; a masked kernel also reads 256 bytes a row.
    one, other = (
        kernels._timed(k, "image attention", 1.0, 0, CHIPS["v5e"]) for k in (kernel, kernel._replace(masked=False))
    )
    assert one["steps"] == 16 * 8
    assert one["seconds"] - other["seconds"] == pytest.approx(16 * 729 * 256 / CHIPS["v5e"].hbm_bandwidth)


def test_evaluations_of_a_batch_that_does_not_divide_stop_no_plan_and_are_told(monkeypatch, capsys):
    """A pod of 512 chips is planned before anyone thinks of evaluations, whose default batch is 256."""
    config = replace(tiny_config(), global_batch_size=16)
    config = replace(config, eval=replace(config.eval, batch_size=12))
    monkeypatch.setattr(plan, "plan_or_nearest", lambda config, topology, search: {})
    monkeypatch.setattr(plan, "plan_table", lambda plan: "")
    run(config, "cpu:8")
    assert "another batch for evaluations: config.eval.batch_size=12 does not divide" in capsys.readouterr().out
    refused = []
    monkeypatch.setattr(compiling, "check", lambda config, **_: refused.append(config.eval.batch_size) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compiling.plan_step(config, open_topology("cpu:8"))
    assert refused == [16]


@needs_libtpu
def test_slices_split_the_data_axis_and_nothing_else():
    devices = open_topology("v5e:2x2*2").devices
    mesh = make_mesh(MeshConfig(data=4, fsdp=2), devices)
    for part, index in ((mesh.devices[:2], 0), (mesh.devices[2:], 1)):
        assert {device.slice_index for device in part.ravel()} == {index}
    with pytest.raises(ConfigError, match="data=1 does not divide over 2 slices: fsdp=8"):
        make_mesh(MeshConfig(data=1, fsdp=8), devices)


@pytest.mark.slow
def test_what_does_not_fit_is_said_with_the_nearest_that_does(monkeypatch, capsys):
    """The compiler gives up, then compiles something a little too large, then something that fits."""
    config = replace(tiny_config(), global_batch_size=64)
    (good,) = run(config, "cpu:8")
    too_large = good | {"fits": False}
    answers = [OutOfMemory(34 * GIB, 15.75 * GIB, "Ran out of memory"), too_large, good | {"fits": True}]
    monkeypatch.setattr(plan, "plan_step", lambda config, topology: answers.pop(0))
    (found,) = run(config, "cpu:8")
    assert found["fits"] is False
    assert found["nearest"]["change"] == "model.image.remat=full model.text.remat=full"
    assert found["nearest"]["fits"] is True
    printed = capsys.readouterr().out
    assert "does not fit: it needs 34.00 GiB a device and has 15.75" in printed
    assert "Nearest that fits: model.image.remat=full" in printed


@needs_libtpu
@pytest.mark.slow
def test_the_compiler_running_out_of_memory_is_an_answer_not_an_error():
    config = tiny_config((1, 1, 1), loss="softmax", comm="dense")
    (found,) = run(replace(config, global_batch_size=131_072), "v5e:1x1", search=False)
    assert found["fits"] is False
    assert found["memory"]["total"] > found["memory"]["available"] == 15.75 * GIB


def test_local_is_what_is_here():
    assert open_topology("local").devices == jax.devices()
