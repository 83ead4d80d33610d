"""Trains SigLIP B/16 at 224 pixels on your own shards, as published (2303.15343, section 4).

    clipjax train --config=experiments/siglip_b16.py --workdir=/shared/siglip --config.data.train.path=/shared/shards \\
      --config.tokenizer.path=/shared/tokenizer.model
    clipjax train --config=experiments/siglip_b16.py:siglip_b16_256 --config.mesh.fsdp=8 ...

The argument after the colon names any SigLIP preset of clipjax.models.presets.
"""

from ml_collections import ConfigDict

from clipjax.config import default_config
from clipjax.models.presets import get_preset


def get_config(preset: str = "siglip_b16") -> ConfigDict:
    config = default_config()
    config.global_batch_size = 32_768
    config.total_steps = 122_070  # four billion pairs
    config.model = get_preset(preset)
    config.model.dtype = "bfloat16"
    image = config.model.image
    for tower, longest in ((image, 27), (config.model.text, 24)):
        # Unrolled towers step faster and take minutes to compile. So400m's text tower, a seventeenth of the work,
        # stays scanned. remat="none" lets XLA choose what to keep: fastest, but too much memory for
        # long sequences.
        tower.scan_layers = tower.depth > longest
        tower.remat = "dots" if image.image_size > 256 or tower.scan_layers else "none"
    config.loss.name = "sigmoid"
    config.loss.dtype = "bfloat16"
    # The paper's weight decay of 1e-4 is big_vision's, added after the learning rate.
    config.optimizer.update(name="bv_adam", learning_rate=1e-3, weight_decay=1e-4, b2=0.95, grad_clip_norm=1.0)
    config.optimizer.schedule.warmup_steps = 12_000
    config.data.augment.name = "none"  # SigLIP squashes to the resolution and does not crop
    config.data.num_threads = 16
    config.checkpoint.every_steps = 2_000
    config.log.every_steps = 100
    return config
