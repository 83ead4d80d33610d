"""Compares clipjax with the original library: the same random numbers, and a picture and captions end to end."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from clipjax.config import ExperimentConfig, ModelConfig
from clipjax.data.images.naflex import eval_patches
from clipjax.data.images.transforms import eval_image
from clipjax.data.tokenizers import make_tokenizer
from clipjax.interop.foreign import Foreign
from clipjax.interop.originals import ORIGINALS, Original, Outputs, Pixels, Tokens
from clipjax.mesh import to_host
from clipjax.models import DualEncoder, image_tower, patch_budget
from clipjax.models.pixels import Patches, image_of, normalize_pixels
from clipjax.models.towers import towers_of
from clipjax.models.towers.naflex import patch_mask

EXAMPLES = 4
PICTURE = (97, 61)  # width and height: odd, not square, and a multiple of no patch
# The first decides; the second shows what is done to capitals, punctuation and letters with accents.
CAPTIONS = ("a photo of two cats and a red dog", "A photo of two Cats, 1 dog's ball & a café!")
# Largest differences of the same numbers, and end to end, where processors round to 8 bits in several ways.
COSINE, RELATIVE = 1e-4, 1e-3
TOLERANCE = dict(max_levels=4.0, mean_levels=0.1, cosine_error=1e-3)  # levels of 255
Run = Callable[[Pixels, np.ndarray], Outputs]


def parity_report(foreign: Foreign, variables: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """(content of parity.json, lines about it): the largest differences of embeddings, logits, pixels and tokens.

    variables: from foreign.variables. Where the original library is missing or does not run, both say why. "agrees" is
    False where a difference is beyond its tolerance: "differences" lists those that end an import, the lines warn of
    others, such as a tokenizer without the cleaning or the end of text that the weights were trained with.
    """
    model = foreign.config.model
    image, text = _random_inputs(model)
    load = ORIGINALS.get(foreign.family.format)
    if load is None or not foreign.source.path.is_dir():
        why = "no original library reads these files by themselves"
        return {"compared": False, "why": why}, f"No parity report: {why}."
    try:
        original = load(foreign)
        theirs = original.forward(original.images(image), original.texts(text))
    except ModuleNotFoundError as error:
        why = f"the Python module {error.name} is missing"
        if error.name is None:  # transformers raises it so for what a module of its own needs
            why = f"the original library cannot be imported ({type(error).__name__}: {error})"
        return {"compared": False, "why": why}, (
            f"No parity report: {why}. Install or update the original library, and import again to compare embeddings."
        )
    except (ImportError, RuntimeError) as error:
        why = f"{type(error).__name__}: {error}"
        return {"compared": False, "why": why}, f"No parity report: the original library does not run here ({why})."
    run = _ours(model, variables)
    ours = run(image, text)
    errors = {name: compare(ours[name], theirs[name]) for name in ours}
    line = "  ".join(f"{name} {e['max_abs_error']:.1e} (cosine {e['cosine_error']:.1e})" for name, e in errors.items())
    differences = [
        f"{name} of the same random inputs: cosine error {error['cosine_error']:.1e}, tolerance {COSINE:.0e}"
        for name, error in errors.items()
        if not error["cosine_error"] <= COSINE
    ]
    if "logits" in theirs:
        error, tolerance = errors["logits"]["max_abs_error"], RELATIVE * max(1.0, float(np.abs(theirs["logits"]).max()))
        if not error <= tolerance:
            differences.append(f"logits of the same random inputs: difference {error:.1e}, tolerance {tolerance:.1e}")
    pictures, seen, more = _compare_picture(foreign.config, original, run, text)
    texts, read, others = _compare_captions(foreign.config, original, run, image)
    differences += [*more, *others]
    agrees = not differences and "WARNING" not in f"{seen}{read}"
    document = {
        "compared": True,
        "outputs": errors,
        "end_to_end": {"picture": pictures, "captions": texts, "tolerance": TOLERANCE},
        "agrees": agrees,
        "differences": differences,
    }
    return document, f"Largest difference from the original: {line}\nEnd to end: {seen}; {read}"


def compare(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """The largest absolute difference, and the largest 1 - cosine of two rows, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosine = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return {"max_abs_error": float(np.abs(a - b).max()), "cosine_error": float((1 - cosine).max())}


