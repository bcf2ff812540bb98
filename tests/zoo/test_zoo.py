"""The zoo: its files are what its manifest says, and everything that is not is refused with the reason."""

import io
import json
import pathlib
import pickle
import shutil

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from configs import digits, evidence, quickstart
from si_jax import InputError, data, load_model, models, verify
from si_jax.cli import evaluate, zoo
from si_jax.cli.zoo import main
from si_jax.training.checkpoints import Checkpoints
from si_jax.zoo import weights
from si_jax.zoo.entries import MANIFEST, PACKAGED, entries, read_manifest
from si_jax.zoo.verifying import Verified, measure
from tests.helpers.processes import optimised

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = [
    *(f'cifar10-{row}' for row in ('nfgsm', 'nfgsmsi', 'trades', 'tradessi')),
    *(f'digits-{row}' for row in ('at', 'atsi', 'mart', 'martsi', 'trades', 'tradessi')),
]
RECIPES = {'cifar10': evidence, 'digits': digits}


@pytest.fixture(autouse=True)
def no_other_zoo(monkeypatch):
    monkeypatch.delenv('SI_JAX_ZOO', raising=False)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A zoo of one's own with one network, `mine`, beside the packaged one."""
    folder = tmp_path / 'zoo'
    shutil.copytree(PACKAGED / 'digits-at', folder / 'mine')
    entry = json.loads((PACKAGED / MANIFEST).read_text())['models']['digits-at']
    entry = json.loads(json.dumps(entry).replace('digits-at/', 'mine/'))
    (folder / MANIFEST).write_text(json.dumps({'schema': 1, 'models': {'mine': entry}}))
    monkeypatch.setenv('SI_JAX_ZOO', str(folder))
    return folder


def edit(folder, **fields):
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    manifest['models']['mine'] |= fields
    path.write_text(json.dumps(manifest))


def refused(action, message):
    with pytest.raises(InputError, match=message) as error:
        action()
    return str(error.value)


def test_the_packaged_networks_are_as_stated():
    assert list(read_manifest(PACKAGED)) == NAMES
    for name in NAMES:
        entry = verify(f'zoo:{name}')
        dataset, _, row = name.partition('-')
        wanted = RECIPES[dataset].get_config(row).copy_and_resolve_references()
        model = load_model(name)
        assert model.config.to_json(sort_keys=True) == wanted.to_json(sort_keys=True)
        assert entry.recipe['command'] == f'python train.py --config={entry.recipe["config"]}'
        assert set(entry.accuracy) == {'clean', 'pgd', 'cw', 'dlr', 'sipgd', 'autoattack', 'worst_case'}
        flags = np.load(entry.result_path.with_suffix('.npz'))
        assert {key: flags[key].mean() for key in entry.accuracy} == entry.accuracy
    sizes = [path.stat().st_size for path in PACKAGED.rglob('*') if path.is_file()]
    assert sum(sizes) < 6e6 and max(sizes) < 2**20


def test_a_network_measures_what_the_manifest_says(mine):
    """Here `mine` is the packaged digits-at, with four flags of its result turned round, two each way."""
    flags = dict(np.load(mine / 'mine' / 'result.npz'))
    right, wrong = (np.flatnonzero(flags['clean'] == flag)[:2] for flag in (True, False))
    flags['clean'][[*right, *wrong]] ^= True
    np.savez(mine / 'mine' / 'result.npz', **flags)
    script = 'import json; from si_jax.zoo.verifying import measure\n'
    script += "print(json.dumps(measure('mine', attacks=['pgd'])))"
    (clean, pgd) = json.loads(optimised('-c', script).splitlines()[-1])
    accuracy = entries()['digits-at'].accuracy
    assert clean[:2] == ['clean', accuracy['clean']] and pgd[:2] == ['pgd', accuracy['pgd']]
    # No flag differs on the machine that made the result; another one rounds differently.
    assert clean[3:] == [4, 397] and clean[2] == accuracy['clean']
    assert pgd[3] <= 1 and abs(pgd[2] - pgd[1]) <= 1.01 * pgd[3] / 397
    refused(lambda: measure('mine', attacks=['fgsm']), "unknown attack of mine 'fgsm'")


