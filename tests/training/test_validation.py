"""What held-out images tell of a network in training."""

import numpy as np

from si_jax.evaluation import sanity
from si_jax.training.validation import HeldOut


def test_a_network_that_has_collapsed_is_told_in_the_words_of_an_evaluation():
    held_out = object.__new__(HeldOut)
    labels = np.arange(40) % 10
    held_out._rows, held_out._classes = (None, labels, None), 10
    held_out._prediction = np.full(40, 3)
    (words,) = held_out.doubts(at_the_end=False)
    assert words == sanity.collapsed(np.full(40, 3), labels)[0] and words.startswith(
        'every image gets class 3'
    )
    # Near chance is every network at first.
    held_out._prediction = (labels + 1 + np.arange(40) // 20) % 10
    assert held_out.doubts(at_the_end=False) == []
    assert held_out.doubts(at_the_end=True)[0].startswith(sanity.CHANCE)
    held_out._prediction = labels
    assert held_out.doubts(at_the_end=True) == []
