"""How a model's images are prepared is read as its library reads it, written so, or refused by the field's name."""

import json
from dataclasses import replace

import numpy as np
import pytest

from clipjax.config import PixelConfig
from clipjax.data.images.presets import PIXEL_PRESETS
from clipjax.interop import FAMILIES, Description, InteropError, Meaning, choose_family, foreign, open_foreign
from clipjax.interop.export import HABITS, lost_pixels, pixel_notes
from clipjax.interop.hf_pixels import CLASSES, LEGACY, NESTED
from clipjax.interop.names import flatten, their_shapes
from clipjax.interop.open_clip_config import CONFIG
from clipjax.models.presets import get_preset
from tests.interop.test_commands import publish
from tests.interop.test_names import shapes_of, tiny

SIDE = 32
SQUARE = {"height": SIDE, "width": SIDE}
CLIP = dict(image_processor_type="CLIPImageProcessor", size={"shortest_edge": SIDE}, crop_size=SQUARE)
SIGLIP = dict(image_processor_type="SiglipImageProcessor", size=SQUARE)
NAFLEX = dict(image_processor_type="Siglip2ImageProcessor", patch_size=16, max_num_patches=64)


def read(processor, model_type="clip", files=None, **vision):
    vision = dict(image_size=SIDE, patch_size=16) | vision
    config = {"model_type": model_type, "vision_config": vision, "text_config": {}}
    files = {"config.json": config} | ({NESTED: {"image_processor": processor}} if files is None else files)
    return FAMILIES[f"hf_{model_type}"].read(Description(files, {}))


def pixels(processor, model_type="clip", **options):
    return read(processor, model_type, **options).pixels


def refused(processor, model_type="clip", **options):
    with pytest.raises(InteropError) as error:
        read(processor, model_type, **options)
    return str(error.value)


def test_the_processor_that_transformers_5_writes_is_followed():
    """Under "image_processor" of processor_config.json, the only file that it writes."""
    own = dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.9, 0.8, 0.7], resample=2)
    expected = PixelConfig(
        resize="center_crop", scale_to=48, center="floor", interpolation="bilinear",
        mean=(0.1, 0.2, 0.3), std=(0.9, 0.8, 0.7),
    )  # fmt: skip
    assert pixels(CLIP | own | dict(size={"shortest_edge": 48})) == expected


def test_the_nested_processor_wins_over_the_older_file_as_in_transformers():
    other = CLIP | dict(resample=2)
    nested, legacy = {"image_processor": CLIP, "processor_class": "CLIPProcessor"}, other
    assert pixels(None, files={NESTED: nested, LEGACY: legacy}) == PIXEL_PRESETS["clip_hf"]
    assert (
        pixels(None, files={NESTED: {"processor_class": "CLIPProcessor"}, LEGACY: legacy}).interpolation == "bilinear"
    )


def test_old_feature_extractors_are_read_with_sizes_that_are_numbers():
    old = dict(feature_extractor_type="CLIPFeatureExtractor", size=SIDE, crop_size=SIDE, resample=3, do_resize=True)
    assert pixels(None, files={LEGACY: old}) == PIXEL_PRESETS["clip_hf"]


def test_missing_and_null_fields_have_the_defaults_of_the_processor_s_class():
    assert pixels(SIGLIP | dict(image_mean=None, resample=None, do_convert_rgb=None), "siglip") == PixelConfig()
    assert pixels(dict(size=SQUARE, do_center_crop=False), "clip").mean == PIXEL_PRESETS["openai"].mean
    assert "size={'shortest_edge': 224}" not in refused(dict(crop_size=16))
    assert "crop_size=224" in refused(dict(size={"shortest_edge": SIDE}))
    for kind in ("CLIPImageProcessorFast", "CLIPImageProcessorPil"):
        assert pixels(CLIP | dict(image_processor_type=kind)) == PIXEL_PRESETS["clip_hf"]


