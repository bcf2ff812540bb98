"""Data sets of every kind: each trains, resumes, and is evaluated from its workdir without another flag."""

import json
import pathlib

import numpy as np
import pytest

import si_jax
from si_jax import data
from si_jax.cli import evaluate, report
from si_jax.cost import planning
from si_jax.errors import InputError
from si_jax.training import recipes
from si_jax.training.loop import run
from si_jax.training.setup import setup
from tests.helpers.own_data import OWN, write_cifar10, write_folder, write_npz


def small(name, folder=None, **changes):
    config = recipes.paper('standard', dataset=name, arch='small_cnn')
    config.update_from_flattened_dict(
        {'data.dir': folder, 'data.validation': 0, 'data.limit': 8, 'batch_size': 8, 'model.width': 1,
         'logging.tensorboard': False, 'epochs': 1} | changes
    )  # fmt: skip
    return config


def an_npz(tmp_path, monkeypatch, _):
    monkeypatch.chdir(tmp_path)
    write_npz(pathlib.Path('arrays'))
    (tmp_path / 'arrays' / 'classes.txt').write_text('ant\nbee\ncicada\n')
    return 'npz:arrays', None, (28, 28, 1), ('ant', 'bee', 'cicada')


def a_folder(tmp_path, *_):
    folder = write_folder(tmp_path / 'images', each=4)
    (folder / 'test' / 'newt' / '3.png').write_text('no image')  # which nothing here asks for
    return f'folder:{folder}', None, (64, 64, 3), ('cat', 'dog', 'newt')


def raw_cifar10(tmp_path, *_):
    write_cifar10(tmp_path)
    return 'cifar10', str(tmp_path), (32, 32, 3), data.SOURCES['cifar10'].classes


def registered(tmp_path, *_):
    (tmp_path / 'own.py').write_text(OWN)
    name = data.canonical(f'{tmp_path / "own.py"}:rings')
    return name, None, (28, 28, 1), ('one', 'two', 'three')


def of_tfds(_, __, request):
    folder = str(request.getfixturevalue('tfds_cifar10'))
    return 'tfds:cifar10', folder, (32, 32, 3), data.SOURCES['cifar10'].classes


@pytest.mark.parametrize('make', [an_npz, a_folder, raw_cifar10, registered, of_tfds])
def test_it_trains_resumes_and_is_evaluated(make, tmp_path, monkeypatch, request, capsys):
    name, folder, shape, classes = make(tmp_path, monkeypatch, request)
    workdir, known = tmp_path / 'run', data.canonical(name)
    run(small(name, folder), str(workdir))
    data.SOURCES.pop('rings', None)
    if name == 'rings':
        data.canonical(f'{tmp_path / "own.py"}:rings')  # the file of the config, read again
    state = run(small(name, folder, epochs=2), str(workdir))
    assert int(state.step) == 2 and 'resuming' in capsys.readouterr().out
    data.SOURCES.pop('rings', None)
    monkeypatch.chdir(pathlib.Path(__file__).parent)  # another folder than that of the training
    model = si_jax.load_model(workdir, 'last')
    assert model(np.zeros((1, *shape), np.float32)).logits.shape == (1, len(classes))
    assert 'rings' not in data.SOURCES  # a network alone runs no code of the config
    output = tmp_path / 'result.json'
    flags = ['--checkpoint=last', '--attacks=fgsm', '--num_examples=8', '--save_images']
    assert evaluate.main([f'--workdir={workdir}', f'--output={output}', *flags]) == 0, capsys.readouterr().err
    about = json.loads(output.read_text())['dataset']
    assert about['examples'] == 8 and about['classes'] == len(classes) and about['name'] == known
    assert about['class_names'] == list(classes)
    data.SOURCES.pop('rings', None)
    page = tmp_path / 'page'
    assert report.main([f'--workdirs={workdir},{output}', f'--out={page}', '--gallery=3']) == 0
    assert 'not shown' not in capsys.readouterr().err
    text, labels = (page / 'index.html').read_text(), np.load(output.with_suffix('.npz'))['labels']
    assert 'Adversarial images of fgsm' in text and all(classes[label] in text for label in labels)
    data.SOURCES.pop('rings', None)


