"""Finds the model among a file's tensors: prefixes that wrappers leave, and checkpoints with more than one model.

torch.compile, DistributedDataParallel, FSDP, Lightning and training scripts put a prefix before every name, and a
checkpoint may hold a model, its moving average and the optimizer's state. Every family has its temperature at the top
of the model, so that what precedes this name is the prefix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from absl import logging

from clipjax.interop.names import InteropError

TOP = ("logit_scale", "temperature")  # the latter in ALIGN
# Parts of a name that only a wrapper or the pickle of a whole module adds, wherever they occur.
WRAPPERS = {
    *("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"),
    *("_modules", "_parameters", "_buffers"),
}
AVERAGE = re.compile(r"(?<![a-z])(ema|swa|averaged?|shadow)(?![a-z])", re.IGNORECASE)
# What a training script keeps beside a model: no one expects it to be imported.
TRAINING = re.compile(
    r"(^|\.)(optim|scheduler|lr_sched|.*scaler|.*rng|random|callbacks|loops|n_averaged|hyper_param|(global_)?step)"
)
INNER = ("module", "model", "net", "clip")  # what a training script calls a model without a temperature
CONTAINERS = ("state_dict", "model", "model_state_dict")
MIN_SHARE = 0.1  # a model has at least this share of the tensors of the largest one in the file


def model_tensors(tensors: Mapping[str, Any], where: str, state_dict: str = "") -> dict[str, Any]:
    """name -> tensor of the model in a file, under its own names.

    tensors: every tensor of the file; where: the file, for messages; state_dict: the prefix to read, where the file
    holds several models. A moving average beside a model is not read, and a warning says so. Raises InteropError where
    several models are equally likely, or none has the prefix.
    """
    named: dict[str, Any] = {}
    for name, tensor in tensors.items():
        plain = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if plain in named:
            raise InteropError(
                f"{where} has two tensors that are called {plain} without their wrappers: {name} is one."
            )
        named[plain] = tensor
    prefixes = _prefixes(named)
    prefix = _chosen(prefixes, where, state_dict) if prefixes or state_dict else _container(named)
    own = {name.removeprefix(prefix): tensor for name, tensor in named.items() if name.startswith(prefix)}
    _warn_of_others(named, prefixes, prefix, where)
    unwrapped = {".".join(part for part in name.split(".") if part != "module"): t for name, t in own.items()}
    return unwrapped if len(unwrapped) == len(own) else own


def _prefixes(named: Mapping[str, Any]) -> list[str]:
    """What precedes a model's temperature: "" or "model.", one for each model in the file."""
    for top in TOP:
        found = [name.removesuffix(top) for name in named if name == top or name.endswith(f".{top}")]
        # A temperature inside another model is a layer's (scaled cosine attention).
        found = [p for p in found if not any(p != q and p.startswith(q) for q in found)]
        if found:
            sizes = {p: sum(name.startswith(p) for name in named) for p in found}
            return [p for p, size in sizes.items() if size >= MIN_SHARE * max(sizes.values())]
    return []


def _chosen(prefixes: list[str], where: str, state_dict: str) -> str:
    listed = ", ".join(f"'{prefix.rstrip('.')}'" for prefix in prefixes)
    if state_dict:
        plain = "".join(f"{part}." for part in state_dict.split(".") if part and part not in WRAPPERS)
        if plain not in prefixes:
            raise InteropError(f"{where} has no model under --state_dict={state_dict}. It has {listed or 'none'}.")
        return plain
    likely = [prefix for prefix in prefixes if not AVERAGE.search(prefix)] or prefixes
    if len(likely) > 1:
        raise InteropError(f"{where} holds several models: {listed}. Name one, such as --state_dict={likely[0][:-1]}.")
    return likely[0]


def _container(named: Mapping[str, Any]) -> str:
    """The prefix of a state dict without a temperature: of one tower, or refused later by the names that it lacks."""
    prefix = next((f"{key}." for key in CONTAINERS if any(name.startswith(f"{key}.") for name in named)), "")
    own = [name for name in named if name.startswith(prefix)]
    while own:
        inner = next((p for p in INNER if all(name.startswith(f"{prefix}{p}.") for name in own)), "")
        if not inner:
            break
        prefix += f"{inner}."
    return prefix


def _warn_of_others(named: Mapping[str, Any], prefixes: list[str], prefix: str, where: str) -> None:
    """Says which models and tensors of a file are not read."""
    if not prefix:
        return
    others = [p for p in prefixes if p != prefix]
    for other in others:
        logging.warning(
            "%s: read the model '%s'. The file also has '%s'; to read that instead, pass --state_dict=%s.",
            *(where, prefix[:-1], other[:-1], other[:-1]),
        )
    left = [n for n in named if not n.startswith((prefix, *others)) and not TRAINING.search(n)]
    if left and prefixes:
        logging.warning(
            "%s: read the model '%s'. %d tensors outside it were not read, such as %s.",
            *(where, prefix[:-1], len(left), ", ".join(left[:3])),
        )
