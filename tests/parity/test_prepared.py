"""Processors and transforms as their libraries save, read and run them; imports compared with them end to end."""

import json
import os
import shutil
from dataclasses import fields, replace

import jax
import numpy as np
import pytest
from PIL import Image

from clipjax.commands import export, import_weights
from clipjax.config import MeshConfig, PixelConfig
from clipjax.data.images.transforms import eval_image
from clipjax.data.tokenizers.clip_bpe import byte_letters
from clipjax.interop import Description, InteropError, hf_pixels, open_clip_config, open_foreign, parity_report
from clipjax.interop.hf_pixels import read_processor, read_square, write_square
from clipjax.interop.json_fields import refuse_unknown
from clipjax.interop.parity import CAPTIONS, odd_picture
from clipjax.mesh import make_mesh
from clipjax.models.pixels import normalize_pixels
from tests.data.samples import encoded
from tests.torch_reference import import_torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = import_torch()
transformers = import_torch("transformers")
open_clip = import_torch("open_clip")

SIDE = 32


def processor_of(kind, **options):
    """transformers' processor that computes with Pillow, as clipjax does, and the one that it takes by default."""
    module = dict(CLIP="clip", Siglip="siglip", ViT="vit", EfficientNet="efficientnet")[kind]
    name = f"transformers.models.{module}.image_processing_pil_{module}"
    return getattr(import_torch(name), f"{kind}ImageProcessorPil")(**options)


OWN = dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.9, 0.8, 0.7])
KINDS = [
    ("CLIP", dict(size={"shortest_edge": 48}, crop_size=SIDE, resample=2, **OWN)),
    ("CLIP", dict(size={"shortest_edge": SIDE}, crop_size=SIDE, do_normalize=False)),
    ("CLIP", dict(size={"height": 45, "width": 45}, crop_size=SIDE, rescale_factor=1 / 127.5)),
    ("CLIP", dict(size={"height": SIDE, "width": SIDE}, do_center_crop=False, do_rescale=False)),
    ("Siglip", dict(size={"height": SIDE, "width": SIDE}, resample=2)),
    ("Siglip", dict(size={"height": 41, "width": 41}, do_center_crop=True, crop_size=SIDE, **OWN)),
    ("ViT", dict(size=SIDE)),
    ("EfficientNet", dict(size=46, do_center_crop=True, crop_size=SIDE, resample=2)),
    (
        "EfficientNet",
        dict(size=[SIDE, SIDE], rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=False, include_top=False),
    ),
    ("EfficientNet", dict(size=[SIDE, SIDE], rescale_offset=True, **OWN)),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_saved_processor_s_pixels_are_followed(kind, options, tmp_path):
    processor = processor_of(kind, **options)
    processor.save_pretrained(tmp_path)
    files = {file.name: json.loads(file.read_text()) for file in tmp_path.iterdir()}
    pixels = read_square(read_processor(Description(files, {}), ""), SIDE)
    for picture in (odd_picture(), Image.fromarray(np.asarray(odd_picture()).transpose(1, 0, 2))):
        wanted = processor(picture, return_tensors="np").pixel_values[0].transpose(1, 2, 0)
        found = normalize_pixels(eval_image(encoded(picture), SIDE, pixels)[None], pixels.mean, pixels.std)[0]
        assert (np.abs(found - wanted) * np.array(pixels.std) * 255).max() < 0.01


@pytest.mark.parametrize(
    "pixels",
    [
        PixelConfig(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
        PixelConfig(resize="center_crop", center="floor", scale_to=47, interpolation="bilinear"),
        PixelConfig(center="floor", scale_to=47),
    ],
)
@pytest.mark.parametrize("kind", ["CLIP", "Siglip", "EfficientNet"])
def test_a_written_processor_is_transformers_to_the_same_pixels(kind, pixels):
    extra = dict(rescale_offset=False, include_top=False) if kind == "EfficientNet" else {}
    written = json.loads(json.dumps(write_square(f"{kind}ImageProcessor", pixels, SIDE) | extra))
    wanted = processor_of(kind, **written)(odd_picture(), return_tensors="np").pixel_values[0].transpose(1, 2, 0)
    found = normalize_pixels(eval_image(encoded(odd_picture()), SIDE, pixels)[None], pixels.mean, pixels.std)[0]
    assert (np.abs(found - wanted) * np.array(pixels.std) * 255).max() < 0.01


def test_every_field_of_transformers_processors_is_known():
    """What the installed version can save, and no field more than it has."""
    for kind, known in hf_pixels.CLASSES.items():
        names = getattr(transformers, kind).valid_kwargs.__annotations__.keys()
        saved = getattr(transformers, kind)().to_dict()
        refuse_unknown(saved, known.keys() | hf_pixels.HARMLESS, kind)
        assert names <= known.keys() | hf_pixels.HARMLESS
        assert known.keys() - names <= {"use_square_size"}
        assert getattr(transformers, kind).default_to_square == known["default_to_square"] or kind == hf_pixels.PATCHES
        for name, value in saved.items():
            if name in known and name not in ("size", "crop_size"):
                assert np.all(np.equal(value, known[name])), (kind, name)


def test_every_field_of_open_clip_s_configurations_is_known():
    from open_clip.coca_model import MultimodalCfg
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg
    from open_clip.transform import PreprocessCfg

    names = lambda config: {field.name for field in fields(config)}  # noqa: E731
    assert open_clip_config.VISION == names(CLIPVisionCfg)
    assert open_clip_config.TEXT == names(CLIPTextCfg)
    assert open_clip_config.MULTIMODAL == names(MultimodalCfg)
    assert open_clip_config.PREPROCESS == names(PreprocessCfg)
    models = open_clip.list_models()
    assert len(models) > 100
    for name in models:
        config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}}
        open_clip_config.model_cfg(Description({open_clip_config.CONFIG: config}, {}))


