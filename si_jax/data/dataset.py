"""What a data set is: `Source`, a row that says what it holds and how it is read; `Dataset`, what was read.

A reader is called with a split and a folder. It returns arrays, or a `Loader`, an object of two methods. What
it returns is checked against its row before anything is computed.
"""

import operator
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np

from si_jax.data.stream import Lazy, parts
from si_jax.errors import InputError
from si_jax.storage.files import check_regular

SPLITS = ('train', 'test')
SHOWN = 5  # names in a message


class Arrays(NamedTuple):
    """One split as it was read.

    Attributes:
        images: uint8 [N, H, W, C], an array or a `Lazy`.
        labels: Integers [N].
        files: Where they were read: files in their order, or a folder or package that has them.
        names: [N], of the images, such as `class/file`; () if they have none.
        identity: What tells these images from others where it would take long to read all of their pixels;
            '' for the pixels.
    """

    images: Any
    labels: np.ndarray
    files: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    identity: str = ''


class Loader(Protocol):
    """One split, image by image."""

    def __len__(self) -> int:
        """How many images there are."""

    def __getitem__(self, index: int, /) -> tuple[Any, int]:
        """Image and label of number `index`: what NumPy reads as uint8 [H, W, C], and an integer."""


# (split, folder or None) -> one of the two, or the two arrays of `Arrays` as a plain pair.
Reader = Callable[[str, Any], Arrays | tuple[np.ndarray, np.ndarray] | Loader]


class Source(NamedTuple):
    """A data set as a row: what is known of it before it is read, and its reader.

    Attributes:
        read: Called with a split, 'train' or 'test', and the folder that was given (`--config.data.dir`,
            `--data_dir`; None without one). It returns uint8 images [N, H, W, C] and integer labels [N], or a
            `Loader`.
        shape: (H, W, C) of an image.
        num_classes: Labels are 0 to num_classes - 1. 0 where `classes` names them.
        classes: Their names in the order of the labels; () if they have none.
        train_images: Images of the training split; 0 if that is known only once it is read.
        scale: Stored value of white: stored / scale is in [0, 1].
        crop: Padding of the random crop in training, 0 for none.
        flip: Whether training flips images left and right; digits must keep their side.
        described: Where it comes from, for the pages and for `Dataset.files`.
        code: The Python file that registered it; '' for none.
        code_digest: The SHA-256 of that file, as it was then.
    """

    read: Reader
    shape: tuple[int, int, int]
    num_classes: int = 0
    classes: tuple[str, ...] = ()
    train_images: int = 0
    scale: int = 255
    crop: int = 0
    flip: bool = False
    described: str = ''
    code: str = ''
    code_digest: str = ''

    def dataset(
        self,
        name: str,
        images: np.ndarray,
        labels: np.ndarray,
        files: tuple[str, ...] = (),
        names: tuple[str, ...] = (),
        identity: str = '',
    ) -> 'Dataset':
        """These images as the data set `name`."""
        own = self.num_classes, self.scale, self.crop, self.flip
        return Dataset(name, images, labels, *own, files, self.classes, names, identity)

    def load(
        self, name: str, split: str, folder: str | pathlib.Path | None, *, lazy: bool = False
    ) -> 'Dataset':
        """One split, read and checked; with `lazy` its images may be a `Lazy`.

        Raises:
            InputError: The reader refuses, or what it gives is not what the row says.
        """
        what = f'the {split} split of {name}'
        images, labels, files, names, identity = arrays_of(self.read(split, folder), self.shape, what)
        labels = checked(what, images, labels, self.shape, self.num_classes, self.scale)
        files = files or tuple(filter(None, (self.code or self.described,)))
        found = self.dataset(name, images, labels, files, names, identity)
        return found if lazy else found.whole()


