"""experiments/openclipart.py with a model so small that a process may live less than a minute; for benchmarks.soak.

The argument is the folder with the data and its tokenizer: --config=benchmarks/soak_openclipart.py:data
"""

from ml_collections import ConfigDict

from benchmarks.soak_emoji import shrink
from experiments.openclipart import get_config as openclipart


def get_config(data: str = "data") -> ConfigDict:
    return shrink(openclipart(), data, "openclipart")
