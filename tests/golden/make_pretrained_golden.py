"""Makes the golden files of tests/models/test_pretrained.py: what timm's and transformers' ResNets compute.

    python tests/golden/make_pretrained_golden.py [CASE ...]

Needs torch, timm and transformers; run it in the repository root. Without cases it makes all. Weights are drawn by
numpy from a seed and the array's name, on both sides alike. A file holds the names and shapes of the whole state dict,
config.json (and preprocessor_config.json) as the library itself writes them, and the pooled features of the drawn
photos.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from timm.models import save_for_hf
from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification, ResNetModel

sys.path.insert(0, str(Path(__file__).parent))
from golden_weights import draw_input, draw_weight

ROWS = 3


def timm_model(name: str, **arguments):
    model = timm.create_model(name, num_classes=7, **arguments)
    return model, lambda images: model.forward_head(model.forward_features(images), pre_logits=True)


def transformers_model(kind, **arguments):
    model = kind(ResNetConfig(num_labels=7, **arguments))
    base = getattr(model, "resnet", model)
    return model, lambda images: base(images).pooler_output.flatten(1)


MODELS = {
    # The published network, at its size.
    "timm_resnet18": lambda: timm_model("resnet18"),
    # Of timm/resnet50.a1_in1k and timm/resnet50.tv_in1k, at their size.
    "timm_resnet50": lambda: timm_model("resnet50"),
    # Deep stem and pooled shortcuts, narrow.
    "timm_resnet50d": lambda: timm_model("resnet50d", channels=(8, 16, 32, 64), stem_width=4),
    # Deep stem with plain shortcuts.
    "timm_resnet50c": lambda: timm_model("resnet50c", channels=(8, 16, 32, 64), stem_width=4),
    # microsoft/resnet-50, narrow.
    "transformers_resnet50": lambda: transformers_model(
        ResNetForImageClassification, embedding_size=8, hidden_sizes=[32, 64, 128, 256], depths=[3, 4, 6, 3]
    ),
    # microsoft/resnet-18 without its head, narrow.
    "transformers_resnet18": lambda: transformers_model(
        ResNetModel, embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[2, 2, 2, 2], layer_type="basic"
    ),
}


def saved_configurations(model) -> dict[str, str]:
    """Returns the JSON files that the library writes beside the weights."""
    with tempfile.TemporaryDirectory() as folder:
        if hasattr(model, "pretrained_cfg"):
            save_for_hf(model, folder, safe_serialization=True)
        else:
            model.save_pretrained(folder)
            ConvNextImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3]).save_pretrained(folder)
        return {path.name: path.read_text() for path in Path(folder).glob("*.json")}


def main() -> None:
    for case in sys.argv[1:] or MODELS:
        make = MODELS[case]
        torch.manual_seed(0)
        model, features_of = make()
        shapes = {name: list(array.shape) for name, array in model.state_dict().items()}
        drawn = {
            name: torch.from_numpy(draw_weight(name, tuple(shape)))
            for name, shape in shapes.items()
            if not name.endswith("num_batches_tracked")
        }
        model.load_state_dict(drawn, strict=False)
        model.eval()
        with torch.no_grad():
            features = features_of(torch.from_numpy(draw_input(70, 65)[:ROWS]).permute(0, 3, 1, 2))
        about = {"shapes": shapes, "files": {n: json.loads(text) for n, text in saved_configurations(model).items()}}
        np.savez_compressed(
            Path(__file__).with_name(f"{case}.npz"),
            about=np.frombuffer(json.dumps(about).encode(), np.uint8),
            features=features.numpy().astype(np.float32),
        )
        print(case, features.shape, float(features.abs().mean()), sorted(about["files"]))


if __name__ == "__main__":
    main()
