"""FLOP/s that training and evaluation reach, and their share of what the chip can do.

The FLOPs are the model's (`si_jax.cost.flops`), whatever the compiled program computes: recomputed and padded
values do not count.
"""

import math
from typing import Any, NamedTuple

import jax

from si_jax.cost import chips, flops


class Meter(NamedTuple):
    """Turns a speed into a share of the peak."""

    flops: float  # of one image
    precision: str  # of the products: 'bfloat16', 'tf32' or 'float32'
    devices: int  # how many share the work

    def describe(self, images_per_second: float) -> str:
        """'61.1 TFLOP/s, MFU 12.4 % of 8 NVIDIA H100 SXM', or why there is no MFU; '' without a speed.

        On a CPU it is the speed alone."""
        rate = self.flops * images_per_second
        if not math.isfinite(rate):
            return ''
        text = f'{rate / 1e12:.3g} TFLOP/s' if rate >= 1e11 else f'{rate / 1e9:.3g} GFLOP/s'
        chip = chips.of_device()
        if chip is None and jax.default_backend() == 'cpu':
            return text  # no vendor states a peak of these cores
        if chip is None:
            return f'{text}, unknown chip {jax.local_devices()[0].device_kind}'
        if self.precision not in chip.peak:
            return f'{text}, {self.precision} on a {chip.title} has no published peak'
        share = rate / (self.devices * chip.peak[self.precision])
        return f'{text}, MFU {100 * share:.1f} % of {self.devices} {chip.title}'


def of_training(ready: Any) -> Meter:
    """The meter of a run, from its `si_jax.training.setup.Setup`."""
    config = ready.config
    changes = config.epochs * (1 if config.ramp.every == 'epoch' else ready.steps_per_epoch)
    steps = flops.mean_steps(config.attack.steps, config.ramp.steps, changes)
    passes = flops.training_passes(ready.defense, steps, awp=ready.awp is not None)
    network = flops.network(ready.model, ready.train.images.shape[1:])
    precision = chips.product_precision(jax.default_backend(), ready.config.model.dtype)
    return Meter(passes.total * network.flops, precision, jax.device_count())
