"""Compiled programs are kept on disk for the session: these tests evaluate the same networks many times."""

import atexit
import shutil
import tempfile

import jax

_folder = tempfile.mkdtemp(prefix='si_jax-programs-')
atexit.register(shutil.rmtree, _folder, ignore_errors=True)
jax.config.update('jax_compilation_cache_dir', _folder)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
