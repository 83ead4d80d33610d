"""The same random images and texts through the original library and through ours."""

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

from clipjax.interop.foreign import Foreign
from clipjax.interop.open_clip import CONFIG
from clipjax.interop.open_clip_bert import hub_config
from clipjax.mesh import to_host
from clipjax.models import DualEncoder, image_tower, patch_budget
from clipjax.models.pixels import Patches
from clipjax.models.towers.naflex import patch_mask

EXAMPLES = 4
Outputs = dict[str, np.ndarray]  # image_embedding, text_embedding [B, D] of unit length, logits [B, B]


def report(foreign: Foreign, variables: dict[str, Any], mesh: Mesh) -> tuple[dict[str, Any], str]:
    """(what parity.json holds, one line about it). Without the original library: which one, and why not."""
    model = foreign.config.model
    rng = np.random.default_rng(0)
    last = model.text.vocab_size - 1
    columns = image_tower(model.image).columns(model.image, EXAMPLES)
    image = rng.normal(size=columns["image"][0]).astype(np.float32)
    if budget := patch_budget(model.image):
        side = math.isqrt(budget.max_patches)
        image = Patches(image, np.array([[side, max(1, side - i)] for i in range(EXAMPLES)], np.int32))
    text = rng.integers(3, last, (EXAMPLES, model.text.context_length)).astype(np.int32)
    eos_id = getattr(model.text, "eos_id", -1)
    text[:, -1] = eos_id if 0 <= eos_id <= last else last
    original = ORIGINALS.get(foreign.family.format)
    if original is None or not foreign.source.path.is_dir():
        why = "no original library computes these files by themselves"
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
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosine = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return {"max_abs_error": float(np.abs(a - b).max()), "cosine_error": float((1 - cosine).max())}


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
    """The source, or the same files in folder: a text tower that is named on the hub has its configuration there."""
    if foreign.name != "open_clip_hf_text":
        return foreign.source.path
    for file in foreign.source.path.iterdir():
        (folder / file.name).symlink_to(file.absolute())
    config = copy.deepcopy(foreign.source.description.files[CONFIG])
    hub = folder / "hub"
    hub.mkdir()
    (hub / "config.json").write_text(json.dumps(hub_config(foreign.config.model.text)))
    config["model_cfg"]["text_cfg"] |= dict(hf_model_name=str(hub))
    (folder / CONFIG).unlink()
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


ORIGINALS: dict[str, Callable[[Foreign, np.ndarray, np.ndarray], Outputs]] = {
    "hf": _transformers,
    "open_clip": _open_clip,
}
