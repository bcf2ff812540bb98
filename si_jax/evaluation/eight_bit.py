"""Images of 8 bits: what an attack returns is rounded to bytes, as a picture on disk holds them.

A perturbation between two bytes is lost in a PNG. So with `eight_bit` the images that attacks return are
rounded before they are judged, and the rounded ones stay in the ball: they are what is audited, classified
and returned.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from si_jax.errors import InputError
from si_jax.evaluation.pixels import Images, Pixels
from si_jax.threat import Threat

WHITE = 255
NEAR = 1e-6  # how far a pixel in float32 may be from its byte


def check(images: Images, indices: np.ndarray) -> None:
    """Raises InputError unless all pixels [N, H, W, C] are multiples of 1/255."""
    if isinstance(images, Pixels) and WHITE % images.scale == 0:
        return
    for first in range(0, len(images), 1024):
        some = images[first : first + 1024]
        off = np.abs(some - np.rint(some * WHITE) / WHITE).max(axis=(1, 2, 3))
        if (off > NEAR).any():
            worst = first + int(np.argmax(off > NEAR))
            raise InputError(
                f'eight_bit=True, and image {indices[worst]} has pixels between the bytes (by up to '
                f'{off[worst - first]:.3g}): give images that are multiples of 1/255, or leave eight_bit out'
            )


def rounded(found: np.ndarray, images: np.ndarray, threat: Threat) -> np.ndarray:
    """What an attack made of 8-bit images, as 8-bit images inside the ball, [M, H, W, C].

    Each pixel becomes the nearest byte. Where that takes a pixel alone out of the ball it becomes the byte on
    the side of the original, which is no further away than what was found. Where the image as a whole is
    outside then, all its pixels do.

    Args:
        found: [M, H, W, C] in the ball and in [0, 1].
        images: [M, H, W, C], the originals, multiples of 1/255 to rounding.
        threat: The ball. Its audit's tolerance counts as inside, so that 8/255 is 8 bytes.
    """
    origin = np.rint(np.asarray(images, np.float64) * WHITE)
    moved = np.asarray(found, np.float64) * WHITE - origin
    nearest, inner = np.rint(moved), np.trunc(moved)
    limit = threat.eps + threat.ball.tolerance * max(1.0, threat.eps)
    steps = np.where(np.abs(nearest) / WHITE <= limit, nearest, inner)
    outside = threat.ball.length(steps / WHITE, np) > limit
    steps = np.where(outside[:, None, None, None], inner, steps)
    # A pixel that is not moved stays what it was to the last bit.
    made = np.clip(origin + steps, 0, WHITE) / WHITE
    return np.where(steps == 0, images, made.astype(images.dtype))


def as_bytes(images: np.ndarray) -> np.ndarray:
    """8-bit images in [0, 1] as uint8."""
    return np.rint(np.asarray(images, np.float64) * WHITE).astype(np.uint8)


def check_png(shape: tuple[int, ...]) -> None:
    """Raises InputError unless images [H, W, C] can be PNGs."""
    if shape[2] not in (1, 3):
        raise InputError(
            f'save_images=png: images have {shape[2]} channels, and a PNG has 1 or 3: save them without =png'
        )


def folder_of(path: Path) -> Path:
    """Where the PNGs of a result lie."""
    return path.with_name(f'{path.stem}_images')


def write_png(path: Path, images: Mapping[str, np.ndarray], indices: np.ndarray) -> None:
    """Writes `<stem>_images/<attack>/<number of the image>.png` beside the JSON file of a result.

    Args:
        path: The JSON file.
        images: Attack name to 8-bit images [N, H, W, C].
        indices: [N], the numbers of the images.

    Raises:
        OSError: A file cannot be written.
    """
    from PIL import Image  # takes a while to import, and only this needs it

    for folder in folder_of(path).glob('*/'):  # of a result with other attacks that is replaced
        if folder.name not in images:
            for old in folder.glob('*.png'):
                old.unlink()
            with contextlib.suppress(OSError):
                folder.rmdir()
    for name, each in images.items():
        folder = folder_of(path) / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob('*.png'):  # of a result that is replaced
            old.unlink()
        for number, image in zip(indices, as_bytes(each), strict=True):
            pixels: Any = image[..., 0] if image.shape[2] == 1 else image
            Image.fromarray(pixels).save(folder / f'{number}.png')
