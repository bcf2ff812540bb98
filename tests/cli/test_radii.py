"""evaluate.py with several radii, with --smallest and with --eight_bit."""

import json

import numpy as np
import pytest

from si_jax import Smallest, Sweep
from si_jax.cli import evaluate
from tests.helpers.searches import quicken

MODEL = """
import jax.numpy as jnp
import numpy as np

KERNEL = np.random.default_rng(0).normal(size=(64, 10)).astype('float32')

def build():
    return lambda images: images.reshape(len(images), -1) @ jnp.asarray(KERNEL)
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    quicken(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'net.py').write_text(MODEL)
    # Digits come in sixteenths; these are bytes.
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
    kernel = np.random.default_rng(0).normal(size=(64, 10))
    labels = np.argmax(images.reshape(40, -1) / 255 @ kernel, axis=1)
    np.savez(tmp_path / 'train.npz', images=images[:20], labels=np.arange(20) % 10)
    np.savez(tmp_path / 'test.npz', images=images[20:], labels=labels[20:])
    return ['--model=net.py:build', '--dataset=npz:.', '--num_examples=8', '--attacks=pgd', '--steps=3']


def refused(capsys, *arguments):
    assert evaluate.main(list(arguments)) == 2
    return capsys.readouterr().err


def test_several_radii_and_pictures(model, tmp_path, capsys):
    flags = [*model, '--eps=0,1/255,4/255', '--output=o/all.json', '--eight_bit', '--save_images=png']
    assert evaluate.main(flags) == 0
    swept = Sweep.load(tmp_path / 'o' / 'all.json')
    np.testing.assert_allclose(swept.eps, [0, 1 / 255, 4 / 255])
    assert swept.accuracy['pgd'][0] == 1 and (np.diff(swept.accuracy['pgd']) <= 0).all()
    assert f'{100 * swept.accuracy["pgd"][2]:.2f}' in capsys.readouterr().out
    names = {path.name for path in (tmp_path / 'o').iterdir()}
    assert {'all.json', 'all.npz', 'all.png', 'all-linf-0.0156863.json'} <= names
    assert not any(name.endswith(('.partial', '_images.npz')) for name in names)
    assert len(list((tmp_path / 'o' / 'all-linf-0.0156863_images' / 'pgd').glob('*.png'))) == 8
    assert swept.results[2].about['eight_bit'] is True
    assert evaluate.main(flags) == 0  # what it wrote it may write again


def test_smallest(model, tmp_path, capsys):
    flags = [*model[:3], '--smallest', '--norm=l0', '--output=far.json']
    assert evaluate.main(flags) == 0
    measured = Smallest.load(tmp_path / 'far.json')
    assert measured.norm == 'l0' and list(measured.distances) == ['fmn'] and len(measured.labels) == 8
    assert 'smallest perturbations, l0, 8 images' in capsys.readouterr().out
    assert json.loads((tmp_path / 'far.json').read_text())['model'] == {'model': 'net.py:build'}
    assert evaluate.main(flags) == 0
    for extra, message in (
        (['--eps=0.1'], '--eps has no meaning with --smallest'),
        (['--steps=3'], '--steps has no meaning with --smallest'),
        (['--attacks=pgd'], 'pgd does not look for the nearest image'),
        (['--save_images=png'], 'needs --eight_bit'),
    ):
        assert message in refused(capsys, *flags, *extra)


def test_wrong_flags(model, capsys):
    for extra, message in (
        (['--eps=0,2'], 'eps=2 is not in (0, 1]'),
        (['--eps=0.1,0.1'], 'eps=0.1 is given twice'),
        (['--eps=0.1,0.2', '--threats=linf:0.1'], '--eps is given beside --threats'),
        (['--eps=0.1,0.2', '--audit'], '--eps has several radii, and --audit takes one'),
        (['--save_images=png'], '--save_images=png needs --eight_bit'),
        (['--norm=l0'], "norm='l0' is for smallest perturbations"),
        (['--eight_bit', '--dataset=digits'], 'has pixels between the bytes'),
    ):
        assert message in refused(capsys, *model, *extra)
