"""Random originals, saved as their libraries save them: read here they compute the same, and written they are equal."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.commands import export, import_weights
from clipjax.config import LossConfig, MeshConfig
from clipjax.interop import open_clip_siglip
from clipjax.interop.convert import read_variables
from clipjax.interop.foreign import open_foreign
from clipjax.interop.names import InteropError, stored
from clipjax.losses import make_loss
from clipjax.mesh import make_mesh
from clipjax.models import DualEncoder
from tests.torch_reference import import_torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = import_torch()
transformers = import_torch("transformers")
open_clip = import_torch("open_clip")

WIDTH, DEPTH, HEADS, MLP, IMAGE, PATCH, VOCAB, CONTEXT, BATCH = 32, 2, 2, 48, 16, 8, 99, 8, 5
TINY = "vit_tiny_patch8_siglip_16"


def hf_model(kind):
    shared = dict(hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=DEPTH, num_attention_heads=HEADS)
    vision = dict(image_size=IMAGE, patch_size=PATCH, **shared)
    text = dict(vocab_size=VOCAB, max_position_embeddings=CONTEXT, **shared)
    if kind == "hf_clip":
        text |= dict(eos_token_id=2, bos_token_id=0, pad_token_id=1)
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
        return transformers.CLIPModel(config)
    text |= dict(projection_size=WIDTH, eos_token_id=1, bos_token_id=0)
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))


def open_clip_config(kind):
    text = dict(context_length=CONTEXT, vocab_size=VOCAB, width=WIDTH, heads=HEADS, layers=DEPTH, mlp_ratio=1.5)
    if kind == "open_clip_siglip":
        text |= dict(no_causal_mask=True, proj_bias=True, pool_type="last", norm_kwargs={"eps": 1e-6})
        vision = dict(image_size=IMAGE, timm_model_name=TINY, timm_pool="map", timm_proj="none")
        return dict(embed_dim=WIDTH, init_logit_bias=-10, custom_text=True, vision_cfg=vision, text_cfg=text)
    vision = dict(image_size=IMAGE, layers=DEPTH, width=64, head_width=32, patch_size=PATCH, mlp_ratio=1.5)
    if kind == "openai":  # what OpenAI's models all have, and so no file says
        vision, text = (tower | dict(mlp_ratio=4.0) for tower in (vision, text))
        vision["head_width"], text["heads"], text["width"] = 64, 1, 64
    return dict(embed_dim=WIDTH, quick_gelu=True, vision_cfg=vision, text_cfg=text)


@pytest.fixture(scope="module", autouse=True)
def tiny_timm_model():
    """timm has no SigLIP small enough for a test; this is its own model class with its own settings for SigLIP."""
    from timm.models import register_model
    from timm.models.vision_transformer import VisionTransformer

    def build(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **kwargs):
        model = VisionTransformer(
            img_size=IMAGE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=1.5,
            class_token=False, **{"global_pool": "map", **kwargs},
        )  # fmt: skip
        model.default_cfg = {}
        return model

    build.__name__, build.__module__ = TINY, "timm.models.vision_transformer"
    register_model(build)
    open_clip_siglip.SIZES["tiny"] = (WIDTH, DEPTH, HEADS, MLP)
    yield
    del open_clip_siglip.SIZES["tiny"]


def randomised(model):
    """Biases and norms too: zeros and ones would hide a missing one."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module", params=["hf_clip", "hf_siglip", "open_clip", "openai", "open_clip_siglip"])
def original(request, tmp_path_factory, tiny_timm_model):
    """(family, the original, where it was saved)"""
    kind, path = request.param, tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    if kind.startswith("hf"):
        model = randomised(hf_model(kind))
        model.save_pretrained(path)
        return kind, model, path
    config = open_clip_config(kind)
    cls = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    model = randomised(cls(**{name: value for name, value in config.items() if name != "custom_text"}))
    if kind == "openai":
        # As OpenAI publishes: a TorchScript archive with three numbers beside the weights.
        sizes = {"input_resolution": IMAGE, "context_length": CONTEXT, "vocab_size": VOCAB}
        archive, state = path / "tiny.pt", {name: tensor.clone() for name, tensor in model.state_dict().items()}
        state |= {name: torch.tensor(value) for name, value in sizes.items()}
        torch.jit.save(torch.jit.script(Holder(state)), archive)
        return kind, model, archive
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.save(model.state_dict(), path / "open_clip_pytorch_model.bin")
    return kind, model, path