SIZES = [
    (CLIP, dict(), dict(resize="center_crop", center="floor")),
    (CLIP, dict(size=40), dict(resize="center_crop", center="floor", scale_to=40)),
    (CLIP, dict(size=40, default_to_square=True), dict(resize="squash", center="floor", scale_to=40)),
    (CLIP, dict(size={"height": 40, "width": 40}), dict(resize="squash", center="floor", scale_to=40)),
    (CLIP, dict(size=[40, 40], crop_size=[SIDE, SIDE]), dict(resize="squash", center="floor", scale_to=40)),
    (CLIP, dict(size=SQUARE, do_center_crop=False), dict(resize="squash")),
    (CLIP, dict(size={"shortest_edge": 40, "longest_edge": None}), dict(resize="center_crop", scale_to=40)),
    (SIGLIP, dict(), dict(resize="squash")),
    (SIGLIP, dict(crop_size=SQUARE, size=[40, 40], do_center_crop=True), dict(center="floor", scale_to=40)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "expected"), SIZES)
def test_sizes_are_followed(kind, changes, expected):
    found = pixels(kind | changes)
    assert {name: getattr(found, name) for name in expected} == expected
    assert found.scale_to == expected.get("scale_to", 0)


REFUSED = [
    (CLIP, dict(do_resize=False), "do_resize=False is not supported; expected True"),
    (CLIP, dict(do_pad=True), "do_pad=True"),
    (CLIP, dict(do_center_crop=False), "do_center_crop=False with size="),
    (CLIP, dict(do_normalize="no"), "do_normalize='no' is not supported; expected true or false"),
    (CLIP, dict(use_square_size=True), "use_square_size=True"),
    (CLIP, dict(crop_size=48), "crop_size=48 is not supported; the model's image_size is 32"),
    (CLIP, dict(crop_size={"height": 32, "width": 48}), "crop_size={'height': 32, 'width': 48}"),
    (CLIP, dict(size={"shortest_edge": 24}), "size={'shortest_edge': 24} is smaller than crop_size="),
    (CLIP, dict(size={"height": 48, "width": 40}), "size={'height': 48, 'width': 40}"),
    (CLIP, dict(size={"shortest_edge": 40, "longest_edge": 60}), "size={'shortest_edge': 40, 'longest_edge': 60}"),
    (CLIP, dict(size={"max_height": 40, "max_width": 40}), "size={'max_height': 40"),
    (CLIP, dict(size="32"), "size='32'"),
    (CLIP, dict(size={"shortest_edge": 40.5}), "size.shortest_edge=40.5"),
    (CLIP, dict(resample=1), "resample=1 is not supported. Known: 2 (bilinear), 3 (bicubic)"),
    (CLIP, dict(resample="bicubic"), "resample='bicubic'"),
    (CLIP, dict(rescale_factor=0), "rescale_factor=0"),
    (CLIP, dict(rescale_factor="1/255"), "rescale_factor='1/255'"),
    (CLIP, dict(image_std=[0.5, 0, 0.5]), "image_std=[0.5, 0, 0.5]"),
    (CLIP, dict(image_mean=[0.5, 0.5]), "image_mean=[0.5, 0.5]"),
    (CLIP, dict(image_mean=[0.5, float("nan"), 0.5]), "image_mean=[0.5, nan, 0.5]"),
    (CLIP, dict(do_flip=True), "unknown field do_flip=True"),
    (CLIP, dict(do_centre_crop=False), "Did you mean 'do_center_crop'?"),
    (CLIP, dict(rescale_offset=True), "unknown field rescale_offset=True"),
    (CLIP, dict(image_processor_type="FlavaImageProcessor"), "image_processor_type='FlavaImageProcessor'"),
    (NAFLEX, dict(), "image_processor_type='Siglip2ImageProcessor' makes patches"),
    (SIGLIP, dict(size=48), "do_center_crop=False with size=48"),
    (SIGLIP, dict(size=[48, 48]), "size=[48, 48] is not supported; the model's image_size is 32"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "message"), REFUSED)
@pytest.mark.parametrize("model_type", ["clip", "siglip"])
def test_what_is_not_followed_is_refused_by_file_and_field(kind, changes, message, model_type):
    assert message in (found := refused(kind | changes, model_type))
    assert found.startswith("processor_config.json: image_processor")
    assert message in (found := refused(None, model_type, files={LEGACY: kind | changes}))
    assert found.startswith("preprocessor_config.json")


