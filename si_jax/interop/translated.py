"""What a translated network is held against."""

import abc
from typing import Any

import numpy as np


class Translated(abc.ABC):
    """A function of JAX that was made from a network of another framework, and knows that network."""

    @abc.abstractmethod
    def __call__(self, images: Any) -> Any:
        """Images [B, H, W, C] in [0, 1] -> `Outputs`, by the translation."""

    @abc.abstractmethod
    def original(self, images: np.ndarray) -> np.ndarray:
        """Images [B, H, W, C] in [0, 1] -> logits [B, K], by the network itself in its own framework."""
