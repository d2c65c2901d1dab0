"""Changes of JSON values by path, for tests of hostile files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fashion_jax.system import stored

GONE = object()  # as a new value: the key is removed


def set_at(value: Any, path: str, new: Any) -> None:
    """Sets `path`, such as "heads.gender.class_rows.0", in nested dictionaries and lists."""
    *parents, last = path.split(".")
    for part in parents:
        value = value[int(part)] if isinstance(value, list) else value[part]
    place: Any = int(last) if isinstance(value, list) else last
    if new is GONE:
        del value[place]
    else:
        value[place] = new


def sign(folder: Path) -> None:
    """Makes the config.json of a package vouch for whatever it holds, and for the files that it lists."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop(stored.DIGEST, None)
    every = stored.list_files(folder)
    config["files"] = {name: every[name] for name in config["files"] if name in every}
    path.write_text(json.dumps({**config, stored.DIGEST: stored.document_digest(config)}))


def forge_decision(folder: Path, path: str, new: Any) -> None:
    """Changes the decision of a package and signs it anew, so that only the decision is wrong."""
    decision = json.loads((folder / "decision.json").read_text())
    set_at(decision, path, new)
    (folder / "decision.json").write_text(json.dumps(decision))
    sign(folder)
