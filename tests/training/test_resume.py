"""A run goes on from its own checkpoints, config and data only, and says what it changes."""

import json
import shutil

import numpy as np
import pytest

from si_jax import data, load_model, losses, objectives
from si_jax.defenses import DEFENSES, Term, register
from si_jax.errors import InputError
from si_jax.storage import manifest
from si_jax.training import hooks, recipes
from si_jax.training.checkpoints import Checkpoints, CorruptCheckpointWarning
from si_jax.training.loop import DivergedError, run
from si_jax.training.metrics import read_metrics
from si_jax.training.recipes import plain
from si_jax.training.resume import change
from si_jax.training.run import begin
from si_jax.training.setup import setup
from si_jax.training.workdir import open_workdir

STEPS = 3  # an epoch: 20 images in batches of 8


def images(first=0, count=28):
    digits = data.load('digits', 'train')
    return {'images': digits.images[first : first + count], 'labels': digits.labels[first : first + count]}


def save(folder, arrays):
    folder.mkdir(exist_ok=True)
    np.savez(folder / 'digits_train.npz', **arrays)
    return folder


def config(folder, **changes):
    small = {
        'data.dir': str(folder), 'data.validation': 8, 'batch_size': 8, 'model.width': 2, 'attack.steps': 1,
        'evaluation.steps': 1, 'logging.tensorboard': False, 'epochs': 2, 'schedule.kind': 'triangular',
        'schedule.peak': 0.1, 'checkpoint.keep_last': 5,
    }  # fmt: skip
    made = recipes.paper('standard', dataset='digits', arch='small_cnn')
    made.update_from_flattened_dict(small | changes)
    return made


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """Two epochs, with its data."""
    folder = tmp_path_factory.mktemp('finished')
    save(folder / 'data', images())
    run(config(folder / 'data'), str(folder / 'run'))
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def everything(folder):
    files = (path for path in folder.rglob('*') if path.is_file() and path.name != '.lock')
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refused(folder, made, *words):
    """The run is refused in these words, and nothing in its workdir is touched."""
    before = everything(folder / 'run')
    with pytest.raises(InputError) as caught:
        run(made, str(folder / 'run'))
    assert all(word in str(caught.value) for word in words), caught.value
    assert everything(folder / 'run') == before


def test_another_code_of_an_own_defense_is_refused(tmp_path, defenses_before):
    def loss_times(factor):
        return objectives.on_natural(lambda scores, labels: factor * losses.cross_entropy(scores, labels))

    def registered(factor):
        row = DEFENSES['standard']._replace(outer={'natural_ce': Term(1.0, loss_times(factor))})
        made = config(save(tmp_path / 'data', images()), epochs=1)
        made.defense.name = register('own_loss', row)
        return made

    run(registered(1.0), str(tmp_path / 'run'))
    run(registered(1.0), str(tmp_path / 'run'))
    refused(tmp_path, registered(2.0), "the code of the defense 'own_loss' was another", 'another --workdir')


def test_more_epochs_say_what_becomes_of_ramps_and_of_the_average(tmp_path):
    folder = save(tmp_path / 'data', images())

    def made(epochs):
        at = recipes.paper('at', dataset='digits', arch='small_cnn')
        small = {'data.dir': str(folder), 'data.validation': 8, 'batch_size': 8, 'epochs': epochs}
        longer = {'average.kind': 'ema', 'average.start': 0.5, 'ramp.eps': (0.0, 1.0)}
        at.update_from_flattened_dict(small | longer)
        return setup(at)

    step = 4 * STEPS
    _, words = change({'config': plain(made(4).config)}, made(12), step)
    assert '; the average of the weights begins anew; ramp.eps goes from 1 of its value to 0.417' in words
    assert 'average' not in change({'config': plain(made(11).config)}, made(12), step)[1]


def rewrite(folder, edit):
    """Writes the manifest of a checkpoint again, as a version of its own would have written it."""
    content = manifest.read(folder)
    del content['files']
    edit(content)
    manifest.write(folder, content)


def changed_pixel(arrays):
    arrays['images'][0, 3, 3, 0] ^= 1


def changed_label(arrays):
    arrays['labels'][27] = (arrays['labels'][27] + 1) % 10


def other_images(arrays):
    arrays |= images(100)


def fewer_images(arrays):
    arrays |= images(count=20)


@pytest.mark.parametrize('change', [changed_pixel, changed_label, other_images, fewer_images])
def test_other_data_are_refused_under_the_same_folder_or_another(copied, change):
    arrays = images()
    change(arrays)
    other = save(copied / 'other', arrays)
    words = [
        'data are',
        f'images from {copied.parent}'[:6],
        'with the digest',
        '--config.data.dir',
        str(other),
    ]
    refused(copied, config(other, epochs=4), *words)
    shutil.copytree(other, copied / 'data', dirs_exist_ok=True)
    refused(copied, config(copied / 'data', epochs=4), 'with the digest', 'another --workdir')
    save(copied / 'data', images())  # as it says
    assert int(run(config(copied / 'data'), str(copied / 'run')).step) == 2 * STEPS


