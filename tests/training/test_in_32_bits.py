"""What users run: JAX's integers and floats have 32 bits there, where other tests have 64."""

import json

from tests.helpers.processes import quick


def test_a_batch_that_draws_images_twice_has_its_random_numbers(tmp_path):
    """`data.balanced` draws with replacement: an image that comes again in a batch has another key."""
    settings = {
        'data.balanced': True, 'data.validation': 8, 'data.limit': 64, 'batch_size': 32, 'epochs': 1,
        'model.arch': 'small_cnn', 'model.width': 2, 'attack.steps': 1, 'evaluation.steps': 1,
    }  # fmt: skip
    flags = [f'--config.{name}={value}' for name, value in settings.items()]
    quick('train.py', '--config=configs/digits.py:at', *flags, f'--workdir={tmp_path}')
    lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    assert any('loss' in json.loads(line) or 'train/loss' in json.loads(line) for line in lines)
