"""A ResNet-50 on photos of 224x224, from scratch; its twin from pretrained weights is resnet50_finetune.py.

Command: python -m fashion_jax.main --config=configs/resnet50_224.py --workdir=runs/resnet50_224 \
             --config.data.source=fashion-product-images-dataset.zip
Cost: not measured: no GPU was at hand. It is meant for one; train.accumulation_steps=2 needs half the memory.
Score: not measured, for the same reason.
"""

from pathlib import Path

from fashion_jax.config import Config
from fashion_jax.config_files import load_config


def get_config() -> Config:
    config = load_config(Path(__file__).with_name("base.py"))
    config.data.source = "fashion-product-images-dataset.zip"
    config.data.height, config.data.width = 224, 224
    config.data.test_time_flip = True
    config.loss.label_smoothing = 0.1
    config.model.depth = 50
    config.optimizer.learning_rate = 2e-3
    config.train.average_decay = 0.999
    config.train.batch_size = 128
    config.train.duration = "60 epochs"
    return config
