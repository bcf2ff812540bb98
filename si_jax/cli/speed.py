"""FLOP/s that the attacks of an evaluation reached."""

from typing import Any

import jax
import jax.numpy as jnp

from si_jax.cost import flops
from si_jax.cost.mfu import Meter
from si_jax.evaluation.classifier import classifier_of
from si_jax.evaluation.result import Result


def of_evaluation(result: Result, classifier: Any, image_shape: tuple[int, ...]) -> str:
    """What the attacks of a result reached, compilation included; '' if there were none that can be counted.

    Forward passes and the gradients of images count; attacks of the user's own that are callables do not, nor
    do transfer and the passes that decide.
    """
    passes, seconds = 0.0, 0.0
    for name, record in result.attacks.items():
        if any('forward_passes' not in stage for stage in record.stages):
            continue  # of transfer, whose passes are not counted
        if record.stages:
            passes += sum(stage['forward_passes'] + stage['backward_passes'] for stage in record.stages)
        elif record.steps is not None:
            passes += 2.0 * record.steps * record.eot_samples * record.runs.size
        else:
            continue
        seconds += result.timing['parts'][name]
    if not seconds:
        return ''
    key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    one = flops.count(classifier_of(classifier).function, image, key)
    meter = Meter(one, result.precision['search'], jax.local_device_count())
    return 'attacks: ' + meter.describe(passes / seconds) + ', compilation included'
