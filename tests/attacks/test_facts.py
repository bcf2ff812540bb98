"""What is known of an attack follows from what it is: no list of names says it."""

import pytest

from si_jax import objectives
from si_jax.attacks.apgd import apgd
from si_jax.attacks.facts import Facts, facts
from si_jax.attacks.family import ATTACKS
from si_jax.attacks.pgd import Attack
from si_jax.attacks.searches import SEARCHES, SearchAttack
from si_jax.outputs import scaled_cosine

ROWS = {**ATTACKS, **SEARCHES}
SEES_THE_SCALE = {'fgsm', 'pgd', 'pgd-pm', 'gama', 'apgd-ce'}
READS_FEATURES = {'sipgd', 'apgd-si', 'apgd-si-t'}
LOSS_CLASSES = {'dlr': 3, 'apgd-dlr': 3, 'apgd-t': 4}
WITHOUT_GRADIENT = {'square', 'spsa', 'spsa-128', 'spsa-512', 'rays', 'rays-40000'}


def known(one: Facts) -> tuple:
    return (
        one.blind_to_scale,
        one.reads_features,
        one.loss_classes,
        one.uses_gradient,
    )


@pytest.mark.parametrize('name', ROWS)
def test_every_row(name):
    expected = (
        name not in SEES_THE_SCALE,
        name in READS_FEATURES,
        LOSS_CLASSES.get(name, 2),
        name not in WITHOUT_GRADIENT,
    )
    assert known(facts(ROWS[name])) == expected


def test_a_new_row_needs_no_other_edit():
    new = Attack(objectives.dlr, then=objectives.adversarial_ce)
    assert known(facts(new)) == (False, False, 3, True)
    cosine = SearchAttack(
        lambda setup: apgd(objectives.targeted_dlr, scaled_cosine(3.0)), 10, lambda classes: 1.0
    )
    assert known(facts(cosine)) == (True, True, 4, True)