@pytest.mark.parametrize('position', [0, 40_000, -1])
def test_one_changed_byte_of_the_weights(mine, position, capsys):
    assert verify('mine').file == 'mine/weights.npz'
    path = mine / 'mine' / 'weights.npz'
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    message = refused(lambda: verify('mine'), 'the SHA-256 of .*weights.npz is .*, the manifest says')
    assert 'train it: python train.py --config=configs/digits.py:at' in message
    refused(lambda: load_model('zoo:mine'), 'the SHA-256 of')
    assert main(['verify', 'mine', 'digits-at']) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith('FAIL mine: the SHA-256') and out[1] == 'digits-at: as stated'


def test_other_damage(mine):
    result = mine / 'mine' / 'result.json'
    result.write_text(result.read_text().replace('"seed": 0', '"seed": 1', 1))
    refused(lambda: verify('mine'), 'the SHA-256 of .*result.json is')
    path = mine / 'mine' / 'weights.npz'
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    refused(lambda: verify('mine'), f'has {len(content) - 1} bytes, the manifest says {len(content)}')
    path.unlink()
    refused(lambda: load_model('mine'), r'cannot be read \(No such file or directory\)')


def test_a_manifest_that_was_edited(mine):
    shutil.copy(PACKAGED / 'digits-at' / 'result.json', mine / 'mine' / 'result.json')
    accuracy = verify('mine').accuracy
    edit(mine, accuracy=accuracy | {'autoattack': 0.99})
    refused(lambda: verify('mine'), 'accuracy is .*0.99.* in the manifest and .*the manifest was edited')
    edit(mine, accuracy=accuracy, threat_model={'norm': 'linf', 'eps': 0.1})
    refused(lambda: verify('mine'), 'threat_model is .* in the manifest and .* in mine/weights.npz')
    edit(mine, seed='0')
    refused(entries, "mine: seed is '0': restore it")
    edit(mine, seed=0, sha=1)
    refused(entries, "mine: 'sha' is no field of schema 1")
    edit(mine, accuracy={'clean': '0.9'}, sha=None)
    refused(entries, "mine: accuracy.clean is '0.9'")
    edit(mine, accuracy=[])
    refused(entries, r"mine: accuracy is '\[\]'")
    (mine / MANIFEST).write_text('{"schema": 2, "models": {}}')
    refused(entries, 'no manifest of schema 1')
    (mine / MANIFEST).write_text('{')
    refused(entries, 'manifest.json cannot be read')
    (mine / MANIFEST).unlink()
    refused(entries, 'SI_JAX_ZOO=.* has no manifest.json')


@pytest.mark.parametrize('place', ['../outside.npz', '/etc/hostname', 'mine/../../outside.npz', 'link.npz'])
def test_files_outside_the_folder(mine, place):
    (mine.parent / 'outside.npz').write_bytes(b'')
    (mine / 'link.npz').symlink_to(mine.parent / 'outside.npz')
    edit(mine, file=place)
    refused(lambda: verify('mine'), 'leads out of the folder')


def test_names(mine):
    refused(lambda: load_model('zoo:digits-tradesi'), 'did you mean digits-tradessi or digits-trades')
    refused(lambda: verify('tradessi'), "unknown model of the zoo 'tradessi': did you mean digits-tradessi")
    message = refused(lambda: load_model('digits-traded'), 'no such folder; nor is it in the zoo')
    assert 'did you mean digits-trades' in message
    for name in ('../mine', 'mine/weights', '.', '', '/etc/passwd', 'mine\n', 'a\\b'):
        refused(lambda name=name: load_model(f'zoo:{name}'), 'cannot be the name of a model of the zoo')
    refused(lambda: load_model('mine', 'last'), "checkpoint='last' belongs to a workdir")
    (mine / 'mine').rename(mine / 'digits-at')
    manifest = json.loads((mine / MANIFEST).read_text())
    manifest['models'] = {'digits-at': manifest['models'].pop('mine')}
    (mine / MANIFEST).write_text(json.dumps(manifest))
    refused(entries, "'digits-at' is in .* and in .*: rename one of them")


