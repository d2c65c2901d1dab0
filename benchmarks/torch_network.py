"""Networks in PyTorch, as peers of `predict.py` and `train_step.py`. This file needs torch and numpy only."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

LAYERS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
) / np.array([[0.95047], [1.0], [1.08883]])


class ConvNorm(nn.Module):
    """A convolution and its batch norm, as a user writes them."""

    def __init__(self, weights: dict[str, np.ndarray], path: str, stride: int) -> None:
        super().__init__()
        kernel = weights[f"params/{path}/conv/kernel"].transpose(3, 2, 0, 1)
        self.conv = nn.Conv2d(
            kernel.shape[1], kernel.shape[0], kernel.shape[2], stride, kernel.shape[2] // 2, bias=False
        )
        self.norm = nn.BatchNorm2d(kernel.shape[0])
        with torch.no_grad():
            self.conv.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel)))
            for ours, theirs in (("params/{}/scale", "weight"), ("params/{}/bias", "bias")):
                getattr(self.norm, theirs).copy_(torch.from_numpy(weights[ours.format(f"{path}/norm")]))
            for name, theirs in (("mean", "running_mean"), ("var", "running_var")):
                getattr(self.norm, theirs).copy_(torch.from_numpy(weights[f"batch_stats/{path}/norm/{name}"]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the normalised maps."""
        return self.norm(self.conv(x))


class Network(nn.Module):
    """A ResNet of basic blocks with the small stem and GeM, plain heads, colour heads and second heads."""

    def __init__(self, weights: dict[str, np.ndarray], model: dict) -> None:
        super().__init__()
        self.model, self.numbers = model, {name: torch.from_numpy(value) for name, value in weights.items()}
        self.stem = ConvNorm(weights, "backbone/stem/0", 2)
        self.stages = nn.ModuleList()
        for number, count in enumerate(LAYERS[model["depth"]]):
            stage = nn.ModuleList()
            for index in range(count):
                path, stride = f"backbone/stages/{number}/{index}", 2 if index == 0 and number else 1
                layers = [ConvNorm(weights, f"{path}/layers/0", stride), ConvNorm(weights, f"{path}/layers/1", 1)]
                if stride == 2:
                    layers.append(ConvNorm(weights, f"{path}/shortcut/0/project", stride))
                stage.append(nn.ModuleList(layers))
            self.stages.append(stage)

    def linear(self, path: str, x: torch.Tensor) -> torch.Tensor:
        """Returns a dense layer's values."""
        return x @ self.numbers[f"params/{path}/kernel"] + self.numbers[f"params/{path}/bias"]

    def normalise(self, path: str, x: torch.Tensor) -> torch.Tensor:
        """Returns (batch, values) after a batch norm."""
        n = self.numbers
        mean, var = n[f"batch_stats/{path}/mean"], n[f"batch_stats/{path}/var"]
        return F.batch_norm(x, mean, var, n[f"params/{path}/scale"], n[f"params/{path}/bias"], eps=1e-5)

    def forward(self, photos: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Returns logits and features of uint8 photos (batch, height, width, 3), with mean and deviation 0.5."""
        rgb = photos.permute(0, 3, 1, 2).float() / 255
        x = F.relu(self.stem((rgb - 0.5) / 0.5))
        maps = []
        for stage in self.stages:
            for block in stage:
                y = block[1](F.relu(block[0](x), inplace=True))
                x = F.relu(y + (block[2](x) if len(block) == 3 else x), inplace=True)
            maps.append(x)
        features = self.pool(x)
        colour = (
            self.colour(F.avg_pool2d(rgb, 2, ceil_mode=True, count_include_pad=False), maps) if self.coloured else None
        )
        logits = {}
        for name in self.model["classes"]:
            if name in self.model["colour_heads"]:
                hidden = F.relu(self.linear(f"heads/{name}/hidden/0", torch.cat([features, colour], 1)))
                logits[name] = self.linear(f"heads/{name}/output", hidden)
            else:
                logits[name] = self.linear(f"heads/{name}/output", features)
        if self.model["second_heads"]:
            plain = [F.log_softmax(logits[n], 1) for n in logits if n not in self.model["colour_heads"]]
            quarter = F.avg_pool2d(rgb, 4, ceil_mode=True, count_include_pad=False)
            seen = torch.cat([*plain, self.histogram(quarter), colour], 1)
            for name in self.model["second_heads"]:
                hidden = self.normalise(f"second/{name}/norm", seen).clamp(-10, 10)
                second = self.linear(
                    f"second/{name}/head/output", F.relu(self.linear(f"second/{name}/head/hidden/0", hidden))
                )
                weight, first = float(self.numbers[f"params/second/{name}/weight"][0]), logits[name]
                mixed = (1 - weight) * F.log_softmax(first, 1) + weight * F.log_softmax(second, 1)
                logits[name] = F.log_softmax(mixed, 1) + torch.logsumexp(first, 1, keepdim=True)
        return logits, features

    @property
    def coloured(self) -> bool:
        """Whether there are colour heads."""
        return bool(self.model["colour_heads"])

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """Returns generalised means over height and width."""
        power = float(self.numbers["params/backbone/gem/0/power"][0].clamp(1, 10))
        return x.clamp(min=1e-6).pow(power).mean((2, 3)).pow(1 / power)

    def colour(self, rgb: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
        """Returns the colour features."""
        lab = cielab(rgb)
        weight = foreground(lab)
        x = lab / 50
        mean = pooled(x, weight)
        deviation = (pooled(x * x, weight) - mean * mean).clamp(min=1e-4).sqrt()
        pixels = x.permute(0, 2, 3, 1)
        pixels = F.relu(self.linear("colour/0/pixels/0", pixels))
        pixels = F.relu(pixels @ self.numbers["params/colour/0/pixels/1/kernel"]).permute(0, 3, 1, 2)
        half = F.interpolate(weight, maps[1].shape[2:], mode="bilinear", antialias=True)
        parts = [pooled(maps[0], weight), pooled(maps[1], half), mean, deviation, pooled(pixels, weight)]
        return self.normalise("colour/0/norm", torch.cat(parts, 1))

    def histogram(self, rgb: torch.Tensor) -> torch.Tensor:
        """Returns the colour histogram."""
        lab = cielab(rgb)
        weight = foreground(lab)
        chroma = lab[:, 1:].sign() * torch.log1p(lab[:, 1:].abs() / 10) / math.log1p(6)
        first, second = (memberships((chroma[:, [place]] + 1) / 2, 9).flatten(2) for place in (0, 1))
        light = (memberships(lab[:, :1] / 100, 8) * weight).flatten(2)
        both = (first[:, :, None] * second[:, None]).flatten(1, 2)
        return ((light @ both.transpose(1, 2)).flatten(1) / weight.sum((2, 3))).clamp(min=0).sqrt()


def cielab(rgb: torch.Tensor) -> torch.Tensor:
    """Returns CIELAB of sRGB, NCHW."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = F.conv2d(linear, torch.tensor(TO_XYZ, dtype=torch.float32)[:, :, None, None])
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=1e-4) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def foreground(lab: torch.Tensor) -> torch.Tensor:
    """Returns how likely a pixel is the product's."""
    away = ((lab - torch.tensor([100.0, 0.0, 0.0])[:, None, None]) ** 2).sum(1, keepdim=True)
    return torch.sigmoid((away + 1e-4).sqrt() - 8) + 1e-4


