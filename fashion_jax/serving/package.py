"""Model packages: a folder that holds all that prediction needs. No pickle; nothing in it is run.

config.json lists the other files with their digests, and has a digest of its own. Files that it does not list, such as
a README or a licence, are not read.

weights.safetensors   parameters and batch statistics, float32; kernels may be float16
config.json           format, model, preprocessing, the other files, and a digest of all this
labels.json           attribute -> names of the classes in the order of the outputs; multi-valued attributes come last
decision.json         how to make calibrated probabilities and labels; absent where training had no validation rows
embedding.json        how to make embeddings, with embedding.safetensors; without it embeddings are the pooled features
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from fashion_jax.data.schema import Attribute, Schema
from fashion_jax.decision.decisions import Decision
from fashion_jax.decision.embedding import EmbeddingPlan
from fashion_jax.decision.files import (
    components_to_bytes,
    decision_from_json,
    decision_to_json,
    plan_from_json,
    plan_to_json,
)
from fashion_jax.models.architecture import (
    DEPTHS,
    POOLINGS,
    STEMS,
    Architecture,
    num_colour_features,
    num_features,
    parameter_shapes,
)
from fashion_jax.system import files, stored
from fashion_jax.system.errors import UserError

FORMAT = 1
ZOO = Path(__file__).resolve().parent / "packages"  # packages that come with the library
_FILES = ("weights.safetensors", "config.json", "labels.json")
_OPTIONAL = ("decision.json", "embedding.json", "embedding.safetensors")
_TRAIN_AGAIN = "run the same fashion-jax train command again"
_MAX_CLASSES = 100_000
_MIN_STD = 1e-6  # With a smaller value, float32 cannot hold normalised photos.


@dataclass(frozen=True, slots=True)
class Package:
    """A package that was loaded and checked."""

    folder: Path  # of the package
    model: dict[str, Any]  # values of `Architecture`, as JSON has them
    vocabularies: dict[str, tuple[str, ...]]  # attribute -> names of the classes, without multi-valued attributes
    # height, width and max_side (pixels), mean, std (of RGB in [0, 1]), and test_time_flip (whether predictions are
    # means over a photo and its mirror image)
    preprocessing: dict[str, Any]
    extra: dict[str, Any]  # notes of training
    weights: dict[str, np.ndarray]  # name as `parameter_shapes` has it -> float32 array
    fingerprint: str  # packages with the same one give the same embeddings and predictions, up to rounding
    decision: Decision | None = None  # fitted on validation rows; None without them
    embedding: EmbeddingPlan | None = None  # how to make embeddings; None where embeddings are the pooled features
    tags: dict[str, tuple[str, ...]] = field(default_factory=dict)  # multi-valued attribute -> names of the classes

    @property
    def num_features(self) -> int:
        """Number of pooled features of the backbone."""
        return num_features(self.model["depth"], self.model["width"])

    @property
    def num_colour_features(self) -> int:
        """Size of the features that colour heads see besides the pooled ones; 0 without colour heads."""
        return num_colour_features(self.model)

    @property
    def embedding_size(self) -> int:
        """Size of an embedding."""
        return self.num_features if self.embedding is None else self.embedding.size

    def trees(self) -> tuple[dict[Any, Any], dict[Any, Any]]:
        """Returns the nested parameters and batch statistics that JAX's network takes."""
        from flax import traverse_util

        from fashion_jax.models.classifier import abstract_classifier

        _, params, batch_stats = abstract_classifier(self.model)
        paths = traverse_util.flatten_dict({"params": params, "batch_stats": batch_stats})
        tree = traverse_util.unflatten_dict({path: self.weights["/".join(map(str, path))] for path in paths})
        return tree["params"], tree["batch_stats"]


