"""docs/figures.md has the numbers of the figures, the attacks and the runs on CIFAR-10."""

import json

import pytest

from benchmarks import claims
from benchmarks.marks import filled

PAGE = claims.PAGE.read_text()


def test_the_tables_are_the_results():
    assert filled(PAGE, claims.tables()) == PAGE
    assert all(f'<!-- {name} -->\n{table}\n' in PAGE for name, table in claims.tables().items())


@pytest.mark.parametrize('name', ['figure1', 'figure3', 'figure4', 'figure5', 'norms'])
def test_every_figure_is_shown_and_is_of_these_networks(name):
    assert f'../results/figures-cifar10/{name}.png' in PAGE
    assert (claims.FOLDER / f'{name}.png').is_file()
    content = json.loads((claims.FOLDER / f'{name}.json').read_text())
    assert content['dataset']['name'] == 'cifar10' and {one['width'] for one in content['models']} == {8}


def test_what_the_page_says_in_words():
    """In the figures: each sentence of the list holds of the numbers."""
    curves = json.loads((claims.FOLDER / 'figure1.json').read_text())['curves']
    for curve in curves:
        accuracy = curve['accuracy']
        assert len({*accuracy['sipgd']}) == len({*accuracy['pgd-cal']}) == 1 and len({*accuracy['pgd']}) > 3
        assert curve['best_pgd']['factor'] == 10
        assert accuracy['sipgd'][0] >= accuracy['pgd-cal'][0]
    plain, si = json.loads((claims.FOLDER / 'figure5.json').read_text())['histograms']
    assert si['mean']['true'] < plain['mean']['true']
    assert plain['mean']['other'] - si['mean']['other'] > plain['mean']['true'] - si['mean']['true']
    assert si['decision_agreement'] > plain['decision_agreement']
    plain, si, alone = json.loads((claims.FOLDER / 'norms.json').read_text())['curves']
    ends = [one['true_cosine'][0][-1] for one in (si, plain, alone)]
    assert ends == sorted(ends) and si['weight_norm'][0][-1] > plain['weight_norm'][0][-1]
