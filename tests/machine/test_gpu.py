"""clipjax/machine/gpu.py: JAX's share of a GPU's memory, and whether there is one."""

import pytest

from clipjax.machine.gpu import MEMORY_FRACTION, gpu_environment, gpu_present


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
