"""Compiled programs are kept on disk: the second start compiles nothing, and a bad folder stops nothing."""

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import pytest

from clipjax.machine import compilation_cache
from clipjax.machine.compilation_cache import default_folder, open_cache, processor, prune, quiet_failures
from tests.runs import ROOT, build_data, losses, write_experiment

# Trains each workdir of argv, and prints how many programs JAX wanted, found and wrote for each.
PROGRAM = """
import collections, json, os, sys
from clipjax.__main__ import main  # as a user starts it
import jax
from clipjax.commands import train

counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.rpartition("/")[2]]))
found = []
for arguments in json.loads(sys.argv[1]):
    counts.clear()
    jax.clear_caches()
    train.main(["train", *arguments])
    names = ("compile_requests_use_cache", "cache_hits", "cache_misses")
    found.append([counts[name] for name in names])
print(json.dumps(found))
"""


@pytest.fixture
def config():
    """JAX's settings, as they were, after the test."""
    names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache", "jax_persistent_cache_min_compile_time_secs")
    names += ("jax_remove_custom_partitioning_ptr_from_cache_key",)
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_enable_compilation_cache", True)
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)


def train(cache: Path, devices: int, *commands: list[str]) -> list[list[int]]:
    """[programs wanted, found in the cache, written to it] of each training, all in one new process."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XDG_"))}
    env |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cache)}
    flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
    env |= {"XLA_FLAGS": f"{flags} --xla_cpu_enable_concurrency_optimized_scheduler=false", "NPROC": "32"}
    command = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    process = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_a_second_start_and_a_second_restart_compile_nothing_and_train_to_the_same_bits(tmp_path, devices):
    build_data(tmp_path)
    experiment = [f"--config={write_experiment(tmp_path)}", f"--config.mesh.data={devices}"]

    def command(workdir: str, steps: int) -> list[str]:
        return [*experiment, f"--config.total_steps={steps}", f"--workdir={tmp_path / workdir}"]

    for wanted, found, written in train(tmp_path / "cache", devices, command("first", 6), command("base", 4)):
        assert wanted == found + written and written > 0
    shutil.copytree(tmp_path / "base", tmp_path / "again")
    (restarted,) = train(tmp_path / "cache", devices, command("base", 6))
    second, restarted_again = train(tmp_path / "cache", devices, command("second", 6), command("again", 6))
    for wanted, found, written in (second, restarted_again):
        assert wanted == found > 0 and written == 0
    assert restarted[0] == restarted_again[0]
    assert losses(tmp_path / "first") == losses(tmp_path / "second")
    assert losses(tmp_path / "base") == losses(tmp_path / "again")


def test_the_folder_is_below_xdg_cache_home_or_the_home_and_named_after_the_processor(tmp_path, monkeypatch):
    name, key = processor()
    assert name and len(key) == 12
    assert default_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "clipjax" / "compiled" / key
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for environ in ({}, {"XDG_CACHE_HOME": "relative"}):
        assert default_folder(environ) == tmp_path / "home" / ".cache" / "clipjax" / "compiled" / key


def test_another_processor_has_another_folder(monkeypatch):
    cpuinfo = "processor\t: 0\nmodel name\t: Xeon\nflags\t\t: avx2 {}\nbogomips\t: {}\n\nprocessor\t: 1\n"
    keys = {}
    for flags, speed in (("amx_bf16", 1), ("amx_bf16", 2), ("", 1)):
        text = cpuinfo.format(flags, speed)
        monkeypatch.setattr(Path, "read_text", lambda path, text=text: text)
        name, keys[flags, speed] = processor()
        assert name == "Xeon"
    assert keys["amx_bf16", 1] == keys["amx_bf16", 2] != keys["", 1]


def test_the_line_tells_the_folder_and_how_many_programs_it_has(tmp_path, config):
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    folder = default_folder(environ)
    assert open_cache(environ).startswith(f"Compiled programs: kept from now on in {folder} (")
    assert config.jax_compilation_cache_dir == str(folder) and not list(folder.iterdir())
    assert config.jax_persistent_cache_min_compile_time_secs == 0
    (folder / "jit_f-00-cache").write_bytes(b"12")
    assert "1 kept in" in open_cache(environ)


def test_a_folder_of_the_users_own_is_used_as_it_is(tmp_path, config, monkeypatch):
    monkeypatch.setattr(compilation_cache, "MOST", 0)
    (tmp_path / "jit_f-00-cache").write_bytes(b"12")
    environ = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "7"}
    before = config.jax_persistent_cache_min_compile_time_secs
    assert f"1 kept in {tmp_path} " in open_cache(environ)
    assert config.jax_persistent_cache_min_compile_time_secs == before


def test_nothing_is_kept_or_told_where_the_user_turned_the_cache_off(tmp_path, config):
    config.update("jax_enable_compilation_cache", False)
    assert open_cache({"XDG_CACHE_HOME": str(tmp_path)}) == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["a file in the way", "no space", "no home"])
def test_a_folder_that_cannot_be_used_costs_one_line(tmp_path, config, monkeypatch, what):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    environ, expected = {"XDG_CACHE_HOME": str(tmp_path)}, "No space left on device"
    if what == "a file in the way":
        (tmp_path / "clipjax").touch()
        expected = "Not a directory"
    elif what == "no space":
        monkeypatch.setattr(Path, "write_bytes", full)
    else:
        monkeypatch.setattr(Path, "home", lambda: Path("~nobody-of-this-name").expanduser())
        environ, expected = {}, "there is no home"
    line = open_cache(environ)
    assert line.startswith("Compiled programs are not kept") and expected in line and "\n" not in line
    assert not config.jax_enable_compilation_cache


def test_processes_that_do_not_see_the_folder_of_the_first_keep_nothing(tmp_path, config, monkeypatch):
    def answers(what, text):
        return [text, text] if what == "compilation cache" else [text, ""]

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(compilation_cache, "exchange", answers)
    assert "not all processes" in open_cache({"XDG_CACHE_HOME": str(tmp_path)})
    assert not config.jax_enable_compilation_cache


def test_programs_used_longest_ago_leave_a_folder_that_is_too_large(tmp_path):
    for number in range(4):
        file = tmp_path / f"jit_f-0{number}-cache"
        file.write_bytes(bytes(10))
        os.utime(file, (100 - number, 50))  # the last one was read longest ago
    assert prune(tmp_path, 25) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["jit_f-00-cache", "jit_f-01-cache"]


def test_a_damaged_program_is_compiled_again_and_replaced_without_a_word(tmp_path, config, capsys):
    config.update("jax_compilation_cache_dir", str(tmp_path))
    for name in ("jit_f-00-cache", "jit_f-01-cache", "jit_f_g-02-cache"):
        (tmp_path / name).touch()
    with quiet_failures():
        warnings.warn("Error reading persistent compilation cache entry for 'jit_f': ZstdError: data", stacklevel=1)
    assert [file.name for file in tmp_path.iterdir()] == ["jit_f_g-02-cache"]
    assert capsys.readouterr() == ("", "")


def test_a_disk_that_becomes_full_costs_one_line_and_leaves_no_half_program(tmp_path, config, capsys):
    config.update("jax_compilation_cache_dir", str(tmp_path))
    for number in range(3):
        (tmp_path / f"jit_f-0{number}-cache").touch()
        os.utime(tmp_path / f"jit_f-0{number}-cache", (number, number))
    with quiet_failures():
        for _ in range(2):
            warnings.warn("Error writing persistent compilation cache entry for 'jit_f': OSError: full", stacklevel=1)
    assert [file.name for file in tmp_path.iterdir()] == ["jit_f-00-cache"]
    assert capsys.readouterr().out.count("no longer kept") == 1


def test_other_warnings_are_shown_as_before(config):
    with pytest.warns(UserWarning, match="something else"), quiet_failures():
        warnings.warn("something else", stacklevel=1)
