"""The data sets by name, and how one is loaded.

A name is a row of `SOURCES`, to which `register` adds others; or a place that says itself what it holds:
`npz:FOLDER`, `folder:FOLDER`, `tfds:NAME`; or `FILE.py:NAME`, a set that a Python file registers. All give
the images in their original order, which is what attack results are indexed by.
"""

import hashlib
import importlib.util
import pathlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from si_jax.data import corrupted, folders, npz, preprocessing, raw, tfds
from si_jax.data.dataset import SPLITS, Arrays, Dataset, Reader, Source, check_classes, check_every_class
from si_jax.errors import InputError, unknown
from si_jax.runtime.modules import import_file

# fmt: off
CIFAR100 = (
    'apple', 'aquarium_fish', 'baby', 'bear', 'beaver', 'bed', 'bee', 'beetle', 'bicycle', 'bottle', 'bowl',
    'boy', 'bridge', 'bus', 'butterfly', 'camel', 'can', 'castle', 'caterpillar', 'cattle', 'chair',
    'chimpanzee', 'clock', 'cloud', 'cockroach', 'couch', 'crab', 'crocodile', 'cup', 'dinosaur', 'dolphin',
    'elephant', 'flatfish', 'forest', 'fox', 'girl', 'hamster', 'house', 'kangaroo', 'keyboard', 'lamp',
    'lawn_mower', 'leopard', 'lion', 'lizard', 'lobster', 'man', 'maple_tree', 'motorcycle', 'mountain',
    'mouse', 'mushroom', 'oak_tree', 'orange', 'orchid', 'otter', 'palm_tree', 'pear', 'pickup_truck',
    'pine_tree', 'plain', 'plate', 'poppy', 'porcupine', 'possum', 'rabbit', 'raccoon', 'ray', 'road',
    'rocket', 'rose', 'sea', 'seal', 'shark', 'shrew', 'skunk', 'skyscraper', 'snail', 'snake', 'spider',
    'squirrel', 'streetcar', 'sunflower', 'sweet_pepper', 'table', 'tank', 'telephone', 'television',
    'tiger', 'tractor', 'train', 'trout', 'tulip', 'turtle', 'wardrobe', 'whale', 'willow_tree', 'wolf',
    'woman', 'worm',
)  # the fine labels
# fmt: on
CIFAR10 = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
# In scikit-learn's order, the first 1,400 of the 1,797 digits are for training and the last 397 for testing;
# both hold the classes about equally often, and many writers of the test digits are not in training.
_DIGITS_SPLIT = {'train': slice(0, 1400), 'test': slice(1400, 1797)}


def _published(name: str, otherwise: Reader, **known: Any) -> Source:
    """A row whose images are read from npz files or its authors' own, if they are in the folder, or else."""

    def read(split: str, folder: str | pathlib.Path | None) -> Any:
        if folder and npz.holds(folder, name):
            paths = npz.files(folder, name, split)
            arrays = npz.read(paths, row.shape, row.num_classes, row.scale)
            return Arrays(*arrays, tuple(map(str, paths)))
        if folder and raw.holds(folder, name):
            return raw.read(folder, name, split)
        return otherwise(split, folder)

    row = Source(read, **known)
    return row


def _of_tfds(name: str, tfds_name: str, **known: Any) -> Source:
    facts: dict[str, Any] = {'shape': (32, 32, 3), 'num_classes': 10, 'train_images': 50_000, 'crop': 4}
    return _published(
        name,
        lambda split, folder: tfds.read(name, tfds_name, split, folder or None),
        **facts | {'flip': True, 'described': f'TensorFlow Datasets, {tfds_name}'} | known,
    )


def _digits(split: str, folder: str | pathlib.Path | None) -> Arrays:
    if folder and (pathlib.Path(folder) / f'{split}.npz').exists():
        raise InputError(
            f'{folder} has {split}.npz and no digits_{split}.npz, and scikit-learn brings the digits: leave '
            'the folder out (--data_dir, or data.dir of a config), or name it as a set, npz:FOLDER'
        )
    table = _scikit_learns_digits()[_DIGITS_SPLIT[split]]
    images, labels = table[:, :-1].reshape(-1, 8, 8, 1), table[:, -1]
    return Arrays(images.astype(np.uint8), labels.astype(np.int64), ('scikit-learn',))


def _scikit_learns_digits() -> np.ndarray:
    """One row [65] a digit: its 64 pixels in 0 to 16, and its label.

    They are read from scikit-learn's file: its own function first imports all of scikit-learn, SciPy's
    statistics and pandas, for two seconds. It is called where the file is not in its place.
    """
    found = importlib.util.find_spec('sklearn')
    for folder in (found and found.submodule_search_locations) or ():
        path = pathlib.Path(folder) / 'datasets' / 'data' / 'digits.csv.gz'
        if path.is_file():
            return np.loadtxt(path, delimiter=',')
    from sklearn import datasets

    digits = datasets.load_digits()
    return np.column_stack([digits.data, digits.target])


