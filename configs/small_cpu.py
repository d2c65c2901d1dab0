"""All seven heads on Kaggle's small photos (at 60x45), from scratch, in about an hour on two CPU cores.

Command: python -m fashion_jax.main --config=configs/small_cpu.py --workdir=runs/small_cpu \
             --config.data.source=fashion-product-images-small.tar.xz
Cost: 67 minutes on 2 cores of a Zen 4, scores and package included; 50 to 70 minutes on 2 cores with AMX; longer on
    processors without bfloat16 instructions.
Score (test, seed 0, experiments/2026-11-29-small-cpu): masterCategory 0.994, subCategory 0.956, articleType 0.855,
    baseColour 0.677, gender 0.910, season 0.760, usage 0.911.
"""

from pathlib import Path

from fashion_jax.config.fields import Config
from fashion_jax.config.files import load_config


def get_config() -> Config:
    config = load_config(Path(__file__).with_name("base.py"))
    config.data.source = "fashion-product-images-small.tar.xz"
    # Without crops and mixing, 22 epochs know nearly every training photo by heart and ended lower than 16.
    config.data.augment.min_crop_area = 0.75
    config.data.augment.max_rotation = 0.0
    config.data.augment.erase_probability = 0.0
    config.data.test_time_flip = True
    config.loss.label_smoothing = 0.1
    config.model.width = 32
    config.model.colour_heads = ("auto",)
    config.model.second_heads = ("auto",)
    # Smaller photos for more epochs: an epoch at 80x60 brings 0.004 to 0.009 of colour for 1.46 times the time.
    config.data.height = 60
    config.data.width = 45
    config.train.duration = "26 epochs"
    config.train.evaluate_every = "13 epochs"
    config.train.batch_size = 128
    config.train.mix.mixup_alpha = 0.2
    config.train.mix.cutmix_alpha = 1.0
    # Mixed photos teach no colour: the last quarter, at the low rates, is for the colours too (it gained them nothing).
    config.train.mix.until = "75 percent"
    return config
