"""Every test runs on eight simulated CPU devices, with float64 enabled."""

import os

# Before JAX is imported. NPROC sizes the thread pool: with the default of one thread a core, collectives over
# eight simulated devices can wait for each other forever on a small machine.
os.environ['JAX_PLATFORMS'] = 'cpu'
# Most of the suite's time is compiling programs that run for milliseconds: unoptimised code is there sooner,
# and the older emitters of fused loops are three times as quick as the newer.
os.environ['XLA_FLAGS'] = ' '.join(
    (
        os.environ.get('XLA_FLAGS', ''),
        '--xla_force_host_platform_device_count=8',
        '--xla_backend_optimization_level=0',
        '--xla_cpu_use_fusion_emitters=false',
        '--xla_cpu_parallel_codegen_split_count=1',
    )
)
os.environ.setdefault('NPROC', '16')
# Of PyTorch and BLAS, whose threads would spend their time waiting for each other over a few numbers.
os.environ.setdefault('OMP_NUM_THREADS', '1')

# What one test, worker or command compiled need not be compiled again.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', os.path.abspath('.pytest_cache/compiled'))
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

import contextlib
import gc
import pathlib
import resource
import sys

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# Tracing makes and drops many small objects: the default looks through all that is alive far too often.
gc.set_threshold(100_000, 20, 20)
jax.config.update('jax_enable_x64', True)
jax.config.update('jax_threefry_partitionable', True)

pytest_plugins = ['tests.helpers.fixtures_data', 'tests.helpers.slow']


@pytest.fixture(scope='module', autouse=True)
def forget_compiled_programs():
    """Each live program holds over a megabyte and three memory mappings, of which a process may have 65,530.

    The next modules can use what is kept, so it goes only once there are about a thousand programs.
    """
    yield
    mappings = pathlib.Path('/proc/self/maps')
    if not mappings.exists() or mappings.read_bytes().count(b'\n') > 5_000:
        from si_jax.runtime import programs

        jax.clear_caches()
        programs.forget()


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
    """The folder with real images, reference networks and reference results that lies beside the project."""
    path = pathlib.Path(os.environ.get('SI_JAX_SHARED', ROOT.parent / 'shared'))
    if not path.is_dir():
        pytest.skip(f'no reference material: {path} is not a folder (set SI_JAX_SHARED)')
    return path.resolve()


@pytest.fixture
def defenses_before():
    """The table of defenses before the test, which may register rows of its own; they are gone after it."""
    from si_jax.defenses import DEFENSES

    before = dict(DEFENSES)
    yield before
    DEFENSES.clear()
    DEFENSES.update(before)


@pytest.fixture
def no_room():
    """A context in which no file of this process grows beyond so many bytes: a real error of the system."""

    @contextlib.contextmanager
    def limited(size: int):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
