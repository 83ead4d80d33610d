"""clipjax doctor: a line for each finding, what to do about it, and an end in bounded time."""

import json
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from clipjax import storage
from clipjax.commands import doctor as command
from clipjax.commands import doctor_checks as checks
from clipjax.commands import doctor_machine as machine
from clipjax.commands.doctor_findings import ERROR, OK, WARNING, Doctor, Finding
from clipjax.machine import installed, joining, rendezvous
from clipjax.machine.placement import Placement
from tests.machine.test_clusters import GKE, NOTHING, SLICES
from tests.ports import free_port
from tests.runs import ROOT
from tests.tiny import tiny_config

CPU = {"platform": "cpu", "local": 4, "all": 4, "processes": 1}


def test_doctor_tells_what_is_found_here_as_json_and_changes_nothing(tmp_path):
    environ = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_ENABLE_COMPILATION_CACHE": "true"}
    arguments = ["--config=experiments/quickstart.py", f"--workdir={tmp_path}/run", "--json", "--num_processes=1"]
    arguments += ["--check_timeout=240"]
    answer = subprocess.run(
        [sys.executable, "-m", "clipjax", "doctor", *arguments],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert answer.returncode == 0, answer
    found = json.loads(answer.stdout)
    rows = {row["check"]: row for row in found["findings"]}
    assert found["ok"] and found["host"] == socket.gethostname()
    assert {"versions", "processes", "devices", "mesh", "memory", "workdir", "compiled programs"} <= set(rows)
    assert "one process" in rows["processes"]["found"] and "cpu" in rows["devices"]["found"]
    assert f"over {int(rows['devices']['found'].split(' x ')[0])} device(s)" in rows["mesh"]["found"]
    assert not list(tmp_path.iterdir())


def test_the_exit_code_is_1_where_something_is_wrong(monkeypatch, capsys):
    wrong = Finding("driver", ERROR, "NVIDIA 1.2", "update it")
    monkeypatch.setattr(command, "examine", lambda doctor: iter([Finding("memory", OK, "1 GiB"), wrong]))
    with pytest.raises(SystemExit) as end:
        command.main(["doctor"])
    assert end.value.code == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "ok       memory: 1 GiB",
        "error    driver: NVIDIA 1.2 -> update it",
    ]


@pytest.mark.parametrize("flag", ["--check_timeout=0", "--start_timeout=-1", "--check_timeout=nan", "--config=none.py"])
def test_flags_that_cannot_be_meant_are_one_line_and_exit_code_2(flag, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["doctor", flag])
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_check_that_hangs_or_fails_is_a_finding_and_the_others_go_on():
    forever = threading.Event()

    def huge_file(doctor):
        forever.wait()

    def broken(doctor):
        raise KeyError("x")

    found = command.bounded(huge_file, Doctor(), 0.05)
    forever.set()
    found += command.examine(Doctor(), (broken, lambda doctor: [Finding("a", OK, "b")]))
    assert [(of.check, of.status) for of in found] == [("huge file", ERROR), ("broken", ERROR), ("a", OK)]
    assert "no answer in 0 s" in found[0].found and "KeyError" in found[1].found


def test_packages_that_do_not_fit_each_other_are_named():
    needs = {
        "jax": [
            "jaxlib<=0.10.2,>=0.10.1", "numpy>=2.0", "absent>=1", 'libtpu==0.0.42.*; extra == "tpu"',
            'jaxlib==0.10.1; extra == "minimum-jaxlib"', 'jax-cuda12-plugin[with-cuda]<=0.10.2; extra == "cuda12"',
            'old>=1; python_version < "3"', "not a requirement",
        ]
    }  # fmt: skip
    versions = {"jax": "0.10.2", "jaxlib": "0.10.0", "numpy": "2.3", "libtpu": "0.0.40", "jax-cuda12-plugin": "0.12.0"}
    assert list(installed.misfits(["jax"], needs.get, lambda name: versions.get(name, ""))) == [
        "jax 0.10.2 needs jaxlib<=0.10.2,>=0.10.1, not 0.10.0",
        "jax 0.10.2 needs absent>=1, which is not installed",
        "jax 0.10.2 needs libtpu==0.0.42.*, not 0.0.40",
        "jax 0.10.2 needs jax-cuda12-plugin<=0.10.2, not 0.12.0",
    ]


