"""A checkpoint on any mesh -> zero-shot accuracy, retrieval, ... -> results.json and report.html.

clipjax eval --checkpoint=runs/quickstart
clipjax eval --checkpoint=runs/quickstart --step=best --config=experiments/other_eval.py --out=results/
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
from absl import flags

from clipjax.commands import flags as cli
from clipjax.config import ExperimentConfig, from_config_dict, require, to_json_dict
from clipjax.data.tokenizers import make_tokenizer
from clipjax.files import write_text
from clipjax.inference.evaluate import make_evaluate
from clipjax.mesh import make_mesh
from clipjax.models import patch_budget
from clipjax.report.html import write_html
from clipjax.report.table import format_table
from clipjax.runs import checkpoint as checkpoints
from clipjax.runs.fingerprint import check_fingerprint, fingerprint
from clipjax.training.check import check


def run(
    checkpoint: str | Path,
    *,
    config: ExperimentConfig | None = None,
    step: str = "latest",
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluates one checkpoint of a training run and writes `out`/results.json and report.html.

    Args:
      checkpoint: the workdir of a training run, on whatever mesh it was trained.
      config: whose mesh, eval and data sections to use; its model and tokenizer must be the checkpoint's
        (FingerprintError lists what differs). None: the checkpoint's own.
      step: "latest", "best" or a step number.
      out: folder; None: checkpoint/eval/<step>.
    Returns: what results.json holds.
    """
    manager, number = checkpoints.open_run(checkpoint, step)
    trained, trained_fingerprint = checkpoints.read_meta(manager, number)
    config = config or dataclasses.replace(trained, mesh=dataclasses.replace(trained.mesh, data=-1))
    require(config.eval.evaluators, "config.eval.evaluators is empty: there is nothing to evaluate.")
    tokenizer = make_tokenizer(config.tokenizer, config.model.text.context_length)
    check_fingerprint(trained_fingerprint, fingerprint(config, tokenizer), where=f"{checkpoint} step {number}")
    check(config, num_devices=jax.device_count(), process_count=jax.process_count())
    mesh = make_mesh(config.mesh)
    # How the tree is laid out (scanned or not, EMA or not) is the checkpoint's, not this evaluation's.
    model, budget = trained.model, patch_budget(config.model.image)
    if budget:  # no part of the weights: such a model may be evaluated at another
        image = dataclasses.replace(model.image, max_patches=budget.max_patches)
        model = dataclasses.replace(model, image=image)
    config = dataclasses.replace(config, model=model, optimizer=trained.optimizer)
    variables = checkpoints.restore_variables(manager, number, config, mesh)
    bad = checkpoints.read_bad_causes(manager, number)
    manager.close()

    started = time.perf_counter()
    results = make_evaluate(config, mesh, tokenizer)(variables)
    document = {
        "checkpoint": str(checkpoint),
        "step": number,
        "results": results,
        "fingerprint": trained_fingerprint,
        "eval": to_json_dict(config)["eval"],
        "mesh": dict(mesh.shape),
        **({"max_patches": budget.max_patches} if budget else {}),
        "seconds": round(time.perf_counter() - started, 2),
    }
    if jax.process_index() == 0:
        out = Path(out) if out else Path(checkpoint) / "eval" / str(number)
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "results.json", json.dumps(document, indent=2, sort_keys=True))
        write_html(
            out / "report.html",
            title=f"{checkpoint}, step {number}",
            results=results,
            config=to_json_dict(config),
            notes={
                "fingerprint": trained_fingerprint,
                "mesh": dict(mesh.shape),
                "bad records replaced in training": bad or "none",
            },
        )
        print(format_table(results))
        print(f"Wrote {out / 'results.json'} and {out / 'report.html'}")
    return document


def main(argv: list[str]) -> None:
    """The command line; see the module's docstring."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("checkpoint", None, "The --workdir of a training run.", flag_values=values)
        flags.DEFINE_string("step", "latest", "latest, best, or a step number.", flag_values=values)
        flags.DEFINE_string("out", None, "Result folder; default CHECKPOINT/eval/STEP.", flag_values=values)

    values = cli.parse(argv, __doc__, define, required=("checkpoint",))

    def body() -> None:
        config = None if values.config is None else from_config_dict(values.config)
        run(values.checkpoint, config=config, step=values.step, out=values.out)

    cli.run_command(values, body)


if __name__ == "__main__":
    main(sys.argv)
