"""benchmarks.gpu_step: toy models on the CPU run as the real ones do on a card, and what it says without one."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import gpu_step
from benchmarks.gpu_models import CONTENDERS, MODELS, Cell, batch_of, device_events, kernel_name


def toy(contender: str, loss: str = "softmax") -> Cell:
    return Cell(contender, "toy", loss, MODELS["toy"].batch, True)


@pytest.mark.slow  # starts a process that compiles a step
def test_the_toy_run_writes_a_measurement_with_rate_and_kernels(tmp_path, capsys):
    out = tmp_path / "result.json"
    arguments = ["--toy", "--contenders=clipjax", "--losses=softmax", f"--out={out}", "--cell_seconds=300"]
    assert gpu_step.main(arguments) == 0
    (cell,) = json.loads(out.read_text())["cells"]
    assert cell["images_per_second"] > 0 and len(cell["milliseconds_of_windows"]) == 4
    assert cell["kernels"] and cell["flops_per_pair"] > 0 and "more_error" not in cell
    assert "toy softmax batch 4 clipjax" in capsys.readouterr().out


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
    results = {"clipjax": {"error": "stopped after 5 s"}, "transformers": {"images_per_second": 2.0}}
    rest = {"milliseconds": 1.0, "peak_memory_bytes": 0, "seconds_to_first_step": 1.0, "kernels": []}
    monkeypatch.setattr(gpu_step, "start", lambda task, cell, *_: dict(rest | results[cell.contender]))
    cells = [toy("clipjax"), toy("transformers")]
    gpu_step.run_all(cells, None, tmp_path / "x.json", gpu_step.time.monotonic() + 100, 5)
    printed = capsys.readouterr().out
    assert "clipjax: FAILED: stopped after 5 s" in printed and "transformers: 2 images/s" in printed
    assert len(json.loads((tmp_path / "x.json").read_text())["cells"]) == 2


def test_a_worker_that_cannot_start_is_an_error_with_its_last_line():
    result = gpu_step.start("measure", Cell("nobody", "toy", "softmax", 4, True), dict(gpu_step.os.environ), 100)
    assert result["error"].startswith("exit 1: KeyError")


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
