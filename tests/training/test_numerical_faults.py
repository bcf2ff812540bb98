"""Faults in the numbers: found in the compiled step, on whatever device they began, and not taken over."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import quickstart
from si_jax.models.batch_norm import BatchNorm
from si_jax.models.layers import Conv, Linear, global_mean, outputs_of
from si_jax.runtime import devices
from si_jax.training.checkpoints import Checkpoints
from si_jax.training.loop import DivergedError, run
from si_jax.training.state import create_state
from si_jax.training.step import make_train_step
from si_jax.training.update import Calendar, Ingredients, all_finite, metric_names
from tests.training.test_step_devices import CLASSES, SHAPE, THREAT, defense_of, make_batch, mapped

POISON = 0.123  # of pixel (0, 0): the logits are those of any image, their gradient is not


@jax.custom_vjp
def poisoned(logits, pixel):
    return logits


poisoned.defvjp(
    lambda logits, pixel: (logits, pixel),
    lambda pixel, g: (jnp.where(jnp.isclose(pixel, POISON), jnp.nan, g), jnp.zeros_like(pixel)),
)


class Net(nn.Module):
    dtype: str

    @nn.compact
    def __call__(self, x, train=False, mask=None):
        y = Conv(8, 3, stride=2, dtype=self.dtype, name='conv')(x)
        y = nn.relu(BatchNorm(devices.AXIS, name='bn')(y, train=train, mask=mask))
        outputs = outputs_of(global_mean(y), Linear(CLASSES, name='linear'))
        return outputs._replace(logits=poisoned(outputs.logits, x[:, 0, 0]))


@pytest.fixture(scope='module', params=['float32', 'bfloat16', 'float16'])
def compiled(request):
    """A state and its step over eight devices. Momentum twice the last lets an update overflow by itself."""
    optimiser = optax.chain(optax.trace(decay=2.0), optax.scale(-0.05))
    defense = defense_of('standard', False)
    model = Net(request.param)
    state = create_state(model, optimiser, metric_names(defense), seed=0, image_shape=SHAPE)
    parts = Ingredients(
        defense=defense, model=model, optimiser=optimiser, threat=THREAT, attack_step_size=0.1,
        axis_name=devices.AXIS, calendar=Calendar(4, 1),
    )  # fmt: skip
    step = make_train_step(parts)
    return request.param, state, mapped(step)


def with_kernel(state, layer, kernel):
    return state._replace(params={**state.params, layer: {**state.params[layer], 'kernel': kernel}})


def pixel(batch, shard, value):
    return batch._replace(images=batch.images.at[shard, 1, 0, 0, 0].set(value))


def harmed(fault, state, batch):
    """The state and the batch [8 devices, 2 rows, ...] with a fault in shard 5, or in the weights of all."""
    if fault == 'NaN in the data':
        return state, pixel(batch, 5, jnp.nan)
    if fault == 'infinity in the data':
        return state, pixel(batch, 5, jnp.inf)
    if fault == 'NaN in the gradient':
        return state, pixel(batch, 5, POISON)
    if fault == 'the loss explodes':
        kernel = state.params['linear']['kernel']
        return with_kernel(state, 'linear', kernel / jnp.abs(kernel).max() * 3e38), batch
    if fault == 'a convolution overflows':  # 1e38 is beyond float16, and its sums beyond the others
        return with_kernel(state, 'conv', jnp.full_like(state.params['conv']['kernel'], 3e38)), batch
    assert fault == 'the update overflows'
    trace = jax.tree.map(lambda x: jnp.full_like(x, jnp.finfo(x.dtype).max), state.params)
    return state._replace(opt_state=(optax.TraceState(trace), *state.opt_state[1:])), batch


FAULTS = (
    'NaN in the data', 'infinity in the data', 'NaN in the gradient', 'the loss explodes',
    'a convolution overflows', 'the update overflows',
)  # fmt: skip


def test_a_fault_on_any_device_leaves_the_state_as_it_was_on_all(compiled):
    dtype, start, step = compiled
    batches = [devices.shard_rows(make_batch(index, 16, 16, jnp.float32)) for index in range(2)]
    for fault in FAULTS:
        before, batch = harmed(fault, start, batches[0])
        after, _, metrics = step(before, (), batch)
        assert (int(after.bad_step), int(after.step)) == (0, 0), fault
        terms = {name: float(value) for name, value in after.bad_terms.items()}
        assert terms.keys() == metrics.keys()
        finite = {name: bool(np.isfinite(terms[name])) for name in ('loss', 'gradient_norm')}
        assert finite == {
            'loss': fault in ('NaN in the gradient', 'the update overflows'),
            'gradient_norm': fault == 'the update overflows',
        }, fault
        # Whatever comes after it changes nothing: every device kept what it had.
        after, _, _ = step(after, (), batches[1])
        for kept, now in zip(jax.tree.leaves(before[1:4]), jax.tree.leaves(after[1:4]), strict=True):
            copies = [np.asarray(shard.data) for shard in now.addressable_shards]
            assert len(copies) == 8 and all(copy.tobytes() == np.asarray(kept).tobytes() for copy in copies)
    healthy, _, _ = step(start, (), batches[0])
    assert (int(healthy.bad_step), int(healthy.step)) == (-1, 1), dtype


@pytest.mark.parametrize(('peak', 'what'), [(1e20, 'step'), (3e38, 'the update of step')])
def test_a_run_ends_with_step_terms_and_the_last_good_state(tmp_path, peak, what):
    config = quickstart.get_config()
    config.update_from_flattened_dict({
        'data.limit': 32, 'data.validation': 0, 'batch_size': 16, 'model.width': 2, 'attack.steps': 1,
        'logging.tensorboard': False, 'checkpoint.every_steps': 1, 'schedule.peak': peak, 'epochs': 2,
    })  # fmt: skip
    with pytest.raises(DivergedError) as error:
        run(config, str(tmp_path))
    message = str(error.value)
    restored = Checkpoints(tmp_path / 'checkpoints').restore('last')
    assert message.startswith(f'{what} {restored.step} (epoch 1) is not finite: ')
    assert all(word in message for word in ('loss=', 'natural_ce=', 'kl=', 'gradient_norm=', 'schedule.peak'))
    for part in ('params', 'opt_state'):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored.state[part]))
    assert restored.state['bad_step'] == -1


def test_whether_all_is_finite_is_computed_once_and_not_for_every_leaf():
    leaves = [np.ones(size) for size in range(2, 22)]
    compiled = jax.jit(all_finite)
    for bad in (None, *range(len(leaves))):
        given = [np.where(np.arange(len(leaf)) == 0, np.nan, leaf) if i == bad else leaf
                 for i, leaf in enumerate(leaves)]  # fmt: skip
        assert bool(compiled([*given, np.arange(3)])) == (bad is None)

    def keep(new, old):
        finite = all_finite(new)
        return [jnp.where(finite, a, b) for a, b in zip(new, old, strict=True)]

    program = jax.jit(keep).lower(leaves, leaves).compile().as_text()
    assert program.count(' and(') < 4 * len(leaves)
