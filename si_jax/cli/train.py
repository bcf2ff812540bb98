"""Trains a robust classifier; measures it on held-out images after each epoch.

usage: python train.py --config=FILE[:ARCHITECTURE][,si]
                       [--config.FIELD=VALUE ...]
                       [--workdir=FOLDER] [--dry_run] [--profile=FOLDER]

examples:
  handwritten digits: nothing to download, a minute on a CPU
    python train.py --config=configs/quickstart.py
  the paper's TRADES-SI on CIFAR-10, which is downloaded on the first run
    python train.py --config=configs/tradessi_cifar10.py
  another architecture, with images from a folder of npz files
    python train.py --config=configs/tradessi_cifar10.py:wrn_34_10 \\
        --config.data.dir=FOLDER
  a short run of another radius and seed, in a folder of your choice
    python train.py --config=configs/at_cifar10.py --config.epochs=30 \\
        --config.threat.eps=4/255 --config.seed=1 --workdir=runs/small
  the fields of a config and their values
    python train.py --config=configs/mart_svhn.py --help

flags:
  --config=FILE[:ARCHITECTURE][,si]
                        a file of configs/, and resnet18, resnet50,
                        preact_resnet18, wrn_<depth>_<width> or small_cnn
                        (default: that of the file); si for its
                        scale-invariant version, as in FILE:resnet18,si
  --config.FIELD=VALUE  any field of the config, as listed below
  --workdir=FOLDER      of checkpoints and metrics (default:
                        runs/<config>[-<architecture>]/<hash of overrides>)
  --dry_run             only check config, data and devices, and print the plan
  --profile=FOLDER      write a profile of a few steps (docs/performance.md)
  --helpfull            all flags, those of absl and of several processes too

On a TPU pod and under SLURM the processes find each other: see docs/pods.md.

The same command, run again, goes on from the last checkpoint. Ctrl-C and
SIGTERM save first; a second Ctrl-C does not wait for that. Compiled programs
are kept for the next command (SI_JAX_COMPILATION_CACHE=FOLDER moves them, off
keeps none).
"""

import re
import sys
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from si_jax.errors import InputError
from si_jax.runtime import processes, terminal
from si_jax.training.workdir import default_workdir


def define(values: flags.FlagValues) -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """The flags of this command, and of them the config and the workdir."""
    about = 'A file of configs/; after a colon an architecture, si, or both with a comma between.'
    where = 'Checkpoints and metrics; default runs/<config>[-<architecture>]/<hash of overrides>.'
    kinds: dict[Any, Any] = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float}
    for name, flag in processes.FLAGS.items():
        kinds[flag.type](name, flag.default, flag.help, flag_values=values)
    flags.DEFINE_string('profile', None, 'A folder for a profile of a few steps.', flag_values=values)
    return (
        config_flags.DEFINE_config_file('config', None, about, flag_values=values),
        flags.DEFINE_string('workdir', None, where, flag_values=values),
    )


CONFIG, WORKDIR = define(flags.FLAGS)
DRY_RUN = flags.DEFINE_boolean('dry_run', False, 'Check config, data and processes, and print the plan.')
EXIT = terminal.exit_status(
    'the loss or a gradient was not finite; the state before it is saved',
    'saved; the same command goes on',
    several=True,
)
EXAMPLE = 'configs/tradessi_cifar10.py'
FRACTION = re.compile(r'^(--config\.[\w.]*(?:eps|step_size)=)(\d+)/([1-9]\d*)$')


def parse(argv: list[str]) -> list[str]:
    """Sets the flags; a wrong one ends the process with one line, --help with a page. No argument is left."""
    if asked := {'--help', '-help', '-h', '--helpshort'} & set(argv[1:]):
        argv = [argument for argument in argv if argument not in asked]
        if not any(argument.startswith('--config') for argument in argv):
            argv.append(f'--config={EXAMPLE}')
    argv = [FRACTION.sub(lambda found: f'{found[1]}{int(found[2]) / int(found[3])}', one) for one in argv]
    try:
        terminal.parse_config(flags.FLAGS, argv)
    except InputError as error:
        print(terminal.spelled(f'train.py: {error} (--help shows examples)'), file=sys.stderr)
        sys.exit(terminal.BAD_INPUT)
    if asked:
        print(page(config_flags.get_config_filename(flags.FLAGS['config']), CONFIG.value))
        sys.exit(terminal.OK)
    return argv[:1]


def page(file: str, config: ConfigDict) -> str:
    """What --help prints."""
    from si_jax.training import recipe_fields

    head = terminal.spelled(__doc__ or '')
    return f'{head}\nfields of {file}:\n{recipe_fields.text(config)}\n\n{EXIT}'


def main(argv: list[str]) -> int:
    del argv  # `parse` has set the flags
    return processes.run('train.py', train)


def command(argv: list[str]) -> None:
    """The command with these arguments; ends the process."""
    app.run(main, argv=['train.py', *argv], flags_parser=parse)


def train() -> int:
    from si_jax.runtime import compilation_cache
    from si_jax.training import initial
    from si_jax.training.loop import DivergedError, run, setup_everywhere
    from si_jax.training.setup import initial_weights, plan
    from si_jax.zoo import load as load  # registers the reader of weights that are given by name

    config_file, _, arch = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
    overrides = config_flags.get_override_values(flags.FLAGS['config'])
    joining: dict[str, Any] = {name: flags.FLAGS[name].value for name in processes.FLAGS}
    processes.start(**joining)
    workdir = WORKDIR.value or str(default_workdir(config_file, arch, overrides))
    compilation_cache.enable()
    processes.say(f'workdir: {workdir}')
    if DRY_RUN.value:
        ready = setup_everywhere(CONFIG.value)
        processes.say(plan(ready))
        if start := initial_weights(ready):
            processes.say(f'start: {initial.words(start.record)}')
        return terminal.OK
    try:
        run(CONFIG.value, workdir, flags.FLAGS['profile'].value)
    except DivergedError as error:
        print(terminal.spelled(f'train.py: {error}'), file=sys.stderr)
        return terminal.FAILED
    return terminal.OK
