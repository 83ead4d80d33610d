"""snapshots/: the embeddings of a few fixed held-out pairs at every evaluation of a run, for its report.

snapshots/pairs.json says which pairs these are, snapshots/STEP.npz holds their embeddings at a step, and
snapshots/predictions.json what the last weights made of a larger sample. The first process writes them.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipjax.files import replacing, write_text
from clipjax.json_files import read_json_object
from clipjax.storage import as_path

FOLDER = "snapshots"
PAIRS, PREDICTIONS = f"{FOLDER}/pairs.json", f"{FOLDER}/predictions.json"


class Snapshot(NamedTuple):
    """The held-out pairs in the embedding space at one step; row i of image and text is pair i."""

    step: int
    image: np.ndarray  # [n, D] float32 of unit length, stored as float16
    text: np.ndarray  # [n, D]
    logit_scale: float  # by which the model multiplies cosines

    @property
    def similarity(self) -> np.ndarray:
        """[n, n] float32: the cosine of each image with each text."""
        return self.image @ self.text.T


def write_snapshot(workdir: str | Path, snapshot: Snapshot, pairs: str) -> None:
    """Writes snapshots/STEP.npz, whole or not at all. pairs: the "id" of pairs.json."""
    with replacing(as_path(workdir) / FOLDER / f"{snapshot.step}.npz") as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            image=snapshot.image.astype(np.float16),
            text=snapshot.text.astype(np.float16),
            logit_scale=np.float32(snapshot.logit_scale),
            pairs=np.str_(pairs),
        )


def read_snapshots(workdir: str | Path, pairs: str) -> list[Snapshot]:
    """The snapshots of the pairs with this id, by step; [] without any.

    Damaged files are left out, and so are those of other pairs: of a run whose evaluators were changed at a restart.
    """
    found = []
    for step, path in _files(workdir):
        try:
            with path.open("rb") as file, np.load(io.BytesIO(file.read()), allow_pickle=False) as arrays:
                if str(arrays["pairs"]) == pairs:
                    image, text = (arrays[name].astype(np.float32) for name in ("image", "text"))
                    found.append(Snapshot(step, image, text, float(arrays["logit_scale"])))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            continue
    return found


def drop_snapshots(workdir: str | Path, resume_step: int) -> None:
    """Removes what a killed run wrote beyond the checkpoint that it resumes from; everything for a run from step 0."""
    for step, path in _files(workdir):
        if step > resume_step or resume_step == 0:
            path.unlink()
    predictions = read_document(workdir, PREDICTIONS)
    if predictions and predictions.get("step", 0) > resume_step:
        (as_path(workdir) / PREDICTIONS).unlink()


def write_document(workdir: str | Path, name: str, document: dict[str, Any]) -> None:
    """Writes PAIRS or PREDICTIONS."""
    write_text(as_path(workdir) / name, json.dumps(document, ensure_ascii=False))


def read_document(workdir: str | Path, name: str) -> dict[str, Any] | None:
    """PAIRS or PREDICTIONS; None where there is none that can be read."""
    return read_json_object(as_path(workdir) / name) or None


def _files(workdir: str | Path) -> list[tuple[int, Path]]:
    paths = (as_path(workdir) / FOLDER).glob("*.npz")
    return sorted((int(path.stem), path) for path in paths if path.stem.isdecimal())
