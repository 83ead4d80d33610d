"""transformers' models of one tower: the same embeddings, in, out and loaded."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipjax
from clipjax.commands import export, import_weights
from clipjax.config import ConfigError, DecoderConfig, MeshConfig, ModelConfig, PixelConfig, TokenizerConfig
from clipjax.interop import InteropError, open_foreign
from clipjax.interop.names import Meaning
from clipjax.interop.one_tower import alone
from clipjax.mesh import make_mesh
from clipjax.models import image_tower, text_tower
from clipjax.models.pixels import Patches
from clipjax.models.towers.text import TextTransformerConfig
from tests.torch_reference import import_torch

torch = import_torch()
transformers = import_torch("transformers")

SMALL = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
VISION = SMALL | dict(image_size=16, patch_size=8)
PATCHES = SMALL | dict(num_patches=4, patch_size=8)
TEXT = SMALL | dict(vocab_size=40, max_position_embeddings=6, bos_token_id=38, eos_token_id=39)
# transformers' class -> (its configuration, the side, the output that is the embedding)
MODELS = {
    "CLIPVisionModel": ("CLIPVisionConfig", VISION | dict(projection_dim=12), "image", "pooler_output"),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", VISION | dict(projection_dim=12), "image", "image_embeds"),
    "CLIPTextModel": ("CLIPTextConfig", TEXT | dict(projection_dim=12), "text", "pooler_output"),
    "CLIPTextModelWithProjection": ("CLIPTextConfig", TEXT | dict(projection_dim=12), "text", "text_embeds"),
    "SiglipVisionModel": ("SiglipVisionConfig", VISION, "image", "pooler_output"),
    "SiglipTextModel": ("SiglipTextConfig", TEXT | dict(projection_size=12), "text", "pooler_output"),
    "Siglip2VisionModel": ("Siglip2VisionConfig", PATCHES, "image", "pooler_output"),
    "Siglip2TextModel": ("Siglip2TextConfig", TEXT | dict(projection_size=12), "text", "pooler_output"),
    "ChineseCLIPVisionModel": ("ChineseCLIPVisionConfig", VISION, "image", "pooler_output"),
}


def randomised(model):
    """The model with every weight random, norms and biases too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def save(kind, folder):
    config, fields, *_ = MODELS[kind]
    model = randomised(getattr(transformers, kind)(getattr(transformers, config)(**fields)))
    model.save_pretrained(folder)
    return model


def embedded(foreign, kind, original):
    """(our pooled output, theirs) of the same normalised pixels or ids."""
    model, side = foreign.config.model, MODELS[kind][2]
    rng = np.random.default_rng(0)
    if side == "text":
        x = np.array([[38, 3, 4, 39, 0, 0], [38, 5, 39, 0, 0, 0]], np.int32)
        theirs = dict(input_ids=torch.tensor(x).long())
    elif kind.startswith("Siglip2"):
        x = Patches(rng.normal(size=(2, 4, 192)).astype(np.float32), np.array([[2, 2], [1, 3]], np.int32))
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
        theirs = dict(pixel_values=torch.tensor(x.pixels), pixel_attention_mask=mask)
        theirs |= dict(spatial_shapes=torch.tensor(x.spatial_shape).long())
    else:
        x = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
        theirs = dict(pixel_values=torch.tensor(x.transpose(0, 3, 1, 2)))
    params = foreign.variables(make_mesh(MeshConfig(data=1), jax.devices()[:1]))["params"]
    assert set(params) == {side}
    row = {"image": image_tower, "text": text_tower}[side](getattr(model, side))
    tower = row.module(getattr(model, side), model.embed_dim, jnp.float32)
    ours = tower.apply({"params": params[side]}, jax.tree.map(jnp.asarray, x)).pooled
    with torch.no_grad():
        return np.asarray(ours), getattr(original(**theirs), MODELS[kind][3]).numpy()


@pytest.mark.parametrize("kind", MODELS)
def test_a_tower_alone_gives_transformers_embedding(kind, tmp_path):
    original = save(kind, tmp_path)
    foreign = open_foreign(str(tmp_path))
    ours, theirs = embedded(foreign, kind, original)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert foreign.config.model.embed_dim == theirs.shape[1]


