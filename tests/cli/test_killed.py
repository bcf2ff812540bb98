"""A command that is killed while it writes its result can be repeated: the result is as if it never was."""

import json
import os
import pathlib

import matplotlib.figure
import numpy as np
import PIL.Image
import pytest

from si_jax.cli import evaluate, outputs
from tests.helpers.searches import quicken

MODEL = """
import jax.numpy as jnp
import numpy as np

KERNEL = np.random.default_rng(0).normal(size=(64, 10)).astype('float32')

def build():
    return lambda images: images.reshape(len(images), -1) @ jnp.asarray(KERNEL)
"""
SUBJECT = ['--model=net.py:build', '--dataset=npz:.', '--num_examples=8']
COMMANDS = {
    'images': ['--attacks=pgd', '--steps=2', '--eps=0.1', '--save_images'],
    'radii and pictures': ['--attacks=pgd', '--steps=2', '--eps=0.1,0.2', '--eight_bit', '--save_images=png'],
    'smallest': ['--smallest', '--norm=l2', '--attacks=fab', '--save_images'],
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a network and images of bytes."""
    quicken(monkeypatch)
    monkeypatch.chdir(tmp_path)
    pathlib.Path('net.py').write_text(MODEL)
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        images = rng.integers(0, 256, (20, 8, 8, 1)).astype(np.uint8)
        np.savez(f'{split}.npz', images=images, labels=np.arange(20) % 10)
    return monkeypatch


class Killed(BaseException):
    """As a signal that no program hears: nothing is put right after it."""


def lasting(folder):
    """What the JSON files of a folder say, but for times and places."""
    found = {path.name: json.loads(path.read_text()) for path in folder.glob('*.json')}
    for about in found.values():
        about.pop('timing', None)
        about.pop('environment', None)
    return found


@pytest.mark.parametrize('command', COMMANDS)
def test_a_command_that_is_killed_as_it_writes_can_be_repeated(command, here):
    made, stop = [], [-1]

    def counted(change, place):
        def changed(*given, **named):
            if '.partial' not in str(place(given)):
                if len(made) == stop[0]:
                    raise Killed
                made.append(place(given))
            return change(*given, **named)

        return changed

    for owner, name, number in (
        (os, 'replace', 1),
        (PIL.Image.Image, 'save', 1),
        (matplotlib.figure.Figure, 'savefig', 1),
    ):
        change = counted(getattr(owner, name), lambda given, number=number: given[number])
        here.setattr(owner, name, change)

    def run(folder):
        made.clear()
        return evaluate.main([*SUBJECT, *COMMANDS[command], f'--output={folder}/x.json'])

    assert run('whole') == 0
    expected, count = lasting(pathlib.Path('whole')), len(made)
    assert count >= 3
    for stop[0] in sorted({0, 1, 2, count // 2, count - 2, count - 1}):
        folder = pathlib.Path(f'killed-{stop[0]}')
        with pytest.raises(Killed):
            run(folder)
        stop[0] = -1
        assert run(folder) == 0, folder
        assert lasting(folder) == expected and not (folder / 'x.partial').exists()
    assert run('whole') == 0  # what it wrote itself it may write again


@pytest.mark.parametrize(
    ('there', 'ours'),
    [
        ([], True),
        (['.lock'], True),
        (['.lock', 'clean.npz'], True),
        (['.lock', f'.clean.npz.{16 * "0"}.tmp'], True),
        (['linf-0.1/identity.json', 'linf-0.2/clean.npz', 'linf-0.3/.lock'], True),
        (['thesis.tex'], False),
        (['linf-0.1/identity.json', 'photos/me.png'], False),
    ],
)
def test_what_is_the_state_of_an_evaluation(there, ours, tmp_path):
    for name in there:
        (tmp_path / 'x.partial' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'x.partial' / name).touch()
    (tmp_path / 'x.partial').mkdir(exist_ok=True)
    assert outputs.is_ours(tmp_path / 'x.partial') == ours


def test_companions_of_an_unfinished_result_are_newer_than_its_state(tmp_path):
    state = tmp_path / 'x.partial' / 'identity.json'
    state.parent.mkdir()
    state.touch()
    for name, age, ours in (('x.npz', 10, True), ('x.png', -10, False), ('y.npz', 10, False)):
        file = tmp_path / name
        file.touch()
        os.utime(file, (state.stat().st_mtime + age,) * 2)
        assert outputs.is_ours(file) == ours, name


@pytest.mark.usefixtures('here')
def test_pictures_of_attacks_that_are_no_longer_asked_for_go():
    flags = [*SUBJECT, *COMMANDS['radii and pictures'][1:], '--output=x.json', '--eps=0.1']
    for attacks in ('pgd,cw', 'cw', 'cw'):
        assert evaluate.main([*flags, f'--attacks={attacks}']) == 0
        assert {path.name for path in pathlib.Path('x_images').iterdir()} == set(attacks.split(','))
