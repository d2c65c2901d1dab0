"""A ResNet-50 of ImageNet (timm's A1 recipe: Wightman et al. 2021, "ResNet strikes back"), fine-tuned at 224x224.

The heads are trained alone for an epoch, then everything (Kumar et al., "Fine-tuning can distort pretrained features",
ICLR 2022). Each block has 0.9 times the learning rate of the next one (Howard and Ruder, ACL 2018). Photos are
normalised as the config.json of the weights says.

Command: python -m fashion_jax.main --config=configs/resnet50_finetune.py --workdir=runs/resnet50_finetune \
             --config.data.source=fashion-product-images-dataset.zip
Cost: not measured on a GPU, for which it is meant. On two CPU cores as resnet50_224.py. The weights (102 MB) come from
    the Hub (pip install -e '.[hub]'), or from a folder of the same layout as --config.model.pretrained.
Score: not measured; no run was long enough.
"""

from pathlib import Path

from fashion_jax.config.fields import Config
from fashion_jax.config.files import load_config


def get_config() -> Config:
    config = load_config(Path(__file__).with_name("resnet50_224.py"))
    config.model.pretrained = "timm/resnet50.a1_in1k"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.layer_decay = 0.9
    config.optimizer.unfreeze = {"backbone/*": "1 epochs"}
    config.train.duration = "12 epochs"
    return config
