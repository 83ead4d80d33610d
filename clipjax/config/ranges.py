"""The values that a number in a configuration may have. A field names its range beside its default."""

from __future__ import annotations

import math
from typing import Any, NamedTuple


class Range(NamedTuple):
    """low to high, both allowed unless they are open. NaN and the infinities are in no range."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    hint: str = ""  # what to do about a number outside

    def __contains__(self, value: Any) -> bool:
        return (
            -math.inf < value < math.inf
            and (value > self.low if self.low_open else value >= self.low)
            and (value < self.high if self.high_open else value <= self.high)
        )

    def __str__(self) -> str:
        low = "" if self.low == -math.inf else f"{'above' if self.low_open else 'at least'} {_number(self.low)}"
        high = "" if self.high == math.inf else f"{'below' if self.high_open else 'at most'} {_number(self.high)}"
        text = " and ".join(filter(None, (low, high))) or "a finite number"
        return f"{text}; {self.hint}" if self.hint else text


INT32 = 2**31 - 1  # steps, labels and token ids are int32 on the devices

POSITIVE = Range(0, low_open=True)
# A floating-point number is used in float32, where a larger one is infinite and a smaller one 0.
WEIGHT = Range(0, 1e6)  # a factor or a term of something else
BIAS = Range(-1e6, 1e6)
THRESHOLD = Range(0, 1e30)
EPSILON = Range(0, 1, low_open=True)  # added to what may be 0, and divides
PROPORTION = Range(1e-3, 1e3)
SPREAD = Range(1e-6, 1e6)  # divides
_OF_255 = "statistics are of pixels from 0 to 1 (divide those of pixels from 0 to 255 by 255)"
# An import may have a spread above 1, of pixels that its library scales otherwise.
PIXEL_MEAN, PIXEL_SPREAD = Range(0, 1, hint=_OF_255), Range(1e-6, 10, hint=_OF_255)
PARTS = Range(0, 1e12, low_open=True)  # of a sum
BASE = Range(1e-3, 1e12)  # of a power
SHARE = Range(0, 1)
SHARE_ABOVE_ZERO = Range(0, 1, low_open=True)
RATE = Range(0, 1, high_open=True)  # of dropout, or of a moving average
LEARNING_RATE = Range(0, 1e4, low_open=True)
COEFFICIENT = Range(0, 100, low_open=True)
SCALE, SCALE_OR_ZERO = Range(0, 1e6, low_open=True), Range(0, 1e6)
STEPS, COUNT = Range(0, INT32), Range(1, INT32)
TOKEN_ID, TOKEN_ID_OR_NONE = Range(0, INT32), Range(-1, INT32)
POSITION_OR_NONE = Range(-1, INT32)  # in a list
GREY = Range(0, 255)
GIBIBYTES = Range(0, 2**20)
# A size that no model or batch has is a typing error; compiling it would first fill the machine's memory.
WIDTH, WIDTH_OR_ZERO = Range(1, 2**17), Range(0, 2**17)
DEPTH, DEPTH_OR_ZERO = Range(1, 2**12), Range(0, 2**12)
BLOCKS_OR_ALL = Range(-1, 2**12)
RANK_OR_ZERO = Range(0, 2**12)
PIXELS, PIXELS_OR_ZERO = Range(1, 2**14), Range(0, 2**14)
POSITIONS, POSITIONS_OR_ZERO = Range(1, 2**20), Range(0, 2**20)
VOCABULARY = Range(1, 2**26)
EXAMPLES, EXAMPLES_OR_ZERO = Range(1, 2**24), Range(0, 2**24)
CAPTIONS = Range(1, 2**10)  # of one image in one step
WORKERS, WORKERS_OR_ZERO = Range(1, 2**12), Range(0, 2**12)
DEVICES, DEVICES_OR_REST = Range(1, 2**20), Range(-1, 2**20)


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) and value < 1e16 else f"{value:g}"
