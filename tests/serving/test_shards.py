"""Shards: what was written is read again, unless it is damaged or belongs to something else."""

from __future__ import annotations

import numpy as np

from fashion_jax.serving.shards import Shards


def test_only_whole_files_of_the_same_key_are_read(tmp_path):
    shards = Shards(tmp_path / "s", ["model", 3])
    assert list(shards.read()) == []
    for start in (0, 5):
        shards.write({"rows": np.arange(start, start + 5), "vectors": np.full((5, 100), start, np.float32)})
    again = list(Shards(tmp_path / "s", ["model", 3]).read())
    assert [found["rows"].tolist() for found in again] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert all(np.array_equal(found["vectors"], np.full((5, 100), found["rows"][0])) for found in again)
    first, second = sorted((tmp_path / "s").iterdir())
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1  # a flipped bit within the vectors
    first.write_bytes(data)
    assert [found["rows"][0] for found in shards.read()] == [5]
    assert not first.exists()
    shards.write({"rows": np.arange(3)})
    assert list(Shards(tmp_path / "s", ["another", 3]).read()) == []
    assert not second.exists()
    shards.remove()
    assert not (tmp_path / "s").exists()
