"""A whole experiment that takes seconds (drawn scenes, a tokenizer, a tiny model), for tests of runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ml_collections import ConfigDict

from clipjax.config import SourceConfig, default_config, to_config_dict
from clipjax.eval import RetrievalConfig, ZeroShotConfig
from data_pipelines import scenes, train_tokenizer
from tests.tiny import tiny_config

ROOT = Path(__file__).parent.parent


def build_data(folder: Path) -> None:
    """folder/scenes (64 train, 26 validation records) and folder/scenes.model."""
    scenes.build(folder / "scenes", train=64, validation=26, compositional=10, relations=4)
    train_tokenizer.build(folder / "scenes.model", records=folder / "scenes", vocab_size=128, model_type="bpe")


def run_config(folder: Path) -> ConfigDict:
    """Twelve steps of batch 16 on build_data's data, a checkpoint every 3, evaluation at 6 and 12."""
    config = to_config_dict(tiny_config())
    config.update(total_steps=12)
    config.model.text.update(vocab_size=128)
    config.tokenizer = default_config().tokenizer
    config.tokenizer.path = str(folder / "scenes.model")
    config.data.train.path = str(folder / "scenes")
    source = SourceConfig(path=str(folder / "scenes"), split="validation")
    config.eval.update(batch_size=16, every_steps=6)
    config.eval.evaluators = {
        "zero_shot": to_config_dict(ZeroShotConfig(source=source)),
        "retrieval": to_config_dict(RetrievalConfig(source=source)),
    }
    config.checkpoint.update(every_steps=3, keep_last=10)
    config.log.update(every_steps=1, tensorboard=False, figures=False)
    return config


def write_experiment(folder: Path) -> Path:
    """folder/experiment.py, an experiment file for the command line that gives run_config(folder)."""
    path = folder / "experiment.py"
    path.write_text(
        "from pathlib import Path\nfrom tests.runs import run_config\n\n\n"
        f"def get_config():\n    return run_config(Path({str(folder)!r}))\n"
    )
    return path


def start(*arguments: str, devices: int = 8) -> subprocess.Popen:
    """`python -m clipjax ...` in the background, with `devices` CPU devices."""
    env = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
        "--xla_cpu_enable_concurrency_optimized_scheduler=false",  # see conftest.py
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "clipjax", *arguments]
    return subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def losses(workdir: Path) -> dict[int, float]:
    """step -> loss from metrics.jsonl."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}
