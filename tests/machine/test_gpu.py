"""clipjax/machine/gpu.py: which of XLA's options and which variables are set for GPUs, and when they are not."""

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from clipjax.machine.gpu import (
    MEMORY_FRACTION,
    OPTIONS,
    SWITCH,
    compile_known,
    describe_options,
    gpu_environment,
    gpu_options,
    gpu_present,
)

CARD = SimpleNamespace(platform="gpu")
COMBINE = "xla_gpu_all_reduce_combine_threshold_bytes"


def test_options_are_those_of_the_table_for_several_gpus_and_without_collectives_for_one():
    assert gpu_options([CARD] * 8, {}) == {o.name: o.value for o in OPTIONS}
    assert COMBINE not in gpu_options([CARD], {}) and "xla_gpu_enable_triton_gemm" in gpu_options([CARD], {})


def test_other_devices_get_no_options():
    assert gpu_options(jax.devices(), {}) == {}
    assert gpu_options([SimpleNamespace(platform="tpu")] * 8, {}) == {}


@pytest.mark.parametrize("in_file", [False, True])
def test_what_the_user_set_in_xla_flags_is_left_to_the_user(tmp_path, in_file):
    text = f"--xla_dump_to=x --{COMBINE}=0"
    if in_file:
        (tmp_path / "flags").write_text(text)
    options = gpu_options([CARD] * 2, {"XLA_FLAGS": str(tmp_path / "flags") if in_file else text})
    assert COMBINE not in options and len(options) == len(OPTIONS) - 1


@pytest.mark.parametrize("word", ["off", "0", "False"])
def test_one_variable_switches_everything_off(word):
    assert gpu_options([CARD], {SWITCH: word}) == {}
    assert gpu_environment({SWITCH: word}, present=True) == {}


def test_this_jaxlib_compiles_with_every_option():
    lowered = jax.jit(lambda x: x + 1).lower(jnp.ones(()))
    options = gpu_options([CARD] * 8, {})
    compiled, unknown = compile_known(lambda known: lowered.compile(compiler_options=known), options)
    assert unknown == [] and float(compiled(jnp.ones(()))) == 2.0


def test_this_jaxlib_accepts_every_option_as_a_flag_too():
    flags = " ".join(f"--{name}={str(value).lower()}" for name, value in gpu_options([CARD] * 8, {}).items())
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
        compile_known(compile_with, gpu_options([CARD], {}))


def test_the_line_says_what_the_options_do():
    assert describe_options({}) == ""
    assert describe_options(gpu_options([CARD], {})) == "products by cuBLAS, one product a matrix"
    assert describe_options(gpu_options([CARD] * 2, {})).startswith("collectives overlapped, sums in pieces")


@pytest.mark.parametrize(
    "own",
    [{}, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
     {"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}, {"XLA_CLIENT_MEM_FRACTION": "0.5"}],
)  # fmt: skip
def test_jax_gets_more_of_the_memory_unless_the_user_chose(own):
    wanted = {} if own else {"XLA_PYTHON_CLIENT_MEM_FRACTION": MEMORY_FRACTION}
    assert gpu_environment(own, present=True) == wanted
    assert gpu_environment(own, present=False) == {}


@pytest.mark.parametrize(
    ("files", "environ", "present"),
    [
        (["nvidia0", "nvidiactl"], {}, True),
        (["dxg"], {}, True),
        (["nvidiactl", "null"], {}, False),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": ""}, False),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": "-1"}, False),
        (["nvidia0", "nvidia1"], {"CUDA_VISIBLE_DEVICES": "1"}, True),
        (["nvidia0"], {"JAX_PLATFORMS": "cpu"}, False),
        (["nvidia0"], {"JAX_PLATFORMS": "cuda,cpu"}, True),
    ],
)
def test_a_gpu_is_present_where_its_files_are_and_nothing_hides_it(tmp_path, files, environ, present):
    for name in files:
        (tmp_path / name).touch()
    assert gpu_present(environ, tmp_path) == present
