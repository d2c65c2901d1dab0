"""Changes of JSON values by path, for tests of hostile files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

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


def forge_decision(folder: Path, path: str, new: Any) -> None:
    """Changes the decision of a package and signs it anew, so that only the decision is wrong."""
    decision, config = (json.loads((folder / name).read_text()) for name in ("decision.json", "config.json"))
    set_at(decision, path, new)
    text = json.dumps(decision)
    (folder / "decision.json").write_text(text)
    config["digests"]["decision.json"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))
