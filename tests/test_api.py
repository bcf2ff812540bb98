"""What `import si_jax` gives, and what it does not import."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import si_jax

ROOT = Path(__file__).resolve().parent.parent


def test_every_public_name_is_there_and_documented():
    for name in si_jax.__all__:
        assert getattr(si_jax, name) is not None
    for name in ('evaluate', 'load_model', 'Outputs', 'Randomised', 'Result', 'Threat', 'InputError'):
        assert len(getattr(si_jax, name).__doc__) > 20
    assert {'fgsm', 'pgd', 'cw', 'dlr', 'sipgd'} <= set(si_jax.ATTACKS)


def test_only_public_names_are_listed_and_each_knows_its_module():
    assert dir(si_jax) == sorted(si_jax.__all__)
    assert sorted(si_jax._MODULES) == sorted(si_jax.__all__)
    # What a reader of the file, and a checker of types, is told is where the name comes from.
    block = next(
        node for node in ast.parse(Path(si_jax.__file__).read_text()).body if isinstance(node, ast.If)
    )
    told = {name.name: node.module for node in block.body for name in node.names}
    assert told == {name: f'si_jax.{module}' for name, module in si_jax._MODULES.items()}
    assert si_jax.data.register is not None  # a folder, without an import of it
    with pytest.raises(AttributeError, match="module 'si_jax' has no attribute 'evalute'"):
        si_jax.evalute  # noqa: B018


def test_the_version_is_that_of_the_package_or_of_a_build_without_git():
    settings = tomllib.loads((ROOT / 'pyproject.toml').read_text())
    assert settings['project']['dynamic'] == ['version']
    fallback = settings['tool']['hatch']['version']['fallback-version']
    assert f"__version__ = '{fallback}'" in (ROOT / 'si_jax' / 'runtime' / 'version.py').read_text()
    assert re.match(r'\d+\.\d+', si_jax.__version__)


def test_importing_takes_no_time():
    script = 'import sys, si_jax; print([name for name in ("jax", "flax", "numpy") if name in sys.modules])'
    done = subprocess.run(
        [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == '[]'


def test_importing_brings_no_other_framework():
    heavy = (
        'torch',
        'tensorflow',
        'tensorflow_datasets',
        'orbax',
        'sklearn',
        'scipy.stats',
        'pandas',
        'matplotlib',
    )
    listed = f'print([name for name in {heavy} if name in sys.modules])'
    # What every evaluation of the digits needs besides.
    used = "from si_jax.evaluation.intervals import wilson; wilson(1, 2); si_jax.data.load('digits', 'test')"
    script = f'import sys, evaluate, si_jax; si_jax.train; {used}; {listed}'
    done = subprocess.run(
        [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == '[]'