PREPROCESS = [
    dict(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], interpolation="bilinear", resize_mode="squash"),
    dict(resize_mode="longest", fill_color=200, mean=0.3, size=48),
    dict(resize_mode=None, interpolation="random", std=None),
]


@pytest.mark.parametrize("preprocess", PREPROCESS)
def test_open_clip_s_preprocess_cfg_is_followed(preprocess):
    """open_clip takes the image tower's size, whatever preprocess_cfg says, and its own default for null."""
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    config = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), preprocess | dict(size=SIDE)))
    wanted = image_transform_v2(config, is_train=False)(odd_picture()).permute(1, 2, 0).numpy()
    description = Description({open_clip_config.CONFIG: dict(preprocess_cfg=preprocess)}, {})
    pixels = open_clip_config.read_pixels(description, SIDE)
    found = normalize_pixels(eval_image(encoded(odd_picture()), SIDE, pixels)[None], pixels.mean, pixels.std)[0]
    assert (np.abs(found - wanted) * np.array(pixels.std) * 255).max() < 0.01


def vocabulary():
    """CLIP's vocabulary of bytes, without merges."""
    letters = byte_letters()
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return {name: i for i, name in enumerate(names)}


def clip_folder(folder, tokenizer=True, **processor):
    """A random CLIPModel with a processor and a tokenizer, as transformers 5 saves them."""
    vocab = vocabulary()
    shared = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    text = dict(vocab_size=len(vocab), max_position_embeddings=77, eos_token_id=vocab["<|endoftext|>"], **shared)
    config = transformers.CLIPConfig(
        text_config=text, vision_config=dict(image_size=SIDE, patch_size=8, **shared), projection_dim=16
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config)
    with torch.no_grad():  # far from the constant embeddings of a small random model
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    images = transformers.CLIPImageProcessor(**processor) if processor else None
    if images and tokenizer:
        texts = transformers.CLIPTokenizer(vocab=vocab, merges=[])
        transformers.CLIPProcessor(image_processor=images, tokenizer=texts).save_pretrained(folder)
    elif images:
        images.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    own = dict(size={"shortest_edge": 48}, crop_size=SIDE, resample=2, **OWN)
    return clip_folder(tmp_path_factory.mktemp("clip"), **own)


def report(run):
    return json.loads((run / "parity.json").read_text())


