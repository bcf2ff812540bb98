"""The command si-jax: its verbs, recipes by name, and how it spells what is to be typed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from si_jax.cli import evaluate, launch, main, report
from si_jax.runtime import terminal

ROOT = Path(__file__).resolve().parents[2]
MOVED = r"""
    python train.py --config=configs/quickstart.py, then python evaluate.py audit --workdir=A
    python -m si_jax.cli.plan --config=configs/at_svhn.py:small_cnn --chip=h100
    python -m si_jax.cli.zoo verify
    my_train.py and configs/quickstart.py as a file; evaluate.py: wrong; python evaluate.py compare a b
"""
SPELLED = r"""
    si-jax train --config=quickstart, then si-jax audit --workdir=A
    si-jax plan --config=at_svhn:small_cnn --chip=h100
    si-jax zoo verify
    my_train.py and configs/quickstart.py as a file; si-jax evaluate: wrong; si-jax compare a b
"""


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(terminal, '_spelled', ['si-jax'])


def test_every_verb_has_a_page(installed, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '200')
    for verb in main.VERBS:
        if verb == 'train':  # ends the process itself; see below
            continue
        try:
            assert main.run(verb, ['--help']) in (None, 0)
        except SystemExit as stop:
            assert stop.code == 0
        page = capsys.readouterr().out
        assert f'si-jax {verb}' in page and not re.search(r'\b(train|evaluate|report)\.py', page), verb
        assert max(map(len, page.splitlines())) <= terminal.WIDTH, verb


def test_the_command_itself(capsys):
    assert main.main([]) == main.main(['--help']) == 0
    page = capsys.readouterr().out
    assert all(f'\n  {verb} ' in page for verb in main.VERBS)
    assert main.main(['--version']) == 0
    assert capsys.readouterr().out.startswith('si_jax ')


def test_a_slip_of_the_pen_and_recipes_by_name_from_any_folder(tmp_path):
    def typed(*argv):
        environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
        command = [sys.executable, '-m', 'si_jax', *argv]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    wrong = typed('trian')
    assert wrong.returncode == 2 and "unknown verb 'trian': did you mean train?" in wrong.stderr
    plan = typed(
        'train', '--config=quickstart', '--config.data.limit=60', '--config.data.validation=16', '--dry_run'
    )
    assert plan.returncode == 0 and 'workdir: runs/quickstart/' in plan.stdout + plan.stderr, plan.stderr


def test_texts_name_the_command_that_runs(installed):
    assert terminal.spelled(MOVED) == SPELLED


def test_texts_of_a_checkout_stay():
    assert terminal.spelled(MOVED) == MOVED


def test_configs_by_name_by_file_and_neither(tmp_path, monkeypatch):
    from ml_collections import config_flags

    def file(given):
        values = flags.FlagValues()
        config_flags.DEFINE_config_file('config', None, '', flag_values=values)
        terminal.parse_config(values, ['x', f'--config={given}'])
        return config_flags.get_config_filename(values['config'])

    monkeypatch.chdir(tmp_path)
    recipe = str(ROOT / 'configs' / 'digits.py')
    assert file('digits:atsi') == f'{recipe}:atsi' and file('configs/digits.py') == recipe
    (tmp_path / 'digits').write_text('from configs.quickstart import get_config\n')
    assert file('./digits') == './digits'  # a file of one's own comes first
    with pytest.raises(
        terminal.InputError, match='--config=digit is neither a file nor one of the .* did you mean'
    ):
        file('digit')


def test_the_recipes_lie_in_the_package_once_it_is_installed(tmp_path, monkeypatch):
    (tmp_path / 'si_jax' / 'runtime').mkdir(parents=True)
    (tmp_path / 'si_jax' / 'configs').mkdir()
    (tmp_path / 'si_jax' / 'configs' / 'one.py').touch()
    monkeypatch.setattr(terminal, '__file__', str(tmp_path / 'si_jax' / 'runtime' / 'terminal.py'))
    assert terminal.recipe_files() == {'one': tmp_path / 'si_jax' / 'configs' / 'one.py'}


def test_several_processes_run_a_verb(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    begun = []
    monkeypatch.setattr(launch, 'start', lambda command, count, **others: begun.append(command) or [])
    monkeypatch.setattr(launch.signal, 'signal', lambda number, handler: None)
    launch.main(['--', 'train', '--config=quickstart'])
    launch.main(['--', 'own.py', '--flag'])
    assert begun == [['-m', 'si_jax', 'train', '--config=quickstart'], ['own.py', '--flag']]


def test_report_alone_prints_its_page(capsys):
    assert report.main([]) == 0
    assert 'usage:' in capsys.readouterr().out


def test_audit_and_compare_are_verbs_of_evaluate(monkeypatch):
    given = []
    monkeypatch.setattr(evaluate, 'main', lambda argv: given.append(argv) or 0)
    main.run('audit', ['--workdir=A'])
    main.run('compare', ['a', 'b'])
    assert given == [['audit', '--workdir=A'], ['compare', 'a', 'b']]
