"""A door for a release: the command has moved to `python -m benchmarks.conformance`."""

import runpy

if __name__ == '__main__':
    runpy.run_module('benchmarks.conformance', run_name='__main__', alter_sys=True)
