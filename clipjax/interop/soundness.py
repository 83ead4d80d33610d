"""Whether what files say of a model can be true, before anything of its size is made."""

from __future__ import annotations

from pathlib import Path

from clipjax.config import ConfigError, ModelConfig, build, check_values, flat, to_json_dict
from clipjax.config.errors import shown
from clipjax.interop.names import Description, Family, InteropError, Meaning, their_names, whole

MOST = 1 << 20  # of a width, a length or a size
MOST_PIECES = 1 << 24  # of a vocabulary
MOST_LAYERS = 512
MOST_POSITIONS = 1 << 20  # patches of an image


def sound(meaning: Meaning, path: Path, name: str) -> Meaning:
    """meaning, with every field of its model of the declared type and within its range, and of a size that occurs.

    name: of the family. Raises InteropError naming the field.
    """
    try:
        model = check_values(build(ModelConfig, to_json_dict(meaning.model), "model"), "model")
    except ConfigError as error:
        raise InteropError(f"{path} is not configured as a model of family '{name}': {error}") from error
    for field, value in flat(model).items():
        last = field.rpartition(".")[2]
        most = {"vocab_size": MOST_PIECES, "depth": MOST_LAYERS}.get(last, MOST)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and number > most:
                raise InteropError(f"{path}: model.{field}={shown(value)}; no model has more than {most:,}.")
    for side, part in (("image", model.image), ("text", model.text)):
        width, heads = getattr(part, "width", 0), getattr(part, "num_heads", 1)
        if width % heads:
            raise InteropError(f"{path}: model.{side}.num_heads={heads} does not divide the width {width}.")
    image = model.image
    side = getattr(image, "image_size", 0) // max(1, getattr(image, "patch_size", MOST) or MOST)
    if side * side > MOST_POSITIONS:
        raise InteropError(
            f"{path}: images of {image.image_size} pixels have {side * side:,} patches of {image.patch_size}; no model "
            f"reads more than {MOST_POSITIONS:,}."
        )
    return meaning._replace(model=model)


def refuse_far_larger(meaning: Meaning, row: Family, description: Description, path: Path, name: str) -> None:
    """Raises InteropError where the configured model has more than twice the tensors that the files hold.

    Such a model need not be made to say which are missing; making it could take hours.
    """
    found = {row.renamed(tensor) for tensor in description.shapes}
    expected = dict.fromkeys(
        whole(entry)[0]
        for tensor in row.tensors(meaning.model)
        for names in their_names(tensor, meaning.model)
        for entry in names
    )
    missing = [tensor for tensor in expected if tensor not in found]
    if len(missing) > len(found) + 100:
        raise InteropError(
            f"{path} does not hold a model of family '{name}' as configured: {len(missing):,} of its "
            f"{len(expected):,} tensors are missing, such as {', '.join(missing[:3])}."
        )
