"""Backbones that somebody trained before: read, checked, and converted to our names.

Three kinds are read: ResNets of timm and torchvision, ResNets of transformers, and our own packages (their colour
features too, not their heads). A ResNet v1, with its stride on the first 1x1 convolution, has the same tensors as v1.5.
The config.json of transformers shows the difference; a file without a config.json does not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from flax import traverse_util

from fashion_jax.models.classifier import abstract_classifier
from fashion_jax.models.torch_layout import (
    OWN,
    Layout,
    check_config,
    find_layout,
    read_architecture,
    refuse,
    transpose_from_torch,
)
from fashion_jax.system import files as system_files
from fashion_jax.system import stored
from fashion_jax.system.downloads import REPOSITORY, download_error, hub_client
from fashion_jax.system.errors import UserError
from fashion_jax.system.stored import check_files, read_document

# Of torchvision and timm, where a file does not say how photos were normalised.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WEIGHTS, CONFIG, PREPROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
OWN_WEIGHTS = "weights.safetensors"
_HUB_NAME = re.compile(rf"({REPOSITORY})(?:@((?!.*\.\.)\w[\w./-]{{0,200}}))?")
_PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle", ".tar")
_MOST_JSON = 8 << 20  # bytes
_REMEDY = "download the folder of the model again"
_FLOATS = ("F64", "F32", "F16", "BF16")


# of the fields of `PretrainedInfo`, but for mean and std
_KINDS = {
    "source": str, "digest": str, "layout": str, "depth": int, "width": int, "stem": str, "pooling": str, "colour": bool
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PretrainedInfo:
    """What a run keeps of its pretrained weights, as JSON values."""

    source: str  # as it was asked for
    digest: str  # sha256 of the weights' file
    layout: str  # whose names they had
    depth: int  # of the ResNet
    width: int  # of the ResNet
    stem: str  # of the ResNet
    mean: tuple[float, ...]  # of RGB in [0, 1], with which photos were normalised
    std: tuple[float, ...]  # of RGB in [0, 1]
    pooling: str = "average"  # "gem" where the weights have its power (ours alone), else "average"
    colour: bool = False  # whether the weights hold colour features, as only those of our own packages do

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> PretrainedInfo:
        """The inverse of `dataclasses.asdict` and JSON; TypeError, ValueError or KeyError for anything else."""
        for name, kind in _KINDS.items():
            if type(values[name]) is not kind:
                raise TypeError(f"{name} is {values[name]!r}")
        mean, std = (tuple(float(number) for number in values[name]) for name in ("mean", "std"))
        return PretrainedInfo(**{**values, "mean": mean, "std": std})


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A backbone."""

    info: PretrainedInfo  # where it comes from and what it is
    # "params/backbone/..." and "batch_stats/backbone/..." -> float32 array, of stem and stages, and the power of GeM
    # where there is one; the same for "colour"
    weights: dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files of one source."""

    source: str  # as it was asked for
    weights: Path  # a safetensors file
    config: dict[str, Any]  # config.json beside it; empty where there is none
    preprocessor: dict[str, Any]  # preprocessor_config.json beside it; empty where there is none
    own: bool  # whether it is one of our packages

    def digest(self) -> str:
        """Returns the sha256 of the weights' file, in hexadecimal."""
        return system_files.file_digest(self.weights)


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
        raise UserError(
            f"config.model.pretrained={source!r}: there is no such path, and it is no OWNER/NAME of Hugging Face"
        )
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
        raise UserError(f"{source} is a device or a pipe; give a file")
    return _read(source, path)


def _from_folder(source: str, folder: Path) -> WeightFiles:
    for own in (folder / OWN_WEIGHTS, folder / "package" / OWN_WEIGHTS):
        if own.is_file():
            return _read(source, own)
    if (folder / WEIGHTS).is_file():
        return _read(source, folder / WEIGHTS)
    if (folder / "checkpoints").is_dir():
        raise UserError(f"{source} is the workdir of a run that has not finished: it holds no package/{OWN_WEIGHTS}")
    raise UserError(
        f"{source} holds no {WEIGHTS}, and is no package of fashion_jax{_about_pickles(sorted(folder.iterdir()))}"
    )