SOURCES = {
    'cifar10': _of_tfds('cifar10', 'cifar10', classes=CIFAR10),
    'cifar100': _of_tfds('cifar100', 'cifar100', num_classes=100, classes=CIFAR100),
    'svhn': _of_tfds('svhn', 'svhn_cropped', train_images=73_257, flip=False),
    'digits': _published(
        'digits', _digits, shape=(8, 8, 1), num_classes=10, train_images=1400, scale=16,
        described='scikit-learn',
    ),
}  # fmt: skip
BUILT_IN = frozenset(SOURCES)
FORMS = ('npz:FOLDER', 'folder:FOLDER', 'tfds:NAME', 'corrupted:FOLDER/NAME@SEVERITY', 'FILE.py:NAME')


def _no_preprocessing(name: str, kind: str) -> None:
    if preprocessing.named(name):
        raise InputError(
            f'preprocessing={name} is for folder: and tfds:, whose images can have several sizes: {kind} has '
            "one already, so leave it out, or give ''"
        )


def _npz(place: str, folder: str | pathlib.Path | None, process: str) -> Source:
    _no_preprocessing(process, f'npz:{place}')
    return npz.source(folder or place)


def _corrupted(place: str, folder: str | pathlib.Path | None, process: str) -> Source:
    _no_preprocessing(process, f'corrupted:{place}')
    return corrupted.source(place, folder)


PLACES: dict[str, Callable[[str, Any, str], Source]] = {
    'npz': _npz,
    'corrupted': _corrupted,
    'folder': lambda place, folder, process: folders.source(folder or place, process),
    'tfds': lambda place, folder, process: tfds.source(place, folder or None, process),
}


def register(name: str, source: Source) -> str:
    """Adds a data set of your own to `SOURCES`, so that configs and commands can name it.

    Call it where a Python file is imported, such as the file of a config: the file is remembered by the runs
    that train on the set, and is imported again by whatever evaluates them.

    Args:
        name: Letters, digits, '_', '.' and '-'. One that was registered before is replaced.
        source: The row. `num_classes` may be left out where `classes` names them.

    Returns:
        The name.

    Raises:
        InputError: The name is a row of this library or cannot be one, or the row says what no data set is.
    """
    if name in BUILT_IN:
        raise InputError(f'data set {name!r} is a row of this library: give yours another name')
    if not re.fullmatch(r'[A-Za-z0-9_][A-Za-z0-9_.-]*', name):
        raise InputError(f'{name!r} cannot be the name of a data set: use letters, digits, _, . and -')
    if not isinstance(source, Source):
        raise InputError(f'data set {name!r} must be a si_jax.data.Source, not {type(source).__name__}')
    file = sys._getframe(1).f_globals.get('__file__')
    code = str(pathlib.Path(file).resolve()) if file and pathlib.Path(file).is_file() else ''
    SOURCES[name] = _checked(name, source)._replace(code=code, code_digest=_digest(code) if code else '')
    return name


def _checked(name: str, source: Source) -> Source:
    """The row with its number of classes; InputError if it says what no data set is."""
    count = source.num_classes or len(source.classes)
    if source.classes:
        check_classes(f'data set {name!r}', map(str, source.classes))
    shape = source.shape if isinstance(source.shape, tuple | list) else ()
    for words, wrong in {
        'read is not callable: give a function of a split and a folder': not callable(source.read),
        f'shape={source.shape} is not (height, width, channels)': len(shape) != 3
        or not all(isinstance(side, int) and side > 0 for side in shape),
        f'num_classes={count}: there are at least two': count < 2,
        f'num_classes={count}, and classes names {len(source.classes)}': len(source.classes)
        not in (0, count),
        f'scale={source.scale} is not in [1, 255]': not 1 <= source.scale <= 255,
        f'crop={source.crop} is negative': source.crop < 0,
    }.items():
        if wrong:
            raise InputError(f'data set {name!r}: {words}')
    return source._replace(num_classes=count, classes=tuple(source.classes))


def _digest(path: str) -> str:
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def canonical(name: str) -> str:
    """The name by which a data set is known wherever it is asked for from.

    Folders become absolute, and `FILE.py:NAME` becomes NAME once the file is imported.

    Raises:
        InputError: The file is not there, or registers no such set.
    """
    kind, _, place = name.partition(':')
    if kind in ('npz', 'folder', 'corrupted') and place:
        return f'{kind}:{pathlib.Path(place).expanduser().resolve()}'
    file, _, own = name.rpartition(':')
    if not file.endswith('.py'):
        return name
    import_file(file, f'data set {name}')
    if own not in SOURCES or SOURCES[own].code != str(pathlib.Path(file).resolve()):
        theirs = [one for one, row in SOURCES.items() if row.code == str(pathlib.Path(file).resolve())]
        raise InputError(f'{file} registers no data set {own!r}, only {", ".join(theirs) or "none"}')
    return own


