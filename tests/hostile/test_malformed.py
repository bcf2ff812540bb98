"""Malformed inputs end in one clear error: nothing is run, nothing hangs, nothing is written.

The suite tries few. SI_JAX_MALFORMED=5000 tries many times as many (`make chaos`), and with
SI_JAX_MALFORMED_RESULTS=FILE.json their counts are written there.
"""

import contextlib
import json
import os
import signal
import sys
import warnings
from collections import Counter
from unittest import mock

import numpy as np
import pytest
from absl import flags
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import config_flags

from configs import quickstart
from si_jax import InputError, data
from si_jax.evaluation import cosines
from si_jax.evaluation.compare import check_alike
from si_jax.evaluation.result import Result
from si_jax.evaluation.state import Saved, remember
from si_jax.reports import render, results
from si_jax.runtime.environment import environment
from si_jax.storage import manifest
from si_jax.storage.files import write_json
from si_jax.training import metrics, workdir
from si_jax.training.checkpoints import Checkpoints
from si_jax.training.loop import setup
from si_jax.zoo import load
from tests.hostile import inputs

TRIED = int(os.environ.get('SI_JAX_MALFORMED', '560'))
COUNTS: dict[str, Counter] = {}
SECONDS = 20  # more is a hang
VIOLATIONS = ('unclear', 'executed', 'hung', 'written')


def malformed(share):
    """Runs a test on a share of all inputs."""
    return settings(
        max_examples=max(1, round(share * TRIED)), deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip


@contextlib.contextmanager
def refused(target, folder, *also):
    """What is inside must raise InputError (or one of `also`), or come to what the valid input comes to.

    In neither case may it run anything, take long, warn, or change the folder.
    """

    counts = COUNTS.setdefault(target, Counter())

    def hangs(*_):
        counts['hung'] += 1
        raise AssertionError(f'{target} took more than {SECONDS} s')

    before = snapshot(folder)
    old = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)
            yield
        counts['harmless'] += 1
    except (InputError, *also) as error:
        assert len(str(error)) > 20
        counts['refused'] += 1
    except Exception:
        counts['unclear'] += 1
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    executed, after = inputs.MARKER.exists(), snapshot(folder)
    counts['executed'] += executed
    counts['written'] += after != before
    assert not executed, f'{target} executed its input'
    assert after == before


def snapshot(folder):
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.name != '.lock'
    }


@pytest.fixture(scope='module', autouse=True)
def counted():
    inputs.MARKER.unlink(missing_ok=True)
    yield
    if output := os.environ.get('SI_JAX_MALFORMED_RESULTS'):
        known = environment()
        write_json(output, {
            'inputs': sum(one['refused'] + one['harmless'] for one in COUNTS.values()),
            'refused': sum(one['refused'] for one in COUNTS.values()),
            **{kind: sum(one[kind] for one in COUNTS.values()) for kind in VIOLATIONS},
            'targets': {name: dict(one) for name, one in sorted(COUNTS.items())},
            'command': f'SI_JAX_MALFORMED={TRIED} python -m pytest tests/hostile',
            'environment': {key: value for key, value in known.items() if key != 'command'},
        })  # fmt: skip


IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
ARRAYS = {'images': IMAGES, 'labels': np.array([1, 2, 3])}


@pytest.fixture(scope='module')
def npz(tmp_path_factory):
    folder = tmp_path_factory.mktemp('npz')
    path = folder / 'cifar10_test.npz'
    np.savez(path, **ARRAYS)
    return path, path.read_bytes()


@malformed(0.25)
@given(st.data())
def test_images(npz, draws):
    path, whole = npz
    path.write_bytes(inputs.archive(draws.draw, ARRAYS, whole))
    with refused('npz of images', path.parent):
        read = data.load('cifar10', 'test', path.parent)
        # A byte that means nothing, or other pixels and labels that are as good as any.
        assert read.images.dtype == np.uint8 and read.images.shape[1:] == (32, 32, 3)
        assert len(read.images) == len(read.labels) <= 4 and set(read.labels) <= set(range(10))


