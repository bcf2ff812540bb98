"""The config files hold the recipe of the paper's sections 5.1.1 and 5.4."""

import importlib
import itertools
import math
import pathlib
import sys

import optax
import pytest
from absl import flags
from ml_collections import config_flags

from configs import digits, narrow, quickstart
from si_jax import defenses, models
from si_jax.errors import InputError
from si_jax.storage.trees import differences
from si_jax.training import recipe_fields, recipes
from si_jax.training.schedules import schedule_and_optimiser

FOLDER = pathlib.Path(__file__).resolve().parents[2] / 'configs'
DATASETS = ('cifar10', 'cifar100', 'svhn')
RUNS = [
    (f'{name}{"si" if si else ""}_{dataset}', name, si, dataset)
    for name, si, dataset in itertools.product(('at', 'trades', 'alp', 'mart'), (False, True), DATASETS)
]
SINGLE_STEP = {
    'freeat': 'resnet18',
    'gat': 'resnet18',
    'rfgsm': 'preact_resnet18',
    'gradalign': 'preact_resnet18',
}
SINGLE_RUNS = [
    (f'{name}{"si" if si else ""}_cifar10', name, si) for name in SINGLE_STEP for si in (False, True)
]
HE_RUNS = [(f'{name}he_{dataset}', name, dataset) for name in ('at', 'trades', 'alp') for dataset in DATASETS]
ARMS = {
    'tradesce_cifar10': (False, 'ce'),
    'tradescal_cifar10': (False, 'calibrated_ce'),
    'tradesreg_cifar10': (True, 'kl'),
}
# Beyond the paper: what each has otherwise than AT's config, from the code that it follows.
CYCLIC = {'schedule.kind': 'triangular', 'optimiser.cycle_momentum': True, 'overfitting.drop': 0.2}
ONE_STEP = {'attack.steps': 1, 'attack.step_size': 8 / 255, **CYCLIC}
PERTURBED = {'epochs': 200, 'schedule.peak': 0.1, 'schedule.boundaries': (0.5, 0.75),
             'model.arch': 'preact_resnet18', 'model.variant': 'bag_of_tricks'}  # fmt: skip