def test_a_processor_of_patches_is_followed_or_refused():
    vision = dict(num_patches=16, image_size=None)
    found = read(NAFLEX | dict(image_std=[0.2, 0.3, 0.4]), "siglip2", **vision)
    assert (found.model.image.max_patches, found.pixels.interpolation) == (64, "bilinear")
    assert found.pixels.std == (0.2, 0.3, 0.4)
    assert "patch_size=14 is not supported; the model's patch_size is 16" in refused(
        NAFLEX | dict(patch_size=14), "siglip2", **vision
    )
    assert "max_num_patches=0" in refused(NAFLEX | dict(max_num_patches=0), "siglip2", **vision)
    assert "makes squares; this model reads patches" in refused(SIGLIP, "siglip2", **vision)


def test_rescaling_and_normalising_are_one_mean_and_deviation():
    """level * rescale_factor - rescale_offset, then by image_mean and image_std, then by image_std again."""
    own = dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.9, 0.8, 0.7])
    kinds = [
        dict(),
        dict(do_normalize=False),
        dict(rescale_factor=1 / 127.5),
        dict(do_rescale=False, image_mean=[100, 120, 130], image_std=[60, 70, 80]),
        dict(do_rescale=False, do_normalize=False),
        dict(rescale_factor=0.01, do_normalize=False),
        dict(rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=False, include_top=False),
        dict(rescale_factor=1 / 127.5, rescale_offset=True, include_top=True),
        dict(do_rescale=False, rescale_offset=True, do_normalize=False, include_top=True),
        dict(image_mean=0.4, image_std=0.3),
    ]
    levels = np.arange(256.0)[:, None]
    for changes in kinds:
        kind = "EfficientNetImageProcessor" if "include_top" in changes else "SiglipImageProcessor"
        c = CLASSES[kind] | own | changes
        wanted = levels * c["rescale_factor"] - c.get("rescale_offset", False) if c["do_rescale"] else levels
        wanted = (wanted - np.array(c["image_mean"])) / np.array(c["image_std"]) if c["do_normalize"] else wanted
        wanted = wanted / np.array(c["image_std"]) if c.get("include_top") else wanted
        found = pixels(own | changes | dict(image_processor_type=kind, size=SQUARE, do_center_crop=False))
        scaled = (levels / 255 - np.array(found.mean)) / np.array(found.std)
        np.testing.assert_allclose(scaled, np.broadcast_to(wanted, scaled.shape), rtol=1e-12, atol=1e-12)
    assert pixels(SIGLIP | own | dict(rescale_factor=0.003921569), "siglip").mean == (0.1, 0.2, 0.3)


def test_sizes_of_two_equal_numbers_are_read_and_others_refused_by_name():
    image = read(CLIP, image_size=[SIDE, SIDE], patch_size=[16, 16]).model.image
    assert (image.image_size, image.patch_size) == (SIDE, 16)
    for field, value in dict(image_size=[32, 48], patch_size=[16, 8]).items():
        for model_type in ("clip", "siglip"):
            assert f"config.json: vision_config.{field}={value}" in refused(CLIP, model_type, **{field: value})
    assert "vision_config.patch_size='16'" in refused(CLIP, patch_size="16")


def open_clip(vision=(), text=(), model=(), preprocess=(), top=()):
    sections = dict(
        vision_cfg=dict(image_size=SIDE, patch_size=16, width=64, layers=2) | dict(vision),
        text_cfg=dict(width=64, heads=1, layers=2) | dict(text),
    )
    config = dict(embed_dim=16, **sections) | dict(model)
    return Description({CONFIG: dict(model_cfg=config, preprocess_cfg=dict(preprocess)) | dict(top)}, {})


