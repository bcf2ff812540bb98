"""Known accelerators: what their vendors say they can do, for utilisation and for planning.

Peaks are of dense matrix products, without sparsity. Sources: NVIDIA's data sheets of the A100 (80 GB SXM),
H100 SXM and H200 SXM; Google's pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" at
cloud.google.com/tpu/docs. All give the links of a chip as the sum of both directions, or in Gbit/s; here a
link is what one chip can send, in one direction.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax

from si_jax.errors import unknown

TERA, GIGA = 1e12, 1e9


class Chip(NamedTuple):
    """An accelerator."""

    title: str  # its name in full
    kinds: tuple[str, ...]  # what JAX calls it (`device.device_kind`), as beginnings in lower case
    peak: Mapping[str, float]  # FLOP/s by precision: 'bfloat16', and on GPUs 'tf32' and 'float32'
    memory: float  # bytes
    bandwidth: float  # bytes a second to and from its memory
    link: float  # bytes a second to the other chips of its pod or machine, in one direction


def _gpu(title: str, kind: str, peaks: tuple[float, float, float], *sizes: float) -> Chip:
    peak = {name: TERA * value for name, value in zip(('bfloat16', 'tf32', 'float32'), peaks, strict=True)}
    return Chip(title, (kind,), peak, *(GIGA * size for size in sizes))


def _tpu(title: str, kinds: tuple[str, ...], peak: float, *sizes: float) -> Chip:
    return Chip(title, kinds, {'bfloat16': TERA * peak}, *(GIGA * size for size in sizes))


CHIPS: dict[str, Chip] = {
    'a100': _gpu('NVIDIA A100 80 GB SXM', 'nvidia a100', (312, 156, 19.5), 80, 2039, 300),
    'h100': _gpu('NVIDIA H100 SXM', 'nvidia h100', (989, 495, 67), 80, 3350, 450),
    'h200': _gpu('NVIDIA H200 SXM', 'nvidia h200', (989, 495, 67), 141, 4800, 450),
    # v4 and v5p: 300 and 600 GB/s over all links of the 3D torus, v5e and v6e: 200 and 400 of the 2D torus.
    'v4': _tpu('TPU v4', ('tpu v4',), 275, 32, 1228, 300),
    'v5e': _tpu('TPU v5e', ('tpu v5 lite', 'tpu v5e'), 197, 16, 819, 200),
    'v5p': _tpu('TPU v5p', ('tpu v5p', 'tpu v5'), 459, 95, 2765, 600),
    'v6e': _tpu('TPU v6e', ('tpu v6 lite', 'tpu v6e'), 918, 32, 1638, 400),
}


def find(name: str) -> Chip:
    """The chip of that name.

    Raises:
        InputError: It is not in the table.
    """
    if name not in CHIPS:
        raise unknown('chip', name, CHIPS)
    return CHIPS[name]


def of_device(device: jax.Device | None = None) -> Chip | None:
    """The chip that a device is, by default this process's first; None if it is not in the table."""
    kind = (jax.local_devices()[0] if device is None else device).device_kind.lower()
    known = [(prefix, chip) for chip in CHIPS.values() for prefix in chip.kinds if kind.startswith(prefix)]
    return max(known, key=lambda each: len(each[0]))[1] if known else None


def product_precision(platform: str, dtype: str) -> str:
    """What XLA computes products of this dtype in by default: TF32 or, on TPUs, bfloat16 for float32."""
    if dtype == 'float32':
        return {'gpu': 'tf32', 'cuda': 'tf32', 'rocm': 'tf32', 'tpu': 'bfloat16'}.get(platform, dtype)
    return dtype
