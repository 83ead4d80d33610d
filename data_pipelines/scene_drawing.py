"""From a scene's content to pixels: places, sizes, tints, backgrounds and smooth outlines."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image, ImageDraw

from data_pipelines.scene_content import COLOURS, SHAPES, Content, Kind, Single

IMAGE_SIZE = 64  # pixels
_OVERSAMPLE = 4  # outlines are drawn this many times larger and averaged down
_RADII = ((5.5, 7.5), (9.5, 13.0))  # pixels, for each of SIZES
_PAIR_RADII = (7.0, 12.0)
_MIN_CONTRAST = 110.0  # Euclidean RGB distance between an object and what is behind it


def draw(content: Content, rng: np.random.Generator) -> Image.Image:
    """The scene as a 64 x 64 RGB picture; everything that the content leaves open is drawn from `rng`."""
    if isinstance(content, Single):
        kinds = [content.kind] * content.count
        radii = rng.uniform(*_RADII[content.size], size=content.count)
        centres = _scattered_centres(radii, rng)
    else:
        kinds = [content.first, content.second]
        radii = rng.uniform(*_PAIR_RADII, size=2)
        centres = _related_centres(content.relation, radii, rng)
    tints = [_tint(kind[0], rng) for kind in kinds]
    image = _background(tints, rng)
    for kind, radius, centre, tint in zip(kinds, radii, centres, tints, strict=True):
        _paste(image, kind, radius, centre, tint, angle=rng.uniform(-12, 12))
    return image


def encode_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _scattered_centres(radii: np.ndarray, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Random centres of discs that keep inside the picture and off each other."""
    while True:
        centres: list[tuple[float, float]] = []
        for radius in radii:
            for _ in range(20):
                x, y = rng.uniform(radius + 1, IMAGE_SIZE - radius - 1, size=2)
                gaps = (math.hypot(x - u, y - v) - radius - r for (u, v), r in zip(centres, radii, strict=False))
                if all(gap >= 1.5 for gap in gaps):
                    centres.append((x, y))
                    break
        # A first object in the middle may leave no room for the others: begin again.
        if len(centres) == len(radii):
            return centres


def _related_centres(relation: str, radii: np.ndarray, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Two centres, the first left of or above the second by more than they differ the other way."""
    near = radii[0] + 1
    far = IMAGE_SIZE - radii[1] - 1
    gap = radii.sum() + 2
    start = rng.uniform(near, far - gap)
    end = rng.uniform(start + gap, far)
    sway = 0.4 * (end - start)
    across = rng.uniform(radii.max() + 1, IMAGE_SIZE - radii.max() - 1)
    other = np.clip(across + rng.uniform(-sway, sway), radii.max() + 1, IMAGE_SIZE - radii.max() - 1)
    if relation == "left":
        return [(start, across), (end, other)]
    return [(across, start), (other, end)]


def _tint(colour: int, rng: np.random.Generator) -> tuple[int, int, int]:
    base = np.array(tuple(COLOURS.values())[colour], float)
    return tuple(int(v) for v in np.clip(base + rng.uniform(-14, 14, size=3), 0, 255))


def _background(tints: list[tuple[int, int, int]], rng: np.random.Generator) -> Image.Image:
    first, second = _backdrop_colours(np.array(tints, float), rng)
    styles = (_plain, _gradient, _stripes, _checks, _spots)
    blend = styles[rng.integers(len(styles))](rng)[..., None]
    return Image.fromarray(np.rint(first * (1 - blend) + second * blend).astype(np.uint8), "RGB")


def _backdrop_colours(tints: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two similar, greyish colours [2, 3] that every object stands out from, or the best pair of 24."""
    grey = rng.uniform(20, 250, size=(24, 1, 1))
    pairs = np.clip(grey + rng.uniform(-25, 25, size=(24, 1, 3)) + rng.uniform(-14, 14, size=(24, 2, 3)), 0, 255)
    contrast = np.linalg.norm(pairs[:, :, None] - tints, axis=-1).min(axis=(1, 2))
    enough = np.flatnonzero(contrast >= _MIN_CONTRAST)
    return pairs[enough[0] if len(enough) else contrast.argmax()]


# Backgrounds: how much of the second colour each pixel has, [64, 64] in 0..1.
_ROW, _COLUMN = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE] / IMAGE_SIZE


