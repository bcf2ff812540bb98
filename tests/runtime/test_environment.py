"""What a result was made with."""

import json
import subprocess
import sys

import jax
import numpy as np

from si_jax.runtime import environment as module
from si_jax.runtime.environment import environment


def test_names_versions_devices_and_command():
    found = environment()
    assert found['jax'] == jax.__version__ and found['numpy'] == np.__version__
    assert found['python'] == '.'.join(map(str, sys.version_info[:3]))
    assert all(found[package] for package in ('jaxlib', 'flax', 'optax', 'orbax-checkpoint'))
    assert (found['backend'], found['device_count'], found['process_count']) == ('cpu', 8, 1)
    assert found['device_kind'] == jax.devices()[0].device_kind
    assert found['command'] == ['python', *sys.orig_argv[1:]]
    assert json.loads(json.dumps(found)) == found


def git(folder, *arguments) -> str:
    identity = ['-c', 'user.name=n', '-c', 'user.email=e']
    command = ['git', '-C', str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_commit_of_the_source_and_whether_it_was_changed(tmp_path, monkeypatch):
    package = tmp_path / 'checkout' / 'si_jax'
    (package / 'runtime').mkdir(parents=True)
    source = package / 'runtime' / 'environment.py'
    source.write_text('a = 1\n')
    monkeypatch.setattr(module, '__file__', str(source))
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path))
    assert (environment()['git_commit'], environment()['git_dirty']) == (None, None)
    git(package.parent, 'init', '-q')
    git(package.parent, 'add', '.')
    git(package.parent, 'commit', '-q', '-m', 'first')
    commit = git(package.parent, 'rev-parse', 'HEAD')
    assert (environment()['git_commit'], environment()['git_dirty']) == (commit, False)
    (package.parent / 'result.json').write_text('{}')  # an untracked file is not a change of the source
    assert environment()['git_dirty'] is False
    source.write_text('a = 2\n')
    assert (environment()['git_commit'], environment()['git_dirty']) == (commit, True)


def test_an_installed_package_does_not_take_the_commit_of_a_checkout_around_it(tmp_path, monkeypatch):
    git(tmp_path, 'init', '-q')
    (tmp_path / 'file').write_text('')
    git(tmp_path, 'add', '.')
    git(tmp_path, 'commit', '-q', '-m', 'someone else')
    package = tmp_path / 'site-packages' / 'si_jax' / 'runtime'
    monkeypatch.setattr(module, '__file__', str(package / 'environment.py'))
    package.mkdir(parents=True)
    assert environment()['git_commit'] is None


def test_without_git(monkeypatch):
    monkeypatch.setenv('PATH', '')
    assert (environment()['git_commit'], environment()['git_dirty']) == (None, None)
