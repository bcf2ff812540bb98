"""The paper's tables as data are those of the paper, and every command of them is one that can be run."""

import pathlib
import re
import shlex
import sys

import jax.numpy as jnp
import pytest
from absl import flags as absl_flags
from ml_collections import config_flags

from si_jax import attacks, defenses, models
from si_jax.cli import evaluate
from si_jax.data import SOURCES
from si_jax.paper import configs, report
from si_jax.paper.cells import Download, Training
from si_jax.paper.commands import Choice
from si_jax.paper.matching import TEST_IMAGES
from si_jax.training import recipes

ROOT = pathlib.Path(report.__file__).resolve().parents[2]
TABLES = report.TABLES
NUMBER = re.compile(r'0?\.\d{4}|\d\d\.\d\d')


@pytest.fixture(scope='module')
def printed(shared):
    """The lines of each table of the paper, as cells."""
    text = (shared / 'spec' / 'paper.txt').read_text().replace('<b>', '').replace('</b>', '')
    found = {}
    for part in text.split('\nTABLE ')[1:]:
        name, lines = part.partition(':')[0], []
        for line in part.splitlines()[2:]:
            if '\t' not in line:
                break
            lines.append([re.sub(r' \[\d+\]', '', cell).strip() for cell in line.split('\t')])
        found[name] = lines
    return found


def numbers(line):
    return tuple(float(cell) for cell in line if NUMBER.fullmatch(cell))


def paper(table):
    """The paper's numbers of our rows, without the columns that it lacks."""
    kept = [not column.added for column in table.columns]
    return [tuple(number for number, keep in zip(row.paper, kept, strict=True) if keep) for row in table.rows]


def test_tables_2_to_10_are_there():
    assert list(report.PAPER_TABLES) == [str(number) for number in range(2, 11)]


@pytest.mark.parametrize('name', ['2', '3', '4', '5', '7', '8', '9', '10'])
def test_the_numbers_are_those_of_the_paper(name, printed):
    lines = [numbers(line) for line in printed[name]]
    assert paper(TABLES[name]) == [line for line in lines if line]


def test_the_numbers_of_table_6_are_those_of_the_paper(printed):
    lines = [numbers(line) for line in printed['6'] if numbers(line)]
    halves = [[line[start : start + 5] for line in lines] for start in (0, 5)]
    expected = [half[net + i] for net in (0, 8) for half in halves for i in range(8)]
    assert paper(TABLES['6']) == expected


@pytest.mark.parametrize('name', ['5', '6', '7', '8', '9', '10'])
def test_methods_and_headings_are_those_of_the_paper(name, printed):
    table = TABLES[name]
    lines = [line for line in printed[name] if numbers(line)]
    at = {'5': 0, '7': 0, '9': 0}.get(name, 1)
    expected = [line[at] for line in lines]
    if name == '6':
        expected = [*expected[:8] * 2, *expected[8:] * 2]
    place = 0 if name == '5' else -1
    assert [row.labels[place] for row in table.rows] == expected
    titles = [column.title for column in table.columns if not column.added]
    heads = [cell for line in printed[name][:2] for cell in line]
    shown = [title.removesuffix(' ×5').removeprefix('SPSA ') for title in titles]
    assert set(shown) <= set(heads)
    for outer in {row.labels[0] for row in table.rows} - set(expected):
        assert outer.replace('CIFAR-100', 'CIFAR100') in {line[0] for line in printed[name]}


@pytest.mark.parametrize(('name', 'symbol'), [('2', 's'), ('3', 'm'), ('4', 'beta')])
def test_the_parameter_of_each_row_is_that_of_the_paper(name, symbol, printed):
    lines = [line for line in printed[name] if numbers(line)]
    varied = [line[-6] for line in lines]
    rows = TABLES[name].rows
    assert rows[0].labels == ('TRADES',) and rows[0].source.config == 'trades_cifar10'
    fields = {'s': lambda c: c.defense.scale, 'm': lambda c: c.defense.margin}
    read = fields.get(symbol, lambda c: c.defense.weights.si_margin_ce)
    for row, value in zip(rows[1:], varied[1:], strict=True):
        assert row.labels == (f'TRADES-SI, {symbol} = {float(value):g}',)
        config = configs.config_of(row.source, row.source.overrides)
        assert read(config) == float(value)
        others = {'defense.scale': 15.0, 'defense.margin': 0.2, 'defense.weights.si_margin_ce': 0.2}
        changed = config.to_dict()['defense']
        expected = configs.config_of(Training('tradessi_cifar10'), others).to_dict()['defense']
        assert changed | {'scale': 0, 'margin': 0, 'weights': 0} == expected | {
            'scale': 0, 'margin': 0, 'weights': 0
        }  # fmt: skip