class Planted:
    """What a pickle in a file would do as it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_files_of_weights(tmp_path):
    good = PACKAGED / 'digits-at' / 'weights.npz'
    model = load_model(good)
    assert_array_equal(
        model.variables['params']['linear']['kernel'], weights.read(good).arrays['params/linear/kernel']
    )
    arrays, path = dict(np.load(good)), tmp_path / 'file.npz'

    def written(changes):
        np.savez(path, **{key: value for key, value in (arrays | changes).items() if value is not None})

    trap = tmp_path / 'was read'
    written({'params/linear/bias': np.array([Planted(trap)], dtype=object)})
    refused(lambda: load_model(path), "holds Python objects as 'params/linear/bias'")
    path.write_bytes(pickle.dumps(Planted(trap)))
    refused(lambda: load_model(path), 'cannot be read as an npz file')
    assert not trap.exists()

    content = good.read_bytes()
    for part in (b'', content[: len(content) // 2], content[:-10], content[100:]):
        path.write_bytes(part)
        refused(lambda: load_model(path), 'cannot be read as an npz file')
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    path.write_bytes(stream.getvalue())
    refused(lambda: load_model(path), 'cannot be read as an npz file')
    written({'about': None})
    refused(lambda: load_model(path), 'does not say what network it is of')
    written({'params/linear/bias': None})
    refused(lambda: load_model(path), r'params/linear/bias is absent there and \(10,\) float32 here')
    written({'params/extra': np.zeros(1)})
    refused(lambda: load_model(path), r'params/extra is \(1,\) float64 there and absent here')
    about = json.loads(arrays['about'].tobytes())
    for changes, message in (
        ({'format': 2}, 'has format 2'),
        ({'config': {'data': {'name': 'digits'}}}, 'this version cannot build'),
        ({'config': about['config'] | {'data': {'name': 'digit'}}}, "unknown data set 'digit'"),
    ):
        written({'about': np.frombuffer(json.dumps(about | changes).encode(), np.uint8)})
        refused(lambda: load_model(path), message)
    refused(lambda: load_model(tmp_path / 'none.npz'), 'there is no file of weights')


def test_evaluate_takes_a_network_of_the_zoo(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ['--num_examples=40', '--attacks=fgsm', '--steps=2', '--output=a.json']
    assert evaluate.main(['--model=zoo:digits-at', '--transfer_from=digits-trades', *flags]) == 0
    result = json.loads(pathlib.Path('a.json').read_text())
    assert result['threat_model'] == {'norm': 'linf', 'eps': 0.2} and result['dataset']['name'] == 'digits'
    assert result['model'] == {'model': 'zoo:digits-at', 'step': entries()['digits-at'].step}
    assert set(result['attacks']) == {'fgsm', 'transfer-digits-trades'}
    assert (
        np.load('a.npz')['clean'].tolist()
        == np.load(PACKAGED / 'digits-at/result.npz')['clean'][:40].tolist()
    )
    for wrong, message in (
        (['--model=zoo:digits-att'], 'did you mean digits-at'),
        (['--model=none.npz'], 'there is no file of weights none.npz'),
        (['--model=digits-at', '--dataset=digits'], 'is not of the form path/to/file.py:function'),
        (['--model=zoo:digits-at', '--checkpoint=3'], "checkpoint='3' belongs to a workdir"),
    ):
        capsys.readouterr()
        assert evaluate.main(wrong) == 2 and message in capsys.readouterr().err


def test_adding_a_run(tmp_path, monkeypatch, capsys):
    import jax
    import jax.numpy as jnp

    workdir, config = tmp_path / 'run', quickstart.get_config().copy_and_resolve_references().to_dict()
    config['seed'], config['data']['dir'] = 3, str(tmp_path)
    workdir.mkdir()
    (workdir / 'config.json').write_text(json.dumps(config))
    module = models.create('small_cnn', num_classes=10)
    shape = jnp.zeros((1, *data.SOURCES['digits'].shape), jnp.float32)
    checkpoints = Checkpoints(workdir / 'checkpoints')
    for step in (1, 2):
        state = {'params': module.init(jax.random.key(step), shape)['params'], 'batch_stats': {}}
        checkpoints.save(step, state, metadata={}, metric=0.5)
    result = tmp_path / 'result.json'
    flags = [f'--workdir={workdir}', '--num_examples=40', '--attacks=fgsm', f'--output={result}']
    assert evaluate.main([*flags, '--checkpoint=1']) == 0

    def add(*changes):
        given = {'zoo': tmp_path / 'zoo', 'name': 'new', 'workdir': workdir, 'result': result} | dict(changes)
        capsys.readouterr()
        return main(['add', *(f'--{key}={value}' for key, value in given.items())])

    def fails(message, *changes):
        assert add(*changes) == 2 and message in capsys.readouterr().err
        assert not (tmp_path / 'zoo' / MANIFEST).exists() or 'new2' not in entries()

    fails('does not say how the run was started')
    command = [
        'python',
        'train.py',
        '--config',
        'configs/quickstart.py',
        f'--workdir={workdir}',
        '--config.seed=3',
    ]
    command.append(f'--config.data.dir={tmp_path}')
    (workdir / 'environment.json').write_text(json.dumps({'command': command}))
    changed = json.loads(result.read_text())
    changed['model']['checkpoint'] = '2'
    other = tmp_path / 'other.json'
    other.write_text(json.dumps(changed))
    shutil.copy(result.with_suffix('.npz'), other.with_suffix('.npz'))
    fails('is of another network', ('result', other))
    changed['threat_model']['eps'] = 0.1
    other.write_text(json.dumps(changed))
    fails('evaluate it there', ('result', other))
    del changed['dataset']['name']
    other.write_text(json.dumps(changed))
    fails("no result of evaluate.py for a named data set: 'name' is missing", ('result', other))
    fails('is no result of evaluate.py: it has no schema', ('result', workdir / 'config.json'))
    fails('cannot be the name', ('name', '../new'))

    assert add() == 0
    monkeypatch.setenv('SI_JAX_ZOO', str(tmp_path / 'zoo'))
    entry = verify('new')
    assert entry.recipe == {
        'config': 'configs/quickstart.py',
        'overrides': {'seed': '3'},
        'command': 'python train.py --config=configs/quickstart.py --config.seed=3',
    }
    assert (entry.seed, entry.step, entry.checkpoint) == (3, 1, '1') and entry.threat_model['eps'] == 0.2
    assert entry.accuracy['fgsm'] == json.loads(result.read_text())['attacks']['fgsm']['accuracy']
    assert str(tmp_path) not in (tmp_path / 'zoo' / MANIFEST).read_text()
    model, wanted = load_model('new'), load_model(workdir, 1)
    assert model.config.data.dir is None and model.step == 1
    jax.tree.map(assert_array_equal, model.variables, wanted.variables)
    fails("has 'new' already")

    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(NAMES) and max(map(len, lines)) <= 80
    assert lines[1].split()[0] == 'new' and lines[1].split()[5:7] == ['-', '-']
    assert main(['verify', 'newer']) == 2
    assert 'did you mean new' in capsys.readouterr().err


def test_a_network_without_its_images_does_not_stop_the_others(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(zoo, 'entries', lambda: ['cifar10-trades', 'digits-at'])
    monkeypatch.setattr(zoo, 'measure', lambda name, **_: measured(name, tmp_path))

    def measured(name, empty):
        if name == 'digits-at':
            return [Verified('clean', 0.5, 0.5, 0, 4)]
        return measure(name, attacks=['pgd'], data_dir=str(empty))

    assert main(['evaluate']) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith('cifar10-trades    not measured: ') and str(tmp_path) in lines[1]
    assert lines[-1].split()[:2] == ['digits-at', 'clean']
    assert main(['evaluate', 'cifar10-trades']) == 2  # what was asked for by name is an error


def test_the_page_shows_the_manifest(capsys):
    assert main(['list', '--markdown']) == 0
    table = capsys.readouterr().out
    assert f'<!-- zoo -->\n\n{table}\n<!-- end of zoo -->' in (ROOT / 'docs' / 'zoo.md').read_text()
