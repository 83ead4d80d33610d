"""A frozen dual encoder whose similarities another one learns from."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from clipjax.config import ExperimentConfig
from clipjax.models.dual_encoder import DualEncoder
from clipjax.models.pixels import image_of, normalize_pixels


@dataclasses.dataclass(frozen=True)
class Teacher:
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
