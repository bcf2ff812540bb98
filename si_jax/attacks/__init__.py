"""Attacks: small changes of an image that a classifier gets wrong.

An attack is an objective of a score, a start, a step and a ball. The *score* is what the classifier's outputs
are turned into (logits, cosines), the *objective* a loss of it that the attack raises; the *start* is where
the attack begins, the *step* how it moves, and the *ball* how far it may go (`si_jax.threat`).

    >>> images, labels = jax.numpy.full((2, 4, 4, 3), 0.5), jax.numpy.array([0, 1])
    >>> classifier = lambda images, keys: Outputs(images.mean(axis=(1, 2)))  # three classes, one a channel
    >>> attack, keys = Attack(objectives.margin, logits), jax.random.split(jax.random.key(0), 2)
    >>> ball = Threat('linf', 0.1)
    >>> ascent = run(attack, classifier, images, labels, keys, threat=ball, steps=8, step_size=0.05)
    >>> bool((classifier(ascent.last, keys).logits.argmax(axis=1) != labels).all())
    True

The modules, in the order to read them:

- `ascent`: the engine. It takes a loss with its gradient, a step and a ball, and makes step after step.
- `steps`: the step of steepest ascent. The ball knows which direction is the steepest.
- `pgd`: PGD and its variants, each a record `Attack` of the parts above; `run` runs one on a batch.
- `search`: attacks that stop at an image's first misclassified point, and so run in parts.
- `apgd`, `apgd_l1`: a search along the gradient that chooses its own step size; in L1 it is another one.
- `fab`, `fmn`: searches for the nearest misclassified image; `hyperplane` has the projection that FAB needs.
- `malt`: which classes a targeted search aims at, by how near their boundaries look.
- `square`, `spsa`, `rays`: searches without gradients (random windows, estimated slopes, predicted classes).
- `settings`: settings in a name, as in `apgd-ce(steps=50)`, and the one form that such a name has.
- `family`, `searches`, `presets`: the tables of attacks by name; presets such as `autoattack` run several.
- `registry`: what a name with its settings stands for, whichever table has it.
- `facts`: what is known of an attack (what it reads, whether the scale of the logits changes it), derived
  from its row or from one evaluation on a toy.
- `rows`: what all of them do image by image. Every image has its own key, so none depends on its batch.
"""

from si_jax.attacks.ascent import Ascent, Rule, ascend
from si_jax.attacks.family import ATTACKS
from si_jax.attacks.pgd import Attack, run
from si_jax.attacks.presets import PRESETS
from si_jax.attacks.registry import parse, stages
from si_jax.attacks.searches import SEARCHES

__all__ = [
    'ATTACKS',
    'PRESETS',
    'SEARCHES',
    'Ascent',
    'Attack',
    'Rule',
    'ascend',
    'parse',
    'run',
    'stages',
]