def test_a_set_may_move(tmp_path, capsys):
    write_npz(tmp_path / 'here')
    run(small(f'npz:{tmp_path / "here"}'), str(tmp_path / 'run'))
    (tmp_path / 'here').rename(tmp_path / 'there')
    flags = [f'--workdir={tmp_path / "run"}', '--checkpoint=last', '--attacks=fgsm', '--num_examples=8']
    assert evaluate.main(flags) == 2 and 'is no folder' in capsys.readouterr().err
    there = str(tmp_path / 'there')
    assert evaluate.main([*flags, f'--data_dir={there}', f'--output={tmp_path / "moved.json"}']) == 0
    state = run(small(f'npz:{tmp_path / "here"}', there, epochs=2), str(tmp_path / 'run'))
    assert int(state.step) == 2
    write_npz(tmp_path / 'there', classes=2)
    with pytest.raises(InputError, match='data.num_classes: 3 -> 2'):
        run(small(f'npz:{tmp_path / "here"}', there, epochs=3), str(tmp_path / 'run'))


def test_augmentation_is_that_of_the_set_unless_a_field_says_otherwise(tmp_path):
    write_cifar10(tmp_path)
    own, plain = (
        setup(small('cifar10', str(tmp_path), **changes)).train
        for changes in ({}, {'augment.crop': 0, 'augment.flip': False})
    )
    assert (own.crop, own.flip) == (4, True) and (plain.crop, plain.flip) == (0, False)
    digits = setup(small('digits', **{'augment.crop': 1, 'augment.flip': True})).train
    assert (digits.crop, digits.flip) == (1, True)
    for wrong in (-1, 8):
        with pytest.raises(InputError, match=rf'augment\.crop={wrong} is not in \[0, 7\]'):
            setup(small('digits', **{'augment.crop': wrong}))


def test_what_the_data_say_is_not_given(tmp_path):
    write_npz(tmp_path)
    for field, value in {'num_classes': 4, 'image_shape': (1, 2, 3)}.items():
        with pytest.raises(InputError, match=rf'data\.{field}=.* is not what npz:'):
            setup(small(f'npz:{tmp_path}', **{f'data.{field}': value}))
    config = setup(small('digits')).config
    assert config.data.image_shape == () and config.data.num_classes == 0 and config.data.code == ''


def test_the_plan_is_of_the_images_that_are_there(tmp_path):
    write_folder(tmp_path, each=4)
    config = small(f'folder:{tmp_path}', **{'data.limit': 0, 'data.validation': 2})
    described = planning.describe(config)
    assert described.images == 10 and described.data_bytes == 10 * 64 * 64 * 3
    (tmp_path / 'own.py').write_text(OWN)
    try:
        assert planning.describe(small(f'{tmp_path / "own.py"}:rings', **{'data.limit': 0})).images == 24
    finally:
        data.SOURCES.pop('rings', None)


def test_a_file_of_weights_runs_no_code(tmp_path, capsys):
    """It may come from anyone: its config names a file, and that is not imported."""
    from si_jax.zoo import weights

    (tmp_path / 'own.py').write_text(OWN)
    run(small(f'{tmp_path / "own.py"}:rings'), str(tmp_path / 'run'))
    del data.SOURCES['rings']
    model = si_jax.load_model(tmp_path / 'run', 'last')
    weights.write(tmp_path / 'own.npz', recipes.plain(model.config), model.step, model.variables)
    flags = [f'--model={tmp_path / "own.npz"}', '--attacks=fgsm', f'--output={tmp_path / "a.json"}']
    assert evaluate.main(flags) == 2 and "unknown data set 'rings'" in capsys.readouterr().err
    try:
        assert evaluate.main([*flags, f'--dataset={tmp_path / "own.py"}:rings']) == 0, capsys.readouterr().err
    finally:
        data.SOURCES.pop('rings', None)
