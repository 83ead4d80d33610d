"""What a workdir holds: checkpoints, their fingerprint, metrics, bad records, a lock.

with open_run("runs/emoji") as run:
    variables = run.variables(mesh)     # with run.config, run.fingerprint, run.step
"""

from clipjax.runs.bad_records_log import read_bad_records
from clipjax.runs.config_changes import check_changes
from clipjax.runs.fingerprint import FingerprintError, check_fingerprint, fingerprint
from clipjax.runs.integrity import CheckpointError
from clipjax.runs.lock import RunLockError, run_lock
from clipjax.runs.metrics_log import read_metrics
from clipjax.runs.run import Run, open_run

__all__ = [
    "CheckpointError",
    "FingerprintError",
    "Run",
    "RunLockError",
    "check_changes",
    "check_fingerprint",
    "fingerprint",
    "open_run",
    "read_bad_records",
    "read_metrics",
    "run_lock",
]
