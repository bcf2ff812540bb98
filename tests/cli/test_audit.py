"""evaluate.py --audit from the command line to its files."""

import json

import pytest

from si_jax.cli import evaluate

MODEL = """
import jax.numpy as jnp
from si_jax import data

def build():
    train = data.load('digits', 'train')
    pixels = train.images.reshape(-1, 64) / train.scale
    means = jnp.stack([pixels[train.labels == digit].mean(0) for digit in range(10)]).astype('float32')

    def classifier(images):  # the digit with the nearest mean
        return 5 * images.reshape(len(images), -1) @ means.T - 2.5 * jnp.sum(means**2, axis=1)

    return classifier

def build_in_train_mode():
    classifier = build()
    return lambda images: classifier(images - images.mean(0))
"""
FLAGS = ['--audit', '--dataset=digits', '--eps=0.1', '--num_examples=130', '--steps=10', '--restarts=2']
FLAGS += ['--audit_eps=1/20,1/10,1', '--audit_steps=5,20', '--audit_queries=100', '--audit_planted=20']


@pytest.fixture(autouse=True)
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'net.py').write_text(MODEL)


def test_an_audit_of_digits(tmp_path, capsys):
    assert evaluate.main(['--model=net.py:build', *FLAGS, '--output=out/audit.json']) == 0
    out, err = capsys.readouterr()
    assert max(map(len, out.splitlines())) <= 80
    assert 'verdict: PASS: ' in out and 'audit of pgd, linf eps=0.1, 130 images, seed 0' in out
    assert out.endswith('written to out/audit.json\ncurves in out/audit.png\n')
    assert 'audit: 100 %, ' in err
    written = json.loads((tmp_path / 'out/audit.json').read_text())
    assert written['model'] == {'model': 'net.py:build'} and written['dataset']['name'] == 'digits'
    attack = written['attack']
    assert attack['eps_grid'] == [0.05, 0.1, 1.0] and attack['steps_grid'] == [5, 10, 20]
    assert (attack['queries'], attack['planted'], attack['restarts']) == (100, 20, 2)
    assert written['environment']['command'] and written['timing']['seconds'] > 0
    assert written['checks']['eps']['evidence']['accuracy'][0] > written['accuracy']
    assert (tmp_path / 'out/audit.png').is_file() and not (tmp_path / 'out/audit.partial').exists()
    # An audit is no result that could be compared.
    assert evaluate.main(['compare', 'out/audit.json', 'out/audit.json']) == 2
    assert 'is JSON, but no result' in capsys.readouterr().err


@pytest.mark.parametrize('verb', [['--audit'], ['audit']])
def test_a_check_that_fails_is_told_by_the_exit_status(verb, tmp_path, capsys):
    flags = [*verb, '--model=net.py:build_in_train_mode', *FLAGS[1:], '--attacks=pgd-gap']
    assert evaluate.main(flags) == 1
    out = capsys.readouterr().out
    assert 'FAIL batch' in out and 'verdict: FAIL: do not trust' in out and 'curves' not in out
    (file,) = (tmp_path / 'evaluation').glob('net-audit-pgd-gap-*.json')
    assert json.loads(file.read_text())['verdict'] == 'fail'


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--attacks=pgd,cw'], '--audit judges one attack at a time, not --attacks=pgd,cw'),
        (['--attacks=autoattack'], "attack 'autoattack' cannot be audited"),
        (['--attacks=sipgd', '--model=net.py:nothing'], "no function 'nothing'"),
        (['--save_images'], '--save_images has no meaning with --audit'),
        (['--search_precision=bfloat16'], '--search_precision has no meaning with --audit'),
        (['--audit_queries=0'], 'queries=0 must be an integer of at least 1'),
        (['--audit_eps=8'], 'eps=8 is not in (0, 1] for linf: did you mean 8/255'),
        (['--num_examples=1000'], 'more than the 397 images of digits'),
        (['--output=a.txt'], "'a.txt' does not end in .json"),
    ],
)
def test_wrong_flags(capsys, flags, message):
    assert evaluate.main(['--model=net.py:build', *FLAGS, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('evaluate.py: ') and message in err


def test_flags_of_the_audit_belong_to_it(capsys):
    flags = ['--model=net.py:build', '--dataset=digits', '--audit_steps=3']
    assert evaluate.main(flags) == 2
    assert '--audit_steps belongs to --audit' in capsys.readouterr().err
