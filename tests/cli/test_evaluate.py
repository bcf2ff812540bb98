"""evaluate.py from the command line to its files."""

import hashlib
import json

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from si_jax import data
from si_jax import evaluate as evaluate_function
from si_jax.cli import evaluate
from si_jax.runtime.terminal import fraction
from tests.helpers.processes import assert_traced

MODEL = """
import jax.numpy as jnp
import neighbour
from si_jax import Outputs, data

def build():
    train = data.load('digits', 'train')
    pixels = train.images.reshape(-1, 64) / train.scale
    means = jnp.stack([pixels[train.labels == digit].mean(0) for digit in range(10)]).astype('float32')
    bias = -jnp.sum(means**2, axis=1)

    def classifier(images):  # the digit with the nearest mean
        features = images.reshape(len(images), -1)
        return Outputs(neighbour.FACTOR * features @ means.T + bias, features, means.T)

    return classifier

def build_logits():
    return lambda images: build()(images).logits

def build_cubes():
    return lambda images: build_logits()(images) ** 3

def build_steps():
    return lambda images: build_logits()(jnp.round(images * 16) / 16)

def shift(classifier, images, labels, threat, key):
    return threat.project(images + threat.eps, images)
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'neighbour.py').write_text('FACTOR = 2.0\n')
    (tmp_path / 'net.py').write_text(MODEL)
    return '--model=net.py:build'


def refused(capsys, *arguments) -> str:
    assert evaluate.main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('evaluate.py: ') and 'Traceback' not in err
    return err


def test_a_profile_that_cannot_be_written_is_refused(model, tmp_path, capsys):
    err = refused(capsys, model, '--dataset=digits', '--profile=net.py')
    assert 'net.py' in err and 'name a folder' in err


def test_digits_from_a_model_file(model, tmp_path, capsys):
    flags = ['--dataset=digits', '--num_examples=60', '--eps=1/20', '--attacks=pgd,cw,sipgd', '--steps=4']
    flags += ['--restarts=2', '--seed=3', '--output=out/result.json', '--save_images', '--profile=trace']
    assert evaluate.main([model, *flags]) == 0
    out, err = capsys.readouterr()
    assert_traced(tmp_path / 'trace')
    assert 'GFLOP/s' in out and 'unknown chip' not in out
    assert 'attacks: ' in out and 'profile written to trace' in out
    assert 'worst case' in out and '95 % interval' in out and out.endswith('written to out/result.json\n')
    assert max(map(len, out.splitlines())) <= 80
    assert 'attacks: 100 %, ' in err

    result = json.loads((tmp_path / 'out/result.json').read_text())
    assert ' '.join(result) == (
        'schema dataset model threat_model seed precision clean attacks worst_case '
        'si warnings environment timing'
    )
    assert result['schema'] == 1 and result['seed'] == 3 and result['warnings'] == []
    digest = result['dataset'].pop('digest')
    assert result['dataset'] == {'name': 'digits', 'split': 'test', 'examples': 60, 'classes': 10}
    assert result['model'] == {'model': 'net.py:build'}
    assert result['threat_model'] == {'norm': 'linf', 'eps': 0.05}
    assert result['precision'] == {'search': 'float32', 'verification': 'float32', 'matmul': 'highest'}
    assert result['environment']['jax'] and result['timing']['seconds'] > 0
    assert set(result['timing']['parts']) == {'checks and clean images', 'pgd', 'cw', 'sipgd'}

    flags = np.load(tmp_path / 'out/result.npz')
    images = np.load(tmp_path / 'out/result_images.npz')
    test = data.load('digits', 'test')
    pixels = (test.images[:60] / np.float32(test.scale)).astype('<f4')
    content = str(pixels.shape).encode() + pixels.tobytes() + test.labels[:60].astype('<i8').tobytes()
    assert digest == hashlib.sha256(content).hexdigest()
    assert_array_equal(flags['labels'], test.labels[:60])
    assert_array_equal(flags['indices'], np.arange(60))
    for name in ('clean', 'worst_case'):
        assert set(result[name]) == {'accuracy', 'ci95'}
        assert result[name]['accuracy'] == flags[name].mean()
    assert list(result['attacks']) == ['pgd', 'cw', 'sipgd']
    for name, attack in result['attacks'].items():
        assert ' '.join(attack) == (
            'accuracy single_run ci95 restarts runs steps step_size eot_samples max_perturbation only stages '
            'gradients'
        )
        assert attack['accuracy'] == flags[name].mean()
        assert attack['ci95'][0] < attack['accuracy'] < attack['ci95'][1]
        assert attack['restarts'] == len(attack['runs']) == 2 and attack['runs'][0] == attack['single_run']
        assert (attack['steps'], attack['step_size'], attack['stages']) == (4, 0.0125, [])
        assert attack['accuracy'] <= min(attack['runs'])
        assert attack['max_perturbation'] == pytest.approx(0.05, abs=1e-6)
        assert images[name].shape == (60, 8, 8, 1)
    expected = np.all([flags[name] for name in ('clean', 'pgd', 'cw', 'sipgd')], axis=0)
    assert_array_equal(flags['worst_case'], expected)


def test_a_scale_on_the_logits_changes_pgd_and_nothing_that_is_blind_to_it(model, tmp_path, capsys):
    flags = [model, '--dataset=digits', '--num_examples=60', '--eps=1/10', '--attacks=pgd,sipgd', '--steps=4']
    results = {}
    for scale in (1, 1000):
        assert evaluate.main([*flags, f'--logit_scale={scale}', f'--output=s{scale}.json']) == 0
        results[scale] = json.loads((tmp_path / f's{scale}.json').read_text())
    assert results[1]['model'] == {'model': 'net.py:build'}
    assert results[1000]['model'] == {'model': 'net.py:build', 'logit_scale': 1000.0}
    plain, scaled = np.load(tmp_path / 's1.npz'), np.load(tmp_path / 's1000.npz')
    for name in ('clean', 'sipgd'):
        assert_array_equal(plain[name], scaled[name])
    # Where the softmax is exactly one, the gradient is zero and the random start is all there is.
    assert results[1000]['attacks']['pgd']['accuracy'] > results[1]['attacks']['pgd']['accuracy'] + 0.2
    assert evaluate.main([*flags, '--logit_scale=1000']) == evaluate.main(flags) == 0
    assert len(list((tmp_path / 'evaluation').glob('*.json'))) == 2
    capsys.readouterr()
    for wrong in ('0', '-2'):
        assert 'must be positive and finite' in refused(capsys, *flags, f'--logit_scale={wrong}')


def test_logits_are_enough_and_the_default_output_follows_the_settings(model, tmp_path):
    flags = ['--dataset=digits', '--num_examples=20', '--attacks=cw', '--steps=2']
    assert evaluate.main(['--model=net.py:build_logits', *flags, '--eps=0.1']) == 0
    assert evaluate.main(['--model=net.py:build_logits', *flags, '--norm=l2', '--step_size=1/2']) == 0
    files = sorted((tmp_path / 'evaluation').glob('net-cw-*.json'))
    assert len(files) == 2
    threats = [json.loads(file.read_text())['threat_model'] for file in files]
    assert {'norm': 'linf', 'eps': 0.1} in threats and {'norm': 'l2', 'eps': 8 / 255} in threats
    test = data.load('digits', 'test')
    images = np.asarray(data.to_unit(jnp.asarray(test.images[:20]), test.scale))
    import net

    again = evaluate_function(net.build(), images, test.labels[:20], attacks='cw', eps=0.1, steps=2)
    stored = [json.loads(file.read_text())['attacks']['cw']['accuracy'] for file in files]
    assert again.accuracy['cw'] in stored


def test_other_models_and_attacks_of_ones_own(model, tmp_path):
    flags = ['--dataset=digits', '--num_examples=30', '--eps=1/20', '--steps=3', '--attacks=pgd,net.py:shift']
    flags += ['--gradient_of=net.py:build', '--transfer_from=net.py:build,net.py:build_logits']
    assert evaluate.main(['--model=net.py:build_steps', *flags, '--output=result.json']) == 0
    result = json.loads((tmp_path / 'result.json').read_text())
    assert list(result['attacks']) == ['pgd', 'shift', 'transfer-net', 'transfer-net-1']
    assert result['gradient_of']['model'] == 'net.py:build' and result['warnings'] == []
    accuracy = {name: entry['accuracy'] for name, entry in result['attacks'].items()}
    assert accuracy['pgd'] < result['clean']['accuracy'] and accuracy['shift'] > accuracy['pgd']


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--torch_checkpoint=x.pt', '--arch=resnet18'], '--torch_checkpoint needs --dataset, one of'),
        (['--torch_checkpoint=x.pt', '--dataset=digits'], '--torch_checkpoint needs --arch, one of resnet18'),
        (['--torch_checkpoint=x.pt', '--model=net.py:build'], 'or --torch_checkpoint=FILE'),
        (['--torch_checkpoint=no.pt', '--arch=resnet18', '--dataset=cifar10'], 'no.pt is not a file'),
        (['--model=net.py:build', '--dataset=digits', '--arch=resnet18'], '--arch belongs to --torch_checkp'),
        (
            ['--torch_checkpoint=x.pt', '--arch=resnet18', '--dataset=cifar10', '--stated_clean=84.92'],
            'stated_clean=84.92 is not a fraction in (0, 1]: did you mean 0.8492?',
        ),
        (['--dataset=digits'], 'either --workdir=FOLDER or --model=FILE.py:FUNCTION'),
        (['--model=net.py:build', '--workdir=x'], 'either --workdir=FOLDER or --model'),
        (['--model=net.py:build'], '--model needs --dataset, one of'),
        (['--model=net.py', '--dataset=digits'], 'not of the form path/to/file.py:function'),
        (['--model=nets.py:build', '--dataset=digits'], 'there is no file nets.py'),
        (
            ['--model=net.py:built', '--dataset=digits'],
            "no function 'built', only build, build_logits, build_cubes, build_steps, shift",
        ),
        (['--model=net.py:build', '--dataset=digit'], "unknown data set 'digit': did you mean digits"),
        (
            ['--model=net.py:build', '--dataset=digits', '--eps=8'],
            'eps=8 is not in (0, 1] for linf: did you mean 8/255?',
        ),
        (['--model=net.py:build', '--dataset=digits', '--norm=l3'], "unknown norm 'l3'"),
        (
            ['--model=net.py:build', '--dataset=digits', '--attacks=pgd,cww'],
            "unknown attack 'cww': did you mean cw",
        ),
        (
            ['--model=net.py:build', '--dataset=digits', '--num_examples=500'],
            'more than the 397 images of digits',
        ),
        (['--model=net.py:build', '--dataset=digits', '--num_examples=0'], 'num_examples=0 must be'),
        (['--model=net.py:build', '--dataset=digits', '--output=r.txt'], "'r.txt' does not end in .json"),
        (['--model=net.py:build', '--dataset=digits', '--restarts=0'], 'restarts=0 must be'),
        (['--model=net.py:build_cubes', '--dataset=digits'], "'sipgd' needs the features"),
        (['--model=net.py:build', '--dataset=cifar10', '--data_dir=nowhere'], 'nowhere'),
        (['--workdir=nowhere'], "'nowhere' is no workdir of train.py"),
        (
            ['--model=net.py:build', '--dataset=digits', '--gradient_of=net'],
            '--gradient_of=net is not of the',
        ),
        (
            ['--model=net.py:build', '--dataset=digits', '--transfer_from=a.py:b'],
            '--transfer_from=a.py:b: there',
        ),
        (['--model=net.py:build', '--dataset=digits', '--transfer_from=a'], "'a' is no workdir of train.py"),
        (
            ['--model=net.py:build', '--dataset=digits', '--attacks=net.py:shif'],
            "net.py has no function 'shif'",
        ),
    ],
)
def test_wrong_flags(model, capsys, flags, message):
    assert message in refused(capsys, *flags)


def test_values_that_are_no_numbers(model, capsys):
    for flag in ('--eps=8/0', '--eps=__import__("os")', '--steps=many'):
        with pytest.raises(SystemExit) as stop:
            evaluate.main([model, '--dataset=digits', flag])
        assert stop.value.code == 2
        assert f'argument {flag.split("=")[0]}: invalid' in capsys.readouterr().err


def test_fractions():
    assert fraction('8/255') == 8 / 255
    assert fraction('0.031') == 0.031 and fraction('1e-2') == 0.01


def test_a_torch_module_from_a_model_file(tmp_path, monkeypatch):
    pytest.importorskip('torch', reason='evaluates a torch.nn.Module')
    (tmp_path / 'torch_net.py').write_text(
        'import torch\n\n\n'
        'def build():\n'
        '    torch.manual_seed(0)\n'
        '    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), '
        'torch.nn.Linear(8, 10))\n'
    )
    monkeypatch.chdir(tmp_path)
    flags = ['--dataset=digits', '--num_examples=16', '--eps=0.1', '--steps=2', '--attacks=pgd,sipgd']
    assert evaluate.main(['--model=torch_net.py:build', *flags, '--output=result.json']) == 0
    result = json.loads((tmp_path / 'result.json').read_text())
    assert set(result['attacks']) == {'pgd', 'sipgd'} and result['dataset']['examples'] == 16


def test_several_threat_models(model, tmp_path, capsys):
    flags = [model, '--dataset=digits', '--num_examples=40', '--attacks=pgd', '--steps=3']
    flags += ['--threats=linf:1/20,l1:2', '--output=out/union.json']
    for _ in range(2):  # the second time in place of the files of the first
        assert evaluate.main(flags) == 0
    out, _ = capsys.readouterr()
    assert 'withstand all of linf:1/20, l1:2' in ' '.join(out.split())
    assert max(map(len, out.splitlines())) <= 80
    union = json.loads((tmp_path / 'out/union.json').read_text())['union']
    names = sorted(path.name for path in (tmp_path / 'out').iterdir())
    each = [f'union-{one}.{end}' for one in ('l1-2', 'linf-0.05') for end in ('json', 'npz')]
    assert names == [*each, 'union.json', 'union.npz']
    flags_of = [np.load(tmp_path / 'out' / name)['worst_case'] for name in each[1::2]]
    assert union['accuracy'] == np.logical_and(*flags_of).mean()
    for about in (json.loads((tmp_path / 'out' / name).read_text()) for name in each[::2]):
        assert about['union'] == union and about['dataset']['name'] == 'digits'
    err = refused(capsys, model, '--dataset=digits', '--threats=l1:2', '--eps=0.1')
    assert '--eps is given beside --threats' in err
    err = refused(capsys, model, '--dataset=digits', '--threats=l1:2,linf:2')
    assert 'eps=2 is not in (0, 1] for linf' in err
