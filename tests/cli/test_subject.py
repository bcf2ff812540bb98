"""What evaluate.py is about: which flags fit the network and the images, and where results go."""

import shutil

import numpy as np
import pytest

from si_jax import InputError
from si_jax.cli import evaluate, plan
from si_jax.cli.subject import IMAGES, NETWORK, Subject, load
from si_jax.paper import report
from si_jax.runtime import terminal
from si_jax.zoo.entries import entry

ZOO = 'zoo:digits-trades'


def subject(**given):
    defaults = {name: flag.default for name, flag in (NETWORK | IMAGES).items()}
    return Subject(**defaults | given)


def classes_of_the_digits(place, names):
    """A folder of test images as small as the digits, of classes with these names."""
    from PIL import Image

    for number, name in enumerate(names):
        (place / 'test' / name).mkdir(parents=True)
        for copy in range(12):
            pixels = np.full((8, 8), 20 * number + copy, np.uint8)
            Image.fromarray(pixels).save(place / 'test' / name / f'{copy}.png')
    return f'folder:{place}'


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        ({'model': 'net.py:f', 'checkpoint': 'last', 'dataset': 'digits'}, '--checkpoint=last belongs to'),
        ({'model': ZOO, 'checkpoint': 'last'}, "checkpoint='last' belongs to a workdir"),
        ({'model': ZOO, 'norm': 'l2'}, '--norm=l2 is given without --eps'),
    ],
)  # fmt: skip
def test_flags_that_have_no_effect_or_no_meaning_are_refused(given, words):
    with pytest.raises(InputError, match=words):
        load(subject(**given))


def test_a_set_of_ones_own_in_the_folder_of_the_digits_is_not_passed_over(tmp_path):
    np.savez(tmp_path / 'test.npz', images=np.zeros((2, 8, 8, 1), np.uint8), labels=np.arange(2))
    with pytest.raises(InputError, match='test.npz and no digits_test.npz, and scikit-learn .*npz:FOLDER'):
        load(subject(model=ZOO, data_dir=str(tmp_path)))


def test_a_set_with_other_classes_than_the_network_is_named(tmp_path):
    nine = classes_of_the_digits(tmp_path, 'abcdefghi')
    (words,) = load(subject(model=ZOO, dataset=nine)).doubts({'classes': 10})
    assert 'has 9 classes and the network 10 outputs' in words and 'classes.txt' in words
    (tmp_path / 'classes.txt').write_text('\n'.join('abcdefghij'))
    loaded = load(subject(model=ZOO, dataset=nine, num_examples=60))
    assert loaded.doubts({'classes': 10}) == loaded.warnings
    # They are sorted by class, and the first 60 are no sample.
    (words,) = loaded.warnings
    assert words.startswith('the first 60 of 108 images') and '5 of 9 classes' in words
    assert 'Give --sample=random --num_examples=60' in words
    drawn = load(subject(model=ZOO, dataset=nine, num_examples=60, sample='random'))
    assert drawn.warnings == [] and len(load(subject(model=ZOO), at_most=7).labels) == 7


def test_other_weights_have_other_files_by_default(tmp_path):
    paths = set()
    for name in ('digits-trades', 'digits-at'):
        (tmp_path / name).mkdir()
        shutil.copy(entry(name).weights_path, tmp_path / name / 'weights.npz')
        loaded = load(subject(model=str(tmp_path / name / 'weights.npz')))
        paths.add(loaded.path(None, 'pgd', {}))
    assert len(paths) == 2


def test_distances_in_another_norm_need_no_radius(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ['--smallest', f'--model={ZOO}', '--norm=l2', '--attacks=fmn(steps=5)', '--num_examples=2']
    assert evaluate.main([*flags, '--output=d.json']) == 0
    assert 'smallest perturbations, l2, 2 images' in capsys.readouterr().out


def test_other_commands_refuse_what_they_do_not_read(capsys):
    with pytest.raises(InputError, match='--checkpoint has no meaning with --table=1'):
        report.run(table='1', checkpoint='last')
    assert (
        plan.main(['plan', '--config=configs/quickstart.py', '--calibrate', '--mfu=0.5'])
        == terminal.BAD_INPUT
    )
    assert '--mfu is for chips' in capsys.readouterr().err


def test_one_step_size_for_several_norms_is_refused_before_anything_is_loaded(capsys):
    wanted = ['--model=zoo:none', '--threats=linf:0.1,l2:1', '--attacks=pgd', '--step_size=0.02']
    assert evaluate.main(wanted) == 2
    assert 'step_size=0.02 cannot suit several norms' in capsys.readouterr().err
