"""Prompts: every template has a place for the name, and the names keep their order."""

import pytest

from clipjax.config import ConfigError
from clipjax.eval.prompts import TEMPLATES, fill


def test_every_name_is_put_in_every_template_name_by_name():
    assert fill(("{}", "a {} on a {}"), ("cat", "dog")) == ["cat", "a cat on a cat", "dog", "a dog on a dog"]


def test_other_braces_stay_as_they_are():
    assert fill(("{x} {} {0}",), ("{}s",)) == ["{x} {}s {0}"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_set_of_the_table_can_be_used(name):
    prompts = fill(TEMPLATES[name], ("zebra",))
    assert all("zebra" in prompt for prompt in prompts)
    assert len(set(prompts)) == len(prompts)


def test_a_template_without_a_place_for_the_name_is_refused():
    with pytest.raises(ConfigError, match="Template 'a photo' has no {} or {c} for the class name"):
        fill(("{}", "a photo"), ("cat",))
    with pytest.raises(ConfigError, match="templates are empty"):
        fill((), ("cat",))