def test_open_clip_sizes_of_two_equal_numbers_are_read_and_others_refused_by_name():
    family = FAMILIES["open_clip"]
    image = family.read(open_clip(dict(image_size=[SIDE, SIDE], patch_size=[16, 16]))).model.image
    assert (image.image_size, image.patch_size) == (SIDE, 16)
    for field, value in dict(image_size=[32, 48], patch_size=[16, 8]).items():
        with pytest.raises(InteropError, match=rf"vision_cfg.{field}=\[{value[0]}, {value[1]}\]"):
            family.read(open_clip({field: value}))
    with pytest.raises(InteropError, match=r"preprocess_cfg.size=\[32, 48\]"):
        family.read(open_clip(preprocess=dict(size=[32, 48])))
    resnet = dict(layers=[1, 1, 1, 1], image_size=[32, 48])
    with pytest.raises(InteropError, match=r"vision_cfg.image_size=\[32, 48\]"):
        FAMILIES["open_clip_resnet"].read(open_clip(resnet))


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("vision", dict(no_ln_post=True), "vision_cfg has an unknown field no_ln_post=True"),
        ("vision", dict(patch_dropuot=0.5), "Did you mean 'patch_dropout'?"),
        ("vision", dict(global_average_pool=True), "vision_cfg.global_average_pool=True"),
        ("text", dict(pool="last"), "text_cfg has an unknown field pool='last'"),
        ("text", dict(act_kwargs=dict(approximate="sigmoid")), "text_cfg.act_kwargs={'approximate': 'sigmoid'}"),
        ("model", dict(logit_scale=3.0), "model_cfg has an unknown field logit_scale=3.0"),
        ("preprocess", dict(means=[0, 0, 0]), "preprocess_cfg has an unknown field means=[0, 0, 0]"),
        ("preprocess", dict(resize_mode="crop"), "preprocess_cfg.resize_mode='crop'"),
        ("preprocess", dict(interpolation="lanczos"), "preprocess_cfg.interpolation='lanczos'"),
        ("preprocess", dict(mode="L"), "preprocess_cfg.mode='L'"),
        ("preprocess", dict(fill_color=[0, 1, 2]), "preprocess_cfg.fill_color=[0, 1, 2]"),
        ("preprocess", dict(std=[0.5, 0.5, 0]), "preprocess_cfg.std=[0.5, 0.5, 0]"),
        ("top", dict(preproces_cfg={}), "open_clip_config.json has an unknown field preproces_cfg={}"),
    ],
)
def test_fields_of_open_clip_that_are_unknown_or_not_followed_are_refused_by_name(section, changes, message):
    with pytest.raises(InteropError) as error:
        FAMILIES["open_clip"].read(open_clip(**{section: changes}))
    assert message in str(error.value)


def test_open_clip_s_preprocess_cfg_is_followed_with_open_clip_s_defaults():
    preprocess = dict(size=24, mean=0.25, std=[0.5, 0.25, 1.0], resize_mode="longest", fill_color=7, interpolation=None)
    found = FAMILIES["open_clip"].read(open_clip(preprocess=preprocess)).pixels
    assert (found.resize, found.fill, found.interpolation) == ("pad", 7, "bicubic")
    assert (found.mean, found.std) == ((0.25,) * 3, (0.5, 0.25, 1.0))
    random = FAMILIES["open_clip"].read(open_clip(preprocess=dict(interpolation="random", resize_mode="squash"))).pixels
    assert random == replace(PIXEL_PRESETS["openai"], resize="squash")


PRESETS = {
    "hf_clip": ("hf", "clip_vit_b32"),
    "hf_siglip": ("hf", "siglip_b16"),
    "hf_siglip2": ("hf", "siglip2_naflex_b16"),
    "open_clip": ("open_clip", "clip_vit_b32"),
    "big_vision": ("big_vision", "siglip_b16"),
}


def exported(family, pixels, **options):
    """(lost pixel options, what the exported files say) of a model of this family."""
    format, preset = PRESETS[family]
    model = tiny(preset)
    meaning, parameters = Meaning(model, pixels), flatten(shapes_of(model))
    name, row, shapes = choose_family(meaning, format, parameters, **options)
    assert name == family
    files = json.loads(json.dumps(row.write(meaning)))
    again = row.read(Description(files, their_shapes(row.tensors(model), model, parameters)))
    return lost_pixels(meaning, again.pixels), pixel_notes(meaning, row, shapes)


