"""No command writes over what it reads, nor over what this program did not write; and it says so at once."""

import io
import json
import os
import pathlib

import numpy as np
import pytest

from si_jax.cli import evaluate, export, outputs, report
from si_jax.errors import InputError
from si_jax.storage import lock

MODEL = """
import jax.numpy as jnp

def build():
    open('was_called', 'w').close()
    return lambda images: images.reshape(len(images), -1)[:, :10]

def build_fragile():
    logits = jnp.where(jnp.arange(10) < 5, 1.0, 0.0)
    # NaN as soon as a pixel leaves the grid of sixteenths on which the digits lie.
    off = lambda x: jnp.abs(16 * x - jnp.round(16 * x)).max(axis=(1, 2, 3)) > 1e-3
    return lambda x: x.reshape(len(x), -1)[:, :10] + jnp.where(off(x), jnp.nan, 0.0)[:, None]
"""


def archive(**arrays) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ('data', 'run/checkpoints', 'folder.json', 'page', 'exported', 'busy.partial'):
        pathlib.Path(folder).mkdir(parents=True)
    weights = archive(conv=np.ones(3))
    files = {
        'net.py': MODEL,
        'net.npz': weights,
        'data/cifar10_test.npz': archive(images=np.zeros((2, 32, 32, 3), np.uint8), labels=np.zeros(2, int)),
        'run/config.json': '{"model": {}, "attacks": []}',
        'run/metrics.npz': 'mine',
        'drawing.png': 'mine',
        'page/index.html': '<html>mine</html>',
        'exported/model.py': '# mine',
        'busy.partial/thesis.tex': 'mine',
        'old_images.npz': weights,
    }
    for name, content in files.items():
        pathlib.Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    for name in ('a', 'b'):
        pathlib.Path(f'{name}.json').write_text('{"schema": 1, "worst_case": {}}')
        pathlib.Path(f'{name}.npz').write_bytes(weights)
    pathlib.Path('link.json').symlink_to('a.json')
    return tmp_path


SUBJECT = ['--model=net.py:build', '--dataset=digits']
CASES = {
    'weights beside': (evaluate, ['--model=net.npz', '--output=net.json'], 'net.npz would be written'),
    'weights of a model file': (evaluate, [*SUBJECT, '--output=net.json'], 'net.npz is there'),
    'test set': (
        evaluate,
        ['--model=net.py:build', '--dataset=cifar10', '--data_dir=data', '--output=data/cifar10_test.json'],
        'cifar10_test.npz is there',
    ),
    'config': (evaluate, ['--workdir=run', '--output=run/config.json'], 'run/config.json is there'),
    'companion in a workdir': (evaluate, [*SUBJECT, '--output=run/metrics.json'], 'metrics.npz is there'),
    'images': (evaluate, [*SUBJECT, '--output=old.json', '--save_images'], 'old_images.npz is there'),
    'state': (evaluate, [*SUBJECT, '--output=busy.json'], 'busy.partial is there'),
    'folder': (evaluate, [*SUBJECT, '--output=folder.json'], 'folder.json is a folder'),
    'below a file': (evaluate, [*SUBJECT, '--output=net.py/x.json'], 'net.py is a file, where a folder'),
    'unwritable': (evaluate, [*SUBJECT, '--output=/proc/nowhere/x.json'], 'nowhere cannot be written to'),
    'gradient_of': (
        evaluate,
        [*SUBJECT, '--gradient_of=net.npz', '--output=net.json'],
        'net.npz would be written over net.npz, which the command reads',
    ),
    'audit': (evaluate, ['audit', *SUBJECT, '--output=run/config.json'], 'run/config.json is there'),
    'picture of an audit': (evaluate, ['audit', *SUBJECT, '--output=drawing.json'], 'drawing.png is there'),
    'compare': (evaluate, ['compare', 'a.json', 'b.json', '--output=a.json'], 'a.json would be written'),
    'link': (evaluate, ['compare', 'a.json', 'b.json', '--output=link.json'], 'link.json would be written'),
    'compare, foreign': (
        evaluate,
        ['compare', 'a.json', 'b.json', '--output=run/config.json'],
        'run/config.json is there',
    ),
    'page': (report, ['--workdirs=run', '--out=page'], 'page/index.html is there'),
    'figure': (report, ['--figure=1', '--workdirs=run', '--output=drawing.json'], 'drawing.png is there'),
    'figure, config': (report, ['--figure=1', '--workdirs=run', '--output=run/config.json'], 'is there'),
    'export': (export, ['--workdir=run', '--output=exported'], 'exported/model.py is there'),
}


