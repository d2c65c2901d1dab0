"""Catalogues that are downloaded: `kaggle:OWNER/NAME` and `hf:OWNER/NAME` (extra "hub")."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

from fashion_jax.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = ["*.parquet", "*.csv", "*.tsv", "*.zip", "*.tar*", "*.jpg", "*.jpeg", "*.png", "*.webp"]


def is_hub_source(source: str) -> bool:
    """True for `kaggle:...` and `hf:...`."""
    return source.startswith(("kaggle:", "hf:"))


def download(source: str) -> tuple[Path, Path | None]:
    """Downloads a data set; what was downloaded before comes from the cache.

    Returns:
        Its folder, and the folder to which links in it lead: Hugging Face's cache keeps a snapshot's files elsewhere.

    Raises:
        UserError: a malformed name, the extra is not installed, or the download failed.
    """
    scheme, _, name = source.partition(":")
    if not _NAME.fullmatch(name):
        raise UserError(f"{source!r} is not of the form {scheme}:OWNER/NAME")
    try:
        if scheme == "kaggle":
            return Path(_client("kagglehub").dataset_download(name)), None
        hub = _client("huggingface_hub")
        folder = Path(hub.snapshot_download(repo_id=name, repo_type="dataset", allow_patterns=_WANTED))
        # datasets--OWNER--NAME/snapshots/REVISION links into datasets--OWNER--NAME/blobs.
        return folder, folder.parents[1] / "blobs"
    except UserError:
        raise
    except Exception as error:  # both clients raise many kinds, from requests' to their own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{source} could not be downloaded ({type(error).__name__}: {first}); check the name, the connection and "
            "your access, or download it elsewhere and give the path of the file"
        ) from error


def _client(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"downloads need {module}; run: pip install 'fashion-jax[hub]'") from error