def write_package(
    folder: Path,
    *,
    weights: Mapping[str, np.ndarray],
    model: Mapping[str, Any],
    vocabularies: Mapping[str, tuple[str, ...]],
    preprocessing: Mapping[str, Any],
    extra: Mapping[str, Any],
    decision: Decision | None = None,
    embedding: EmbeddingPlan | None = None,
    tags: Mapping[str, tuple[str, ...]] | None = None,
) -> None:
    """Writes a package in one step; it replaces a package that is there.

    Args:
        weights: "params/..." and "batch_stats/..." -> array.
        vocabularies: attribute -> names of the classes in the order of the outputs.
        preprocessing: height, width, max_side (larger photos are scaled to it first, as records are), mean, std,
            test_time_flip.
        extra: JSON values for people.
        decision: fitted on validation rows.
        embedding: how to make embeddings; None for the pooled features.
        tags: multi-valued attribute -> names of the classes in the order of the outputs.
    """
    names = {**vocabularies, **(tags or {})}
    data = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in weights.items()})
    labels = json.dumps({name: list(classes) for name, classes in names.items()}, indent=2, ensure_ascii=False)
    features = num_features(model["depth"], model["width"])
    contents = {"weights.safetensors": data, "labels.json": labels.encode()}
    if decision is not None:
        contents["decision.json"] = _to_json(decision_to_json(decision))
    if embedding is not None:
        contents["embedding.json"] = _to_json(plan_to_json(embedding))
        contents["embedding.safetensors"] = components_to_bytes(embedding)
    config = {
        "format": FORMAT,
        "library": f"fashion-jax {_version()}",
        "model": _without_empty_tags(dataclasses.asdict(Architecture(**model))),
        "num_features": features,
        "preprocessing": dict(preprocessing),
        "extra": files.without_nan(extra),
    }
    with files.replace_directory(folder) as aside:
        for name, content in contents.items():
            files.write_bytes(aside / name, content)
        _write_config(aside, config)


def seal_package(folder: str | Path) -> None:
    """Makes a package valid again after one of its files was changed on purpose.

    Raises:
        UserError: config.json is no JSON object, or the changed package cannot be loaded; it may be mended then.
    """
    folder = Path(folder)
    with stored.reading(folder / "config.json", _remedy(folder)):
        config = files.read_json_object(folder / "config.json")
    config.pop(stored.DIGEST, None)
    _write_config(folder, config)
    load_package(folder)


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    listing = stored.list_files(folder)
    listing = {name: listing[name] for name in (*_FILES, *_OPTIONAL) if name in listing and name != "config.json"}
    stored.write_document(folder / "config.json", {**config, "files": listing})


def load_package(path: str | Path) -> Package:
    """Loads a package, or the package of a workdir.

    Raises:
        UserError: there is no package, or a file, a tensor, a label or a setting does not fit the others.
    """
    folder = Path(path)
    if (folder / "package").is_dir() and not (folder / "weights.safetensors").exists():
        folder = folder / "package"
    absent = [name for name in _FILES if not (folder / name).is_file()]
    if absent:
        raise UserError(f"{path} is no model package and no workdir of a finished run: it lacks {', '.join(absent)}")
    where = folder / "config.json"
    remedy = _remedy(folder)
    config = stored.read_document(where, remedy=remedy)
    with stored.reading(where, remedy):
        stored.check_format(folder, config["format"], FORMAT, remedy=_TRAIN_AGAIN)
        contents = _read_files(folder, config["files"], remedy)
        features, classes, tags = config["num_features"], config["model"]["classes"], config["model"].get("tags", {})
        names = _check_labels(folder, _read_json(folder / "labels.json", contents), {**classes, **tags})
        model = _check_model(folder, config["model"], features)
        preprocessing = _check_preprocessing(folder, config["preprocessing"])
        weights = _check_weights(folder, contents["weights.safetensors"], model)
        decision = embedding = None
        if "decision.json" in contents:
            path = folder / "decision.json"
            decision = decision_from_json(path, _read_json(path, contents), classes, features, tags)
        if "embedding.json" in contents:
            path = folder / "embedding.json"
            arrays = contents["embedding.safetensors"]
            embedding = plan_from_json(path, _read_json(path, contents), arrays, classes, features)
        extra = config.get("extra", {})
        if not isinstance(extra, dict):
            raise UserError(f"{where}: extra is no JSON object")
        digests = {name: known[stored.DIGEST] for name, known in config["files"].items()}
        about = json.dumps([digests, config["model"], config["preprocessing"]], sort_keys=True)
        fingerprint = files.digest(about.encode())[:32]
        vocabularies, several = ({name: names[name] for name in group} for group in (classes, tags))
        network = (weights, fingerprint, decision, embedding, several)
        return Package(folder, model, vocabularies, preprocessing, extra, *network)