def test_versions_that_do_not_fit_are_an_error(monkeypatch):
    monkeypatch.setattr(checks, "misfits", lambda: iter(["jax 1 needs jaxlib>=1, not 0.9"]))
    (found,) = checks.versions(Doctor())
    assert found.status == ERROR and "jax 1 needs jaxlib>=1, not 0.9" in found.found and "pip install" in found.do


def test_nvidias_driver_is_read_and_compared_with_the_plugin(tmp_path, monkeypatch):
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  520.61.05  Thu Sep 29 05:30:25 UTC 2022\nGCC\n")
    assert installed.nvidia_driver(file) == "520.61.05"
    file.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n")
    assert installed.nvidia_driver(file) == "580.95.05"
    assert installed.nvidia_driver(tmp_path / "none") == ""
    cuda12 = {"jax-cuda12-plugin": "0.10.2"}
    assert "CUDA 12, which needs driver 525" in installed.driver_too_old("520.61", lambda name: cuda12.get(name, ""))
    assert installed.driver_too_old("580.95", lambda name: cuda12.get(name, "")) == ""
    monkeypatch.setattr(machine, "gpu_present", lambda: True)
    monkeypatch.setattr(machine, "nvidia_driver", lambda: "520.61")
    monkeypatch.setattr(machine, "driver_too_old", lambda driver: "jax-cuda12-plugin is for CUDA 12")
    assert machine.driver(Doctor())[0].status == ERROR


@pytest.mark.parametrize(
    ("program", "found", "do"),
    [
        ("import time; time.sleep(60)", "JAX found none within 0 s", "end other processes that use the devices"),
        (
            "raise RuntimeError('The TPU is already in use by process with pid 7')",
            "JAX cannot start: RuntimeError: The TPU is already in use by process with pid 7",
            "end the process that has the devices",
        ),
        ("import os; os.abort()", "JAX cannot start: exit code -6", "jax.devices()"),
        ("print('nothing')", "JAX cannot start: exit code 0", "jax.devices()"),
    ],
)
def test_jax_that_hangs_or_fails_is_told_with_what_to_do(program, found, do, monkeypatch):
    monkeypatch.setattr(checks, "ASK_JAX", program)
    (told,) = checks.devices(Doctor(seconds=0.5 if "sleep" in program else 60.0))
    assert told.status == ERROR and told.found == found and do in told.do


def test_one_host_of_a_pod_that_looks_alone_is_told_to_look_together(monkeypatch):
    monkeypatch.setattr(checks, "ASK_JAX", "import time; time.sleep(60)")
    (told,) = checks.devices(Doctor(seconds=0.2, place=Placement("TPUs on GKE", 4, 1, "a:1")))
    assert "run it on all hosts" in told.do


def test_a_gpu_that_jax_does_not_use_is_an_error(monkeypatch):
    monkeypatch.setattr(checks, "gpu_present", lambda: True)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert "clipjax[gpu]" in checks._unused("cpu")[0].do and checks._unused("cuda") == []
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert checks._unused("cpu") == []


def test_the_mesh_is_made_for_the_devices_of_all_processes():
    config = tiny_config()
    two = Doctor(config=config, place=Placement("Slurm", 2, 1, "a:1"), devices=CPU)
    (found,) = checks.mesh(two)
    assert found.status == OK and "data=8, fsdp=1, tensor=1 over 8 device(s)" in found.found
    wrong = replace(config, mesh=replace(config.mesh, fsdp=3))
    (found,) = checks.mesh(replace(two, config=wrong))
    assert found.status == ERROR and "does not fit 8 device(s)" in found.found
    assert checks.mesh(Doctor(config=config)) == []


def test_an_environment_that_makes_no_sense_is_an_error_and_nobody_is_waited_for():
    doctor = Doctor(host=replace(NOTHING, environ=GKE | SLICES | {"MEGASCALE_SLICE_ID": "2"}))
    (found,) = checks.processes(doctor)
    assert found.status == ERROR and "before a preemption" in found.found
    assert checks.meeting(doctor) == []


@pytest.fixture
def address():
    return f"127.0.0.1:{free_port()}"


def together(address, workdirs):
    """What the check `meeting` finds on each of several processes at once."""

    def look(index):
        place = Placement("by hand", len(workdirs), index, address)
        return checks.meeting(Doctor(workdir=str(workdirs[index]), place=place, start_timeout=240.0))

    with ThreadPoolExecutor(len(workdirs)) as pool:
        return list(pool.map(look, range(len(workdirs))))


