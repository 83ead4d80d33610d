"""Train and evaluate CLIP- and SigLIP-style dual encoders in JAX.

    import clipjax

    model = clipjax.load("runs/emoji")            # a run, imported weights, or published files
    clipjax.models.get_preset("siglip_b16")       # the namespaces below are imported when they are first used

docs/api.md lists what each namespace offers; `clipjax --help` lists the commands.
"""

import importlib
from typing import Any

# In the order in which data passes through them. `import clipjax` imports none of them.
_NAMESPACES = (
    "config",
    "mesh",
    "data",
    "models",
    "losses",
    "optim",
    "training",
    "runs",
    "inference",
    "eval",
    "report",
    "planning",
    "interop",
)
__all__ = ["load", *_NAMESPACES]


def load(
    path: Any,
    *,
    step: str | int = "latest",
    family: str = "",
    preset: str = "",
    state_dict: str = "",
    mesh: Any = None,
    batch_size: int = 64,
) -> Any:
    """Weights from a run, an imported directory or published files, as functions of images and texts.

        model = clipjax.load("runs/emoji")
        similarity = model.embed_images([image]) @ model.embed_texts(["a cat"]).T

    Args:
      path: the workdir of a run, a directory that `clipjax import` wrote, or published weights (docs/interop.md).
      step: of a run: "latest", "best" or a step number.
      family, preset: of published weights, where their files do not say what they are.
      state_dict: of published weights, the model in a checkpoint that holds several: "model_ema".
      mesh: a jax.sharding.Mesh; None: all devices, with the whole weights on each.
      batch_size: how many examples are embedded at a time, over all devices.
    Returns: clipjax.inference.load.Loaded. Raises CheckpointError, InteropError, ConfigError for options that do not
    fit the path, or TypeError if path is not a path.
    """
    # Imported here, so that `import clipjax` stays fast and imports no JAX.
    import contextlib
    import os

    from clipjax.inference.load import load as load_weights
    from clipjax.runs import run
    from clipjax.storage import as_path

    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"clipjax.load({path!r}): expected the path of a run, of imported or of published weights.")
    place = as_path(path)
    published = {"family": family, "preset": preset, "state_dict": state_dict}
    if (place / "checkpoints").is_dir():
        _refuse(path, "a run or an import, which has its own configuration", "published weights", published)
        opened = run.open_run(path, step)
    elif run.is_inside_run(place):
        raise run.CheckpointError(f"clipjax.load({str(path)!r}):{run.hint(place, 'step')}")
    elif run.is_workdir(place):
        raise run.CheckpointError(f"clipjax.load({str(path)!r}): the run has saved no checkpoint yet.")
    else:
        kind = "published weights, which have no steps"
        _refuse(path, kind, "runs", {"step": "" if step == "latest" else step})
        from clipjax.interop.foreign import open_foreign

        opened = contextlib.nullcontext(open_foreign(str(path), family, preset, state_dict))
    with opened as weights:
        return load_weights(weights, mesh=mesh, batch_size=batch_size)


def _refuse(path: Any, kind: str, others: str, options: dict[str, Any]) -> None:
    """Raises ConfigError for an option that is set and of no use for what the path holds."""
    from clipjax.config import ConfigError

    given = [f"{name}={value!r}" for name, value in options.items() if value != ""]
    if given:
        raise ConfigError(
            f"clipjax.load({str(path)!r}, {', '.join(given)}): {path} is {kind}; {' and '.join(options)} "
            f"{'is' if len(options) == 1 else 'are'} for {others}. Leave {'it' if len(given) == 1 else 'them'} out."
        )


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES:
        return importlib.import_module(f"clipjax.{name}")
    raise AttributeError(f"module 'clipjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
