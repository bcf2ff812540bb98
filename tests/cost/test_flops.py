"""Counting FLOPs: the literature's numbers, every defense's step against the formula, and XLA's own count."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from si_jax import models
from si_jax.cost import flops, planning
from si_jax.defenses import DEFENSES, with_inner, with_si
from si_jax.threat import Threat
from si_jax.training import recipes
from si_jax.training.average import Average
from si_jax.training.awp import Perturbation
from si_jax.training.helper import attached, term_of
from si_jax.training.recompute import Recount, make_recount
from si_jax.training.setup import step_of
from si_jax.training.state import Batch, create_state
from si_jax.training.update import Calendar, Ingredients, metric_names

SHAPE = (32, 32, 3)
THREAT = Threat('linf', 8 / 255)
OPTIMISER = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))


def step_and_arguments(defense, model, batch_size, attack_steps, awp=None):
    """A training step on one device, and the shapes of what it is called with."""
    if helped := term_of(defense):
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))
        defense = attached(defense, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))
    parts = Ingredients(
        defense=defense,
        model=model,
        optimiser=OPTIMISER,
        threat=THREAT,
        attack_steps=attack_steps,
        attack_step_size=8 / 255 if defense.persistent else 2 / 255,
        calendar=Calendar(10, 10),
        awp=awp,
        helper=model if helped else None,
    )
    carry = jax.ShapeDtypeStruct((batch_size, *SHAPE), jnp.float32) if defense.persistent else ()
    step = step_of(defense).make(parts)
    state = jax.eval_shape(
        lambda: create_state(
            model,
            OPTIMISER,
            metric_names(defense),
            seed=0,
            image_shape=SHAPE,
            memory=defense.first_memory(10),
        )
    )
    batch = Batch(
        jax.ShapeDtypeStruct((batch_size, *SHAPE), jnp.float32),
        jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        jax.ShapeDtypeStruct((batch_size,), bool),
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch_size)),
        augmented=(jax.ShapeDtypeStruct((batch_size, *SHAPE), jnp.float32),) * defense.branches,
    )
    return step, (state, carry, batch)


@pytest.mark.parametrize(
    ('arch', 'gigaflops', 'parameters', 'outputs', 'norms'),
    [('resnet18', 1.111, 11.17e6, 0.6144e6, 20), ('wrn_34_10', 13.32, 46.16e6, 3.17e6, 31)],
)
def test_networks_cost_what_the_literature_says(arch, gigaflops, parameters, outputs, norms):
    network = flops.network(models.create(arch, num_classes=10), SHAPE)
    assert network.flops == pytest.approx(1e9 * gigaflops, rel=1e-3)
    assert network.parameters == pytest.approx(parameters, rel=1e-3)
    assert network.outputs == pytest.approx(outputs, rel=1e-3)
    assert network.norms == norms


def test_counts_by_hand():
    x, w, kernel = jnp.zeros((2, 3)), jnp.zeros((3, 5)), jnp.zeros((3, 3, 4, 6))
    assert flops.count(lambda x: x @ w, x) == 2 * 2 * 3 * 5
    assert flops.count(lambda x: jax.lax.fori_loop(0, 7, lambda i, x: x + x @ w @ w.T, x), x) == 7 * 120
    assert flops.count(lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w.T, lambda: x), x) == 120
    image = jnp.zeros((2, 8, 8, 4))

    def strided(image, kernel):
        return jnp.sum(models.convolution.convolve(image, kernel, 2, 1))

    forward = 2 * (2 * 4 * 4 * 6) * (3 * 3 * 4)
    assert flops.count(strided, image, kernel) == forward
    # The gradients of image and kernel each take what the forward pass takes, the stride notwithstanding.
    assert flops.count(jax.grad(strided, (0, 1)), image, kernel) == 3 * forward


VARIANTS = {
    **{
        name: DEFENSES[name]
        for name in ('at', 'trades', 'gat', 'rfgsm', 'gradalign', 'elle', 'dkl', 'hat', 'dajat', 'eat')
    },
    'nuatsi': with_si(DEFENSES['nuat']),
    'tradessi': with_si(DEFENSES['trades']),
    'freeatsi, two backward passes': with_inner(with_si(DEFENSES['freeat']), 'si'),
    'tradescal': with_inner(DEFENSES['trades'], 'calibrated_ce'),
    'trades, three passes': DEFENSES['trades']._replace(passes=('nat', 'adv', 'nat')),
}


@pytest.mark.parametrize('name', VARIANTS)
def test_the_formula_is_what_each_step_computes(name):
    defense = VARIANTS[name]
    model = models.create('wrn_10_1', num_classes=10, bn_branch=0 if defense.branches else None)
    step, arguments = step_and_arguments(defense, model, 4, defense.steps)
    forward = flops.network(model, SHAPE).flops
    counted = flops.count(step, *arguments) / 4 / forward
    expected = flops.training_passes(defense, defense.steps).total
    # Gradients of parameters alone do not need that of the first convolution's input.
    first = flops.network(model, SHAPE).layers[0].flops / forward
    read = max(3, flops.live_forwards(defense))
    # The compiler drops the gradient at APGD's last point.
    dropped = 1.0 * defense.best_point
    assert expected - read * first - 1e-3 <= counted - dropped <= expected + 0.01


@pytest.mark.parametrize(('name', 'first_step'), [('trades, three passes', 5), ('elle', 0)])
def test_perturbed_weights_cost_one_more_gradient(name, first_step):
    defense, model = VARIANTS[name], models.create('wrn_10_1', num_classes=10)
    forward = flops.network(model, SHAPE).flops
    counted = [
        flops.count(step, *arguments) / 4 / forward
        for step, arguments in (
            step_and_arguments(defense, model, 4, 2, awp) for awp in (None, Perturbation(0.01, first_step))
        )
    ]
    one_more = flops.training_passes(defense, 2, awp=True).total - flops.training_passes(defense, 2).total
    assert one_more == {'elle': 12}.get(name, 6)
    assert 0.95 * one_more <= counted[1] - counted[0] <= 1.01 * one_more


@pytest.mark.parametrize(
    ('name', 'passes'),
    [
        ('at', 23),
        ('trades', 27),
        ('mart', 26),
        ('eat', 24),
        ('freeat', 3),
        ('nfgsm', 6),
        ('elle', 16),
        ('ellea', 16),
        ('nuat', 9),
        ('dkl', 17),
        ('hat', 31),
        ('dajat', 51),
    ],
)
def test_golden_numbers_of_passes(name, passes):
    assert flops.training_passes(DEFENSES[name], DEFENSES[name].steps).total == passes


def test_live_forwards_of_the_update():
    assert flops.live_forwards(DEFENSES['at']) == 1
    assert all(flops.live_forwards(with_si(DEFENSES[name])) == 2 for name in ('trades', 'alp', 'mart'))


def test_xla_counts_no_more_and_memory_does_not_grow_with_the_attack():
    """The bounds: one attack step 2.1 F, the outer step 6.3 F, TRADES-SI with ten steps 28 F.

    `python -m benchmarks --rows=memory` compiles the same for ResNet-18.
    """
    model, batch = models.create('wrn_10_2', num_classes=10), 32
    defense = with_si(DEFENSES['trades'])

    def compiled(steps):
        step, arguments = step_and_arguments(defense, model, batch, steps)
        with models.use_convolution('lax'):
            return jax.jit(step, donate_argnums=0).lower(*arguments).compile()

    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *SHAPE), jnp.float32))
    images = jax.ShapeDtypeStruct((batch, *SHAPE), jnp.float32)
    with models.use_convolution('lax'):
        forward = jax.jit(model.apply).lower(variables, images).compile().cost_analysis()['flops']
    programs = {steps: compiled(steps) for steps in (0, 1, 20)}
    outer = programs[0].cost_analysis()['flops'] / forward
    attack = programs[1].cost_analysis()['flops'] / forward - outer
    assert 1.9 < attack <= 2.1
    assert 5.7 < outer <= 6.3
    assert 10 * attack + outer <= 28
    # All attack steps share what one needs, and that is less than what the update needs.
    temporary = {steps: program.memory_analysis().temp_size_in_bytes for steps, program in programs.items()}
    assert max(temporary.values()) < 1.05 * temporary[0]
    # And the planner's formula for the whole is at most a quarter off.
    reserved = programs[20].memory_analysis()
    measured = reserved.argument_size_in_bytes + reserved.output_size_in_bytes - reserved.alias_size_in_bytes
    config = recipes.paper('trades', si=True, dataset='cifar10', arch='wrn_10_2')
    cpu = planning.Machine('CPU', 1.0, 1.0, 1.0, None, False)
    predicted = planning.memory(planning.describe(config), cpu, 1, batch)
    total = predicted.state + predicted.activations
    assert total == pytest.approx(measured + reserved.temp_size_in_bytes, rel=0.25)


def test_the_table_of_the_page_is_what_the_code_counts():
    page = pathlib.Path(__file__).parents[2] / 'docs' / 'performance.md'
    lines = re.findall(r'^\| ([A-Z][^|]+?) \| (\d+) F \| (\d+) F \| (\d+) F \|$', page.read_text(), re.M)
    named = {}
    for names, *cells in lines:
        for name in names.split(', '):
            if name not in ('10 steps', 'one replay'):
                named[name] = tuple(map(float, cells))
    assert len(named) == 9
    for name, cells in named.items():
        method = name.lower().removesuffix('-at')
        defense = with_si(DEFENSES['trades']) if name == 'TRADES-SI' else DEFENSES[method]
        passes = flops.training_passes(defense, defense.steps)
        assert (passes.attack, passes.update, passes.total) == cells, name


def test_an_average_costs_nothing_and_its_statistics_one_forward_pass():
    defense, model = DEFENSES['at'], models.create('wrn_10_1', num_classes=10)
    kept = Average('ema', 0.995, 1.0, True, 'recompute', 10)
    parts = Ingredients(
        defense=defense,
        model=model,
        optimiser=OPTIMISER,
        threat=THREAT,
        attack_steps=2,
        attack_step_size=2 / 255,
        average=kept,
    )
    plain, (state, carry, batch) = step_and_arguments(defense, model, 4, 2)
    average = jax.eval_shape(kept.begin, state.params, state.batch_stats)
    counted = flops.count(step_of(defense).make(parts), state._replace(average=average), carry, batch)
    assert counted == flops.count(plain, state, carry, batch)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    recount = Recount(number, state.params, state.batch_stats, number)
    forward = flops.network(model, SHAPE).flops
    assert flops.count(make_recount(parts), recount, (), batch) == pytest.approx(4 * forward, rel=1e-6)
