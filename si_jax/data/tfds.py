"""Data sets of TensorFlow Datasets, read by random access and put back into their original order.

Reading needs no TensorFlow. Preparing does; it runs once, in a process of its own, so that TensorFlow takes
no memory and no accelerator from the training.
"""

import pathlib
import shlex
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from typing import Any, NamedTuple

import numpy as np

from si_jax.errors import InputError

FORMAT = 'array_record'
_CHUNK = 1000


def missing_data(name: str, problem: str, command: str | None) -> InputError:
    """The error for data that is not there: what was looked for and where, and the ways to get it.

    `command` is the shell command that makes the data, None where npz files were meant.
    """
    remedy = f'Make it, on a machine with a network, with:\n    {command}\nor give' if command else 'Give'
    return InputError(
        f'{problem}. {remedy} a folder that holds {name}_test.npz and {name}_train.npz (arrays images, '
        'uint8 [N, H, W, C], and labels), with --config.data.dir=FOLDER (train.py) or --data_dir=FOLDER '
        '(evaluate.py).'
    )


class _Place(NamedTuple):
    """Where a data set is to be found or made."""

    name: str
    tfds_name: str
    root: pathlib.Path
    downloads: pathlib.Path

    def script(self) -> str:
        return (
            'import tensorflow_datasets as tfds; '
            f'tfds.builder({self.tfds_name!r}, data_dir={str(self.root)!r}, file_format={FORMAT!r})'
            f'.download_and_prepare(download_dir={str(self.downloads)!r})'
        )

    def missing(self, problem: str) -> InputError:
        return missing_data(self.name, problem, f'python -c {shlex.quote(self.script())}')

    def builder(self) -> Any:
        return _builder(self.tfds_name, str(self.root))


def read(
    name: str, tfds_name: str, split: str, data_dir: str | pathlib.Path | None
) -> tuple[np.ndarray, np.ndarray]:
    """Reads one split; prepares the data set first if it is not there.

    A set that is there as TFRecord only is prepared again, as array_record, in the folder `array_record`
    beside it; the finished download is used again. `data_dir` is as TensorFlow Datasets takes it; None is its
    default, usually ~/tensorflow_datasets.

    Returns:
        Images uint8 [N, H, W, C] and labels int32 [N], in the order before TensorFlow Datasets shuffled them.

    Raises:
        InputError: The folder is missing, the data is not there and cannot be prepared, or is damaged.
    """
    if data_dir is None:
        root = pathlib.Path(_builder(tfds_name, None).data_path).parents[1]  # less name and version
    else:
        root = pathlib.Path(data_dir).expanduser()
    place = _Place(name, tfds_name, root, root / 'downloads')
    if data_dir is not None:
        _check_folder(place)
    builder = place.builder()
    if builder.is_prepared() and FORMAT not in {f.value for f in builder.info.available_file_formats()}:
        place = place._replace(root=root / FORMAT)
        builder = place.builder()
    if not builder.is_prepared():
        _prepare(place, list(builder.url_infos))
        builder = place.builder()
    try:
        images, labels, positions = _decode(builder.as_data_source(split), f'{name} {split}')
        order = np.argsort(positions, kind='stable')
        if not np.array_equal(positions[order], np.arange(len(order))):
            raise ValueError('ids are missing or repeated')
    except Exception as error:  # whatever array_record, protobuf and pillow make of damaged files
        reason = f'{type(error).__name__}: {error}'
        raise place.missing(f'{builder.data_path} is damaged ({reason}); delete that folder') from error
    return images[order], labels[order]


def _builder(tfds_name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds  # imports no TensorFlow

    return tfds.builder(tfds_name, data_dir=data_dir)


def _check_folder(place: _Place) -> None:
    """A folder that was named must exist: a slip of the pen must not start a download elsewhere."""
    root = place.root
    if not root.exists():
        raise place.missing(f'data folder {root} is not there')
    if not root.is_dir():
        raise missing_data(place.name, f'{root} is not a folder', None)
    others = sorted(path.name for path in root.glob('*.npz'))
    if others and not any((root / folder / place.tfds_name).is_dir() for folder in ('', FORMAT)):
        problem = f'data folder {root} has npz files ({others[0]}, ...), but none of {place.name}'
        raise missing_data(place.name, problem, None)


def _prepare(place: _Place, urls: list[str]) -> None:
    """Runs the command that errors show, which downloads what is not in the download folder yet."""
    # Asked first because TensorFlow Datasets retries for minutes where there is no network.
    finished = [path for pattern in ('*.INFO', '*/*.INFO') for path in place.downloads.glob(pattern)]
    known = ''.join(path.read_text() for path in finished)
    host = _unknown_host([url for url in urls if url not in known])
    where = f'{place.name} is not prepared in {place.root}'
    if host:
        raise place.missing(f'{where}, and {host} cannot be found on the network')
    print(f'{where}: preparing it, once, with TensorFlow', file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, '-c', place.script()], check=False)
    if done.returncode:
        raise place.missing(
            f'{where}, and preparing it ended with exit status {done.returncode} for the reason above '
            '(perhaps no network, no room, or no TensorFlow: pip install tensorflow-cpu)'
        )


def _unknown_host(urls: list[str]) -> str | None:
    if urllib.request.getproxies():
        return None  # a proxy looks names up itself
    for host in {urllib.parse.urlparse(url).hostname for url in urls} - {None}:
        try:
            socket.getaddrinfo(host, None)
        except OSError:
            return host
    return None


def _decode(records: Any, what: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import tqdm

    images, labels, positions = [], [], []
    # disable=None: shown on a terminal only, and only if it takes more than a second.
    options: dict[str, Any] = {'disable': None, 'delay': 1, 'leave': False, 'unit': ' images'}
    with tqdm.tqdm(total=len(records), desc=f'reading {what}', **options) as bar:
        for start in range(0, len(records), _CHUNK):
            chunk = records.__getitems__(range(start, min(start + _CHUNK, len(records))))
            images += [record['image'] for record in chunk]
            labels += [record['label'] for record in chunk]
            # An id is the split and the position in the original file: train_00042.
            positions += [int(record['id'].decode().rpartition('_')[2]) for record in chunk]
            bar.update(len(chunk))
    return np.stack(images), np.array(labels, np.int32), np.array(positions)