NEWER = {
    'nfgsm_cifar10': {
        **ONE_STEP, 'defense.name': 'nfgsm', 'epochs': 30, 'schedule.peak': 0.2, 'defense.attack_bn': 'train',
        'defense.start_radius': 2.0, 'defense.bounds': 'pixels', 'model.arch': 'preact_resnet18',
        'model.variant': 'fast_at', 'model.normalise': 'cifar10',
    },
    'elle_cifar10': {
        **ONE_STEP, 'defense.name': 'elle', 'epochs': 30, 'schedule.peak': 0.2, 'defense.attack_bn': 'train',
        'defense.start': 'original', 'defense.bounds': 'none', 'defense.passes': 'adv,segment,nat',
        'defense.weights.nonlinearity': 1000.0, 'model.arch': 'preact_resnet18',
        'model.variant': 'bag_of_tricks',
    },
    'nuat_cifar10': {
        **ONE_STEP, 'defense.name': 'nuat', 'epochs': 100, 'batch_size': 64, 'schedule.peak': 0.1,
        'schedule.peak_at': 0.25, 'defense.start': 'half_signs', 'defense.passes': 'adv,nat',
        'defense.weights.natural_ce': 1.0, 'defense.weights.nuclear': 4.0,
        'defense.weights.adversarial_ce': 'absent', 'model.variant': 'gat', 'average.kind': 'ema',
        'average.decay': 0.9998, 'average.start': 0.0, 'average.ramp': False,
        'average.batch_stats': 'average',
    },
    'awp_cifar10': {
        **PERTURBED, 'awp.gamma': 0.01, 'defense.attack_bn': 'train', 'model.normalise': 'cifar10',
    },
    'tradesawp_cifar10': {
        **PERTURBED, 'awp.gamma': 0.005, 'awp.start_epoch': 9, 'defense.name': 'trades',
        'defense.start': 'gaussian', 'defense.passes': 'adv,nat,nat', 'defense.weights.natural_ce': 1.0,
        'defense.weights.kl': 6.0, 'defense.weights.adversarial_ce': 'absent',
    },
    'wang2023_cifar10': {
        'epochs': 400, 'batch_size': 512, 'data.extra': 'required', 'data.validation': 1024,
        'model.arch': 'wrn_28_10', 'model.activation': 'silu', 'model.bn_momentum': 0.01,
        'model.bn_first_step': True, 'defense.name': 'trades', 'defense.weights.natural_ce': 1.0,
        'defense.weights.kl': 5.0, 'defense.weights.adversarial_ce': 'absent', 'defense.passes': 'nat,adv',
        'defense.attack_bn': 'train', 'defense.smoothing': 0.1, 'optimiser.decay': 'no_bn',
        'optimiser.momentum': 0.95, 'optimiser.cycle_momentum': True, 'optimiser.nesterov': True,
        'schedule.kind': 'one_cycle', 'schedule.every': 'epoch', 'schedule.peak': 0.2,
        'schedule.peak_at': 0.025, 'schedule.boundaries': (74 / 90,), 'average.kind': 'ema',
    },
}  # fmt: skip
GROWING = {
    'epochs': 200, 'ramp.eps': (0.0, 1.0), 'awp.gamma': 0.005,
    'awp.start_epoch': 9, 'attack.steps': 5, 'attack.step_size': 4 / 255, 'defense.start': 'gaussian',
    'schedule.every': 'epoch', 'schedule.peak': 0.2, 'average.batch_stats': 'average',
    'defense.weights.natural_ce': 1.0, 'defense.weights.adversarial_ce': 'absent',
}  # fmt: skip
NEWER['dkl_cifar10'] = GROWING | {
    'defense.name': 'dkl', 'defense.weights.ikl': 20.0, 'defense.weights.pair_ce': 4.0,
    'defense.passes': 'adv,nat', 'schedule.kind': 'cosine_dkl', 'average.kind': 'swa', 'average.start': 0.0,
    'model.arch': 'wrn_34_10', 'schedule.boundaries': (74 / 90,),
}  # fmt: skip
NEWER['dkl_cifar100'] = NEWER['dkl_cifar10'] | {'data.name': 'cifar100'}
ONE_CYCLE = {
    'epochs': 50, 'schedule.kind': 'one_cycle', 'schedule.peak': 0.21, 'schedule.peak_at': 0.25,
    'optimiser.momentum': 0.95, 'optimiser.cycle_momentum': True, 'optimiser.nesterov': True,
}  # fmt: skip
DAJAT_AVERAGE = {
    'schedule.kind': 'cosine', 'average.kind': 'ema', 'average.decay': 0.9996, 'average.start': 0.75,
    'average.ramp': False, 'defense.passes': 'nat,adv', 'defense.weights.kl': 11.0,
}  # fmt: skip
NEWER['acat_cifar10'] = GROWING | DAJAT_AVERAGE | {
    'defense.name': 'trades', 'epochs': 110, 'attack.steps': 2, 'attack.step_size': 8 / 255,
}  # fmt: skip
NEWER['dajat_cifar10'] = GROWING | DAJAT_AVERAGE | {
    'defense.name': 'dajat', 'defense.weights.js': 2.0, 'defense.branches': 2, 'model.bn_branches': True,
}  # fmt: skip
NEWER['hat_cifar10'] = ONE_CYCLE | {
    'defense.name': 'hat', 'defense.start': 'gaussian', 'defense.passes': 'nat,adv,helped',
    'defense.weights.natural_ce': 1.0, 'defense.weights.kl': 2.5, 'defense.weights.helped_ce': 0.5,
    'defense.weights.adversarial_ce': 'absent',
}  # fmt: skip
NEWER['eat_cifar10'] = {
    'epochs': 20, 'init_from': 'required', 'data.validation': 0, 'defense.name': 'eat',
    'defense.start': 'original', 'defense.others': 'l1:12', 'schedule.boundaries': (1 / 3, 2 / 3),
}  # fmt: skip
NEWER['ellea_cifar10'] = NEWER['elle_cifar10'] | {
    'defense.name': 'ellea', 'defense.weights.nonlinearity': 4000.0
}  # fmt: skip
EVERY = [run for run, *_ in (*RUNS, *SINGLE_RUNS, *HE_RUNS)] + list(ARMS)

