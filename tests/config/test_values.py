"""Every number of every part has a range, and no number outside it is taken."""

import contextlib
import dataclasses
import math
import typing

import pytest

from clipjax.config import (
    ConfigError,
    ExperimentConfig,
    check_values,
    default_config,
    from_config_dict,
    from_json_dict,
)
from clipjax.config.fields import rows
from clipjax.config.ranges import RATE, Range
from clipjax.training.check import check
from docs.generate import every_field

ABSURD = (0, -1, 1, 3, 10**12, math.nan, math.inf, 1e30, 5e-324)
TABLES = {
    "model.image": "clipjax.models:IMAGE_TOWERS",
    "model.text": "clipjax.models:TEXT_TOWERS",
    "loss": "clipjax.losses:LOSSES",
    "optimizer": "clipjax.optim:OPTIMIZERS",
    "tokenizer": "clipjax.data.tokenizers:TOKENIZERS",
}


def kind_of(cls: type, name: str) -> set[type]:
    """The types of a field, without None and, of a tuple, those of its items."""
    kind = typing.get_type_hints(cls)[name.split(".")[-1]]
    kinds = typing.get_args(kind) if typing.get_origin(kind) is not typing.Literal else ()
    return {kind, *kinds} & {int, float}


def test_every_number_of_every_part_declares_a_range_and_its_default_is_in_it():
    fields = [(name, cls, declared) for name, cls, declared in every_field() if kind_of(cls, name)]
    silent = [f"{cls.__name__}: {name}" for name, cls, declared in fields if declared.within is None]
    assert not silent, "declare within=... (clipjax.config.ranges)"
    assert len(fields) > 80
    for section, table in TABLES.items():
        for row in rows(table).values():
            check_values(row.config(), section)


@pytest.mark.parametrize("field", ["mean", "std"])
def test_pixel_statistics_of_pixels_up_to_255_are_refused_with_the_cure(field):
    config = default_config()
    config.data.pixels[field] = (127.0, 127.0, 127.0)
    with pytest.raises(ConfigError, match=rf"pixels\.{field}=\(127.0, .* at most 10?; .*divide .* by 255"):
        check_values(from_config_dict(config))


def trees():
    """(the section's fields of one part, its path) for the experiment and every part of every table."""
    yield ExperimentConfig(), ()
    for section, table in TABLES.items():
        for row in rows(table).values():
            yield row.config(), tuple(section.split("."))


