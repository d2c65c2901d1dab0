"""Downloads from Kaggle and Hugging Face. Their clients (extra "hub") are imported when they are needed."""

from __future__ import annotations

import importlib
import re
from types import ModuleType

from fashion_jax.system.errors import UserError, missing_extra

# OWNER/NAME, as Kaggle and Hugging Face name repositories.
REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"


def is_repository(name: str) -> bool:
    """True for OWNER/NAME."""
    return re.fullmatch(REPOSITORY, name) is not None


def hub_client(module: str) -> ModuleType:
    """Imports "huggingface_hub" or "kagglehub"; UserError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_extra("a download", "hub") from error


def download_error(source: str, error: Exception) -> UserError:
    """Returns the error for a failed download; the clients raise many kinds of exceptions."""
    if "No space left" in str(error):
        return UserError(f"{source} could not be downloaded: the disk is full; free some space and try again")
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(
        f"{source} could not be downloaded ({type(error).__name__}: {first}); check the name, the connection and "
        "your access, or download it elsewhere and give the path of the file"
    )
