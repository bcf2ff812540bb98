"""The command `si-jax VERB`, which is `python -m si_jax VERB` too."""

import importlib
import sys

from si_jax.errors import InputError, unknown
from si_jax.runtime import terminal
from si_jax.runtime.version import __version__

# Each verb is the module of its name, but for those that belong to another one.
VERBS = {
    'train': 'train a robust classifier',
    'evaluate': 'measure the accuracy on clean images and under attacks',
    'audit': 'check whether such an accuracy can be trusted',
    'compare': 'hold two results against each other, image by image',
    'report': 'show runs on one page, or beside what the paper reports',
    'plan': 'say what a training will take: time, memory, communication',
    'launch': 'start several processes on this machine',
    'export': 'write a trained network for PyTorch, for this library or for RobustBench',
    'zoo': 'list, check and measure the trained networks of the package',
}
PARTS = {'audit': 'evaluate', 'compare': 'evaluate'}
EXAMPLES = """
examples:
  handwritten digits: nothing to download, a minute on a CPU
    si-jax train --config=quickstart --workdir=runs/first
  what the network withstands, and on one page
    si-jax evaluate --workdir=runs/first --attacks=pgd,autoattack
    si-jax report --workdirs=runs/first --out=report
  a network of the package, without any training
    si-jax evaluate --model=zoo:digits-at --attacks=pgd --eps=0.2
"""


def page() -> str:
    """What --help prints."""
    verbs = '\n'.join(f'  {verb:<10}{about}' for verb, about in VERBS.items())
    return (
        'usage: si-jax VERB [its flags]\n\n'
        'Trains robust image classifiers, and measures what they withstand.\n\n'
        f'verbs (si-jax VERB --help has the flags and examples of each):\n{verbs}\n{EXAMPLES}\n'
        '`python -m si_jax VERB` is the same. --version prints the version.'
    )


def main(argv: list[str] | None = None) -> int:
    """The exit status of a verb with its flags; `train` ends the process itself."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ('--help', '-h', 'help'):
        print(page())
        return terminal.OK
    if argv[0] == '--version':
        print(f'si_jax {__version__}')
        return terminal.OK
    terminal.installed_as('si-jax')
    return terminal.run('si-jax', lambda: run(argv[0], argv[1:]))


def run(verb: str, argv: list[str]) -> int | None:
    """Runs a verb.

    Raises:
        InputError: There is no such verb.
    """
    if verb not in VERBS:
        raise InputError(f'{unknown("verb", verb, VERBS)} (si-jax --help says what each does)')
    if verb in PARTS:
        argv = [verb, *argv]
    module = importlib.import_module(f'si_jax.cli.{PARTS.get(verb, verb)}')
    return module.command(argv) if verb == 'train' else module.main(argv)
