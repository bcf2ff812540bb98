"""What a run reports: JSON lines, and the numbers for its sinks."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.errors import InputError
from si_jax.runtime import sinks as sink
from si_jax.storage.files import check_regular, parse_json, write_atomic


class MetricsWriter:
    """Appends to `metrics.jsonl` in a workdir, and hands the numbers to sinks (`si_jax.runtime.sinks`).

    Write the metrics of a step before its checkpoint: after a crash in between, `cut` removes the line and
    the step is run again. The other way round the line would be lost.

    Args:
        workdir: The folder of the run. It must exist.
        tensorboard: Whether TensorBoard's events in `tensorboard/` are one of them.
        sinks: The others, a comma string.
        config: The config of the run, for those that show it.

    Raises:
        InputError: There is no such sink.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        tensorboard: bool = True,
        sinks: str = '',
        config: Mapping[str, Any] | None = None,
    ):
        self.path = Path(workdir) / 'metrics.jsonl'
        self._makes = sink.parse(','.join(['tensorboard'] * tensorboard + [sinks]), 'logging.sinks')
        self._start = sink.Start(self.path.parent, sink.name_of(self.path.parent), config or {})
        self._sinks: sink.Sinks | None = None

    def open(self) -> None:
        """Opens the sinks, as the first `write` does otherwise.

        Raises:
            InputError: wandb or trackio cannot begin.
        """
        if self._sinks is None:
            self._sinks = sink.Sinks(self._makes, self._start)
            self._start = self._start._replace(purge_step=None)

    def write(self, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        """Appends one line, which is complete in the file when this returns.

        Args:
            step: Training step.
            epoch: Epochs done, may be a fraction.
            values: Name to number, text or None; arrays must hold one element. NaN and infinities, which JSON
                has no words for, become null, and are spelled out under `non_finite`.

        Raises:
            ValueError: A value with several elements, or a name that the line uses itself.
        """
        if taken := {'step', 'epoch', 'non_finite'} & values.keys():
            raise ValueError(f'metric names {sorted(taken)} are taken: every line has these fields already')
        scalars = {name: np.asarray(value).item() for name, value in values.items()}
        non_finite = {
            name: str(value)
            for name, value in scalars.items()
            if isinstance(value, float) and not math.isfinite(value)
        }
        line = {'step': int(step), 'epoch': np.asarray(epoch).item()} | scalars | dict.fromkeys(non_finite)
        if non_finite:
            line['non_finite'] = non_finite
        with open(self.path, 'a', encoding='utf-8') as file:
            file.write(json.dumps(line, allow_nan=False) + '\n')
            file.flush()
            os.fsync(file.fileno())  # a checkpoint of a later step may not be there without it
        self.open()
        assert self._sinks is not None
        self._sinks.write(step, scalars)

    def cut(self, step: int) -> None:
        """Removes what was written after `step`, and a last line cut short. -1 removes everything."""
        if self.path.exists():
            kept = [json.dumps(line) + '\n' for line in read_metrics(self.path) if line['step'] <= step]
            write_atomic(self.path, ''.join(kept))
        self.close()
        self._start = self._start._replace(purge_step=step + 1)

    def close(self) -> None:
        """Closes the sinks; the next `write` opens them again."""
        if self._sinks is not None:
            self._sinks.close()
            self._sinks = None


def read_metrics(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, without those that are not whole.

    Raises:
        OSError: The file cannot be read.
        InputError: It is a folder, a pipe or a device.
    """
    try:
        content = check_regular(path).read_bytes()
    except (IsADirectoryError, ValueError) as error:
        raise InputError(f'{path} cannot be read ({error}): restore it, or remove it') from error
    for text in content.splitlines():
        try:
            line = parse_json(text)
        except ValueError:
            continue  # the run was killed while it wrote this line
        if isinstance(line, dict) and type(line.get('step')) is int:
            yield line
