"""Trains CLIP ViT-B/32 on your own shards with CLIP's recipe (2103.00020, tables 18 and 19).

    clipjax train --config=experiments/clip_b32.py --workdir=/shared/clip --config.data.train.path=/shared/shards \\
      --config.tokenizer.path=/shared/tokenizer.model
    clipjax train --config=experiments/clip_b32.py:clip_vit_l14 --config.mesh.fsdp=8 ...

The argument after the colon names any CLIP preset of clipjax.models.presets. A SentencePiece tokenizer ends texts with
its own EOS id (1 with data_pipelines.train_tokenizer), so pooling looks for that id instead of the largest one.
"""

from ml_collections import ConfigDict

from clipjax.config import default_config
from clipjax.models.presets import get_preset


def get_config(preset: str = "clip_vit_b32") -> ConfigDict:
    config = default_config()
    config.global_batch_size = 32_768
    config.total_steps = 390_625  # 12.8 billion pairs
    config.model = get_preset(preset)
    config.model.dtype = "bfloat16"
    image = config.model.image
    for tower in (image, config.model.text):
        scanned = tower.get("depth", 0) > 24
        if "attention" in tower:  # a transformer, not a ResNet
            # Unrolled, towers step faster and take minutes to compile. What XLA then keeps by itself is the fastest
            # choice, except that long sequences leave it too much.
            tower.scan_layers = scanned
        tower.remat = "dots" if image.image_size > 256 or scanned else "none"
    config.loss.dtype = "bfloat16"
    config.model.text.eos_id = 1
    config.loss.name = "softmax"
    config.optimizer.update(name="adamw", learning_rate=5e-4, weight_decay=0.2, b1=0.9, b2=0.98, eps=1e-6)
    config.optimizer.schedule.warmup_steps = 2_000
    config.data.pixels.update(
        resize="center_crop",
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    )
    config.data.num_threads = 16
    config.checkpoint.every_steps = 2_000
    config.log.every_steps = 100
    return config
