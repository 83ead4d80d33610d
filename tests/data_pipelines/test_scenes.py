import numpy as np
import pytest

from clipjax.data.records import ManifestError, decode_record
from data_pipelines import scene_content, scenes
from data_pipelines.scene_content import COLOURS, SHAPES, Pair, Single
from data_pipelines.scene_drawing import draw

SPLITS = ("train", "validation", "compositional", "relations")


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[dict]]:
    return {split: [decode_record(r) for r in scenes.records(split, 300, seed=0)] for split in SPLITS}


def held_out_words() -> list[str]:
    return [f"{tuple(COLOURS)[c]} {SHAPES[s]}" for c, s in scene_content.held_out_kinds(0)]


def test_scenes_are_a_function_of_seed_and_index():
    first = list(scenes.records("train", 20, seed=3))
    assert first == list(scenes.records("train", 20, seed=3))
    assert first[:5] == list(scenes.records("train", 5, seed=3))
    assert all(a != b for a, b in zip(first, scenes.records("train", 20, seed=4), strict=True))


def test_held_out_colour_shape_pairs_are_named_in_no_other_split(drawn):
    for split in ("train", "validation", "relations"):
        texts = " | ".join(text for record in drawn[split] for text in record["texts"])
        assert not [words for words in held_out_words() if words in texts], split


def test_compositional_split_shows_every_held_out_pair_and_nothing_else(drawn):
    kinds = len(COLOURS) * len(SHAPES)
    shown = {divmod(record["label"] % kinds, len(SHAPES)) for record in drawn["compositional"]}
    assert shown == scene_content.held_out_kinds(0)


@pytest.mark.parametrize("seed", range(5))
def test_every_colour_and_every_shape_is_held_out_twice(seed):
    held_out = scene_content.held_out_kinds(seed)
    assert len(held_out) == 20
    assert np.bincount([colour for colour, _ in held_out]).tolist() == [2] * len(COLOURS)
    assert np.bincount([shape for _, shape in held_out]).tolist() == [2] * len(SHAPES)


def test_first_captions_are_equal_exactly_when_pair_ids_are(drawn):
    records = [record for split in SPLITS for record in drawn[split]]
    pairs = {(record["pair_id"], record["texts"][0]) for record in records}
    assert len(pairs) == len({p for p, _ in pairs}) == len({t for _, t in pairs})


def test_class_name_is_said_by_the_captions_and_only_scenes_of_one_kind_have_one(drawn):
    names = scene_content.class_names()
    assert len(set(names)) == 300
    for split in SPLITS:
        for record in drawn[split]:
            assert len(set(record["texts"])) == scenes.CAPTIONS_PER_IMAGE
            if record["label"] >= 0:
                first_words = set(record["texts"][0].split()) - {"a", "an", "small", "large"}
                assert first_words == set(names[record["label"]].split()) - {"a", "an"}
    assert {r["label"] for r in drawn["relations"]} == {-1}
    assert min(r["label"] for r in drawn["validation"] + drawn["compositional"]) >= 0


@pytest.mark.parametrize("relation", scene_content.RELATIONS)
def test_first_object_is_where_the_caption_says(relation):
    red, blue = tuple(COLOURS).index("red"), tuple(COLOURS).index("blue")
    for seed in range(30):
        scene = Pair((red, SHAPES.index("circle")), (blue, SHAPES.index("square")), relation)
        pixels = np.asarray(draw(scene, np.random.default_rng(seed)), float)
        axis = 1 if relation == "left" else 0
        where = [
            np.argwhere(np.linalg.norm(pixels - COLOURS[name], axis=-1) < 45).mean(axis=0) for name in ("red", "blue")
        ]
        assert where[0][axis] < where[1][axis] - 8, seed
        assert abs(where[0][1 - axis] - where[1][1 - axis]) < where[1][axis] - where[0][axis], seed


@pytest.mark.parametrize("size", range(2))
def test_area_of_the_object_grows_with_the_size_word(size):
    green = tuple(COLOURS).index("green")
    scene = Single((green, SHAPES.index("circle")), 1, size)
    areas = [
        (
            np.linalg.norm(np.asarray(draw(scene, np.random.default_rng(s)), float) - COLOURS["green"], axis=-1) < 45
        ).sum()
        for s in range(30)
    ]
    # Discs of 0.92 x 5.5 to 7.5 and 9.5 to 13 pixels radius.
    low, high = ((80, 150), (240, 450))[size]
    assert low * 0.85 < np.median(areas) < high * 1.15


def test_second_run_leaves_the_folder_and_another_seed_is_refused(tmp_path):
    sizes = {"train": 6, "validation": 2, "compositional": 2, "relations": 2}
    manifest = scenes.build(tmp_path / "scenes", **sizes)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "scenes").iterdir()}
    assert scenes.build(tmp_path / "scenes", **sizes) == manifest
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "scenes").iterdir()} == before
    assert [manifest["splits"][split]["records"] for split in SPLITS] == [6, 2, 2, 2]
    with pytest.raises(ManifestError, match="--overwrite"):
        scenes.build(tmp_path / "scenes", **sizes, seed=1)
    scenes.build(tmp_path / "scenes", **sizes, seed=1, overwrite=True)


def test_command_prints_counts_and_licence(tmp_path, capsys):
    scenes.main(
        [f"--out={tmp_path / 's'}", "--train=3", "--validation=1", "--compositional=1", "--relations=1", "--seed=2"]
    )
    printed = capsys.readouterr().out
    assert "train" in printed and "300 class names" in printed and "CC0-1.0" in printed


@pytest.mark.parametrize("split", SPLITS)
def test_a_negative_number_of_scenes_is_refused(split, tmp_path, capsys):
    with pytest.raises(SystemExit):
        scenes.main([f"--out={tmp_path / 's'}", f"--{split}=-5"])
    assert f"error: --{split}=-5 is negative" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
