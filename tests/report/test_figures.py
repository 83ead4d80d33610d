"""The picture at the end of a run is drawn whatever the run's numbers are, completely or not at all."""

import warnings

import numpy as np
import pytest
from PIL import Image

from clipjax.report.figures import training_summary

ZERO_SHOT = {
    "top1": 0.5,
    "top5": 0.9,
    "chance": 0.01,
    "top1_low": 0.4,
    "top1_high": 0.6,
    "examples": 99,
    "classes": 100,
}
CURVE = [{"step": s, "loss": 5.0 / s} for s in range(1, 100)]


def draw(path, n=3, **changes):
    rng = np.random.default_rng(0)
    training_summary(
        path,
        **{
            "curve": CURVE,
            "similarity_before": rng.normal(size=(n, n)),
            "similarity_after": np.eye(n),
            "captions": ["a caption"] * n,
            "images": rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8),
            "zero_shot_before": {"top1": 0.01, "top5": 0.05},
            "zero_shot_after": ZERO_SHOT,
            **changes,
        },
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"captions": ["costs $5", r"$\frac{", "^_{}$$"]},
        {"curve": [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 0.5}], "zero_shot_before": {}},
        {"curve": [], "zero_shot_after": {"top1": 0.5}},
        {"similarity_before": np.full((3, 3), np.nan), "similarity_after": np.zeros((3, 3))},
        {"n": 1},
        {"first_step": 300},
    ],
    ids=["usual", "dollars", "one_point", "nothing_logged", "no_numbers", "one_pair", "first_snapshots_lost"],
)
def test_picture_is_1600_by_1000_whatever_the_run_gave(tmp_path, changes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(tmp_path / "summary.png", **changes)
    with Image.open(tmp_path / "summary.png") as image:
        image.load()
        assert image.size == (1600, 1000)
        assert image.format == "PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["summary.png"]


def test_a_drawing_that_fails_leaves_the_old_picture_and_nothing_else(tmp_path):
    path = tmp_path / "summary.png"
    path.write_bytes(b"the old picture")
    with pytest.raises(IndexError):
        draw(path, images=np.zeros((1, 16, 16, 3), np.uint8))
    assert path.read_bytes() == b"the old picture"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.png"]
