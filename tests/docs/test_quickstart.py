"""The quickstart keeps its promise, and its network shows the paper's Fig. 1: only PGD sees the scale."""

import json
import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import si_jax
from si_jax import data
from si_jax.evaluation.classifier import with_logit_scale
from tests.helpers.browser import look
from tests.helpers.processes import optimised


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('quickstart')
    return folder, optimised('-m', 'examples.quickstart', f'--out={folder}')


def test_the_robust_net_resists_and_the_plain_one_does_not(finished):
    folder, printed = finished
    results = {name: json.loads((folder / f'{name}.json').read_text()) for name in ('standard', 'tradessi')}
    assert results['tradessi']['attacks']['pgd']['accuracy'] >= 0.45
    assert results['standard']['attacks']['pgd']['accuracy'] <= 0.10
    assert results['standard']['clean']['accuracy'] >= 0.85
    for name, result in results.items():
        assert set(result['attacks']) == {'pgd', 'cw', 'dlr', 'sipgd'}
        assert (folder / f'{name}.npz').is_file()
        assert f'{100 * result["worst_case"]["accuracy"]:.1f} [' in printed
    assert (folder / 'quickstart.png').stat().st_size > 10_000


def test_the_command_that_it_names_gives_the_same_numbers(finished, tmp_path):
    folder, printed = finished
    [command] = re.findall('The same by hand: python (.*)', printed)
    optimised(*shlex.split(command), f'--output={tmp_path / "again.json"}')
    again, first = (
        json.loads(path.read_text()) for path in (tmp_path / 'again.json', folder / 'tradessi.json')
    )
    assert again['attacks'] == first['attacks'] and again['clean'] == first['clean']


def test_the_report_is_one_file_with_the_numbers_of_the_results(finished):
    folder, printed = finished
    path = folder / 'report' / 'index.html'
    assert f'Report: {path}' in printed and path.stat().st_size < 5_000_000
    shown = {float(value) for value in re.findall('<data value="(.+?)">', path.read_text())}
    for name in ('standard', 'tradessi'):
        result = json.loads((folder / f'{name}.json').read_text())
        for entry in (result['clean'], result['worst_case'], *result['attacks'].values()):
            assert {entry['accuracy'], *entry['ci95']} <= shown


def test_the_report_is_sound_in_a_browser(finished):
    seen = look(finished[0] / 'report' / 'index.html')
    assert not seen.console and not seen.requests and seen.violations == []
    assert len(seen.images) == 60 and min(seen.images) > 0  # ten images of two networks, three pictures each
    assert max(seen.overflow.values()) <= 0 and seen.printed > 0


def test_rescaled_logits_mislead_pgd_but_not_si_pgd(finished):
    folder, _ = finished
    model = si_jax.load_model(folder / 'tradessi', 'last')
    test = data.load('digits', 'test')
    images, labels = np.asarray(data.to_unit(test.images[:100], test.scale)), test.labels[:100]

    factors = np.float32([1e-3, 1, 1e3])
    settings = {'attacks': 'pgd,sipgd', 'eps': 0.2, 'devices': jax.local_devices()[:1]}
    results = [
        # An array, which the compiled program takes as an argument: one program serves all factors.
        si_jax.evaluate(with_logit_scale(model, jnp.asarray(factor)), images, labels, **settings)
        for factor in factors
    ]
    pgd = [result.accuracy['pgd'] for result in results]
    assert max(pgd) - min(pgd) > 0.05 and pgd[-1] == max(pgd)
    assert len({result.accuracy['sipgd'] for result in results}) == 1
    assert all((result.correct['sipgd'] == results[0].correct['sipgd']).all() for result in results)