def _plain(rng: np.random.Generator) -> np.ndarray:
    return np.zeros((IMAGE_SIZE, IMAGE_SIZE))


def _gradient(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * math.pi)
    slope = math.cos(angle) * _COLUMN + math.sin(angle) * _ROW
    return (slope - slope.min()) / np.ptp(slope)


def _stripes(rng: np.random.Generator) -> np.ndarray:
    angle, bands = rng.uniform(0, math.pi), rng.uniform(3, 8)
    return np.floor((math.cos(angle) * _COLUMN + math.sin(angle) * _ROW) * bands) % 2


def _checks(rng: np.random.Generator) -> np.ndarray:
    cells = rng.uniform(3, 8)
    return (np.floor(_COLUMN * cells) + np.floor(_ROW * cells)) % 2


def _spots(rng: np.random.Generator) -> np.ndarray:
    centres = rng.uniform(0, 1, size=(6, 1, 1, 2))
    radii = rng.uniform(0.05, 0.15, size=(6, 1, 1))
    return (np.hypot(_COLUMN - centres[..., 0], _ROW - centres[..., 1]) < radii).any(axis=0).astype(float)


def _paste(
    image: Image.Image, kind: Kind, radius: float, centre: tuple[float, float], tint: tuple[int, int, int], angle: float
) -> None:
    left, top = (math.floor(c - radius) - 1 for c in centre)
    side = 2 * math.ceil(radius) + 4
    mask = Image.new("L", (side * _OVERSAMPLE, side * _OVERSAMPLE))
    turn = math.radians(angle)
    across = np.array([math.cos(turn), math.sin(turn)]) * radius * _OVERSAMPLE
    down = np.array([-math.sin(turn), math.cos(turn)]) * radius * _OVERSAMPLE
    origin = (np.array(centre) - (left, top)) * _OVERSAMPLE

    pen = ImageDraw.Draw(mask)
    for points, fill in _outlines(SHAPES[kind[1]]):
        corners = origin + points[:, :1] * across + points[:, 1:] * down
        pen.polygon([tuple(corner) for corner in corners], fill=fill)
    image.paste(tint, (left, top), mask.reduce(_OVERSAMPLE))


def _outlines(shape: str) -> list[tuple[np.ndarray, int]]:
    """Polygons [corners, (x right, y down)] in the unit disc, each filled (255) or cut out (0), in order."""
    return _OUTLINES[shape]


def _disc(x: float, y: float, radius: float) -> np.ndarray:
    turn = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    return np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2.5], axis=1) / 16.5


def _star() -> np.ndarray:
    turn = -math.pi / 2 + np.arange(10) * math.pi / 5
    return np.stack([np.cos(turn), np.sin(turn)], axis=1) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]


_OUTLINES: dict[str, list[tuple[np.ndarray, int]]] = {
    "circle": [(_disc(0, 0, 0.92), 255)],
    "square": [(np.array([(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)]), 255)],
    "triangle": [(np.array([(0, -0.98), (0.85, 0.5), (-0.85, 0.5)]), 255)],
    "diamond": [(np.array([(0, -1.0), (0.68, 0), (0, 1.0), (-0.68, 0)]), 255)],
    "star": [(_star(), 255)],
    "heart": [(_heart(), 255)],
    "cross": [
        (np.array([(-0.3, -0.95), (0.3, -0.95), (0.3, 0.95), (-0.3, 0.95)]), 255),
        (np.array([(-0.95, -0.3), (0.95, -0.3), (0.95, 0.3), (-0.95, 0.3)]), 255),
    ],
    "ring": [(_disc(0, 0, 0.95), 255), (_disc(0, 0, 0.5), 0)],
    "crescent": [(_disc(-0.05, 0, 0.95), 255), (_disc(0.4, -0.1, 0.75), 0)],
    "arrow": [
        (np.array([(-0.95, -0.28), (0.1, -0.28), (0.1, 0.28), (-0.95, 0.28)]), 255),
        (np.array([(0.0, -0.85), (0.98, 0), (0.0, 0.85)]), 255),
    ],
}