def test_processes_meet_and_see_each_others_files(address, tmp_path):
    found = together(address, [tmp_path / "run"] * 3)
    assert [[of.status for of in findings] for findings in found] == [[OK]] * 3
    assert f"all 3 processes met at {address}" in found[0][0].found
    assert not list(tmp_path.iterdir())


def test_a_workdir_that_hosts_do_not_share_is_an_error(address, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "_await_removal", lambda probe: None)
    for name in "ab":
        (tmp_path / name).mkdir()
    found = together(address, [tmp_path / "a", tmp_path / "b"])
    assert [of.status for of in found[0]] == [OK, ERROR]
    assert f"process 0 does not see what process 1 writes to {tmp_path}/a" in found[0][1].found


def test_clocks_and_versions_that_differ_are_errors(monkeypatch):
    facts = [{"jax": "0.10.2"}, {"jax": "0.12.0", "offset": -3600.0}]
    assert "3600 s apart" in checks._skewed(facts)[0] and checks._skewed([{}, {"offset": 1.0}]) == []
    monkeypatch.setattr(joining, "meet", lambda *args, **kwargs: facts)
    found = checks.meeting(Doctor(place=Placement("by hand", 2, 0, "127.0.0.1:1")))
    assert [of.status for of in found] == [OK, ERROR, ERROR] and "versions of jax" in found[1].found


def test_clocks_are_compared_when_a_process_speaks(address):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(rendezvous.find_process_0, address, 2, 1, {"time": 0.0}, 240.0)
        facts = rendezvous.wait_for_others(address, 2, {}, 240.0)
    assert abs(facts[1]["offset"]) < 60.0


def test_processes_that_do_not_come_are_named_with_what_to_do(address):
    doctor = Doctor(place=Placement("Slurm", 3, 0, address), start_timeout=0.2)
    (found,) = checks.meeting(doctor)
    assert found.status == ERROR and "1, 2 did not come" in found.found and "on all hosts at once" in found.do
    (found,) = checks.meeting(replace(doctor, place=Placement("Slurm", 3, 2, address)))
    assert found.status == ERROR and "nothing listens there" in found.found


def test_huge_pages_matter_on_a_tpu(tmp_path, monkeypatch):
    file = tmp_path / "enabled"
    file.write_text("always [madvise] never\n")
    assert machine.huge_pages(Doctor(), file)[0].status == OK
    monkeypatch.setattr(machine, "has_tpu", lambda: True)
    (found,) = machine.huge_pages(Doctor(), file)
    assert found.status == WARNING and "echo always" in found.do
    assert machine.huge_pages(Doctor(), tmp_path / "none") == []


def test_a_workdir_is_told_with_its_room_or_what_is_in_its_way(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (found,) = machine.workdir(Doctor(workdir=f"{tmp_path}/run"))
    assert "GiB free" in found.found and str(tmp_path) in found.found
    (found,) = machine.workdir(Doctor(workdir=f"{tmp_path}/file/run"))
    assert found.status == ERROR and "is no folder" in found.found
    (found,) = machine.workdir(Doctor(workdir="hdfs://cluster/run"))
    assert found.status == ERROR and "hdfs" in found.found
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: _Usage)
    (found,) = machine.workdir(Doctor(workdir=f"{tmp_path}/run"))
    assert found.status == WARNING and "0.0 GiB free" in found.found and "make room" in found.do
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


class _Usage:
    total = free = used = 0


@pytest.mark.parametrize("wrong", [None, storage.StorageError("gs://bucket/run: there is no such bucket.", "bucket")])
def test_a_bucket_is_written_to_and_read(wrong, monkeypatch):
    asked = []

    def check_writable(path):
        asked.append(str(path))
        if wrong:
            raise wrong

    monkeypatch.setattr(storage, "check_writable", check_writable)
    (found,) = machine.workdir(Doctor(workdir="gs://bucket/run"))
    assert asked == ["gs://bucket/run"]
    assert found.status == (ERROR if wrong else OK) and "gs://bucket/run" in found.found


def test_programs_that_are_not_kept_are_a_warning(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_ENABLE_COMPILATION_CACHE", raising=False)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").touch()
    assert machine.cache(Doctor())[0].status == WARNING
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    assert machine.cache(Doctor())[0].status == OK
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    assert machine.cache(Doctor())[0].status == WARNING
