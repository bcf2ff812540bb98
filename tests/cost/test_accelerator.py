"""The accelerator kit, rehearsed on the CPU: it leaves out what does not fit its minutes, and goes on."""

import json

import numpy as np
import pytest

from benchmarks import accelerator, mosaics


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a thousand random training and test images, by way of their mosaics."""
    place = tmp_path_factory.mktemp('accelerator')
    rng = np.random.default_rng(0)
    (place / 'given').mkdir()
    for split in ('train', 'test'):
        images = rng.integers(0, 256, (1000, 32, 32, 3), dtype=np.uint8)
        np.savez(place / f'given/cifar10_{split}.npz', images=images, labels=np.arange(1000) % 10)
    paths = mosaics.pack(place / 'given', place / 'mosaics')
    assert [path.name for path in paths] == ['test_00.webp', 'train_00.webp']
    assert mosaics.unpack(place / 'mosaics', place / 'images') == {'train': 1000, 'test': 1000}
    return place


def test_mosaics_are_lossless(folder):
    for split in ('train', 'test'):
        given, found = (np.load(folder / one / f'cifar10_{split}.npz') for one in ('given', 'images'))
        np.testing.assert_array_equal(given['images'], found['images'])
        np.testing.assert_array_equal(given['labels'], found['labels'])


def test_the_speed_is_measured_stage_by_stage_and_goes_on(tmp_path, capsys, monkeypatch):
    # Those in processes of their own are for XLA's options; one is enough here.
    monkeypatch.setattr(accelerator, 'OPTIONS', {'command buffers on': ''})
    output = tmp_path / 'speed.json'
    command = ['speed', '--rehearse', f'--output={output}']
    assert accelerator.main([*command, '--minutes=0.5']) == 0
    said = capsys.readouterr().out
    first = json.loads(output.read_text())['stages']
    assert 'left out, as they do not fit 0.5 minutes: 3 x 3 convolutions, bf16' in said
    assert list(first) == ['versions']
    assert accelerator.main([*command, '--minutes=60']) == 0
    found = json.loads(output.read_text())
    assert '1 of 8 stages are in' in capsys.readouterr().out
    assert found['stages']['versions'] == first['versions'] and len(found['stages']) == 8
    assert len(found['stages']['3 x 3 convolutions, bf16']['TFLOP/s']) == 4
    for side in ('si_jax', 'PyTorch'):
        for method in ('trades', 'tradessi'):
            assert found['stages'][f'step of {method}, batch 8, {side}']['images_per_second']['min'] > 0
    assert found['stages']['command buffers on']['images_per_second']['min'] > 0
    assert found['environment']['backend'] == 'cpu'


def test_the_trainings_run_and_are_evaluated(folder):
    output = folder / 'training.json'
    command = ['training', '--rehearse', f'--output={output}', f'--data_dir={folder / "images"}']
    assert accelerator.main([*command, f'--workdirs={folder / "runs"}', '--minutes=60']) == 0
    stages = json.loads(output.read_text())['stages']
    kinds = ('training of ', 'pgd on ', 'apgd-ce on ')
    assert list(stages) == [f'{kind}{method}' for method in accelerator.METHODS for kind in kinds]
    for method in accelerator.METHODS:
        assert stages[f'training of {method}']['metrics'][-1]['epoch'] == 1
        for attack in ('pgd', 'apgd-ce'):
            found = stages[f'{attack} on {method}']
            assert found['images'] == 16 and found['seconds'] > 0
            assert found['accuracy'][attack] <= found['accuracy']['clean']


def test_stages_of_another_scale_are_not_mixed(tmp_path, capsys):
    output = tmp_path / 'speed.json'
    output.write_text(json.dumps({'scale': {'width': 64}, 'stages': {'versions': {}}}))
    assert accelerator.main(['speed', '--rehearse', f'--output={output}']) == 2
    assert 'holds stages of another scale' in capsys.readouterr().err


def test_without_an_accelerator_it_says_how_to_rehearse(capsys):
    assert accelerator.main(['speed']) == 2
    assert '--rehearse runs the stages on the CPU' in capsys.readouterr().err
