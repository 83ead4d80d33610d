"""A loss refuses, by the field's name, a model that it cannot train."""

from dataclasses import replace

import pytest

from clipjax.config import ConfigError, LossConfig, ModelConfig
from clipjax.losses import LOSSES, check_loss

MODEL = ModelConfig(logit_bias_init=-10.0)
WITH_DECODER = replace(MODEL, decoder=replace(MODEL.decoder, depth=1))


@pytest.mark.parametrize(
    ("config", "model", "message"),
    [
        (LossConfig("sigmoid"), replace(MODEL, logit_bias_init=None), r"set config\.model\.logit_bias_init=-10\.0"),
        (LOSSES["distill"].config(), MODEL, r"config\.loss\.teacher=''"),
        (LOSSES["coca"].config(), MODEL, r"config\.model\.decoder\.depth=0: captioning needs a decoder"),
        (LossConfig(), WITH_DECODER, r"decoder\.depth=1: this loss reads no captions"),
        (LossConfig(tile=5), MODEL, r"config\.loss\.tile=5 does not divide the 8 rows"),
        (LossConfig(tile=-1), MODEL, r"config\.loss\.tile=-1 must be positive"),
    ],
)
def test_a_loss_that_cannot_train_the_model_is_refused(config, model, message):
    with pytest.raises(ConfigError, match=message):
        check_loss(config, model, rows=8)


def test_what_a_loss_needs_lets_it_pass():
    check_loss(LossConfig("sigmoid"), MODEL, rows=8)
    check_loss(LOSSES["distill"].config(teacher="runs/teacher"), MODEL, rows=8)
    check_loss(LOSSES["coca"].config(), WITH_DECODER, rows=8)


def test_only_a_loss_with_a_teacher_names_one():
    assert LOSSES["distill"].config(teacher="runs/teacher").teacher == "runs/teacher"
    assert {row.config().teacher for row in LOSSES.values()} == {""}
