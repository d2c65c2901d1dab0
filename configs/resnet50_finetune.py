"""A ResNet-50 of ImageNet (timm's A1 recipe: Wightman et al. 2021, "ResNet strikes back"), fine-tuned at 224x224.

The heads alone for an epoch, then everything (Kumar et al., "Fine-tuning can distort pretrained features", ICLR 2022),
each block at .9 of the next one's rate (discriminative rates: Howard and Ruder, ACL 2018). Photos are normalised as the
weights' own config.json says.

Command: python -m fashion_jax.main --config=configs/resnet50_finetune.py --workdir=runs/resnet50_finetune \
             --config.data.source=fashion-product-images-dataset.zip
Cost: not measured on a GPU, for none was at hand; on 2 cores as resnet50_224.py's, two and a half hours for an epoch of
    40,000 photos. It needs the Hub (pip install -e '.[hub]'), or a folder of its layout as
    --config.model.pretrained; 102 MB are downloaded.
Score: not measured, as no run was long enough.
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
