"""Says what a training run will take: time, memory, communication.

usage: python -m si_jax.cli.plan --config=FILE[:ARCHITECTURE]
                             [--config.FIELD=VALUE ...]
                             (--chip=NAME [--devices=N] | --calibrate)

examples:
  TRADES-SI of the paper on 64 TPU v5e
    python -m si_jax.cli.plan --config=configs/tradessi_cifar10.py --chip=v5e \\
        --devices=64
  a wide network with larger batches on one H100
    python -m si_jax.cli.plan --config=configs/trades_cifar10.py:wrn_34_10 \\
        --config.batch_size=512 --chip=h100
  a run on this machine, whose speed is measured
    python -m si_jax.cli.plan --config=configs/quickstart.py --calibrate

flags:
  --config=FILE[:ARCHITECTURE]
                    as of train.py
  --config.FIELD=VALUE
                    any field of the config
  --chip=NAME       a100, h100, h200, v4, v5e, v5p or v6e
  --devices=N       how many chips (default: 1)
  --mfu=SHARE       the share of its peak that a chip is assumed to reach
                    (default: 0.31)
  --calibrate       measure two rates of this machine on the config's network:
                    of attack steps and of updates

No data is read. The formulas, and how well they hold: docs/performance.md.
"""

import sys
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from si_jax.cost import chips, planning
from si_jax.cost.planning import Machine, Run
from si_jax.errors import InputError
from si_jax.runtime import compilation_cache, terminal
from si_jax.runtime.devices import check_divisible
from si_jax.training import helper
from si_jax.training.timing import measure_machine

EXIT = terminal.exit_status('it failed', 'nothing is kept')


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        'config', None, 'A file of configs/, an architecture after a colon.', flag_values=values
    )
    flags.DEFINE_string('chip', None, f'{", ".join(chips.CHIPS)}.', flag_values=values)
    flags.DEFINE_integer('devices', None, 'How many chips (default: 1).', flag_values=values)
    flags.DEFINE_float(
        'mfu',
        None,
        'The share of its peak that a chip is assumed to reach.',
        flag_values=values,
    )
    flags.DEFINE_boolean('calibrate', False, 'Measure this machine instead.', flag_values=values)
    return values


def report(title: str, run: Run, machine: Machine, devices: int) -> str:
    """The plan, in lines.

    Raises:
        InputError: The batch is not divisible by the devices, or does not fit.
    """
    need = planning.check_fits(run, machine, devices)
    step = planning.step(run, machine, devices)
    training = planning.seconds(run, step)
    held_out = planning.held_out_seconds(run, machine, devices)
    passes, forward = run.passes, run.network.flops
    work = passes.total * forward * run.images * run.epochs
    lines = [
        f'{title} on {devices} x {machine.name}, batch {run.batch_size}, {run.dtype}',
        f'work     F = {_si(forward)}FLOP; {passes.total:g} F an image, {passes.attack:g} in the attack '
        f'and {passes.update:g} in the update; {run.images} images x {run.epochs} epochs: {_si(work)}FLOP',
        f'time     {_time(training)} of training, {_si(run.batch_size / step.total)}images/s, and '
        f'{_time(held_out)} for {run.evaluations} held-out evaluations, without compiling',
    ]
    if machine.chip:
        least = planning.limit(run, machine.chip, devices)
        lines.append(
            f'         assumed: {_si(machine.attack)}FLOP/s a device, '
            f'{100 * machine.attack / planning.peak(machine.chip, run.dtype):.0f} % of the peak; '
            f'by peak and bandwidth it is at least {_time(least)}'
        )
    else:
        lines.append(
            f'         measured: {_si(machine.attack)}FLOP/s in attack steps, {_si(machine.update)}FLOP/s in '
            'updates, a device'
        )
    lines += [
        f'memory   {need.total / 1e9:.2f} of {machine.memory / 1e9:.0f} GB a device: state '
        f'{need.state / 1e9:.2f}, data {need.data / 1e9:.2f}, intermediate values '
        f'{need.activations / 1e9:.2f}; the largest batch that fits is '
        f'{planning.largest_batch(run, machine, devices)}',
        f'communication {100 * step.communication:.1f} % of a step of {_seconds(step.total)}: gradients '
        f'{_seconds(step.gradients)}, {run.norm_reductions} small all-reduces of batch normalisation '
        f'{_seconds(step.norms)}',
        f'shape    attack {100 * step.attack / step.total:.0f} %, update '
        f'{100 * step.update / step.total:.0f} %, communication {100 * step.communication:.0f} % of a step',
    ]
    if machine.chip:
        lines += _scaling(run, machine, devices)
        if run.batch_size / devices < planning.FILLING:
            lines.append(
                f'note     {run.batch_size / devices:g} images a device leave most of a chip idle, and the '
                'assumed share of the peak is then too high: '
                f'--config.batch_size={planning.FILLING * devices}, with --config.schedule.peak raised to '
                'match, would fill them'
            )
    return '\n'.join(lines)


