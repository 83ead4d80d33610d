"""SigLIP 2's NaFlex towers equal transformers' Siglip2Model; presets have the published numbers of parameters."""

import io
import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from clipjax.config import LossConfig, PatchBudget, PixelConfig
from clipjax.data.images.naflex import eval_patches, patch_grid
from clipjax.losses import make_loss
from clipjax.models import DualEncoder, image_tower
from clipjax.models.pixels import Patches, image_of, normalize_pixels
from clipjax.models.presets import get_preset
from clipjax.models.presets.siglip import SIGLIP_PRESETS
from tests.parity.test_towers import arrays, hf_sizes, to_clipjax
from tests.torch_reference import import_torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = import_torch()
transformers = import_torch("transformers")
open_clip = import_torch("open_clip")

WIDTH, DEPTH, HEADS, MLP, PATCH, SIDE, COUNT, VOCAB, CONTEXT = 32, 2, 4, 48, 4, 4, 24, 99, 12
SHAPES = np.array([[4, 6], [2, 9], [1, 3], [6, 4], [1, 24], [4, 4]], np.int32)  # wide, tall, small, full, square


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    shared = dict(hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=DEPTH, num_attention_heads=HEADS)
    vision = dict(patch_size=PATCH, num_patches=SIDE * SIDE, **shared)
    text = dict(vocab_size=VOCAB, max_position_embeddings=CONTEXT, **shared)
    hf = transformers.Siglip2Model(transformers.Siglip2Config(text_config=text, vision_config=vision)).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    preset = get_preset("siglip2_naflex_b16")
    ours = dict(width=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_dim=MLP, scan_layers=False)
    image = replace(preset.image, image_size=SIDE * PATCH, patch_size=PATCH, max_patches=COUNT, **ours)
    words = replace(preset.text, vocab_size=VOCAB, context_length=CONTEXT, **ours)
    model = replace(preset, image=image, text=words, embed_dim=WIDTH)
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(len(SHAPES), COUNT, 3 * PATCH**2)).astype(np.float32)
    return hf, model, Patches(pixels, SHAPES), rng.integers(3, VOCAB, (len(SHAPES), CONTEXT), dtype=np.int32)


def ours_of(p):
    """Siglip2Model differs from SiglipModel in one matrix: patches are flattened before it."""
    weight = p["vision_model.embeddings.patch_embedding.weight"]
    conv = weight.reshape(WIDTH, PATCH, PATCH, 3).transpose(0, 3, 1, 2)
    return to_clipjax("siglip", {**p, "vision_model.embeddings.patch_embedding.weight": conv})


def theirs_of(hf, image, text, **options):
    mask = np.arange(COUNT) < np.prod(image.spatial_shape, axis=1, keepdims=True)
    return hf(
        input_ids=torch.tensor(text).long(),
        pixel_values=torch.tensor(image.pixels),
        pixel_attention_mask=torch.tensor(mask.astype(np.int32)),
        spatial_shapes=torch.tensor(image.spatial_shape).long(),
        **options,
    )


@pytest.mark.slow
def test_naflex_embeddings_and_logits_equal_transformers(pair):
    hf, model, image, text = pair
    out = DualEncoder(model).apply({"params": ours_of(arrays(hf))}, image=image, text=text)
    with torch.no_grad():
        theirs = theirs_of(hf, image, text)
    np.testing.assert_allclose(out.image_embedding, theirs.image_embeds.numpy(), atol=2e-6)
    np.testing.assert_allclose(out.text_embedding, theirs.text_embeds.numpy(), atol=2e-6)
    logits = out.logit_scale * out.image_embedding @ out.text_embedding.T + out.logit_bias
    np.testing.assert_allclose(logits, theirs.logits_per_image.numpy(), rtol=1e-5, atol=2e-5)


