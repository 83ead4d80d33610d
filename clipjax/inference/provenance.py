"""Where a result comes from: data, prompts, pixels, tokenizer, tie rule, weights, program; whether two compare."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import inspect
import json
import os
import stat
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipjax.config import EvaluatorConfig, ExperimentConfig, SourceConfig, differences, map_paths, to_json_dict
from clipjax.data.sources import Source
from clipjax.eval import EVALUATORS
from clipjax.models import patch_budget
from clipjax.processes import gather_json
from clipjax.runs import Run
from clipjax.runs.own_files import fixed_part

CONTENT = "key, texts, label and image of each record"
DIGEST = 16  # bytes kept of each record's SHA-256
# What two results must have in common for their difference to be the models', and what belongs to the model itself.
MEASUREMENT = ("evaluator", "prompts", "split", "ties")
MODEL = ("transform", "tokenizer", "dtype", "weights")


class ReadRecords:
    """A source that remembers a checksum of every record that is read through it.

    Evaluators read all records anyway, so the split's checksum costs no second pass over the data.
    """

    def __init__(self, source: Source):
        self._source = source
        self._digests = np.zeros((len(source), DIGEST), np.uint8)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._source)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._source[index]
        digest = np.frombuffer(_digest(record)[:DIGEST], np.uint8)
        with self._lock:
            self._digests[index] = digest
        return record

    def checksum(self) -> tuple[str, int]:
        """(SHA-256 of the records read, in their order; how many) over all processes, which call it together."""
        own = base64.b64encode(self._digests.tobytes()).decode()
        parts = [np.frombuffer(base64.b64decode(part), np.uint8) for part in gather_json(own)]
        digests = np.max(parts, axis=0)  # a record that no process read is zero; the others' digests are equal
        read = int(digests.reshape(-1, DIGEST).any(axis=1).sum())
        return hashlib.sha256(digests.tobytes()).hexdigest(), read


def _digest(record: Mapping[str, Any]) -> bytes:
    """The SHA-256 of a record's key, label, texts, targets and encoded image."""
    content = hashlib.sha256()
    for name in sorted(record):
        value = record[name]
        if isinstance(value, np.ndarray):
            value = np.ascontiguousarray(value).tobytes()
        elif not isinstance(value, bytes):
            value = json.dumps(value, default=str).encode()
        content.update(f"{name}:{len(value)}:".encode() + value)
    return content.digest()


def settings_of(
    name: str, config: ExperimentConfig, run: Run, mesh: Mesh, sources: Mapping[str, Source], *, average: bool
) -> dict[str, Any]:
    """The provenance that is known before an evaluator reads any record; `finished` adds the rest.

    name: the evaluator's; sources: its open sources, as open_evaluators names them; average: whether the weights are
    averages.
    """
    evaluator, device = config.eval.evaluators[name], jax.devices()[0]
    tokenizer = {key: value for key, value in run.fingerprint.items() if key.startswith("tokenizer.")}
    return {
        "evaluator": _options(evaluator),
        "prompts": _prompts(evaluator, sources[name]),
        "split": {
            field: {"path": absolute_path(source.path), "split": source.split, "records": len(opened)}
            for (field, source), opened in zip(evaluator.sources.items(), sources.values(), strict=True)
        },
        "ties": getattr(evaluator, "ties", "against"),  # the model, or the first of equal scores
        "transform": transform(config),
        "tokenizer": {key.removeprefix("tokenizer."): value for key, value in tokenizer.items()}
        | {"context_length": config.model.text.context_length},
        "dtype": config.model.dtype,
        "weights": "average" if average else "raw",
        "checkpoint": {
            "path": str(run.directory),
            "step": run.step,
            "fingerprint_sha256": _sha256(run.fingerprint),
            "weights_sha256": run.weights_sha256(average=average),
        },
        "software": _software(evaluator),
        "device": {"kind": device.device_kind, "count": jax.device_count(), "processes": jax.process_count()},
        "mesh": dict(mesh.shape),
    }


def transform(config: ExperimentConfig) -> dict[str, Any]:
    """What becomes of an image before the model sees it."""
    budget = patch_budget(config.model.image)
    pixels = to_json_dict(config.data.pixels) | {"image_size": config.model.image.image_size}
    return pixels | ({"max_patches": budget.max_patches} if budget else {})


def identity(settings: Mapping[str, Any], evaluator: EvaluatorConfig, files: Sequence[Any]) -> str:
    """What a stored result must agree in to be taken for this one: settings, sources and files, but not their paths.

    files: files_of each source. They count by name, size and time of change, so that nothing is read.
    """
    split = {field: {**facts, "path": ""} for field, facts in settings["split"].items()}
    checkpoint = {**settings["checkpoint"], "path": ""}
    options = [to_json_dict(map_paths(config, lambda *_: "")) for config in evaluator.sources.values()]
    return _sha256({**settings, "split": split, "checkpoint": checkpoint, "files": files, "sources": options})


