"""The bundle for RobustBench: its claim, images and network against the result that it is made of."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import evaluate
from si_jax.cli import export
from si_jax.errors import InputError
from si_jax.storage.files import write_json
from si_jax.zoo import robustbench
from si_jax.zoo.load import load_model
from tests.zoo.test_load import make_workdir

torch = pytest.importorskip('torch', reason='the bundle is for PyTorch')
COUNT = 6


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A workdir and a result of its checkpoint, whose only attack is called autoattack."""
    folder = tmp_path_factory.mktemp('bundle') / 'run'
    make_workdir(folder, 'small_cnn', width=2, seeds=(0,), metrics=(0.5,))
    loaded = load_model(folder)
    images = np.random.default_rng(0).uniform(size=(COUNT, 8, 8, 1)).astype(np.float32)
    labels = np.asarray(loaded(jnp.asarray(images)).logits).argmax(axis=1)
    labels[0] = (labels[0] + 1) % 10
    found = evaluate(loaded, images, labels, attacks='fgsm', eps=0.1, return_images=True)
    found.attacks['autoattack'] = found.attacks.pop('fgsm')
    found.images['autoattack'] = found.images.pop('fgsm')
    found.dataset['name'], found.model['step'] = 'digits', loaded.step
    path = folder / 'evaluation' / 'aa.json'
    found.save(path)
    return folder, path, found


def test_the_command_writes_claim_images_network_and_what_is_left(run, capsys):
    folder, path, found = run
    place = folder / 'submission'
    export.main([f'--workdir={folder}', '--format=robustbench', f'--result={path}', f'--output={place}'])
    assert str(place / 'README.md') in capsys.readouterr().out
    assert {one.name for one in place.iterdir()} == set(robustbench.FILES)
    claim = json.loads((place / 'model_info.json').read_text())
    robust = f'{100 * found.accuracy["autoattack"]:.2f}'
    assert claim == {
        'link': None, 'name': None, 'authors': None, 'additional_data': False, 'number_forward_passes': 1,
        'dataset': 'digits', 'venue': None, 'architecture': 'small_cnn', 'eps': '0.1', 'clean_acc': '83.33',
        'reported': robust, 'autoattack_acc': robust, 'footnote': None, 'unreliable': False,
    }  # fmt: skip
    images = torch.load(place / 'adversarial.pt', weights_only=True)
    np.testing.assert_array_equal(images.numpy().transpose(0, 2, 3, 1), found.images['autoattack'])
    # The network of the bundle gets those images of the bundle wrong that the result says it does.
    namespace = {'__file__': str(place / 'model.py'), '__name__': 'model'}
    exec((place / 'model.py').read_text(), namespace)
    predicted = namespace['build']()(images).argmax(dim=1).numpy()
    np.testing.assert_array_equal(predicted == found.labels, found.correct['autoattack'])
    readme = (place / 'README.md').read_text()
    assert 'no leaderboard for digits with linf' in readme and '`link`, `name`, `authors`' in readme
    # What its author may have filled in is not written over.
    with pytest.raises(SystemExit):
        export.main([f'--workdir={folder}', '--format=robustbench', f'--result={path}', f'--output={place}'])
    assert 'was not written by this command' in capsys.readouterr().err


def test_one_file_for_this_library(run, capsys):
    folder, *_ = run
    for _ in range(2):  # its own file is replaced
        export.main([f'--workdir={folder}', '--format=jax'])
    path = folder / 'export' / 'model.safetensors'
    assert str(path) in capsys.readouterr().out
    images = jnp.full((2, 8, 8, 1), 0.25)
    np.testing.assert_array_equal(load_model(path)(images).logits, load_model(folder)(images).logits)


def test_what_the_claim_cannot_rest_on_is_refused(run, tmp_path):
    folder, path, found = run
    loaded = load_model(folder)

    def refused(match, about):
        write_json(tmp_path / 'r.json', about)
        (tmp_path / 'r.npz').write_bytes(path.with_suffix('.npz').read_bytes())
        with pytest.raises(InputError, match=match):
            robustbench.evidence(tmp_path / 'r.json', loaded)

    refused('r_images.npz is missing.*--save_images', found.to_json())
    refused('is of step 9, and the network of step 1', found.to_json() | {'model': {'step': 9}})
    other = found.to_json()
    other['attacks'] = {}
    refused('has no autoattack', other)
    scaled = found.to_json()
    scaled['model'] = {**scaled['model'], 'logit_scale': 0.001}
    refused('was measured with logits times 0.001', scaled)
    refused('was measured with adversarial images rounded to bytes', found.to_json() | {'eight_bit': True})
    # Images that another evaluation left there, or, as here, another network of the same step.
    robustbench.evidence(path, loaded)
    loaded = dataclasses.replace(loaded, variables=jax.tree.map(jnp.negative, loaded.variables))
    np.savez(tmp_path / 'r_images.npz', **found.images)
    refused('is of another network, or r_images.npz of another result: this network', found.to_json())


def test_open_points_name_radius_count_and_extra_images():
    about = {
        'dataset': {'name': 'cifar10', 'examples': 500},
        'threat_model': {'norm': 'linf', 'eps': 4 / 255},
        'warnings': ['look'],
    }
    config = types.SimpleNamespace(
        data=types.SimpleNamespace(extra='a.npz'), defense={'he': True}, init_from='zoo:other'
    )
    points = ' '.join(robustbench.open_points(about, config))
    for words in (
        '--eps=8/255',
        '10,000 test images, this result 500',
        '`additional_data`',
        'cosines',
        'began with the weights of zoo:other',
        'look',
    ):
        assert words in points
    assert robustbench.architecture('wrn_34_10') == 'WideResNet-34-10'
    assert [robustbench.radius(*one) for one in (('linf', 8 / 255), ('l2', 0.5))] == ['8/255', '0.5']