def _remedy(folder: Path) -> str:
    """Returns what a user can do about a damaged package, as the end of a sentence."""
    if folder.resolve().is_relative_to(ZOO):
        return "install the library again"
    return (
        f"restore the folder from a backup, or {_TRAIN_AGAIN}; only if you changed a file on purpose: "
        f'python -c "from fashion_jax.serving.package import seal_package; seal_package({str(folder)!r})"'
    )


def _read_files(folder: Path, listing: Mapping[str, Any], remedy: str) -> dict[str, bytes]:
    """Returns the contents of the listed files; UserError where one is not as it was listed, or should be listed."""
    contents = {}
    if not isinstance(listing, dict):
        raise UserError(f"{folder / 'config.json'}: files must be an object, not {type(listing).__name__}; {remedy}")
    if odd := sorted(listing.keys() - {*_FILES, *_OPTIONAL}):  # it may lie outside of the package
        raise UserError(f"{folder / 'config.json'} lists {odd[0]!r}, which is no file of a package; {remedy}")
    for name in (*_FILES, *_OPTIONAL):
        if name != "config.json" and name not in listing and (name in _FILES or (folder / name).exists()):
            raise UserError(f"{folder / 'config.json'} does not list {name}; {remedy}")
    for name, known in listing.items():
        path = folder / name
        # Each file is read once: what is checked is what is used.
        contents[name] = path.read_bytes() if files.has_size(path, known["bytes"]) else b""
        if files.digest(contents[name]) != known[stored.DIGEST]:
            state = f"is damaged ({stored.CHANGED})" if path.exists() else "is missing"
            raise UserError(f"{path} {state}; {remedy}")
    return contents


def _read_json(path: Path, contents: Mapping[str, bytes]) -> dict[str, Any]:
    with stored.reading(path, _remedy(path.parent)):
        value = json.loads(contents[path.name])
        if not isinstance(value, dict):
            raise TypeError("it holds no JSON object")
    return dict(value)