class Holder(torch.nn.Module):
    """Modules nested as a state dict's names are, without their code."""

    def __init__(self, state):
        super().__init__()
        for name in {name.split(".")[0] for name in state}:
            inner = {n.partition(".")[2]: t for n, t in state.items() if n.split(".")[0] == name}
            if "" in inner:
                self.register_buffer(name, inner[""])
            else:
                self.add_module(name, Holder(inner))

    def forward(self):
        return 0


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(BATCH, IMAGE, IMAGE, 3)).astype(np.float32)
    return image, rng.integers(3, VOCAB, (BATCH, CONTEXT), dtype=np.int32)


def outputs(kind, model, batch):
    """The original's (image embedding, text embedding, logits)."""
    image, text = torch.tensor(batch[0].transpose(0, 3, 1, 2)), torch.tensor(batch[1]).long()
    if kind.startswith("hf"):
        out = model(input_ids=text, pixel_values=image)
        return out.image_embeds, out.text_embeds, out.logits_per_image
    embeddings = model.encode_image(image, normalize=True), model.encode_text(text, normalize=True)
    logits = model.logit_scale.exp() * embeddings[0] @ embeddings[1].T
    return *embeddings, logits if model.logit_bias is None else logits + model.logit_bias


def contrastive(kind, logits):
    """CLIP's loss, or SigLIP's, of the original's logits."""
    if "siglip" in kind:
        signs = 2 * torch.eye(BATCH) - 1
        return -torch.nn.functional.logsigmoid(signs * logits).sum() / BATCH
    target = torch.arange(BATCH)
    entropy = torch.nn.functional.cross_entropy
    return (entropy(logits, target) + entropy(logits.T, target)) / 2


def test_embeddings_logits_and_gradients_are_the_originals(original, batch):
    kind, theirs, path = original
    foreign = open_foreign(path)
    assert foreign.name == kind
    variables = foreign.variables(make_mesh(MeshConfig(), jax.devices()[:1]))
    model = foreign.config.model
    loss_fn = make_loss(LossConfig("sigmoid" if "siglip" in kind else "softmax", "dense"), None)

    def loss(params):
        out = DualEncoder(model).apply({"params": params}, image=batch[0], text=batch[1])
        scale = dict(logit_scale=out.logit_scale, logit_bias=out.logit_bias)
        return loss_fn(out.image_embedding, out.text_embedding, **scale)[0], out

    (value, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    logits = out.logit_scale * out.image_embedding @ out.text_embedding.T + out.logit_bias
    theirs.zero_grad()
    expected = outputs(kind, theirs, batch)
    their_loss = contrastive(kind, expected[2])
    their_loss.backward()
    for found, wanted in zip((out.image_embedding, out.text_embedding, logits), expected, strict=True):
        wanted = wanted.detach().numpy()
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert float(value) == pytest.approx(their_loss.item(), rel=1e-5)

    arrays = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    wanted = read_variables(foreign.family.tensors(model), model, stored(arrays), target)["params"]
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    for (where, a), b in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(wanted), strict=True):
        error = np.abs(np.asarray(a) - b).max()
        assert error <= 1e-4 * np.abs(b).max() + 1e-6 * scale, jax.tree_util.keystr(where)


def test_bfloat16_agrees_within_its_rounding(original, batch):
    from dataclasses import replace

    kind, theirs, path = original
    foreign = open_foreign(path)
    variables = foreign.variables(make_mesh(MeshConfig(), jax.devices()[:1]))
    out = jax.jit(DualEncoder(replace(foreign.config.model, dtype="bfloat16")).apply)(
        variables, image=jnp.asarray(batch[0]), text=jnp.asarray(batch[1])
    )
    with torch.no_grad():
        expected = outputs(kind, theirs, batch)
    for found, wanted in zip((out.image_embedding, out.text_embedding), expected, strict=False):
        assert (np.asarray(found) * wanted.numpy()).sum(-1).min() > 1 - 1e-3  # both of unit length