# From methods.md, sections 2 and 3, not from the table in si_jax.defenses.
WEIGHTS = {
    'at': {'adversarial_ce': 1.0},
    'trades': {'natural_ce': 1.0, 'kl': 6.0},
    'alp': {'natural_ce': 0.5, 'adversarial_ce': 0.5, 'logit_pairing': 3.0},
    'mart': {'mart_bce': 1.0, 'weighted_kl': 6.0},
}
SHARED_FIELDS = {
    'seed': 0,
    'batch_size': 128,
    'attack': {'steps': 10, 'step_size': 2 / 255},
    'awp': {'gamma': 0.0, 'start_epoch': 0},
    'threat': {'norm': 'linf', 'eps': 8 / 255},
    'evaluation': {'every_epochs': 1, 'steps': 20, 'step_size': 2 / 255, 'batch_size': 0},
    'checkpoint': {'every_steps': 0, 'every_minutes': 10.0, 'keep_last': 2},
    'logging': {'every_steps': 50, 'tensorboard': True, 'sinks': ''},
    'overfitting': {'drop': 0.0},
    'patience': 0,
    'init_from': '',
}
RECIPES = {
    'resnet18': {
        'epochs': 120,
        'weight_decay': 5e-4,
        # First and last epoch (counted from 1) at each rate.
        'rates': {(1, 74): 0.01, (75, 89): 1e-3, (90, 99): 1e-4, (100, 120): 1e-5},
    },
    'wrn_34_10': {'epochs': 90, 'weight_decay': 7e-4, 'rates': {(1, 74): 0.1, (75, 90): 0.01}},
}


def load(run: str, arch: str | None = None):
    """The config as `--config=configs/RUN.py[:ARCH]` gives it."""
    path = FOLDER / f'{run}.py'
    return parse(f'--config={path}:{arch}' if arch else f'--config={path}')


def parse(*arguments: str):
    """The config of a command line."""
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file('config', flag_values=values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['train.py', *arguments])  # config_flags looks for overrides there
        values(sys.argv)
    return holder.value


def schedule(config, steps_per_epoch: int) -> optax.Schedule:
    length = {'epochs': config.epochs, 'steps_per_epoch': steps_per_epoch}
    return schedule_and_optimiser(config.schedule, config.optimiser, **length)[0]


def test_the_files_are_every_defense_on_every_data_set():
    files = {path.stem for path in FOLDER.glob('*.py')} - {
        '__init__',
        'digits',
        'narrow',
        'evidence',
        'quickstart',
    }
    assert files == {*EVERY, *NEWER, 'standard_cifar10'} - {'ellea_cifar10'}
    assert set(recipes.RECIPES) == {
        *EVERY,
        *NEWER,
        'standard_cifar10',
        'digits',
        'narrow',
        'evidence',
        'quickstart',
    }


def changes(config, other):
    """Fields in which a config differs from another one, with its values."""
    return {name: new for name, (_, new) in differences(other.to_dict(), config.to_dict()).items()}


