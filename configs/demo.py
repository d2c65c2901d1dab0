"""The library's `small` fine-tuned on the embedded catalogue of drawn products, for `make demo`.

Command: python -m fashion_jax.main --config=configs/demo.py --workdir=runs/drawn
Cost: a minute and a half on 2 cores of a Zen 4, drawing and scores included.
Score (clean test rows, seed 0): masterCategory 1.000, subCategory 1.000, baseColour 0.959, gender 0.849.
"""

from pathlib import Path

from fashion_jax.config.fields import Config
from fashion_jax.config.files import load_config


def get_config() -> Config:
    config = load_config(Path(__file__).with_name("base.py"))
    config.data.source = "synthetic:1500:0"
    config.data.attributes = ("masterCategory", "subCategory", "baseColour", "gender")
    config.data.height = 60
    config.data.width = 45
    # Drawn sharp and centred, products need no more variation than flips within so few steps.
    config.data.augment.min_crop_area = 1.0
    config.data.augment.max_rotation = 0.0
    config.data.augment.erase_probability = 0.0
    config.model.pretrained = "small"
    config.model.colour_heads = ("auto",)
    config.train.duration = "5 epochs"
    config.train.batch_size = 32
    config.train.evaluate_every = "5 epochs"
    config.train.checkpoint_every = "5 epochs"
    return config