@pytest.fixture(scope='module')
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp('result')
    correct = {'clean': [True, True, False], 'pgd': [True, False, False], 'worst_case': [True, False, False]}
    flags_ = {name: np.array(flag) for name, flag in correct.items()}
    arrays = flags_ | {'labels': np.arange(3), 'indices': np.arange(3)}
    accuracy = {name: {'accuracy': float(flag.mean()), 'ci95': [0, 1]} for name, flag in flags_.items()}
    about = {
        'schema': 1, 'dataset': {'name': 'digits', 'split': 'test', 'classes': 10, 'examples': 3},
        'threat_model': {'norm': 'linf', 'eps': 0.2}, 'seed': 0, 'precision': {'search': 'float32'},
        'clean': accuracy['clean'], 'attacks': {'pgd': accuracy['pgd'] | {'steps': 20, 'restarts': 1}},
        'worst_case': accuracy['worst_case'], 'warnings': [], 'environment': {}, 'timing': {},
    }  # fmt: skip
    np.savez(folder / 'r.npz', **arrays)
    (folder / 'r.json').write_text(json.dumps(about))
    return folder, about, arrays, (folder / 'r.npz').read_bytes()


@malformed(0.2)
@given(st.data())
def test_results(result, draws):
    folder, about, arrays, whole = result
    text, flags_ = json.dumps(about).encode(), whole
    kind = draws.draw(st.sampled_from(('json', 'json', 'bytes', 'flags', 'deep')))
    if kind == 'json':
        text = json.dumps(inputs.changed_json(draws.draw, about)).encode()
    elif kind == 'bytes':
        text = inputs.changed_bytes(draws.draw, text)
    elif kind == 'deep':
        text = draws.draw(st.sampled_from((b'[' * 10**5, b'{"a":' * 10**5, b'1' * 10**5, b'\xff\xfe', b'')))
    else:
        flags_ = inputs.archive(draws.draw, arrays, whole)
    (folder / 'r.json').write_bytes(text)
    (folder / 'r.npz').write_bytes(flags_)
    with refused('results JSON and flags', folder):
        one = Result.load(folder / 'r.json')
        check_alike(one, one)
    with refused('results JSON in a folder', folder):
        results.scan(folder)


SI = dict.fromkeys(cosines.FIELDS, 0.5)
STAGE = {'attack': 'apgd-ce', 'accuracy': 0.5, 'broken': 3, 'attacked': 9}