@pytest.mark.parametrize(('run', 'name', 'si'), SINGLE_RUNS)
def test_single_step_recipes(run, name, si):
    """Against AT's config, from methods.md, section 4, and the repositories that it names."""
    config, at = load(run), load('atsi_cifar10' if si else 'at_cifar10')
    common = {'defense.name': name, 'attack.steps': 1, 'epochs': 30}
    own = {
        'freeat': {'epochs': 120, 'attack.step_size': 8 / 255, 'defense.start': 'original',
                   'defense.replays': 8},
        'gat': {'epochs': 100, 'batch_size': 64, 'attack.step_size': 8 / 255, 'defense.start': 'half_signs',
                'defense.passes': 'adv,nat', 'schedule.peak': 0.1, 'schedule.boundaries': (0.71, 0.86),
                'model.variant': 'gat'},
        'rfgsm': {'attack.step_size': 10 / 255, 'defense.attack_bn': 'train', 'schedule.kind': 'triangular',
                  'schedule.peak': 0.2, 'model.variant': 'fast_at', 'model.normalise': 'cifar10',
                  'optimiser.cycle_momentum': True, 'overfitting.drop': 0.2},
        'gradalign': {'attack.step_size': 10 / 255, 'defense.attack_bn': 'train',
                      'defense.start': 'original', 'defense.passes': 'adv,random',
                      'schedule.kind': 'triangular', 'schedule.peak': 0.3, 'schedule.peak_at': 0.4,
                      'model.variant': 'gradalign'},
    }[name]  # fmt: skip
    if SINGLE_STEP[name] != 'resnet18':
        own['model.arch'] = SINGLE_STEP[name]
    weights = {'gat': {'natural_ce': 1.0, 'guided': 10.0}, 'gradalign': {'misalignment': 0.2}}.get(name, {})
    own |= {f'defense.weights.{term}': value for term, value in weights.items()}
    if name == 'gat':
        own['defense.weights.adversarial_ce'] = 'absent'
    expected = {name: value for name, value in (common | own).items() if value != flat(at).get(name)}
    found = changes(config, at)
    assert set(found) == set(expected)
    for field, value in expected.items():
        assert found[field] == (pytest.approx(value) if isinstance(value, float | tuple) else value), field


def flat(config):
    return dict(recipe_fields.flat(config.to_dict()))


@pytest.mark.parametrize('run', NEWER)
def test_recipes_beyond_the_paper(run):
    config = recipes.recipe(run)
    found = changes(config, load('at_cifar10'))
    assert found == {
        field: pytest.approx(value) if isinstance(value, float) else value
        for field, value in NEWER[run].items()
    }
    for options in (',si', 'si'):
        si = {'defense.si': True, f'defense.weights.{defenses.SI_TERM}': 0.2}
        assert changes(recipes.recipe(run, options), config) == si
    other = recipes.recipe(run, 'small_cnn,si')
    assert (other.model.arch, other.model.variant, other.defense.si) == ('small_cnn', '', True)
    text = importlib.import_module(f'configs.{run.replace("ellea", "elle")}').__doc__
    shown = f'python train.py --config=configs/{run}.py'.replace('ellea', 'elle')
    more = ' --config.data.extra=1m.npz' * bool(config.data.extra)
    more += ' --config.init_from=FOLDER' * bool(config.init_from)
    assert f'{shown}{more}\n' in text and f'{shown}:{config.model.arch},si{more}\n' in text


def test_the_command_for_ellea_is_its_recipe():
    path = FOLDER / 'elle_cifar10.py'
    given = ('--config.defense.name=ellea', '--config.defense.weights.nonlinearity=4000')
    assert all(one in importlib.import_module('configs.elle_cifar10').__doc__ for one in given)
    assert parse(f'--config={path}', *given).to_dict() == recipes.recipe('ellea_cifar10').to_dict()


@pytest.mark.parametrize('arch', ['small_cnn,si', 'si,small_cnn'])
def test_si_follows_the_colon_of_every_recipe(arch):
    assert load('at_cifar10', arch).to_dict() == load('atsi_cifar10', 'small_cnn').to_dict()
    assert load('freeat_cifar10', 'si').to_dict() == load('freeatsi_cifar10').to_dict()
    assert load('atsi_cifar10', arch).to_dict() == load('atsi_cifar10', 'small_cnn').to_dict()
    assert load('quickstart', 'small_cnn,si').to_dict() == load('quickstart').to_dict()
    assert load('digits', 'mart,si').to_dict() == load('digits', 'martsi').to_dict()
    assert load('narrow', 'trades,si').to_dict() == load('narrow', 'si').to_dict() == load('narrow').to_dict()
    with pytest.raises(InputError, match='has 2 names, small_cnn and resnet18: give one'):
        recipes.recipe('at_cifar10', 'small_cnn,resnet18')
    with pytest.raises(InputError, match='SI and hypersphere embedding are alternatives'):
        recipes.recipe('tradeshe_cifar10', 'si')


