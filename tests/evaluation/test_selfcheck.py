"""Classifiers whose robust accuracy is known exactly: no cell of the self-check may be silently wrong."""

import numpy as np
import pytest

from benchmarks import selfcheck
from benchmarks.selfcheck import CASES, EXACT, REFUSED, SHORT, WARNED, WRONG, attacks, cell
from tests.helpers.searches import quicken


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
@pytest.mark.parametrize('classes', [2, 3, 10])
def test_the_closed_form_is_that_of_the_corners_of_the_ball(classes, norm):
    p = selfcheck.problem(classes, norm)
    assert 0 < p.withstands.sum() < len(p.labels)
    clean = np.argmax(np.asarray(p.logits(p.images)), axis=1) == p.labels
    assert clean[:-1].all() and not clean[-1] and not p.withstands[-1]
    for image, label, withstands in zip(p.images[:-1], p.labels, p.withstands, strict=False):
        # The nearest point of each boundary is along the difference of two weight vectors, in L1 in a pixel.
        ways = p.kernel - p.kernel[:, [label]]
        ways = {
            'linf': np.sign(ways),
            'l2': ways / np.maximum(np.linalg.norm(ways, axis=0), 1e-12),
            'l1': np.sign(ways) * (np.abs(ways) == np.abs(ways).max(axis=0)),
        }[norm]
        moved = image[None] + p.eps * ways.T.reshape(-1, *image.shape)
        assert moved.min() >= 0 and moved.max() <= 1
        fooled = np.argmax(np.asarray(p.logits(moved.astype(np.float32))), axis=1) != label
        assert fooled.any() == (not withstands)


@pytest.mark.parametrize('classifier', CASES)
def test_no_classifier_is_silently_wrong(classifier):
    one = cell(CASES[classifier], CASES[classifier].norms[0], 'pgd')
    assert one.verdict != WRONG, one
    if CASES[classifier].always:
        assert one.verdict in (WARNED, REFUSED)


@pytest.mark.parametrize('attack', attacks())
def test_no_attack_is_silently_wrong(attack, monkeypatch):
    if attack not in ('square', 'spsa'):  # which need their queries
        quicken(monkeypatch)
    one = cell(CASES['linear-3'], 'linf', attack)
    assert one.verdict in (EXACT, SHORT), one


@pytest.mark.parametrize('attack', ['fgsm', 'pgd', 'fab-t', 'autoattack'])
def test_the_exact_value_in_l1(attack, monkeypatch):
    quicken(monkeypatch)
    one = cell(CASES['linear-3'], 'l1', attack)
    assert one.verdict == EXACT, one


def test_restarts_free_si_pgd_in_l1():
    """From one start it may raise its loss by the length of the features alone."""
    assert cell(CASES['linear-3'], 'l1', 'sipgd(restarts=5)').verdict == EXACT


def test_an_attack_that_cannot_reach_an_l1_ball_is_named(monkeypatch):
    quicken(monkeypatch)
    one = cell(CASES['linear-3'], 'l1', 'rays')
    assert 'rays moves all pixels by as much' in one.words and one.verdict == WARNED
    assert 'moves all pixels' not in cell(CASES['linear-3'], 'linf', 'rays').words


def test_a_wrong_number_is_found(tmp_path, capsys, monkeypatch):
    case = CASES['blocked-gradient']._replace(warning=None)
    monkeypatch.setitem(CASES, 'blocked-gradient', case)
    page = tmp_path / 'page.md'
    page.write_text('before\n<!-- selfcheck -->\nold\n<!-- end of selfcheck -->\nafter\n')
    flags = ['--classifiers=blocked-gradient', '--attacks=pgd', f'--output={tmp_path / "found.json"}']
    assert selfcheck.main([*flags, f'--page={page}']) == 1
    assert '2 cells, 2 silently wrong' in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith('before\n') and text.endswith('after\n') and 'old' not in text
    assert f'| {case.about} | linf | 53.8 |  |  |  |  | 1 |' in text
    # What is not asked for again stays.
    other = [flags[0], '--attacks=square', *flags[2:], f'--page={page}']
    assert selfcheck.main(other) == 1
    assert '4 cells, 2 silently wrong' in capsys.readouterr().out
    assert f'| {case.about} | linf | 53.8 | 1 |  |  |  | 1 |' in page.read_text()