def test_an_import_is_compared_end_to_end_through_the_original_s_processor_and_tokenizer(clip, tmp_path, capsys):
    assert {"processor_config.json", "tokenizer.json"} <= {file.name for file in clip.iterdir()}
    assert not (clip / "preprocessor_config.json").exists()
    import_weights.run(clip, tmp_path / "run")
    found = report(tmp_path / "run")
    assert found["compared"] and found["agrees"] and not found["differences"]
    picture, captions = found["end_to_end"]["picture"], found["end_to_end"]["captions"]
    assert picture["max_levels"] < 2 and picture["mean_levels"] < 0.05 and picture["cosine_error"] < 1e-4
    plain, odd = (captions[caption] for caption in CAPTIONS)
    assert plain["tokens_equal"] and odd["tokens_equal"] and plain["cosine_error"] < 1e-6
    printed = capsys.readouterr().out
    assert "End to end: a picture of 97 x 61 pixels differs by" in printed and "becomes the same tokens" in printed
    assert "WARNING" not in printed


def altered(monkeypatch, **changes):
    """Imports read these pixel options, and not those of the files: an error of clipjax's own."""
    read = hf_pixels.pixels_of
    monkeypatch.setattr(hf_pixels, "pixels_of", lambda *args: replace(read(*args), **changes))


def test_pixels_that_are_not_the_original_s_end_the_import_loudly(clip, tmp_path, monkeypatch):
    altered(monkeypatch, scale_to=0)
    with pytest.raises(InteropError, match="a picture of 97 x 61 pixels, mean_levels: .*, tolerance 0.1") as error:
        import_weights.run(clip, tmp_path / "run")
    assert "Nothing was imported. --noparity" in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_tokens_that_are_not_the_original_s_end_the_import_loudly(clip, tmp_path):
    tokenizer = json.loads((clip / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a</w>"], vocab["b</w>"] = vocab["b</w>"], vocab["a</w>"]
    shutil.copytree(clip, tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text(json.dumps(tokenizer))
    foreign = open_foreign(str(clip))
    wrong = replace(foreign.config.tokenizer, path=str(tmp_path / "broken" / "tokenizer.json"))
    foreign = foreign._replace(config=replace(foreign.config, tokenizer=wrong))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    found, line = parity_report(foreign, foreign.variables(mesh))
    assert not found["agrees"] and len(found["differences"]) == 1
    assert "'a photo of two cats and a red dog' becomes [" in found["differences"][0]
    assert "WARNING: 'A photo of two Cats" in line


def test_the_report_says_where_the_original_has_no_processor_and_no_tokenizer(tmp_path, capsys):
    import_weights.run(clip_folder(tmp_path / "clip"), tmp_path / "run")
    parts = report(tmp_path / "run")["end_to_end"]
    assert "has neither processor_config.json nor preprocessor_config.json" in parts["picture"]["why"]
    assert parts["captions"] == {"compared": False, "why": "no tokenizer came with the weights"}
    assert "no picture compared" in (printed := capsys.readouterr().out) and "no caption compared" in printed


@pytest.mark.slow
def test_an_exported_open_clip_directory_agrees_end_to_end(clip, tmp_path, capsys):
    """Its transform is open_clip's own; the export names what open_clip does in its own way."""
    import_weights.run(clip, tmp_path / "run", parity=False)
    with pytest.raises(InteropError, match="open_clip: cannot express config.data.pixels.scale_to=48"):
        export.run(tmp_path / "run", tmp_path / "out", format="open_clip", tokenizer=False)
    export.run(tmp_path / "run", tmp_path / "out", format="open_clip", nearest_pixels=True, tokenizer=False)
    assert "does not keep config.data.pixels.scale_to=48 (read back as 32)" in capsys.readouterr().out
    import_weights.run(tmp_path / "out", tmp_path / "again")
    found = report(tmp_path / "again")
    assert found["agrees"] and found["end_to_end"]["picture"]["max_levels"] < 0.01


@pytest.mark.slow
def test_a_naflex_directory_agrees_end_to_end(tmp_path):
    """Patches of the picture's own shape, with the processor's own patch size and number of patches."""
    shared = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    text = dict(vocab_size=99, max_position_embeddings=8, projection_size=16, **shared)
    config = transformers.Siglip2Config(text_config=text, vision_config=dict(num_patches=16, patch_size=8, **shared))
    torch.manual_seed(0)
    model = transformers.Siglip2Model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=24, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path)
    foreign = open_foreign(tmp_path)
    assert foreign.config.model.image.max_patches == 24 and foreign.config.data.pixels.mean == (0.1, 0.2, 0.3)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    found, _ = parity_report(foreign, foreign.variables(mesh))
    picture = found["end_to_end"]["picture"]
    assert found["agrees"] and picture["compared"] and picture["max_levels"] < 3 and picture["cosine_error"] < 1e-4