def odd_picture() -> Image.Image:
    """The same RGB picture every time, of size PICTURE: slopes, an edge and noise."""
    width, height = PICTURE
    y, x = np.mgrid[:height, :width] / width
    levels = np.stack([x, y, 1 - x], -1) * 200
    levels[height // 4 : height // 2, width // 3 : width // 2] = [199, 20, 90]
    levels += np.random.default_rng(0).integers(0, 56, levels.shape)
    return Image.fromarray(levels.astype(np.uint8))


def _compare_picture(
    config: ExperimentConfig, original: Original, run: Run, text: np.ndarray
) -> tuple[dict[str, Any], str, list[str]]:
    """(entry of the report, words about it, differences beyond the tolerance) of odd_picture."""
    picture = odd_picture()
    if "image" not in towers_of(config.model):
        why = "the model has no image tower"
        return {"compared": False, "why": why}, f"no picture compared: {why}", []
    try:
        theirs, pixels = original.process(picture)
    except Exception as error:  # whatever their code raises, the report says it
        why = f"the original's image processor cannot be loaded or run ({type(error).__name__}: {error})"
        return {"compared": False, "why": why}, f"no picture compared: {why}", []
    ours, what = _prepared(picture, config), "a picture of {} x {} pixels".format(*PICTURE)
    found, wanted = (_values(each) for each in (ours, pixels))
    if found.shape != wanted.shape:
        shapes = f"the original's processor makes pixels {list(wanted.shape)}, clipjax {list(found.shape)}"
        return {"compared": True, "shapes_differ": shapes}, shapes, [f"{what}: {shapes}"]
    levels = np.abs(found - wanted).reshape(-1, 3) * np.array(config.data.pixels.std) * 255
    embedded = original.forward(theirs, original.texts(text[:1]))["image_embedding"]
    entry = {
        "max_levels": float(levels.max()),
        "mean_levels": float(levels.mean()),
        "cosine_error": compare(run(_rows(ours), text)["image_embedding"][:1], embedded)["cosine_error"],
    }
    beyond = [
        f"{what}, {name}: {entry[name]:.2g}, tolerance {most:.2g}"
        for name, most in TOLERANCE.items()
        if not entry[name] <= most
    ]
    words = f"{what} differs by {entry['max_levels']:.1f} levels of 255 at most, cosine {entry['cosine_error']:.1e}"
    return {"compared": True, **entry}, words, beyond


def _compare_captions(
    config: ExperimentConfig, original: Original, run: Run, image: Pixels
) -> tuple[dict[str, Any], str, list[str]]:
    """(entry of the report, words about it, differences that end an import) of CAPTIONS."""
    has_text = "text" in towers_of(config.model)
    if not (has_text and config.tokenizer.path):
        why = "no tokenizer came with the weights" if has_text else "the model has no text tower"
        return {"compared": False, "why": why}, f"no caption compared: {why}", []
    length = config.model.text.context_length
    tokenizer = make_tokenizer(config.tokenizer, length)
    first = original.images(jax.tree.map(lambda array: array[:1], image))
    entries, words, beyond = {}, [], []
    for caption in CAPTIONS:
        try:
            tokens = original.tokenize(caption, length)
        except Exception as error:  # whatever their code raises, the report says it
            why = f"the original's tokenizer cannot be loaded or run ({type(error).__name__}: {error})"
            return {"compared": False, "why": why}, f"no caption compared: {why}", []
        ours = tokenizer([caption])
        equal = tokens.ids.shape == ours.shape and bool((tokens.ids == ours)[tokens.inside].all())
        found = run(image, np.repeat(ours, EXAMPLES, 0))["text_embedding"][:1]
        # Some libraries' tokenizers also return a mask of padding, which their model may not have been trained with.
        given = (tokens.theirs, original.texts(tokens.ids))
        errors = [compare(found, original.forward(first, each)["text_embedding"])["cosine_error"] for each in given]
        entries[caption] = {"tokens_equal": equal, "cosine_error": min(errors), "cosine_error_as_called": errors[0]}
        both = f"'{caption}' becomes {_text_of(ours)}, the original's {_text_of(tokens.ids)}, cosine {min(errors):.1e}"
        if equal and min(errors) <= TOLERANCE["cosine_error"]:
            words.append(f"'{caption}' becomes the same tokens, cosine {min(errors):.1e}")
            if not errors[0] <= TOLERANCE["cosine_error"]:
                words.append(
                    f"WARNING: cosine {errors[0]:.1e} with the padding mask that the original's tokenizer returns"
                )
        elif caption == CAPTIONS[0] and (equal or not _same_words(ours, tokens, tokenizer)):
            words.append(both)
            beyond.append(both)
        else:
            words.append(f"WARNING: {both}")
    return {"compared": True, **entries}, "; ".join(words), beyond


def _same_words(ours: np.ndarray, tokens: Tokens, tokenizer: Any) -> bool:
    """Whether the ids differ only in special tokens, and in what these leave no room for."""
    special = tokens.special | {tokenizer.pad_id, tokenizer.eos_id}
    found, wanted = ([i for i in ids[0].tolist() if i not in special] for ids in (ours, tokens.ids))
    room = min(len(found), len(wanted))
    return abs(len(found) - len(wanted)) <= 2 and room > 0 and found[:room] == wanted[:room]


def _ours(model: ModelConfig, variables: dict[str, Any]) -> Run:
    """Our outputs of EXAMPLES images and texts, or of those that the model has a tower for."""
    apply, towers = jax.jit(DualEncoder(model).apply), towers_of(model)

    def run(image: Pixels, text: np.ndarray) -> Outputs:
        given = {"image": jax.tree.map(jnp.asarray, image), "text": jnp.asarray(text)}
        out = apply(variables, **{side: given[side] for side in towers})
        out = jax.tree.map(np.asarray, to_host(out))
        outputs = {f"{side}_embedding": getattr(out, f"{side}_embedding") for side in towers}
        if len(towers) == 1:
            return outputs
        return outputs | dict(logits=out.logit_scale * out.image_embedding @ out.text_embedding.T + out.logit_bias)

    return run


def _prepared(picture: Image.Image, config: ExperimentConfig) -> Pixels:
    """One picture as clipjax.load prepares it."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    pixels, budget = config.data.pixels, patch_budget(config.model.image)
    if budget:
        batch = {name: column[None] for name, column in eval_patches(file.getvalue(), budget, pixels).items()}
    else:
        batch = {"image": eval_image(file.getvalue(), config.model.image.image_size, pixels)[None]}
    return jax.tree.map(np.asarray, normalize_pixels(image_of(batch), pixels.mean, pixels.std))


def _values(pixels: Pixels) -> np.ndarray:
    """The pixels that count: without padding."""
    if not isinstance(pixels, Patches):
        return pixels
    return pixels.pixels[np.asarray(patch_mask(jnp.asarray(pixels.spatial_shape), pixels.pixels.shape[1]))]


def _rows(pixels: Pixels) -> Pixels:
    return jax.tree.map(lambda array: np.repeat(array, EXAMPLES, 0), pixels)


def _text_of(ids: np.ndarray) -> str:
    return f"{ids[0].tolist()[:24]}"


def _random_inputs(model: ModelConfig) -> tuple[Pixels, np.ndarray]:
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