@pytest.mark.parametrize("kind", ["CLIPVisionModel", "CLIPTextModel"])
def test_a_loaded_tower_embeds_and_refuses_what_only_the_other_could(kind, tmp_path, caplog):
    save(kind, tmp_path)
    loaded, side = clipjax.load(str(tmp_path), batch_size=8), MODELS[kind][2]
    assert ("NO TOKENIZER" in caplog.text) == (side == "text")
    assert ("processor_config.json" in caplog.text) == (side == "image")
    ids, pixels = np.array([[38, 3, 39]]), np.zeros((1, 16, 16, 3), np.uint8)
    if side == "image":
        assert loaded.embed_images(pixels).shape == (1, 16)
        calls = (loaded.embed_texts, loaded.encode_texts)
    else:
        assert loaded.embed_texts(ids).shape == (1, 16)
        calls = (loaded.embed_images, loaded.encode_images)
    other = {"image": "text", "text": "image"}[side]
    for call in calls:
        for given in (["anything"], ids, pixels):
            with pytest.raises(ConfigError, match=rf"only an? {side} tower .* and cannot embed {other}s\.") as caught:
                call(given)
            assert "\n" not in str(caught.value)


def test_a_tower_with_or_without_its_name_in_front_is_read_the_same(tmp_path):
    """transformers 5 writes CLIPVisionModel's names without "vision_model.", earlier versions with it."""
    from safetensors.torch import load_file, save_file

    save("CLIPVisionModel", tmp_path)
    first = open_foreign(str(tmp_path)).variables(make_mesh(MeshConfig()))
    tensors = {f"vision_model.{name}": tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    beside = {"vision_model.embeddings.position_ids": torch.arange(5)[None], "logit_scale": torch.ones(())}
    save_file(tensors | beside, tmp_path / "model.safetensors")
    again = open_foreign(str(tmp_path)).variables(make_mesh(MeshConfig()))
    assert all(map(np.array_equal, *(jax.tree.leaves(tree) for tree in (first, again))))


@pytest.mark.parametrize("kind", ["CLIPVisionModelWithProjection", "CLIPTextModel", "SiglipVisionModel"])
def test_an_imported_tower_agrees_and_is_exported_bit_for_bit(kind, tmp_path, capsys):
    original = save(kind, tmp_path / "source")
    side = MODELS[kind][2]
    import_weights.run(tmp_path / "source", tmp_path / "run")
    printed = capsys.readouterr().out
    assert f"_{side}, {'an' if side == 'image' else 'a'} {side} tower alone, 0.0" in printed
    assert ("WITHOUT A TOKENIZER" in printed) == (side == "text")
    report = json.loads((tmp_path / "run" / "parity.json").read_text())
    assert report["agrees"] and list(report["outputs"]) == [f"{side}_embedding"]
    export.run(tmp_path / "run", tmp_path / "out", format="hf")
    again = getattr(transformers, kind).from_pretrained(tmp_path / "out")
    for (name, ours), (other, theirs) in zip(again.state_dict().items(), original.state_dict().items(), strict=True):
        assert name == other and torch.equal(ours, theirs), name


def test_a_tower_alone_has_no_captioner():
    model = ModelConfig(text=TextTransformerConfig(causal=True), decoder=DecoderConfig(depth=2))
    for side in ("image", "text"):
        assert alone(Meaning(model, PixelConfig(), TokenizerConfig()), side).model.decoder == DecoderConfig()


@pytest.mark.parametrize("side", ["image", "text"])
def test_one_tower_of_a_whole_model_is_exported_alone(side, tmp_path, capsys):
    """What systems that build on an image or a text tower load."""
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)
    original = randomised(transformers.CLIPModel(config))
    original.save_pretrained(tmp_path / "source")
    import_weights.run(tmp_path / "source", tmp_path / "run", parity=False)
    export.run(tmp_path / "run", tmp_path / "out", format="hf", tower=side)
    named, read = open_foreign(str(tmp_path / "source"), f"hf_clip_{side}"), open_foreign(str(tmp_path / "out"))
    assert named.config.model == read.config.model  # an import may also take one tower
    assert f" as hf_clip_{side} into" in capsys.readouterr().out
    kind = {"image": "CLIPVisionModelWithProjection", "text": "CLIPTextModelWithProjection"}[side]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [kind]
    assert (tmp_path / "out" / "preprocessor_config.json").is_file() == (side == "image")
    ours, theirs = getattr(transformers, kind).from_pretrained(tmp_path / "out").state_dict(), original.state_dict()
    assert ours and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    with pytest.raises(ConfigError, match=r"--tower='vision' is not one of image, text"):
        export.run(tmp_path / "run", tmp_path / "other", format="hf", tower="vision")
    with pytest.raises(InteropError, match="cannot hold this model"):
        export.run(tmp_path / "run", tmp_path / "other", format="open_clip", tower=side)
