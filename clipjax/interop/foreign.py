"""Weights from other libraries, as a configuration and as arrays on a mesh."""

from __future__ import annotations

from typing import Any, NamedTuple

from absl import logging
from jax.sharding import Mesh

from clipjax.config import DataConfig, ExperimentConfig
from clipjax.interop.convert import read_variables
from clipjax.interop.families import Family, check_towers, recognise, weights
from clipjax.interop.names import InteropError, Meaning, check_tensors, flatten, their_shapes
from clipjax.interop.source import Source, open_weights
from clipjax.interop.tokenizer_files import no_tokenizer
from clipjax.mesh import make_mesh
from clipjax.models.presets import get_preset
from clipjax.models.towers import towers_of
from clipjax.training.state import abstract_state, eval_variables


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


def open_foreign(path: str, family: str = "", preset: str = "", state_dict: str = "") -> Foreign:
    """Opens a file or directory and checks every tensor's name and shape, without reading numbers.

    family: a row of FAMILIES; "" to recognise it. preset: the model, where no configuration says it. state_dict: see
    open_weights.
    A warning says where no tokenizer was found, and which files there are. Raises InteropError naming what is missing,
    unexpected, of another shape, or not supported by clipjax.
    """
    source = open_weights(path, state_dict)
    name, row = recognise(source.description, family)
    meaning = _preset_meaning(source, row, preset) if preset else read_meaning(source, name, row)
    check_towers(name, row, meaning.model)
    tokenizer = meaning.tokenizer
    if tokenizer.path:
        tokenizer = type(tokenizer)(**{**vars(tokenizer), "path": str(source.directory / tokenizer.path)})
    elif "text" in towers_of(meaning.model):
        logging.warning("%s", no_tokenizer(path, name, source.description.beside, preset))
    config = ExperimentConfig(model=meaning.model, data=DataConfig(pixels=meaning.pixels), tokenizer=tokenizer)
    parameters = flatten(eval_variables(abstract_state(config, make_mesh(config.mesh))))
    expected = their_shapes(row.tensors(meaning.model), meaning.model, parameters)
    check_tensors(weights(row, source.tensors), expected, where=str(path), family=name)
    return Foreign(source, name, row, meaning, config)


def _preset_meaning(source: Source, row: Family, preset: str) -> Meaning:
    model = get_preset(preset)
    return Meaning(model, row.read_pixels(source.description, model) if row.read_pixels else row.pixels)


def read_meaning(source: Source, name: str, row: Family) -> Meaning:
    """What the family reads from the files. Raises InteropError where their configuration is not of this family."""
    try:
        return row.read(source.description)
    except (KeyError, TypeError) as error:
        raise InteropError(
            f"{source.path} is not configured as a model of family '{name}': {type(error).__name__} {error}."
        ) from error
