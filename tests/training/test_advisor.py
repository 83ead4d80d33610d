"""The advisor is silent about healthy runs, and says of each broken one what is wrong, once."""

import math
from dataclasses import replace

import jax
import numpy as np
import pytest

from clipjax.config import LossConfig, build
from clipjax.losses import LOSSES, make_loss, uninformed
from clipjax.runs.advice import AdviceLog, read_advice
from clipjax.training.advisor import Advisor, look_at_batch
from tests.tiny import start, tiny_batches, tiny_config

STEPS = 60  # of real runs


def lines(losses, scale=10.0, *, every=5, grad_norm=1.0, update_norm=0.1, learning_rate=1e-3, first=None):
    """Lines of metrics.jsonl, `every` steps apart."""
    scales = scale if isinstance(scale, list) else [scale] * len(losses)
    names = ("loss", "logit_scale", "grad_norm", "update_norm", "learning_rate")
    return [
        (every * (i + 1), dict(zip(names, (loss, scale, grad_norm, update_norm, learning_rate), strict=True)))
        for i, (loss, scale) in enumerate(zip(losses, scales, strict=True))
    ]


def advice(config, found, **options):
    advisor = Advisor(config, **options)
    return [said for step, values in found for said in advisor.look(step, values)]


def causes(config, found, **options):
    return [said.cause for said in advice(config, found, **options)]


def softmax(**changes):
    return replace(tiny_config(loss="softmax"), total_steps=10_000, **changes)


def noisy(value, count, seed=0):
    return list(value + 0.05 * np.random.default_rng(seed).standard_normal(count))


@pytest.mark.parametrize("name", LOSSES)
def test_the_uninformed_value_is_the_loss_of_equal_similarities_and_no_others_are_below_it(name):
    row, pairs = LOSSES[name], 12
    config = build(row.config, {"name": name, "comm": "dense"})
    known = uninformed(config, pairs)
    same = np.tile(np.eye(8, dtype=np.float32)[0], (pairs, 1))
    others = {
        "teacher_image_embedding": same, "teacher_text_embedding": same, "teacher_logit_scale": np.float32(5),
        "caption_nll": np.full(pairs, 9, np.float32), "caption_tokens": np.full(pairs, 3, np.float32),
    }  # fmt: skip

    def value(scale, bias):
        given = {key: others[key] for key in row(config).needs}
        loss, parts = make_loss(config, None)(same, same, logit_scale=scale, logit_bias=bias, **given)
        return float(sum(parts[f"{part}_loss"] for part in known.parts) if parts and known.parts else loss)

    best = value(1.0, -math.log(pairs - 1) - 1.0)
    assert best == pytest.approx(known.value, abs=1e-4)
    assert all(value(scale, bias) > known.value - 1e-4 for scale, bias in ((10.0, -10.0), (3.0, -1.0), (30.0, 0.0)))


def test_a_loss_makes_no_statement_about_one_pair_or_where_it_has_no_bound():
    assert uninformed(LossConfig(), 1) is None
    assert uninformed(LossConfig(name="sigmoid", repeats="positives"), 8) is None
    assert uninformed(LossConfig(name="softmax", repeats="positives"), 8).value == pytest.approx(math.log(8))


@pytest.mark.parametrize(
    "losses",
    [
        list(np.linspace(2.9, 0.3, 400)),  # it learns at once
        [*noisy(math.log(16), 100), *np.linspace(2.7, 1.0, 200)],  # after a plateau of half of the patience
        noisy(2.2, 400),  # few captions, and a loss that cannot fall further
        [*np.linspace(2.9, 0.01, 100), *noisy(0.05, 300)],
    ],
)
def test_nothing_is_said_of_runs_that_learn(losses):
    assert advice(softmax(), lines(losses)) == []


def test_a_loss_that_stays_at_its_uninformed_value_is_told_once_with_its_value_the_scale_and_causes():
    (said,) = advice(softmax(), lines(noisy(math.log(16), 400)))
    assert said.cause == "no learning" and said.step == 1000
    assert "ln 16 = 2.773" in said.text and "logit_scale has not moved from 10" in said.text
    for cause in ("learning rate", "captions", "images", "do not belong together"):
        assert cause in said.text
    assert "\n" not in said.text


def test_the_warm_up_does_not_count_and_a_scale_that_moved_is_named():
    config = softmax()
    schedule = replace(config.optimizer.schedule, warmup_steps=500)
    config = replace(config, optimizer=replace(config.optimizer, schedule=schedule))
    scales = list(np.linspace(10, 3, 400))
    (said,) = advice(config, lines(noisy(math.log(16), 400), scales))
    assert said.step == 1500 and "logit_scale went from" in said.text


def test_a_loss_of_the_sigmoid_that_still_falls_is_left_alone_and_told_where_it_has_come_to_rest():
    config = replace(tiny_config(), total_steps=10_000)
    least = uninformed(config.loss, 16).value
    falling = list(np.linspace(9.8, least + 0.2, 1000))
    assert advice(config, lines(falling)) == []
    assert causes(config, lines([*falling, *noisy(least, 600)])) == ["no learning"]


def test_a_part_of_a_loss_is_judged_by_itself():
    row = LOSSES["coca"]
    config = replace(softmax(), loss=row.config(name="coca"))
    found = [(step, values | {"contrastive_loss": math.log(16), "caption_loss": 50 / step}) for step, values in
             lines([math.log(16) + 1] * 400)]  # fmt: skip
    (said,) = advice(config, found)
    assert said.text.startswith("the contrastive loss has been 2.773")


