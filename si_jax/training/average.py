"""The average of the weights over a run, which is what is evaluated where a config asks for one.

It is a part of the train state, and moves in the compiled step under the same guard as the parameters:

    ema    after each step    average <- a average + (1 - a) weights
    swa    after each epoch   the same, with a = tau

Until it starts it is a copy of the weights. `evaluated` says which weights evaluation takes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from si_jax.errors import InputError, unknown
from si_jax.models.layers import unit_kernels

Array = jax.Array
KINDS = ('', 'ema', 'swa')
BATCH_STATS = ('live', 'average', 'recompute')


class Average(NamedTuple):
    """How the weights of a run are averaged.

    Attributes:
        kind: 'ema' or 'swa'.
        decay: The weight of the average before, in a step of 'ema' or an epoch of 'swa'.
        start: The number of updates up to which the average is a copy; it need not be whole.
        ramp: Whether the decay of 'ema' is at most (1 + d) / (10 + d), d updates after the start.
        batch_stats: 'live' for the running statistics of training; 'average' for their average; 'recompute'
            for statistics that are taken anew after each epoch (`si_jax.training.recompute`) and are the live
            ones until then.
        steps_per_epoch: Updates in an epoch.
        hypersphere: Whether the last layer's weight vectors have length one: those of the average are
            brought back to it, as the average of unit vectors is shorter.

    Source: Gowal et al. (2020) as in wzekai99/DM-Improves-AT, gowal21uncovering/utils/watrain.py: 'ema' with
    decay .995, a start at .025 of the run, the ramp and live statistics. val-iisc/DAJAT: decay .9996 from .75
    of the run, without the ramp, statistics averaged. jiequancui/DKL, swa.py: 'swa' with .9, likewise.
    """

    kind: str
    decay: float
    start: float
    ramp: bool
    batch_stats: str
    steps_per_epoch: int
    hypersphere: bool = False

    def begin(self, params: Any, batch_stats: Any) -> dict[str, Any]:
        """The average before the first step."""
        copied = {'params': params} | ({} if self.batch_stats == 'live' else {'batch_stats': batch_stats})
        return jax.tree.map(jnp.copy, copied)

    def decay_at(self, updates: Array) -> Array:
        """The weight of the average before, after so many updates, the present one counted."""
        if self.kind == 'swa':
            # The first epoch has nothing before it that is worth averaging.
            begin = max(self.start, self.steps_per_epoch)
            mixed = jnp.where(updates % self.steps_per_epoch == 0, self.decay, 1.0)
            return jnp.where(updates <= begin, 0.0, mixed)
        past = updates - self.start
        if not self.ramp:
            return jnp.where(past > 0, self.decay, 0.0)
        return jnp.where(past < 0, 0.0, jnp.minimum(self.decay, (1 + past) / (10 + past)))

    def moved(self, average: Mapping[str, Any], updates: Array, params: Any, stats: Any) -> dict[str, Any]:
        """The average after so many updates, of which these parameters and statistics are the last."""
        decay = self.decay_at(updates)

        def mix(old: Array, new: Array) -> Array:
            share = decay.astype(old.dtype)
            return share * old + (1 - share) * new

        mixed = jax.tree.map(mix, average['params'], params)
        new = {'params': unit_kernels(mixed) if self.hypersphere else mixed}
        if self.batch_stats == 'average':
            new['batch_stats'] = jax.tree.map(mix, average['batch_stats'], stats)
        elif self.batch_stats == 'recompute':
            new['batch_stats'] = stats
        return new


def from_config(
    section: Mapping[str, Any], *, epochs: int, steps_per_epoch: int, hypersphere: bool
) -> Average | None:
    """What a config's section `average` asks for; None for no average.

    Raises:
        InputError: A name is unknown, or a number out of range.
    """
    kind = section['kind']
    if kind not in KINDS:
        raise unknown('average.kind', kind, KINDS)
    if section['batch_stats'] not in BATCH_STATS:
        raise unknown('average.batch_stats', section['batch_stats'], BATCH_STATS)
    for name in ('decay', 'tau', 'start'):
        if not 0 <= section[name] < 1:
            usual = {'decay': 0.995, 'tau': 0.9, 'start': 0.025}[name]
            raise InputError(f'average.{name}={section[name]:g} is not in [0, 1); {usual} is usual')
    if not kind:
        return None
    return Average(
        kind=kind,
        decay=section['decay'] if kind == 'ema' else section['tau'],
        start=section['start'] * epochs * steps_per_epoch,
        ramp=section['ramp'],
        batch_stats=section['batch_stats'],
        steps_per_epoch=steps_per_epoch,
        hypersphere=hypersphere,
    )


def evaluated(state: Mapping[str, Any]) -> dict[str, Any]:
    """'params' and 'batch_stats' for evaluation of a state's fields: the average where there is one."""
    average = state.get('average') or {'params': state['params']}
    return {'params': average['params'], 'batch_stats': average.get('batch_stats', state['batch_stats'])}


def needed(section: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a state that `evaluated` reads under this section, as trees like the variables."""
    if not section['kind']:
        return dict(variables)
    parts = ('params',) if section['batch_stats'] == 'live' else ('params', 'batch_stats')
    return {'average': {name: variables[name] for name in parts}, 'batch_stats': variables['batch_stats']}


def words(section: Mapping[str, Any]) -> str:
    """Which weights are evaluated, for a reader."""
    if not section['kind']:
        return 'those of training'
    decay = f'EMA, decay {section["decay"]:g}' if section['kind'] == 'ema' else f'SWA, tau {section["tau"]:g}'
    of = {'live': 'live', 'average': 'averaged', 'recompute': 'recomputed'}[section['batch_stats']]
    start = f'from {100 * section["start"]:.3g} % of the run on'
    return f'their average ({decay}, {start}, batch statistics {of})'
