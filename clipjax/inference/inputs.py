"""What people pass to embed_images and embed_texts -> the columns of a batch."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipjax.config import ExperimentConfig, PatchBudget, PixelConfig
from clipjax.data.images.decode import Picture
from clipjax.data.images.naflex import eval_patches
from clipjax.data.images.transforms import eval_image
from clipjax.data.records import RecordError
from clipjax.data.tokenizers import Tokenizer
from clipjax.training.cut import needed_columns

_ONE_IMAGE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
_IMAGE = "expected a path, the bytes of a file, a PIL image, or a uint8 array [H, W, 3]"
_TEXTS = "expected a string, a sequence of strings, or int32 ids [B, L]"


def image_columns(images: Any, size: int, budget: PatchBudget | None, pixels: PixelConfig) -> dict[str, np.ndarray]:
    """The image columns of a batch, each image as clipjax.data.images.eval_image or eval_patches gives it.

    images: one image or any number of them, of mixed kinds: paths, bytes of files, PIL images, uint8 arrays [H, W, 3]
    ([H, W] is grey; [H, W, 2] and [H, W, 4] have alpha). Where the tower reads images of one size S, a uint8 array
    [B, S, S, 3] is taken as it is.
    Raises TypeError or ValueError for what is none of these, OSError for a file that cannot be read, RecordError for
    one that is no usable image; each names the image by its place.
    """
    images = _as_array(images)
    if isinstance(images, np.ndarray) and images.ndim == 4 and not budget:
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"images are {images.dtype} {images.shape}; expected uint8 [B, {size}, {size}, 3], "
                "or a list of uint8 arrays [H, W, 3], which are resized."
            )
        return {"image": images}
    rows = [_row(image, at, size, budget, pixels) for at, image in enumerate(_images(images))]
    if rows:
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    if budget:
        shape = (0, budget.max_patches, 3 * budget.patch_size**2)
        return {"image": np.zeros(shape, np.uint8), "spatial_shape": np.zeros((0, 2), np.int32)}
    return {"image": np.zeros((0, size, size, 3), np.uint8)}


def text_ids(texts: Any, tokenizer: Tokenizer | None, length: int, vocab_size: int) -> np.ndarray:
    """[B, L] int32 ids, L at most `length`: of strings by the tokenizer, or the ids that were given.

    texts: one string or any number of them, or ids [B, L], or [L] of one text.
    Raises TypeError or ValueError for anything else, naming the text by its place, for ids outside the vocabulary, and
    for strings without a tokenizer.
    """
    texts = _as_array(texts)
    if isinstance(texts, np.ndarray):
        if texts.dtype.kind in "iu" and texts.size:
            return _checked_ids(texts, length, vocab_size)
        texts = texts.tolist() if texts.dtype.kind in "OU" or not texts.size else texts
    texts = [texts] if isinstance(texts, str) else _listed(texts, "texts", _TEXTS)
    if not texts:
        return np.zeros((0, length), np.int32)
    roles = [_role(text) for text in texts]
    for at, role in enumerate(roles):
        if not role or role != roles[0]:
            expected = f"texts[0] is {_kind(texts[0])}" if role and roles[0] else _TEXTS
            raise TypeError(f"texts[{at}] is {_kind(texts[at])}; {expected}.")
    if roles[0] == "string":
        if tokenizer is None:
            raise ValueError(f"These weights have no tokenizer: give ids [B, {length}] int32, not strings.")
        for at, text in enumerate(texts):
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError(f"texts[{at}] is not Unicode: {text[:50]!r} has half a surrogate pair.")
        return np.asarray(tokenizer(texts), np.int32)
    lengths = {np.size(ids) for ids in texts}
    if len(lengths) > 1:
        raise ValueError(f"texts are ids of {min(lengths)} to {max(lengths)} tokens; pad them to one length.")
    return _checked_ids(np.asarray(texts), length, vocab_size)


def _row(image: Any, at: int, size: int, budget: PatchBudget | None, pixels: PixelConfig) -> dict[str, np.ndarray]:
    picture = _picture(image, at)
    try:
        return eval_patches(picture, budget, pixels) if budget else {"image": eval_image(picture, size, pixels)}
    except RecordError as error:
        name = f"images[{at}], {os.fspath(image)}" if isinstance(image, (str, os.PathLike)) else f"images[{at}]"
        raise RecordError(error.cause, f"{name}: {error.cause}: {error}") from error


def _images(images: Any) -> list[Any]:
    """The images, whether one was given or several."""
    if isinstance(images, _ONE_IMAGE):
        return [images]
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OU" and images.shape != (0,):
        return [images] if images.ndim < 4 else list(images)
    return _listed(images, "images", f"{_IMAGE}, or a sequence of these")


def _picture(image: Any, at: int) -> Picture:
    if isinstance(image, (str, os.PathLike)):
        path = os.fspath(image)
        try:
            return Path(path).read_bytes()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"images[{at}]: there is no file {path!r} (looked from {Path.cwd()}).") from error
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            raise OSError(f"images[{at}]: {path!r} cannot be read: {error}") from error
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, Image.Image):
        return image
    image = _as_array(image)
    if not isinstance(image, np.ndarray):
        raise TypeError(f"images[{at}] is {_kind(image)}; {_IMAGE}.")
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (2, 3, 4))):
        raise ValueError(
            f"images[{at}] is an array of {image.dtype} {list(image.shape)}; expected uint8 [H, W, 3] from 0 to 255."
        )
    return Image.fromarray(np.ascontiguousarray(image))


def _as_array(value: Any) -> Any:
    """An array of another library (JAX, PyTorch, pandas) as NumPy's; anything else as it is."""
    other = hasattr(value, "__array__") and not isinstance(value, (str, bytes, Image.Image))
    return np.asarray(value) if other else value


