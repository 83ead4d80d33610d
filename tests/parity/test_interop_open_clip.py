"""open_clip's directories with its newer options: imported they compute the same, exported they are equal again."""

import json
import os

import jax
import numpy as np
import pytest

from clipjax.commands import export, import_weights
from clipjax.config import MeshConfig
from clipjax.interop.foreign import open_foreign
from clipjax.interop.names import Description, InteropError, flatten, their_shapes
from clipjax.mesh import make_mesh
from clipjax.models import DualEncoder
from tests.parity.torch_pairs import BATCH, CONTEXT, IMAGE, PATCH, VOCAB, as_torch, inputs, perturb, shapes_of
from tests.torch_reference import import_torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = import_torch()
open_clip = import_torch("open_clip")

WIDTH, EMBED = 32, 24
TANH = dict(act_kwargs=dict(approximate="tanh"))
SUB_NORMS = dict(scale_attn_inner=True, scale_fc=True, ls_init_value=0.3)
POOLER = dict(attentional_pool=True, attn_pooler_queries=5, attn_pooler_heads=2)


def config_of(vision=(), text=(), **others):
    shared = dict(width=WIDTH, layers=2)
    vision = dict(image_size=IMAGE, patch_size=PATCH, head_width=WIDTH // 2, **shared) | dict(vision)
    text = dict(vocab_size=VOCAB, context_length=CONTEXT, heads=2, **shared) | dict(text)
    return dict(embed_dim=EMBED, vision_cfg=vision, text_cfg=text, **others)


CLIPA = config_of(
    dict(pool_type="avg", final_ln_after_pool=True, no_ln_pre=True, patch_dropout=0.5, **TANH),
    dict(no_causal_mask=True, pool_type="last", pad_id=3, **TANH),
)
SUB = config_of(dict(pool_type="avg", **SUB_NORMS), dict(proj_bias=True, **SUB_NORMS))
POOLED = config_of(POOLER, dict(width=EMBED, proj_type="none"), quick_gelu=True)
COCA = config_of(
    dict(output_tokens=True, **POOLER),
    dict(width=EMBED, embed_cls=True, output_tokens=True, pad_id=0),
    multimodal_cfg=dict(layers=2, width=EMBED, heads=2, vocab_size=VOCAB, context_length=CONTEXT),
    custom_text=True,
)
MODELS = {
    "clipa": ("open_clip", CLIPA),
    "sub_norms": ("open_clip", SUB),
    "attentional": ("open_clip", POOLED),
    "coca": ("open_clip_coca", COCA),
}


def saved(config, path):
    """A random model of this configuration, and its directory as open_clip publishes one."""
    path.mkdir()
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{path}", load_weights=False)
    if hasattr(model, "text_decoder"):
        with torch.no_grad():  # open_clip leaves this one uninitialised
            model.text_decoder.text_projection.normal_(std=0.2)
    perturb(model)
    torch.save(model.state_dict(), path / "open_clip_pytorch_model.bin")
    return model


def assert_full_size_is_open_clips(family, name, model):
    """Every option, name and shape of open_clip's configuration `name`, which is returned, built without storage."""
    config = open_clip.get_model_config(name)
    shapes = their_shapes(family.tensors(model), model, flatten(shapes_of(model)))
    files = {"open_clip_config.json": {"model_cfg": config, "preprocess_cfg": {}}}
    read = family.read(Description(files, shapes)).model
    assert (read.image, read.text, read.embed_dim) == (model.image, model.text, model.embed_dim)
    with torch.device("meta"):
        clip = open_clip.model.CustomTextCLIP(**{k: v for k, v in config.items() if k != "custom_text"})
    assert {name: tuple(tensor.shape) for name, tensor in clip.state_dict().items()} == shapes
    return clip


def assert_reads_computes_and_writes(family, config, path):
    theirs = saved(config, path / "original")
    foreign = open_foreign(path / "original")
    assert foreign.name == family
    variables = foreign.variables(make_mesh(MeshConfig(), jax.devices()[:1]))
    image, text = inputs()
    out = jax.jit(DualEncoder(foreign.config.model).apply)(variables, image=image, text=text)
    with torch.no_grad():
        images, texts = as_torch(image, text)
        expected = theirs.encode_image(images, normalize=True), theirs.encode_text(texts, normalize=True)
    for found, wanted in zip((out.image_embedding, out.text_embedding), expected, strict=True):
        assert wanted.shape == (BATCH, config["embed_dim"])
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)

    import_weights.run(path / "original", path / "run", parity=False)
    export.run(path / "run", path / "out", format="open_clip")
    again = open_clip.create_model(f"local-dir:{path / 'out'}", load_weights=False)
    open_clip.load_checkpoint(again, str(path / "out" / "open_clip_model.safetensors"), strict=True)
    found = again.state_dict()
    assert found.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(found[name], tensor), name
    with torch.no_grad():  # what the written configuration says, and not only its shapes
        again = again.eval()
        assert torch.equal(again.encode_image(images, normalize=True), expected[0])
        assert torch.equal(again.encode_text(texts, normalize=True), expected[1])
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_options_of_open_clip_s_own_towers(name, tmp_path):
    assert_reads_computes_and_writes(*MODELS[name], tmp_path)


@pytest.mark.parametrize(
    ("tower", "option"),
    [
        ("vision_cfg", dict(qk_norm=True)),
        ("vision_cfg", dict(scaled_cosine_attn=True)),
        ("vision_cfg", dict(scale_attn=True)),
        ("vision_cfg", dict(pos_embed_type="sin_cos_2d")),
        ("vision_cfg", dict(attentional_pool="parallel")),
        ("vision_cfg", dict(block_type="default", scale_fc=True)),
        ("vision_cfg", dict(pool_type="none")),
        ("text_cfg", dict(scale_heads=True)),
        ("text_cfg", dict(pool_type="first")),
        ("text_cfg", dict(embed_cls=True)),
        ("text_cfg", dict(norm_kwargs=dict(elementwise_affine=False))),
    ],
)
def test_what_is_not_computed_is_refused_by_name(tower, option, tmp_path):
    """Before any tensor is compared: an option changes numbers whether or not it changes names."""
    config = config_of()
    saved(config, tmp_path / "original")
    config[tower] = config[tower] | option
    (tmp_path / "original" / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(InteropError, match=f"{tower}.{next(iter(option))}"):
        open_foreign(tmp_path / "original")
