"""config.model.dtype="auto": what decides, what is kept, and what a restarted run does."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import pytest

from clipjax.commands.preflight import Preflight
from clipjax.commands.sweep import refuse_changed
from clipjax.config import ConfigError, ModelConfig, to_json_dict
from clipjax.machine import compute_dtype
from clipjax.machine.compute_dtype import check_dtype, choose_dtype, measure_speedup, measured_speedup
from tests.runs import build_data, write_experiment
from tests.tiny import tiny_config

AUTO = ModelConfig(dtype="auto")


def device(platform, kind="", **attributes):
    return [SimpleNamespace(platform=platform, device_kind=kind, **attributes)]


@pytest.fixture
def speedup(monkeypatch):
    """Sets what this processor is said to measure."""
    return lambda value: monkeypatch.setattr(compute_dtype, "measured_by_first", lambda: value)


@pytest.mark.parametrize("value, dtype", [(0.4, "float32"), (1.99, "float32"), (2.0, "bfloat16"), (4.8, "bfloat16")])
def test_a_processor_computes_in_bfloat16_where_it_multiplies_it_twice_as_fast(speedup, value, dtype):
    speedup(value)
    model, line = choose_dtype(AUTO)
    assert model == dataclasses.replace(AUTO, dtype=dtype)
    assert line.startswith(f"config.model.dtype=auto is {dtype}: ") and f"{value:.2f} times" in line


@pytest.mark.parametrize(
    "devices, dtype",
    [
        (device("tpu", "TPU v5 lite"), "bfloat16"),
        (device("gpu", "NVIDIA H100 80GB HBM3", compute_capability="9.0"), "bfloat16"),
        (device("gpu", "NVIDIA A100-SXM4-40GB", compute_capability="8.0"), "bfloat16"),
        (device("gpu", "Tesla V100-SXM2-16GB", compute_capability="7.0"), "float32"),
        (device("gpu", "Tesla T4", compute_capability="7.5"), "float32"),
        (device("gpu", "Tesla T4"), "float32"),
        (device("gpu", "NVIDIA H100 80GB HBM3"), "bfloat16"),
        (device("gpu", "AMD Instinct MI300X", compute_capability="gfx942"), "bfloat16"),
    ],
)
def test_an_accelerator_computes_in_bfloat16_where_it_has_units_for_it(devices, dtype):
    model, line = choose_dtype(AUTO, devices)
    assert model.dtype == dtype and dtype in line
    asked = ModelConfig(dtype="bfloat16")
    if dtype == "bfloat16":
        check_dtype(asked, devices)
    else:
        with pytest.raises(ConfigError, match="has no units for it"):
            check_dtype(asked, devices)
    check_dtype(ModelConfig(dtype="float32"), devices)


def test_a_dtype_that_is_named_is_neither_measured_nor_told(monkeypatch):
    monkeypatch.setattr(compute_dtype, "measured_by_first", None)
    for dtype in ("float32", "bfloat16"):
        assert choose_dtype(ModelConfig(dtype=dtype)) == (ModelConfig(dtype=dtype), "")
        check_dtype(ModelConfig(dtype=dtype))


def test_the_measurement_is_kept_for_each_processor_and_version_of_jaxlib(tmp_path, monkeypatch):
    environ, calls = {"XDG_CACHE_HOME": str(tmp_path)}, []

    def measure():
        calls.append(1)
        return 2.5

    assert [measured_speedup(measure, environ) for _ in range(2)] == [2.5, 2.5] and len(calls) == 1
    (file,) = (tmp_path / "clipjax" / "bfloat16").iterdir()
    for text in ("", "{}", "[]", '{"speedup": "fast"}', '{"speedup": NaN}', '{"speedup": -1}', '{"speedup": null}'):
        file.write_text(text)
        assert measured_speedup(measure, environ) == 2.5
    assert len(calls) == 8
    monkeypatch.setattr(compute_dtype, "processor", lambda: ("Another", "0123456789ab"))
    assert measured_speedup(measure, environ) == 2.5 and len(calls) == 9
    monkeypatch.setattr(compute_dtype.jaxlib, "__version__", "99.0")
    assert measured_speedup(measure, environ) == 2.5 and len(calls) == 10


def test_a_measurement_that_cannot_be_kept_is_made_at_each_start(tmp_path):
    (tmp_path / "clipjax").touch()
    assert measured_speedup(lambda: 3.0, {"XDG_CACHE_HOME": str(tmp_path)}) == 3.0


def test_the_measurement_multiplies_in_both_dtypes(monkeypatch):
    for name, value in (("ROWS", 32), ("WIDTH", 16), ("HIDDEN", 32), ("ROUNDS", 2)):
        monkeypatch.setattr(compute_dtype, name, value)
    assert measure_speedup() > 0


def test_all_processes_compute_in_what_the_first_has_measured(monkeypatch):
    monkeypatch.setattr(compute_dtype, "measured_speedup", lambda: 3.0)
    monkeypatch.setattr(compute_dtype, "exchange", lambda what, text: ["2.25" if text == "" else text, text])
    for index, expected in ((0, 3.0), (1, 2.25)):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        compute_dtype.measured_by_first.cache_clear()
        assert compute_dtype.measured_by_first() == expected
    compute_dtype.measured_by_first.cache_clear()


def auto_config():
    config = tiny_config()
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="auto"))


def test_a_restarted_run_keeps_the_dtype_that_its_config_names_and_says_so(tmp_path, speedup):
    speedup(4.0)
    assert Preflight(auto_config(), tmp_path).config.model.dtype == "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(to_json_dict(tiny_config())))
    restarted = Preflight(auto_config(), tmp_path)
    assert restarted.config.model.dtype == "float32" and "the run has begun with" in restarted.dtype_line
    (tmp_path / "config.json").write_text('{"model": 3}')
    assert Preflight(auto_config(), tmp_path).config.model.dtype == "bfloat16"


def test_clipjax_check_names_the_dtype(speedup):
    speedup(4.0)
    assert "config.model.dtype=auto is bfloat16: " in Preflight(auto_config()).check_configuration()


def test_a_sweep_continues_cells_whose_dtype_was_chosen_for_them(tmp_path):
    build_data(tmp_path)
    file = f"--config={write_experiment(tmp_path)}"
    from clipjax.commands.flags import read_config

    cell = SimpleNamespace(path="cell", set={}, seed=0)
    (tmp_path / "cell").mkdir()
    trained = read_config([file, "--config.model.dtype=bfloat16", "--config.seed=0"])
    (tmp_path / "cell" / "config.json").write_text(json.dumps(to_json_dict(trained)))
    refuse_changed(tmp_path, [cell], file, ["--config.model.dtype=auto"])
    with pytest.raises(ConfigError, match="model.dtype='bfloat16'"):
        refuse_changed(tmp_path, [cell], file, ["--config.model.dtype=float32"])
