"""A format holds a model only if it can say every field that decides the parameters or what they compute."""

from dataclasses import replace

import pytest

from clipjax.interop import FAMILIES, Description, InteropError, Meaning, choose_family
from clipjax.interop.export import lost_parameters
from clipjax.interop.names import computed_fields, flatten, their_shapes
from tests.interop.test_names import shapes_of, tiny


def choose(model, format, family):
    return choose_family(Meaning(model, FAMILIES[family].pixels), format, flatten(shapes_of(model)))[0]


def siglip():
    return tiny("siglip_b16")


@pytest.mark.parametrize("changes", [dict(dropout=0.1, drop_path=0.1), dict(attention="flash", remat="full")])
def test_fields_that_change_only_training_or_speed_do_not_matter(changes):
    model = siglip()
    model = replace(model, image=replace(model.image, **changes), dtype="bfloat16", logit_scale_max=50.0)
    assert choose(model, "hf", "hf_siglip") == "hf_siglip"


@pytest.mark.parametrize(("tower", "field", "value"), [("image", "norm_eps", 1e-3), ("text", "pad_id", 5)])
def test_a_field_that_changes_what_is_computed_is_named(tower, field, value):
    model = siglip()
    model = replace(model, **{tower: replace(getattr(model, tower), **{field: value})})
    with pytest.raises(InteropError, match=f"big_vision: cannot express {tower}.{field}={value}"):
        choose(model, "big_vision", "big_vision")


def test_options_of_a_captioner_that_is_not_there_do_not_matter():
    model = siglip()
    model = replace(model, decoder=replace(model.decoder, width=999))
    assert choose(model, "hf", "hf_siglip") == "hf_siglip"


def test_a_parameter_that_is_not_read_back_is_named():
    """OpenAI's names have a place for a logit_bias, and their code has none."""
    clip = tiny("clip_vit_b32")
    quick = dict(activation="quick_gelu", width=64, num_heads=1, mlp_dim=256)
    clip = replace(clip, image=replace(clip.image, **quick), text=replace(clip.text, **quick))
    assert choose(clip, "openai", "openai") == "openai"
    with pytest.raises(InteropError, match="openai: cannot express a model with logit_bias"):
        choose(replace(clip, logit_bias_init=-10.0), "openai", "openai")
    with pytest.raises(InteropError, match="hf_clip: cannot express .*a model with logit_bias"):
        choose(replace(clip, logit_bias_init=-10.0), "hf", "hf_clip")
    biasless = replace(siglip(), logit_bias_init=None)
    assert lost_parameters(FAMILIES["open_clip_siglip"], biasless, siglip()) == ["a model without logit_bias"]


def test_a_family_of_other_towers_is_refused_by_their_names():
    with pytest.raises(InteropError, match="'hf_siglip2' holds the towers 'naflex' and 'transformer'"):
        choose(replace(siglip(), embed_dim=7), "hf", "hf_siglip")


@pytest.mark.parametrize("family", ["hf_clip", "hf_siglip", "hf_siglip2", "open_clip", "big_vision"])
def test_every_field_of_the_presets_of_a_family_is_said(family):
    presets = {"hf_clip": "clip_vit_b32", "hf_siglip2": "siglip2_naflex_b16", "open_clip": "clip_vit_b32"}
    model, row = tiny(presets.get(family, "siglip_b16")), FAMILIES[family]
    written = row.write(Meaning(model, row.pixels))
    shapes = their_shapes(row.tensors(model), model, flatten(shapes_of(model)))
    assert computed_fields(row.read(Description(written, shapes)).model) == computed_fields(model)
