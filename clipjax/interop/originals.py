"""Published models in the libraries that published them: what the parity report compares with."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from PIL import Image

from clipjax.interop.foreign import Foreign
from clipjax.interop.hf_pixels import LEGACY, NESTED
from clipjax.interop.names import InteropError
from clipjax.interop.open_clip_config import CONFIG
from clipjax.models.pixels import Patches
from clipjax.models.towers import towers_of
from clipjax.models.towers.naflex import patch_mask

# image_embedding, text_embedding [B, D] of unit length, logits [B, B]; of one tower its embedding alone
Outputs = dict[str, np.ndarray]
Pixels = np.ndarray | Patches  # normalised, as our tower reads them: [B, H, W, 3] float32, or Patches of float32


class Tokens(NamedTuple):
    """What a tokenizer makes of one caption."""

    theirs: Any
    ids: np.ndarray  # [1, L]
    inside: np.ndarray  # [1, L] bool: whether an id belongs to the text, by the tokenizer's mask
    special: frozenset[int]  # ids of its special tokens, such as the end of text


class Original(NamedTuple):
    """A model with its own processor and tokenizer. "Theirs" are the arguments that its library takes."""

    forward: Callable[[Any, Any], Outputs]  # (images, texts), both theirs
    images: Callable[[Pixels], Any]  # ours -> theirs
    texts: Callable[[np.ndarray], Any]  # ids [B, L] int32 -> theirs
    # A picture through its own processor -> (theirs, the same pixels as our tower reads them).
    process: Callable[[Image.Image], tuple[Any, Pixels]]
    tokenize: Callable[[str, int], Tokens]  # (caption, L) through its own tokenizer


def transformers_model(foreign: Foreign) -> Original:
    """A directory of transformers."""
    import torch
    import transformers

    path, towers = foreign.source.path, towers_of(foreign.config.model)
    # An AutoModel would read a tower that has a projection without it.
    kind = "AutoModel" if len(towers) > 1 else foreign.family.write(foreign.meaning)["config.json"]["architectures"][0]
    model = getattr(transformers, kind).from_pretrained(path, dtype=torch.float32, local_files_only=True).eval()

    def forward(images: dict[str, Any], texts: dict[str, Any]) -> Outputs:
        inputs = {name: value for side in towers for name, value in {"image": images, "text": texts}[side].items()}
        with torch.no_grad():
            out = model(**inputs)
        if len(towers) == 1:
            embedded = getattr(out, f"{towers[0]}_embeds", None)
            pooled = (out.pooler_output if embedded is None else embedded).numpy()
            return {f"{towers[0]}_embedding": pooled / np.linalg.norm(pooled, axis=-1, keepdims=True)}
        names = {"image_embedding": "image_embeds", "text_embedding": "text_embeds", "logits": "logits_per_image"}
        return {ours: getattr(out, theirs).numpy() for ours, theirs in names.items()}

    def images(pixels: Pixels) -> dict[str, Any]:
        if not isinstance(pixels, Patches):
            return dict(pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)))
        mask = np.asarray(patch_mask(jnp.asarray(pixels.spatial_shape), pixels.pixels.shape[1]), np.int32)
        shapes = torch.tensor(pixels.spatial_shape).long()
        return dict(
            pixel_values=torch.tensor(pixels.pixels), pixel_attention_mask=torch.tensor(mask), spatial_shapes=shapes
        )

    def process(picture: Image.Image) -> tuple[dict[str, Any], Pixels]:
        from transformers import AutoImageProcessor

        if not foreign.source.description.files.keys() & {NESTED, LEGACY}:
            raise InteropError(f"the directory has neither {NESTED} nor {LEGACY}")
        theirs = dict(AutoImageProcessor.from_pretrained(path, local_files_only=True)(picture, return_tensors="pt"))
        pixels = theirs["pixel_values"].float().numpy()
        if "spatial_shapes" in theirs:
            return theirs, Patches(pixels, np.asarray(theirs["spatial_shapes"], np.int32))
        return theirs, pixels.transpose(0, 2, 3, 1)

    def tokenize(caption: str, length: int) -> Tokens:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        options = dict(padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        theirs = dict(tokenizer([caption], **options))
        ids = theirs["input_ids"].numpy()
        mask = theirs["attention_mask"].numpy() if "attention_mask" in theirs else np.ones_like(ids)
        return Tokens(theirs, ids, mask.astype(bool), frozenset(tokenizer.all_special_ids))

    return Original(forward, images, lambda ids: dict(input_ids=torch.tensor(ids).long()), process, tokenize)


def open_clip_model(foreign: Foreign) -> Original:
    """A directory of open_clip."""
    import open_clip
    import torch

    with tempfile.TemporaryDirectory() as folder:
        model = open_clip.create_model(f"local-dir:{_self_contained(foreign, Path(folder))}").eval()

    def forward(images: Any, texts: Any) -> Outputs:
        with torch.no_grad():
            encoded = model.encode_image(images, normalize=True), model.encode_text(texts, normalize=True)
            logits = model.logit_scale.exp() * encoded[0] @ encoded[1].T  # not get_logits: CoCa has none
            logits = logits if model.logit_bias is None else logits + model.logit_bias
        return dict(image_embedding=encoded[0].numpy(), text_embedding=encoded[1].numpy(), logits=logits.numpy())

    def process(picture: Image.Image) -> tuple[Any, Pixels]:
        if not foreign.source.description.files[CONFIG].get("preprocess_cfg"):
            raise InteropError(f"{CONFIG} has no preprocess_cfg")
        config = open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg)
        images = open_clip.transform.image_transform_v2(config, is_train=False)(picture)[None]
        return images, images.numpy().transpose(0, 2, 3, 1)

    def tokenize(caption: str, length: int) -> Tokens:
        tokenizer = open_clip.get_tokenizer(f"local-dir:{foreign.source.path}", context_length=length)
        texts, inner = tokenizer([caption]), getattr(tokenizer, "tokenizer", tokenizer)
        return Tokens(texts, texts.numpy(), np.ones(texts.shape, bool), frozenset(inner.all_special_ids))

    return Original(
        forward,
        lambda pixels: torch.tensor(pixels.transpose(0, 3, 1, 2)),
        lambda ids: torch.tensor(ids).long(),
        process,
        tokenize,
    )


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
ORIGINALS: dict[str, Callable[[Foreign], Original]] = {"hf": transformers_model, "open_clip": open_clip_model}
