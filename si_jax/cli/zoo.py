"""Lists, checks and measures the networks of the zoo, and adds to it."""

import argparse
import sys
from collections.abc import Iterable
from typing import Any

from si_jax.errors import InputError
from si_jax.runtime import compilation_cache, terminal
from si_jax.runtime.terminal import Flag
from si_jax.threat import radius
from si_jax.zoo.adding import add
from si_jax.zoo.entries import Entry, entries, entry
from si_jax.zoo.verifying import measure, verify

COLUMNS = {'clean': 'clean', 'pgd': 'PGD', 'autoattack': 'AA', 'worst_case': 'worst'}
USAGE = """
  python -m si_jax.cli.zoo [list [--markdown]]
  python -m si_jax.cli.zoo verify [NAME ...]
  python -m si_jax.cli.zoo evaluate [NAME ...] [--full] [--data_dir=FOLDER]
  python -m si_jax.cli.zoo add --zoo=FOLDER --name=NAME --workdir=RUN
                           --result=FILE.json"""
ABOUT = """
Lists, checks and measures the networks of the zoo, and adds to it.
`zoo:NAME` stands for one of them in evaluate.py and si_jax.load_model.

examples:
  what there is
    python -m si_jax.cli.zoo
  whether the files are what the manifest says: SHA-256, shapes, figures
    python -m si_jax.cli.zoo verify
  clean accuracy and the PGD family again, image by image, in seconds
    python -m si_jax.cli.zoo evaluate digits-tradessi
  AutoAttack and all else that was measured, on all networks
    python -m si_jax.cli.zoo evaluate --full
  a run of yours and its result, into a zoo of yours
    python -m si_jax.cli.zoo add --zoo=FOLDER --name=NAME --workdir=RUN \\
        --result=RESULT.json
"""
EPILOG = f"""
SI_JAX_ZOO=FOLDER adds a zoo of your own to the one of the package.

{terminal.exit_status('something is not as the manifest states', 'nothing is kept')}
"""


def parser() -> argparse.ArgumentParser:
    flags = terminal.parser('python -m si_jax.cli.zoo', USAGE, ABOUT, EPILOG)
    commands = flags.add_subparsers(dest='command', metavar='COMMAND', prog=flags.prog)
    names: Any = {'nargs': '*', 'metavar': 'NAME', 'help': '(default: all)'}
    data_dir = Flag('FOLDER', 'as for evaluate.py')
    listed = commands.add_parser('list', help='what there is (the default)')
    terminal.add(listed, {'markdown': Flag(None, 'as a Markdown table', bool)})
    commands.add_parser('verify', help='check the files').add_argument('names', **names)
    evaluated = commands.add_parser('evaluate', help='measure again and compare image by image')
    evaluated.add_argument('names', **names)
    full = Flag(None, 'all attacks of the manifest, not only the PGD family', bool)
    terminal.add(evaluated, {'full': full, 'data_dir': data_dir})
    table = {
        'zoo': Flag('FOLDER', 'with manifest.json; made if there is none', required=True),
        'name': Flag(None, 'of the new entry', required=True),
        'workdir': Flag('RUN', 'folder of the run of train.py', required=True),
        'result': Flag('FILE.json', 'what evaluate.py --workdir=RUN wrote', required=True),
        'data_dir': data_dir,
    }
    terminal.add(commands.add_parser('add', help='a trained and evaluated network'), table)
    return flags


def table(found: Iterable[Entry]) -> str:
    """The networks, their threat model and accuracies in percent, for a terminal of 80 columns."""
    lines = [
        f'{"":<18}{"data":<9}{"ball":<16}'
        + ''.join(f'{title:>7}' for title in COLUMNS.values())
        + f'{"kB":>6}'
    ]
    for one in found:
        ball = f'{one.threat_model["norm"]} {radius(one.threat_model["eps"])}'
        cells = [one.accuracy.get(key) for key in COLUMNS]
        shown = ''.join(f'{"-" if cell is None else f"{100 * cell:.2f}":>7}' for cell in cells)
        lines.append(f'{one.name:<18}{one.dataset["name"]:<9}{ball:<16}{shown}{one.bytes / 1000:>6.0f}')
    return '\n'.join(lines)


def as_markdown(found: Iterable[Entry]) -> str:
    """The same for a page, with how each network is trained and the first digits of its SHA-256."""
    lines = [
        f'| network | data, ball | {" | ".join(COLUMNS.values())} | recipe, seed | SHA-256 |',
        f'|{"---|" * (4 + len(COLUMNS))}',
    ]
    for one in found:
        ball = f'{one.dataset["name"]}, {one.threat_model["norm"]} {radius(one.threat_model["eps"])}'
        cells = [one.accuracy.get(key) for key in COLUMNS]
        shown = ' | '.join('' if cell is None else f'{100 * cell:.2f}' for cell in cells)
        recipe = f'`{one.recipe["config"]}`, {one.seed}'
        lines.append(f'| `{one.name}` | {ball} | {shown} | {recipe} | `{one.sha256[:12]}` |')
    return '\n'.join(lines)


def run_verify(names: list[str]) -> int:
    """Prints a line for each network; 1 if one is not as stated."""
    status = terminal.OK
    for name in names or entries():
        entry(name)  # an unknown name is a wrong value, not a damaged file
        try:
            print(f'{verify(name).name}: as stated')
        except InputError as error:
            print(f'FAIL {error}')
            status = terminal.FAILED
    return status


def run_evaluate(names: list[str], full: bool, data_dir: str | None) -> int:
    """Prints stated and measured accuracies; 1 if a flag differs, or one was not measured.

    Where none is named, one whose images are not at hand does not stop the others.
    """
    compilation_cache.enable()
    differing = missing = False
    print(f'{"":<18}{"attack":<17}{"stated":>8}{"found":>8}  images that differ')
    for name in names or entries():
        one = entry(name)
        try:
            rows = measure(name, attacks=one.protocol['attacks'] if full else None, data_dir=data_dir)
        except InputError as error:
            if names:
                raise
            print(f'{one.name:<18}not measured: {error}', flush=True)
            missing = True
            continue
        for row in rows:
            differ = f'{row.differing} of {row.images}'
            print(
                f'{one.name:<18}{row.attack:<17}{100 * row.stated:>8.2f}{100 * row.found:>8.2f}  {differ}',
                flush=True,
            )
            differing |= row.differing > 0
    if differing:
        print('Another machine rounds differently, and an image or two may differ; more is a fault.')
    return terminal.FAILED if differing or missing else terminal.OK


def main(argv: list[str] | None = None) -> int:
    return terminal.run('si_jax.cli.zoo', lambda: run(**vars(parser().parse_args(argv))))


def run(command: str | None, markdown: bool = False, **given: Any) -> int:
    """The exit status of a command."""
    if command == 'verify':
        return run_verify(**given)
    if command == 'evaluate':
        return run_evaluate(**given)
    found = [add(**given)] if command == 'add' else list(entries().values())
    print(as_markdown(found) if markdown else table(found))
    return terminal.OK


if __name__ == '__main__':
    sys.exit(main())
