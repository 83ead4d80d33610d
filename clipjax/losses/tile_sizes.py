"""Sizes of tiles and chunks, from the rows of one device, the number of devices and config.loss.tile."""

from __future__ import annotations

from jax.sharding import Mesh

from clipjax.config import require

# The longest side of a default tile, by JAX's platform. Each of a GPU's multiprocessors (132 on an H100) computes a
# piece of 128 x 128 at a time: with small tiles most are idle, and kernels take longer to start than to run. 4,096 x
# 4,096 in float32 are 64 MiB.
LARGEST = {"cpu": 512, "tpu": 512, "gpu": 4096}
LARGEST_ALONE = 1024  # where one device has all rows, if that is larger


def largest_tile(mesh: Mesh) -> int:
    """The longest side of a default tile on these devices; unknown platforms count as GPUs."""
    return LARGEST.get(mesh.devices.flat[0].platform, LARGEST["gpu"])


def tile_shape(rows: int, columns: int, own: int, tile: int, largest: int) -> tuple[int, int]:
    """Height and width of the tiles of a `rows` x `columns` matrix; a device's `own` rows are one of its sides.

    The tile's side along `own` is choose_tile's. The other side, which was gathered, is as long as it can be without
    making the tile larger than a square one: long products keep a matrix unit busy where a device has few rows.
    """
    side = choose_tile(own, tile, largest)
    area = max(tile or largest, side) ** 2  # a side that few divisors leave may be longer than `largest`

    def long(count: int) -> int:
        return side * max(
            d for d in range(1, count // side + 1) if (count // side) % d == 0 and side * d * side <= area
        )

    return (side if rows == own else long(rows)), (side if columns == own else long(columns))


def tile_shape_alone(rows: int, tile: int, largest: int) -> tuple[int, int]:
    """Height and width of the tiles where one device has all rows: larger than others, and twice as high as wide.

    The gradients of every tile are added to those of its rows and columns, so fewer tiles cost less.
    """
    side = choose_tile(rows, tile, max(largest, LARGEST_ALONE))
    return (side if tile or rows % (2 * side) else 2 * side), side


def chunk_count(rows: int, devices: int, tile: int, largest: int) -> int:
    """Number of parts in which `rows` of each device are gathered.

    The fewest for which a part, of all devices together, is a multiple of a tile's side and at most two of the largest
    tiles long. Where there is no such number, the shortest parts that tiles divide.
    """
    side, longest = choose_tile(rows, tile, largest), 2 * (tile or largest)
    # The shortest possible part has one row of each device.
    parts = [d for d in range(1, rows + 1) if rows % d == 0 and d * devices % side == 0]
    return rows // max((d for d in parts if d * devices <= longest), default=parts[0])


def choose_tile(rows: int, tile: int, largest: int) -> int:
    """tile, or a divisor of `rows` near `largest` if tile is 0. Raises ConfigError if tile does not divide `rows`."""
    check_tile(rows, tile)
    if tile:
        return tile
    divisors = [d for d in range(1, rows + 1) if rows % d == 0]
    small = max(d for d in divisors if d <= largest)
    # Where no divisor is of useful size (the rows are prime, say), take the next larger one.
    return small if small >= min(rows, 128) else min(d for d in divisors if d > largest)


def check_tile(rows: int, tile: int) -> None:
    """Raises ConfigError if config.loss.tile does not divide the rows of one device."""
    if tile:
        require(
            rows % tile == 0,
            f"config.loss.tile={tile} does not divide the {rows} rows of one device. Use a divisor, such as "
            f"{max(d for d in range(1, min(rows, tile) + 1) if rows % d == 0)}, or 0 for the default.",
        )
