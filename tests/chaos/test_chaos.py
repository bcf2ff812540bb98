"""A few kills at random points, for the suite; `make chaos` makes 100."""

import random

import pytest

from si_jax.training.checkpoints import Checkpoints
from tests.chaos import page
from tests.chaos.injection import chain, uninterrupted
from tests.chaos.scenarios import Evaluation, Training, damage, differences


@pytest.mark.parametrize(
    ('scenario', 'kills', 'first'),
    [
        (Training(1), 3, [('SIGKILL', 'renamed'), ('REPLACED', ''), ('SIGTERM', 'other data')]),
        (Evaluation(1), 4, []),
        (Training(2), 1, []),
    ],
    ids=('training', 'evaluation', 'training-in-two-processes'),
)
def test_kills_at_random_points_lose_nothing(scenario, kills, first, tmp_path):
    expected, rng = uninterrupted(scenario, tmp_path / 'whole', fork=True), random.Random(scenario.name)
    assert len(expected) > 20
    done, attempt, made = 0, 0, []
    while done < kills:  # another run, if one ends before it was killed often enough
        attempt += 1
        place = tmp_path / str(attempt)
        one = chain(scenario, place, expected, kills - done, rng, fork=True, first=first[done:])
        assert not one.lost
        done += len(one.faults)
        made += one.faults
    assert attempt <= 3
    for words in ('renamed', 'other data, refused', 'REPLACED') if first else ():
        assert any(words in f'{fault.signal} {fault.damage}' for fault in made), made


def test_the_page_shows_the_results():
    text = page.PAGE.read_text()
    assert page.filled(text, page.tables()) == text
    for name, table in page.tables().items():
        if table:
            assert f'<!-- {name} -->\n{table}\n' in text


def test_a_difference_or_damage_would_be_seen(tmp_path):
    scenario = Training(1)
    folder = tmp_path / 'run' / 'checkpoints'
    for step in (2, 4):
        Checkpoints(folder).save(step, {'params': {'w': [0.5, float(step)]}}, metadata={}, metric=0.5)
    outcome = {'state/params/w': 1.0, 'step': 4}
    assert differences(outcome, dict(outcome)) == []
    assert differences(outcome, outcome | {'step': 2, 'more': 0}) == ['more', 'step']
    assert scenario.kept(tmp_path) == 4
    files = scenario.damageable(tmp_path)
    assert files and all(file.is_relative_to(folder / '4') for file in files)
    before = {file: file.read_bytes() for file in files}
    for seed in range(9):
        file = files[seed % len(files)]
        said = damage(file, random.Random(seed))
        assert said.split(':')[0] in ('flipped', 'truncated', 'missing')
        assert not file.exists() or file.read_bytes() != before[file]
        file.write_bytes(before[file])
