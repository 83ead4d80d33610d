"""Scripts pass ShellCheck, and do what they should with stand-ins for gcloud, srun, scontrol, xpk and ray."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import yaml

from tests.deploy.files import DEPLOY, FILES, ROOT

SCRIPTS = [path for path in FILES if path.suffix in (".sh", ".sbatch") or path.name == "preemptible"]
PREEMPTIBLE = DEPLOY / "docker" / "preemptible"
# Flags of gcsfuse 3 (its cfg/params.yaml) and of `xpk workload create` 1.16.
GCSFUSE = {
    "cache-dir",
    "file-cache-cache-file-for-range-read",
    "file-cache-enable-parallel-downloads",
    "file-cache-max-size-mb",
    "implicit-dirs",
    "kernel-list-cache-ttl-secs",
    "metadata-cache-ttl-secs",
    "rename-dir-limit",
    "stat-cache-max-size-mb",
    "type-cache-max-size-mb",
}
XPK = {
    "cluster",
    "command",
    "docker-image",
    "max-restarts",
    "num-slices",
    "project",
    "restart-on-exit-codes",
    "termination-grace-period-seconds",
    "tpu-type",
    "workload",
    "zone",
}


def stand_ins(folder: Path, **scripts: str) -> dict[str, str]:
    """The environment of a script, with these commands first on its PATH; each notes its arguments in NAME.log."""
    folder.mkdir()
    for name, script in scripts.items():
        text = f"#!/usr/bin/env bash\nprintf -v line '%q ' \"$@\"; echo \"$line\" >> '{folder}/{name}.log'\n"
        (folder / name).write_text(text + script + "\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder)}


def calls(folder: Path, name: str) -> list[list[str]]:
    """The arguments of every call of a stand-in."""
    path = folder / f"{name}.log"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [shlex.split(line) if "$'" not in line else [line] for line in lines]


def wait_for(path: Path) -> None:
    """Returns when the file exists."""
    while not path.exists():
        time.sleep(0.01)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_and_bash_find_nothing(path):
    result = subprocess.run([Path(sys.executable).parent / "shellcheck", path], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    assert path.suffix == ".sbatch" or os.access(path, os.X_OK)


@pytest.mark.parametrize("code", [0, 3])
def test_preemptible_gives_the_exit_code_of_its_command(code):
    assert subprocess.run([PREEMPTIBLE, "sh", "-c", f"exit {code}"]).returncode == code


@pytest.mark.parametrize("code,expected", [(0, 143), (1, 1)])
def test_preemptible_tells_a_preemption_from_the_end(tmp_path, code, expected):
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    script = f"trap 'touch {saved}; exit {code}' TERM; touch {ready}; while :; do sleep 0.01; done"
    with subprocess.Popen([PREEMPTIBLE, "bash", "-c", script]) as process:
        wait_for(ready)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == expected
    assert saved.exists()


TPU_VM = {"NAME": "pod", "ZONE": "zone", "TYPE": "v6e-64", "BUCKET": "my-bucket", "PROJECT": "project"}
GCLOUD = """case "$*" in
  *describe*) cat "$HOME/state" ;;
  *' ssh '*preemptible*) test ! -e "$HOME/fails" || { rm "$HOME/fails"; exit 1; } ;;