def test_imported_and_exported_again_every_tensor_is_equal(original, tmp_path):
    kind, theirs, path = original
    import_weights.run(path, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "parity.json").read_text())
    if kind == "openai":
        assert not report["compared"]
    else:
        assert all(errors["max_abs_error"] < 2e-5 for errors in report["outputs"].values())
    format = "hf" if kind.startswith("hf") else "open_clip"
    export.run(tmp_path / "run", tmp_path / "out", format=format)
    if format == "hf":
        again, info = type(theirs).from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    else:
        again = open_clip.create_model(f"local-dir:{tmp_path / 'out'}", load_weights=False)
        open_clip.load_checkpoint(again, str(tmp_path / "out" / "open_clip_model.safetensors"), strict=True)
    found = again.state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(found[name], tensor), name
    if kind == "openai":
        assert_openai_s_file(tmp_path / "run", tmp_path / "state_dict", theirs)


def assert_openai_s_file(run, out, theirs):
    """A state dict of their layout, in float32; open_clip's reader of OpenAI's files rounds its matrices to half."""
    export.run(run, out, format="openai")
    assert [file.name for file in out.iterdir()] == ["model.pt"]
    written = torch.load(out / "model.pt", weights_only=True)
    expected, numbers = theirs.state_dict(), {"input_resolution": IMAGE, "context_length": CONTEXT, "vocab_size": VOCAB}
    assert written.keys() == expected.keys() | numbers.keys()
    for name, tensor in written.items():
        assert torch.equal(tensor, expected[name] if name in expected else torch.tensor(numbers[name])), name
    again = open_clip.load_openai_model(str(out / "model.pt"), device="cpu").state_dict()
    for name, tensor in expected.items():
        assert torch.equal(again[name], tensor) or torch.equal(again[name], tensor.half().float()), name
    assert open_foreign(out).name == "openai"


@pytest.mark.parametrize("format", ["big_vision", "big_vision_stacked"])
def test_open_clip_reads_our_npz_to_the_same_embeddings(format, tmp_path, batch):
    """open_clip's own reader of big_vision's files is the judge, with the approximate GELU that big_vision has."""
    torch.manual_seed(1)
    randomised(hf_model("hf_siglip")).save_pretrained(tmp_path / "hf")
    import_weights.run(tmp_path / "hf", tmp_path / "run", parity=False)
    with pytest.raises(
        InteropError, match="(?s)config.data.pixels.antialias=True .read back as False.*--nearest_pixels"
    ):
        export.run(tmp_path / "run", tmp_path / "out", format=format)
    export.run(tmp_path / "run", tmp_path / "out", format=format, nearest_pixels=True)
    config = open_clip_config("open_clip_siglip")
    config["text_cfg"]["act_kwargs"] = {"approximate": "tanh"}
    judge = open_clip.CustomTextCLIP(**{name: value for name, value in config.items() if name != "custom_text"}).eval()
    for module in judge.visual.modules():
        if isinstance(module, torch.nn.GELU):
            module.approximate = "tanh"
    open_clip.load_checkpoint(judge, str(tmp_path / "out" / "checkpoint.npz"))
    with torch.no_grad():
        expected = outputs("open_clip_siglip", judge, batch)

    foreign = open_foreign(tmp_path / "out")
    assert foreign.name == format
    variables = foreign.variables(make_mesh(MeshConfig(), jax.devices()[:1]))
    out = jax.jit(DualEncoder(foreign.config.model).apply)(
        variables, image=jnp.asarray(batch[0]), text=jnp.asarray(batch[1])
    )
    np.testing.assert_allclose(out.image_embedding, expected[0], atol=2e-6)
    np.testing.assert_allclose(out.text_embedding, expected[1], atol=2e-6)