class Dataset(NamedTuple):
    """Images in the original order, on the host.

    Attributes:
        name: As it was asked for.
        images: uint8 [N, H, W, C], from 0 to `scale`; a `Lazy` where that was asked for.
        labels: int32 [N], from 0 to `num_classes` - 1.
        num_classes, scale, crop, flip, classes: As in `Source`.
        files, names, identity: As in `Arrays`.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    scale: int
    crop: int
    flip: bool
    files: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    identity: str = ''

    def whole(self) -> 'Dataset':
        """The same with its images in memory."""
        return self._replace(images=np.asarray(self.images))


def arrays_of(found: Any, shape: tuple[int, ...], what: str) -> Arrays:
    """What a reader returned as arrays; a loader is asked for one image after the other.

    Raises:
        InputError: An item of a loader is no uint8 image of this shape with an integer label.
    """
    if isinstance(found, tuple):
        images, labels, *files = found
        images = images if isinstance(images, Lazy) else np.asarray(images)
        return Arrays(images, np.asarray(labels), *files)
    images, labels = np.empty((len(found), *shape), np.uint8), np.empty(len(found), np.int64)
    for index in range(len(found)):
        item, label = found[index]
        image = np.asarray(item)
        if image.dtype != np.uint8 or image.shape != tuple(shape):
            raise InputError(
                f'image {index} of {what} is {image.dtype} {image.shape}, not uint8 {tuple(shape)}: return '
                'whole numbers 0 to 255 of that [height, width, channels], or give the source another shape'
            )
        try:
            images[index], labels[index] = image, operator.index(label)
        except TypeError:
            raise InputError(
                f'label {label!r} of image {index} of {what} is no integer: return the index of its class'
            ) from None
    return Arrays(images, labels)


def checked(
    what: str,
    images: Any,
    labels: np.ndarray,
    shape: tuple[int, ...],
    num_classes: int,
    scale: int,
) -> np.ndarray:
    """The labels as int32 [N], if images and labels are as they should be; `what` names them in errors.

    Raises:
        InputError: They are of another type or shape, or beyond the scale or the classes.
    """
    if images.dtype != np.uint8:
        raise InputError(f'{what}: images are {images.dtype}, not uint8: store whole numbers 0 to 255')
    if images.ndim != 4 or images.shape[1:] != tuple(shape):
        raise InputError(
            f'{what}: images have shape {images.shape}, not (N, {", ".join(map(str, shape))}): '
            'store them as [N, height, width, channels]'
        )
    # Which reads all of them.
    highest = 0 if scale == 255 else max((int(part.max(initial=0)) for part in parts(images)), default=0)
    if highest > scale:
        raise InputError(
            f'{what}: images go up to {highest}, where white is {scale}: store them up to {scale}'
        )
    if labels.dtype.kind not in 'iu':
        raise InputError(f'{what}: labels are {labels.dtype}, not integers: store class indices')
    if labels.shape != images.shape[:1] or not len(labels):
        raise InputError(
            f'{what}: labels have shape {labels.shape} for images {images.shape}: '
            'store one label an image, and at least one image'
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise InputError(
            f'{what}: label {labels[wrong[0]]} of image {wrong[0]} is not in [0, {num_classes - 1}]: '
            f'number the {num_classes} classes from 0'
        )
    return labels.astype(np.int32)


def check_every_class(what: str, labels: np.ndarray, count: int, names: tuple[str, ...]) -> None:
    """Refuses training labels [N], in [0, count - 1], among which a class is missing.

    Raises:
        InputError: One is; `names` are those of the classes, () if they have none.
    """
    # Among so many numbers one is missing, if any is.
    empty = np.setdiff1d(np.arange(min(count, len(labels) + 1)), labels)
    if empty.size:
        name = f' ({names[empty[0]]})' if names else ''
        raise InputError(
            f'{what} has no training image of class {empty[0]}{name}: number at least two classes from 0 '
            'without gaps, each with images'
        )


def read_classes(path: pathlib.Path) -> tuple[str, ...]:
    """The names of classes in a text file, one a line in the order of their labels; () without the file.

    Raises:
        InputError: It is no text, a line is empty, or a name comes twice.
    """
    try:
        text = check_regular(path).read_text(encoding='utf-8')
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise InputError(f'{path} cannot be read as text ({error}): write one class a line') from error
    return check_classes(str(path), (line.strip() for line in text.splitlines()))


def check_classes(what: str, names: Iterable[str]) -> tuple[str, ...]:
    """The names, if there are at least two and each is there once."""
    names = tuple(names)
    if '' in names:
        raise InputError(
            f'{what}: class {names.index("")} has no name: give each class one, and no empty line'
        )
    if twice := {name for name in names if names.count(name) > 1} if len(names) < 10**4 else ():
        raise InputError(f'{what} names the class {min(twice)!r} twice: labels are the positions of names')
    if len(names) < 2:
        raise InputError(f'{what} names {len(names)} classes: there are at least two')
    return names


def listed(names: Iterable[Any]) -> str:
    """The first names and how many more there are, for messages."""
    names = list(map(str, names))
    more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
    return ', '.join(names[:SHOWN]) + more
