"""Packages that the base installation leaves out."""

import sys

import pytest

from si_jax import InputError
from si_jax.data import tfds
from si_jax.runtime.extras import extra


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    with pytest.raises(InputError, match=r'^a thing is not installed: pip install "si_jax\[things\]"$'):
        extra('no_such_package.part', 'a thing', 'things')
    with pytest.raises(InputError, match='pip install no_such_package$'):
        extra('no_such_package.part', 'a thing')
    monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
    with pytest.raises(
        InputError, match=r'tensorflow-datasets is not installed: pip install "si_jax\[tfds\]"'
    ):
        tfds.read('cifar10', 'cifar10', 'test', None)


def test_a_package_that_is_there_and_broken_is_no_missing_one(tmp_path, monkeypatch):
    (tmp_path / 'half_there.py').write_text('import not_there_at_all\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match='not_there_at_all'):
        extra('half_there', 'half', 'half')
