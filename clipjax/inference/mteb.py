"""Weights behind the encoder interface of MTEB, whose image benchmark they then run (docs/mteb.md).

    import clipjax, mteb
    from clipjax.inference.mteb import MtebEncoder

    model = MtebEncoder(clipjax.load("runs/mine"), name="me/mine")
    mteb.evaluate(model, mteb.get_tasks(tasks=["CIFAR10ZeroShot"]))

Only the metadata and similarities import mteb and torch, which mteb has loaded by then.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from clipjax.inference.load import Loaded

PARAMETER_BYTES = 4  # float32


class MtebEncoder:
    """An encoder of images, texts, and pairs of both, as mteb.models.EncoderProtocol describes one (mteb 2)."""

    def __init__(self, model: Loaded, name: str = "clipjax/model", revision: str = "local", **_: Any):
        """model: what clipjax.load returns. name ("organisation/model"), revision: mteb files results under them."""
        self.model, self.name, self.revision = model, name, revision

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        **_: Any,
    ) -> np.ndarray:
        """[N, embed_dim] float32 of unit length, a row for each input in order; no inputs give [0, embed_dim].

        inputs: batches, such as a torch DataLoader gives, with "image" (PIL images), "text" (strings) or both. An input
        with both has the normalised mean of the two embeddings. The other arguments, which mteb passes, change nothing:
        texts are embedded without instructions. Raises ValueError for a batch with neither.
        """
        rows = [np.zeros((0, self.model.config.model.embed_dim), np.float32)]
        for batch in inputs:
            found = [embed(batch[key]) for key, embed in self._towers().items() if key in batch]
            if not found:
                raise ValueError(
                    f"A batch has the columns {', '.join(map(repr, batch))}; clipjax embeds 'image' and 'text'."
                )
            rows.append(found[0] if len(found) == 1 else _unit(sum(found)))
        return np.concatenate(rows)

    def _towers(self) -> dict[str, Callable[[Any], np.ndarray]]:
        return {
            "image": lambda images: self.model.embed_images(list(images)),
            "text": lambda texts: self.model.embed_texts(list(texts)),
        }

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """[N, M] torch tensor: the cosine of each of [N, D] (or [D]) with each of [M, D] (or [D])."""
        import torch

        return torch.from_numpy(_unit(embeddings1) @ _unit(embeddings2).T)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """[N] torch tensor: the cosine of each row of [N, D] with the same row of the other."""
        import torch

        return torch.from_numpy(np.sum(_unit(embeddings1) * _unit(embeddings2), axis=1))

    @functools.cached_property
    def mteb_model_meta(self) -> Any:
        """The mteb.ModelMeta that results are filed with."""
        import jax
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        config = self.model.config.model
        parameters = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(self.model.params))
        known = {
            "name": self.name,
            "revision": self.revision,
            "n_parameters": parameters,
            "memory_usage_mb": parameters * PARAMETER_BYTES / 2**20,
            "max_tokens": float(config.text.context_length),
            "embed_dim": config.embed_dim,
            "framework": [],
            "similarity_fn_name": ScoringFunction.COSINE,
            "use_instructions": False,
            "modalities": ["image", "text"],
        }
        return ModelMeta.create_empty(overwrites=known)


def _unit(rows: Any) -> np.ndarray:
    """[N, D] float32 of unit length, of an array or a torch tensor [N, D] or [D]."""
    rows = np.atleast_2d(np.asarray(rows, np.float32))
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
