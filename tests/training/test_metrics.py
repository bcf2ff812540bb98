"""What a run reports, and that a resumed run reports every step once."""

import contextlib
import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from si_jax.training.metrics import MetricsWriter, read_metrics


def lines(workdir) -> list[dict]:
    return [json.loads(text) for text in (workdir / 'metrics.jsonl').read_text().splitlines()]


def events(workdir) -> list[event_pb2.Event]:
    """All events of a run, in the order in which TensorBoard reads them."""
    found = []
    for file in sorted((workdir / 'tensorboard').iterdir()):
        content = file.read_bytes()
        while content:  # TFRecord: length, checksum of the length, data, checksum of the data
            (length,) = struct.unpack('<Q', content[:8])
            found.append(event_pb2.Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def test_numbers_of_every_kind_become_json(tmp_path):
    values = {
        'loss': jnp.float32(0.1),
        'bfloat16': jnp.bfloat16(0.5),
        'float64': np.float64(1 / 3),
        'images': np.int64(5),
        'finite': np.bool_(True),
        'phase': 'warm-up',
        'none': None,
        'one': np.ones((1, 1)),
    }
    with contextlib.closing(MetricsWriter(tmp_path, tensorboard=False)) as writer:
        writer.write(np.int32(3), np.float32(0.5), values)
    assert lines(tmp_path) == [
        {
            'step': 3,
            'epoch': 0.5,
            'loss': float(np.float32(0.1)),
            'bfloat16': 0.5,
            'float64': 1 / 3,
            'images': 5,
            'finite': True,
            'phase': 'warm-up',
            'none': None,
            'one': 1.0,
        }
    ]
    assert not (tmp_path / 'tensorboard').exists()


def test_a_line_is_in_the_file_when_write_returns(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    for step in range(3):
        writer.write(step, 0, {'loss': 1.0})
        assert [line['step'] for line in lines(tmp_path)] == list(range(step + 1))


def test_non_finite_numbers_are_null_and_named(tmp_path):
    values = {'nan': float('nan'), 'inf': jnp.float32(np.inf), 'minus': -np.inf, 'loss': 1.0}
    MetricsWriter(tmp_path, tensorboard=False).write(1, 0, values)
    (line,) = lines(tmp_path)
    assert line['nan'] is None and line['inf'] is None and line['minus'] is None and line['loss'] == 1.0
    assert line['non_finite'] == {'nan': 'nan', 'inf': 'inf', 'minus': '-inf'}


def test_names_and_shapes_that_a_line_cannot_hold(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    with pytest.raises(ValueError, match=r"metric names \['step'\] are taken"):
        writer.write(1, 0, {'step': 2})
    with pytest.raises(ValueError, match='size 1'):
        writer.write(1, 0, {'loss': np.ones(2)})
    assert not (tmp_path / 'metrics.jsonl').exists()


def test_cut_to_the_restored_step(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    for step in (10, 20, 30):
        writer.write(step, step / 10, {'loss': 1 / step, 'nan': float('nan')})
    before = (tmp_path / 'metrics.jsonl').read_text().splitlines(keepends=True)
    MetricsWriter(tmp_path, tensorboard=False).cut(20)
    assert (tmp_path / 'metrics.jsonl').read_text() == ''.join(before[:2])
    resumed = MetricsWriter(tmp_path, tensorboard=False)
    resumed.write(30, 3.0, {'loss': 1 / 30, 'nan': float('nan')})
    assert (tmp_path / 'metrics.jsonl').read_text() == ''.join(before)
    resumed.cut(-1)
    assert lines(tmp_path) == []


@pytest.mark.parametrize('torn', ['{"step": 20, "lo', '{', '20', 'null', '{"loss": 1}', '\x00\x00'])
def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path, torn):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.write(10, 1, {'loss': 0.5})
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
        file.write(torn)
    assert [line['step'] for line in read_metrics(tmp_path / 'metrics.jsonl')] == [10]
    writer.cut(100)
    writer.write(20, 2, {'loss': 0.4})
    assert [line['step'] for line in lines(tmp_path)] == [10, 20]


def test_a_whole_line_without_its_newline_is_kept(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "epoch": 0}')
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.cut(1)
    writer.write(2, 0, {})
    assert [line['step'] for line in lines(tmp_path)] == [1, 2]


def test_cut_without_a_file(tmp_path):
    MetricsWriter(tmp_path, tensorboard=False).cut(5)
    assert not any(tmp_path.iterdir())


def test_tensorboard_events_and_purge_on_resume(tmp_path):
    with contextlib.closing(MetricsWriter(tmp_path)) as writer:
        for step in (1, 2):
            writer.write(step, 0, {'train/loss': 0.25 * step, 'phase': 'text', 'finite': True})
    with contextlib.closing(MetricsWriter(tmp_path)) as writer:
        writer.cut(1)
        writer.write(2, 0, {'train/loss': 0.75})
    assert len(list((tmp_path / 'tensorboard').iterdir())) == 2
    found = events(tmp_path)
    scalars = [(e.step, v.tag, v.simple_value) for e in found for v in e.summary.value]
    assert [scalar for scalar in scalars if scalar[1] == 'train/loss'] == [
        (1, 'train/loss', 0.25),
        (2, 'train/loss', 0.5),
        (2, 'train/loss', 0.75),
    ]
    assert not any('phase' in tag for _, tag, _ in scalars)
    starts = [event.step for event in found if event.session_log.status == event_pb2.SessionLog.START]
    assert starts == [2]  # TensorBoard hides what it read before for steps from 2 on