OWN = dict(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
SAID = [
    ("hf_clip", PixelConfig(**OWN)),
    ("hf_clip", PixelConfig(resize="center_crop", center="floor", scale_to=64, interpolation="bilinear")),
    ("hf_clip", PixelConfig(center="floor", scale_to=64)),
    ("hf_clip", PixelConfig(fill=9)),  # nothing is filled
    ("hf_siglip", PixelConfig(resize="center_crop", center="floor", **OWN)),
    ("hf_siglip2", PixelConfig(resize="pad", fill=3, scale_to=999, interpolation="bilinear", **OWN)),
    ("open_clip", PixelConfig(resize="pad", fill=99, alpha="drop", interpolation="bilinear", **OWN)),
    ("open_clip", PixelConfig(resize="center_crop", alpha="drop", **OWN)),
    ("big_vision", PIXEL_PRESETS["big_vision"]),
]


@pytest.mark.parametrize(("family", "pixels"), SAID)
def test_an_export_says_how_images_are_prepared(family, pixels):
    assert exported(family, pixels) == ({}, [])


def test_align_s_processor_says_every_mean_and_crop():
    model, family = get_preset("align_base"), FAMILIES["hf_align"]
    for pixels in (PIXEL_PRESETS["align"], PixelConfig(scale_to=300, center="floor", **OWN), PixelConfig()):
        assert family.read(Description(family.write(Meaning(model, pixels)), {})) == Meaning(model, pixels)


UNSAID = [
    ("hf_clip", dict(resize="pad")),
    ("hf_clip", dict(antialias=False, interpolation="bilinear")),
    ("hf_siglip2", dict(antialias=False, interpolation="bilinear")),
    ("open_clip", dict(scale_to=64)),
    ("open_clip", dict(antialias=False, interpolation="bilinear")),
    ("big_vision", dict(mean=(0.1, 0.2, 0.3))),
    ("big_vision", dict(interpolation="bicubic")),
    ("big_vision", dict(resize="center_crop")),
]


@pytest.mark.parametrize(("family", "changes"), UNSAID)
def test_what_a_format_cannot_say_of_pixels_is_refused_by_field(family, changes):
    pixels = replace(FAMILIES[family].pixels, **changes)
    field = next(iter(changes))
    with pytest.raises(InteropError, match=rf"{family}: cannot express .*config.data.pixels.{field}="):
        exported(family, pixels)
    lost, notes = exported(family, pixels, nearest_pixels=True)
    assert field in lost and any(f"config.data.pixels.{field}=" in note for note in notes)


def test_a_library_s_own_habits_are_named_by_the_export():
    lost, notes = exported("open_clip", PIXEL_PRESETS["clip_hf"])
    assert lost.keys() == HABITS.keys() == {"alpha", "center"}
    assert "alpha='white' (read back as 'drop')" in notes[0] and "one pixel" in notes[1]
    assert exported("hf_clip", PixelConfig(center="floor"))[0] == {}, "nothing is cut"


@pytest.mark.parametrize(("format", "preset"), [("openai", "clip_vit_b32"), ("eva_clip", "eva02_clip_b16")])
def test_code_without_a_configuration_prepares_images_its_own_way(format, preset):
    row = next(row for row in FAMILIES.values() if row.format == format)
    model = get_preset(preset)
    parameters = flatten(shapes_of(model))
    for pixels in (row.pixels, PIXEL_PRESETS["clip_hf"]):  # the second differs in habits alone
        choose_family(Meaning(model, pixels), format, parameters)
    with pytest.raises(
        InteropError, match=r"config.data.pixels.mean=.* config.data.pixels.resize='squash' \(read back"
    ):
        choose_family(Meaning(model, PixelConfig()), format, parameters)


def test_a_preset_does_not_hide_how_the_files_say_that_images_are_prepared(tmp_path, monkeypatch):
    folder = publish(tmp_path / "siglip")
    model = open_foreign(folder).config.model
    size = {"height": model.image.image_size, "width": model.image.image_size}
    (folder / "config.json").unlink()
    (folder / LEGACY).write_text(json.dumps(SIGLIP | dict(size=size, image_mean=0.25)))
    monkeypatch.setattr(foreign, "get_preset", lambda name: model)
    found = open_foreign(folder, "hf_siglip", "siglip_b16").config
    assert found.model == model and found.data.pixels == PixelConfig(mean=(0.25,) * 3)
    (folder / LEGACY).unlink()
    assert open_foreign(folder, "hf_siglip", "siglip_b16").config.data.pixels == PixelConfig()
