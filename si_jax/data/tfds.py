"""Data sets of TensorFlow Datasets, read by random access and put back into their original order.

Reading needs no TensorFlow. Preparing does; it runs once, in a process of its own, so that TensorFlow takes
no memory and no accelerator from the training.
"""

import json
import pathlib
import shlex
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from typing import Any, NamedTuple

import numpy as np

from si_jax.data import preprocessing
from si_jax.data.dataset import Arrays, Source
from si_jax.data.preprocessing import Preprocessing
from si_jax.data.stream import Lazy
from si_jax.errors import InputError
from si_jax.runtime.extras import extra

FORMAT = 'array_record'
_CHUNK = 1000


def missing_data(name: str, problem: str, command: str | None) -> InputError:
    """The error for data that is not there: what was looked for and where, and the ways to get it.

    `name` is that of a data set of the table; '' for a folder of npz files, or for another set of TensorFlow
    Datasets. `command` is the shell command that makes the data, None where npz files were meant.
    """
    remedy = f'Make it, on a machine with a network, with:\n    {command}\nor give' if command else 'Give'
    start = f'{name}_' if name else ''
    what = f'a folder that holds {start}test.npz and {start}train.npz (arrays images, '
    what += 'uint8 [N, H, W, C], and labels)'
    if command and not name:
        what = 'the data_dir of TensorFlow Datasets that has it'
    return InputError(
        f'{problem}. {remedy} {what}, with --config.data.dir=FOLDER (train.py) or --data_dir=FOLDER '
        '(evaluate.py); in Python data_dir=FOLDER.'
    )


class _Place(NamedTuple):
    """Where a data set is to be found or made; `name` is '' for one that the table does not have."""

    name: str
    tfds_name: str
    root: pathlib.Path
    downloads: pathlib.Path

    @property
    def title(self) -> str:
        return self.name or self.tfds_name

    def script(self) -> str:
        """The program that prepares it; its strings are in double quotes, so a shell needs no escapes."""
        name, root, form, downloads = (
            json.dumps(str(text), ensure_ascii=False)
            for text in (self.tfds_name, self.root, FORMAT, self.downloads)
        )
        return (
            'import tensorflow_datasets as tfds; '
            f'tfds.builder({name}, data_dir={root}, file_format={form})'
            f'.download_and_prepare(download_dir={downloads})'
        )

    def missing(self, problem: str) -> InputError:
        return missing_data(self.name, problem, f'python -c {shlex.quote(self.script())}')

    def damaged(self, folder: object, error: Exception) -> InputError:
        reason = f'{type(error).__name__}: {error}'
        return self.missing(f'{folder} is damaged ({reason}); delete that folder')

    def builder(self) -> Any:
        return _builder(self.tfds_name, str(self.root))