def pooled(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Returns weighted means over the pixels."""
    return (x * weight).sum((2, 3)) / weight.sum((2, 3))


def memberships(places: torch.Tensor, bins: int) -> torch.Tensor:
    """Returns how much a value belongs to each of `bins` centres."""
    scaled = places.clamp(0, 1) * (bins - 1)
    return F.relu(1 - (scaled - torch.arange(bins, dtype=torch.float32)[:, None, None]).abs())


def _conv_norm(channels: int, outputs: int, side: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, outputs, side, stride, side // 2, bias=False), nn.BatchNorm2d(outputs))


class _Block(nn.Module):
    """A basic block, or a bottleneck with the stride on its 3x3 convolution."""

    def __init__(self, channels: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        relu = nn.ReLU(inplace=True)
        if bottleneck:
            first, second = _conv_norm(channels, width, 1), _conv_norm(width, width, 3, stride)
            self.layers = nn.Sequential(first, relu, second, relu, _conv_norm(width, outputs, 1))
        else:
            first, second = _conv_norm(channels, width, 3, stride), _conv_norm(width, width, 3)
            self.layers = nn.Sequential(first, relu, second)
        changes = stride != 1 or channels != outputs
        self.shortcut = _conv_norm(channels, outputs, 1, stride) if changes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the next maps."""
        return F.relu(self.layers(x) + self.shortcut(x), inplace=True)


class MultiHeadResNet(nn.Module):
    """A ResNet with a dense head for each attribute, as the peer of `train_step.py`."""

    def __init__(self, depth: int, width: int, classes: dict[str, int], *, small: bool) -> None:
        super().__init__()
        bottleneck, channels = depth >= 50, width
        stem = [_conv_norm(3, width, 3 if small else 7, 2), nn.ReLU(inplace=True)]
        self.stem = nn.Sequential(*stem, *([] if small else [nn.MaxPool2d(3, 2, 1)]))
        blocks = []
        for stage, count in enumerate({**LAYERS, 50: (3, 4, 6, 3)}[depth]):
            for index in range(count):
                stride = 2 if index == 0 and stage else 1
                blocks.append(_Block(channels, width * 2**stage, stride, bottleneck=bottleneck))
                channels = width * 2**stage * (4 if bottleneck else 1)
        self.blocks = nn.Sequential(*blocks)
        self.heads = nn.ModuleDict({name: nn.Linear(channels, count) for name, count in classes.items()})

    def forward(self, photos: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns attribute -> logits."""
        features = self.blocks(self.stem(photos)).mean((2, 3))
        return {name: head(features) for name, head in self.heads.items()}
