"""The page of `clipjax eval`: one HTML file that loads nothing, in the look of the runs' report."""

from __future__ import annotations

import base64
import json
import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipjax.files import write_text
from clipjax.report.page import environment


def write_html(
    path: str | Path,
    *,
    title: str,
    results: dict[str, dict[str, Any]],
    config: dict[str, Any],
    notes: dict[str, Any],
    figures: Sequence[str | Path] = (),
) -> None:
    """Writes the page.

    results: {evaluator: {metric: value}}. config: the experiment's, as JSON. notes: {name: JSON value}, shown folded,
    as config is. figures: image files. Whatever is missing in these is left out of the page.
    """
    page = environment().get_template("eval.html").render(
        title=title,
        pixels=_pixels(config),
        results=results,
        evaluators=config.get("eval", {}).get("evaluators", {}),
        figures=[(Path(figure).name, _data_uri(Path(figure))) for figure in figures],
        notes={
            name: json.dumps(value, indent=2, sort_keys=True, default=str)
            for name, value in {**notes, "config": config}.items()
        },
    )  # fmt: skip
    write_text(path, page)


def _data_uri(path: Path) -> str:
    kind = mimetypes.guess_type(path)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _pixels(config: dict[str, Any]) -> str:
    pixels, image = config.get("data", {}).get("pixels"), config.get("model", {}).get("image", {})
    if not pixels:
        return ""
    resize = {"squash": "squashed", "center_crop": "resized and cropped at the centre"}.get(pixels.get("resize"), "")
    mean, std = ([round(value, 4) for value in pixels.get(name, ())] for name in ("mean", "std"))
    size = image.get("image_size", "?")
    shape = f"{resize} to {size} x {size}"
    if "max_patches" in image:
        p = image["patch_size"]
        shape = f"of their own aspect ratio, at most {image['max_patches']} patches of {p} x {p}"
    return f"Images: {shape} ({pixels.get('interpolation')}), mean {mean}, std {std}."
