"""Train and evaluate CLIP- and SigLIP-style dual encoders in JAX. Start with README.md and `clipjax --help`."""

from typing import Any


def load(path: Any, **options: Any) -> Any:
    """Weights from a run, an imported directory or other people's files; see clipjax.inference.load.load for options.

    model = clipjax.load("runs/emoji"); model.embed_images([image]) @ model.embed_texts(["a cat"]).T
    """
    from clipjax.inference.load import load as read  # not before it is asked for: importing clipjax stays fast

    return read(path, **options)
