"""Adapters (config.lora) as files of their own, without the model that they belong to.

peft      adapter_config.json and adapter_model.safetensors of the peft library, over the model of transformers that
          `--format=hf` would write: PeftModel.from_pretrained(CLIPModel.from_pretrained(base), directory)
adapters  adapters.safetensors with clipjax's own names, and adapters.json: for a model that transformers does not have
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.config import ExperimentConfig
from clipjax.interop.names import Family, InteropError, layers
from clipjax.interop.safetensors import write_safetensors
from clipjax.mesh import named_leaves
from clipjax.optim.layers import ADAPTERS, TEMPERATURE
from clipjax.training.lora import MATRICES

FORMATS = ("adapters", "peft")


def check_adapters(config: ExperimentConfig, format: str, part: Mapping[str, Any]) -> None:
    """Refuses a run whose adapters a format cannot hold; part: what the run trains (training/trainable.py).

    Raises InteropError.
    """
    if not config.lora.rank:
        raise InteropError(
            f"--format={format} is for runs with adapters (config.lora.rank), and this run has none. Export the whole "
            "model, for example with --format=hf."
        )
    others = [name for name in named_leaves(dict(part)) if name.split("/")[0] not in (ADAPTERS, *TEMPERATURE)]
    if format == "peft" and others:
        raise InteropError(
            f"--format=peft holds adapters alone, and this run also trained {', '.join(others[:3])}"
            + (f" and {len(others) - 3} more" if len(others) > 3 else "")
            + ". Use --format=adapters, which holds them too, or export the whole model, for example with --format=hf."
        )


def write_peft(directory: Path, config: ExperimentConfig, family: Family, adapters: Mapping[str, Any]) -> None:
    """Writes the two files of peft. family: of transformers, that holds the model; adapters: params["lora"]."""
    arrays = dict(_peft_arrays(config, family, adapters))
    modules = sorted({name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in arrays})
    content = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": config.init_from,
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": modules,  # whole names: the last part alone would also name matrices of pooling heads
    }
    (directory / "adapter_config.json").write_text(json.dumps(content, indent=2) + "\n")
    shapes = {name: array.shape for name, array in arrays.items()}
    write_safetensors(directory / "adapter_model.safetensors", shapes, arrays.items())


def _peft_arrays(
    config: ExperimentConfig, family: Family, adapters: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array): lora_A.weight [rank, in] and lora_B.weight [out, rank] of each adapted matrix of each layer."""
    places = {(part, whole): {} for part, whole, _ in MATRICES.values()}
    for matrix, (part, whole, index) in MATRICES.items():
        places[part, whole][matrix] = index or 0
    for tensor in family.tensors(config.model):
        tower, _, inside = tensor.ours.partition("/block_{i}/")
        part, _, whole = inside.removesuffix("/kernel").partition("/")
        if tower not in adapters or not inside.endswith("/kernel"):
            continue
        for matrix, index in places.get((part, whole), {}).items():
            for i in range(layers(tensor, config.model)):
                stacked = "blocks" in adapters[tower]
                block = adapters[tower]["blocks" if stacked else f"block_{i}"].get(part, {})
                if matrix not in block:
                    continue
                module = tensor.theirs[index].removesuffix(".weight").replace("{i}", str(i))
                for letter, name in (("a", "A"), ("b", "B")):
                    array = np.asarray(block[matrix][letter], np.float32)
                    array = array[i] if stacked else array
                    yield f"base_model.model.{module}.lora_{name}.weight", np.ascontiguousarray(array.T)


def write_adapters(directory: Path, config: ExperimentConfig, part: Mapping[str, Any]) -> None:
    """Writes all that the run trained, under clipjax's names; part: as trained() returns it, and their scale."""
    arrays = {name: np.asarray(leaf, np.float32) for name, leaf in named_leaves(part).items()}
    lora = config.lora
    content = {"base": config.init_from, "rank": lora.rank, "alpha": lora.alpha, "matrices": list(lora.matrices)}
    (directory / "adapters.json").write_text(json.dumps(content, indent=2) + "\n")
    shapes = {name: array.shape for name, array in arrays.items()}
    write_safetensors(directory / "adapters.safetensors", shapes, arrays.items())
