"""The commands of train.py and evaluate.py that fill a table."""

import re
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from si_jax.paper.cells import NO_OVERRIDES, Download, Evaluation, Row, Training


class Choice(NamedTuple):
    """What the user of a table chose.

    Attributes:
        runs: The folder of all runs.
        seeds: Of the training; of the attacks where networks are downloaded.
        overrides: Dotted field to value, for every config.
        checkpoint: 'best' or 'last'.
        num_examples: The first so many test images; None for what the table has.
        data_dir: Of the images; None for the configs' own.
        torch_checkpoints: The folder of downloaded networks.
    """

    runs: str = 'runs'
    seeds: tuple[int, ...] = (0,)
    overrides: Mapping[str, Any] = NO_OVERRIDES
    checkpoint: str = 'best'
    num_examples: int | None = None
    data_dir: str | None = None
    torch_checkpoints: str = 'checkpoints'


def workdir(source: Training, choice: Choice, seed: int) -> str:
    """Where the commands put a run: RUNS/<config>[-<argument>]/[<field>=<value>-...]seed<N>."""
    name = f'{source.config}-{source.argument}' if source.argument else source.config
    fields = {**source.overrides, **choice.overrides}
    parts = [re.sub(r'[^A-Za-z0-9_.=-]+', '_', f'{field}={value}') for field, value in fields.items()]
    return f'{choice.runs}/{name}/{"-".join([*parts, f"seed{seed}"])}'


def train(source: Training, choice: Choice, seed: int, folder: str) -> str:
    """The command that trains a row's network, or goes on with it."""
    config = f'configs/{source.config}.py' + (f':{source.argument}' if source.argument else '')
    fields = {**source.overrides, **choice.overrides, **({'seed': seed} if seed else {})}
    if choice.data_dir:
        fields['data.dir'] = choice.data_dir
    flags = [f'--config.{field}={value}' for field, value in fields.items()]
    return _command('train.py', f'--config={config}', *flags, f'--workdir={folder}')


def evaluate(row: Row, evaluation: Evaluation, choice: Choice, seed: int, folder: str) -> str:
    """The command that evaluates a row's network."""
    flags = [f'--attacks={",".join(evaluation.attacks)}']
    if evaluation.restarts != 1:
        flags.append(f'--restarts={evaluation.restarts}')
    if evaluation.logit_scale != 1:
        flags.append(f'--logit_scale={evaluation.logit_scale:g}')
    if count := choice.num_examples or evaluation.num_examples:
        flags.append(f'--num_examples={count}')
    if isinstance(row.source, Training):
        where = [f'--workdir={folder}']
        if choice.checkpoint != 'best':
            where.append(f'--checkpoint={choice.checkpoint}')
        return _command('evaluate.py', *where, *flags)
    # Networks that were downloaded have no workdir: seed and place of the result are named.
    if seed:
        flags.append(f'--seed={seed}')
    scale = '' if evaluation.logit_scale == 1 else f'-scale{evaluation.logit_scale:g}'
    output = f'--output={folder}/{"-".join(evaluation.attacks)}{scale}-seed{seed}.json'
    return _command('evaluate.py', *_download(row.source, choice), *flags, output)


def _download(source: Download, choice: Choice) -> list[str]:
    flags = [f'--torch_checkpoint={choice.torch_checkpoints}/{source.file}']
    flags += [f'--{flag}={value}' for flag, value in source.flags.items()]
    flags += [f'--dataset={source.dataset}', f'--eps={source.eps}']
    return flags + ([f'--data_dir={choice.data_dir}'] if choice.data_dir else [])


def _command(*words: str) -> str:
    return shlex.join(['python', *words])