@pytest.mark.parametrize(('run', 'name', 'dataset'), HE_RUNS)
def test_hypersphere_embedding_changes_nothing_else(run, name, dataset):
    assert changes(load(run), load(f'{name}_{dataset}')) == {'defense.he': True}


@pytest.mark.parametrize('run', ARMS)
def test_the_missing_arms_change_the_attack_only(run):
    si, inner = ARMS[run]
    assert changes(load(run), load('tradessi_cifar10' if si else 'trades_cifar10')) == {
        'defense.inner': inner
    }


@pytest.mark.parametrize('arch', RECIPES)
@pytest.mark.parametrize(('run', 'name', 'si', 'dataset'), RUNS)
def test_fields_are_those_of_the_recipe(run, name, si, dataset, arch):
    config = load(run, arch)
    weights = WEIGHTS[name] | ({'si_margin_ce': 0.2} if si else {})
    recipe = RECIPES[arch]
    fields = config.to_dict()
    rates = fields.pop('schedule')  # tested as rates below
    names = {'kind', 'peak', 'factor', 'boundaries', 'peak_at', 'warmup', 'every'}
    assert rates.keys() == names and rates['kind'] == 'steps'
    assert fields == SHARED_FIELDS | {
        'epochs': recipe['epochs'],
        'data': {
            'name': dataset,
            'dir': None,
            'preprocessing': '',
            'image_shape': (),
            'num_classes': 0,
            'code': '',
            'code_digest': '',
            'validation': 1000,
            'split_seed': 0,
            'limit': 0,
            'balanced': False,
            'cutmix': 0,
            'extra': '',
            'extra_share': 0.7,
            'extra_draws': 'uniform',
            'stream': 'auto',
            'workers': 0,
            'class_weights': (),
        },
        'augment': {'crop': None, 'flip': None},
        'model': {
            'arch': arch,
            'width': 0,
            'variant': '',
            'normalise': 'none',
            'dtype': 'float32',
            'sync_bn': True,
            'activation': 'relu',
            'bn_momentum': 0.1,
            'bn_first_step': False,
            'bn_branches': False,
        },
        'defense': {
            'name': name,
            'si': si,
            'he': False,
            'inner': '',
            'replays': 1,
            'others': '',
            'helper': '',
            'branches': 0,
            'smoothing': 0.0,
            'smoothing_over': 'all',
            'weights': weights,
            'scale': 15.0,
            'margin': 0.2,
            'start': 'uniform',
            'start_radius': 1.0,
            'bounds': 'ball',
            'attack_bn': 'eval',
            'passes': 'adv' if name == 'at' else 'nat,adv',
        },
        'ramp': {'eps': (), 'step_size': (), 'steps': (), 'weights': (), 'terms': '', 'every': 'epoch'},
        'average': {
            'kind': '',
            'decay': 0.995,
            'tau': 0.9,
            'start': 0.025,
            'ramp': True,
            'batch_stats': 'live',
        },
        'optimiser': {
            'momentum': 0.9,
            'nesterov': False,
            'weight_decay': recipe['weight_decay'],
            'decay': 'all',
            'clip_norm': 0.0,
            'cycle_momentum': False,
        },
    }


@pytest.mark.parametrize('arch', RECIPES)
def test_learning_rate_of_every_epoch(arch):
    config = load('trades_cifar10', arch)
    steps = math.ceil((50_000 - config.data.validation) / config.batch_size)
    assert steps == 383  # the last, partial batch is kept
    rate = schedule(config, steps)
    for (first, last), expected in RECIPES[arch]['rates'].items():
        for step in ((first - 1) * steps, last * steps - 1):
            assert float(rate(step)) == pytest.approx(expected, rel=1e-6), (first, last, step)


