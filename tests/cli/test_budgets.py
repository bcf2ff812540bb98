"""Settings in names, and targets, on the command line: through result, compare, page and resume."""

import json
from pathlib import Path

import numpy as np
import pytest

from si_jax import data
from si_jax.cli import evaluate, report

MODEL = """
import jax.numpy as jnp
from si_jax import data

def build():
    train = data.load('digits', 'train')
    pixels = train.images.reshape(-1, 64) / train.scale
    means = jnp.stack([pixels[train.labels == digit].mean(0) for digit in range(10)]).astype('float32')
    bias = -jnp.sum(means**2, axis=1)
    return lambda images: 2 * images.reshape(len(images), -1) @ means.T + bias
"""
NAME = 'pgd(steps=2, step_size=1/255)'
FLAGS = ['--model=net.py:build', '--dataset=digits', '--num_examples=20', '--eps=0.1']


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'net.py').write_text(MODEL)
    return tmp_path


def refused(capsys, *flags):
    assert evaluate.main([*FLAGS, *flags]) == 2
    return ' '.join(capsys.readouterr().err.split())


def test_a_name_goes_through_result_compare_and_page(here, capsys):
    attacks = '--attacks=pgd( step_size=1/255,steps=2 ),square(queries=20)'
    assert evaluate.main([*FLAGS, attacks, '--save_images']) == 0
    out = capsys.readouterr().out
    assert NAME in out
    (path,) = (here / 'evaluation').glob('*.json')
    assert path.name.startswith('net-pgd_steps=2_step_size=1-255-square_queries=20-')
    assert list(json.loads(path.read_text())['attacks']) == [NAME, 'square(queries=20)']
    # The same command, spelt otherwise, has the same file.
    assert evaluate.main([*FLAGS, f'--attacks={NAME},square(queries=20, restarts=1)', '--save_images']) == 0
    assert list((here / 'evaluation').glob('*.json')) == [path]
    assert evaluate.main(['compare', str(path), str(path)]) == 0
    assert NAME in capsys.readouterr().out
    assert report.main([f'--workdirs={path}', '--out=page', '--gallery=2']) == 0
    page = Path('page/index.html').read_text()
    assert NAME in page and 'square(queries=20)' in page
    assert 'is not shown' not in capsys.readouterr().err


def test_targets_from_a_file(here, capsys):
    labels = data.load('digits', 'test').labels[:20]
    np.save('aims.npy', (labels + 1) % 10)
    attacks = [f'--attacks={NAME}', '--output=aimed.json']
    assert evaluate.main([*FLAGS, *attacks, '--targets=aims.npy']) == 0
    assert 'a target was reached on ' in capsys.readouterr().out
    assert 0 <= json.loads(Path('aimed.json').read_text())['attacks'][NAME]['success'] <= 1
    np.save('labels.npy', labels)
    assert 'is the label of that image' in refused(capsys, *attacks, '--targets=labels.npy')
    assert 'give one of random, least-likely, all, or a file' in refused(capsys, *attacks, '--targets=most')
    assert 'no meaning with --audit' in refused(capsys, '--audit', '--targets=all')


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (['--attacks=pgd(steps=0)'], 'steps=0 of pgd must be an integer of at least 1'),
        (['--attacks=pgd(steps=2'], "the parentheses of 'pgd(steps=2' do not match"),
        (['--attacks=pgd(steps=2)', '--steps=3'], 'steps=3 is given, and pgd(steps=2) does not take it'),
        (['--attacks=apgd-ce', '--steps=3'], 'as in apgd-ce(steps=3)'),
        (['--audit', '--attacks=pgd(steps=2)'], "the audit of 'pgd(steps=2)' would change its settings"),
        (['--audit', '--attacks=pgd(steps=2),cw'], '--audit judges one attack at a time'),
    ],
)
def test_refusals(here, capsys, flags, words):
    assert words in refused(capsys, *flags)
