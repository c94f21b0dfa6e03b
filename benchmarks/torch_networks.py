"""The package's networks in plain PyTorch, for ``versus_torch.py``: each takes its layers from ``conv`` and ``linear``.

``Dense`` makes PyTorch's own layers. ``TwoConvolutions`` computes a DCT layer as the original code does: one
convolution with the fixed DCT kernel, times α, plus one with the masked trainable kernel.
"""

import math
from typing import Any

import numpy as np

# PyTorch is an extra ("versus"), and not installed where types are checked.
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from dctps_jax import dct, pruning

VGG19 = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)
# (expansion, features, blocks, stride of the first block)
MOBILENET = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class Dense:
    """Makes PyTorch's own layers."""

    def conv(self, in_features: int, features: int, size: int, *, stride: int = 1, padding: int = 0, groups: int = 1):
        return nn.Conv2d(in_features, features, size, stride, padding, groups=groups, bias=False)

    def linear(self, in_features: int, features: int, bias: bool = True) -> nn.Module:
        return nn.Linear(in_features, features, bias)


class TwoConvolutions:
    """Makes layers that compute α·conv(x, D) + conv(x, M⊙W)."""

    def conv(self, in_features: int, features: int, size: int, *, stride: int = 1, padding: int = 0, groups: int = 1):
        shape = (size, size, in_features // groups, features)

        def apply(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
            return F.conv2d(x, kernel, None, stride, padding, groups=groups)

        return OffsetLayer(shape, (3, 2, 0, 1), apply, bias=False)

    def linear(self, in_features: int, features: int, bias: bool = True) -> nn.Module:
        return OffsetLayer((in_features, features), (1, 0), F.linear, bias)


class OffsetLayer(nn.Module):
    """A layer with a fixed DCT kernel, its factor α, and a masked kernel that starts at zero."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...], apply: Any, bias: bool):
        super().__init__()
        self.shape, self.axes, self.apply_kernel = shape, axes, apply
        offset = torch.tensor(dct.conv_kernel(shape), dtype=torch.float32).permute(axes).contiguous()
        self.register_buffer("offset", offset)
        self.register_buffer("mask", torch.ones_like(offset))
        self.weight = nn.Parameter(torch.zeros_like(offset))
        self.alpha = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(shape[-1])) if bias else None

    def keep(self, positions: np.ndarray) -> None:
        """Train only the weights at these positions of the flattened kernel."""
        mask = np.zeros(math.prod(self.shape), np.float32)
        mask[positions] = 1
        self.mask.copy_(torch.from_numpy(mask.reshape(self.shape).transpose(self.axes).copy()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = self.alpha * self.apply_kernel(x, self.offset) + self.apply_kernel(x, self.mask * self.weight)
        return outputs if self.bias is None else outputs + self.bias


class LeNet(nn.Module):
    def __init__(self, make: Any, num_classes: int):
        super().__init__()
        self.convs = nn.ModuleList([make.conv(3, 6, 5), make.conv(6, 16, 5), make.conv(16, 120, 5)])
        self.fcs = nn.ModuleList([make.linear(120, 82, False), make.linear(82, num_classes, False)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool2d(F.relu(self.convs[0](x)), 2)
        x = F.avg_pool2d(F.relu(self.convs[1](x)), 2)
        x = F.relu(self.convs[2](x)).mean((2, 3))
        return self.fcs[1](F.relu(self.fcs[0](x)))


def vgg19(make: Any, num_classes: int) -> nn.Module:
    layers, in_features = [], 3
    for stage, channels in enumerate(VGG19):
        if stage > 0:
            layers.append(nn.MaxPool2d(2))
        for features in channels:
            layers += [make.conv(in_features, features, 3, padding=1), nn.BatchNorm2d(features), nn.ReLU(inplace=True)]
            in_features = features
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), make.linear(in_features, num_classes))


class Bottleneck(nn.Module):
    def __init__(self, make: Any, in_features: int, features: int, stride: int):
        super().__init__()
        out_features = 4 * features
        self.conv1, self.bn1 = make.conv(in_features, features, 1), nn.BatchNorm2d(features)
        self.conv2, self.bn2 = make.conv(features, features, 3, stride=stride, padding=1), nn.BatchNorm2d(features)
        self.conv3, self.bn3 = make.conv(features, out_features, 1), nn.BatchNorm2d(out_features)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_features != out_features:
            projection = make.conv(in_features, out_features, 1, stride=stride)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


def resnet50(make: Any, num_classes: int) -> nn.Module:
    layers, in_features = [make.conv(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(inplace=True)], 64
    for stage, depth in enumerate((3, 4, 6, 3)):
        features = 64 * 2**stage
        for index in range(depth):
            layers.append(Bottleneck(make, in_features, features, 2 if stage > 0 and index == 0 else 1))
            in_features = 4 * features
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), make.linear(in_features, num_classes))


class InvertedResidual(nn.Module):
    def __init__(self, make: Any, in_features: int, features: int, expansion: int, stride: int):
        super().__init__()
        hidden, self.stride = expansion * in_features, stride
        self.conv1, self.bn1 = make.conv(in_features, hidden, 1), nn.BatchNorm2d(hidden)
        self.conv2 = make.conv(hidden, hidden, 3, stride=stride, padding=1, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3, self.bn3 = make.conv(hidden, features, 1), nn.BatchNorm2d(features)
        self.shortcut = nn.Sequential()
        if stride == 1 and in_features != features:
            self.shortcut = nn.Sequential(make.conv(in_features, features, 1), nn.BatchNorm2d(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return out if self.stride != 1 else out + self.shortcut(x)


def mobilenet_v2(make: Any, num_classes: int) -> nn.Module:
    layers, in_features = [make.conv(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(inplace=True)], 32
    for expansion, features, num_blocks, first_stride in MOBILENET:
        for index in range(num_blocks):
            layers.append(InvertedResidual(make, in_features, features, expansion, first_stride if index == 0 else 1))
            in_features = features
    layers += [make.conv(in_features, 1280, 1), nn.BatchNorm2d(1280), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), make.linear(1280, num_classes))


class FixupBlock(nn.Module):
    def __init__(self, make: Any, in_features: int, features: int, stride: int):
        super().__init__()
        self.stride = stride
        self.bias1a, self.bias1b, self.bias2a, self.bias2b = (nn.Parameter(torch.zeros(())) for _ in range(4))
        self.scale = nn.Parameter(torch.ones(()))
        self.conv1 = make.conv(in_features, features, 3, stride=stride, padding=1)
        self.conv2 = start_at_zero(make.conv(features, features, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.conv1(x + self.bias1a) + self.bias1b)
        out = self.conv2(out + self.bias2a) * self.scale + self.bias2b
        if self.stride != 1:
            x = (x + self.bias1a)[:, :, :: self.stride, :: self.stride]
            x = torch.cat((x, torch.zeros_like(x)), 1)
        return F.relu(out + x)


class FixupResNet110(nn.Module):
    def __init__(self, make: Any, num_classes: int):
        super().__init__()
        self.conv1 = make.conv(3, 16, 3, padding=1)
        self.bias1, self.bias2 = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        blocks, in_features = [], 16
        for features in (16, 32, 64):
            for index in range(18):
                blocks.append(FixupBlock(make, in_features, features, 2 if features > 16 and index == 0 else 1))
                in_features = features
        self.blocks, self.fc = nn.Sequential(*blocks), start_at_zero(make.linear(64, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(F.relu(self.conv1(x) + self.bias1))
        return self.fc(x.mean((2, 3)) + self.bias2)


def start_at_zero(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


NETWORKS = {
    "lenet": LeNet,
    "vgg19": vgg19,
    "resnet50": resnet50,
    "mobilenet_v2": mobilenet_v2,
    "fixup_resnet110": FixupResNet110,
}


def build(network: str, num_classes: int, density: float | None) -> nn.Module:
    """Return a dense network, or one with the DCT offset and random masks, equally many weights in each layer."""
    model = NETWORKS[network](Dense() if density is None else TwoConvolutions(), num_classes)
    if density is not None:
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, OffsetLayer)}
        shapes = {name: layer.shape for name, layer in layers.items()}
        rng = np.random.default_rng(0)
        for name, count in pruning.allocate(shapes, density, "epl").items():
            layers[name].keep(rng.choice(math.prod(shapes[name]), count, replace=False))
    return model


def num_trainable(model: nn.Module) -> int:
    """Return how many numbers are trained. Masked weights do not count."""
    masked = sum(int((layer.mask == 0).sum()) for layer in model.modules() if isinstance(layer, OffsetLayer))
    return sum(parameter.numel() for parameter in model.parameters()) - masked