def test_naflex_gradients_equal_transformers(pair):
    hf, model, image, text = pair
    loss_fn = make_loss(LossConfig("sigmoid", "dense"), None)

    def loss(params):
        out = DualEncoder(model).apply({"params": params}, image=image, text=text)
        scale, bias = out.logit_scale, out.logit_bias
        return loss_fn(out.image_embedding, out.text_embedding, logit_scale=scale, logit_bias=bias)[0]

    value, grads = jax.jit(jax.value_and_grad(loss))(jax.tree.map(jnp.asarray, ours_of(arrays(hf))))
    hf.zero_grad()
    theirs = theirs_of(hf, image, text, return_loss=True)
    theirs.loss.backward()
    assert float(value) == pytest.approx(theirs.loss.item(), rel=1e-5)
    expected = ours_of({name: p.grad.numpy() for name, p in hf.named_parameters()})
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for (path, found), wanted in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected), strict=True
    ):
        error = np.abs(np.asarray(found) - wanted).max()
        assert error <= 1e-4 * np.abs(wanted).max() + 1e-6 * scale, jax.tree_util.keystr(path)


@pytest.mark.parametrize("size", [(640, 480), (333, 1000), (37, 50), (1200, 90), (256, 256)])
@pytest.mark.parametrize("max_patches", [64, 256])
def test_patches_equal_transformers_image_processor(size, max_patches):
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    image = coarse.resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "PNG")
    budget = PatchBudget(16, max_patches)
    found = eval_patches(file.getvalue(), budget, PixelConfig(interpolation="bilinear"))
    theirs = Siglip2ImageProcessorPil(max_num_patches=max_patches)(images=image, return_tensors="np")
    np.testing.assert_array_equal(found["spatial_shape"], theirs["spatial_shapes"][0])
    count = int(np.prod(found["spatial_shape"]))
    assert theirs["pixel_attention_mask"][0].sum() == count <= max_patches
    ours = normalize_pixels(found["image"], (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    # Values are in [-1, 1]: 1/255 of the pixel range is 2/255 there.
    np.testing.assert_allclose(ours[:count], theirs["pixel_values"][0][:count], atol=2 / 255)
    assert not found["image"][count:].any()


def test_grids_equal_transformers_for_many_sizes():
    from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

    rng = np.random.default_rng(1)
    for height, width in rng.integers(1, 3000, (200, 2)):
        rows, columns = patch_grid(int(height), int(width), PatchBudget(16, 576))
        assert (rows * 16, columns * 16) == get_image_size_for_max_num_patches(int(height), int(width), 16, 576)


def parameters(model):
    read = image_tower(model.image).columns(model.image, 1)
    columns = {name: jnp.ones(shape, dtype) for name, (shape, dtype) in read.items()}
    text = jnp.zeros((1, model.text.context_length), jnp.int32)
    image = normalize_pixels(image_of(columns), 3 * [0.5], 3 * [0.5])
    shapes = jax.eval_shape(lambda: DualEncoder(model).init(jax.random.key(0), image=image, text=text))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SIGLIP_PRESETS))
def test_presets_have_exactly_the_published_parameters(name):
    """Counted on transformers' models of the published sizes, built without storage."""
    model = get_preset(name)
    image, text = model.image, model.text
    naflex = image.name == "naflex"
    extra = dict(num_patches=256) if naflex else dict(image_size=image.image_size)
    vision = hf_sizes(image) | dict(patch_size=image.patch_size, **extra)
    words = hf_sizes(text) | dict(vocab_size=text.vocab_size, max_position_embeddings=text.context_length)
    words |= dict(projection_size=model.embed_dim)
    kind = "Siglip2" if naflex else "Siglip"
    config = getattr(transformers, f"{kind}Config")(text_config=words, vision_config=vision)
    with torch.device("meta"):
        hf = getattr(transformers, f"{kind}Model")(config)
    head = 0 if text.projection == "linear" else sum(p.numel() for p in hf.text_model.head.parameters())
    assert parameters(model) == sum(p.numel() for p in hf.parameters()) - head


