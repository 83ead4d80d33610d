"""Makes the frozen model that a student's loss learns from: any run with the same tokenizer and image size."""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh

from clipjax.config import ConfigError, ExperimentConfig, differences, require
from clipjax.data.embeddings import check_made_by, read_made_by
from clipjax.mesh import batch_sharding
from clipjax.models.teacher import EmbeddedTeacher, Teacher
from clipjax.training.precomputed import teacher_made_by
from clipjax.training.state import TrainedWeights, abstract_state, eval_variables


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
    naflex = [c.model.image.name == "naflex" for c in (config, trained.config)]
    image, wanted = trained.config.model.image, config.model.image
    require(
        naflex[0] == naflex[1] and (not naflex[0] or image.patch_size == wanted.patch_size),
        f"{where} has tower '{image.name}' (patches of {image.patch_size}), "
        f"this experiment '{wanted.name}' ({wanted.patch_size}): naflex towers read other batches than the others.",
    )
    embeddings = config.data.teacher_embeddings
    if embeddings and shapes_only:
        return embedded(read_made_by(embeddings))
    shapes = eval_variables(abstract_state(trained.config, mesh))
    teacher = Teacher(trained.config, shapes if shapes_only else trained.variables(mesh), batch_sharding(mesh))
    if not embeddings:
        return teacher
    made_by = read_made_by(embeddings)
    check_made_by(made_by, teacher_made_by(config, teacher, fingerprint, trained.fingerprint), where=embeddings)
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
    """A teacher whose embeddings were computed beforehand. made_by: see training/precomputed.py."""
    return EmbeddedTeacher(made_by["embed_dim"], made_by["logit_scale"])
