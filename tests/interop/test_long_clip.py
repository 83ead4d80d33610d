"""Long-CLIP's two tables of text positions are read as the rows that count, and written as both."""

from dataclasses import replace

import numpy as np

from clipjax.interop import long_clip
from clipjax.interop.convert import read_variables, their_arrays
from clipjax.interop.names import Description, flatten, stored, their_shapes
from clipjax.models.presets import get_preset
from tests.interop.test_names import random_file, shapes_of, tiny


def test_the_first_twenty_rows_of_one_table_and_the_others_of_the_second_are_the_positions():
    model = tiny("long_clip_vit_b16")
    model = replace(model, text=replace(model.text, context_length=30))
    theirs, target = random_file("long_clip", model), shapes_of(model)
    variables = read_variables(long_clip.tensors(model), model, stored(theirs), target)
    found = flatten(variables)["text/position_embedding"]
    first, second = (theirs[name] for name in long_clip.TABLES)
    np.testing.assert_array_equal(found, np.concatenate([first[:20], second[20:]]))
    written = dict(their_arrays(long_clip.tensors(model), model, variables))
    assert written.keys() == theirs.keys()
    for name, array in written.items():
        np.testing.assert_array_equal(array, found if name in long_clip.TABLES else theirs[name])


def test_the_files_are_told_from_openai_s_by_their_second_table_and_give_the_sizes():
    preset = get_preset("long_clip_vit_b16")
    shapes = their_shapes(long_clip.tensors(preset), preset, flatten(shapes_of(preset)))
    assert long_clip.matches(Description({}, shapes))
    assert long_clip.FAMILY.read(Description({}, shapes)).model == preset
    del shapes["positional_embedding_res"]
    assert not long_clip.matches(Description({}, shapes))