class Records:
    """The images of a prepared split by their numbers, each decoded when it is asked for.

    Args:
        place: Where the set is.
        split: As the set calls it.
        order: Number of an image -> where it is stored.
        shape: (H, W, C) of all images.
        process: What is done to each first, if anything.
    """

    def __init__(
        self,
        place: _Place,
        split: str,
        order: np.ndarray,
        shape: tuple[int, ...],
        process: Preprocessing | None,
    ):
        self.place, self.split, self.order = place, split, order
        self.shape, self.process = shape, process
        self.source: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {'source': None}  # a process opens files of its own

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Images uint8 [B, H, W, C] of the numbers [B]; InputError for damaged ones."""
        images = np.empty((len(rows), *self.shape), np.uint8)
        try:
            if self.source is None:
                self.source = self.place.builder().as_data_source(self.split)
            found = self.source.__getitems__(self.order[rows].tolist()) if len(rows) else ()
            for number, one in enumerate(found):
                images[number] = self.process.of(one['image']) if self.process else one['image']
            return images
        except Exception as error:  # whatever array_record, protobuf and pillow make of damaged files
            raise self.place.damaged(self.place.root / self.place.tfds_name, error) from error


def read(
    name: str,
    tfds_name: str,
    split: str,
    data_dir: str | pathlib.Path | None,
    process: Preprocessing | None = None,
    shape: tuple[int, ...] = (),
) -> Arrays:
    """Reads one split; prepares the data set first if it is not there.

    A set that is there as TFRecord only is prepared again, as array_record, in the folder `array_record`
    beside it; the finished download is used again. `data_dir` is as TensorFlow Datasets takes it; None is its
    default, usually ~/tensorflow_datasets. Images of a set that the table does not have stay in their files
    (`Lazy`); their labels are read here.

    Args:
        name: In the table; '' for a set that the table does not have. Of the former the images must come with
            their original positions, of the latter they keep the order that they are stored in without them.
        tfds_name: In TensorFlow Datasets.
        split: 'train' or 'test'; where there is no test split, it is called 'validation'.
        data_dir: See above.
        process: What is done to each image first.
        shape: (H, W, C) after that, of a set that the table does not have.

    Returns:
        Images uint8 [N, H, W, C] and labels int32 [N], in the order before TensorFlow Datasets shuffled them.

    Raises:
        InputError: The folder is missing, the data is not there and cannot be prepared, or is damaged.
    """
    place = _place(name, tfds_name, data_dir)
    builder = place.builder()
    if builder.is_prepared() and FORMAT not in {f.value for f in builder.info.available_file_formats()}:
        place = place._replace(root=place.root / FORMAT)
        builder = place.builder()
    if not builder.is_prepared():
        _prepare(place, list(builder.url_infos))
        builder = place.builder()
    if not name:
        known = sorted(builder.info.splits)
        split = 'validation' if split == 'test' and split not in known else split
        if split not in known:
            raise InputError(
                f'{tfds_name} has no {split} split, only {", ".join(known)}: use another data set'
            )
    try:
        images, labels, positions = _decode(
            _records(builder, split, bool(name)), f'{name or tfds_name} {split}'
        )
        order = np.argsort(positions, kind='stable')
        if not np.array_equal(positions[order], np.arange(len(labels))):
            if name:
                raise ValueError('ids are missing or repeated')
            order = np.arange(len(labels))
    except Exception as error:  # whatever array_record, protobuf and pillow make of damaged files
        raise place.damaged(builder.data_path, error) from error
    files = (str(data_dir or f'TensorFlow Datasets, {tfds_name}'),)
    if name:
        return Arrays(np.stack(images)[order], labels[order], files)
    lazy = Lazy(Records(place, split, order, shape, process), (len(labels), *shape))
    facts = builder.info.splits[split]
    return Arrays(lazy, labels[order], files, identity=f'{builder.info.full_name} {split} {facts.num_bytes}')


def _records(builder: Any, split: str, decoded: bool) -> Any:
    """The items of a split, by their numbers; unless `decoded` images are the bytes that are stored."""
    if decoded:
        return builder.as_data_source(split)
    import tensorflow_datasets as tfds

    return builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})


def source(tfds_name: str, data_dir: str | pathlib.Path | None, name: str = '') -> Source:
    """Any set of TensorFlow Datasets whose items have an `image` and a `label`; none of them is read.

    Args:
        tfds_name: In TensorFlow Datasets.
        data_dir: As for `read`.
        name: Of the preprocessing (`si_jax.data.preprocessing`); '' for images that have one size.

    Raises:
        InputError: There is no such set or folder, its items are something else, or its images have several
            sizes and there is no preprocessing.
    """
    process = preprocessing.named(name)
    try:
        place = _place('', tfds_name, data_dir)
        info = place.builder().info
        features: dict[str, Any] = dict(info.features)
    except InputError:
        raise
    except Exception as error:  # of an unknown name, or of a set whose code cannot be imported
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise InputError(
            f'{tfds_name!r} cannot be found in TensorFlow Datasets ({reason[0]}): its catalogue has the names'
        ) from error
    image: Any = features.get('image')
    label: Any = features.get('label')
    if not getattr(image, 'shape', ()) or not getattr(label, 'num_classes', 0):
        raise InputError(
            f'{tfds_name} has items of {", ".join(features)}, which is no set of images with one class each '
            '(image, label): use another, or register it with a reader of your own (docs/data.md)'
        )
    shape = process.shape if process else tuple(image.shape)
    if None in shape:
        raise InputError(
            f'{tfds_name} has images of several sizes: give a preprocessing that makes them one, such as '
            '--config.data.preprocessing=Res256Crop224 (evaluate.py: --preprocessing)'
        )

    def read_split(split: str, folder: str | pathlib.Path | None) -> Arrays:
        return read('', tfds_name, split, folder or data_dir, process, shape)

    classes = tuple(label.names)
    train = info.splits['train'].num_examples if 'train' in info.splits else 0
    about = f'TensorFlow Datasets, {tfds_name}'
    return Source(read_split, shape, label.num_classes, classes, train, described=about)


def _place(name: str, tfds_name: str, data_dir: str | pathlib.Path | None) -> _Place:
    if data_dir is None:
        root = pathlib.Path(_builder(tfds_name, None).data_path).parents[1]  # less name and version
        return _Place(name, tfds_name, root, root / 'downloads')
    root = pathlib.Path(data_dir).expanduser()
    place = _Place(name, tfds_name, root, root / 'downloads')
    _check_folder(place)
    return place


def _builder(tfds_name: str, data_dir: str | None) -> Any:
    tfds = extra('tensorflow_datasets', 'tensorflow-datasets', 'tfds')  # imports no TensorFlow
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
        problem = f'data folder {root} has npz files ({others[0]}, ...), but none of {place.title}'
        raise missing_data(place.name, problem, None)


def _prepare(place: _Place, urls: list[str]) -> None:
    """Runs the command that errors show, which downloads what is not in the download folder yet."""
    # Asked first because TensorFlow Datasets retries for minutes where there is no network.
    finished = [path for pattern in ('*.INFO', '*/*.INFO') for path in place.downloads.glob(pattern)]
    known = ''.join(path.read_text(encoding='utf-8') for path in finished)
    host = _unknown_host([url for url in urls if url not in known])
    where = f'{place.title} is not prepared in {place.root}'
    if host:
        raise place.missing(f'{where}, and {host} cannot be found on the network')
    print(f'{where}: preparing it, once, with TensorFlow', file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, '-c', place.script()], check=False)
    if done.returncode:
        raise place.missing(
            f'{where}, and preparing it ended with exit status {done.returncode} for the reason above '
            '(perhaps no network, no room, or no TensorFlow: pip install "si_jax[tfds]")'
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


def _decode(records: Any, what: str) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Images, labels and original positions; no positions where the items have none, and no bytes kept."""
    import tqdm

    images, labels, positions = [], [], []
    # disable=None: shown on a terminal only, and only if it takes more than a second.
    options: dict[str, Any] = {'disable': None, 'delay': 1, 'leave': False, 'unit': ' images'}
    with tqdm.tqdm(total=len(records), desc=f'reading {what}', **options) as bar:
        for start in range(0, len(records), _CHUNK):
            chunk = records.__getitems__(range(start, min(start + _CHUNK, len(records))))
            images += [record['image'] for record in chunk if isinstance(record['image'], np.ndarray)]
            labels += [record['label'] for record in chunk]
            # An id is the split and the position in the original file: train_00042.
            ids = [record.get('id') for record in chunk]
            texts = [one.decode().rpartition('_')[2] for one in ids if isinstance(one, bytes)]
            positions += [int(one) for one in texts if one.isdecimal() and len(one) < 19]
            bar.update(len(chunk))
    return images, np.array(labels, np.int32), np.array(positions, np.int64)
