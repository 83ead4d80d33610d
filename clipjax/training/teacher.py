"""Opens the frozen model that a student's loss learns from: any run with the same tokenizer and image size."""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh

from clipjax.config import ExperimentConfig, require
from clipjax.data.embeddings import check_made_by, read_made_by
from clipjax.mesh import batch_sharding
from clipjax.models.teacher import EmbeddedTeacher, Teacher
from clipjax.runs import checkpoint as checkpoints
from clipjax.training.precomputed import teacher_made_by
from clipjax.training.state import abstract_state, eval_variables


def load_teacher(
    config: ExperimentConfig, mesh: Mesh, fingerprint: dict | None, *, shapes_only: bool = False
) -> Teacher | EmbeddedTeacher | None:
    """The teacher of config.loss.teacher, or None for a loss without one; its weights are let go again where
    config.data.teacher_embeddings are theirs, which is checked.

    fingerprint: the student's; the tokenizer, the context length and the image size must be the teacher's.
    None: not compared. Raises ConfigError naming what differs, CheckpointError where there is no checkpoint.
    """
    if not config.loss.teacher:
        return None
    manager, step = checkpoints.open_run(config.loss.teacher)
    trained, found = checkpoints.read_meta(manager, step)
    shared = [n for n in found if n.startswith("tokenizer.") or n in ("text.context_length", "image.image_size")]
    for name in shared if fingerprint else []:
        require(
            found[name] == fingerprint.get(name),
            f"config.loss.teacher={config.loss.teacher} has {name}={found[name]!r}, this experiment "
            f"{fingerprint.get(name)!r}: teacher and student must read the same tokens and images.",
        )
    naflex = [c.model.image.name == "naflex" for c in (config, trained)]
    image, wanted = trained.model.image, config.model.image
    require(
        naflex[0] == naflex[1] and (not naflex[0] or image.patch_size == wanted.patch_size),
        f"config.loss.teacher={config.loss.teacher} has tower '{image.name}' (patches of {image.patch_size}), "
        f"this experiment '{wanted.name}' ({wanted.patch_size}): naflex towers read other batches than the others.",
    )
    embeddings = config.data.teacher_embeddings
    if embeddings and shapes_only:
        manager.close()
        return embedded(read_made_by(embeddings))
    if shapes_only:
        variables = eval_variables(abstract_state(trained, mesh))
    else:
        variables = checkpoints.restore_variables(manager, step, trained, mesh)
    manager.close()
    teacher = Teacher(trained, variables, batch_sharding(mesh))
    if not embeddings:
        return teacher
    made_by = read_made_by(embeddings)
    check_made_by(made_by, teacher_made_by(config, teacher, fingerprint, found), where=embeddings)
    return embedded(made_by)


def embedded(made_by: dict[str, Any]) -> EmbeddedTeacher:
    return EmbeddedTeacher(made_by["embed_dim"], made_by["logit_scale"])


def teacher_fingerprint(workdir: str) -> dict[str, Any]:
    manager, step = checkpoints.open_run(workdir)
    found = checkpoints.read_meta(manager, step)[1]
    manager.close()
    return found
