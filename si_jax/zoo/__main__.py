"""A door for a release: the command has moved to `python -m si_jax.cli.zoo`."""

import runpy

if __name__ == '__main__':
    runpy.run_module('si_jax.cli.zoo', run_name='__main__', alter_sys=True)
