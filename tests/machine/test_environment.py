"""What a command sets for its own process before JAX is imported."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from clipjax.machine import environment
from clipjax.machine.environment import GIB, Setting, has_accelerator, kept_memory


@pytest.fixture
def cpu(monkeypatch):
    monkeypatch.setattr(environment, "ACCELERATORS", ())
    monkeypatch.setattr(environment, "_has_glibc", lambda: True)
    monkeypatch.setattr(environment, "memory_limit", lambda: 64 * GIB)


def test_a_training_run_on_cpu_keeps_its_memory_and_says_so(cpu):
    setting = kept_memory("train", {})
    assert setting.act and "CLIPJAX_KEEP_MEMORY=0" in setting.line


@pytest.mark.parametrize("command", ["", "--help", "check", "sweep", "eval"])
def test_only_training_keeps_memory(cpu, command):
    assert kept_memory(command, {}) is None


@pytest.mark.parametrize(
    "environ",
    [
        {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
        {"MALLOC_ARENA_MAX": "2"},
        {"MALLOC_TRIM_THRESHOLD_": "1"},
        {"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"},
        {"CLIPJAX_KEEP_MEMORY": "0"},
        {"JAX_PLATFORMS": "cuda"},
    ],
)
def test_what_the_user_has_chosen_is_left_alone(cpu, environ):
    assert kept_memory("train", environ) is None


def test_memory_is_not_kept_where_there_is_little_and_the_line_says_so(cpu, monkeypatch):
    monkeypatch.setattr(environment, "memory_limit", lambda: 3 * GIB)
    setting = kept_memory("train", {})
    assert setting.act is None and "only 3.0 GiB" in setting.line


def test_no_setting_without_glibc(cpu, monkeypatch):
    monkeypatch.setattr(environment, "_has_glibc", lambda: False)
    assert kept_memory("train", {}) is None


def test_an_accelerator_is_recognised_by_its_device_file_unless_jax_is_told_to_use_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "ACCELERATORS", (str(tmp_path / "nvidia[0-9]*"),))
    assert not has_accelerator({})
    (tmp_path / "nvidia0").touch()
    assert has_accelerator({})
    assert not has_accelerator({"JAX_PLATFORMS": "cpu"})
    assert has_accelerator({"JAX_PLATFORMS": "cuda,cpu"})


def test_settings_are_applied_and_their_lines_told_once(monkeypatch):
    done, environ = [], {"PATH": "/bin"}
    settings = (
        lambda command, environ: Setting({"XLA_FLAGS": command}, "a line", lambda: done.append(dict(environ))),
        lambda command, environ: None,
    )
    monkeypatch.setattr(environment, "SETTINGS", settings)
    environment.prepare("train", environ)
    assert environ == {"PATH": "/bin", "XLA_FLAGS": "train"} and done == [environ]
    assert environment.lines() == ["a line"] and environment.lines() == []


FREED = """
import ctypes, sys
from clipjax.machine.environment import keep_memory
kept = sys.argv[1] != "kept" or keep_memory(1 << 30)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
block = libc.malloc(64 << 20)
libc.memset(block, 1, 64 << 20)
libc.free(block)
pages = int(open("/proc/self/statm").read().split()[1])
print(int(kept), pages * 4096 >> 20)
"""


@pytest.mark.skipif(not environment._has_glibc() or sys.platform != "linux", reason="glibc on Linux")
def test_freed_memory_stays_with_the_process_only_when_it_is_kept():
    after = {}
    for how in ("kept", "plain"):
        output = subprocess.run([sys.executable, "-c", FREED, how], capture_output=True, text=True, check=True).stdout
        assert output.startswith("1")
        after[how] = int(output.split()[1])
    assert after["kept"] >= after["plain"] + 60


def test_a_training_run_takes_more_of_a_gpus_memory_and_says_so(monkeypatch):
    monkeypatch.setattr(environment, "gpu_present", lambda environ: True)
    setting = environment.more_gpu_memory("train", {})
    assert setting.variables == {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"} and "90%" in setting.line
    assert environment.more_gpu_memory("eval", {}) is None
    assert environment.more_gpu_memory("train", {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}) is None
    monkeypatch.setattr(environment, "gpu_present", lambda environ: False)
    assert environment.more_gpu_memory("train", {}) is None


class Function:
    """A function whose types can be set, as ctypes has them."""

    def __init__(self, call):
        self.call = call

    def __call__(self, *arguments):
        return self.call(*arguments)


def test_nothing_is_trimmed_however_much_address_space_is_reserved(monkeypatch):
    options, advised = {}, []
    libc = SimpleNamespace(
        mallopt=lambda option, value: options.update({option: value}) or 1,
        malloc=Function(lambda size: 12345),
        free=Function(lambda block: None),
        madvise=Function(lambda *call: advised.append(call)),
    )
    monkeypatch.setattr(environment.ctypes, "CDLL", lambda name: libc)
    assert environment.keep_memory(64 * GIB)
    # a threshold below the reserve would give it back at the first free
    assert options == {environment.M_TRIM_THRESHOLD: -1, environment.M_MMAP_MAX: 0, environment.M_ARENA_MAX: 1}
    ((start, length, advice),) = advised
    assert start % environment.HUGE_PAGE == length % environment.HUGE_PAGE == 0 and advice == environment.MADV_HUGEPAGE
    assert 12345 <= start and start + length <= 12345 + 64 * GIB
