"""Starts the process again with glibc's allocator asking for huge pages, which it decides once, when a process begins.

XLA allocates the space of a training step anew at each step. On two cores that were 190,000 page faults a second; with
pages of 2 MiB there were 1,700, and training in bfloat16 1.14 times as fast
(experiments/LOG.md).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_TUNABLES = "GLIBC_TUNABLES"
_HUGE_PAGES = "glibc.malloc.hugetlb"
_KERNEL_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Replaces this process with the same command under `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`; may not return.

    Only for the start of a program: what ran before is lost. Does nothing where the user has set that tunable (to 0,
    say), where glibc is older than 2.35 or another C library, and where the kernel gives huge pages to all or to none.
    """
    tunables = os.environ.get(_TUNABLES, "")
    if _HUGE_PAGES in tunables or not _can_ask_for_huge_pages():
        return
    environment = {**os.environ, _TUNABLES: ":".join(filter(None, (tunables, f"{_HUGE_PAGES}=1")))}
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    except OSError:  # a Python that is embedded in another program; only slower
        return


def _can_ask_for_huge_pages() -> bool:
    if sys.platform != "linux" or not sys.executable:
        return False
    try:
        library, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        return (
            library == "glibc"
            and tuple(map(int, version.split(".")[:2])) >= (2, 35)
            and "[madvise]" in _KERNEL_SETTING.read_text()
        )
    except (OSError, ValueError):
        return False
