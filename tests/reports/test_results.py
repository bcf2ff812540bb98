"""What the files of a run say of it."""

import pytest

from si_jax.reports.results import Run


@pytest.mark.parametrize(
    ('checkpoints', 'unfinished'),
    [
        ((), None),  # a copy of the run without them says nothing of them
        ((10, 20), None),
        ((10,), 'step 20, whose checkpoint is missing'),
    ],
)
def test_a_run_that_was_killed_before_its_last_checkpoint_is_not_finished(checkpoints, unfinished, tmp_path):
    for step in checkpoints:
        (tmp_path / 'checkpoints' / str(step)).mkdir(parents=True)
        (tmp_path / 'checkpoints' / str(step) / 'manifest.json').touch()
    lines = [{'epoch': 1, 'step': 10}, {'epoch': 2, 'step': 20}]
    assert Run(tmp_path, {'epochs': 2}, lines).unfinished == unfinished
    assert Run(tmp_path, {'epochs': 3}, lines).unfinished == 'epoch 2 of 3'
