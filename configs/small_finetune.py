"""The library's `small` fine-tuned on a catalogue of one's own, on two CPU cores: its features under new heads.

Command: python -m fashion_jax.main --config=configs/small_finetune.py --workdir=runs/fine \
             --config.data.source=products.csv
"""

from pathlib import Path

from fashion_jax.config import Config
from fashion_jax.config_files import load_config


def get_config() -> Config:
    config = load_config(Path(__file__).with_name("small_cpu.py"))
    config.model.pretrained = "small"
    config.data.height = 80
    config.data.width = 60
    config.optimizer.learning_rate = 1.5e-3
    config.train.duration = "8 epochs"
    config.train.evaluate_every = "4 epochs"
    return config
