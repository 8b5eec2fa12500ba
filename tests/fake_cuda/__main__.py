"""Run a script, or a module with -m, under the double: python -m tests.fake_cuda [-m] NAME ARGUMENTS.

Programs that it starts do not have the double, except by the same command.
"""

import runpy
import sys

from tests.fake_cuda.install import install

install()
as_module = sys.argv[1] == "-m"
name = sys.argv[2 if as_module else 1]
sys.argv = sys.argv[2 if as_module else 1 :]
if as_module:
    runpy.run_module(name, run_name="__main__", alter_sys=True)
else:
    runpy.run_path(name, run_name="__main__")
