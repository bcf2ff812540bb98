"""How images of different sizes become images of one size, by the names that RobustBench uses.

    Res256Crop224         the shorter side to 256 pixels, bilinear, then the middle 224 x 224
    BicubicRes256Crop224  the same, bicubic
    Crop288               the middle 288 x 288; a smaller image gets black borders
    Res224                both sides to 224, whatever the proportions, bilinear
    None                  as they are

Any other sizes can stand in such a name (`Res72Crop64`). Images become RGB. Pillow resizes with a filter as
wide as the reduction, so that nothing aliases: torchvision resizes PIL images by the same call.

Source: repository RobustBench/robustbench, robustbench/data.py, `PREPROCESSINGS`; torchvision's
transforms.Resize and CenterCrop for how sizes and corners are rounded.
"""

import re
from typing import Any, NamedTuple

import numpy as np

from si_jax.errors import InputError

NAMES = ('None', 'Res256Crop224', 'BicubicRes256Crop224', 'Crop288', 'Res224')  # RobustBench's
LARGEST = 4096  # pixels of a side
# Of Pillow: 8 bits a channel. Others would be cut off as they become RGB.
MODES = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr')


class Preprocessing(NamedTuple):
    """A name, read: call it on a PIL image of any size to get one of `shape`."""

    resize: int = 0  # pixels, 0 for none
    crop: int = 0  # likewise
    bicubic: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of what it makes."""
        side = self.crop or self.resize
        return side, side, 3

    def check(self, image: Any) -> None:
        """Raises ValueError if an image has more than 8 bits a channel; it is not decoded."""
        if image.mode not in MODES:
            raise ValueError(f'its mode {image.mode} has more than 8 bits a channel')

    def __call__(self, image: Any) -> Any:
        """The image in RGB, resized and cropped.

        Raises:
            ValueError: It has more than 8 bits a channel.
        """
        from PIL import Image

        self.check(image)
        image = image.convert('RGB')
        if self.resize:
            kind = Image.Resampling.BICUBIC if self.bicubic else Image.Resampling.BILINEAR
            size = _resized(image.size, self.resize) if self.crop else (self.resize, self.resize)
            image = image if image.size == size else image.resize(size, kind)
        return image.crop(_middle(image.size, self.crop)) if self.crop else image

    def of(self, pixels: np.ndarray) -> np.ndarray:
        """The same of an array uint8 [H, W, C] with 1 or 3 channels."""
        from PIL import Image

        return np.asarray(self(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)))


def _resized(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """The size (width, height) whose shorter side has so many pixels; the longer one is rounded down."""
    width, height = size
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _middle(size: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the middle square, outside of the image where that is smaller."""

    def start(length: int) -> int:
        # Of an odd border torchvision adds the smaller half before the image, and cuts the half that is even.
        return -((side - length) // 2) if length < side else round((length - side) / 2)

    left, top = map(start, size)
    return left, top, left + side, top + side


def named(name: str) -> Preprocessing | None:
    """The preprocessing of this name; None for '' and 'None'.

    Raises:
        InputError: There is no such name, or a size is beyond reason.
    """
    if name in ('', 'None'):
        return None
    found = re.fullmatch(r'(?:(Bicubic)?Res([1-9]\d*))?(?:Crop([1-9]\d*))?', name)
    if not found:
        raise InputError(
            f'unknown preprocessing {name!r}: RobustBench has {", ".join(NAMES)}; other sizes are written '
            'in the same way, as in Res72Crop64'
        )
    bicubic, resize, crop = found.groups()
    sizes = int(resize or 0), int(crop or 0)
    if max(sizes) > LARGEST:
        raise InputError(f'preprocessing {name!r} has a side of {max(sizes)}, {LARGEST} is the limit')
    return Preprocessing(*sizes, bicubic is not None)
