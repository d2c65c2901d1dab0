"""A ResNet-50 on photos of 224x224, from scratch. `resnet50_finetune.py` does the same from pretrained weights.

Command: python -m fashion_jax.main --config=configs/resnet50_224.py --workdir=runs/resnet50_224 \
             --config.data.source=fashion-product-images-dataset.zip
Cost: not measured on a GPU, for which it is meant. train.accumulation_steps=2 halves the photos in memory at once. Two
    cores of an AMD EPYC (AVX-512 BF16) train on 4.5 photos a second: two and a half hours for an epoch of 40,000.
Score: not measured; no run was long enough.
"""

from pathlib import Path

from fashion_jax.config.fields import Config
from fashion_jax.config.files import load_config


def get_config() -> Config:
    config = load_config(Path(__file__).with_name("base.py"))
    config.data.source = "fashion-product-images-dataset.zip"
    config.data.height, config.data.width = 224, 224
    config.data.test_time_flip = True
    config.loss.label_smoothing = 0.1
    config.model.depth = 50
    config.model.colour_heads = ("auto",)
    config.model.second_heads = ("auto",)
    config.optimizer.learning_rate = 2e-3
    config.train.average_decay = 0.999
    config.train.batch_size = 128
    config.train.duration = "60 epochs"
    return config
