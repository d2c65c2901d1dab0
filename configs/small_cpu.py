"""Four heads on Kaggle's small photos (80x60), from scratch, within an hour on two CPU cores.

Command: python -m fashion_jax.main --config=configs/small_cpu.py --workdir=runs/small_cpu \
             --config.data.source=fashion-product-images-small.tar.xz
"""

from pathlib import Path

from fashion_jax.config import Config
from fashion_jax.config_files import load_config


def get_config() -> Config:
    config = load_config(Path(__file__).with_name("base.py"))
    config.data.source = "fashion-product-images-small.tar.xz"
    config.data.attributes = ("masterCategory", "subCategory", "baseColour", "gender")
    config.model.width = 32
    config.train.duration = "10 epochs"
    config.train.batch_size = 128
    return config
