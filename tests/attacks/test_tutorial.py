"""The example that opens `si_jax.attacks` runs, and its list of modules is complete."""

import doctest
from pathlib import Path

import jax

from si_jax import attacks, objectives
from si_jax.outputs import Outputs, logits
from si_jax.threat import Threat


def test_the_example_runs():
    names = {'jax': jax, 'Outputs': Outputs, 'Threat': Threat, 'logits': logits, 'objectives': objectives}
    seen = doctest.testmod(attacks, extraglobs=names)
    assert seen.attempted == 6 and seen.failed == 0


def test_the_tutorial_names_every_module():
    modules = {path.stem for path in Path(attacks.__file__).parent.glob('*.py')} - {'__init__'}
    assert not [name for name in sorted(modules) if f'`{name}`' not in attacks.__doc__]
