"""How frequent classes are."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int64


def log_frequencies(class_rows: Int64[np.ndarray, " classes"]) -> Float32[np.ndarray, " classes"]:
    """Returns the logarithm of each class's share of the rows; a class without rows counts as half a row."""
    counts = np.maximum(class_rows, 0.5)
    return np.log(counts / counts.sum()).astype(np.float32)