def test_no_kind_of_value_in_a_result_is_a_traceback(result, tmp_path):
    """Each field in turn is of each kind: it is shown and compared, or refused in one line."""
    _, about, arrays, _ = result
    about = about | {
        'si': SI,
        'calibration': {'scale': 2.0, 'median_gap': 1.0},
        'model': {'workdir': 'w', 'step': 3, 'logit_scale': 2.0},
    }
    about['attacks'] = {'pgd': about['attacks']['pgd'] | {'stages': [STAGE, STAGE], 'step_size': 0.1}}
    np.savez(tmp_path / 'a.npz', **arrays)
    np.savez(tmp_path / 'b.npz', **arrays)
    (tmp_path / 'b.json').write_text(json.dumps(about))
    check_alike(Result.load(tmp_path / 'b.json'), Result.load(tmp_path / 'b.json'))
    every = [(path, kind) for path in inputs.paths(about) for kind in inputs.KINDS]
    for path, kind in every[:: max(1, 8 * len(every) // TRIED)]:
        (tmp_path / 'a.json').write_text(json.dumps(inputs.replaced(about, path, kind)))
        with one_line('kinds of values in a result', tmp_path, path, kind):
            check_alike(Result.load(tmp_path / 'a.json'), Result.load(tmp_path / 'b.json'))
        with one_line('kinds of values on the page', tmp_path, path, kind):
            render.write([str(tmp_path / 'a.json')], str(tmp_path.parent / 'page'), gallery=0, figures='none')


@contextlib.contextmanager
def one_line(target, folder, *about):
    """As `refused`, and what refuses it has one line."""
    with refused(target, folder):
        try:
            yield
        except InputError as error:
            assert '\n' not in str(error), about
            raise


@pytest.mark.parametrize('name', ['config.json', 'environment.json', 'metrics.jsonl'])
def test_no_kind_of_value_in_a_run_is_a_traceback(run, tmp_path, name):
    _, _, config = run
    whole = {
        'config.json': config,
        'environment.json': {'command': ['python', 'train.py'], 'jax': '1'},
        'metrics.jsonl': {'step': 2, 'epoch': 1, 'train/loss': 0.5, 'validation/pgd_accuracy': 0.4},
    }
    for file, content in whole.items():
        (tmp_path / file).write_text(json.dumps(content))
    every = [(path, kind) for path in inputs.paths(whole[name]) for kind in inputs.KINDS]
    for path, kind in every[:: max(1, 40 * len(every) // TRIED)]:
        (tmp_path / name).write_text(json.dumps(inputs.replaced(whole[name], path, kind)))
        with one_line('kinds of values in a run', tmp_path, path, kind):
            render.write([str(tmp_path)], str(tmp_path.parent / 'page'), gallery=0, figures='none')
    (tmp_path / 'environment.json').write_text('{"command": null}')
    with one_line('kinds of values in a run', tmp_path):
        render.write([str(tmp_path)], str(tmp_path.parent / 'page'), gallery=0, figures='none')


def test_pipes_in_the_folder_of_a_run(run, tmp_path):
    _, _, config = run
    write_json(tmp_path / 'config.json', config)
    for name in ('metrics.jsonl', 'environment.json', 'r.json', 'r.npz'):
        os.mkfifo(tmp_path / name)
        with refused('pipes in the folder of a run', tmp_path):
            results.scan(tmp_path)
        with refused('pipes in the folder of a run', tmp_path):
            render.write([str(tmp_path)], str(tmp_path.parent / 'page'), gallery=0, figures='none')
        (tmp_path / name).unlink()
    (tmp_path / 'checkpoints' / '2').mkdir(parents=True)
    os.mkfifo(tmp_path / 'checkpoints' / '2' / manifest.NAME)
    with refused('pipes in the folder of a run', tmp_path):
        load.load_model(tmp_path)
    os.mkfifo(tmp_path / 'metrics.jsonl')
    with pytest.raises(InputError, match='metrics.jsonl cannot be read .* a pipe or a device'):
        list(metrics.read_metrics(tmp_path / 'metrics.jsonl'))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    config = quickstart.get_config().copy_and_resolve_references().to_dict()
    write_json(folder / 'config.json', config)
    state = {'params': {'w': np.arange(4.0)}, 'step': np.int32(2)}
    metadata = {'arch': 'small_cnn', 'epoch_sums': {'train/loss': 1.0}, 'watched': {}}
    Checkpoints(folder / 'checkpoints').save(2, state, metadata=metadata, metric=0.5)
    (folder / 'metrics.jsonl').write_text('{"step": 2, "epoch": 1, "train/loss": 0.5}\n')
    return folder, state, json.loads(json.dumps(config))


@malformed(0.2)
@given(st.data())
def test_checkpoints(run, draws):
    folder, state, _ = run
    place = folder / 'checkpoints' / '2'
    path = place / manifest.NAME
    whole, data_files = path.read_bytes(), None
    content = manifest.read(place)
    kind = draws.draw(st.sampled_from(('bytes', 'content', 'content', 'content', 'data')))
    if kind == 'bytes':
        path.write_bytes(inputs.changed_bytes(draws.draw, whole))
    elif kind == 'content':  # with the digest that belongs to it
        path.write_bytes(manifest._serialise(inputs.changed_json(draws.draw, content)))
    else:  # files that are damaged and listed as they are
        files = sorted(
            file for file in (place / 'state').rglob('*') if file.is_file() and file.stat().st_size
        )
        file = draws.draw(st.sampled_from(files))
        data_files = file, file.read_bytes()
        file.write_bytes(inputs.changed_bytes(draws.draw, data_files[1]))
        path.unlink()
        manifest.write(
            place, {name: value for name, value in content.items() if name not in ('format', 'files')}
        )
    try:
        for which, like in ((2, state), ('last', None), ('best', state)):
            with refused('checkpoint manifest and data', folder):
                restored = Checkpoints(folder / 'checkpoints').restore(which, like=like)
                assert restored.state['params']['w'].shape == (4,) or like is None
    finally:
        path.write_bytes(whole)
        if data_files:
            data_files[0].write_bytes(data_files[1])


@malformed(0.1)
@given(st.data())
def test_configs_and_metrics_of_a_run(run, draws):
    folder, _, config = run
    text = json.dumps(config).encode()
    if draws.draw(st.booleans()):
        text = json.dumps(inputs.changed_json(draws.draw, config)).encode()
    else:
        text = inputs.changed_bytes(draws.draw, text)
    (folder / 'config.json').write_bytes(text)
    with refused('config.json read by evaluate.py', folder):
        load.load_model(folder)
    with refused('config.json and metrics read by report.py', folder):
        results.scan(folder)
    with refused('config.json on a resume', folder), workdir.open_workdir(folder, config) as place:
        place.record(config, [])
        (folder / 'config.json').write_bytes(text)
        (folder / 'environment.json').unlink()
    lines = inputs.changed_bytes(draws.draw, b'{"step": 2, "epoch": 1, "train/loss": 0.5}\n' * 2)
    (folder / 'lines.jsonl').write_bytes(lines)
    with refused('metrics.jsonl', folder):
        assert all(isinstance(line['step'], int) for line in metrics.read_metrics(folder / 'lines.jsonl'))
    (folder / 'lines.jsonl').unlink()


@malformed(0.1)
@given(inputs.words, inputs.words, st.dictionaries(inputs.words, inputs.values, max_size=3))
def test_names_of_workdirs(tmp_path_factory, config_file, arch, overrides):
    folder = tmp_path_factory.getbasetemp()
    with refused('names of workdirs', folder.parent / 'none'):
        path = workdir.default_workdir(config_file, arch, overrides)
        assert path.parts[0] == 'runs' and len(path.parts) == 3 and '..' not in path.parts
        assert not path.is_absolute() and path.parts[1].isprintable() and len(path.parts[1]) <= 255


CONFIG = quickstart.get_config()
NAMES = [
    f'{section}.{name}' if isinstance(fields, dict) else section
    for section, fields in CONFIG.to_dict().items()
    for name in (fields if isinstance(fields, dict) else [None])
]


@malformed(0.2)
@given(st.sampled_from(NAMES), inputs.words | st.builds(str, inputs.numbers))
def test_config_overrides(tmp_path_factory, name, value):
    folder = tmp_path_factory.getbasetemp() / 'overrides'
    folder.mkdir(exist_ok=True)
    argument = f'--config.{name}={value}'
    # What train.py's `parse` makes one line of, beside InputError.
    with refused('config overrides', folder, flags.Error, AttributeError, KeyError, ValueError):
        setup(overridden(argument))


def overridden(*arguments):
    """The config as train.py parses it; ml_collections looks for overrides in sys.argv."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file('config', flag_values=values)
    with mock.patch.object(sys, 'argv', ['train.py', f'--config={quickstart.__file__}', *arguments]):
        values(sys.argv)
    return values.config


def test_overrides_do_override():
    assert overridden('--config.threat.eps=0.1').threat.eps == 0.1
    with pytest.raises(AttributeError):
        overridden('--config.epoch=1')


def test_files_that_never_end_or_are_no_files(tmp_path, result):
    folder = tmp_path / 'odd'
    folder.mkdir()
    os.mkfifo(folder / 'pipe.npz')
    (folder / 'folder.npz').mkdir()
    (folder / 'zero.npz').symlink_to('/dev/zero')
    (folder / 'loop.npz').symlink_to(folder / 'loop.npz')
    inputs.bomb(folder / 'bomb.npz', (71, 1024, 1024, 1), 71)
    inputs.bomb(folder / 'liar.npz', (10**15, 32, 32, 3), 1)  # no bomb, but says that it is larger
    (folder / 'large.npz').touch()
    os.truncate(folder / 'large.npz', 2**40)
    for path in sorted(folder.iterdir()):
        for target in ('cifar10_test.npz', 'r.npz', 'r.json'):
            link = tmp_path / target
            link.unlink(missing_ok=True)
            link.symlink_to(path)
        with refused('odd files', folder):
            data.load('cifar10', 'test', tmp_path)
        with refused('odd files', folder):
            Result.load(tmp_path / 'r.json')
        (tmp_path / 'r.json').unlink()
        (tmp_path / 'r.json').write_text(json.dumps(result[1]))
        with refused('odd files', folder):
            Result.load(tmp_path / 'r.json')
    assert +COUNTS['odd files'] == {'refused': 21}


def test_the_state_of_an_evaluation(tmp_path):
    """A damaged unit is computed again; a damaged identity is said."""
    logits = np.zeros((3, 2))
    for number, text in enumerate((b'', b'[' * 10**5, b'[1]', b'{"a": NaN', b'null', b'\xff')):
        folder = tmp_path / str(number)
        Saved(folder, {'seed': 0}, logits)
        (folder / 'identity.json').write_bytes(text)
        with refused('state of an evaluation', folder):
            Saved(folder, {'seed': 0}, logits)
    assert +COUNTS['state of an evaluation'] == {'refused': 6}
    folder = tmp_path / 'units'
    saved = Saved(folder, {'seed': 0}, logits)
    np.save(folder / 'unit.npy', np.array([inputs.Exploit()], dtype=object))
    (folder / 'unit.npy').rename(folder / 'unit.npz')
    with saved:
        assert remember('unit', lambda: {'correct': np.ones(3)})['correct'].sum() == 3
    assert not inputs.MARKER.exists()
