"""What `import si_jax` gives, and what it does not import."""

import subprocess
import sys
import tomllib
from pathlib import Path

import si_jax

ROOT = Path(__file__).resolve().parent.parent


def test_every_public_name_is_there_and_documented():
    for name in si_jax.__all__:
        assert getattr(si_jax, name) is not None
    for name in ('evaluate', 'load_model', 'Outputs', 'Randomised', 'Result', 'Threat', 'InputError'):
        assert len(getattr(si_jax, name).__doc__) > 20
    assert {'fgsm', 'pgd', 'cw', 'dlr', 'sipgd'} <= set(si_jax.ATTACKS)


def test_the_version_is_that_of_the_package():
    assert si_jax.__version__ == tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['version']


def test_importing_brings_no_other_framework():
    heavy = ('torch', 'tensorflow', 'tensorflow_datasets', 'orbax', 'sklearn', 'matplotlib')
    script = f'import sys, si_jax, evaluate; print([name for name in {heavy} if name in sys.modules])'
    done = subprocess.run(
        [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == '[]'
