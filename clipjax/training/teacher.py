"""Makes the frozen model that a student's loss learns from: any run with the same tokenizer and image size."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipjax.config import ConfigError, ExperimentConfig, differences, require
from clipjax.data.cut import WHOLE
from clipjax.data.embeddings import read_made_by
from clipjax.mesh import batch_sharding
from clipjax.models import DualEncoder, patch_budget
from clipjax.models.pixels import image_of, normalize_pixels
from clipjax.training.precomputed import compare_made_by, teacher_made_by
from clipjax.training.state import TrainedWeights, abstract_state, eval_variables


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen dual encoder whose similarities a student learns from."""

    config: ExperimentConfig  # the teacher's own
    variables: Any  # {"params", "batch_stats"} on the mesh; or their shapes, to plan with
    activations: jax.sharding.Sharding | None = None

    def embed(self, variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """{"teacher_image_embedding", "teacher_text_embedding" [B, D], "teacher_logit_scale" ()}; traceable."""
        pixels, model = self.config.data.pixels, self.config.model
        image = normalize_pixels(image_of(batch), pixels.mean, pixels.std, jnp.dtype(model.dtype))
        out = DualEncoder(model, self.activations).apply(variables, image=image, text=batch.get(WHOLE, batch["text"]))
        names = ("image_embedding", "text_embedding", "logit_scale")
        return {f"teacher_{name}": jax.lax.stop_gradient(getattr(out, name)) for name in names}


@dataclasses.dataclass(frozen=True)
class EmbeddedTeacher:
    """A Teacher whose embeddings were computed beforehand and come with the batch."""

    embed_dim: int
    logit_scale: float
    columns = ("teacher_image_embedding", "teacher_text_embedding")  # of the batch, [B, embed_dim] float32

    @property
    def variables(self) -> dict[str, Any]:
        return {}

    def embed(self, variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {name: batch[name] for name in self.columns} | {"teacher_logit_scale": jnp.float32(self.logit_scale)}


def needs_teacher(config: ExperimentConfig) -> bool:
    """Whether the loss compares with a teacher's embeddings."""
    return bool(config.loss.teacher)


def make_teacher(
    config: ExperimentConfig,
    mesh: Mesh,
    trained: TrainedWeights,
    fingerprint: dict[str, Any] | None,
    *,
    shapes_only: bool = False,
) -> Teacher | EmbeddedTeacher:
    """The teacher from an open run. With config.data.teacher_embeddings the weights are only compared with those that
    made the embeddings, and then dropped.

    fingerprint: the student's, whose tokenizer, context length and image size must be the teacher's; None: not
    compared. shapes_only: reads no weights, to plan with. Raises ConfigError naming what differs.
    """
    where = f"config.loss.teacher={config.loss.teacher}"
    if fingerprint is not None:
        check_same_inputs(trained.fingerprint, fingerprint, where)
    image, wanted = trained.config.model.image, config.model.image
    patches = [budget.patch_size if (budget := patch_budget(tower)) else None for tower in (image, wanted)]
    require(
        patches[0] == patches[1],
        f"{where} has tower '{image.name}' and this experiment '{wanted.name}': they read batches of patches of "
        f"{patches[0]} and {patches[1]} pixels (None: square images), but teacher and student read the same batch.",
    )
    embeddings = config.data.teacher_embeddings
    if embeddings and shapes_only:
        return embedded(read_made_by(embeddings))
    shapes = eval_variables(abstract_state(trained.config, mesh))
    teacher = Teacher(trained.config, shapes if shapes_only else trained.variables(mesh), batch_sharding(mesh))
    if not embeddings:
        return teacher
    made_by = read_made_by(embeddings)
    compare_made_by(made_by, teacher_made_by(config, teacher, fingerprint, trained.fingerprint), where=embeddings)
    return embedded(made_by)


def check_same_inputs(teacher: dict[str, Any], student: dict[str, Any], where: str) -> None:
    """Refuses a teacher that would read other tokens or images; both: fingerprints. Raises ConfigError."""
    shared = [n for n in teacher if n.startswith("tokenizer.") or n in ("text.context_length", "image.image_size")]
    theirs, ours = ({name: side.get(name) for name in shared} for side in (teacher, student))
    for name, (a, b) in differences(theirs, ours).items():
        raise ConfigError(
            f"{where} has {name}={a!r}, this experiment {b!r}: teacher and student must read the same tokens "
            "and images."
        )


def embedded(made_by: dict[str, Any]) -> EmbeddedTeacher:
    """A teacher whose embeddings were computed beforehand. made_by: see training/precomputed.py.

    Raises ConfigError for embeddings of a folder that says too little of them, as one of an image tower.
    """
    require(
        isinstance(made_by.get("embed_dim"), int) and isinstance(made_by.get("logit_scale"), float),
        "The manifest of config.data.teacher_embeddings has no embed_dim or no logit_scale, as of a teacher; make the "
        "embeddings again (clipjax embed --tower=teacher).",
    )
    return EmbeddedTeacher(made_by["embed_dim"], made_by["logit_scale"])
