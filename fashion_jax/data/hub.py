"""Catalogues that are downloaded: `kaggle:OWNER/NAME` and `hf:OWNER/NAME` (extra "hub")."""

from __future__ import annotations

from pathlib import Path

from fashion_jax.system.downloads import download_error, hub_client, is_repository
from fashion_jax.system.errors import UserError

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
    if not is_repository(name):
        raise UserError(f"{source!r} is not of the form {scheme}:OWNER/NAME")
    try:
        if scheme == "kaggle":
            return Path(hub_client("kagglehub").dataset_download(name)), None
        hub = hub_client("huggingface_hub")
        folder = Path(hub.snapshot_download(repo_id=name, repo_type="dataset", allow_patterns=_WANTED))
        # datasets--OWNER--NAME/snapshots/REVISION links into datasets--OWNER--NAME/blobs.
        return folder, folder.parents[1] / "blobs"
    except UserError:
        raise
    except Exception as error:
        raise download_error(source, error) from error
