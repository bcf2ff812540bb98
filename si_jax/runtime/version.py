"""The version of the package, which its git tags give."""

from importlib import metadata

try:
    __version__ = metadata.version('si_jax')
except metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = '0.1.0'
