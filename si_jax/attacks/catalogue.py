"""The attacks by name: one row each.

The PGD family (all but `fgsm`) takes its steps, step size and restarts from the caller, counts the final
iterate, and shares its random starts: run after run, attacks and models are compared on the same noise.
"""

from si_jax.attacks.gradient import Attack, from_original
from si_jax.errors import InputError, unknown
from si_jax.objectives import adversarial_ce, dlr, margin
from si_jax.outputs import logits, scaled_cosine

SI_SCALE = 15.0  # s of eq. 24, fixed for every model under evaluation (sec. 5.2 of the paper)

ATTACKS: dict[str, Attack] = {
    'fgsm': Attack(adversarial_ce, logits, start=from_original, steps=1, step_size=1.0),
    'pgd': Attack(adversarial_ce, logits),
    'cw': Attack(margin, logits),
    'dlr': Attack(dlr, logits),
    'sipgd': Attack(adversarial_ce, scaled_cosine(SI_SCALE)),
}

# Attacks that read features and kernel, and those that need a number of classes.
NEEDS_FEATURES = frozenset({'sipgd'})
LEAST_CLASSES = {'dlr': 3}


def parse(attacks: str | list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """The attack names in `attacks`, a comma string or a sequence, in order.

    Raises:
        InputError: A name is unknown (with the near ones), given twice, or there is none.
    """
    names = attacks.split(',') if isinstance(attacks, str) else list(attacks)
    names = [str(name).strip() for name in names]
    for name in names:
        if name not in ATTACKS:
            raise unknown('attack', name, ATTACKS)
        if names.count(name) > 1:
            raise InputError(f'attack {name!r} is given {names.count(name)} times: give it once')
    if not names:
        raise InputError(f'no attack given: name one or more of {", ".join(ATTACKS)}')
    return tuple(names)