def check_columns(ids: np.ndarray, config: ExperimentConfig, tokenizer: Tokenizer | None) -> None:
    """Raises ValueError for ids [B, L] without the padding that the text tower reads as well."""
    length, needed = config.model.text.context_length, needed_columns(config)
    if ids.shape[1] == length or not len(ids):
        return
    pad_id = getattr(config.model.text, "pad_id", 0)
    whole = np.pad(ids, ((0, 0), (0, length - ids.shape[1])), constant_values=pad_id)
    if isinstance(needed, str) or needed(whole).max() > ids.shape[1]:
        why = needed if isinstance(needed, str) else "the tower reads the padding after a text"
        padding = f", {tokenizer.pad_id}" if tokenizer else ""  # the tower may call another id padding
        raise ValueError(
            f"texts are ids {list(ids.shape)}, but {why}. Pad them to [{len(ids)}, {length}] with the tokenizer's "
            f"padding{padding}."
        )


def _listed(values: Any, name: str, expected: str) -> list[Any]:
    iterable = isinstance(values, Iterable) and getattr(values, "ndim", 1) > 0
    if not iterable or isinstance(values, (str, bytes, bytearray, memoryview, Mapping, Set, io.IOBase)):
        raise TypeError(f"{name} is {_kind(values)}; {expected}.")
    return list(values)


def _role(text: Any) -> str:
    """ "string", "ids" of a text, one "id" of a text that was given alone, or "" for anything else."""
    if isinstance(text, str):
        return "string"
    text = _as_array(text)
    if isinstance(text, np.ndarray):
        return {0: "id", 1: "ids"}.get(text.ndim, "") if text.dtype.kind in "iu" and text.size else ""
    if isinstance(text, Sequence) and not isinstance(text, bytes):
        return "ids" if len(text) and all(map(_is_id, text)) else ""
    return "id" if _is_id(text) else ""


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _checked_ids(ids: np.ndarray, length: int, vocab_size: int) -> np.ndarray:
    ids = ids[None] if ids.ndim == 1 and ids.size else ids
    if ids.ndim != 2 or not 0 < ids.shape[1] <= length:
        raise ValueError(f"texts are ids {list(ids.shape)}; expected [B, L] with L from 1 to {length}.")
    for row, text in enumerate(ids):
        if text.min() < 0 or text.max() >= vocab_size:
            raise ValueError(
                f"texts[{row}] has ids from {text.min()} to {text.max()}; the vocabulary is 0 to {vocab_size - 1}."
            )
    return ids.astype(np.int32)


def _kind(value: Any) -> str:
    if value is None or isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {list(value.shape)}"
    return f"of type {type(value).__name__}"