esac"""


def run_tpu_vm(tmp_path: Path, *arguments: str, **variables: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """The script with a stand-in for gcloud. Returns its result and the gcloud commands, without their values."""
    folder = tmp_path / "bin"
    script = DEPLOY / "tpu-vm" / "queued-resources.sh"
    result = subprocess.run(
        ["bash", script, *arguments],
        env=stand_ins(folder, gcloud=variables.pop("gcloud", GCLOUD), tar="") | TPU_VM | variables,
        capture_output=True,
        text=True,
    )
    log = folder / "gcloud.log"
    return result, [" ".join(line.split()[2:4]) for line in log.read_text().split("\n")[:-1]] if log.exists() else []


def test_queued_resources_creates_sets_up_trains_and_deletes(tmp_path):
    result, verbs = run_tpu_vm(tmp_path, "run", gcloud=GCLOUD.replace('cat "$HOME/state"', "echo ACTIVE"))
    assert result.returncode == 0, result.stderr
    expected = ["queued-resources create", "queued-resources describe", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]
    assert verbs == [*expected, "queued-resources delete"]
    log = (tmp_path / "bin" / "gcloud.log").read_text()
    assert "--accelerator-type=v6e-64 --runtime-version=v2-alpha-tpuv6e --node-id=pod --spot" in log
    assert "--config.data.train.path=/mnt/data/shards" in log


def test_queued_resources_of_two_slices_trains_on_both(tmp_path):
    result, verbs = run_tpu_vm(tmp_path, "run", SLICES="2", DRY_RUN="1", SPOT="0")
    assert result.returncode == 0 and verbs == []
    assert "--node-count=2 --node-prefix=pod " in result.stdout and "--spot" not in result.stdout
    trained = [line for line in result.stdout.split("\n") if "preemptible" in line]
    assert sorted(line.split()[5] for line in trained) == ["pod-0", "pod-1"]


def test_queued_resources_asks_for_new_vms_after_a_preemption(tmp_path):
    # Describes: ACTIVE for the first VMs; SUSPENDED after training failed; ACTIVE for the next ones.
    states = 'echo x >> "$HOME/count"; case $(wc -l < "$HOME/count") in 2) echo SUSPENDED ;; *) echo ACTIVE ;; esac'
    fails = '[ -e "$HOME/failed" ] || { touch "$HOME/failed"; exit 1; }'
    gcloud = f'case "$*" in\n *describe*) {states} ;;\n *preemptible*) {fails} ;;\nesac'
    result, verbs = run_tpu_vm(tmp_path, "run", gcloud=gcloud, POLL_SECONDS="0")
    assert result.returncode == 0, result.stderr
    assert [verb.split()[1] for verb in verbs if verb.startswith("queued")].count("create") == 2
    assert verbs[-1] == "queued-resources delete" and "Try 2" in result.stdout


def test_queued_resources_keeps_vms_that_show_an_error(tmp_path):
    gcloud = 'case "$*" in *describe*) echo ACTIVE ;; *preemptible*) exit 1 ;; esac'
    result, verbs = run_tpu_vm(tmp_path, "run", gcloud=gcloud, POLL_SECONDS="0")
    assert result.returncode == 1 and "were not preempted; they are kept" in result.stderr
    assert "queued-resources delete" not in verbs


@pytest.mark.parametrize("arguments,variables,line", [((), {}, "run"), (("run",), {"TYPE": "v9-8"}, "TYPE=v9-8")])
def test_queued_resources_says_what_is_wrong(tmp_path, arguments, variables, line):
    result, verbs = run_tpu_vm(tmp_path, *arguments, **variables)
    assert result.returncode == 2 and line in result.stderr and verbs == []


def test_the_flags_of_gcsfuse_are_those_it_has():
    text = (DEPLOY / "tpu-vm" / "queued-resources.sh").read_text()
    command = text[text.index("|| gcsfuse -o ro") : text.index("$BUCKET /mnt/data\n")]
    flags = set(re.findall(r"--([\w-]+)", command))
    assert flags == GCSFUSE - {"rename-dir-limit"}
    readme = (DEPLOY / "README.md").read_text()
    section = readme[readme.index("### Mounted data") : readme.index("## Preemption")]
    assert set(re.findall(r"`--([\w-]+)", section)) == GCSFUSE  # and all are explained


def test_the_flags_of_xpk_are_those_it_has(tmp_path):
    environ = stand_ins(tmp_path / "bin", xpk="")
    environ |= {"PROJECT": "p", "ZONE": "z", "CLUSTER": "c", "BUCKET": "my-bucket", "IMAGE": "i", "TYPE": "v6e-256"}
    environ["SLICES"] = "2"
    script = DEPLOY / "kubernetes" / "xpk.sh"
    subprocess.run(["bash", script, "--dry-run"], env=environ, check=True)
    [arguments] = calls(tmp_path / "bin", "xpk")
    assert arguments[:2] == ["workload", "create"] and arguments[-1] == "--dry-run"
    assert {argument.partition("=")[0].removeprefix("--") for argument in arguments[2:-1]} == XPK
    assert {"--tpu-type=v6e-256", "--num-slices=2"} <= set(arguments)
    environ.pop("BUCKET")
    result = subprocess.run(["bash", script], env=environ, capture_output=True, text=True)
    assert result.returncode and "BUCKET" in result.stderr


SLURM = sorted((DEPLOY / "slurm").glob("*.sbatch"))


@pytest.mark.parametrize("path", SLURM, ids=lambda path: path.name)
def test_slurm_starts_one_process_a_node_and_returns_its_exit_code(tmp_path, path):
    result, folder = run_slurm(tmp_path, path, "exit 4").run()
    assert result == 4
    assert calls(folder, "scontrol") == []
    [arguments] = calls(folder, "srun")
    assert arguments[arguments.index("clipjax") + 1] == "train" and arguments[0] == "--kill-on-bad-exit=1"
    assert ("--container-image=image" in arguments) == (path.stem == "pyxis")


@pytest.mark.parametrize("path", SLURM, ids=lambda path: path.name)
def test_slurm_saves_before_the_time_limit_and_queues_itself_again(tmp_path, path):
    srun = """trap 'touch "$HOME/saved"; exit 0' TERM; touch "$HOME/ready"; while :; do sleep 0.01; done"""
    job = run_slurm(tmp_path, path, srun)
    result, folder = job.run(signal.SIGUSR1)
    assert result == 0 and (folder / "saved").exists()
    assert calls(folder, "scontrol") == [["requeue", "7"]]


@pytest.mark.parametrize("path", SLURM, ids=lambda path: path.name)
def test_slurm_options_are_those_that_resuming_needs(path):
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", path.read_text(), re.MULTILINE))
    assert options["ntasks-per-node"] == "1" and options["gpus-per-node"] == "8"
    assert options["signal"].startswith("B:USR1@") and options["open-mode"] == "append" and "requeue" in options
    lines = path.read_text().split("\n")
    assert all(
        line.startswith("#") for line in lines[: lines.index("set -euo pipefail")]
    )  # or sbatch would not see them


class run_slurm:  # noqa: N801
    """A batch script with a stand-in for srun."""

    def __init__(self, tmp_path: Path, path: Path, srun: str):
        self.path, self.folder = path, tmp_path / "bin"
        self.environ = stand_ins(self.folder, srun=srun, scontrol="")
        (self.folder / "bin").mkdir()
        (self.folder / "bin" / "activate").write_text("")
        self.environ |= {"SLURM_JOB_ID": "7", "VENV": str(self.folder), "IMAGE": "image"}
        self.environ |= {"WORKDIR": "gs://my-bucket/run", "DATA": "/data", "TOKENIZER": "/tokenizer.model"}

    def run(self, number: int = 0) -> tuple[int, Path]:
        """Its exit code; number: a signal to send when srun runs."""
        with subprocess.Popen(["bash", self.path], env=self.environ) as process:
            if number:
                wait_for(self.folder / "ready")
                process.send_signal(number)
            return process.wait(), self.folder


@pytest.mark.parametrize("name", ["gpu", "tpu"])
def test_skypilot_files_have_fields_that_it_knows(name):
    task = yaml.safe_load((DEPLOY / "skypilot" / f"{name}.yaml").read_text())
    assert set(task) == {"name", "num_nodes", "workdir", "resources", "envs", "setup", "run"}
    known = {"accelerators", "accelerator_args", "disk_size", "infra", "use_spot"}
    assert set(task["resources"]) <= known
    assert task["envs"] == {"BUCKET": None}  # asked for, where --env does not give it
    for script in (task["setup"], task["run"]):
        assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
        shellcheck = [Path(sys.executable).parent / "shellcheck", "--shell=bash", "--exclude=SC1090,SC2086", "-"]
        result = subprocess.run(shellcheck, input=script, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout
    assert (name == "tpu") == ("--coordinator_address" not in task["run"])
    [extras] = re.findall(r"\.\[([\w,]+)\]", task["setup"])
    assert extras == {"gpu": "gpu,gcs,s3", "tpu": "tpu,gcs"}[name]


def test_ray_gives_all_processes_the_first_ones_address_and_returns_a_failure(monkeypatch, tmp_path):
    fake = fake_ray()
    for name, module in fake.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(DEPLOY / "ray")
    monkeypatch.delitem(sys.modules, "launch", raising=False)
    import launch

    script = tmp_path / "command.sh"
    script.write_text(f'echo "$@" >> {tmp_path}/calls; case "$*" in *process_id=1*) exit 5 ;; esac')
    before = signal.getsignal(signal.SIGTERM)
    try:
        code = launch.main(["--hosts=2", "--resource=TPU=4", "--", "bash", str(script), "train", "--workdir=gs://b/x"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 5
    lines = sorted((tmp_path / "calls").read_text().split("\n")[:-1])
    [address] = {re.search(r"--coordinator_address=(\S+)", line)[1] for line in lines}
    assert address.startswith("10.0.0.1:")
    assert lines == [
        f"train --workdir=gs://b/x --coordinator_address={address} --num_processes=2 --process_id={index}"
        for index in range(2)
    ]
    assert fake["ray"].options == [{"num_cpus": 1, "max_concurrency": 2, "resources": {"TPU": 4.0}}] * 2
    assert fake["ray"].bundles == [{"CPU": 1.0, "TPU": 4.0}] * 2 and fake["ray"].removed


def fake_ray() -> dict[str, types.ModuleType]:
    """Modules that look like ray's, and call what is remote at once."""
    ray, util = types.ModuleType("ray"), types.ModuleType("ray.util")
    groups, strategies = (
        types.ModuleType("ray.util.placement_group"),
        types.ModuleType("ray.util.scheduling_strategies"),
    )
    ray.util, ray.options, ray.removed = util, [], False
    ray.init, ray.get = lambda: None, lambda value: value
    util.get_node_ip_address = lambda: "10.0.0.1"

    def placement_group(bundles, strategy):
        assert strategy == "STRICT_SPREAD"
        ray.bundles = bundles
        return types.SimpleNamespace(ready=lambda: None)

    groups.placement_group = placement_group
    groups.remove_placement_group = lambda group: setattr(ray, "removed", True)
    strategies.PlacementGroupSchedulingStrategy = lambda group, placement_group_bundle_index: None

    class Remote:
        def __init__(self, actor):
            self.actor = actor

        def options(self, scheduling_strategy, **options):
            ray.options.append(options)
            return self

        def remote(self):
            actor = self.actor()
            methods = {name: getattr(actor, name) for name in ("address", "run", "stop")}
            return types.SimpleNamespace(
                **{name: types.SimpleNamespace(remote=method) for name, method in methods.items()}
            )

    ray.remote = Remote
    return {
        "ray": ray,
        "ray.util": util,
        "ray.util.placement_group": groups,
        "ray.util.scheduling_strategies": strategies,
    }


def test_no_file_has_a_machine_of_ours_or_a_key():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert str(ROOT) not in text and "PRIVATE KEY" not in text and not re.search(r"AKIA[0-9A-Z]{16}", text)
