"""EVA-CLIP's own code computes what ours does, and reads what we write. PyPI has it inside consisid-eva-clip:
pip install --no-deps consisid-eva-clip einops."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from clipjax.commands import export, import_weights
from clipjax.config import MeshConfig
from clipjax.interop import eva
from clipjax.interop.foreign import open_foreign
from clipjax.mesh import make_mesh
from clipjax.models import DualEncoder
from clipjax.models.presets import get_preset
from tests.parity.torch_pairs import BATCH, CONTEXT, IMAGE, PATCH, VOCAB, as_torch, inputs, perturb
from tests.torch_reference import import_torch

torch = import_torch()
pytest.importorskip("einops")
factory = import_torch("consisid_eva_clip.factory")

# our preset: their configuration, of which only sizes are changed
MODELS = {
    "eva02_clip_b16": "EVA02-CLIP-B-16",
    "eva01_clip_g14": "EVA01-CLIP-g-14",
    "eva02_clip_bige14": "EVA02-CLIP-bigE-14",
}
WIDTH, EMBED = 64, 24


def original(name):
    config = factory.get_model_config(MODELS[name])
    config.pop("custom_text", None)
    shared = dict(width=WIDTH, layers=2, fusedLN=False, xattn=False)  # those two are faster kernels for the same
    config["vision_cfg"] |= dict(image_size=IMAGE, patch_size=PATCH, head_width=WIDTH // 2, **shared)
    config["text_cfg"] |= dict(context_length=CONTEXT, vocab_size=VOCAB, heads=2, **shared)
    return factory.CustomCLIP(**config | dict(embed_dim=EMBED)).eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_embeddings_equal_and_weights_go_back_bit_for_bit(name, tmp_path, monkeypatch):
    theirs = perturb(original(name))
    state = theirs.state_dict()
    up = next(state[n] for n in ("visual.blocks.0.mlp.w1.weight", "visual.blocks.0.mlp.fc1.weight") if n in state)
    model = get_preset(name)
    shared = dict(width=WIDTH, depth=2, num_heads=2)
    image = replace(model.image, image_size=IMAGE, patch_size=PATCH, mlp_dim=len(up), **shared)
    text = replace(model.text, vocab_size=VOCAB, context_length=CONTEXT, mlp_dim=4 * WIDTH, **shared)
    monkeypatch.setitem(eva.EVA_PRESETS, "tiny", replace(model, image=image, text=text, embed_dim=EMBED))
    torch.save(state, tmp_path / "original.pt")

    foreign = open_foreign(tmp_path / "original.pt")
    assert foreign.name == "eva_clip"
    variables = foreign.variables(make_mesh(MeshConfig(), jax.devices()[:1]))
    pixels, ids = inputs()
    out = jax.jit(DualEncoder(foreign.config.model).apply)(variables, image=pixels, text=ids)
    with torch.no_grad():
        images, texts = as_torch(pixels, ids)
        expected = theirs.encode_image(images, normalize=True), theirs.encode_text(texts, normalize=True)
    for found, wanted in zip((out.image_embedding, out.text_embedding), expected, strict=True):
        assert wanted.shape == (BATCH, EMBED)
        np.testing.assert_allclose(found, wanted.numpy(), atol=2e-6)

    import_weights.run(tmp_path / "original.pt", tmp_path / "run", parity=False)
    export.run(tmp_path / "run", tmp_path / "out", format="eva_clip")
    again = original(name)
    incompatible = factory.load_checkpoint(again, str(tmp_path / "out" / "model.pt"), strict=False)
    assert not incompatible.unexpected_keys
    assert all(".rope.freqs_" in key for key in incompatible.missing_keys)  # which it has computed
    for key, tensor in state.items():
        assert torch.equal(again.state_dict()[key], tensor), key
