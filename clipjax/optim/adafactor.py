"""Adafactor (Shazeer & Stern 2018), as optax.adafactor with its defaults, with AdamW's weight decay.

The decay of the second moment at update t (1 is the first) is 1 - t^-0.8. There is no first moment. Updates are clipped
to a root mean square of 1, for each parameter. The learning rate is relative to each parameter's root mean square (at
least 1e-3): try 1e-2. Each layer of scanned blocks counts as a parameter of its own.

How it differs from others of that name:
  optax.adafactor         its weight_decay_rate is not multiplied by the learning rate; here it is, as in adamw
  torch.optim.Adafactor   factors the second moment of every parameter with two axes or more, over its last two axes.
                          Here the two largest axes are factored, and only if both are at least 128 long. The two agree
                          on matrices of 128 x 128 or more, and on vectors and scalars. They differ on smaller matrices,
                          on convolutions, and on query, key and value, which are one array [width, 3, width] here
                          (three matrices, clipped together). torch also limits the learning rate to t^-0.5.
  big_vision              see bv_adafactor: factored from 32 x 32, with a first moment and no clipping, not relative
                          to the parameter
"""

from __future__ import annotations

from dataclasses import dataclass

import optax

from clipjax.config import OptimizerConfig, Part
from clipjax.optim.updates import per_layer, with_decay


@dataclass(frozen=True)
class AdafactorConfig(OptimizerConfig):
    name: str = "adafactor"


def make(config: AdafactorConfig) -> optax.GradientTransformation:
    direction = optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
    )
    return with_decay(config, per_layer(direction))


OPTIMIZER = Part(AdafactorConfig, make)
