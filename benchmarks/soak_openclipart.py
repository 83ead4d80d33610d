"""The experiment of benchmarks.soak: experiments/openclipart.py, small enough to be killed within a minute.

The argument names the folder with the data and its tokenizer: --config=benchmarks/soak_openclipart.py:data
"""

from ml_collections import ConfigDict

from benchmarks.soak_emoji import shrink
from experiments.openclipart import get_config as openclipart


def get_config(data: str = "data") -> ConfigDict:
    return shrink(openclipart(), data, "openclipart")
