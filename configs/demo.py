"""A small ResNet on the embedded catalogue, for `make demo`.

Command: python -m fashion_jax.main --config=configs/demo.py --workdir=runs/demo
Cost: 4.3 minutes on 2 cores, drawing and scores included.
Score (clean test rows, seed 0): masterCategory .978, subCategory .985, baseColour .957, gender .807.
"""

from pathlib import Path

from fashion_jax.config.fields import Config
from fashion_jax.config.files import load_config


def get_config() -> Config:
    config = load_config(Path(__file__).with_name("base.py"))
    config.data.source = "synthetic:3000"
    config.data.attributes = ("masterCategory", "subCategory", "baseColour", "gender")
    # Drawn sharp and centred, products need no more variation than flips within so few steps.
    config.data.augment.min_crop_area = 1.0
    config.data.augment.max_rotation = 0.0
    config.data.augment.erase_probability = 0.0
    config.model.width = 16
    config.train.duration = "25 epochs"
    config.train.batch_size = 64
    config.train.evaluate_every = "5 epochs"
    config.train.checkpoint_every = "5 epochs"
    return config
