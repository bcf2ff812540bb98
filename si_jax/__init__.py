"""Scale-invariant adversarial attacks and defenses in JAX.

    import si_jax

    model = si_jax.load_model('runs/tradessi_cifar10/1a2b3c4d')   # or any function images -> si_jax.Outputs
    result = si_jax.evaluate(model, images, labels, attacks='pgd,cw,dlr,sipgd', eps=8 / 255)
    print(result.table())

Images are [N, H, W, C] in [0, 1], and eps is a fraction of that range.
"""

from si_jax.attacks import ATTACKS
from si_jax.auditing import Audit, audit
from si_jax.errors import InputError
from si_jax.evaluation import BlackBox, Randomised, Result, evaluate
from si_jax.evaluation.compare import Comparison, compare
from si_jax.evaluation.smallest import Smallest, smallest
from si_jax.evaluation.sweep import Sweep, sweep
from si_jax.evaluation.union import Union, evaluate_union
from si_jax.outputs import Outputs
from si_jax.threat import Threat
from si_jax.zoo.load import LoadedModel, load_model
from si_jax.zoo.verifying import verify

__version__ = '0.1.0'

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
    'audit',
    'compare',
    'evaluate',
    'evaluate_union',
    'load_model',
    'smallest',
    'sweep',
    'verify',
]
