"""Ramps by hand, what the planner makes of them, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import defenses
from si_jax.cost import flops
from si_jax.defenses import DEFENSES, Position
from si_jax.errors import InputError
from si_jax.threat import Threat
from si_jax.training import ramps
from si_jax.training.ramps import Ramps, from_config

NONE = {'eps': (), 'step_size': (), 'steps': (), 'weights': (), 'terms': '', 'every': 'epoch'}
LENGTH = {'epochs': 8, 'steps_per_epoch': 3}


def test_the_radius_of_dajat():
    """eps e / E in epoch e, counted from 1, and the step size with it."""
    found, _ = from_config(NONE | {'eps': (0.0, 1.0)}, DEFENSES['trades'], **LENGTH)
    for step in range(24):
        changes = found.at(jnp.int32(step), jnp.float64, Threat('linf', 0.8), 10, 0.4)
        epoch = step // 3 + 1
        assert float(changes['threat'].eps) == pytest.approx(0.8 * epoch / 8)
        assert float(changes['attack_step_size']) == pytest.approx(0.4 * epoch / 8)
        assert 'attack_steps' not in changes


def test_a_ramp_of_a_share_every_step():
    found, _ = from_config(NONE | {'step_size': (0.25, 0.5), 'every': 'step'}, DEFENSES['at'], **LENGTH)
    sizes = [
        float(found.at(jnp.int32(step), jnp.float64, Threat('linf', 0.1), 10, 1.0)['attack_step_size'])
        for step in (0, 5, 11, 12, 23)
    ]
    np.testing.assert_allclose(sizes, [0.25 + 0.75 / 12, 0.625, 1, 1, 1])


@pytest.mark.parametrize(
    ('ramp', 'most', 'expected'),
    [
        ((0.4, 1.0), 5, [2, 2, 3, 3, 4, 4, 5, 5]),  # the four quarters of DAJAT's paper
        ((0.0, 0.5), 2, [1, 1, 2, 2, 2, 2, 2, 2]),
        ((0.5, 0.3), 4, [2, 3, 4, 4, 4, 4, 4, 4]),
        ((1.0, 1.0), 3, [3] * 8),
    ],
)
def test_steps_and_their_mean(ramp, most, expected):
    found = Ramps((), (), ramp, moves=3, total=8)
    assert [int(found.steps_at(most, jnp.int32(3 * epoch))) for epoch in range(8)] == expected
    assert flops.mean_steps(most, ramp, 8) == pytest.approx(np.mean(expected))
    assert flops.mean_steps(most, (), 8) == most


def test_a_term_keeps_the_schedule_that_it_has():
    """GAT's lambda, 10 and then 40, in the loss and in the attack on every second batch."""
    section = NONE | {'weights': (0.0, 1.0), 'terms': 'guided'}
    found, defense = from_config(section, DEFENSES['gat'], **LENGTH)
    assert found is None and defense.scheduled
    for step in (0, 4, 22):
        position = Position(jnp.int32(step), jnp.int32(step % 3), 24)
        factor = (step // 3 + 1) / 8
        lam = 40 if step >= 21 else 10
        weight = defense.outer['guided'].weight_at(position)
        assert float(weight) == pytest.approx(factor * lam)
        assert float(defense.inner_terms['guided'].weight_at(position)) == pytest.approx(
            factor * lam * (step % 3 % 2)
        )
        assert defense.outer['natural_ce'].weight_at(position) == 1.0


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'every': 'batch'}, "unknown ramp.every 'batch'"),
        ({'eps': (0.0,)}, r'ramp.eps=\(0.0,\) must be \(a, b\)'),
        ({'eps': (2.0, 1.0)}, 'a not negative and at most 1'),
        ({'steps': (-0.1, 1.0)}, 'ramp.steps'),
        ({'step_size': (0.0, 0.0)}, r'in \(0, 1\]: for example \(0.0, 1.0\)'),
        ({'weights': (0.0, 1.0)}, '--config.ramp.terms=natural_ce'),
        ({'terms': 'kl'}, 'belong together'),
        ({'weights': (0.0, 1.0), 'terms': 'kll'}, "unknown term in ramp.terms 'kll'.*kl"),
    ],
)
def test_wrong_ramps_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        from_config(NONE | changes, DEFENSES['trades'], **LENGTH)


def test_no_steps_of_an_attack_cannot_grow():
    for name in ('freeat', 'standard'):
        with pytest.raises(InputError, match=r'no steps of an attack; use \(\)'):
            from_config(NONE | {'steps': (0.5, 1.0)}, DEFENSES[name], **LENGTH)
    assert from_config(NONE, DEFENSES['at'], **LENGTH) == (None, DEFENSES['at'])
    assert ramps.words(NONE) == '' and 'kl' in ramps.words(NONE | {'weights': (0, 1), 'terms': 'kl'})
    assert defenses.DEFENSES['gat'].scheduled


@pytest.mark.parametrize('epochs', [30, 50, 110, 120])
def test_each_number_of_steps_begins_where_users_have_it(epochs):
    """In 32 bits and under jit, where a quotient may lie on the other side of a whole number."""
    ramps = Ramps((), (), (0.4, 1.0), moves=1, total=epochs)
    with jax.enable_x64(False):
        found = np.asarray(jax.jit(jax.vmap(lambda step: ramps.steps_at(5, step)))(np.arange(epochs)))
    begins = [int(np.argmax(found >= number)) for number in (3, 4, 5)]
    assert found[0] == 2 and begins == [-(-quarter * epochs // 4) for quarter in (1, 2, 3)]
