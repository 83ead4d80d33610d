"""Every experiment in the repository gives a configuration that is consistent, on one device and on a pod's worth."""

import importlib.util
from pathlib import Path

import pytest

from clipjax.config import from_config_dict
from clipjax.training.check import check

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.py"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_is_consistent(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = from_config_dict(module.get_config())
    check(config, num_devices=1)
    check(config, num_devices=128, process_count=16)


def test_clips_recipe_takes_clips_resnets_too():
    spec = importlib.util.spec_from_file_location("clip_b32", EXPERIMENTS[0].parent / "clip_b32.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = from_config_dict(module.get_config("clip_rn50x16"))
    check(config, num_devices=128, process_count=16)
    assert (config.model.image.name, config.model.image.remat) == ("resnet", "dots")
    assert config.model.text.attention == "flash" and not config.model.text.scan_layers