def describe(name: str, data_dir: str | pathlib.Path | None = None, *, preprocessing: str = '') -> Source:
    """The row of a data set; of a folder or of TensorFlow Datasets it is made of what lies there.

    Args:
        name: As for `load`.
        data_dir: Likewise.
        preprocessing: Likewise.

    Raises:
        InputError: There is no such data set, or its folder holds something else.
    """
    kind, colon, place = name.partition(':')
    if colon and kind in PLACES:
        return PLACES[kind](place, data_dir, preprocessing)
    name = canonical(name)
    if name not in SOURCES:
        raise unknown('data set', name, [*SOURCES, *FORMS])
    _no_preprocessing(preprocessing, name)
    return SOURCES[name]


def load(
    name: str,
    split: str,
    data_dir: str | pathlib.Path | None = None,
    *,
    preprocessing: str = '',
    lazy: bool = False,
) -> Dataset:
    """Loads one split of a data set, in the original order.

    Args:
        name: cifar10, cifar100, svhn, digits or a name that was registered; `npz:FOLDER` (see
            `si_jax.data.npz`), `folder:FOLDER` (`si_jax.data.folders`), `tfds:NAME` (`si_jax.data.tfds`),
            `corrupted:FOLDER/NAME@SEVERITY` (`si_jax.data.corrupted`); or `FILE.py:NAME`, which the file
            registers.
        split: 'train' or 'test'.
        data_dir: Of a set of the table, a folder with `<name>_test.npz`, `<name>_train.npz` or
            `<name>_train_1.npz` is read as npz files, one with the files of its authors as these (see
            `si_jax.data.raw`); any other is a data_dir of TensorFlow Datasets, whose default is used without
            one. The digits need none. For `npz:` and `folder:` it stands in place of the folder in the name,
            so that a set can move; a registered set's reader gets it.
        preprocessing: Of images of several sizes, a name of `si_jax.data.preprocessing`.
        lazy: Whether images may stay in their files until an index asks for them (`si_jax.data.stream.Lazy`):
            those of a folder, of an npz that is not compressed, and of `tfds:NAME`.

    Raises:
        InputError: An unknown name or split; a folder that is missing, or has no such data and cannot get it
            (with the command that makes it); a training file too many; a file that is truncated or holds the
            wrong arrays; images that are broken or of several sizes; a registered set without a training
            image of some class.
    """
    if split not in SPLITS:
        raise unknown('split', split, SPLITS)
    name = canonical(name)
    found = describe(name, data_dir, preprocessing=preprocessing).load(name, split, data_dir, lazy=lazy)
    if split == 'train' and name in SOURCES and name not in BUILT_IN:
        check_every_class(f'data set {name!r}', found.labels, found.num_classes, found.classes)
    return found


def remembered(
    section: Mapping[str, Any],
    split: str,
    data_dir: str | pathlib.Path | None = None,
    *,
    lazy: bool = False,
) -> Dataset:
    """Loads one split of the data set that a stored config names in its section `data`.

    Args:
        section: Of a config that is completed.
        split: 'train' or 'test'.
        data_dir: Where the set lies now; None for where the run had it.
        lazy: As for `load`.

    Raises:
        InputError: As `load`; or the file that registered the set is gone or has changed; or the set has
            another number of classes now, as a folder has whose `train` is not there.
    """
    remember(section)
    process = section['preprocessing']
    found = load(section['name'], split, data_dir or section['dir'], preprocessing=process, lazy=lazy)
    if (count := section['num_classes']) not in (0, found.num_classes):
        raise InputError(
            f'{found.name} has {found.num_classes} classes here, and had {count} when the network was '
            'trained: put the missing ones back, or name all in classes.txt, one a line in their order'
        )
    return found


def remember(section: Mapping[str, Any]) -> None:
    """Imports the file that registered the data set of a stored config, if the set is not known here.

    It must lie where it lay, as it was: another file is run only when it is named, as `FILE.py:NAME`.

    Raises:
        InputError: The file is gone or has changed.
    """
    name, code = section['name'], str(section['code'])
    if not code or name in SOURCES:
        return
    path, advice = pathlib.Path(code), f'give --dataset=FILE.py:{name}, with the file that registers it now'
    what = f'{code}, which registers the data set {name!r} of this run,'
    if not path.is_file() or str(path.resolve()) != code:
        raise InputError(f'{what} is not there: put it back, or {advice}')
    if _digest(code) != section['code_digest']:
        raise InputError(f'{what} has changed since (SHA-256), and is not run unasked: {advice}')
    canonical(f'{code}:{name}')


def facts(name: str, source: Source) -> dict[str, Any]:
    """What a config must hold of a set that the table does not have, so that its network is known without it.

    Fields of the section `data`; for a set of the table they have their defaults.
    """
    known = name in BUILT_IN
    return {
        'image_shape': () if known else tuple(map(int, source.shape)),
        'num_classes': 0 if known else int(source.num_classes),
        'code': '' if known else source.code,
        'code_digest': '' if known else source.code_digest,
    }
