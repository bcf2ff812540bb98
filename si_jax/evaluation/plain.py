"""Whether a result is of a network as it is, on the first images of a data set: by what its JSON says.

A table, a zoo and a claim speak of networks in one way. A result that was measured in another way is true,
and not what they say.
"""

from collections.abc import Collection
from typing import Any


def departures(about: dict[str, Any], but: Collection[str] = ()) -> list[str]:
    """How a result was measured otherwise, in words that follow 'it was measured'.

    Args:
        about: Its JSON.
        but: What is left out: 'logit_scale', 'live', 'gradient_of', 'eight_bit', 'smaller_radii', 'images',
            'class_map'.
    """
    model, dataset = about.get('model') or {}, about['dataset']
    chosen = {'sample': 'on random images', 'images': 'on images of a list'}
    found = {
        'logit_scale': f'with logits times {scale:g}' if (scale := model.get('logit_scale', 1)) != 1 else '',
        'live': 'with the weights of training, not their average' if model.get('weights') == 'live' else '',
        'gradient_of': 'through the gradient of another network' if about.get('gradient_of') else '',
        'eight_bit': 'with adversarial images rounded to bytes' if about.get('eight_bit') else '',
        'smaller_radii': 'in a sweep, where what broke at a smaller radius stays broken'
        if about.get('smaller_radii')
        else '',
        'images': next((words for key, words in chosen.items() if key in dataset), ''),
        'class_map': 'with labels of a class map' if 'class_map' in dataset else '',
    }
    return [words for name, words in found.items() if words and name not in but]
