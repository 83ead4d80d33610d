"""What a workdir holds. `with open_run(workdir) as run:` opens one to read from it."""

from clipjax.runs.run import Run, open_run

__all__ = ["Run", "open_run"]
