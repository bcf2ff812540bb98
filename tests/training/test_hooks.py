"""What a run reports and prints of its epochs: figures that weigh images, a header, symptoms, its end."""

import types

import numpy as np
import pytest

from configs import quickstart
from si_jax.errors import InputError
from si_jax.reports.results import scan
from si_jax.training import hooks, recipes
from si_jax.training.checkpoints import Checkpoints
from si_jax.training.loop import run
from si_jax.training.metrics import read_metrics
from si_jax.training.setup import setup

ROWS, HELD_OUT = 65, 40
STUCK = {'schedule.peak': 1e-9, 'epochs': 6, 'patience': 2, 'checkpoint.every_steps': 1}


def config(**changes):
    """Training without an attack on a few digits, in batches of 64 and 1."""
    made = quickstart.get_config()
    made.defense = recipes.defense('standard')
    made.update_from_flattened_dict(
        {'data.limit': ROWS, 'data.validation': HELD_OUT, 'batch_size': 64, 'epochs': 3, 'model.width': 4,
         'evaluation.steps': 1, 'logging.tensorboard': False, 'checkpoint.keep_last': 9} | changes
    )  # fmt: skip
    return made


def lines_of(workdir):
    return list(read_metrics(workdir / 'metrics.jsonl'))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A run in which nothing is learned: its folder and what it printed."""
    workdir = tmp_path_factory.mktemp('hooks') / 'a run'
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr(hooks.Metrics, 'ENOUGH', 0.0)
        patch.setattr('builtins.print', lambda *words, **_: printed.append(' '.join(map(str, words))))
        patch.setattr('si_jax.training.hooks.tqdm.write', lambda text, **_: printed.append(text))
        run(config(**STUCK), str(workdir))
    return workdir, printed


def test_every_training_figure_weighs_images(whole):
    for line in lines_of(whole[0]):
        right = line['train/nat_accuracy'] * ROWS
        assert right == pytest.approx(round(right), abs=1e-4)  # a count of images; of steps it was none
        # With a learning rate of next to nothing, the loss is that of the whole set: of 64 images and of 1.
        assert line['train/loss'] == pytest.approx(lines_of(whole[0])[0]['train/loss'], rel=1e-5)


def test_sums_of_an_older_checkpoint_are_those_of_whole_batches(whole):
    """In the middle of an epoch every batch before was whole: its share is 1, as it was in older versions."""
    sums = Checkpoints(whole[0] / 'checkpoints').restore(1).metadata['epoch_sums']
    assert sums['loss'] == sums['start_loss'] and sums['nat_accuracy'] * 64 == pytest.approx(
        round(sums['nat_accuracy'] * 64), abs=1e-4
    )


def test_the_log_says_what_is_trained_explains_its_columns_and_ends_with_the_next_command(whole):
    workdir, printed = whole
    text = '\n'.join(printed)
    assert text.startswith('network: small_cnn, ')
    for words in (
        'images: digits, 65 to train on and 40 held out, of 8 x 8 x 1',
        '10 classes',
        'threat: linf, eps 0.2 of the pixel range',
        'defense: standard, loss: 1 natural_ce',
        'rate 1e-09',
        '12 steps in all',
        'devices of each: ',
    ):
        assert words in text, words
    assert text.count("each epoch's line: ") == 1 and text.count('best checkpoint is chosen') == 1
    assert text.index("each epoch's line: ") < text.index('epoch 1/6')
    assert text.count('expected time: about ') == 1
    assert printed[-1] == f"next: python evaluate.py --workdir='{workdir}'"


def test_patience_ends_a_run_is_recorded_and_a_resume_finds_it_ended(whole, capsys):
    workdir, printed = whole
    lines = lines_of(workdir)
    assert [line['epoch'] for line in lines] == [1, 2, 3]  # the first is the best, and two more did not rise
    assert [line.get('ended') for line in lines] == [None, None, 'patience']
    assert any(text.startswith('patience: ') and 'since epoch 1' in text for text in printed)
    watched = Checkpoints(workdir / 'checkpoints').restore('last').metadata['watched']
    assert watched['reason'] == 'patience' and watched['stopped_at'] == 3 and watched['best_epoch'] == 1
    run(config(**STUCK), str(workdir))
    assert lines_of(workdir) == lines and 'next: python evaluate.py' in capsys.readouterr().out
    (found,) = scan(workdir).runs
    assert found.unfinished is None and not found.guarded


def test_the_last_epoch_has_accuracies_by_class(whole):
    *before, last = lines_of(whole[0])
    ready = setup(config())
    counts = np.bincount(ready.validation.labels, minlength=10)
    for name in ('natural', 'pgd', 'calibrated_pgd'):
        by_class = [last[f'validation/class_{label}/{name}_accuracy'] for label in range(10)]
        assert np.dot(by_class, counts) / HELD_OUT == pytest.approx(last[f'validation/{name}_accuracy'])
    assert not any('class_0' in name for line in before for name in line)
    assert any(text.startswith('weakest class under calibrated PGD: ') for text in whole[1])


def test_a_network_that_answers_one_class_is_named_once_and_the_remedy_works(tmp_path, capsys):
    rate = {'schedule.peak': 8.0, 'data.limit': 800, 'epochs': 3, 'batch_size': 16}
    run(config(**rate), str(tmp_path / 'high'))
    out = capsys.readouterr().out
    assert out.count('warning: one class: ') == 1 and f'each of the {HELD_OUT} held-out images' in out
    named = [line.get('symptoms') for line in lines_of(tmp_path / 'high')]
    assert sum('one class' in (one or '') for one in named) == 1
    run(config(**rate | {'schedule.peak': 0.1}), str(tmp_path / 'lower'))
    assert 'warning: ' not in capsys.readouterr().out


@pytest.mark.parametrize(
    'weights', [(1.0, 2.0), (0.0,) + (1.0,) * 9, ('a',) * 10], ids=['few', 'zero', 'text']
)
def test_class_weights_that_cannot_be(weights):
    with pytest.raises(InputError, match=r'data.class_weights=.* must be 10 positive numbers.*\(1.0,1.0,'):
        setup(config(**{'data.class_weights': weights}))


def test_a_negative_patience():
    with pytest.raises(InputError, match='patience=-1 is negative: give a number of epochs, or 0'):
        setup(config(patience=-1))


def test_only_two_steps_are_under_way_so_that_a_signal_is_heard_soon():
    waited, ahead = [], hooks.Ahead()

    class Step:
        def __init__(self, number):
            self.number = number

        def block_until_ready(self):
            waited.append(self.number)

    for number in range(1, 6):
        ahead.after_step(types.SimpleNamespace(metrics=Step(number)))
        assert waited == list(range(1, number - 1))