def test_the_count_is_named_and_data_may_move(copied):
    refused(copied, config(save(copied / 'few', images(count=20)), epochs=4), '20 images', '12 images')
    moved = copied / 'moved'
    (copied / 'data').rename(moved)
    assert int(run(config(moved), str(copied / 'run')).step) == 2 * STEPS


def test_a_checkpoint_of_before_is_taken_with_a_note_unless_its_epochs_are_of_other_data(copied, capsys):
    for step in Checkpoints(copied / 'run/checkpoints').steps():
        rewrite(copied / f'run/checkpoints/{step}', lambda content: content['metadata'].pop('data'))
    run(config(copied / 'data'), str(copied / 'run'))
    assert 'did not write down its data' in capsys.readouterr().out
    few = save(copied / 'few', images(count=12))
    refused(copied, config(few, epochs=8), 'is position 0 of epoch 2, but an epoch has 1 steps')


def test_a_renamed_or_copied_checkpoint_is_passed_over_by_its_step(copied):
    folder = copied / 'run/checkpoints'
    (folder / '6').rename(folder / '9')
    checkpoints = Checkpoints(folder)
    assert checkpoints.steps() == [3] and checkpoints.best_step == 3
    with pytest.warns(CorruptCheckpointWarning, match='manifest.json is of step 6.* call it 6 to use it'):
        assert checkpoints.restore('last').step == 3
    with pytest.raises(InputError, match='no checkpoint of step 9|is of step 6'):
        checkpoints.restore(9)
    shutil.copytree(folder / '9', folder / '6')
    assert Checkpoints(folder).steps() == [3, 6]
    # One that is alone: it is not trained anew over it, and the remedy works.
    for step in (3, 6):
        shutil.rmtree(folder / str(step))
    with pytest.warns(CorruptCheckpointWarning, match='call it 6 to use it'):
        refused(copied, config(copied / 'data'), 'restore one as the warnings say')
    (folder / '9').rename(folder / '6')
    assert int(run(config(copied / 'data'), str(copied / 'run')).step) == 2 * STEPS


def test_a_whole_checkpoint_of_another_run_is_refused(copied):
    folder = copied / 'run/checkpoints'
    shutil.copytree(folder / '6', folder / '9')

    def foreign(content):
        content['step'] = 9
        content['metadata']['config']['seed'] = 1
        content['metadata']['config']['schedule']['peak'] = 0.2

    rewrite(folder / '9', foreign)
    words = ['checkpoints/9', 'another run', 'seed: 1 -> 0', 'schedule.peak: 0.2 -> 0.1', 'remove']
    refused(copied, config(copied / 'data', epochs=4), *words)
    shutil.rmtree(folder / '9')  # as it says
    run(config(copied / 'data'), str(copied / 'run'))
    # Neither is one that is not the latest, which could be the best.
    rewrite(folder / '3', lambda content: content['metadata']['config'].update(seed=1))
    refused(copied, config(copied / 'data'), 'checkpoints/3', 'seed: 1 -> 0')


def test_without_config_json_the_config_of_the_checkpoint_counts(copied):
    (copied / 'run/config.json').unlink()
    refused(copied, config(copied / 'data', seed=1), 'seed: 0 -> 1')
    run(config(copied / 'data'), str(copied / 'run'))
    assert load_model(copied / 'run').config.seed == 0


def test_a_start_that_fails_leaves_the_folder_to_another_config(tmp_path):
    folder = save(tmp_path / 'data', images())
    wrong = config(folder, **{'defense.name': 'freeat', 'threat.norm': 'l2'})
    with pytest.raises(InputError):
        run(wrong, str(tmp_path / 'run'))
    assert not list((tmp_path / 'run').glob('*.json'))


def test_fewer_epochs_than_done_are_refused_and_more_say_what_becomes_of_the_rate(finished, copied, capsys):
    refused(
        copied, config(copied / 'data', epochs=1), 'epochs=1', 'step 6, lies in epoch 2', 'epochs=2 or more'
    )
    state = run(config(copied / 'data', epochs=3), str(copied / 'run'))
    assert int(state.step) == 3 * STEPS
    said = capsys.readouterr().out
    assert (
        f'changed from step 6 on: data.dir {finished / "data"} -> {copied / "data"}, epochs 2 -> 3; ' in said
    )
    assert 'the rate goes from 0.0333 to 0.0667\n' in said
    (event,) = json.loads((copied / 'run/history.json').read_text())
    assert event['step'] == 6 and event['changed']['epochs'] == [2, 3]
    assert json.loads((copied / 'run/config.json').read_text())['epochs'] == 3
    # With nothing left to train nothing is written: the record is of what was done.
    run(config(copied / 'data', **{'epochs': 3, 'logging.every_steps': 7}), str(copied / 'run'))
    assert json.loads((copied / 'run/config.json').read_text())['logging']['every_steps'] == 50


