"""The defaults, from which every other configuration starts: ResNet-18 on 80x60 photos of the embedded catalogue.

Command: python -m fashion_jax.main --config=configs/base.py --workdir=runs/base
Cost and score: not measured; the others start from it.
"""

from fashion_jax.config.fields import Config


def get_config() -> Config:
    return Config()
