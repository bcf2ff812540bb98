"""What was run: the facts of each run, the fields in which runs differ, and what is still to be run."""

import shlex
from collections.abc import Callable
from typing import Any, NamedTuple

from si_jax.attacks.presets import PRESETS, SCREENS, VARIANTS
from si_jax.reports.accuracy import ball
from si_jax.reports.collect import Network
from si_jax.reports.labels import counts
from si_jax.reports.results import stale
from si_jax.storage.trees import differences
from si_jax.training import average

PROTOCOLS = [name for name in PRESETS if name not in SCREENS | VARIANTS]
FIRST = 'pgd,cw,dlr,sipgd'

# Title -> what it says of a config.
FACTS: dict[str, Callable[[dict[str, Any]], str]] = {
    'defense': lambda c: c['defense']['name'] + (', with SI' if c['defense']['si'] else ''),
    'network': lambda c: (
        c['model']['arch'] + (f', width {c["model"]["width"]}' if c['model']['width'] else '')
    ),
    'threat model': lambda c: ball(c['threat']),
    'epochs': lambda c: f'{c["epochs"]:g}',
    'batch size': lambda c: f'{c["batch_size"]}',
    'evaluated weights': lambda c: average.words(c['average']),
    'seed': lambda c: f'{c["seed"]}',
}


class Fields(NamedTuple):
    """A table with a row a field."""

    heads: list[str]  # the networks
    rows: list[tuple[str, list[str]]]  # (field, what each has)


def facts(networks: list[Network]) -> Fields:
    """What a reader asks first of each run."""
    runs = [network for network in networks if network.run]
    rows = [(title, [_try(say, network) for network in runs]) for title, say in FACTS.items()]
    rows.append(('folder', [str(network.folder) for network in runs]))
    return Fields([network.label for network in runs], rows)


def differing(networks: list[Network]) -> Fields | None:
    """The fields of the configs that make the runs different; None if there are no two runs."""
    first, *others = [network.run.config for network in networks if network.run] or [{}]
    names = {name: None for other in others for name in differences(first, other) if counts(name)}
    return _fields(networks, list(names)) if others else None


def full(networks: list[Network]) -> Fields | None:
    """All fields of the configs; None if there are no runs."""
    configs = [network.run.config for network in networks if network.run]
    names = {name: None for config in configs for name in differences({}, config)}
    return _fields(networks, list(names)) if configs else None


def _fields(networks: list[Network], names: list[str]) -> Fields:
    configs = {network.label: network.run.config for network in networks if network.run}
    flat = [{name: new for name, (_, new) in differences({}, one).items()} for one in configs.values()]
    return Fields(list(configs), [(name, [_value(fields, name) for fields in flat]) for name in names])


def _value(fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        return 'absent'
    value = fields[name]
    if isinstance(value, float):
        return f'{value:.6g}'
    return {'': '(empty)', None: 'none'}.get(value, str(value)) if value in ('', None) else str(value)


def _try(say: Callable[[dict[str, Any]], str], network: Network) -> str:
    assert network.run is not None
    try:
        return say(network.run.config)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return 'not known'


def missing(networks: list[Network]) -> list[tuple[str, str]]:
    """(what was not measured, the command that measures it) for the runs."""
    found = []
    for network in networks:
        if network.run is None:
            continue
        last = '' if network.run.config['data'].get('validation') else 'last'
        done = {name for result in network.results for name in result.about['attacks']}
        if not network.results:
            command = _evaluate(network, FIRST, last, '--save_images')
            found.append((f'{network.label} was not evaluated', command))
        elif not done & set(PROTOCOLS):
            model = network.results[0].model
            which = str(model.get('checkpoint') or last)
            found.append(
                (f'{network.label} was not attacked by AutoAttack', _evaluate(network, 'autoattack', which))
            )
    return found


def _evaluate(network: Network, attacks: str, checkpoint: str, *more: str) -> str:
    words = ['python', 'evaluate.py', f'--workdir={network.folder}', f'--attacks={attacks}']
    if checkpoint not in ('', 'best'):
        words.append(f'--checkpoint={checkpoint}')
    return shlex.join([*words, *more])


def remarks(network: Network) -> list[tuple[str, str]]:
    """(file, words) for each warning of the results, and each result of an older state of its run."""
    found = []
    for result in network.results:
        found += [(str(result.path), str(warning)) for warning in result.about['warnings']]
        run = network.run
        if run and run.lines and result.model.get('step') is not None:
            if why := stale(result.about, run, result.model.get('checkpoint')):
                found.append((str(result.path), f'no longer the state of the run: {why}'))
    return found


def environments(networks: list[Network]) -> tuple[Fields, list[tuple[str, str]]]:
    """What everything was made with, and the commands; what is the same for all stands in one column."""
    made = [
        (f'training of {network.label}', network.trained_with) for network in networks if network.trained_with
    ]
    for network in networks:
        for result in network.results:
            about = result.about.get('environment')
            made.append((f'{result.path}', about if isinstance(about, dict) else {}))
    by_command: dict[str, list[str]] = {}
    for name, about in made:
        if isinstance(words := about.get('command'), list):
            by_command.setdefault(shlex.join(map(str, words)), []).append(name)
    commands = [('; '.join(names), command) for command, names in by_command.items()]
    columns: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for name, about in made:
        rest = {key: value for key, value in about.items() if key != 'command'}
        if rest:
            columns.setdefault(repr(rest), ([], rest))[0].append(name)
    keys = {key: None for _, rest in columns.values() for key in rest}
    heads = ['everything'] if len(columns) == 1 else ['; '.join(names) for names, _ in columns.values()]
    rows = [(key, [_value(rest, key) for _, rest in columns.values()]) for key in keys]
    return Fields(heads, rows), commands
