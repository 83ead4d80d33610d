"""What may change at a restart, and what may not; both are reported field by field."""

import dataclasses
import json
import shutil

import pytest

from clipjax.commands import train
from clipjax.config import ConfigError, flat, from_json_dict, to_json_dict
from clipjax.runs.config_changes import check_changes
from clipjax.runs.fingerprint import FingerprintError, check_fingerprint
from docs.generate import RESTART, every_field, restart_table, with_part
from tests import runs
from tests.runs import ROOT
from tests.tiny import tiny_config

OLD = tiny_config()
FIELDS = flat(OLD)


def changed(**values):
    """OLD with fields replaced; their names have "__" for "."."""
    tree = json.loads(json.dumps(to_json_dict(OLD)))
    for name, value in values.items():
        *folders, last = name.split("__")
        branch = tree
        for folder in folders:
            branch = branch[folder]
        branch[last] = value
    return from_json_dict(tree)


REFUSED = {
    "seed": 1,
    "global_batch_size": 32,
    "data__train__split": "validation",
    "data__pixels__interpolation": "bilinear",
    "tokenizer__lowercase": True,
    "model__embed_dim": 64,
    "model__image__patch_size": 8,
    "model__text__pool": "eos",
    "loss__name": "softmax",
    "loss__repeats": "ignore",
    "optimizer__name": "lamb",
    "optimizer__moment_dtype": "bfloat16",
}
ALLOWED_AND_FELT = {
    "total_steps": 40,
    "optimizer__learning_rate": 2e-3,
    "optimizer__grad_clip_norm": 1.0,
    "optimizer__schedule__warmup_steps": 3,
    "data__augment__flip": 0.5,
    "model__dtype": "bfloat16",
    "model__text__dropout": 0.1,
}
ALLOWED = {
    "accumulation_steps": 2,
    "mesh__fsdp": 2,
    "loss__comm": "ring",
    "loss__tile": 4,
    "model__image__remat": "full",
    "data__train__path": "elsewhere",
    "data__num_threads": 9,
    "data__max_bad_share": 0.5,
    "tokenizer__path": "moved.model",
    "eval__every_steps": 5,
    "checkpoint__keep_last": 9,
    "log__every_steps": 7,
    "optimizer__max_nonfinite_steps": 3,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_spoil_a_run_is_refused_with_both_values_and_the_reason(name):
    path = name.replace("__", ".")
    with pytest.raises(ConfigError) as caught:
        check_changes(OLD, changed(**{name: REFUSED[name]}), "runs/x/checkpoints/6")
    (line,) = [line for line in str(caught.value).splitlines() if line.startswith("  ")]
    assert line.startswith(f"  {path}={FIELDS[path]!r}, config.{path} is now {REFUSED[name]!r}: ")
    assert "runs/x/checkpoints/6 was trained" in str(caught.value) and "--config.init_from" in str(caught.value)


def test_all_that_is_refused_is_told_at_once_and_nothing_else():
    with pytest.raises(ConfigError) as caught:
        check_changes(OLD, changed(**REFUSED, **ALLOWED, **ALLOWED_AND_FELT), "x")
    lines = [line.split("=")[0].strip() for line in str(caught.value).splitlines() if line.startswith("  ")]
    assert lines == sorted(name.replace("__", ".") for name in REFUSED)


@pytest.mark.parametrize(("name", "felt"), [(n, True) for n in ALLOWED_AND_FELT] + [(n, False) for n in ALLOWED])
def test_what_may_change_is_told_with_whether_the_curve_feels_it(name, felt):
    path, value = name.replace("__", "."), (ALLOWED | ALLOWED_AND_FELT)[name]
    (line,) = check_changes(OLD, changed(**{name: value}), "x")
    assert line == f"  config.{path}: {FIELDS[path]!r} -> {value!r}" + ", which changes the curve from here on" * felt


@pytest.mark.parametrize(("old", "new"), [(0.0, 0.99), (0.99, 0.0)])
def test_averages_begin_with_a_run_and_are_not_lost(old, new):
    with pytest.raises(ConfigError, match="ema_decay.*averages are kept from the first step on"):
        check_changes(changed(optimizer__ema_decay=old), changed(optimizer__ema_decay=new), "x")
    (line,) = check_changes(changed(optimizer__ema_decay=0.9), changed(optimizer__ema_decay=0.99), "x")
    assert line.endswith("which changes the curve from here on")


def test_micro_batches_change_the_curve_where_each_draws_for_itself():
    before, after = (changed(model__text__dropout=0.1, accumulation_steps=steps) for steps in (1, 2))
    (line,) = check_changes(before, after, "x")
    assert line == "  config.accumulation_steps: 1 -> 2, which changes the curve from here on"
    (line,) = check_changes(before, changed(model__text__dropout=0.1, mesh__fsdp=2), "x")
    assert line == "  config.mesh.fsdp: 1 -> 2"
    (line,) = check_changes(after, changed(model__text__dropout=0.1, accumulation_steps=2, mesh__fsdp=2), "x")
    assert line.endswith(" 1 -> 2, which changes the curve from here on")


def test_no_change_is_nothing_to_tell_after_a_round_trip_through_json():
    again = from_json_dict(json.loads(json.dumps(to_json_dict(OLD))))
    assert check_changes(again, OLD, "x") == []


@pytest.mark.slow
def test_a_run_tells_what_changed_and_goes_on(whole, config, tmp_path, capsys):
    shutil.copytree(whole / "checkpoints" / "9", tmp_path / "checkpoints" / "9")
    log = dataclasses.replace(config.log, every_steps=2)
    optimizer = dataclasses.replace(config.optimizer, learning_rate=5e-4)
    train.run(dataclasses.replace(config, log=log, optimizer=optimizer), tmp_path)
    told = capsys.readouterr().out
    assert "  config.log.every_steps: 1 -> 2\n" in told
    assert "  config.optimizer.learning_rate: 0.001 -> 0.0005, which changes the curve from here on\n" in told
    assert list(runs.losses(tmp_path)) == [10, 12]
    assert runs.losses(tmp_path)[10] == runs.losses(whole)[10], "the first step's loss is of the restored weights"


def test_every_field_of_every_part_declares_a_role():
    silent = [f"{cls.__name__}: {name}" for name, cls, declared in every_field() if declared is None]
    assert not silent, "declare weights(), meaning(), experiment() or runtime() (clipjax.config.fields)"


def test_the_table_in_the_docs_is_what_the_fields_declare():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert page == with_part(page, RESTART, restart_table()), "run python -m docs.generate"


def test_an_option_newer_than_a_checkpoint_makes_no_difference_at_its_default():
    now = {"image.name": "vit", "image.rope": False, "image.rope_axes": "yx", "tokenizer.sha256": "a"}
    before = {name: value for name, value in now.items() if name != "image.rope_axes"}
    check_fingerprint(before, now, where="here")
    with pytest.raises(FingerprintError, match="rope_axes: checkpoint 'not recorded', configuration 'xy'"):
        check_fingerprint(before, now | {"image.rope_axes": "xy"}, where="here")
    with pytest.raises(FingerprintError, match=r"'x+ \.\.\. \(99,002 characters\)") as caught:
        check_fingerprint(before | {"pixels.mean": "x" * 99_000}, now, where="here")
    assert len(str(caught.value)) < 1000
    with pytest.raises(FingerprintError, match="tokenizer.sha256"):
        check_fingerprint({"tokenizer.pad_id": 0}, {"tokenizer.pad_id": 0, "tokenizer.sha256": "a"}, where="here")
