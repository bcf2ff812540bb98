"""evaluate.py on PyTorch's models: reference accuracies, checkpoints by flags, and what is refused."""

import json
import pathlib

import jax
import numpy as np
import pytest

from si_jax import models
from si_jax.cli import evaluate
from si_jax.cli import evaluate as evaluate_command
from si_jax.evaluation import gates
from si_jax.interop import torch_files, torch_weights
from tests.helpers.processes import optimised

torch = pytest.importorskip('torch', reason="the networks are PyTorch's")


MODEL = """
import pathlib
from tests.interop.test_torch_graph import reference_network

def build():
    return reference_network(pathlib.Path({shared!r}), {name!r})[0]
"""


NETWORKS = {'kw_base': 8, 'resnet4b': 2}  # with their radii, of 255; tests/evaluation has cnn_a_adv4
FAMILY = ('pgd', 'cw', 'dlr', 'sipgd')


@pytest.fixture(scope='module')
def measured(shared, tmp_path_factory):
    """The folder of the results, from one process that has imported PyTorch once."""
    folder = tmp_path_factory.mktemp('reference')
    flags = ['--dataset=cifar10', f'--data_dir={shared / "data"}', '--num_examples=1000', '--seed=1']
    commands = []
    for name, eps in NETWORKS.items():
        (folder / f'{name}.py').write_text(MODEL.format(shared=str(shared), name=name))
        own = [f'--model={folder / name}.py:build', f'--eps={eps}/255', f'--output={folder / name}.json']
        commands.append([*own, *flags, f'--attacks={",".join(FAMILY)}'])
    optimised('-c', f'import evaluate; assert not any([evaluate.main(words) for words in {commands!r}])')
    return folder


@pytest.mark.parametrize('name', NETWORKS)
def test_reference_accuracy_from_the_command_line(shared, measured, name):
    result = json.loads((measured / f'{name}.json').read_text())
    reference = json.loads((shared / 'reference' / f'{name}.json').read_text())
    assert result['clean']['accuracy'] == pytest.approx(reference['clean'])
    # One seed against the mean of five.
    for attack in FAMILY:
        assert abs(result['attacks'][attack]['accuracy'] - reference[attack]['mean']) <= 0.003 + 1e-6, attack


FLAGS = ['--dataset=digits', '--num_examples=64', '--attacks=sipgd', '--steps=1', '--output=result.json']


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A file of the small network for digits, with weights drawn at random."""
    monkeypatch.chdir(tmp_path)
    model = models.create('small_cnn', num_classes=10, width=2)
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    arrays = torch_weights.to_torch(variables)

    def write(name='net.pt', prefix='', **changed):
        torch_files.write(tmp_path / name, {prefix + key: array for key, array in (arrays | changed).items()})
        return [f'--torch_checkpoint={name}', '--arch=small_cnn', *FLAGS]

    return write


def run(capsys, flags, status=0):
    assert evaluate_command.main(flags) == status
    err = capsys.readouterr().err
    return json.loads(pathlib.Path('result.json').read_text()) if status == 0 else err


@pytest.mark.parametrize('name', ['net.pt', 'net.safetensors'])
def test_a_checkpoint_from_the_command_line(checkpoint, capsys, name):
    if name.endswith('safetensors'):
        pytest.importorskip('safetensors', reason='writes the file')
    result = run(capsys, [*checkpoint(name, 'module.'), '--normalise=2x-1'])
    assert result['model']['torch_checkpoint'] == name
    assert result['model']['arch'] == 'small_cnn' and result['model']['normalise'] == '2x-1'
    # Weights drawn at random are right by chance.
    warning, *others = result['warnings']
    assert all(one.startswith('every image gets class') for one in others)  # so do such weights
    assert 'is near chance (10 %): a clean accuracy far below the stated one' in warning
    assert "normalise='none'" in warning
    warning = run(capsys, [*checkpoint(name), '--stated_clean=0.8492'])['warnings'][0]
    assert 'far below the stated 84.92 %' in warning and "normalise='2x-1'" in warning


def test_checkpoints_that_do_not_fit_are_refused_before_any_compute(checkpoint, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError('the evaluation began')

    monkeypatch.setattr(evaluate, 'evaluate', fail)
    bias = np.zeros(10, np.float32)
    assert 'NaN or infinite, in linear.bias (1' in run(
        capsys, checkpoint(**{'linear.bias': np.where(np.arange(10) == 1, np.nan, bias)}), 2
    )
    weight = {'linear.weight': np.zeros((7, 16), np.float32), 'linear.bias': bias[:7]}
    assert 'the checkpoint has 7 classes, num_classes is 10' in run(capsys, checkpoint(**weight), 2)
    flags = checkpoint()
    assert 'the names are not those of resnet18' in run(capsys, [*flags, '--arch=resnet18'], 2)
    assert "unknown architecture 'resnet19'" in run(capsys, [*flags, '--arch=resnet19'], 2)
    assert "normalise='cifar10' is made for 3 channels" in run(capsys, [*flags, '--normalise=cifar10'], 2)
    assert "unknown normalisation 'imagnet'" in run(capsys, [*flags, '--normalise=imagnet'], 2)
    assert "unknown variant of small_cnn 'gat'" in run(capsys, [*flags, '--variant=gat'], 2)
    path = pathlib.Path('net.pt')
    path.write_bytes(path.read_bytes()[:500])
    assert 'net.pt is truncated or damaged' in run(capsys, flags, 2)


def test_when_a_clean_accuracy_is_suspicious():
    def warned(accuracy, highest, stated=None):
        return bool(gates.clean(accuracy, highest, 10, stated, 'try'))

    assert warned(0.10, 0.11) and warned(0.05, 0.30)
    assert not warned(0.5, 0.6) and not warned(0.3, 0.6)
    assert warned(0.82, 0.83, 0.85) and not warned(0.845, 0.849, 0.8492) and not warned(0.80, 0.87, 0.85)
