"""The quickstart keeps its promise, and its network shows the paper's Fig. 1: only PGD sees the scale."""

import json
import re
import shlex

import pytest

from tests.helpers.browser import look
from tests.helpers.processes import light, optimised


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


# A factor as an array is an argument of the compiled program: one serves all factors.
RESCALED = """
import json, sys
import jax.numpy as jnp
import numpy as np
import si_jax
from si_jax import data
from si_jax.evaluation.classifier import with_logit_scale

model, test = si_jax.load_model(sys.argv[1], 'last'), data.load('digits', 'test')
images, labels = np.float32(test.images[:100]) / test.scale, test.labels[:100]
for factor in (1e-3, 1.0, 1e3):
    scaled = with_logit_scale(model, jnp.float32(factor))
    result = si_jax.evaluate(scaled, images, labels, attacks='pgd,sipgd', eps=0.2)
    print(json.dumps([result.accuracy['pgd'], result.correct['sipgd'].tolist()]))
"""


def test_rescaled_logits_mislead_pgd_but_not_si_pgd(finished):
    printed = light('-c', RESCALED, finished[0] / 'tradessi').splitlines()[-3:]
    pgd, sipgd = zip(*map(json.loads, printed), strict=True)
    assert max(pgd) - min(pgd) > 0.05 and pgd[-1] == max(pgd)
    assert len(sipgd[0]) == 100 and sipgd[0] == sipgd[1] == sipgd[2]