def test_each_row_is_trained_by_the_config_of_its_labels():
    networks = {'ResNet18': 'resnet18', 'WideResNet-34-10': 'wrn_34_10', 'RN-18': 'resnet18',
                'PARN-18': 'preact_resnet18'}  # fmt: skip
    names = {'RFGSM-AT': 'rfgsm', 'N-FGSM': 'nfgsm'}
    for table in TABLES.values():
        for row in table.rows:
            if isinstance(row.source, Download) or ' + ' in row.labels[-1]:  # those are in test_studies.py
                continue
            config = configs.config_of(row.source, row.source.overrides)
            method, *_ = row.labels[-1].split(',')
            base = method.removesuffix('-SI').removesuffix('-HE')
            assert config.defense.name == names.get(base, base.lower())
            assert config.defense.si == method.endswith('-SI')
            assert config.defense.he == method.endswith('-HE')
            dataset = {'7': 'svhn', 'digits': 'digits', 'ingredients': 'digits'}.get(table.name, 'cifar10')
            for label in row.labels:
                dataset = {'CIFAR-100': 'cifar100', 'SVHN': 'svhn'}.get(label, dataset)
            assert config.data.name == dataset
            if table.name in report.PAPER_TABLES:
                network = next((networks[label] for label in row.labels if label in networks), 'resnet18')
                assert config.model.arch == network
                assert (config.threat.eps, config.seed) == (8 / 255, 0)


def parsed(command):
    """The config of a command of train.py, and its workdir, as train.py reads them."""
    words = shlex.split(command)
    assert words[:2] == ['python', 'train.py']
    words = [w.replace('--config=configs/', f'--config={ROOT}/configs/') for w in words[1:]]
    values = absl_flags.FlagValues()
    holder = config_flags.DEFINE_config_file('config', flag_values=values)
    absl_flags.DEFINE_string('workdir', None, '', flag_values=values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', words)
        values(words)
    return holder.value, values.workdir


@pytest.mark.parametrize('name', TABLES)
def test_every_command_parses_and_builds_what_its_row_says(name):
    table, choice = TABLES[name], Choice('no/such folder', (0, 2), data_dir='images')
    built = report.make(table, choice)
    commands = built.commands()
    assert commands == list(dict.fromkeys(commands)) == built.commands(missing=True)
    trained, evaluated = {}, []
    for command in commands:
        assert '\n' not in command
        if 'train.py' in command:
            config, workdir = parsed(command)
            assert config.data.dir == 'images' and workdir.startswith('no/such folder/')
            assert defenses.from_config(config.defense).outer
            trained[workdir] = recipes.plain(config)
            continue
        words = shlex.split(command)
        assert words[:2] == ['python', 'evaluate.py']
        given = evaluate.parser().parse_args(words[2:])
        assert attacks.parse(given.attacks) and (given.steps, given.checkpoint) == (None, 'best')
        # A network is evaluated after it was trained.
        assert given.workdir is None or given.workdir in trained
        evaluated.append(given)
    wanted = {}
    for row in table.rows:
        if isinstance(row.source, Training):
            for seed in choice.seeds:
                fields = {**row.source.overrides, 'seed': seed, 'data.dir': 'images'}
                config = recipes.plain(configs.config_of(row.source, fields))
                folder = next(workdir for workdir, other in trained.items() if other == config)
                wanted[folder] = config
    assert wanted == trained
    by_attack = {attack for given in evaluated for attack in given.attacks.split(',')}
    assert by_attack == {column.attack for column in table.columns if column.attack}


def test_table_5_is_the_page_that_documents_it():
    page = (ROOT / 'docs' / 'table5.md').read_text()
    rows = [re.split(r' *\| *', line)[1:-1] for line in page.splitlines() if re.match(r'\| \w.*\d\d\.', line)]
    assert [tuple(map(float, row[2:])) for row in rows] == [row.paper[:-1] for row in TABLES['5'].rows]
    titles = [row.labels[0] for row in TABLES['5'].rows]
    assert [row[0] for row in rows] == titles
    for row in TABLES['5'].rows:
        flags = row.source.flags
        described = f'--torch_checkpoint={row.source.file} ' + ' '.join(
            f'--{flag}={flags[flag]}'
            for flag in ('arch', 'variant', 'normalise', 'stated_clean')
            if flag in flags
        )
        assert described in page
        assert models.create(flags['arch'], num_classes=10, variant=flags.get('variant'))


def test_pgd_at_its_best_scale_has_the_13_factors_of_fig_1():
    choice = Choice('runs')
    commands = report.make(TABLES['5'], choice).commands()
    factors = sorted(
        evaluate.parser().parse_args(shlex.split(command)[2:]).logit_scale
        for command in commands
        if 'at_resnet50' in command
    )
    assert len(factors) == 13
    assert [round(2 * float(jnp.log10(factor)), 3) for factor in factors] == list(range(-6, 7))


def test_the_numbers_of_test_images_are_those_of_the_data_sets(shared):
    assert set(TEST_IMAGES) == set(SOURCES)
    from si_jax import data

    assert len(data.load('digits', 'test').labels) == TEST_IMAGES['digits']
    for name in ('cifar10', 'cifar100'):
        assert len(data.load(name, 'test', shared / 'data').labels) == TEST_IMAGES[name]