@pytest.mark.parametrize('run', [run for run in EVERY if not run.startswith(('rfgsm', 'gradalign'))])
def test_the_default_is_resnet18(run):
    config = load(run)
    assert config.model.arch == 'resnet18'
    assert config.to_dict() == load(run, 'resnet18').to_dict()


@pytest.mark.parametrize('run', [*EVERY, 'digits', 'narrow', 'evidence', 'quickstart'])
def test_the_docstring_names_its_own_command(run):
    text = importlib.import_module(f'configs.{run}').__doc__
    assert f'python train.py --config=configs/{run}.py\n' in text


@pytest.mark.parametrize(('run', 'name', 'si', 'dataset'), RUNS)
def test_the_docstring_shows_the_numbers_of_the_paper(run, name, si, dataset, shared):
    """Natural, PGD, PGD-CW, SI-PGD and AutoAttack accuracy of Tables 6 and 7."""
    method = name.upper() + ('-SI' if si else '')
    tables = (
        (shared / 'spec' / 'paper.txt').read_text().replace('<b>', '').replace('</b>', '').split('\nTABLE ')
    )
    table = next(part for part in tables if part.startswith('7:' if dataset == 'svhn' else '6:'))
    rows = [line.split('\t') for line in table.splitlines() if '\t' in line]
    cells = [row for row in rows if method in [cell.split(' [')[0] for cell in row[:2]]]
    first = {'cifar10': -10, 'cifar100': -5, 'svhn': -5}[dataset]
    expected = [row[first:][:5] for row in cells]
    shown = [
        line.strip('| ').split(' | ')
        for line in importlib.import_module(f'configs.{run}').__doc__.splitlines()
        if line.startswith(('| resnet18', '| wrn_34_10'))
    ]
    assert [row[0] for row in shown] == (['resnet18'] if dataset == 'svhn' else ['resnet18', 'wrn_34_10'])
    assert [row[1:] for row in shown] == expected


def test_the_docstrings_show_the_numbers_of_tables_8_and_10(shared):
    text = (shared / 'spec' / 'paper.txt').read_text().replace('<b>', '').replace('</b>', '')
    tables = {part[:2].strip(':'): part for part in text.split('\nTABLE ')}
    rows = {n: [line.split('\t') for line in tables[n].splitlines() if '\t' in line] for n in ('8', '10')}

    def shown(run):
        doc = importlib.import_module(f'configs.{run}').__doc__
        return [
            line.strip('| ').split(' | ')[1:] for line in doc.splitlines() if '| ' in line and '18 |' in line
        ]

    titles = {'freeat': 'FreeAT', 'gat': 'GAT', 'rfgsm': 'RFGSM-AT', 'gradalign': 'GradAlign'}
    for run, name, si in SINGLE_RUNS:
        method = titles[name] + ('-SI' if si else '')
        (expected,) = [row[2:] for row in rows['8'] if row[1].split(' [')[0] == method]
        assert shown(run) == [expected], run
    paper = {row[0]: row for row in rows['10']}
    he = rows['10'].index(paper['CIFAR-10']) + 1
    for dataset, offset in (('cifar10', 0), ('svhn', 3), ('cifar100', 6)):
        row = rows['10'][he + offset]
        assert row[1] == 'TRADES-HE' and shown(f'tradeshe_{dataset}') == [row[2:]]
        assert not shown(f'athe_{dataset}') and not shown(f'alphe_{dataset}')


def test_every_config_is_a_defense_that_can_be_trained():
    for run in EVERY:
        config = load(run)
        built = defenses.from_config(config.defense)
        assert built.passes == tuple(config.defense.passes.split(','))
        assert set(built.outer) == set(config.defense.weights)


def test_quickstart_is_trades_si_on_digits():
    config = quickstart.get_config()
    assert (config.data.name, config.model.arch) == ('digits', 'small_cnn')
    assert (config.defense.name, config.defense.si) == ('trades', True)
    assert config.threat.eps == 0.2
    assert config.attack.step_size == config.evaluation.step_size == 0.05
    assert 0 < config.data.validation < 1400


