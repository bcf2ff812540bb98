"""Scale-invariant adversarial attacks and defenses in JAX.

    import si_jax

    model = si_jax.load_model('runs/tradessi_cifar10/1a2b3c4d')   # or a network of JAX or PyTorch of your own
    result = si_jax.evaluate(model, images, labels, eps=8 / 255)
    print(result.table())

Images are [N, H, W, C] in [0, 1], and eps is a fraction of that range.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from si_jax.attacks import ATTACKS
    from si_jax.auditing import Audit, audit
    from si_jax.errors import InputError
    from si_jax.evaluation import BlackBox, Randomised, Result
    from si_jax.evaluation.attack import attack
    from si_jax.evaluation.compare import Comparison, compare
    from si_jax.evaluation.evaluate import evaluate
    from si_jax.evaluation.smallest import Smallest, smallest
    from si_jax.evaluation.sweep import Sweep, sweep
    from si_jax.evaluation.union import Union, evaluate_union
    from si_jax.outputs import Outputs
    from si_jax.runtime.version import __version__
    from si_jax.threat import Threat
    from si_jax.zoo.load import LoadedModel, load_model
    from si_jax.zoo.train import train
    from si_jax.zoo.verifying import verify

__all__ = [
    'ATTACKS',
    'Audit',
    'BlackBox',
    'Comparison',
    'InputError',
    'LoadedModel',
    'Outputs',
    'Randomised',
    'Result',
    'Smallest',
    'Sweep',
    'Threat',
    'Union',
    '__version__',
    'attack',
    'audit',
    'compare',
    'evaluate',
    'evaluate_union',
    'load_model',
    'smallest',
    'sweep',
    'train',
    'verify',
]

# The module of each name above. It is imported when the name is first used: JAX and Flax take seconds.
_MODULES = {
    'ATTACKS': 'attacks',
    'Audit': 'auditing',
    'BlackBox': 'evaluation',
    'Comparison': 'evaluation.compare',
    'InputError': 'errors',
    'LoadedModel': 'zoo.load',
    'Outputs': 'outputs',
    'Randomised': 'evaluation',
    'Result': 'evaluation',
    'Smallest': 'evaluation.smallest',
    'Sweep': 'evaluation.sweep',
    'Threat': 'threat',
    'Union': 'evaluation.union',
    '__version__': 'runtime.version',
    'attack': 'evaluation.attack',
    'audit': 'auditing',
    'compare': 'evaluation.compare',
    'evaluate': 'evaluation.evaluate',
    'evaluate_union': 'evaluation.union',
    'load_model': 'zoo.load',
    'smallest': 'evaluation.smallest',
    'sweep': 'evaluation.sweep',
    'train': 'zoo.train',
    'verify': 'zoo.verifying',
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f'si_jax.{_MODULES[name]}'), name)
    if not name.startswith('_'):  # a folder or module, as in `si_jax.data.register`
        try:
            return importlib.import_module(f'si_jax.{name}')
        except ModuleNotFoundError as error:
            if error.name != f'si_jax.{name}':
                raise
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return __all__
