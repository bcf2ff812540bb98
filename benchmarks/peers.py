"""The same networks and methods in PyTorch, written well: channels last, no gradient of what is not used."""

from collections.abc import Callable

import numpy as np
import torch

F = torch.nn.functional
EPS, STEP_SIZE = 8 / 255, 2 / 255


class TorchBlock(torch.nn.Module):
    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(width)
        self.conv2 = torch.nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(width)
        self.shortcut = torch.nn.Sequential()
        if stride > 1 or channels != width:
            projection = torch.nn.Conv2d(channels, width, 1, stride, bias=False)
            self.shortcut = torch.nn.Sequential(projection, torch.nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class TorchResNet18(torch.nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(width)
        blocks, channels = [], width
        for factor, stride in ((1, 1), (2, 2), (4, 2), (8, 2)):
            blocks += [
                TorchBlock(channels, factor * width, stride),
                TorchBlock(factor * width, factor * width, 1),
            ]
            channels = factor * width
        self.blocks = torch.nn.Sequential(*blocks)
        self.linear = torch.nn.Linear(channels, 10)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(F.relu(self.bn1(self.conv1(x)))).mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.features(x))


class TorchSmallCNN(torch.nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        sizes = (3, width, 2 * width, 4 * width)
        self.convs = torch.nn.ModuleList(
            torch.nn.Conv2d(sizes[i], sizes[i + 1], 3, stride, 1) for i, stride in enumerate((1, 2, 2))
        )
        self.hidden = torch.nn.Linear(4 * width * 64, 8 * width)
        self.linear = torch.nn.Linear(8 * width, 10)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            x = F.relu(conv(x))
        return F.relu(self.hidden(x.flatten(1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.features(x))


def network(arch: str, width: int | None) -> torch.nn.Module:
    """The twin of `models.create(arch, num_classes=10, width=width)` on images of 32 x 32 pixels."""
    net = TorchSmallCNN() if arch == 'small_cnn' else TorchResNet18(width or 64)
    return net.to(memory_format=torch.channels_last)


def tensors(images: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [B, H, W, C] and labels, as PyTorch wants them."""
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(memory_format=torch.channels_last)
    return x, torch.from_numpy(labels).long()


def climb(
    loss: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    start: torch.Tensor,
    steps: int,
    step_size: float = STEP_SIZE,
) -> torch.Tensor:
    """PGD in the Linf ball around x; the gradient is taken of the images alone."""
    adv = start
    for _ in range(steps):
        adv = adv.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(adv), adv)
        adv = adv.detach() + step_size * slope.sign()
        adv = torch.clamp(torch.minimum(torch.maximum(adv, x - EPS), x + EPS), 0, 1)
    return adv.detach()


def start_of(x: torch.Tensor) -> torch.Tensor:
    return torch.clamp(x + torch.empty_like(x).uniform_(-EPS, EPS), 0, 1)


def cosines(net: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.linear(F.normalize(net.features(x)), F.normalize(net.linear.weight))


def kl(adv: torch.Tensor, nat: torch.Tensor) -> torch.Tensor:
    return F.kl_div(F.log_softmax(adv, 1), F.log_softmax(nat, 1), log_target=True, reduction='batchmean')