@pytest.mark.parametrize('case', CASES)
def test_a_file_that_is_not_ours_is_never_replaced(case, place, capsys):
    module, flags, message = CASES[case]
    before = {path: path.read_bytes() for path in place.rglob('*') if path.is_file()}
    try:
        status = module.main(flags)
    except SystemExit as stop:
        status = stop.code
    err = capsys.readouterr().err
    assert status == 2 and message in err and ('another --out' in err or 'another place, --out' in err)
    assert {path: path.read_bytes() for path in place.rglob('*') if path.is_file()} == before
    assert not pathlib.Path('was_called').exists()


def test_what_this_program_wrote_is_replaced(place):
    flags = [*SUBJECT, '--num_examples=8', '--attacks=pgd', '--steps=1', '--eps=0.1', '--save_images']
    for _ in range(2):
        assert evaluate.main([*flags, '--output=mine.json']) == 0
    assert json.loads(pathlib.Path('mine.json').read_text())['schema'] == 1
    for name in ('mine.json', 'mine.npz', 'mine_images.npz', 'drawn.png'):
        assert outputs.is_ours(pathlib.Path(name)) == (name != 'drawn.png')
    # The user's own images beside a result are not those of its attacks.
    np.savez('mine_images.npz', my_photos=np.zeros(3))
    assert not outputs.is_ours(pathlib.Path('mine_images.npz'))
    # A picture goes with its numbers.
    pathlib.Path('mine.png').write_bytes(b'')
    outputs.check('--output=FILE.json', [pathlib.Path('mine.png')])
    with pytest.raises(InputError, match='mine.json would be written over mine.json, which'):
        outputs.check('--output=FILE.json', [pathlib.Path('mine.json')], ['mine.json'])


def test_a_point_with_nan_is_saved_beside_the_result(place, capsys):
    flags = ['--model=net.py:build_fragile', '--dataset=digits', '--num_examples=8', '--steps=1']
    assert evaluate.main([*flags, '--attacks=pgd', '--eps=0.1', '--output=out/result.json']) == 2
    err = capsys.readouterr().err
    assert 'NaN or infinite logits' in err and 'saved as `point` in out/result_point.npz' in err
    point = np.load('out/result_point.npz')['point']
    assert point.shape == (8, 8, 1) and not (place / 'out/result.json').exists()
    # The next run may replace it.
    assert evaluate.main([*flags, '--attacks=pgd', '--eps=0.1', '--output=out/result.json']) == 2
    assert 'saved as `point`' in capsys.readouterr().err


def test_flags_are_checked_before_the_network_is_made(capsys):
    for wrong, message in (
        ('--steps=0', 'steps=0 must be'),
        ('--eps=8', 'did you mean 8/255'),
        ('--num_examples=500', 'more than the 397 images'),
        ('--seed=-1', 'seed=-1 must be'),
        ('--search_precision=float17', "unknown search_precision 'float17'"),
    ):
        assert evaluate.main([*SUBJECT, wrong]) == 2
        assert message in capsys.readouterr().err
    assert evaluate.main([*SUBJECT, '--attacks=square', '--steps=5']) == 2
    assert 'steps=5 is given, and square does not take it' in capsys.readouterr().err
    assert not pathlib.Path('was_called').exists()


def test_two_commands_cannot_have_one_output(capsys):
    flags = [*SUBJECT, '--num_examples=8', '--attacks=pgd', '--steps=1', '--output=mine.json']
    with lock.locked(pathlib.Path('mine.partial'), ''):
        for verb in ([], ['audit']):
            assert evaluate.main([*verb, *flags]) == 2
            assert f'mine.partial is in use by process {os.getpid()} on ' in capsys.readouterr().err
    assert evaluate.main(flags) == 0 and not pathlib.Path('mine.partial').exists()