def numbers(config, path=()):
    """Paths to the numbers below a dataclass."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from numbers(value, (*path, field.name))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (*path, field.name), value
        elif isinstance(value, tuple) and value and isinstance(value[0], int | float):
            yield (*path, field.name), value


def with_value(config, path, value):
    """config with the value at the end of a path of fields."""
    head, *rest = path
    return dataclasses.replace(config, **{head: with_value(getattr(config, head), rest, value) if rest else value})


def test_an_absurd_number_in_any_field_is_a_config_error_or_fits():
    """No traceback of another kind by the end of the checks before compilation."""
    tried = set()
    for section, at in trees():
        for path, default in numbers(section):
            owner = next(
                base for base in type(section).__mro__[::-1] if path[0] in getattr(base, "__annotations__", ())
            )
            if (owner, path) in tried:
                continue
            tried.add((owner, path))
            one = type(default[0] if isinstance(default, tuple) else default)
            for value in ABSURD:
                if one is int and not isinstance(value, int):
                    continue  # refused for its type
                changed = with_value(section, path, (value,) * len(default) if isinstance(default, tuple) else value)
                with contextlib.suppress(ConfigError):
                    check(with_value(ExperimentConfig(), at, changed) if at else changed, num_devices=8)
    assert len(tried) > 100


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "global_batch_size",
            10**12,
            "config.global_batch_size=1000000000000 must be at least 1 and at most 16,777,216.",
        ),
        ("optimizer.learning_rate", math.nan, "config.optimizer.learning_rate=nan must be above 0 and at most 10,000."),
        ("optimizer.ema_decay", 1.0, "config.optimizer.ema_decay=1.0 must be at least 0 and below 1."),
        (
            "optimizer.grad_clip_norm",
            math.inf,
            "config.optimizer.grad_clip_norm=inf must be at least 0 and at most 1e+30.",
        ),
        (
            "data.pixels.std",
            (0.5, 0.0, 0.5),
            "config.data.pixels.std=(0.5, 0.0, 0.5) must be at least 1e-06 and at most 10; statistics are "
            "of pixels from 0 to 1 (divide those of pixels from 0 to 255 by 255).",
        ),
        (
            "model.logit_bias_init",
            math.inf,
            "config.model.logit_bias_init=inf must be at least -1,000,000 and at most 1,000,000.",
        ),
        (
            "optimizer.eps",
            0.0,
            "config.optimizer.eps=0.0 must be above 0 and at most 1.",
        ),  # 0 / 0 of what gets no gradient
        ("checkpoint.every_steps", 0, "config.checkpoint.every_steps=0 must be at least 1 and at most 2,147,483,647."),
    ],
)
def test_the_message_names_the_field_the_value_and_the_range(field, value, message):
    config = default_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ConfigError) as caught:
        from_config_dict(config)
    assert str(caught.value) == message


def test_no_number_is_infinite_in_float32():
    """1e39 is finite in Python, and infinite on a device."""
    for section, at in trees():
        for path, default in numbers(section):
            items = default if isinstance(default, tuple) else (default,)
            if isinstance(items[0], float):
                value = (1e39,) * len(items) if isinstance(default, tuple) else 1e39
                with pytest.raises(ConfigError, match="must be .*at most|must be .*below"):
                    check_values(with_value(section, path, value), ".".join(at))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"seed": 10**400}, r"config\.seed=1000.* \.\.\. \(401 characters\) must be at least 0"),
        ({"seed": 10**5000}, r"config\.seed=an enormous integer must be at least 0"),
        ({"optimizer": {"eps": 10**400}}, r"config\.optimizer\.eps=1000.* is too large for a floating-point number"),
        ({"model": {1: 2}}, r"Unknown field config\.model\.1\. Known: decoder"),
        ({"loss": {"name": ["softmax"]}}, r"config\.loss\.name=\['softmax'\] is unknown"),
        ({"seed": (0.5,) * 10**5}, r"config\.seed is \(0\.5, .{,200}characters\) \(tuple\); expected int"),
        ({"eval": {"evaluators": {"a/b": {}}}}, r"config\.eval\.evaluators has the name 'a/b'; expected"),
        ({"eval": {"evaluators": {3: {}}}}, r"config\.eval\.evaluators has the name 3; expected"),
    ],
)
def test_values_of_any_kind_are_refused_in_one_short_line(tree, message):
    with pytest.raises(ConfigError, match=message) as caught:
        from_json_dict(tree)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_all_numbers_that_are_wrong_are_told_at_once():
    config = default_config()
    config.update(seed=-1, total_steps=0)
    with pytest.raises(ConfigError, match=r"seed=-1 must be .*\nconfig\.total_steps=0 must be"):
        from_config_dict(config)


def test_a_configuration_built_in_python_is_checked_too():
    with pytest.raises(ConfigError, match=r"config\.log\.every_steps=0 must be at least 1"):
        check(
            dataclasses.replace(ExperimentConfig(), log=dataclasses.replace(ExperimentConfig().log, every_steps=0)),
            num_devices=8,
        )


def test_a_temperature_that_the_first_step_would_cut_is_refused():
    model = dataclasses.replace(ExperimentConfig().model, logit_scale_init=200.0)
    with pytest.raises(ConfigError, match=r"logit_scale_init=200\.0 is above logit_scale_max=100\.0"):
        check(dataclasses.replace(ExperimentConfig(), model=model), num_devices=8)
    check(dataclasses.replace(ExperimentConfig(), model=dataclasses.replace(model, logit_scale_max=0.0)), num_devices=8)


def test_ends_of_a_range_are_in_it_unless_they_are_open():
    assert 0.0 in RATE and 1.0 not in RATE and math.nan not in RATE
    assert 3 in Range(1, 3) and 3 not in Range(1, 3, high_open=True) and 1 not in Range(1, low_open=True)
