"""benchmarks.gpu_step: toy models on the CPU run as the real ones do on a card, and what it says without one."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import gpu_step
from benchmarks.gpu_clipjax import ClipJax, device_events
from benchmarks.gpu_contender import kernel_name
from benchmarks.gpu_models import MODELS, VARIANTS, Cell, batch_of
from benchmarks.gpu_workers import CONTENDERS, Worker, prepare_all, worker_environment
from clipjax.planning.compile import check_plan
from clipjax.planning.flops import BatchFlops
from clipjax.planning.topology import open_topology


def toy(contender: str, loss: str = "softmax", variant: str = "") -> Cell:
    return Cell(contender, "toy", loss, MODELS["toy"].batch, True, variant)


@pytest.mark.slow  # starts a process that compiles a step
def test_the_toy_run_writes_a_measurement_with_rate_and_kernels(tmp_path, capsys):
    out = tmp_path / "result.json"
    arguments = ["--toy", "--contenders=clipjax", f"--out={out}", "--cell_seconds=300", "--minutes=20"]
    assert gpu_step.main(arguments) == 0
    cells = json.loads(out.read_text())["cells"]
    assert [cell["loss"] for cell in cells] == ["softmax", "sigmoid"]
    for cell in cells:
        assert cell["images_per_second"] > 0 and len(cell["milliseconds_of_windows"]) == 4
        assert cell["kernels"] and cell["flops_per_pair"] > 0 and cell["seconds_to_prepare"] > 0
    assert "toy softmax batch 4 clipjax" in capsys.readouterr().out


@pytest.mark.parametrize("loss", gpu_step.LOSSES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_experiment_of_clipjax_passes_its_checks(loss, variant):
    for model, size in MODELS.items():
        config = ClipJax(Cell("clipjax", model, loss, size.batch, variant=variant)).config()
        check_plan(config, open_topology("cpu:1"))


def test_cut_texts_are_shorter_and_cost_fewer_flops():
    whole, cut = (ClipJax(Cell("clipjax", "b32", "softmax", 4, variant=v)) for v in ("", "cut_texts"))
    assert whole.batch()["text"].shape == (4, 77) and cut.batch()["text"].shape[1] < 77
    flops = [BatchFlops(one.config())(one.batch()) for one in (whole, cut)]
    assert flops[1] < flops[0]


@pytest.mark.slow  # imports PyTorch and builds its models
@pytest.mark.parametrize("name", ["transformers", "open_clip"])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_a_pytorch_contender_takes_steps_that_lower_the_loss(name, loss):
    pytest.importorskip("torch")
    pytest.importorskip(name)
    contender = CONTENDERS[name](toy(name, loss))
    step, losses = contender.begin(), []
    for _ in range(30):
        step()
        losses.append(contender.wait())
    assert losses[-1] < losses[0]


def test_without_a_card_it_says_so_and_measures_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu_step, "describe_card", lambda: None)
    assert gpu_step.main([f"--out={tmp_path / 'x.json'}"]) == 2
    out, error = capsys.readouterr()
    assert "No NVIDIA GPU" in error and '"jax"' in out and not (tmp_path / "x.json").exists()


def test_a_part_that_fails_or_takes_too_long_is_told_and_the_others_are_measured(monkeypatch, capsys, tmp_path):
    prepared = {"clipjax": {"error": "stopped after 5 s"}}
    measured = {"images_per_second": 2.0, "milliseconds": 1.0, "peak_memory_bytes": 0, "kernels": []}
    ready = {"seconds_to_prepare": 1.0}
    monkeypatch.setattr(gpu_step, "prepare_all", lambda ws, *_: [prepared.get(w.cell.contender, ready) for w in ws])
    results = {"transformers": measured, "open_clip": {"error": "exit 1: out of memory"}}
    monkeypatch.setattr(Worker, "measure", lambda worker, seconds: results[worker.cell.contender])
    cells = [toy("clipjax"), toy("transformers"), toy("open_clip")]
    gpu_step.run_all(cells, None, tmp_path / "x.json", gpu_step.time.monotonic() + 100, 5)
    printed = capsys.readouterr().out
    assert "clipjax: FAILED: stopped after 5 s" in printed and "transformers: 2 images/s" in printed
    assert "open_clip: FAILED: exit 1: out of memory" in printed
    assert len(json.loads((tmp_path / "x.json").read_text())["cells"]) == 3


def test_a_worker_that_cannot_start_or_is_too_slow_is_an_error_and_no_process_is_left(tmp_path):
    environment = worker_environment(tmp_path)
    (gone,) = prepare_all([worker := Worker(toy("clipjax", "nobody"))], environment, 100)
    assert gone["error"].startswith("exit 1: KeyError: 'nobody'") and worker.process.poll() is not None
    (slow,) = prepare_all([worker := Worker(toy("clipjax"))], environment, 0.01)
    assert slow["error"].startswith("stopped after") and worker.process.poll() is not None


def test_mfu_is_images_times_flops_over_the_cards_peak():
    assert gpu_step.with_mfu({"images_per_second": 10.0, "flops_per_pair": 5.0}, 100.0)["mfu"] == 0.5
    assert gpu_step.peak_of("NVIDIA H100 80GB HBM3") == 989.4e12 and gpu_step.peak_of("NVIDIA H100 PCIe") == 756e12
    assert gpu_step.peak_of("Unknown") is None and gpu_step.slug("NVIDIA H100 80GB HBM3") == "h100_80gb_hbm3"


def test_the_summary_is_the_ratio_to_the_fastest_other():
    rows = [("clipjax", 30.0), ("transformers", 20.0), ("open_clip", 15.0)]
    cells = [{"contender": name, "model": "b16", "loss": "softmax", "images_per_second": rate} for name, rate in rows]
    assert gpu_step.summary(cells) == "b16 softmax: clipjax / transformers = 1.50"


def test_numbered_copies_of_a_kernel_are_one():
    assert {kernel_name(n) for n in ("loop_add_fusion", "loop_add_fusion_12", "loop_add_fusion.3")} == {
        "loop_add_fusion"
    }


def test_kernels_of_a_gpu_are_the_events_of_its_streams():
    def plane(name, line):
        event = SimpleNamespace(name="gemm", duration_ns=2e6)
        return SimpleNamespace(name=name, lines=[SimpleNamespace(name=line, events=[event, event])])

    planes = [
        plane("/host:CPU", "tf_XLAEigen"),
        plane("/device:GPU:0", "Stream #13"),
        plane("/device:GPU:0", "XLA Ops"),
    ]
    assert device_events(planes) == {"gemm": (4e-3, 2)}


@pytest.mark.parametrize("model", MODELS)
def test_captions_end_with_the_largest_token_and_are_padded_with_zeros(model):
    _, text = batch_of(Cell("clipjax", model, "softmax", 2))
    for row in text:
        end = int((row == MODELS[model].vocab - 1).argmax())
        assert end > 0 and (row[end + 1 :] == 0).all() and row.max() == row[end]


def test_unknown_names_are_refused():
    with pytest.raises(SystemExit, match="--models: b64 is not among b32, b16, l14, toy"):
        gpu_step.main(["--models=b64"])
