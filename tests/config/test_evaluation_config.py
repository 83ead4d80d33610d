"""Files with evaluators alone: how they are read, and who refuses them."""

import pytest

from clipjax.commands.config_file import load_config_file
from clipjax.config import ConfigError, EvaluationConfig, default_config, eval_config, evaluated, from_config_dict
from clipjax.config import from_eval_config as read
from clipjax.report.datacomp import TASKS


def test_a_file_may_return_eval_config_a_dict_or_the_dataclass(tmp_path):
    for returned in (
        "eval_config()",
        "EvaluationConfig()",
        "{'eval': {'batch_size': 256}}",
        "{'eval': {}, 'data': {'num_threads': 2}}",
    ):
        path = tmp_path / "x.py"
        path.write_text(
            f"from clipjax.config import EvaluationConfig, eval_config\n\n\ndef get_config():\n    return {returned}\n"
        )
        assert read(load_config_file(str(path), evaluation=True)) == EvaluationConfig()
    path.write_text("def get_config():\n    return {'eval': {}, 'seed': 3}\n")
    assert read(load_config_file(str(path), evaluation=True)).seed == 3


def test_a_command_that_needs_a_model_refuses_such_a_file(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("from clipjax.config import eval_config as get_config\n")
    with pytest.raises(ConfigError, match="has evaluators and no model .* use it with clipjax eval --checkpoint"):
        load_config_file(str(path))


def test_model_tokenizer_and_pixels_are_the_trained_ones():
    trained = from_config_dict(default_config())
    config = eval_config()
    config.data.num_threads = 7
    config.eval.batch_size = 32
    config.mesh.fsdp = 2
    found = evaluated(trained, read(config), devices=8)
    assert (found.model, found.tokenizer, found.data.pixels) == (trained.model, trained.tokenizer, trained.data.pixels)
    assert (found.data.num_threads, found.eval.batch_size, found.mesh.fsdp) == (7, 32, 2)
    assert evaluated(trained, trained, devices=3) is trained
    with pytest.raises(ConfigError, match="num_threads"):
        config.data.num_threads = 0
        read(config)


def test_the_suites_name_their_sets(tmp_path):
    (tmp_path / "wds_vtab-cifar10_test").mkdir()
    config = read(load_config_file(f"experiments/eval/clip_benchmark.py:{tmp_path}", evaluation=True))
    assert len(config.eval.evaluators) == 41
    cifar = config.eval.evaluators["vtab-cifar10"]
    assert (cifar.source.path, cifar.published_as) == (str(tmp_path / "wds_vtab-cifar10_test"), "wds/vtab/cifar10")
    assert (config.absent, config.broken) == ("skip", "skip")
    config = read(load_config_file(f"experiments/eval/datacomp.py:{tmp_path}", evaluation=True))
    keys = {evaluator.published_as.removeprefix("wds/") for evaluator in config.eval.evaluators.values()}
    assert keys == TASKS.keys() - {"misc/winogavil"} and config.suite == "datacomp"


@pytest.mark.parametrize(
    ("devices", "mesh", "batch_size"),
    [(8, (-1, 2, 2), 16), (4, (-1, 2, 2), 16), (2, (-1, 1, 1), 16), (3, (-1, 1, 1), 18)],
)
def test_a_run_is_evaluated_on_any_number_of_devices(devices, mesh, batch_size):
    """On its own mesh where that fits; nobody has to know what the run was trained on."""
    config = default_config()
    config.mesh.update(data=2, fsdp=2, tensor=2)
    config.eval.batch_size = 16
    found = evaluated(from_config_dict(config), None, devices)
    assert (found.mesh.data, found.mesh.fsdp, found.mesh.tensor) == mesh and found.eval.batch_size == batch_size
    assert evaluated(from_config_dict(config), read(eval_config()), devices).eval.batch_size % devices == 0