def _read(source: str, weights: Path) -> WeightFiles:
    config = _read_object(weights.parent / CONFIG)
    # A file may lie in a folder where config.json is about something else.
    of_the_file = {"architecture", "architectures", "model_type", "pretrained_cfg", "num_features"} & config.keys()
    return WeightFiles(
        source,
        weights,
        config if of_the_file else {},
        _read_object(weights.parent / PREPROCESSOR),
        own="num_features" in config and weights.name == OWN_WEIGHTS,
    )


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > _MOST_JSON:
        raise UserError(f"{path} is too large for a configuration, which has at most {_MOST_JSON:,} bytes")
    return system_files.read_json_object(path)


def _about_pickles(paths: list[Path]) -> str:
    pickles = [path.name for path in paths if path.suffix in _PICKLES]
    if not pickles:
        return ""
    return (
        f"; {pickles[0]} is a pickle, which can run any program when it is read: if you trust it, convert it with "
        f"safetensors.torch.save_file(torch.load(...), {WEIGHTS!r})"
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


def load_pretrained(source: str) -> Pretrained:
    """Reads the backbone of a source.

    Args:
        source: as `find_weights` takes it.

    Raises:
        UserError: there is nothing, or nothing that this library builds; a tensor is missing, unknown, of another shape
            or type, or holds what is no finite number. Nothing is allocated before names, types and shapes are checked.
    """
    files = find_weights(source)
    where = files.weights
    # The format's own checks refuse a header that does not fit the file.
    with stored.reading(where, _REMEDY), safetensors.safe_open(where, framework="np") as file:
        names = {name.removeprefix("resnet."): name for name in file.keys()}  # noqa: SIM118
        slices = {short: file.get_slice(name) for short, name in names.items()}
        shapes = {short: tuple(part.get_shape()) for short, part in slices.items()}
        types = {short: part.get_dtype() for short, part in slices.items()}
        layout = find_layout(where, shapes)
        if (layout is OWN) != files.own:
            raise UserError(f"{where} is part of a package whose config.json is not beside it; give the whole folder")
        if files.own:
            _check_own(files)
        else:
            _check_foreign(files)
        architecture = read_architecture(where, shapes, layout, files.config)
        wanted = _match(files, shapes, types, layout, architecture)
        weights = {path: _finite(where, name, file.get_tensor(names[name])) for path, name in wanted.items()}
    if layout is not OWN:
        weights = {path: np.ascontiguousarray(transpose_from_torch(array)) for path, array in weights.items()}
    mean, std = _normalisation(files)
    info = PretrainedInfo(
        source,
        files.digest(),
        layout.title,
        **architecture,
        mean=mean,
        std=std,
        pooling="gem" if _GEM in weights else "average",
        colour=COLOUR in weights,
    )
    return Pretrained(info, weights)


def backbone_arrays(architecture: Mapping[str, Any]) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """Returns the shapes of a backbone's arrays, by path such as ("params", "backbone", "stem", 0, "conv", "kernel").

    Args:
        architecture: depth, width and stem.
    """
    arrays = _network_arrays(architecture, {})
    return {path: shape for path, shape in arrays.items() if path[1:3] in _PARTS}  # only what every ResNet has


COLOUR = "params/colour/0/norm/scale"  # which weights have that hold what colour heads see
_PARTS = (("backbone", "stem"), ("backbone", "stages"))
_GEM = "params/backbone/gem/0/power"


def _network_arrays(architecture: Mapping[str, Any], more: Mapping[str, Any]) -> dict[tuple[Any, ...], tuple[int, ...]]:
    arguments = {**architecture, "classes": {}, "dtype": "float32", **more}
    _, params, batch_stats = abstract_classifier(arguments)
    flat = traverse_util.flatten_dict({"params": params, "batch_stats": batch_stats})
    return {path: leaf.shape for path, leaf in flat.items()}


def _match(
    files: WeightFiles,
    shapes: Mapping[str, tuple[int, ...]],
    types: Mapping[str, str],
    layout: Layout,
    architecture: Mapping[str, Any],
) -> dict[str, str]:
    """Returns our name -> the file's name, of all arrays of the backbone, with types and shapes checked."""
    where, wanted, arrays = files.weights, {}, backbone_arrays(architecture)
    if layout is OWN and _GEM in shapes:
        arrays[tuple(_GEM.split("/"))] = (1,)
    if layout is OWN and COLOUR in shapes:
        seen = {"classes": {"colour": 2}, "colour_heads": ["colour"]}
        network = _network_arrays(architecture, seen)
        arrays |= {path: shape for path, shape in network.items() if path[1] == "colour"}
    for path, shape in arrays.items():
        name = layout.name(path[1:], architecture["stem"])
        if name not in shapes:
            if name.endswith(("running_mean", "running_var")):
                raise refuse(where, f"a ResNet without batch norm (it lacks {name})")
            raise UserError(f"{where} lacks {name}, which a ResNet-{architecture['depth']} has")
        here = shape if layout is OWN else _torch_shape(shape)
        if shapes[name] != here:
            if _is_grouped(shapes[name], here):
                raise refuse(where, f"a ResNeXt (grouped convolutions: {name} is {shapes[name]} instead of {here})")
            raise UserError(
                f"{where}: {name} has the shape {shapes[name]}; a ResNet-{architecture['depth']} of width "
                f"{architecture['width']} has {here}"
            )
        if types[name] not in _FLOATS:
            raise UserError(f"{where}: {name} holds {types[name]}, not floating-point numbers")
        wanted["/".join(map(str, path))] = name
    unknown = sorted(shapes.keys() - set(wanted.values()))
    if odd := [name for name in unknown if not layout.other.fullmatch(name)]:
        raise refuse(where, f"a network that is no plain ResNet: it has {odd[0]}")
    return wanted


def _is_grouped(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """True where a kernel of torch's differs from `whole` in that each output sees a share of the inputs."""
    same = len(shape) == len(whole) == 4 and (shape[0], *shape[2:]) == (whole[0], *whole[2:])
    return same and 0 < shape[1] < whole[1] and whole[1] % shape[1] == 0


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def _finite(where: object, name: str, array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        array = np.asarray(array).astype(np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{where}: {name} holds NaN or infinity, so the file is damaged")
    if name.endswith(("running_var", "norm/var")) and (array < 0).any():
        raise UserError(f"{where}: {name} holds a negative variance of batch norm, so the file is damaged")
    return array


def _check_own(files: WeightFiles) -> None:
    folder, remedy = files.weights.parent, "restore the package from a copy"
    listing = read_document(folder / CONFIG, remedy=remedy).get("files")
    if not isinstance(listing, dict) or OWN_WEIGHTS not in listing:
        raise UserError(f"{folder / CONFIG} does not list {OWN_WEIGHTS}; {remedy}")
    check_files(folder, {OWN_WEIGHTS: listing[OWN_WEIGHTS]}, remedy=remedy)
    if not isinstance(files.config.get("model"), dict):
        raise UserError(f"{files.weights.with_name('config.json')} describes no model")


def _check_foreign(files: WeightFiles) -> None:
    with stored.reading(files.weights.with_name(CONFIG), _REMEDY):
        check_config(files.weights.parent, files.config)


def _normalisation(files: WeightFiles) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std as the files say; ImageNet's where they do not."""
    if files.preprocessor.get("do_normalize") is False and not files.own:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    key = "preprocessing" if files.own else "pretrained_cfg"
    inner = files.config.get(key, {})
    places = ((inner, "mean", "std"), (files.config, "mean", "std"), (files.preprocessor, "image_mean", "image_std"))
    for values, mean, std in places:
        if not isinstance(values, dict) or (mean not in values and std not in values):
            continue
        found = []
        for name, low in ((mean, 0.0), (std, 1e-6)):
            given = values.get(name)
            numbers = given if isinstance(given, list) and all(type(v) in (int, float) for v in given) else []
            if len(numbers) != 3 or not all(low <= v <= 1 for v in numbers):
                raise UserError(f"{files.weights.parent}: {name}={given!r} is not three numbers from {low:g} to 1")
            found.append(tuple(float(v) for v in numbers))
        return found[0], found[1]
    return IMAGENET_MEAN, IMAGENET_STD
