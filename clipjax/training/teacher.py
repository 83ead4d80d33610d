"""Opens the frozen model that loss "distill" learns from: any run with the same tokenizer and image size."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipjax.config import ExperimentConfig, require
from clipjax.data.embeddings import check_made_by, read_made_by
from clipjax.losses import LOSSES
from clipjax.mesh import batch_sharding
from clipjax.models import DualEncoder, patch_budget
from clipjax.models.pixels import image_of, normalize_pixels
from clipjax.runs import checkpoint as checkpoints
from clipjax.training.precomputed import teacher_made_by
from clipjax.training.state import abstract_state, eval_variables


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen dual encoder whose similarities another one learns from."""

    config: ExperimentConfig  # the teacher's own
    variables: Any  # {"params", "batch_stats"} on the mesh; or their shapes, to plan with
    activations: jax.sharding.Sharding | None = None

    def embed(self, variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """{"teacher_image_embedding", "teacher_text_embedding" [B, D], "teacher_logit_scale" ()}; traceable."""
        pixels, model = self.config.data.pixels, self.config.model
        image = normalize_pixels(image_of(batch), pixels.mean, pixels.std, jnp.dtype(model.dtype))
        out = DualEncoder(model, self.activations).apply(variables, image=image, text=batch["text"])
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


def load_teacher(
    config: ExperimentConfig, mesh: Mesh, fingerprint: dict | None, *, shapes_only: bool = False
) -> Teacher | EmbeddedTeacher | None:
    """The teacher of config.loss.teacher, or None for a loss without one; its weights are let go again where
    config.data.teacher_embeddings are theirs, which is checked.

    fingerprint: the student's; the tokenizer, the context length and the image size must be the teacher's.
    None: not compared. Raises ConfigError naming what differs, CheckpointError where there is no checkpoint.
    """
    if "teacher_image_embedding" not in LOSSES[config.loss.name].needs:
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
    image, wanted = trained.model.image, config.model.image
    patches = [budget.patch_size if (budget := patch_budget(tower)) else None for tower in (image, wanted)]
    require(
        patches[0] == patches[1],
        f"config.loss.teacher={config.loss.teacher} has tower '{image.name}' and this experiment '{wanted.name}': they "
        f"read batches of patches of {patches[0]} and {patches[1]} pixels (None: square images), but teacher and "
        "student read the same batch.",
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
