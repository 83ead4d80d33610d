"""Drawn pictures that compress and decode like photographs. The benchmarks keep their own: results depend on them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw


def photo(seed: int, width: int, height: int) -> Image.Image:
    """Draws RGB noise whose amplitude falls with frequency as in photographs (1 / f^1.55), then eight ellipses."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    amplitude = np.maximum(frequency, 1 / max(width, height)) ** -1.55
    grey, red, blue = (
        plane / plane.std()
        for plane in (
            np.fft.irfft2(amplitude * np.exp(2j * np.pi * rng.random(amplitude.shape)), (height, width))
            for _ in range(3)
        )
    )
    planes = np.stack([grey + 0.35 * red, grey, grey + 0.35 * blue], axis=-1)
    image = Image.fromarray(np.uint8(np.clip(128 + 45 * planes, 0, 255)))
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(8):
        x, y, radius = rng.integers(0, width), rng.integers(0, height), rng.integers(8, max(9, min(width, height) // 4))
        color = (*map(int, rng.integers(0, 256, 3)), int(rng.integers(60, 255)))
        draw.ellipse((int(x - radius), int(y - radius // 2), int(x + radius), int(y + radius // 2)), fill=color)
    return image


def photo_jpeg(seed: int, width: int, height: int) -> bytes:
    """Encodes photo() as a JPEG of quality 90 with 4:2:0 chroma, as cameras and web sites do."""
    buffer = io.BytesIO()
    photo(seed, width, height).save(buffer, "JPEG", quality=90, subsampling="4:2:0")
    return buffer.getvalue()
