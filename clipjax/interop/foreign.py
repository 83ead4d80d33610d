"""Weights from other libraries, as a configuration and as arrays on a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import logging
from jax.sharding import Mesh

from clipjax.config import ConfigError, DataConfig, ExperimentConfig, ModelConfig, PixelConfig, differences
from clipjax.interop.config_files import OPEN_CLIP, TRANSFORMERS
from clipjax.interop.convert import read_variables
from clipjax.interop.families import FAMILIES, Family, check_towers, recognise, weights
from clipjax.interop.names import InteropError, Meaning, check_tensors, computed_fields, flatten, their_shapes
from clipjax.interop.soundness import refuse_far_larger, sound
from clipjax.interop.source import Source, open_weights
from clipjax.interop.tokenizer_files import no_tokenizer
from clipjax.mesh import make_mesh
from clipjax.models.presets import get_preset
from clipjax.models.towers import towers_of
from clipjax.training.state import abstract_state, eval_variables

BIAS = -10.0  # config.model.logit_bias_init of a model whose file only has the trained number


class Foreign(NamedTuple):
    """Opened files whose family is known and whose tensors have been checked; no numbers are read yet."""

    source: Source
    name: str  # of the family
    family: Family
    meaning: Meaning
    config: ExperimentConfig  # with meaning's model, pixels and tokenizer; tokenizer.path is a path on this machine

    def variables(self, mesh: Mesh) -> dict[str, Any]:
        """{"params": tree, "batch_stats": tree} of jax.Array on the mesh, read one parameter at a time."""
        model = self.config.model
        target = eval_variables(abstract_state(self.config, mesh))
        tensors = weights(self.family, self.source.tensors)
        return {"batch_stats": {}} | read_variables(self.family.tensors(model), model, tensors, target)


def open_foreign(path: str, family: str = "", preset: str = "", state_dict: str = "", *, tell: bool = True) -> Foreign:
    """Opens a file or directory and checks every tensor's name and shape, without reading numbers.

    family: a row of FAMILIES; "" to recognise it. preset: the model, where no configuration says it. state_dict: see
    open_weights.
    tell: whether to warn that there is no tokenizer, listing the files that are there.
    Raises InteropError naming what is missing, unexpected, of another shape, or not supported by clipjax.
    """
    wanted = FAMILIES[family].format if family in FAMILIES else ""
    source = open_weights(path, state_dict, wanted)
    name, row = recognise(source.description, family)
    meaning = _preset_meaning(source, row, preset) if preset else read_meaning(source, name, row)
    if source.others and not family and not preset:
        _check_other_formats(source, name, meaning)
    meaning = _with_bias(meaning, row, source.tensors)
    check_towers(name, row, meaning.model)
    meaning = sound(meaning, source.path, name)
    refuse_far_larger(meaning, row, source.description, source.path, name)
    tokenizer = meaning.tokenizer
    if tokenizer.path:
        tokenizer = type(tokenizer)(**{**vars(tokenizer), "path": str(source.directory / tokenizer.path)})
    elif tell and "text" in towers_of(meaning.model):
        logging.warning("%s", no_tokenizer(path, name, source.description.beside, preset))
    config = ExperimentConfig(model=meaning.model, data=DataConfig(pixels=meaning.pixels), tokenizer=tokenizer)
    parameters = flatten(eval_variables(abstract_state(config, make_mesh(config.mesh))))
    expected = their_shapes(row.tensors(meaning.model), meaning.model, parameters)
    check_tensors(weights(row, source.tensors), expected, where=str(path), family=name)
    return Foreign(source, name, row, meaning, config)


def _with_bias(meaning: Meaning, row: Family, tensors: Mapping[str, Any]) -> Meaning:
    """A model whose file has a logit_bias has one, whether or not the configuration says so."""
    if meaning.model.logit_bias_init is not None or "logit_bias" not in weights(row, tensors):
        return meaning
    model = dataclasses.replace(meaning.model, logit_bias_init=BIAS)
    known = isinstance(model.image, row.image) and any(tensor.ours == "logit_bias" for tensor in row.tensors(model))
    return meaning._replace(model=model) if known else meaning


def _check_other_formats(source: Source, name: str, meaning: Meaning) -> None:
    """Says which of several files of weights was read. meaning: what it means as a model of family `name`.

    Raises InteropError where another library's configuration in the same directory describes another model: then
    --family must say which of them is meant.
    """
    own = source.weights.startswith("open_clip_")
    theirs = next((other for other in source.others if other.startswith("open_clip_") != own), "")
    if not theirs or not source.description.files.keys() >= {OPEN_CLIP, TRANSFORMERS}:
        logging.info("%s: read %s; %s not read.", source.path, source.weights, ", ".join(source.others))
        return
    try:
        other = open_weights(source.directory / theirs)
        family, row = recognise(other.description)
        model, pixels = read_meaning(other, family, row)[:2]
    except InteropError as error:
        logging.warning("%s: read %s as '%s'; %s not read: %s", source.path, source.weights, name, theirs, error)
        return
    both = (_essence(meaning.model, meaning.pixels), _essence(model, pixels))
    if differing := differences(*both):
        listed = ", ".join(f"{field}={a!r} and {b!r}" for field, (a, b) in list(differing.items())[:5])
        raise InteropError(
            f"{source.path} has models of two families, '{name}' ({source.weights}) and '{family}' ({theirs}), which "
            f"differ: {listed}. Name the one to read: --family={name} or --family={family}."
        )
    logging.warning(
        "%s: read %s as '%s'. %s is not read; --family=%s reads it instead.",
        *(source.path, source.weights, name, theirs, family),
    )


def _essence(model: ModelConfig, pixels: PixelConfig) -> dict[str, Any]:
    """What two configurations of one model must agree on: not the ways to say it in which libraries differ."""
    fields = computed_fields(model)
    if fields.get("text.eos_id") == model.text.vocab_size - 1:
        fields["text.eos_id"] = -1  # the largest id
    prepared = ("resize", "interpolation", "mean", "std")
    return fields | {f"pixels.{field}": getattr(pixels, field) for field in prepared}


def _preset_meaning(source: Source, row: Family, preset: str) -> Meaning:
    model = get_preset(preset)
    return Meaning(model, row.read_pixels(source.description, model) if row.read_pixels else row.pixels)


def read_meaning(source: Source, name: str, row: Family) -> Meaning:
    """What the family reads from the files. Raises InteropError where their configuration is not of this family."""
    try:
        return row.read(source.description)
    except (InteropError, ConfigError):
        raise
    except Exception as error:  # fields that are missing, or of any other type
        raise InteropError(
            f"{source.path} is not configured as a model of family '{name}': {type(error).__name__} {error!s:.200}."
        ) from error
