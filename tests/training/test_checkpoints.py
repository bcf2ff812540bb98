"""Checkpoints: bit-equal arrays, only whole ones taken, none lost to a failing save."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from si_jax.errors import InputError
from si_jax.storage import manifest
from si_jax.training.checkpoints import Checkpoints, CorruptCheckpointWarning


class State(NamedTuple):
    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    carry: Any


def make_state(value: float = 1.0, width: int = 4) -> State:
    """Every dtype and container that a training state has, with values that no rounding survives."""
    params = {
        'conv': {'kernel': np.full((3, width), value / 3, np.float32), 'bias': np.zeros(width, np.float64)},
        'half': np.asarray(jnp.arange(5, dtype=jnp.bfloat16) / 7),
        'odd': np.array([np.nan, np.inf, -0.0, 1e-45], np.float32),
    }
    optimiser = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))
    return State(
        step=np.int32(7),
        params=params,
        batch_stats={'bn': {'mean': np.full(width, value / 3, np.float64), 'seen': np.array([True, False])}},
        opt_state=optimiser.init(params),
        carry=(),
    )


def assert_bit_equal(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert isinstance(one, np.ndarray)
        assert one.dtype == other.dtype and one.shape == other.shape
        assert one.tobytes() == np.asarray(other).tobytes()


def saved(directory: Path, steps: dict[int, float | None], **options: Any) -> Checkpoints:
    checkpoints = Checkpoints(directory, **options)
    for step, metric in steps.items():
        checkpoints.save(step, make_state(step), metadata={'position': step}, metric=metric)
    return checkpoints


def test_restores_every_dtype_and_structure_bit_equal(tmp_path):
    state = make_state()
    metadata = {'arch': 'small_cnn', 'seed': 3, 'position': [1, 0.1], 'none': None}
    Checkpoints(tmp_path).save(7, state, metadata=metadata, metric=0.25)
    restored = Checkpoints(tmp_path).restore('last', like=state)
    assert_bit_equal(restored.state, state)
    assert isinstance(restored.state, State)
    assert (restored.step, restored.metadata, restored.metric) == (7, metadata, 0.25)


def test_restores_into_abstract_arrays(tmp_path):
    state = make_state()
    Checkpoints(tmp_path).save(7, state, metadata={})
    abstract = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, state))
    assert_bit_equal(Checkpoints(tmp_path).restore(7, like=abstract).state, state)


def test_saves_replicated_and_row_sharded_arrays_in_global_order(tmp_path):
    mesh = jax.make_mesh((8,), ('batch',), axis_types=(jax.sharding.AxisType.Auto,))
    rows = np.arange(32, dtype=np.float32).reshape(16, 2)
    replicated = jax.device_put(rows, jax.NamedSharding(mesh, jax.P()))
    sharded = jax.device_put(rows[::-1], jax.NamedSharding(mesh, jax.P('batch')))
    Checkpoints(tmp_path).save(0, {'params': replicated, 'carry': sharded}, metadata={})
    restored = Checkpoints(tmp_path).restore().state
    assert_bit_equal(restored, {'params': rows, 'carry': rows[::-1].copy()})


def test_the_state_may_be_donated_after_saving(tmp_path):
    state = {'params': jnp.arange(64, dtype=jnp.float32)}
    before = np.array(state['params'])
    Checkpoints(tmp_path).save(0, state, metadata={})
    after = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)(state)
    assert state['params'].is_deleted() and after['params'][0] == -1
    assert_bit_equal(Checkpoints(tmp_path).restore().state, {'params': before})


def test_evaluation_reads_chosen_fields_on_another_number_of_devices(tmp_path):
    state = make_state()
    mesh = jax.make_mesh((8,), ('batch',), axis_types=(jax.sharding.AxisType.Auto,))
    Checkpoints(tmp_path).save(
        7, jax.device_put(state, jax.NamedSharding(mesh, jax.P())), metadata={'arch': 'x'}
    )
    script = (
        'import sys, jax; from si_jax.training.checkpoints import Checkpoints\n'
        'jax.config.update("jax_enable_x64", True)\n'
        'state = Checkpoints(sys.argv[1]).restore(only=("params", "batch_stats")).state\n'
        'print(jax.device_count(), sorted(state), jax.device_put(state["batch_stats"]["bn"]["mean"]))'
    )
    environment = os.environ | {'XLA_FLAGS': '', 'PYTHONPATH': str(Path(__file__).parents[2])}
    arguments = [sys.executable, '-c', script, str(tmp_path)]
    output = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True).stdout
    assert (
        output.split('\n')[0] == "1 ['batch_stats', 'params'] [0.33333333 0.33333333 0.33333333 0.33333333]"
    )


def test_chosen_fields_can_be_checked_and_may_be_empty(tmp_path):
    state = make_state()
    Checkpoints(tmp_path).save(7, state._replace(batch_stats={}), metadata={})
    fields = ('params', 'batch_stats')
    assert_bit_equal(
        Checkpoints(tmp_path).restore(only=fields).state, {'params': state.params, 'batch_stats': {}}
    )
    like = {'params': state.params, 'batch_stats': {}}
    assert_bit_equal(Checkpoints(tmp_path).restore(only=fields, like=like).state, like)
    with pytest.raises(InputError, match=r'batch_stats/bn/mean is absent there and \(4,\) float64 here'):
        Checkpoints(tmp_path).restore(only=fields, like=like | {'batch_stats': state.batch_stats})


def test_another_architecture_names_the_first_path_and_both_shapes(tmp_path):
    Checkpoints(tmp_path).save(7, make_state(width=4), metadata={'arch': 'resnet18'})
    wider = make_state(width=6)
    with pytest.raises(InputError, match=r'arch=resnet18.*params/conv/bias is \(4,\) .* \(6,\) float64 here'):
        Checkpoints(tmp_path).restore(like=wider)


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda s: s._replace(params=s.params | {'new': np.zeros(2)}), r'params/new is absent there'),
        (lambda s: s._replace(carry=np.zeros(2)), r'carry is absent there and \(2,\) float64 here'),
        (
            lambda s: s._replace(batch_stats={}),
            r'batch_stats/bn/mean is \(4,\) float64 there and absent here',
        ),
        (lambda s: s._replace(step=np.int64(0)), r'step is \(\) int32 there and \(\) int64 here \(1 of 11'),
    ],
)
def test_every_kind_of_difference_is_named(tmp_path, change, message):
    Checkpoints(tmp_path).save(7, make_state(), metadata={})
    with pytest.raises(InputError, match=message):
        Checkpoints(tmp_path).restore(like=change(make_state()))


def test_keeps_the_last_and_the_best(tmp_path):
    checkpoints = saved(tmp_path, {1: 0.1, 2: 0.5, 3: None, 4: 0.3, 5: float('nan'), 6: None})
    assert checkpoints.steps() == [2, 5, 6]
    assert (checkpoints.latest_step, checkpoints.best_step) == (6, 2)
    assert Checkpoints(tmp_path).restore('best').metadata == {'position': 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ['2', '5', '6']
    reopened = saved(
        tmp_path, {7: 0.5, 8: 0.2}
    )  # the metric is known after a restart, and of equals the later wins
    assert (reopened.steps(), reopened.best_step) == ([7, 8], 7)


def test_keep_last(tmp_path):
    assert saved(tmp_path, {1: 0.9, 2: 0.1, 3: 0.2}, keep_last=1).steps() == [1, 3]
    with pytest.raises(InputError, match='keep_last=0 is below 1'):
        Checkpoints(tmp_path, keep_last=0)


def test_the_checkpoint_just_saved_is_kept_even_below_the_latest(tmp_path):
    checkpoints = saved(tmp_path, {10: 0.5, 20: None, 30: None})
    checkpoints.save(15, make_state(15), metadata={})
    assert checkpoints.steps() == [10, 15, 20, 30]


def test_a_complete_checkpoint_is_replaced_only_for_a_reason(tmp_path):
    checkpoints = saved(tmp_path, {5: None})
    assert not checkpoints.save(5, make_state(0), metadata={'position': 0})
    assert checkpoints.save(5, make_state(1), metadata={'position': 1}, metric=0.5)
    assert not checkpoints.save(5, make_state(2), metadata={'position': 2}, metric=0.6)
    assert checkpoints.restore(5).metadata == {'position': 1} and checkpoints.best_step == 5
    assert checkpoints.save(5, make_state(3), metadata={'position': 3}, force=True)
    assert_bit_equal(checkpoints.restore(5, like=make_state()).state, make_state(3))
    assert checkpoints.best_step is None
    assert [path.name for path in tmp_path.iterdir()] == ['5']


def test_no_checkpoint(tmp_path):
    for directory in (tmp_path, tmp_path / 'absent'):
        checkpoints = Checkpoints(directory)
        assert (checkpoints.steps(), checkpoints.latest_step, checkpoints.best_step) == ([], None, None)
        with pytest.raises(InputError, match='no checkpoint in .*train first'):
            checkpoints.restore()
    assert not (tmp_path / 'absent').exists()


def test_a_checkpoint_that_is_not_there(tmp_path):
    checkpoints = saved(tmp_path, {1: None, 2: None})
    with pytest.raises(InputError, match=r'no checkpoint of step 3 .* only of \[1, 2\]'):
        checkpoints.restore(3)
    with pytest.raises(InputError, match='no checkpoint with a held-out robust accuracy'):
        checkpoints.restore('best')
    with pytest.raises(InputError, match="unknown checkpoint 'lst': did you mean last"):
        checkpoints.restore('lst')
    assert checkpoints.restore('1').step == 1


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.fixture(scope='module')
def two(tmp_path_factory) -> Path:
    """A directory with checkpoints of steps 1 and 2, to be copied and damaged."""
    directory = tmp_path_factory.mktemp('two')
    saved(directory, {1: 0.5, 2: 0.9})
    return directory


@pytest.mark.parametrize('harm', [flip, truncate, Path.unlink])
def test_damage_to_any_file_is_detected_and_the_previous_checkpoint_used(two, tmp_path, harm):
    names = files_of(two / '2')
    assert manifest.NAME in names and any(name.startswith('state/') for name in names)
    for index, name in enumerate(names):
        file = two / '2' / name
        if not file.stat().st_size and harm is not Path.unlink:
            continue  # nothing in it to flip or cut off
        directory = tmp_path / str(index)
        shutil.copytree(two, directory)
        harm(directory / '2' / name)
        with pytest.raises(InputError, match=f'{directory}/2 is not usable: .*{Path(name).name}.*last.*1'):
            Checkpoints(directory).restore(2)
        if name == manifest.NAME:  # its metric is unknown, so 1 is the best of the others
            with pytest.warns(CorruptCheckpointWarning, match=f'{directory}/2 is not used: .*{name}'):
                assert Checkpoints(directory).restore('best').step == 1
        else:
            with pytest.raises(InputError, match='2 is not usable'):
                Checkpoints(directory).restore('best')
        with pytest.warns(CorruptCheckpointWarning, match=f'{directory}/2 is not used: .*{Path(name).name}'):
            restored = Checkpoints(directory).restore('last', like=make_state())
        assert restored.step == 1
        assert_bit_equal(restored.state, make_state(1))


def test_every_flipped_byte_of_a_manifest_is_detected(two, tmp_path):
    file = tmp_path / manifest.NAME
    content = (two / '2' / manifest.NAME).read_bytes()
    for position in range(0, len(content), 7):
        file.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        assert manifest.read(tmp_path) is None
    file.write_bytes(content)
    assert manifest.read(tmp_path)['step'] == 2
    file.write_bytes(b'[' * 100_000)
    assert manifest.read(tmp_path) is None


def test_all_damaged(two, tmp_path):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    for step in '12':
        flip(tmp_path / step / 'state' / 'manifest.ocdbt')
    with (
        pytest.warns(CorruptCheckpointWarning),
        pytest.raises(InputError, match=r'no checkpoint in .* \(2 incomplete or damaged\)'),
    ):
        Checkpoints(tmp_path).restore()


def test_training_goes_on_over_a_damaged_checkpoint(two, tmp_path):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    flip(tmp_path / '2' / 'state' / 'manifest.ocdbt')
    checkpoints = Checkpoints(tmp_path)
    with pytest.warns(CorruptCheckpointWarning):
        checkpoints.restore()
    assert (checkpoints.latest_step, checkpoints.best_step) == (1, 1)
    assert checkpoints.save(2, make_state(22), metadata={})
    assert checkpoints.steps() == [1, 2]
    assert_bit_equal(Checkpoints(tmp_path).restore(like=make_state()).state, make_state(22))


def test_a_checkpoint_of_a_later_format_is_named(two, tmp_path, monkeypatch):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(manifest, 'FORMAT', 2)
    with pytest.raises(InputError, match='it has format 1, this version of si_jax reads format 2'):
        Checkpoints(tmp_path).restore(1)


KILLED = """
import os, sys
import numpy as np
from si_jax.storage import manifest
from si_jax.training import checkpoints
kept = checkpoints.Checkpoints(sys.argv[1])
kept.save(1, {'params': np.ones(3)}, metadata={})
manifest.write = lambda *_: os.kill(os.getpid(), 9)
kept.save(int(sys.argv[2]), {'params': np.zeros(3)}, metadata={}, force=True)
"""


@pytest.mark.parametrize('step', [1, 2])
def test_killed_before_the_manifest_the_previous_checkpoint_stays(tmp_path, step):
    environment = os.environ | {'PYTHONPATH': str(Path(__file__).parents[2])}
    process = subprocess.run([sys.executable, '-c', KILLED, str(tmp_path), str(step)], env=environment)
    assert process.returncode == -9
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [1]
    np.testing.assert_array_equal(checkpoints.restore(1).state['params'], np.ones(3))
    assert checkpoints.save(2, {'params': np.full(3, 2.0)}, metadata={})
    assert checkpoints.save(1, {'params': np.full(3, 1.0)}, metadata={}, force=True)
    assert checkpoints.steps() == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['1', '2']


@pytest.mark.parametrize('step', [2, 3])
def test_a_full_disk_leaves_the_last_good_checkpoint_and_says_so(two, tmp_path, monkeypatch, step):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    before = files_of(tmp_path)

    def full(self, directory, *args, **kwargs):
        (directory / 'half').write_bytes(b'half written')
        raise ValueError('OUT_OF_RANGE: error writing') from OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'save', full)
    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'async_save', full)
    with pytest.raises(
        OSError, match=f'disk full while saving step {step} .*last good checkpoint is step 2'
    ) as info:
        Checkpoints(tmp_path).save(step, make_state(9), metadata={}, force=True)
    assert info.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert files_of(tmp_path) == before
    assert_bit_equal(Checkpoints(tmp_path).restore(like=make_state()).state, make_state(2))


def test_a_limit_on_the_size_of_files_is_a_full_disk(two, tmp_path, no_room, capfd):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    before = files_of(tmp_path)
    large = {'params': np.random.default_rng(0).normal(size=200_000)}
    with no_room(100_000):
        with pytest.raises(
            OSError, match=r'disk full while saving step 3 .*1\.5 MiB: .* good checkpoint is step 2'
        ):
            Checkpoints(tmp_path).save(3, large, metadata={})
    assert 'Traceback' not in capfd.readouterr().err
    assert files_of(tmp_path) == before
    assert_bit_equal(Checkpoints(tmp_path).restore(like=make_state()).state, make_state(2))
    assert Checkpoints(tmp_path).save(3, large, metadata={})


def test_a_full_disk_at_the_manifest(two, tmp_path, monkeypatch):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)

    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='disk full while saving step 3'):
        Checkpoints(tmp_path).save(3, make_state(), metadata={})
    assert Checkpoints(tmp_path).steps() == [1, 2]


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('not a folder')
    with pytest.raises(OSError, match='could not save step 1 .* no earlier checkpoint exists'):
        Checkpoints(tmp_path / 'file').save(1, make_state(), metadata={})


def test_metadata_that_is_not_json_is_refused_before_writing(tmp_path):
    with pytest.raises(TypeError, match='not JSON serializable'):
        Checkpoints(tmp_path).save(1, make_state(), metadata={'config': object()})
    assert not any(tmp_path.iterdir())