def test_a_row_on_the_digits_differs_from_the_quickstart_in_its_defense_alone():
    assert digits.get_config().to_dict() == quickstart.get_config().to_dict()
    for row, (name, si) in recipes.DIGITS_ROWS.items():
        config = load('digits', row)
        changed = changes(config, quickstart.get_config())
        assert all(field.startswith(('defense.', 'attack.')) for field in changed)
        published = load(f'{name}_cifar10', 'si' * si)
        assert config.defense.to_dict() == published.defense.to_dict()
        assert config.attack.steps == published.attack.steps
        steps = (
            config.attack.step_size / config.threat.eps,
            published.attack.step_size / published.threat.eps,
        )
        assert steps[0] == pytest.approx(steps[1])
    with pytest.raises(InputError, match=r"unknown row 'tradesi': did you mean .*tradessi"):
        digits.get_config('tradesi')


def test_a_narrow_row_differs_from_that_of_table_6_in_its_scale_alone():
    scale = {'model.width', 'data.limit', 'data.validation', 'epochs', 'batch_size', 'attack.steps',
             'schedule.peak'}  # fmt: skip
    assert narrow.get_config().to_dict() == narrow.get_config('tradessi').to_dict()
    for row in recipes.NARROW_ROWS:
        assert set(changes(load('narrow', row), load(f'{row}_cifar10'))) == scale
    with pytest.raises(InputError, match=r"unknown row 'tradesi': did you mean .*tradessi"):
        narrow.get_config('tradesi')


def test_the_rows_of_the_study_on_cifar10_differ_in_one_thing_each():
    trades = load('evidence', 'trades')
    assert trades.average.kind == 'ema' and trades.schedule.kind == 'cosine' and trades.model.width == 8
    assert (trades.data.limit, trades.data.validation, trades.attack.steps, trades.epochs) == (0, 1000, 5, 2)
    both = set(changes(load('evidence', 'tradessi'), trades))
    assert both == {'defense.si', 'defense.weights.si_margin_ce'}
    assert load('evidence').to_dict() == load('evidence', 'trades,si').to_dict()
    assert set(changes(load('evidence', 'tradesreg'), trades)) == both | {'defense.inner'}
    for row, inner in (('tradesatt', 'si'), ('tradescal', 'calibrated_ce')):
        assert changes(load('evidence', row), trades) == {'defense.inner': inner}
    single = load('evidence', 'nfgsm')
    assert (single.attack.steps, single.epochs) == (1, 5)


def test_a_field_can_be_set_on_the_command_line_and_steps_follow_eps():
    config = parse(
        f'--config={FOLDER / "tradessi_cifar10.py"}:wrn_28_10',
        '--config.threat.eps=0.04',
        '--config.defense.weights.kl=5.0',
        '--config.data.dir=images',
        '--config.schedule.boundaries=(0.5, 0.75)',
    )
    assert config.model.arch == 'wrn_28_10'
    assert config.attack.step_size == config.evaluation.step_size == 0.01
    assert config.defense.weights.kl == 5.0
    assert config.data.dir == 'images'
    assert config.schedule.boundaries == (0.5, 0.75)


def test_a_field_that_does_not_exist_is_refused():
    with pytest.raises(AttributeError, match='epoch'):
        parse(f'--config={FOLDER / "at_svhn.py"}', '--config.epoch=3')


@pytest.mark.parametrize('arch', models.ARCHITECTURES)
def test_every_architecture_has_a_recipe(arch):
    config = load('at_cifar10', arch)
    assert config.model.arch == arch
    assert config.epochs == (90 if arch.startswith('wrn_') else 120)


def test_an_unknown_architecture_is_refused_with_near_names():
    with pytest.raises(InputError, match=r"unknown architecture 'resnet_18': did you mean .*resnet18"):
        recipes.paper('trades', si=True, dataset='cifar10', arch='resnet_18')


def test_an_unknown_defense_is_refused_with_near_names():
    with pytest.raises(InputError, match=r"unknown defense 'trade': did you mean trades"):
        recipes.defense('trade')
    with pytest.raises(InputError, match='SI needs a defense with an attack'):
        recipes.defense('standard', si=True)
