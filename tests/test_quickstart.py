"""The quickstart keeps its promise, and its network shows the paper's Fig. 1: only PGD sees the scale."""

import numpy as np
import pytest

import si_jax
from examples import quickstart
from si_jax import data
from si_jax.outputs import Outputs


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('quickstart')
    return folder, quickstart.main(str(folder))


def test_the_robust_net_resists_and_the_plain_one_does_not(finished):
    folder, results = finished
    assert results['tradessi'].accuracy['pgd'] >= 0.45
    assert results['standard'].accuracy['pgd'] <= 0.10
    assert results['standard'].accuracy['clean'] >= 0.85
    for name in ('standard', 'tradessi'):
        assert set(results[name].accuracy) == {'clean', 'pgd', 'cw', 'dlr', 'sipgd', 'worst_case'}
        assert (folder / f'{name}.json').is_file() and (folder / f'{name}.npz').is_file()
    assert (folder / 'quickstart.png').stat().st_size > 10_000
    table = quickstart.table(results)
    assert f'{100 * results["tradessi"].accuracy["pgd"]:.1f}' in table


def test_rescaled_logits_mislead_pgd_but_not_si_pgd(finished):
    folder, _ = finished
    model = si_jax.load_model(folder / 'tradessi', 'last')
    test = data.load('digits', 'test')
    images, labels = np.asarray(data.to_unit(test.images, test.scale)), test.labels

    def rescaled(factor):
        def classifier(x):
            outputs = model(x)
            return Outputs(factor * outputs.logits, outputs.features, outputs.kernel)

        return classifier

    factors = (1e-3, 1.0, 1e1, 1e2, 1e3)
    results = [si_jax.evaluate(rescaled(a), images, labels, attacks='pgd,sipgd', eps=0.2) for a in factors]
    pgd = [result.accuracy['pgd'] for result in results]
    assert max(pgd) - min(pgd) > 0.05 and pgd[-1] == max(pgd)
    assert len({result.accuracy['sipgd'] for result in results}) == 1
    assert all((result.correct['sipgd'] == results[0].correct['sipgd']).all() for result in results)
