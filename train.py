"""Trains a robust classifier.

    python train.py --config=configs/tradessi_cifar10.py
    python train.py --config=configs/tradessi_cifar10.py:wrn_34_10 --config.data.dir=FOLDER --workdir=DIR

The same command, run again, goes on from the last checkpoint. Compiled programs are kept for the next command
(SI_JAX_COMPILATION_CACHE=FOLDER, or off). Exit status: 0 finished, or stopped by a signal
and saved; 1 a wrong flag; 2 a wrong value or field; 3 the loss or a gradient was not finite.
"""

import sys
from typing import NoReturn

import absl.logging
from absl import app, flags
from ml_collections import config_flags

from si_jax.errors import InputError
from si_jax.workdir import default_workdir

CONFIG = config_flags.DEFINE_config_file('config', None, 'A file of configs/, an architecture after a colon.')
WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Checkpoints and metrics; default runs/<config>[-<architecture>]/<hash of overrides>.'
)


def parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:  # a field that the config does not have
        refuse(2, 'no such config field: ' + ' '.join(str(error.args[0]).split()))
    except flags.Error as error:
        refuse(1, error)


def refuse(status: int, reason: object) -> NoReturn:
    print(f'train.py: {reason}', file=sys.stderr)
    sys.exit(status)


def main(argv: list[str]) -> None:
    absl.logging.set_verbosity(absl.logging.WARNING)
    from si_jax import compilation_cache
    from si_jax.training.run import DivergedError, run

    if len(argv) > 1:
        refuse(1, f'{argv[1]!r} is not a flag: did you mean --{argv[1].lstrip("-")}?')
    config_file, _, arch = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
    try:
        overrides = config_flags.get_override_values(flags.FLAGS['config'])
        workdir = WORKDIR.value or str(default_workdir(config_file, arch, overrides))
        compilation_cache.enable()
        print(f'workdir: {workdir}', flush=True)
        run(CONFIG.value, workdir)
    except InputError as error:
        refuse(2, error)
    except DivergedError as error:
        refuse(3, error)


if __name__ == '__main__':
    flags.mark_flag_as_required('config')
    app.run(main, flags_parser=parse)
