"""Extra images beside a data set, a share of each batch: generated ones, or ones with pseudo-labels.

A file is an npz with `image` uint8 [N, H, W, C] and `label` [N], as wzekai99/DM-Improves-AT and
google-deepmind's dm-adversarial-robustness publish them; `images` and `labels` are read too. What a file
holds uncompressed, as np.savez writes it, stays on the disk until a batch has it.

Which images a batch has follows from the seed and the number of the batch alone.
"""

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from si_jax.data.batches import epoch_order, extra_order, in_passes, uniform_draws
from si_jax.data.dataset import Dataset, checked
from si_jax.data.stream import Joined
from si_jax.errors import InputError, unknown
from si_jax.storage import npz
from si_jax.storage.trees import digest

NAMES = (('image', 'label'), ('images', 'labels'))
DRAWS = ('uniform', 'passes')
# In place of a file in a recipe that makes no sense without one.
REQUIRED = 'required'
_WHERE = (
    'an npz with `image` uint8 [N, H, W, C] and `label` [N], such as 1m.npz of wzekai99/DM-Improves-AT for '
    'CIFAR-10'
)
SHOWN = 3  # absent classes in a message


class Extra(NamedTuple):
    """The extra images of a run.

    Attributes:
        images: uint8 [N, H, W, C], behind one another where there are several files.
        labels: int32 [N].
        each_batch: How many of them a batch has.
        draws: 'uniform' or 'passes'.
        files: Where they were read.
        digest: A hash of the labels and of the checksums that the files have of their images.
    """

    images: Joined
    labels: np.ndarray
    each_batch: int
    draws: str
    files: tuple[str, ...]
    digest: str

    def words(self, batch_size: int) -> str:
        """What they are, for a reader."""
        how = {'uniform': 'drawn with replacement', 'passes': 'in passes'}[self.draws]
        return (
            f'extra images: {len(self.labels):,} from {", ".join(self.files)} (digest {self.digest}), '
            f'{self.each_batch} of the {batch_size} of a batch, {how}'
        )

    def batches(self, number: int, n: int, *, steps: int, batch_size: int, seed: int) -> np.ndarray:
        """The images of an epoch's batches, indices [S, B] int32: 0 to n - 1 are real, from n on extra.

        Real images come in shuffled passes, and each epoch goes on where the last one ended (in
        DM-Improves-AT each begins a new pass). Extra images are spread evenly over the rows of a batch, so
        that every device has its share.

        Args:
            number: Of the epoch, from 0; with replays, of the pass.
            n: How many real images there are.
            steps: S, batches of an epoch.
            batch_size: B.
            seed: Of the run.
        """
        extra, known = steps * self.each_batch, len(self.labels)
        real = steps * batch_size - extra
        if self.draws == 'uniform':
            drawn = uniform_draws(seed, number, extra, known)
        else:
            drawn = in_passes(lambda pass_: extra_order(seed, pass_, known), known, number * extra, extra)
        order = in_passes(lambda pass_: epoch_order(seed, pass_, n), n, number * real, real)
        is_extra = np.diff(np.arange(batch_size + 1) * self.each_batch // batch_size) == 1
        indices = np.empty((steps, batch_size), np.int32)
        indices[:, is_extra] = n + drawn.reshape(steps, -1)
        indices[:, ~is_extra] = order.reshape(steps, -1)
        return indices


def asked(section: Mapping[str, Any]) -> bool:
    """Whether a config's section `data` asks for extra images."""
    return bool(section['extra']) and section['extra_share'] > 0


def steps_of_epoch(real: int, batch_size: int) -> int:
    """Batches of an epoch with extra images: its size is that of the real set, held-out images counted too.

    Source: wzekai99/DM-Improves-AT, `update_steps` of its watrain.py, whatever the number of extra images: 98
    on CIFAR-10 in batches of 512.
    """
    return real // batch_size + 1


def check(section: Mapping[str, Any], batch_size: int) -> None:
    """Refuses what cannot be, before any data is read.

    Raises:
        InputError: A value of the section `data` is out of range, or a file is not there.
    """
    share = section['extra_share']
    if not 0 <= share < 1:
        raise InputError(f'data.extra_share={share:g} is not in [0, 1): 0.7 is 7 of 10 images of a batch')
    if section['extra_draws'] not in DRAWS:
        raise unknown('data.extra_draws', section['extra_draws'], DRAWS)
    if not asked(section):
        return
    if section['extra'] == REQUIRED:
        raise InputError(
            'this recipe trains with generated images, and none are given: give '
            f'--config.data.extra=FILE.npz, {_WHERE}'
        )
    if not int(share * batch_size):
        least = math.ceil(1e4 / batch_size) / 1e4
        raise InputError(
            f'data.extra_share={share:g} of batch_size={batch_size} is less than one image: give '
            f'--config.data.extra_share={least:g} or more, or 0 for no extra images'
        )
    if section['balanced']:
        raise InputError(
            'data.balanced draws every class equally often, and data.extra adds images as its file has them: '
            'use --config.data.balanced=False'
        )
    _paths(section)


def load(section: Mapping[str, Any], batch_size: int, train: Dataset) -> Extra | None:
    """The extra images that a config's section `data` asks for; None for none.

    Args:
        section: extra, one file, or several with commas between; extra_share; extra_draws.
        batch_size: Of which `int(extra_share * batch_size)` are extra, as in DM-Improves-AT.
        train: The real set, with the shape, classes and scale that theirs must be.

    Raises:
        InputError: A file cannot be read or holds the wrong arrays, or images of a part of the classes.
    """
    if not asked(section):
        return None
    found = [_read(path, train) for path in _paths(section)]
    labels = np.concatenate([labels for _, labels, _ in found])
    absent = np.setdiff1d(np.arange(train.num_classes), labels)
    if absent.size:
        named = ', '.join(map(str, absent[:SHOWN])) + ', ...' * (absent.size > SHOWN)
        raise InputError(
            f'data.extra={section["extra"]} has images of {train.num_classes - absent.size} of the '
            f'{train.num_classes} classes of {train.name}, and none of {named}: give a file for {train.name}'
        )
    return Extra(
        images=Joined([images for images, _, _ in found]),
        labels=labels,
        each_batch=int(section['extra_share'] * batch_size),
        draws=section['extra_draws'],
        files=tuple(map(str, _paths(section))),
        digest=digest(labels, np.asarray([checksum for *_, checksum in found])),
    )


def count(section: Mapping[str, Any]) -> int:
    """How many extra images a section asks for, by the heads of its files; 0 where no file is given yet.

    Raises:
        InputError: A file cannot be read.
    """
    if not asked(section) or section['extra'] == REQUIRED:
        return 0
    heads = [(path, _opened(path, npz.headers)) for path in _paths(section)]
    return sum(head[_names(path, head)[0]].shape[0] for path, head in heads)


def _paths(section: Mapping[str, Any]) -> list[pathlib.Path]:
    parts = (part.strip() for part in section['extra'].split(','))
    paths = [pathlib.Path(part).expanduser() for part in parts if part]
    for path in paths:
        if not path.is_file():
            raise InputError(f'data.extra={path} is no file: give --config.data.extra=FILE.npz, {_WHERE}')
    return paths


def _read(path: pathlib.Path, train: Dataset) -> tuple[np.ndarray, np.ndarray, int]:
    """Images, labels int32, and the file's checksum of the images."""
    names = _names(path, _opened(path, npz.headers))
    arrays = _opened(path, lambda path: npz.mapped(path, names))
    images, labels = (arrays[name] for name in names)
    shape = train.images.shape[1:]
    labels = checked(str(path), images, labels, shape, train.num_classes, train.scale)
    return images, labels, npz.checksums(path)[names[0]]


def _names(path: pathlib.Path, known: Mapping[str, Any]) -> tuple[str, str]:
    for names in NAMES:
        if set(names) <= set(known):
            return names
    raise InputError(
        f'data.extra={path} has the arrays {sorted(known)[:8]}: it needs `image` and `label`; if it calls '
        'them x and y, save them with np.savez(path, image=x, label=y)'
    )


def _opened(path: pathlib.Path, reader: Callable[[pathlib.Path], Any]) -> Any:
    try:
        return reader(path)
    except (OSError, ValueError) as error:
        with open(path, 'rb') as file:
            pickled = file.read(1) == b'\x80'
        if pickled:
            raise InputError(
                f'data.extra={path} is a pickle, which could run any code when it is read: docs/training.md '
                'has the lines that read its arrays alone and save them as an npz'
            ) from error
        raise InputError(
            f'data.extra={path} {error}: it is truncated or no npz; copy it again, or save it with '
            'np.savez(path, image=..., label=...)'
        ) from error