def _scaling(run: Run, machine: Machine, devices: int) -> list[str]:
    """Time and device-hours with fewer devices, each with the same batch in all."""
    counts = sorted({2**power for power in range(devices.bit_length()) if 2**power < devices} | {devices})
    lines = ['devices       time  efficiency  device-hours']
    one = planning.seconds(run, planning.step(run, machine, 1))
    for count in counts:
        if run.batch_size % count == 0:
            taken = planning.seconds(run, planning.step(run, machine, count))
            lines.append(
                f'{count:>7}{_time(taken):>11}{100 * one / taken / count:>10.0f} %'
                f'{count * taken / 3600:>14.2f}'
            )
    return lines


def _si(value: float) -> str:
    for size, letter in ((1e18, 'E'), (1e15, 'P'), (1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if value >= size:
            return f'{value / size:.3g} {letter}'
    return f'{value:.3g} '


def _time(value: float) -> str:
    for size, name in ((86400, 'days'), (3600, 'h'), (60, 'min')):
        if value >= 2 * size:
            return f'{value / size:.1f} {name}'
    return f'{value:.1f} s'


def _seconds(value: float) -> str:
    return f'{1e3 * value:.3g} ms'


def _first(config: ConfigDict, machine: Machine, devices: int) -> list[str]:
    """What the helper takes that the run trains first, where it does."""
    if (of_helper := helper.config_of(config)) is None:
        return []
    run = planning.describe(of_helper)
    taken = planning.seconds(run, planning.step(run, machine, devices))
    return [f'helper   {_time(taken)} of training more: none is given, and so one is trained first']


def plan(given: flags.FlagValues) -> str:
    """The report that the flags ask for."""
    if given.calibrate == (given.chip is not None):
        raise InputError('give either --chip=NAME, such as --chip=h100, or --calibrate for this machine')
    file, colon, options = config_flags.get_config_filename(given['config']).partition(':')
    name = f'{Path(file).name}{colon}{options}'
    run = planning.describe(given.config)
    if given.chip is not None:
        mfu = planning.ASSUMED_MFU if given.mfu is None else given.mfu
        machine = planning.accelerator(given.chip, run.dtype, mfu)
        devices = 1 if given.devices is None else given.devices
        return '\n'.join([report(name, run, machine, devices), *_first(given.config, machine, devices)])
    for flag in ('devices', 'mfu'):
        if given[flag].value is not None:
            raise InputError(f'--{flag} is for chips: --calibrate measures the devices of this machine')
    check_divisible(run.batch_size)
    compilation_cache.enable()
    machine, devices = measure_machine(given.config), jax.local_device_count()
    return '\n'.join([report(name, run, machine, devices), *_first(given.config, machine, devices)])


def main(argv: list[str]) -> int:
    given = _flags()
    if {'--help', '-h', '--helpfull'} & set(argv):
        print(terminal.spelled(f'{__doc__}\n{EXIT}'))
        return terminal.OK

    def command() -> None:
        terminal.parse_config(given, argv)
        print(plan(given))

    return terminal.run('plan', command)


if __name__ == '__main__':
    sys.exit(main(sys.argv))
