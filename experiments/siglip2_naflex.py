"""Trains SigLIP 2's NaFlex B/16 on your own shards: images keep their aspect ratio within a budget of patches
(2502.14786).

    clipjax train --config=experiments/siglip2_naflex.py --workdir=/shared/naflex --config.init_from=/shared/siglip2 \\
      --config.data.train.path=/shared/shards --config.tokenizer.path=/shared/gemma.model
    clipjax plan --config=experiments/siglip2_naflex.py:siglip2_naflex_so400m16 --topology=v5e:16x16 \\
      --compare=model.image.max_patches=784

The argument after the colon names a NaFlex preset. init_from takes any SigLIP 2 of the same width whose patches have 16
pixels a side.
"""

from ml_collections import ConfigDict

from clipjax.config import default_config
from clipjax.models.presets import get_preset


def get_config(preset: str = "siglip2_naflex_b16") -> ConfigDict:
    config = default_config()
    config.global_batch_size = 32_768
    config.total_steps = 30_000
    config.model = get_preset(preset)
    config.model.dtype = "bfloat16"
    config.model.image.max_patches = 256
    config.loss.name = "sigmoid"
    config.optimizer.update(name="bv_adam", learning_rate=1e-4, weight_decay=1e-4, b2=0.95, grad_clip_norm=1.0)
    config.optimizer.schedule.warmup_steps = 1_000
    config.tokenizer.pad_id = 0  # Gemma's
    config.data.pixels.interpolation = "bilinear"
    config.data.augment.name = "none"  # a random crop has its own aspect ratio, not the image's
    config.data.num_threads = 16
    config.checkpoint.every_steps = 1_000
    config.log.every_steps = 100
    return config