def test_a_run_that_ends_without_having_learned_is_told_at_its_end_and_a_shorter_one_is_not():
    found = lines(noisy(math.log(16), 12))
    assert causes(replace(softmax(), total_steps=60), found) == ["no learning"]
    assert causes(replace(softmax(), total_steps=30), found[:6]) == []


def test_a_gradient_of_zero_updates_of_zero_and_one_pair_are_told():
    flat = lines([2.0] * 8, grad_norm=0.0)
    assert causes(softmax(), flat) == ["no gradient"]
    optimizer = replace(softmax().optimizer, image_lr_multiplier=0.0, text_lr_multiplier=0.0)
    (said,) = advice(softmax(optimizer=optimizer), flat)
    assert "config.optimizer.image_lr_multiplier and config.optimizer.text_lr_multiplier are 0" in said.text
    assert causes(softmax(), lines([2.0] * 8, update_norm=0.0)) == ["no update"]
    assert causes(softmax(global_batch_size=1), lines([0.0] * 8, grad_norm=0.0)) == ["one pair"]
    assert causes(softmax(), lines([0.0] * 8, grad_norm=0.0)) == [], "a loss of 0 has no gradient"


def test_a_scale_at_its_limit_is_told_where_the_loss_is_high_and_not_where_it_is_low_or_the_scale_is_fixed():
    config = softmax(model=replace(softmax().model, logit_scale_max=100.0))
    assert causes(config, lines([2.0] * 400, 100.0)) == ["scale at limit"]
    assert causes(config, lines([0.5] * 400, 100.0)) == []
    fixed = replace(config.optimizer, temperature_lr_multiplier=0.0)
    assert causes(replace(config, optimizer=fixed), lines([2.0] * 400, 100.0)) == []


def test_embeddings_that_are_all_the_same_are_told_after_the_patience():
    advisor, rng = Advisor(softmax()), np.random.default_rng(0)
    apart = rng.standard_normal((16, 8))
    apart /= np.linalg.norm(apart, axis=1, keepdims=True)
    same = np.tile(apart[:1], (16, 1))
    same[3] = np.nan
    assert advisor.look_at_embeddings(10, same, apart) == [] == advisor.look_at_embeddings(2000, apart, apart)
    assert [said.cause for said in advisor.look_at_embeddings(2000, apart, same)] == ["collapsed captions"]
    assert [said.cause for said in advisor.look_at_embeddings(3000, same, same)] == ["collapsed images"]


def test_a_restart_says_nothing_again_and_remembers_what_came_before_it(tmp_path, capsys):
    config, found = softmax(), lines(noisy(math.log(16), 400))
    log = AdviceLog(config, tmp_path, 0)
    for step, values in found[:250]:
        log.write(step, values)
    assert capsys.readouterr().out.startswith("advice: the loss has been 2.7")
    assert [said["cause"] for said in read_advice(tmp_path)] == ["no learning"]
    log = AdviceLog(config, tmp_path, 1250)
    for step, values in found[250:]:
        log.write(step, values)
    assert capsys.readouterr().out == "" and len(read_advice(tmp_path)) == 1
    AdviceLog(config, tmp_path, 0)
    assert read_advice(tmp_path) == [], "a run that begins again has not been told"


def trained(batches, config):
    """What is said of a real run on these batches, in turn."""
    _, state, step = start(config, num_devices=1)
    advisor, batch = None, None
    advisor, said = Advisor(config, evidence=lambda: look_at_batch(batch)), []
    for number in range(1, STEPS + 1):
        batch = {name: jax.numpy.asarray(column) for name, column in batches[number % len(batches)].items()}
        state, metrics = step(state, batch)
        if number % 5 == 0:
            said += advisor.look(number, {name: float(value) for name, value in metrics.items()})
    return said


def real(learning_rate=1e-3):
    config = tiny_config(loss="softmax", learning_rate=learning_rate)
    return replace(config, total_steps=STEPS, model=replace(config.model, logit_scale_init=2.0))


def test_nothing_is_said_of_a_real_run_that_learns_its_pairs():
    assert trained(tiny_batches(2), real()) == []


def test_real_runs_on_equal_captions_black_images_and_pairs_at_random_are_told_what_is_wrong():
    batches, rng = tiny_batches(2), np.random.default_rng(0)
    captions = [batch | {"text": np.tile(batch["text"][:1], (16, 1))} for batch in batches]
    said = trained(captions, real())
    assert [advice.cause for advice in said] == ["batch", "no learning"]
    assert all("all captions are the same" in advice.text for advice in said)
    black = [batch | {"image": np.zeros_like(batch["image"])} for batch in batches]
    assert "all images are black" in trained(black, real())[0].text
    shuffled = [
        batch | {"text": rng.integers(0, 64, batch["text"].shape, np.int32)} for batch in tiny_batches(1) * STEPS
    ]
    (said,) = trained(shuffled, real())
    assert said.cause == "no learning" and "do not belong together" in said.text


@pytest.mark.slow
def test_a_real_run_with_a_learning_rate_far_too_small_is_told():
    (said,) = trained(tiny_batches(2), real(1e-12))
    assert said.cause == "no learning" and "learning_rate=1e-12" in said.text and "has not moved" in said.text
