"""Each command of docs/table5.md is one that evaluate.py takes, for the network of its row."""

import pathlib
import re
import shlex

import jax
import jax.numpy as jnp
import pytest

from si_jax import attacks, models
from si_jax.cli import evaluate

PAGE = (pathlib.Path(__file__).resolve().parents[2] / 'docs' / 'table5.md').read_text()
ROWS = [re.split(r' *\| *', line)[1:-1] for line in PAGE.splitlines() if re.match(r'\| \w.*\d\d\.\d\d', line)]
COMMANDS = dict(re.findall(r'^## (.*)\n\n    python evaluate\.py (.*)$', PAGE, re.MULTILINE))


def test_there_is_a_command_for_each_row():
    assert len(ROWS) == 7
    assert list(COMMANDS) == [f'{defense.removesuffix(" †")}, {model}' for defense, model, *_ in ROWS]


@pytest.mark.parametrize(('title', 'row'), list(zip(COMMANDS, ROWS, strict=True)))
def test_the_command_is_that_of_its_row(title, row):
    flags = evaluate.parser().parse_args(shlex.split(COMMANDS[title]))
    assert flags.workdir is None and flags.model is None and flags.torch_checkpoint.endswith('.pt')
    assert (flags.dataset, flags.eps, flags.steps, flags.restarts) == ('cifar10', 8 / 255, None, 5)
    assert attacks.parse(flags.attacks) == ('pgd', 'cw', 'dlr', 'sipgd')
    assert flags.stated_clean == pytest.approx(float(row[2]) / 100)
    assert flags.normalise in models.NORMALISATIONS
    assert flags.arch == re.sub(r'\W', '_', row[1].lower().replace('resnet-', 'resnet'))
    network = models.create(flags.arch, num_classes=10, variant=flags.variant, normalise=flags.normalise)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    outputs, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    width = {'resnet50': 2048, 'resnet18': 512}.get(flags.arch, 640)
    assert outputs.kernel.shape == (width, 10)
