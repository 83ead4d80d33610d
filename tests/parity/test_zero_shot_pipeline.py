"""open_clip's own zero-shot pipeline gives the same top-1 and top-5 on the same random model and pictures."""

import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from clipjax.config import MeshConfig, SourceConfig
from clipjax.eval import ZeroShotConfig, zero_shot
from clipjax.inference.embed import make_embed
from clipjax.interop.foreign import open_foreign
from clipjax.mesh import batch_sharding, make_mesh
from tests.parity.test_interop_open_clip import config_of, saved
from tests.parity.torch_pairs import CONTEXT, IMAGE, VOCAB, as_torch
from tests.torch_reference import import_torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = import_torch()
open_clip = import_torch("open_clip")

NAMES = [f"class {n}" for n in range(11)]
TEMPLATES = ("a photo of a {}.", "art of the {}.", "{}")
IMAGES = 48


def tokenizer(texts):
    """Random words that depend on the text, then the largest id, where open_clip reads the text's embedding."""
    rows = np.zeros((len(texts), CONTEXT), np.int32)
    for row, text in zip(rows, texts, strict=True):
        rng = np.random.default_rng(list(text.encode()))
        length = int(rng.integers(3, CONTEXT))
        row[:length] = rng.integers(2, VOCAB - 1, length)
        row[length - 1] = VOCAB - 1
    return rows


def theirs(model, pixels, label):
    """(top-1, top-5) by open_clip's training code."""
    module = import_torch("open_clip_train.zero_shot")
    # It calls float() on arrays of one number, which NumPy no longer allows.
    vars(module)["float"] = lambda value: float(np.asarray(value).item())
    as_ids = lambda texts: torch.from_numpy(tokenizer(texts)).long()  # noqa: E731
    classifier = open_clip.build_zero_shot_classifier(model, as_ids, NAMES, TEMPLATES)
    loader = [(pixels[i : i + 20], torch.from_numpy(label[i : i + 20])) for i in range(0, IMAGES, 20)]
    return module.run(model, classifier, loader, SimpleNamespace(device="cpu", precision="fp32", batch_size=20))


@pytest.mark.slow
def test_top1_and_top5_equal_open_clips_pipeline(tmp_path):
    model = saved(config_of(), tmp_path / "original")
    foreign = open_foreign(str(tmp_path / "original"))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    variables, pixels = foreign.variables(mesh), foreign.config.data.pixels
    embed_images, embed_texts = make_embed(foreign.config, mesh)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (IMAGES, IMAGE, IMAGE, 3), dtype=np.uint8)
    normal = ((image / 255 - np.asarray(pixels.mean)) / np.asarray(pixels.std)).astype(np.float32)
    normal, _ = as_torch(normal, np.zeros(1))
    with torch.no_grad():
        features = model.encode_image(normal, normalize=True)
    scores = features.numpy() @ np.stack(
        [embed_texts(variables, tokenizer([t.replace("{}", name) for t in TEMPLATES])).mean(0) for name in NAMES], 1
    )
    # A random model sees little of the classes: labels of which about half are its first guess, the others any.
    label = np.where(rng.random(IMAGES) < 0.5, scores.argmax(1), rng.integers(0, len(NAMES), IMAGES))

    def batches():
        for start in range(0, IMAGES, 16):
            rows = slice(start, start + 16)
            columns = {"image": image[rows], "label": label[rows].astype(np.int32), "valid": np.ones(16, bool)}
            yield jax.device_put(columns, batch_sharding(mesh))

    found = zero_shot.evaluate(
        ZeroShotConfig(source=SourceConfig(path="toy"), templates=TEMPLATES),
        batches=batches,
        embed_images=lambda batch: embed_images(variables, batch["image"]),
        embed_texts=lambda tokens: embed_texts(variables, tokens),
        tokenizer=tokenizer,
        class_names=NAMES,
        mesh=mesh,
    )
    top1, top5 = theirs(model, normal, label)
    assert 0.3 < top1 < top5 < 1
    assert (found["top1"], found["top5"]) == pytest.approx((top1, top5), abs=1e-12)
