"""Test sets with common corruptions, such as CIFAR-10-C: `corrupted:FOLDER/NAME@SEVERITY`.

The folder holds what its authors publish: for each corruption a file `NAME.npy`, uint8 [5 M, H, W, C], whose
first M images have severity 1, the next M severity 2 and so on; and `labels.npy`, the labels of all 5 M.

Source: Hendrycks and Dietterich (2019), "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations"; CIFAR-10-C is Zenodo record 2535967, CIFAR-100-C 3555552.
"""

import pathlib
import re
from typing import Any

import numpy as np

from si_jax.data.dataset import Arrays, Source, checked
from si_jax.errors import InputError, unknown
from si_jax.storage.files import check_regular

SEVERITIES = (1, 2, 3, 4, 5)
LABELS = 'labels'
# The fifteen that are scored; the files have four more for a choice of hyperparameters.
STANDARD = (
    'gaussian_noise', 'shot_noise', 'impulse_noise', 'defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur',
    'snow', 'frost', 'fog', 'brightness', 'contrast', 'elastic_transform', 'pixelate', 'jpeg_compression',
)  # fmt: skip


def names(folder: str | pathlib.Path) -> list[str]:
    """The corruptions that a folder has.

    Raises:
        InputError: It has none.
    """
    folder = pathlib.Path(folder).expanduser()
    found = sorted(path.stem for path in folder.glob('*.npy') if path.stem != LABELS)
    if not found or not (folder / f'{LABELS}.npy').is_file():
        raise InputError(
            f'{folder} holds no corrupted test set: it needs {LABELS}.npy and a file like fog.npy for each '
            'corruption, as CIFAR-10-C.tar has them (https://zenodo.org/records/2535967)'
        )
    return found


def source(place: str, folder: str | pathlib.Path | None = None) -> Source:
    """The row of one corruption at one severity.

    Args:
        place: `FOLDER/NAME@SEVERITY`.
        folder: Stands in place of that folder, if it is given.

    Raises:
        InputError: The place is not of that form; there is no such corruption; or a file is damaged, or holds
            something else.
    """
    found = re.fullmatch(r'(?P<path>.+)@(?P<severity>[1-5])', place)
    if found is None:
        raise InputError(
            f'corrupted:{place} is not of the form corrupted:FOLDER/NAME@SEVERITY, SEVERITY from 1 to 5, '
            'as in corrupted:CIFAR-10-C/fog@3'
        )
    path, severity = pathlib.Path(found['path']).expanduser(), int(found['severity'])
    home = pathlib.Path(folder).expanduser() if folder else path.parent
    if path.name not in (there := names(home)):
        raise unknown('corruption', path.name, there)
    images, labels = (_array(home / f'{stem}.npy') for stem in (path.name, LABELS))
    what = f'{home / path.name}.npy'
    if len(images) % len(SEVERITIES) or images.ndim != 4 or labels.ndim != 1 or len(labels) != len(images):
        raise InputError(
            f'{what} has shape {images.shape} and {LABELS}.npy {labels.shape}: there must be as many labels '
            'as images [5 M, H, W, C], a fifth of them for each severity; get the folder again'
        )
    each = len(images) // len(SEVERITIES)
    rows = slice((severity - 1) * each, severity * each)
    classes = int(labels.max(initial=1)) + 1 if labels.dtype.kind in 'iu' else 2
    checked(what, images[rows], labels[rows], images.shape[1:], classes, 255)

    def read(split: str, _: Any) -> Arrays:
        if split != 'test':
            raise InputError(f'corrupted:{place} is a test set, and has no images to train on')
        return Arrays(np.asarray(images[rows]), labels[rows], (what,))

    return Source(read, images.shape[1:], classes, described=f'{path.name}, severity {severity}')


def _array(path: pathlib.Path) -> np.ndarray:
    """The array of an npy file, which stays on the disk; Python objects are refused."""
    try:
        found: np.ndarray = np.load(check_regular(path), mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f'{path} cannot be read as an array ({error}): get it again') from error
    return found