# open_clip's name where it has a configuration; the sizes above are then its as well, not only consistent.
OPEN_CLIP = {
    "siglip_b16": "ViT-B-16-SigLIP",
    "siglip_b16_i18n_256": "ViT-B-16-SigLIP-i18n-256",
    "siglip_l16_384": "ViT-L-16-SigLIP-384",
    "siglip_so400m14_224": "ViT-SO400M-14-SigLIP",
    "siglip_so400m16_i18n_256": "ViT-SO400M-16-SigLIP-i18n-256",
    "siglip2_b32_256": "ViT-B-32-SigLIP2-256",
    "siglip2_l16_512": "ViT-L-16-SigLIP2-512",
    "siglip2_so400m14_224": "ViT-SO400M-14-SigLIP2",
    "siglip2_so400m16_512": "ViT-SO400M-16-SigLIP2-512",
    "siglip2_gopt16_384": "ViT-gopt-16-SigLIP2-384",
}


@pytest.mark.parametrize("name", list(OPEN_CLIP))
def test_presets_have_the_parameters_of_open_clips_configurations(name):
    with torch.device("meta"):
        theirs = open_clip.create_model(OPEN_CLIP[name], device="meta", load_weights=False)
    assert parameters(get_preset(name)) == sum(p.numel() for p in theirs.parameters())


def test_naflex_is_exported_for_transformers_and_read_again_bit_for_bit(pair, tmp_path):
    """transformers' directory -> our parameters -> transformers' directory, every tensor as it was."""
    import json

    from safetensors.numpy import save_file

    from clipjax.interop.convert import read_variables, their_arrays
    from clipjax.interop.families import recognise
    from clipjax.interop.source import open_weights

    hf, model, image, text = pair
    hf.save_pretrained(tmp_path / "theirs")
    source = open_weights(tmp_path / "theirs")
    name, family = recognise(source.description)
    meaning = family.read(source.description)
    wanted = replace(model, image=replace(model.image, max_patches=256))
    unrolled = {side: replace(getattr(meaning.model, side), scan_layers=False) for side in ("image", "text")}
    assert (name, replace(meaning.model, **unrolled)) == ("hf_siglip2", wanted)
    expected = ours_of(arrays(hf))
    shapes = {"params": jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32), expected)}
    variables = read_variables(family.tensors(model), model, source.tensors, shapes)
    jax.tree.map(np.testing.assert_array_equal, variables["params"], expected)

    out = tmp_path / "ours"
    out.mkdir()
    for file, content in family.write(meaning._replace(model=wanted)).items():
        (out / file).write_text(json.dumps(content))
    exported = {name: np.ascontiguousarray(a) for name, a in their_arrays(family.tensors(model), model, variables)}
    save_file(exported, out / "model.safetensors", metadata={"format": "pt"})
    again, info = transformers.Siglip2Model.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    for (name, a), b in zip(hf.named_parameters(), again.eval().parameters(), strict=True):
        assert torch.equal(a, b), name
    with torch.no_grad():
        assert torch.equal(theirs_of(hf, image, text).logits_per_image, theirs_of(again, image, text).logits_per_image)


@pytest.mark.slow
def test_load_and_the_parity_report_read_naflex_directories(pair, tmp_path):
    import clipjax
    from clipjax.config import MeshConfig
    from clipjax.interop.foreign import open_foreign
    from clipjax.interop.parity import parity_report
    from clipjax.mesh import make_mesh

    hf, _, _, text = pair
    hf.save_pretrained(tmp_path)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    foreign = open_foreign(str(tmp_path), "", "")
    found, _ = parity_report(foreign, foreign.variables(mesh))
    assert found["compared"] and found["outputs"]["image_embedding"]["max_abs_error"] < 2e-6

    loaded = clipjax.load(tmp_path, mesh=mesh, batch_size=2)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((40, 90), (70, 30), (9, 9))]
    processor = transformers.models.siglip2.image_processing_pil_siglip2.Siglip2ImageProcessorPil(
        patch_size=PATCH, max_num_patches=256
    )
    with torch.no_grad():
        pooled = hf.vision_model(**processor(images=images, return_tensors="pt")).pooler_output
    expected = torch.nn.functional.normalize(pooled, dim=-1).numpy()
    # Pixels are rounded to eight bits by Pillow in both.
    np.testing.assert_allclose(loaded.embed_images(images), expected, atol=1e-5)
    assert loaded.embed_texts(text).shape == (len(text), WIDTH)
