"""A field that a later version adds strands no run: what an older config lacks has today's default."""

import json
from pathlib import Path

import pytest

from si_jax import load_model
from si_jax.errors import InputError
from si_jax.paper import studies
from si_jax.paper.commands import Choice
from si_jax.paper.matching import fill
from si_jax.reports import collect, results
from si_jax.training import recipes
from si_jax.training.loop import run
from si_jax.training.recipes import completed, plain, recipe, stored
from si_jax.training.recipes import studies as studies_of_ours

STUDY = Path(__file__).resolve().parents[2] / 'results' / 'study-digits'


@pytest.fixture
def newer(monkeypatch):
    """The version in which every recipe has two more fields, one of them in a section of its own."""
    paper = recipes.paper

    def with_more(*arguments, **options):
        config = paper(*arguments, **options)
        config.defense.push = 0.0
        config.averages = {'decay': 0.0}
        return config

    def newer():
        for module in (stored, studies_of_ours):  # those that make the configs here
            monkeypatch.setattr(module, 'paper', with_more)

    return newer


def small(**changes):
    config = recipe('quickstart')
    config.update_from_flattened_dict(
        {'data.limit': 8, 'data.validation': 4, 'batch_size': 8, 'model.width': 2, 'attack.steps': 1,
         'evaluation.steps': 1, 'logging.tensorboard': False, 'epochs': 1} | changes
    )  # fmt: skip
    return config


def test_an_older_workdir_resumes_and_is_read(tmp_path, newer):
    run(small(), str(tmp_path))
    newer()
    assert small().averages.decay == 0
    state = run(small(epochs=2), str(tmp_path))
    assert int(state.step) == 2
    (tmp_path / 'config.json').write_text(json.dumps(plain_of_before()))
    assert load_model(tmp_path).config.averages.decay == 0
    with pytest.raises(InputError, match=r'averages.decay: 0.0 -> 0.5'):
        run(small(epochs=2, **{'averages.decay': 0.5}), str(tmp_path))


def plain_of_before():
    config = plain(small())
    del config['averages'], config['defense']['push']
    return config


def test_the_table_of_the_digits_still_finds_its_runs(newer):
    choice = Choice(seeds=(0, 1, 2))
    table = studies.STUDIES['digits']
    folder = results.scan(STUDY)
    before, notes = fill(table, choice, folder)
    newer()
    after, later = fill(table, choice, folder)
    assert all(row.trained == {0, 1, 2} for row in before)
    assert after == before and later == notes


def test_the_page_shows_older_runs_with_the_defaults(newer):
    newer()
    configs = [network.run.config for network in collect.collect([str(STUDY)]).networks if network.run]
    assert configs and all(config['averages'] == {'decay': 0.0} for config in configs)


@pytest.mark.parametrize('name', ['freeat_cifar10', 'martsi_svhn', 'tradeshe_cifar100'])
def test_a_whole_config_stays_as_it_is(name):
    config = plain(recipe(name))
    assert completed(config) == config and list(completed(config)) == list(config)


def test_defaults_are_those_of_the_defense_and_kinds_are_left_to_the_reader():
    old = plain(recipe('freeat_cifar10'))
    for field in ('replays', 'start', 'inner', 'he'):
        del old['defense'][field]
    assert completed(old)['defense'] == plain(recipe('freeat_cifar10'))['defense']
    own = {'defense': {'name': 'of_another_file', 'weights': {'mine': 1.0}}, 'data': 'damaged'}
    assert completed(own)['defense']['weights'] == {'mine': 1.0}
    assert completed(own)['data'] == 'damaged'
    assert completed({'defense': 3, 'model': []}) | {'defense': 3, 'model': []} == completed(
        {'defense': 3, 'model': []}
    )
