"""Weights on a mesh as functions: embed images and texts, give hidden states, evaluate.

    embed_images, embed_texts = make_embed(config, mesh)
    image_embedding = embed_images(variables, image)

`clipjax.load` returns such functions for one path; `clipjax eval` and `clipjax embed` are the commands.
"""

from clipjax.inference.embed import Encoded, global_batches, make_embed, make_encode
from clipjax.inference.evaluate import make_evaluate
from clipjax.inference.load import Loaded, load
from clipjax.inference.precompute import embed_source
from clipjax.inference.provenance import comparable
from clipjax.inference.session import EvalSession, Evaluation, evaluate_run

__all__ = [
    "Encoded",
    "EvalSession",
    "Evaluation",
    "Loaded",
    "comparable",
    "embed_source",
    "evaluate_run",
    "global_batches",
    "load",
    "make_embed",
    "make_encode",
    "make_evaluate",
]
