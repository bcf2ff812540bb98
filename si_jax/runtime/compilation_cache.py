"""The compilation cache: what was compiled once on a machine is not compiled again by the next command."""

import os
from pathlib import Path

import jax

VARIABLE = 'SI_JAX_COMPILATION_CACHE'


def enable() -> Path | None:
    """Has JAX keep compiled programs on disk and look for them there.

    For commands, not for libraries: it changes JAX's settings of the whole process. Programs are found by
    their text, the devices and the versions, so that a hit is the program that would have been compiled. The
    folder is the one that `JAX_COMPILATION_CACHE_DIR` names, if it is set; else the one that
    `SI_JAX_COMPILATION_CACHE` names; else `si_jax/compiled` in the user's cache folder (`XDG_CACHE_HOME`, or
    `~/.cache`).

    Returns:
        The folder; None if it is switched off by `SI_JAX_COMPILATION_CACHE=off`, or cannot be written to.
    """
    wanted = os.environ.get(VARIABLE, '')
    if wanted == 'off':
        jax.config.update('jax_enable_compilation_cache', False)
        return None
    given = jax.config.values['jax_compilation_cache_dir'] or wanted
    home = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    folder = Path(given) if given else home / 'si_jax' / 'compiled'
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a cache is a convenience: without a place for it everything still runs
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update('jax_compilation_cache_dir', str(folder))
    # By default only programs that took a second are kept; most of ours take less, but there are many.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
    return folder


def suspected() -> str:
    """Words for an error that programs of the cache explain too; '' where there is no cache.

    A program is found by its name alone, so a cache whose files were exchanged or damaged gives another.
    """
    folder = jax.config.values['jax_compilation_cache_dir']
    if not folder or not jax.config.values['jax_enable_compilation_cache']:
        return ''
    return (
        f'; or the compiled programs that are kept in {folder} are not the ones that were put there: remove '
        f'that folder, or set {VARIABLE}=off, and try again'
    )


def is_of_another_program(error: Exception) -> bool:
    """Whether an error says that a compiled program was called with what another one takes."""
    return isinstance(error, jax.errors.JaxRuntimeError) and 'InputMismatch' in str(error)