def test_after_a_divergence_rate_and_clipping_may_change_and_are_written_down(tmp_path, capsys, monkeypatch):
    folder, place = save(tmp_path / 'data', images()), tmp_path / 'run'
    high = {
        'data.validation': 0,
        'schedule.kind': 'steps',
        'schedule.peak': 1e20,
        'checkpoint.every_steps': 1,
    }
    with pytest.raises(DivergedError) as caught:
        run(config(folder, **high), str(place))
    for words in (
        'a lower --config.schedule.peak than 1e+20',
        '--config.optimiser.clip_norm=1',
        f'--workdir={place}',
    ):
        assert words in str(caught.value)
    assert 'dtype' not in str(caught.value)  # it is float32 already
    step = Checkpoints(place / 'checkpoints').latest_step
    # Anything else is refused as ever.
    with pytest.raises(InputError, match='seed: 0 -> 1'):
        run(config(folder, **high | {'seed': 1, 'schedule.peak': 0.1}), str(place))
    changed = high | {'schedule.peak': 0.01, 'optimiser.clip_norm': 1.0}

    class Killed(BaseException):
        pass

    def killed(self, run):
        raise Killed

    # Killed after the checkpoints were removed, and before the change was written down.
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(hooks.Record, 'after_step', killed)
        run(config(folder, **changed), str(place))
    assert not Checkpoints(place / 'checkpoints').steps()
    state = run(config(folder, **changed), str(place))
    assert int(state.step) == 8 and Checkpoints(place / 'checkpoints').latest_step == 8
    said = capsys.readouterr().out
    assert 'going back before the divergence, to step 0' in said
    assert 'schedule.peak 1e+20 -> 0.01; the rate goes from 1e+20 to 0.01' in said
    assert [line['step'] for line in read_metrics(place / 'metrics.jsonl')] == [4, 8]
    assert json.loads((place / 'config.json').read_text())['optimiser']['clip_norm'] == 1.0
    history = json.loads((place / 'history.json').read_text())
    assert history[0]['step'] == step and 'gradient_norm' in history[0]['diverged']
    assert history[1:] == [
        {'step': 0, 'changed': {'optimiser.clip_norm': [0.0, 1.0], 'schedule.peak': [1e20, 0.01]}}
    ]
    # It has gone on since: the rate is fixed again.
    with pytest.raises(InputError, match=r'schedule.peak: .* -> 0.5'):
        run(config(folder, **changed | {'schedule.peak': 0.5}), str(place))


@pytest.mark.parametrize('content', ['[', '{}', '[1]', '[{"step": 1}]', '[{"step": 1, "diverged": 3}]'])
def test_a_damaged_history_is_named(copied, content):
    (copied / 'run/history.json').write_text(content)
    refused(copied, config(copied / 'data'), 'history.json is damaged', 'remove it')


def test_a_deleted_or_replaced_workdir_ends_the_run_and_is_not_written_into(copied, monkeypatch):
    place, away = copied / 'run', copied / 'away'
    before = hooks.Preemption.after_step
    others = copied / 'others'
    shutil.copytree(place, others)

    def replacing(self, run):
        before(self, run)
        if run.step == 2 * STEPS + 1:
            place.rename(away)
            others.rename(place)

    monkeypatch.setattr(hooks.Preemption, 'after_step', replacing)
    kept = everything(place)
    with pytest.raises(OSError, match='was deleted, moved or replaced while this run was in it'):
        run(config(copied / 'data', epochs=3), str(place))
    assert everything(place) == kept
    monkeypatch.undo()
    # Put back, as it says, it goes on.
    shutil.rmtree(place)
    away.rename(place)
    with open_workdir(place, plain(config(copied / 'data', epochs=3))) as opened:
        assert begin(setup(config(copied / 'data', epochs=3)), opened).step == 2 * STEPS


def test_copies_across_the_split_are_counted(tmp_path):
    arrays = images(count=20)
    twice = {name: np.concatenate([array, array]) for name, array in arrays.items()}
    made = config(save(tmp_path, twice), **{'data.validation': 15})
    with pytest.warns(UserWarning, match='held-out images are also trained on, pixel for pixel') as caught:
        ready = setup(made)
    trained = {image.tobytes() for image in ready.train.images}
    count = sum(image.tobytes() in trained for image in ready.validation.images)
    assert 0 < count < 15 and str(caught[0].message).startswith(f'{count} of 15 ')
    assert str(tmp_path / 'digits_train.npz') in str(caught[0].message)
    np.savez(tmp_path / 'digits_train.npz', **arrays)  # without the copies, as it says
    setup(config(tmp_path))  # a warning is an error in this suite
