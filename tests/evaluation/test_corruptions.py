"""Corrupted test sets and their scores, against numbers worked out by hand."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from si_jax import Randomised, data, evaluate
from si_jax.cli import evaluate as command
from si_jax.data.corrupted import STANDARD
from si_jax.errors import InputError
from si_jax.evaluation.corruptions import Corruptions, corruptions

EACH = 6  # images of a severity


def classifier(images):
    """Class 1 for images that are brighter than a half."""
    bright = images.mean(axis=(1, 2, 3))
    return 10 * jnp.stack([0.5 - bright, bright - 0.5, jnp.full_like(bright, -1)], axis=1)


@pytest.fixture
def folder(tmp_path):
    """fog: at severity s the first s images of each block have the other brightness; snow: none has."""
    labels = np.tile(np.arange(EACH) % 2, 5)
    wrong = {'fog': [i < s for s in range(1, 6) for i in range(EACH)], 'snow': [False] * 5 * EACH}
    place = tmp_path / 'C'
    place.mkdir()
    np.save(place / 'labels.npy', labels)
    for name, flipped in wrong.items():
        bright = np.where(labels ^ np.asarray(flipped), 200, 50).astype(np.uint8)
        noise = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(1, 4, 4, 3)
        np.save(place / f'{name}.npy', bright[:, None, None, None] + noise)
    return place


def test_one_set_is_a_data_set_like_any_other(folder):
    name = f'corrupted:{folder}/fog@3'
    test = data.load(name, 'test')
    stored, labels = np.load(folder / 'fog.npy'), np.load(folder / 'labels.npy')
    assert_array_equal(test.images, stored[2 * EACH : 3 * EACH])
    assert_array_equal(test.labels, labels[:EACH])
    assert data.canonical(name) == name and test.num_classes == 2
    # Elsewhere, where the folder has moved to.
    moved = data.load('corrupted:gone/fog@3', 'test', folder)
    assert_array_equal(moved.images, test.images)
    result = evaluate(classifier, test.images, test.labels, attacks='fgsm', eps=0.01, scale=255)
    assert result.accuracy['clean'] == 0.5
    with pytest.raises(InputError, match='no images to train on'):
        data.load(name, 'train')


def test_scores_by_hand(folder, tmp_path):
    scores = corruptions(classifier, folder, names=['fog', 'snow'])
    fog = 1 - np.arange(1, 6) / EACH
    assert_allclose(scores.accuracy['fog'], fog)
    assert_array_equal(scores.accuracy['snow'], np.ones(5))
    assert scores.mean == pytest.approx((fog.mean() + 1) / 2) and scores.images == EACH
    assert_allclose(scores.by_severity, (fog + 1) / 2)
    assert scores.mce() == pytest.approx((0.5 + 0) / 2)  # fog: (1 + 2 + 3 + 4 + 5) / 30
    # Relative to a network with errors of 0.25 and 0.75: 0.5 / 0.25 and 0 / 0.75.
    other = Corruptions({'fog': np.full(5, 0.75), 'snow': np.full(5, 0.25)}, scores.severities, 6, {}, {})
    assert scores.mce(other) == pytest.approx(1.0)
    scores.save(tmp_path / 'c.json', other)
    about = json.loads((tmp_path / 'c.json').read_text())
    assert about['mce']['value'] == pytest.approx(1.0) and about['accuracy'] == scores.mean
    again = Corruptions.load(tmp_path / 'c.json')
    assert again.to_json() == scores.to_json()
    assert 'fog                    83.33   66.67   50.00   33.33   16.67   50.00' in scores.table()
    with pytest.raises(InputError, match='measure both alike'):
        scores.mce(corruptions(classifier, folder, names=['fog'], severities=[5], num_examples=2))
    with pytest.raises(InputError, match='decides by the votes of many draws'):
        corruptions(Randomised(lambda images, keys: classifier(images)), folder, names=['fog'])
    with pytest.raises(InputError, match='makes no error under snow'):
        scores.mce(scores)
    other = corruptions(classifier, folder, names=['fog'], num_examples=EACH - 1)
    with pytest.raises(InputError, match=f'of {EACH - 1} images .* to be compared are {EACH} of'):
        corruptions(classifier, folder, names=['fog']).mce(other)
    constant = corruptions(lambda images: 0 * classifier(images) + jnp.arange(3.0), folder, names=['fog'])
    assert constant.warnings and all(words.startswith('on fog 1: ') for words in constant.warnings)
    assert Corruptions.load(saved(constant, tmp_path)).warnings == constant.warnings


def saved(scores, place):
    scores.save(place / 'scores.json')
    return place / 'scores.json'


def test_the_command(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'net.py').write_text(
        'import jax.numpy as jnp\n'
        'def build():\n'
        '    def apply(images):\n'
        '        bright = images.mean(axis=(1, 2, 3)) - 0.5\n'
        '        return jnp.stack([-bright, bright], axis=1)\n'
        '    return apply\n'
    )
    flags = ['corruptions', f'--folder={folder}', '--model=net.py:build']
    assert command.main([*flags, '--names=fog,snow', '--severities=1,5']) == 0
    out = capsys.readouterr().out
    assert 'mean corruption error (mCE): 25.00 %, the mean error' in out
    [path] = (tmp_path / 'evaluation').glob('net-corruptions-*.json')
    assert f'written to {path.relative_to(tmp_path)}' in out
    assert json.loads(path.read_text())['model'] == {'model': 'net.py:build'}
    assert command.main([*flags, '--names=fog', '--severities=5', f'--reference={path}']) == 2
    assert 'measure both alike' in capsys.readouterr().err
    fog = ['--names=fog', '--severities=1,5', '--output=fog.json']
    assert command.main([*flags, *fog]) == 0
    fewer = ['--num_examples=4', '--reference=fog.json', '--output=other.json']
    assert command.main([*flags, *fog[:2], *fewer]) == 2
    assert f'the reference is of {EACH} images' in capsys.readouterr().err
    assert command.main([*flags, '--names=fog', '--stated_clean=0.9']) == 2  # of a torch_checkpoint alone
    capsys.readouterr()
    assert command.main(flags) == 2  # all fifteen are asked for
    assert STANDARD[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ('place', 'words'),
    [('fog', 'is not of the form'), ('fog@6', 'is not of the form'), ('fogg@1', 'did you mean fog')],
)
def test_what_is_no_set_is_refused(folder, place, words):
    with pytest.raises(InputError, match=words):
        data.load(f'corrupted:{folder}/{place}', 'test')


def test_damaged_files_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match='holds no corrupted test set'):
        data.load(f'corrupted:{tmp_path}/fog@1', 'test')
    (folder / 'fog.npy').write_bytes((folder / 'fog.npy').read_bytes()[:300])
    with pytest.raises(InputError, match='cannot be read as an array'):
        data.load(f'corrupted:{folder}/fog@1', 'test')
    np.save(folder / 'snow.npy', np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError, match='cannot be read as an array'):
        data.load(f'corrupted:{folder}/snow@1', 'test')
    np.save(folder / 'labels.npy', np.zeros(3, int))
    np.save(folder / 'fog.npy', np.zeros((10, 4, 4, 3), np.uint8))
    with pytest.raises(InputError, match='as many labels as images'):
        data.load(f'corrupted:{folder}/fog@1', 'test')
