"""`clipjax check` and `clipjax check-data` read compositional and multilingual sets, and say what is wrong there."""

import dataclasses

import pytest

from clipjax.commands import check, check_data
from clipjax.data.records import ManifestError
from clipjax.data.sources import HardNegativesConfig
from clipjax.eval import CompositionalConfig, RetrievalConfig, multilingual
from tests.data import hard_negative_sets as sets
from tests.tiny import tiny_config


def config_of(**evaluators):
    config = tiny_config()
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, evaluators=evaluators))


def test_the_sets_are_counted_and_shown_with_their_groups(tmp_path, capsys):
    sugar = CompositionalConfig(source=HardNegativesConfig(path=str(sets.sugarcrepe(tmp_path / "s"))))
    wino = CompositionalConfig(source=HardNegativesConfig(path=str(sets.winoground(tmp_path / "w"))))
    config = config_of(sugar=sugar, wino=wino, **multilingual(sets.crossmodal(tmp_path / "x"), name="xm"))
    found = check_data.run(config)
    assert {name: (one.records, one.captions) for name, one in found.items()} == {
        "sugar": (6, 12), "wino": (10, 20), "xm_de": (6, 6), "xm_fil": (6, 12)
    }  # fmt: skip
    shown = capsys.readouterr().out
    assert "key 'add_att/0', image 12 x 8, label 0 'add_att'\n    caption: 'picture 1' (1 of 2 captions)" in shown
    errors = check.Errors()
    for use in check_data.uses_of_data(config):
        check.check_source(use, config, None, errors, True, 0)
    assert not errors.messages


def test_a_set_that_does_not_fit_its_evaluator_is_an_error_of_its_field(tmp_path):
    sugar = HardNegativesConfig(path=str(sets.sugarcrepe(tmp_path / "s")))
    (tmp_path / "skip.txt").write_text("behind\n")
    config = config_of(
        skips=CompositionalConfig(source=sugar, skip_groups=str(tmp_path / "skip.txt")),
        true=RetrievalConfig(source=sugar, all_captions=True),
    )
    errors = check.Errors()
    for use in check_data.uses_of_data(config):
        check.check_source(use, config, None, errors, True, 0)
    (skips, true) = errors.messages
    assert skips.startswith("config.eval.evaluators.skips: None of the 1 names in skip_groups=")
    assert true.startswith("config.eval.evaluators.true: ") and "count the false ones as right" in true
    with pytest.raises(ManifestError, match="config.eval.evaluators.gone: .*swap_att.json"):
        source = HardNegativesConfig(path=str(tmp_path / "s" / "swap_att.json"))
        check_data.run(config_of(gone=CompositionalConfig(source=source)))
