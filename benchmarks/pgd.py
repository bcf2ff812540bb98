"""PGD-10 images a second, here and in torchattacks, on the same weights in the same run.

    pip install torch torchattacks requests
    python -m benchmarks.pgd --output=results/pgd_speed.json

Ours and theirs take turns, so that a machine that slows down slows both; quoted are the ratio of each turn
and its spread. Compilation is not counted (the first turn of each is left out).
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchattacks

from benchmarks.spread import spread
from si_jax import attacks, models
from si_jax.environment import environment
from si_jax.files import write_json
from si_jax.threat import Threat

F = torch.nn.functional
EPS, STEP_SIZE, STEPS = 8 / 255, 2 / 255, 10


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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.blocks(F.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


def ours(width: int, images: np.ndarray, labels: np.ndarray):
    model = models.create('resnet18', num_classes=10, width=width)
    x, y = jnp.asarray(images), jnp.asarray(labels)
    variables = model.init(jax.random.key(0), x[:1])
    threat = Threat('linf', EPS)

    @jax.jit
    def attack(variables, x, y, keys):
        return attacks.run(
            attacks.ATTACKS['pgd'], lambda x, _: model.apply(variables, x), x, y, keys,
            threat=threat, steps=STEPS, step_size=STEP_SIZE,
        ).last  # fmt: skip

    keys = jax.random.split(jax.random.key(1), len(labels))
    return lambda: jax.block_until_ready(attack(variables, x, y, keys))


def theirs(width: int, images: np.ndarray, labels: np.ndarray):
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(memory_format=torch.channels_last)
    y = torch.from_numpy(labels).long()
    model = TorchResNet18(width).eval().to(memory_format=torch.channels_last)
    attack = torchattacks.PGD(model, eps=EPS, alpha=STEP_SIZE, steps=STEPS, random_start=True)
    return lambda: attack(x, y)


def seconds(function) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def measure(width: int, batch: int, turns: int) -> dict:
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(batch, 32, 32, 3)).astype(np.float32)
    labels = rng.integers(0, 10, batch).astype(np.int32)
    programs = {'si_jax': ours(width, images, labels), 'torchattacks': theirs(width, images, labels)}
    for program in programs.values():
        program()
    rates: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(turns):
        for name, program in programs.items():
            rates[name].append(batch / seconds(program))
    ratios = [a / b for a, b in zip(rates['si_jax'], rates['torchattacks'], strict=True)]
    return {
        'network': 'ResNet-18' if width == 64 else f'ResNet-18 of width {width}',
        'batch': batch,
        'images_per_second': {name: spread(values) for name, values in rates.items()},
        'ratio': spread(ratios),
    }


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument('--output', help='JSON file')
    flags.add_argument('--turns', type=int, default=7)
    given = flags.parse_args()
    rows = [measure(8, 64, given.turns), measure(64, 32, given.turns)]
    for row in rows:
        rates, ratio = row['images_per_second'], row['ratio']
        print(
            f'{row["network"]}, batch {row["batch"]}: si_jax {rates["si_jax"]["median"]:.1f}, torchattacks '
            f'{rates["torchattacks"]["median"]:.1f} images/s; ratio {ratio["median"]:.2f} '
            f'({ratio["min"]:.2f} to {ratio["max"]:.2f})'
        )
    versions = {
        'torch': torch.__version__,
        'torchattacks': torchattacks.__version__,
        'threads': torch.get_num_threads(),
    }
    if given.output:
        settings = {'attack': 'PGD', 'steps': STEPS, 'eps': EPS, 'step_size': STEP_SIZE, 'turns': given.turns}
        write_json(
            given.output, {'settings': settings, 'rows': rows, 'peer': versions, 'environment': environment()}
        )


if __name__ == '__main__':
    main()