def finished(settings: dict[str, Any], read: Mapping[str, ReadRecords]) -> dict[str, Any]:
    """The provenance of a result, once its records have been read. All processes call it together.

    read: the sources, by the fields of the evaluator.
    """
    splits = {}
    for field, facts in settings["split"].items():
        checksum, count = read[field].checksum()
        splits[field] = {**facts, "read": count, "sha256": checksum, "sha256_of": CONTENT}
    return {**settings, "split": splits, "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())}


def comparable(
    a: Mapping[str, Any], b: Mapping[str, Any], *, across_models: bool = False
) -> dict[str, tuple[Any, Any]]:
    """What differs between how two results were obtained: {} if their difference is that of the weights.

    a, b: two provenances of results.json. Compared are the evaluator and its options, prompts, records, tie rule,
    pixels, tokenizer, dtype and whether the weights are averages. across_models: two models each have their own pixels,
    tokenizer, dtype and averages, so these are left out. Paths, checkpoints, versions, devices and dates may differ.
    Returns {dotted name: (value in a, value in b)}.
    """
    sections = MEASUREMENT if across_models else MEASUREMENT + MODEL
    leaves = [dict(_leaves({section: provenance.get(section) for section in sections})) for provenance in (a, b)]
    kept = [{name: value for name, value in one.items() if not name.endswith(".path")} for one in leaves]
    different = differences(*kept)
    # Results of earlier versions lack the checksums of the files that an option names.
    unknown = [name for name in different if name.endswith("_sha256") and any(name not in one for one in kept)]
    return {name: pair for name, pair in different.items() if name not in unknown}


def _leaves(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{prefix}{key}.")]
    return [(prefix.removesuffix("."), list(tree) if isinstance(tree, tuple) else tree)]


def absolute_path(path: str) -> str:
    """Where data are, whatever folder a command is started in; a dataset's name and a path in a bucket stay."""
    return os.path.abspath(path) if "://" not in path and os.path.exists(fixed_part(path) or ".") else path


def _options(evaluator: EvaluatorConfig) -> dict[str, Any]:
    """The evaluator's options, without its sources and the name under which it is published."""
    left_out = {*evaluator.sources, "published_as", "class_names"}
    contents: dict[str, str] = {}

    def named(field: str, value: str, kind: str) -> str:
        """A run's own copy of a file is the same file, one of other content is not."""
        if kind != "own":
            return value
        if "." not in field and os.path.isfile(value):
            contents[f"{field}_sha256"] = hashlib.sha256(Path(value).read_bytes()).hexdigest()
        return Path(value).name

    options = to_json_dict(map_paths(evaluator, named)) | contents
    return {key: value for key, value in options.items() if key.removesuffix("_sha256") not in left_out}


def _software(evaluator: EvaluatorConfig) -> dict[str, str]:
    """Versions, and the SHA-256 of the evaluator's file: results of one that is being written are not reused."""
    versions = {name: _version(name) for name in ("clipjax", "jax", "jaxlib")}
    try:
        source = inspect.getsource(inspect.getmodule(EVALUATORS[evaluator.name].make))
    except (OSError, TypeError):
        source = ""
    return versions | {"evaluator_sha256": hashlib.sha256(source.encode()).hexdigest()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a checkout that was never installed
        return "not installed"


def _prompts(evaluator: EvaluatorConfig, source: Source) -> dict[str, Any]:
    own = tuple(getattr(source, "templates", ()))
    prompts = list(evaluator.prompts(source.class_names, own))
    templates = list(getattr(evaluator, "templates", ())) or list(own)
    return {"count": len(prompts), "templates": templates, "sha256": _sha256(prompts)} if prompts else {"count": 0}


def files_of(config: SourceConfig, source: Source) -> list[Any]:
    """(name, size, time of change) of the files of a source; (address, size, version) of those in a bucket."""
    if bucket := getattr(source, "bucket", None):
        return sorted(map(list, bucket.blobs.values()))
    paths = [*getattr(source, "files", ()), *getattr(source, "read_files", list)()]
    if not paths and os.path.isdir(config.path):
        paths = [os.path.join(folder, name) for folder, _, names in os.walk(config.path) for name in names]
    found = []
    for path in sorted(map(str, paths)) or [config.path]:
        try:
            status = os.stat(path)
        except OSError:  # the source said so, or reading it will
            continue
        if stat.S_ISREG(status.st_mode):
            found.append([os.path.basename(path), status.st_size, status.st_mtime_ns])
    return found


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
