"""Where pretrained weights lie: a local file or folder, one of our packages, or a name on the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fashion_jax.system import files
from fashion_jax.system.downloads import REPOSITORY, download_error, hub_client
from fashion_jax.system.errors import UserError

WEIGHTS, CONFIG, PREPROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
OWN_WEIGHTS = "weights.safetensors"
_HUB_NAME = re.compile(rf"({REPOSITORY})(?:@((?!.*\.\.)\w[\w./-]{{0,200}}))?")
_PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle", ".tar")
_MOST_JSON = 8 << 20  # bytes


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files of one source.

    Attributes:
        source: as it was asked for.
        weights: a safetensors file.
        config: config.json beside it; empty where there is none.
        preprocessor: preprocessor_config.json beside it; empty where there is none.
        own: whether it is one of our packages.
    """

    source: str
    weights: Path
    config: dict[str, Any]
    preprocessor: dict[str, Any]
    own: bool

    def digest(self) -> str:
        """Returns the sha256 of the weights' file, in hexadecimal."""
        with self.weights.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def find_weights(source: str) -> WeightFiles:
    """Finds the files of a source; what the Hub has is downloaded, or comes from its cache.

    Args:
        source: a `.safetensors` file, a folder of timm's or transformers' layout on the Hub (config.json,
            model.safetensors), a package or a workdir of ours, or OWNER/NAME[@REVISION] on the Hub. What exists as a
            path is never looked for on the Hub.

    Raises:
        UserError: nothing is there, it holds pickled weights only, or a JSON file is damaged.
    """
    local = find_local_weights(source)
    if local is not None:
        return local
    match = _HUB_NAME.fullmatch(source)
    if not match or Path(source).suffix in (".safetensors", *_PICKLES):
        raise UserError(f"config.model.pretrained={source!r}: there is nothing at that path, and it is no OWNER/NAME")
    return _from_folder(source, _download(source, match[1], match[2]))


def find_local_weights(source: str) -> WeightFiles | None:
    """As `find_weights`, but returns None for what is no path that exists."""
    path = Path(source)
    if path.is_dir():
        return _from_folder(source, path)
    if not path.exists():
        return None
    if path.suffix != ".safetensors":
        raise UserError(f"{source} is no .safetensors file{_about_pickles([path])}")
    if not path.is_file():
        raise UserError(f"{source} is no ordinary file")
    return _read(source, path)


def _from_folder(source: str, folder: Path) -> WeightFiles:
    for own in (folder / OWN_WEIGHTS, folder / "package" / OWN_WEIGHTS):
        if own.is_file():
            return _read(source, own)
    if (folder / WEIGHTS).is_file():
        return _read(source, folder / WEIGHTS)
    if (folder / "checkpoints").is_dir():
        raise UserError(f"{source} is the workdir of a run that has not finished: it holds no package/{OWN_WEIGHTS}")
    raise UserError(f"{source} holds no {WEIGHTS}, and is no package of ours{_about_pickles(sorted(folder.iterdir()))}")


def _read(source: str, weights: Path) -> WeightFiles:
    config = _read_object(weights.parent / CONFIG)
    # A file may lie in a folder where config.json is about something else.
    of_the_file = {"architecture", "architectures", "model_type", "pretrained_cfg", "digests"} & config.keys()
    return WeightFiles(
        source,
        weights,
        config if of_the_file else {},
        _read_object(weights.parent / PREPROCESSOR),
        own="digests" in config and weights.name == OWN_WEIGHTS,
    )


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > _MOST_JSON:
        raise UserError(f"{path} is larger than a configuration is")
    return files.read_json_object(path)


def _about_pickles(paths: list[Path]) -> str:
    pickles = [path.name for path in paths if path.suffix in _PICKLES]
    if not pickles:
        return ""
    return (
        f"; {pickles[0]} is pickled, and a pickle can run any program when it is read: convert it where you trust it, "
        f"with safetensors.torch.save_file(torch.load(...), {WEIGHTS!r})"
    )


def _download(source: str, name: str, revision: str | None) -> Path:
    try:
        hub = hub_client("huggingface_hub")
        wanted = [CONFIG, PREPROCESSOR, WEIGHTS]
        return Path(hub.snapshot_download(repo_id=name, revision=revision, allow_patterns=wanted))
    except UserError:
        raise
    except Exception as error:
        raise download_error(source, error) from error
