"""Every experiment in the repository is consistent: on one device and, unless it is a benchmark's, on a pod's worth."""

import importlib.util
from pathlib import Path

import pytest

from clipjax.config import from_config_dict
from clipjax.losses import LOSSES
from clipjax.training.check import check
from experiments.quickstart import get_config as quickstart

ROOT = Path(__file__).parents[2]
# finetune.py needs a checkpoint and data: tests/commands/test_finetune.py.
EXPERIMENTS = [
    *sorted(path for path in (ROOT / "experiments").glob("*.py") if path.stem != "finetune"),
    *sorted((ROOT / "benchmarks").glob("soak_*.py")),
]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_is_consistent(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = from_config_dict(module.get_config())
    check(config, num_devices=1)
    if path.parent.name == "experiments":
        check(config, num_devices=128, process_count=16)


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"coca", "distill"}))  # those need a decoder or a teacher
def test_the_quickstart_takes_every_loss_by_one_field(loss):
    tree = quickstart()
    tree.loss.name = loss
    check(from_config_dict(tree), num_devices=1)


def test_clips_recipe_takes_clips_resnets_too():
    spec = importlib.util.spec_from_file_location("clip_b32", ROOT / "experiments" / "clip_b32.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = from_config_dict(module.get_config("clip_rn50x16"))
    check(config, num_devices=128, process_count=16)
    assert (config.model.image.name, config.model.image.remat) == ("resnet", "dots")
    assert config.model.text.attention == "auto" and not config.model.text.scan_layers
