"""Configuration: what is wrong is refused early, and the message names the field."""

import json

import pytest

from clipjax.config import (
    ConfigError,
    default_config,
    from_config_dict,
    from_json_dict,
    to_config_dict,
    to_json_dict,
)
from clipjax.eval import ZeroShotConfig
from clipjax.training.check import check


def checked(change, *, num_devices=8, process_count=1):
    config = default_config()
    change(config)
    result = from_config_dict(config)
    check(result, num_devices=num_devices, process_count=process_count)
    return result


def test_config_survives_a_round_trip_through_json():
    def change(config):
        config.eval.evaluators = {"flickr": to_config_dict(ZeroShotConfig(templates=("{}", "a {}")))}
        config.model.logit_bias_init = -10.0
        config.model.text.vocab_size = 32000

    config = checked(change)
    assert from_json_dict(json.loads(json.dumps(to_json_dict(config)))) == config


def test_an_int_is_taken_where_a_float_is_expected_but_not_the_reverse():
    assert checked(lambda c: c.optimizer.update({"learning_rate": 1})).optimizer.learning_rate == 1.0
    with pytest.raises(TypeError):
        default_config().seed = 1.5


def test_an_optional_field_takes_its_type_and_none():
    config = default_config()
    config.model.logit_bias_init = -10
    assert from_config_dict(config).model.logit_bias_init == -10.0
    config.model.logit_bias_init = None
    assert from_config_dict(config).model.logit_bias_init is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.optimizer.update({"learning_rat": 1.0}), "config.optimizer.learning_rat.*'learning_rate'"),
        (lambda c: c.update({"globl_batch_size": 8}), "config.globl_batch_size.*'global_batch_size'"),
        (lambda c: c.model.image.update({"pool": "clss"}), "config.model.image.pool='clss'.*'cls'"),
        (lambda c: c.update({"global_batch_size": 1001}), "global_batch_size=1001.*8 devices.*such as 1000"),
        (lambda c: c.mesh.update({"fsdp": 3}), "config.mesh.*fsdp=3.*8 device"),
        (lambda c: c.mesh.update({"data": 3}), "config.mesh.*data=3.*8 device"),
        (lambda c: c.mesh.update({"tensor": 8}), "tensor=8.*num_heads=12"),
        (lambda c: c.model.image.update({"num_heads": 7}), "model.image.width=768.*num_heads=7"),
        (lambda c: c.model.image.update({"projection": False}), "width=768.*embed_dim=512"),
        (lambda c: c.loss.update({"name": "sigmoid"}), "logit_bias_init=-10.0"),
        (lambda c: c.optimizer.schedule.update({"warmup_steps": 10_000}), "warmup_steps=10000.*total_steps=10000"),
        (lambda c: c.data.pixels.update({"mean": (0.5,)}), "config.data.pixels.mean.*three"),
        (lambda c: c.checkpoint.update({"best_metric": "imagenet/top1"}), "best_metric='imagenet/top1'"),
    ],
)
def test_an_impossible_experiment_is_refused_with_the_fields_name(change, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        checked(change)


def test_a_wrong_type_from_json_is_refused_with_the_fields_name():
    tree = to_json_dict(checked(lambda c: None))
    tree["optimizer"]["learning_rate"] = "fast"
    with pytest.raises(ConfigError, match=r"config\.optimizer\.learning_rate is 'fast' \(str\); expected float"):
        from_json_dict(tree)


def test_a_batch_that_devices_do_not_divide_names_batches_and_numbers_of_devices_that_would():
    message = r"data x fsdp = 6 x 1 .*Use a multiple of 6, such as 1026, or data x fsdp = 4 or 8, which divide it"
    with pytest.raises(ConfigError, match=message):
        checked(lambda c: c.update({"global_batch_size": 1024}), num_devices=6)


def test_devices_must_be_spread_evenly_over_processes():
    with pytest.raises(ConfigError, match="8 devices in 3 processes: every process must have the same number"):
        checked(lambda c: None, process_count=3)
