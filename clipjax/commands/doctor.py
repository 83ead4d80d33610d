"""Checks this machine, or all hosts of a pod, before a run, and says how to fix what is wrong.

    clipjax doctor
    clipjax doctor --config=experiments/siglip_b16.py --workdir=gs://bucket/run
    srun --ntasks-per-node=1 clipjax doctor --workdir=/shared/run

It prints one line for each finding: ok, warning or error, and what to do. The exit code is 1 if there is an error. It
starts no run, changes nothing, and never hangs. With several hosts, run it on all of them at once: they also check that
they can reach each other, and compare versions, clocks and folders. --num_processes=1 checks this host alone.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from absl import flags

from clipjax.commands import doctor_checks as checks
from clipjax.commands import doctor_machine as machine
from clipjax.commands import flags as cli
from clipjax.commands.doctor_findings import ERROR, Doctor, Finding
from clipjax.config import ConfigError
from clipjax.files import printable
from clipjax.storage import StorageError

Check = Callable[[Doctor], list[Finding]]
MEETING_SECONDS = 30.0  # that the processes wait for each other here, without --start_timeout
# In the order of the report; `mesh` needs what `processes` and `devices` learn.
CHECKS: tuple[Check, ...] = (
    checks.versions, checks.processes, checks.meeting, checks.devices, checks.mesh, machine.driver, machine.leftovers,
    machine.huge_pages, machine.memory, machine.workdir, machine.cache,
)  # fmt: skip


def examine(doctor: Doctor, to_check: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """The findings of each check, as they come; a check that hangs is left after its time, and told as an error."""
    for check in to_check:
        # Two processes may have been started start_timeout apart.
        extra = 2 * doctor.start_timeout + 20.0 if check is checks.meeting else 0.0
        yield from bounded(check, doctor, doctor.seconds + extra)


def bounded(check: Check, doctor: Doctor, seconds: float) -> list[Finding]:
    """check(doctor); what it raises, and that it takes longer than `seconds`, is a finding as well."""
    answer: list[Finding] = []
    name = check.__name__.replace("_", " ")

    def look() -> None:
        try:
            answer.extend(check(doctor))
        except Exception as error:
            answer.append(Finding(name, ERROR, f"{type(error).__name__}: {error}", "this check itself failed"))

    thread = threading.Thread(target=look, name=f"doctor {name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        cure = "a disk, a server or a device does not answer; --check_timeout waits longer"
        return [Finding(name, ERROR, f"no answer in {seconds:.0f} s", cure)]
    return answer


def report(doctor: Doctor, as_json: bool) -> bool:
    """Prints the findings; whether none of them is an error."""
    host, findings = socket.gethostname(), []
    if not as_json:
        print(f"clipjax doctor on {printable(host)}", flush=True)
    for finding in examine(doctor):
        findings.append(finding)
        if not as_json:
            print(printable(finding.line()), flush=True)
    well = all(finding.status != ERROR for finding in findings)
    if as_json:
        rows = [finding.as_json() for finding in findings]
        print(json.dumps({"host": host, "ok": well, "findings": rows}, indent=1), flush=True)
    return well


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", "", "Also check that this folder or bucket can keep a run.", flag_values=values)
        flags.DEFINE_bool("json", False, "Print one JSON object instead of lines.", flag_values=values)
        flags.DEFINE_float("check_timeout", 60.0, "Seconds that each check may take.", flag_values=values)

    values = cli.parse(argv, __doc__, define)
    for name in ("check_timeout", "start_timeout"):
        if not 0 < (1.0 if values[name].value is None else values[name].value) < 1e6:
            cli.fail(f"--{name}={values[name].value:g} must be a number of seconds above 0.")
    try:
        config = cli.experiment_of(values, fetch=False) if values.config else None
    except (ConfigError, StorageError) as error:
        cli.fail(error)
    doctor = Doctor(
        config=config,
        workdir=values.workdir,
        flags=(values.coordinator_address, values.num_processes, values.process_id),
        seconds=values.check_timeout,
        start_timeout=values.start_timeout or MEETING_SECONDS,
    )
    try:
        well = report(doctor, values.json)
    except BrokenPipeError:  # `| head` has read enough; Python would complain again when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        well = True
    sys.exit(0 if well else 1)