def _check_labels(folder: Path, labels: dict[str, Any], classes_of: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    where = folder / "labels.json"
    try:
        Schema("package", tuple(Attribute(name) for name in labels))  # names become column and file names
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    for name, classes in labels.items():
        if not isinstance(classes, list) or not classes or not all(isinstance(c, str) for c in classes):
            raise UserError(f"{where}: the classes of {name!r} are not a list of texts")
        if len(set(classes)) < len(classes):
            raise UserError(f"{where}: {name!r} names a class twice")
        odd = [c for c in (name, *classes) if not files.is_line(c)]
        if odd:
            raise UserError(f"{where}: {odd[0]!r} of {name!r} is not a string without line breaks")
    if {name: len(classes) for name, classes in labels.items()} != classes_of:
        raise UserError(f"{where} does not fit config.json: the heads have {classes_of} classes")
    return {name: tuple(classes) for name, classes in labels.items()}


def _check_model(folder: Path, model: dict[str, Any], features: int) -> dict[str, Any]:
    """Refuses impossible sizes before memory is allocated for them."""
    # A model without multi-valued attributes has no "tags".
    tags = model.get("tags", {})
    sound = (
        {*model, "tags"} == {field.name for field in dataclasses.fields(Architecture)}
        and isinstance(tags, dict)
        and model["classes"]  # energies are means over heads of attributes with one value
        and not tags.keys() & model["classes"].keys()
        and model["depth"] in DEPTHS
        and model["stem"] in STEMS
        and model["dtype"] in ("float32", "bfloat16")
        and isinstance(model["drop_path"], (int, float))
        and 0 <= model["drop_path"] < 1
        and model["pooling"] in POOLINGS
        and isinstance(model["colour_heads"], list)
        and set(model["colour_heads"]) <= {*model["classes"], *tags}
        and isinstance(model["second_heads"], list)
        and set(model["second_heads"]) <= (model["classes"].keys() if model["colour_heads"] else set())
        and _are_shares(model["mean"], 0)
        and _are_shares(model["std"], _MIN_STD)
        and type(model["width"]) is int
        and 1 <= model["width"] <= 1024
        and all(isinstance(n, int) and 1 <= n <= _MAX_CLASSES for n in (*model["classes"].values(), *tags.values()))
    )
    if not sound:
        raise UserError(
            f"{folder / 'config.json'} describes a model that this version cannot build: {str(model)[:500]}"
        )
    if features != num_features(model["depth"], model["width"]):
        raise UserError(f"{folder / 'config.json'} is not consistent: num_features={features} does not fit the model")
    return model


def _check_preprocessing(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    sizes_sound = all(type(values[k]) is int and 8 <= values[k] <= 4096 for k in ("height", "width", "max_side"))
    # An unknown setting would change photos in a way that this version does not know.
    known = values.keys() == {"height", "width", "max_side", "mean", "std", "test_time_flip"}
    if not (
        known
        and isinstance(values["test_time_flip"], bool)
        and sizes_sound
        and _are_shares(values["mean"], 0)
        and _are_shares(values["std"], _MIN_STD)
    ):
        raise UserError(
            f"{folder / 'config.json'} has an impossible preprocessing, so it is damaged: {str(values)[:500]}"
        )
    return values


def _are_shares(given: Any, low: float) -> bool:
    """True for three numbers in [low, 1]."""
    # Comparisons hold for integers of any size and fail for NaN.
    return isinstance(given, list) and len(given) == 3 and all(type(v) in (int, float) and low <= v <= 1 for v in given)


def _check_weights(folder: Path, data: bytes, model: dict[str, Any]) -> dict[str, np.ndarray]:
    where = folder / "weights.safetensors"
    with stored.reading(where, _remedy(folder)):
        tensors = safetensors.numpy.load(data)
    wanted = parameter_shapes(model)
    if tensors.keys() != wanted.keys():
        odd = sorted(tensors.keys() ^ wanted.keys())
        raise UserError(f"{where} does not fit the model: {len(odd)} tensors are missing or unknown, such as {odd[0]}")
    for name, shape in wanted.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype not in (np.float32, np.float16):
            raise UserError(f"{where}: {name} is {tensor.dtype} {tensor.shape}, but the model has float32 {shape}")
        if not np.isfinite(tensor).all():
            raise UserError(f"{where}: {name} holds NaN or infinity, so the file is damaged")
    return {name: tensors[name].astype(np.float32, copy=False) for name in wanted}


def _without_empty_tags(model: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in model.items() if name != "tags" or value}


def _to_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _version() -> str:
    try:
        return metadata.version("fashion-jax")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def zoo_models() -> tuple[str, ...]:
    """Returns the names of the packages that come with the library."""
    return tuple(sorted(file.parent.name for file in ZOO.glob("*/config.json")))


def find_model(path: str | Path) -> Path:
    """Returns `path` where it exists, else the folder of the library's package of that name, if there is one."""
    given = Path(path)
    if not given.exists() and given.parent == Path() and given.name in zoo_models():
        return ZOO / given.name
    return given
