"""Sections whose dataclass a name chooses: what is read, what is refused, and how a ConfigDict follows the name."""

import copy
import json
import pickle
from dataclasses import dataclass

import pytest

from clipjax.config import ConfigError, Part, build, declared, flat, require_field, to_config_dict, to_json_dict
from clipjax.config.fields import declarations, experiment, part, parts, runtime, section


@dataclass(frozen=True)
class ScheduleConfig:
    warmup: int = experiment(0)


@dataclass(frozen=True)
class PlainConfig:
    name: str = experiment("plain", fixed="it is another experiment")
    rate: float = experiment(0.1)
    schedule: ScheduleConfig = section(ScheduleConfig)


@dataclass(frozen=True)
class MomentumConfig(PlainConfig):
    name: str = "momentum"
    rate: float = 0.5
    decay: float = experiment(0.9)


TABLE = {"plain": Part(PlainConfig, lambda config: config), "momentum": Part(MomentumConfig, lambda config: config)}
NAMED = f"{__name__}:TABLE"


@dataclass(frozen=True)
class Experiment:
    optimizer: PlainConfig = part(NAMED, "plain")
    several: dict[str, PlainConfig] = parts(NAMED, role="runtime")
    threads: int = runtime(2)


def test_the_name_chooses_the_dataclass_also_after_a_round_trip_through_json():
    config = build(Experiment, {"optimizer": {"name": "momentum", "decay": 0.5}, "several": {"a": {}}})
    assert config.optimizer == MomentumConfig(decay=0.5) and config.several == {"a": PlainConfig()}
    assert build(Experiment, json.loads(json.dumps(to_json_dict(config)))) == config
    assert build(Experiment, to_config_dict(config)) == config


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"optimizer": {"decay": 0.5}},
            "Unknown field config.optimizer.decay: 'plain' has no such field, 'momentum' has. "
            "Set config.optimizer.name, or leave decay out. Fields of 'plain': name, rate, schedule.",
        ),
        ({"several": {"a": {"decay": 0.5}}}, "Unknown field config.several.a.decay: 'plain' has no such field"),
        (
            {"optimizer": {"name": "momentum", "dekay": 1.0}},
            "Unknown field config.optimizer.dekay. Did you mean 'decay'",
        ),
        ({"optimizer": {"name": "momentun"}}, "config.optimizer.name='momentun' is unknown. Did you mean 'momentum'?"),
        ({"optimizer": {"schedule": {"cooldown": 3}}}, "Unknown field config.optimizer.schedule.cooldown"),
    ],
)
def test_a_field_of_another_part_is_refused_by_both_names(tree, message):
    with pytest.raises(ConfigError) as caught:
        build(Experiment, tree)
    assert str(caught.value).startswith(message)


def test_setting_the_name_exchanges_fields_and_keeps_what_was_set():
    config = to_config_dict(Experiment())
    config.optimizer.schedule.warmup = 7
    config.optimizer.name = "momentum"
    assert build(Experiment, config).optimizer == MomentumConfig(schedule=ScheduleConfig(7)), (
        "rate is momentum's default"
    )
    config.optimizer.update(rate=0.2, decay=0.3)
    config.lock()
    config.optimizer.name = "plain"
    assert build(Experiment, config).optimizer == PlainConfig(rate=0.2, schedule=ScheduleConfig(7))
    with pytest.raises(AttributeError):
        config.optimizer.decay = 0.1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_a_copy_follows_the_name_too(copied):
    config = copied(to_config_dict(Experiment()).lock())
    config.optimizer.name = "momentum"
    assert build(Experiment, config).optimizer == MomentumConfig()


def test_a_command_line_may_set_only_what_the_chosen_part_has():
    config = to_config_dict(Experiment())
    require_field(config, "optimizer.schedule.warmup")
    with pytest.raises(ConfigError, match="optimizer.decay: 'plain' has no such field, 'momentum' has"):
        require_field(config, "optimizer.decay")
    config.optimizer.name = "momentum"
    require_field(config, "optimizer.decay")


def test_roles_are_inherited_and_an_enclosing_section_may_decide_for_all_below():
    config = build(Experiment, {"optimizer": {"name": "momentum"}, "several": {"a": {}}})
    roles = declared(config)
    assert roles["optimizer.name"].fixed == "it is another experiment"
    assert roles["optimizer.rate"].role == roles["optimizer.decay"].role == "experiment"
    assert {roles[name].role for name in flat(config) if name.startswith("several.")} == {"runtime"}
    assert not roles["several.a.name"].fixed


def test_a_field_without_a_role_is_an_error():
    @dataclass(frozen=True)
    class Forgetful:
        width: int = 3

    with pytest.raises(TypeError, match="Forgetful.width declares no role"):
        list(declarations(Forgetful()))


def test_a_whole_section_in_anothers_place_follows_its_name_too():
    config = to_config_dict(Experiment())
    config.optimizer = to_config_dict(MomentumConfig(decay=0.3))
    assert build(Experiment, config).optimizer == MomentumConfig(decay=0.3)
    config.optimizer.name = "plain"
    assert build(Experiment, config).optimizer == PlainConfig()
