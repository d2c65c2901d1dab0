"""The pool of threads that all parts of the library share."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fashion_jax.system.threads import thread_pool

FORK = """
import os, signal
from fashion_jax.system.threads import thread_pool
assert thread_pool().submit(len, "parent").result() == 6  # now a thread waits for the next task
child = os.fork()
if not child:
    signal.alarm(30)
    os._exit(thread_pool().submit(len, "child").result())
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
"""


def test_all_parts_share_a_pool():
    assert thread_pool() is thread_pool()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_has_threads_of_its_own():
    subprocess.run([sys.executable, "-c", FORK], check=True)
