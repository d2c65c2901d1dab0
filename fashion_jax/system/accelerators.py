"""Whether JAX would compute on an accelerator, found without importing JAX where that is possible."""

from __future__ import annotations

import os
import sys
from importlib import metadata, util

# Modules and variables by which JAX finds something else than CPUs.
_MODULES = ("libtpu", "jax_plugins")
_VARIABLES = ("TPU_LIBRARY_PATH", "PJRT_NAMES_AND_LIBRARY_PATHS")


def has_accelerator() -> bool:
    """Returns whether JAX would compute on a GPU or TPU.

    JAX is imported only if a plugin for accelerators is installed, or if the user names a platform other than "cpu".
    Importing JAX and starting its devices takes about 2 s.
    """
    jax = sys.modules.get("jax")
    platforms = os.environ.get("JAX_PLATFORMS", "") if jax is None else jax.config.jax_platforms or ""
    if platforms.split(",")[0] == "cpu" or (not platforms and not _may_have_plugin()):
        return False
    from fashion_jax.system.devices import on_accelerator

    return on_accelerator()


def _may_have_plugin() -> bool:
    return (
        any(os.environ.get(name) for name in _VARIABLES)
        or any(util.find_spec(name) is not None for name in _MODULES)
        or bool(metadata.entry_points(group="jax_plugins"))
    )
