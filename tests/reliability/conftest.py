"""The short experiment that these tests disturb, and the undisturbed run to compare with."""

import pytest

from clipjax.commands import train
from clipjax.config import from_config_dict
from tests import runs


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("reliability")
    runs.build_data(path)
    return path


@pytest.fixture(scope="session")
def config(folder):
    """Twelve steps, a checkpoint every 3, no evaluation."""
    config = runs.run_config(folder)
    config.eval.evaluators = {}
    return from_config_dict(config)


@pytest.fixture(scope="session")
def whole(folder, config):
    """The workdir of the undisturbed run, with the checkpoints 3, 6, 9 and 12."""
    workdir = folder / "whole"
    train.run(config, workdir)
    return workdir
