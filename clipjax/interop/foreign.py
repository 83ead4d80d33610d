"""Other people's weights as a configuration and arrays on a mesh."""

from __future__ import annotations

from typing import Any, NamedTuple

from jax.sharding import Mesh

from clipjax.config import DataConfig, ExperimentConfig
from clipjax.interop.convert import read_variables
from clipjax.interop.families import FAMILIES, Family, check_towers, recognise, weights
from clipjax.interop.names import InteropError, Meaning, check_tensors, flatten, their_shapes
from clipjax.interop.source import Source, open_weights
from clipjax.mesh import make_mesh
from clipjax.models.presets import get_preset
from clipjax.training.state import abstract_state, eval_variables


class Foreign(NamedTuple):
    source: Source
    name: str  # the family's
    family: Family
    meaning: Meaning
    config: ExperimentConfig  # tokenizer.path is the file's, in source.directory

    def variables(self, mesh: Mesh) -> dict[str, Any]:
        """{"params", "batch_stats"} on the mesh; one parameter passes through the host at a time."""
        target = eval_variables(abstract_state(self.config, mesh))
        stored = weights(self.family, self.source.tensors)
        return {"batch_stats": {}} | read_variables(
            self.family.tensors(self.config.model), self.config.model, stored, target
        )


def open_foreign(path: str, family: str = "", preset: str = "") -> Foreign:
    """Opens and checks; reads no numbers. family, preset: where the files do not say.

    Raises InteropError naming what is missing, unexpected, misshapen or cannot be computed.
    """
    source = open_weights(path)
    name, row = recognise(source.description, family)
    meaning = Meaning(get_preset(preset), row.pixels) if preset else read_meaning(source, name, row)
    check_towers(row, meaning.model)
    tokenizer = meaning.tokenizer
    if tokenizer.path:
        tokenizer = type(tokenizer)(**{**vars(tokenizer), "path": str(source.directory / tokenizer.path)})
    config = ExperimentConfig(model=meaning.model, data=DataConfig(pixels=meaning.pixels), tokenizer=tokenizer)
    one = make_mesh(config.mesh)
    target = flatten(eval_variables(abstract_state(config, one)))
    expected = their_shapes(row.tensors(meaning.model), meaning.model, target)
    check_tensors(weights(row, source.tensors), expected, where=str(path), family=name)
    return Foreign(source, name, row, meaning, config)


def read_meaning(source: Source, name: str, row: Family) -> Meaning:
    """Raises InteropError where the files say something else than the family's do, or nothing."""
    try:
        return row.read(source.description)
    except (KeyError, TypeError) as error:
        raise InteropError(
            f"{source.path} is not configured as a model of family '{name}': {type(error).__name__} {error}."
        ) from error


def families_of(format: str) -> dict[str, Family]:
    return {name: family for name, family in FAMILIES.items() if family.format == format}
