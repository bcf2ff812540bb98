"""The named architectures of si_jax in PyTorch, to be written beside exported weights.

`si_jax.interop.export` copies this file with SETTINGS, WEIGHTS and ACTIVATION filled in. It needs torch alone
(and safetensors if the weights are a file of that kind): `build()` returns the network in evaluation mode,
images [B, C, H, W] in [0, 1] -> logits [B, K].
"""

import pathlib

import torch
from torch import nn
from torch.nn import functional as F

SETTINGS: dict = {}
WEIGHTS = ''
ACTIVATION = 'relu'
LAYERS = ('layer1', 'layer2', 'layer3', 'layer4')


def activate(x):
    return getattr(F, ACTIVATION)(x)


def conv(inputs, filters, size, stride=1):
    return nn.Conv2d(inputs, filters, size, stride, (size - 1) // 2, bias=False)


class Cosine(nn.Linear):
    """The last layer of hypersphere embedding: no bias, and features of length one."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x):
        return super().forward(F.normalize(x, dim=1))


def last(inputs, outputs, hypersphere):
    return (Cosine if hypersphere else nn.Linear)(inputs, outputs)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs, filters, stride, relu_before_sum):
        super().__init__()
        self.relu_before_sum = relu_before_sum
        self.conv1 = conv(inputs, filters, 3, stride)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = conv(filters, filters, 3)
        self.bn2 = nn.BatchNorm2d(filters)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != filters:
            self.shortcut = nn.Sequential(conv(inputs, filters, 1, stride), nn.BatchNorm2d(filters))

    def forward(self, x):
        y = self.bn2(self.conv2(activate(self.bn1(self.conv1(x)))))
        if self.relu_before_sum:
            y = activate(y)
        return activate(y + self.shortcut(x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs, filters, stride, relu_before_sum):
        super().__init__()
        outputs = filters * self.expansion
        self.conv1 = conv(inputs, filters, 1)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = conv(filters, filters, 3, stride)
        self.bn2 = nn.BatchNorm2d(filters)
        self.conv3 = conv(filters, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = activate(self.bn1(self.conv1(x)))
        y = activate(self.bn2(self.conv2(y)))
        return activate(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(
        self,
        num_classes,
        width,
        channels,
        hypersphere,
        blocks,
        bottleneck=False,
        relu_before_sum=False,
        imagenet_stem=False,
    ):
        super().__init__()
        block = Bottleneck if bottleneck else BasicBlock
        self.imagenet_stem = imagenet_stem
        self.conv1 = conv(channels, width, 7, 2) if imagenet_stem else conv(channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, (name, count) in enumerate(zip(LAYERS, blocks, strict=True)):
            filters, layers = width * 2**stage, []
            for i in range(count):
                layers.append(block(inputs, filters, 2 if stage and not i else 1, relu_before_sum))
                inputs = filters * block.expansion
            self.add_module(name, nn.Sequential(*layers))
        self.linear = last(inputs, num_classes, hypersphere)

    def forward(self, x):
        x = activate(self.bn1(self.conv1(x)))
        if self.imagenet_stem:
            x = F.max_pool2d(x, 3, 2, 1)
        for name in LAYERS:
            x = self.get_submodule(name)(x)
        return self.linear(x.mean((2, 3)))


class PreActBlock(nn.Module):
    def __init__(self, inputs, filters, stride, preactivated_shortcut):
        super().__init__()
        self.preactivated_shortcut = preactivated_shortcut
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, filters, 3, stride)
        self.bn2 = nn.BatchNorm2d(filters)
        self.conv2 = conv(filters, filters, 3)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != filters:
            self.shortcut = nn.Sequential(conv(inputs, filters, 1, stride))

    def forward(self, x):
        y = activate(self.bn1(x))
        if self.shortcut is not None:
            x = self.shortcut(y if self.preactivated_shortcut else x)
        return self.conv2(activate(self.bn2(self.conv1(y)))) + x


class PreActResNet(nn.Module):
    def __init__(self, num_classes, width, channels, hypersphere, preactivated_shortcut, final_norm):
        super().__init__()
        self.conv1 = conv(channels, width, 3)
        inputs = width
        for stage, name in enumerate(LAYERS):
            filters, layers = width * 2**stage, []
            for stride in (2 if stage else 1, 1):
                layers.append(PreActBlock(inputs, filters, stride, preactivated_shortcut))
                inputs = filters
            self.add_module(name, nn.Sequential(*layers))
        self.bn = nn.BatchNorm2d(inputs) if final_norm else None
        self.linear = last(inputs, num_classes, hypersphere)

    def forward(self, x):
        x = self.conv1(x)
        for name in LAYERS:
            x = self.get_submodule(name)(x)
        if self.bn is not None:
            x = activate(self.bn(x))
        return self.linear(x.mean((2, 3)))


class WideBlock(nn.Module):
    def __init__(self, inputs, filters, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, filters, 3, stride)
        self.bn2 = nn.BatchNorm2d(filters)
        self.conv2 = conv(filters, filters, 3)
        self.convShortcut = conv(inputs, filters, 1, stride) if inputs != filters else None

    def forward(self, x):
        y = activate(self.bn1(x))
        if self.convShortcut is not None:
            x = self.convShortcut(y)
        return self.conv2(activate(self.bn2(self.conv1(y)))) + x


class WideStage(nn.Module):
    def __init__(self, inputs, filters, stride, blocks):
        super().__init__()
        rest = [WideBlock(filters, filters, 1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(WideBlock(inputs, filters, stride), *rest)

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, num_classes, width, channels, hypersphere, depth, widen):
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = conv(channels, width, 3)
        self.block1 = WideStage(width, width * widen, 1, blocks)
        self.block2 = WideStage(width * widen, 2 * width * widen, 2, blocks)
        self.block3 = WideStage(2 * width * widen, 4 * width * widen, 2, blocks)
        self.bn1 = nn.BatchNorm2d(4 * width * widen)
        self.fc = last(4 * width * widen, num_classes, hypersphere)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(activate(self.bn1(x)).mean((2, 3)))


class SmallCNN(nn.Module):
    def __init__(self, num_classes, width, channels, hypersphere, flat):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, 2, 1)
        self.hidden = nn.Linear(flat, 8 * width)
        self.linear = last(8 * width, num_classes, hypersphere)

    def forward(self, x):
        x = activate(self.conv3(activate(self.conv2(activate(self.conv1(x))))))
        # Channels last when flattened, as in the JAX network.
        return self.linear(activate(self.hidden(x.permute(0, 2, 3, 1).flatten(1))))


class Normalised(nn.Module):
    """A network behind the normalisation of its input."""

    def __init__(self, network, mean, std):
        super().__init__()
        self.network = network
        self.register_buffer('mean', torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer('std', torch.tensor(std).reshape(1, -1, 1, 1))

    def forward(self, images):
        return self.network((images - self.mean) / self.std)


def build(weights=None):
    """The network with its weights, by default those of the file beside this one."""
    settings = dict(SETTINGS)
    network = globals()[settings.pop('network')]
    normalisation = settings.pop('normalisation')
    network = network(**settings)
    weights = pathlib.Path(weights or pathlib.Path(__file__).with_name(WEIGHTS))
    if weights.suffix == '.safetensors':
        from safetensors.torch import load_file

        network.load_state_dict(load_file(weights))
    else:
        network.load_state_dict(torch.load(weights, map_location='cpu', weights_only=True))
    if normalisation is not None:
        network = Normalised(network, *normalisation)
    return network.eval()
