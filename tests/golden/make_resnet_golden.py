"""Makes the golden files of test_torch_parity.py: what PyTorch computes. Needs torch; run it in the repository root.

    python tests/golden/make_resnet_golden.py

The network is ResNet v1.5 in torchvision's layout, written out here. Weights are drawn by numpy from a seed and the
array's name, on both sides alike, so that files hold inputs and outputs only.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from golden_weights import CASES, draw_input, draw_weight

LAYERS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


class Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = width * 4 if bottleneck else width
        if bottleneck:
            sizes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        else:
            sizes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        self.count = len(sizes)
        for i, (a, b, kernel, step) in enumerate(sizes, 1):
            setattr(self, f"conv{i}", nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(b))
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y) if i < self.count else y
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, depth: int, width: int, stem: str, classes: dict[str, int]) -> None:
        super().__init__()
        small = stem == "small"
        self.conv1 = nn.Conv2d(3, width, 3 if small else 7, 2, 1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        inputs, bottleneck = width, depth >= 50
        for stage, count in enumerate(LAYERS[depth]):
            blocks = []
            for i in range(count):
                blocks.append(Block(inputs, width * 2**stage, 2 if i == 0 and stage else 1, bottleneck))
                inputs = width * 2**stage * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.heads = nn.ModuleDict({name: nn.Linear(inputs, count) for name, count in classes.items()})

    def forward(self, x):
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        features = x.mean((2, 3))
        return {name: head(features) for name, head in self.heads.items()}, features


def main() -> None:
    for case, (arguments, height, width) in CASES.items():
        torch.manual_seed(0)
        model = ResNet(arguments["depth"], arguments["width"], arguments["stem"], arguments["classes"])
        state = {
            name: torch.from_numpy(draw_weight(name, tuple(array.shape)))
            for name, array in model.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        model.load_state_dict(state, strict=False)
        images = torch.from_numpy(draw_input(height, width)).permute(0, 3, 1, 2)
        found = {}
        with torch.no_grad():
            model.eval()
            logits, features = model(images)
            found |= {"evaluation/embedding": features, **{f"evaluation/{n}": v for n, v in logits.items()}}
        model.train()
        logits, features = model(images)
        found |= {"train/embedding": features, **{f"train/{n}": v for n, v in logits.items()}}
        loss = sum(F.cross_entropy(v, torch.arange(len(v)) % v.shape[1]) for v in logits.values())
        loss.backward()
        gradients = dict(model.named_parameters())
        found["train/loss"] = loss
        for name in ("conv1.weight", "layer2.0.downsample.0.weight", "layer4.1.bn2.bias", "heads.b.weight"):
            found[f"gradient_norm/{name}"] = gradients[name].grad.norm()
        found["running_mean/bn1"] = model.bn1.running_mean
        arrays = {name: value.detach().numpy().astype(np.float32) for name, value in found.items()}
        np.savez_compressed(Path(__file__).with_name(f"{case}.npz"), **arrays)
        print(case, {name: array.shape for name, array in arrays.items()})


if __name__ == "__main__":
    main()
