"""Compares clipjax with the original library on the same random images and texts."""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipjax.config import ModelConfig
from clipjax.interop.foreign import Foreign
from clipjax.interop.open_clip import CONFIG
from clipjax.mesh import to_host
from clipjax.models import DualEncoder, image_tower
from clipjax.models.pixels import Patches, image_of
from clipjax.models.towers.naflex import patch_mask

EXAMPLES = 4
Outputs = dict[str, np.ndarray]  # image_embedding, text_embedding [B, D] of unit length, logits [B, B]


def parity_report(foreign: Foreign, variables: dict[str, Any], mesh: Mesh) -> tuple[dict[str, Any], str]:
    """(content of parity.json, one line about it): the largest differences of embeddings and logits.

    variables: from foreign.variables. Where the original library is missing or does not run, both say why.
    """
    model = foreign.config.model
    image, text = _random_inputs(model)
    original = ORIGINALS.get(foreign.family.format)
    if original is None or not foreign.source.path.is_dir():
        why = "no original library reads these files by themselves"
        return {"compared": False, "why": why}, f"No parity report: {why}."
    try:
        theirs = original(foreign, image, text)
    except (ImportError, RuntimeError) as error:
        why = f"{type(error).__name__}: {error}"
        return {"compared": False, "why": why}, f"No parity report: the original library does not run here ({why})."
    out = jax.jit(DualEncoder(model).apply)(variables, image=jax.tree.map(jnp.asarray, image), text=jnp.asarray(text))
    out = jax.tree.map(np.asarray, to_host(out))
    ours = {
        "image_embedding": out.image_embedding,
        "text_embedding": out.text_embedding,
        "logits": out.logit_scale * out.image_embedding @ out.text_embedding.T + out.logit_bias,
    }
    errors = {name: compare(ours[name], theirs[name]) for name in ours}
    line = "  ".join(f"{name} {e['max_abs_error']:.1e} (cosine {e['cosine_error']:.1e})" for name, e in errors.items())
    return {"compared": True, "outputs": errors}, f"Largest difference from the original: {line}"


def compare(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """The largest absolute difference, and the largest 1 - cosine of two rows, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosine = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return {"max_abs_error": float(np.abs(a - b).max()), "cosine_error": float((1 - cosine).max())}


def _random_inputs(model: ModelConfig) -> tuple[np.ndarray | Patches, np.ndarray]:
    """EXAMPLES normalised images as the tower reads them, and texts [EXAMPLES, L] int32 that end with end-of-text."""
    rng = np.random.default_rng(0)
    columns = {name: shape for name, (shape, _) in image_tower(model.image).columns(model.image, EXAMPLES).items()}
    batch = {"image": rng.normal(size=columns["image"]).astype(np.float32)}
    if "spatial_shape" in columns:  # patches of images whose sides differ
        side = math.isqrt(columns["image"][1])
        batch["spatial_shape"] = np.array([[side, max(1, side - i)] for i in range(EXAMPLES)], np.int32)
    last = model.text.vocab_size - 1
    text = rng.integers(3, last, (EXAMPLES, model.text.context_length)).astype(np.int32)
    eos_id = getattr(model.text, "eos_id", -1)
    text[:, -1] = eos_id if 0 <= eos_id <= last else last
    return image_of(batch), text


def _transformers(foreign: Foreign, image: np.ndarray | Patches, text: np.ndarray) -> Outputs:
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(foreign.source.path, dtype=torch.float32, local_files_only=True).eval()
    with torch.no_grad():
        if isinstance(image, Patches):
            mask = np.asarray(patch_mask(jnp.asarray(image.spatial_shape), image.pixels.shape[1]), np.int32)
            shapes = torch.tensor(image.spatial_shape).long()
            pixels = dict(pixel_attention_mask=torch.tensor(mask), spatial_shapes=shapes)
            pixels["pixel_values"] = torch.tensor(image.pixels)
        else:
            pixels = dict(pixel_values=torch.tensor(image.transpose(0, 3, 1, 2)))
        out = model(input_ids=torch.tensor(text).long(), **pixels)
    names = {"image_embedding": "image_embeds", "text_embedding": "text_embeds", "logits": "logits_per_image"}
    return {ours: getattr(out, theirs).numpy() for ours, theirs in names.items()}


def _open_clip(foreign: Foreign, image: np.ndarray, text: np.ndarray) -> Outputs:
    import open_clip
    import torch

    with tempfile.TemporaryDirectory() as folder:
        model = open_clip.create_model(f"local-dir:{_self_contained(foreign, Path(folder))}").eval()
    with torch.no_grad():
        logits, _ = model.get_logits(torch.tensor(image.transpose(0, 3, 1, 2)), torch.tensor(text).long())
        encoded = (
            model.encode_image(torch.tensor(image.transpose(0, 3, 1, 2)), normalize=True),
            model.encode_text(torch.tensor(text).long(), normalize=True),
        )
    return dict(image_embedding=encoded[0].numpy(), text_embedding=encoded[1].numpy(), logits=logits.numpy())


def _self_contained(foreign: Foreign, folder: Path) -> Path:
    """A directory that open_clip reads without asking the hub: the source itself, or a copy made in `folder`.

    The copy has the configuration of a text tower that the source only names.
    """
    if foreign.family.hub_config is None:
        return foreign.source.path
    for file in foreign.source.path.iterdir():
        (folder / file.name).symlink_to(file.absolute())
    config = copy.deepcopy(foreign.source.description.files[CONFIG])
    hub = folder / "hub"
    hub.mkdir()
    (hub / "config.json").write_text(json.dumps(foreign.family.hub_config(foreign.config.model.text)))
    config["model_cfg"]["text_cfg"] |= dict(hf_model_name=str(hub))
    (folder / CONFIG).unlink()
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


# --format -> runs the library that reads it.
ORIGINALS: dict[str, Callable[[Foreign, np.ndarray, np.ndarray], Outputs]] = {
    "hf": _transformers,
    "open_clip": _open_clip,
}
