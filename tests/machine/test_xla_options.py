"""clipjax/machine/xla_options.py: which of XLA's options are set for GPUs and TPUs, and when they are not."""

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from clipjax.machine.gpu import gpu_environment
from clipjax.machine.xla_options import OPTIONS, SWITCHES, compile_known, describe_options, step_options

CARD = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3")
COMBINE = "xla_gpu_all_reduce_combine_threshold_bytes"
VMEM = "xla_tpu_scoped_vmem_limit_kib"
GPU = [option for option in OPTIONS if option.platform == "gpu"]


def tpu(kind):
    return SimpleNamespace(platform="tpu", device_kind=kind)


def test_options_are_those_of_the_table_for_several_gpus_and_without_collectives_for_one():
    assert step_options([CARD] * 8, {}) == {o.name: o.value for o in GPU}
    assert COMBINE not in step_options([CARD], {}) and "xla_gpu_enable_triton_gemm" in step_options([CARD], {})


def test_other_devices_get_no_options():
    assert step_options(jax.devices(), {}) == {}
    assert step_options([tpu("TPU v4")] * 8, {}) == step_options([tpu("TPU v5 lite")], {}) == {}


@pytest.mark.parametrize("kind", ["TPU v5", "TPU v6 lite"])
def test_products_on_tpus_may_use_more_of_their_vector_memory_unless_the_user_says(kind):
    assert step_options([tpu(kind)], {}) == {VMEM: 48 * 1024}
    assert describe_options(step_options([tpu(kind)], {}), [tpu(kind)]).startswith("TPU: 48 MiB of vector memory")
    assert step_options([tpu(kind)], {"LIBTPU_INIT_ARGS": f"--{VMEM}=98304"}) == {}
    assert step_options([tpu(kind)], {SWITCHES["tpu"]: "off"}) == {}
    assert step_options([tpu(kind)], {SWITCHES["gpu"]: "off"}) == {VMEM: 48 * 1024}


@pytest.mark.parametrize("in_file", [False, True])
def test_what_the_user_set_in_xla_flags_is_left_to_the_user(tmp_path, in_file):
    text = f"--xla_dump_to=x --{COMBINE}=0"
    if in_file:
        (tmp_path / "flags").write_text(text)
    options = step_options([CARD] * 2, {"XLA_FLAGS": str(tmp_path / "flags") if in_file else text})
    assert COMBINE not in options and len(options) == len(GPU) - 1


@pytest.mark.parametrize("word", ["off", "0", "False"])
def test_one_variable_switches_everything_off(word):
    assert step_options([CARD], {SWITCHES["gpu"]: word}) == {}
    assert gpu_environment({SWITCHES["gpu"]: word}, present=True) == {}


def test_this_jaxlib_compiles_with_every_option():
    lowered = jax.jit(lambda x: x + 1).lower(jnp.ones(()))
    options = step_options([CARD] * 8, {})
    compiled, unknown = compile_known(lambda known: lowered.compile(compiler_options=known), options)
    assert unknown == [] and float(compiled(jnp.ones(()))) == 2.0


def test_this_jaxlib_accepts_every_option_as_a_flag_too():
    flags = " ".join(f"--{name}={str(value).lower()}" for name, value in step_options([CARD] * 8, {}).items())
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    program = "import jax; print(jax.jit(lambda x: x + 1)(1.0))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "2.0", done.stderr


def test_an_option_that_jaxlib_does_not_know_is_left_out_and_named():
    lowered = jax.jit(lambda x: x + 1).lower(jnp.ones(()))
    options = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_of_another_release": True, "xla_gpu_autotune_level": "x"}
    compiled, unknown = compile_known(lambda known: lowered.compile(compiler_options=known), options)
    assert sorted(unknown) == ["xla_gpu_autotune_level", "xla_gpu_of_another_release"]
    assert float(compiled(jnp.ones(()))) == 2.0


def test_another_error_of_the_compiler_is_raised():
    def compile_with(options):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        compile_known(compile_with, step_options([CARD], {}))


def test_the_line_says_what_the_options_do():
    assert describe_options({}, [CARD]) == ""
    line = "GPU: products by cuBLAS, one product a matrix (docs/gpu.md)"
    assert describe_options(step_options([CARD], {}), [CARD]) == line
    assert describe_options(step_options([CARD] * 2, {}), [CARD]).startswith("GPU: collectives overlapped, sums in")
