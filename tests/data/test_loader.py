"""The loader: order is a function of (seed, step), processes share it out, evaluation sees every row once."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from fashion_jax.data import loader
from fashion_jax.data.loader import ResidentPhotos, StreamedPhotos, choose_storage, evaluation_batches, training_batches


def rows_of(batches, count: int) -> np.ndarray:
    return np.stack([batch["row"] for batch in islice(batches, count)])


def test_every_row_comes_once_in_each_epoch_and_epochs_differ(prepared):
    train = prepared.indices("train")
    batches = training_batches(prepared, None, batch_size=16, seed=0)
    order = rows_of(batches, 3 * len(train) // 16 + 1).ravel()
    epochs = [order[i * len(train) : (i + 1) * len(train)] for i in range(3)]
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), train)
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], np.sort(epochs[0]))
    other = rows_of(training_batches(prepared, None, batch_size=16, seed=1), 4)
    assert not np.array_equal(other.ravel(), order[:64])


@pytest.mark.parametrize("start", [0, 1, 5, 6, 40])
def test_starting_at_a_step_is_seeking(prepared, start):
    whole = rows_of(training_batches(prepared, None, batch_size=16, seed=3), start + 3)
    part = rows_of(training_batches(prepared, None, batch_size=16, seed=3, start_step=start), 3)
    assert np.array_equal(whole[start:], part)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_each_batch_out(prepared, processes):
    whole = rows_of(training_batches(prepared, None, batch_size=16, seed=1), 12)
    parts = [
        rows_of(training_batches(prepared, None, batch_size=16, seed=1, process_index=p, num_processes=processes), 12)
        for p in range(processes)
    ]
    assert all(part.shape == (12, 16 // processes) for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts, 1)), np.sort(whole))


def test_batches_hold_the_photos_and_labels_of_their_rows(prepared):
    photos = StreamedPhotos(prepared, 32, 24)
    resident = ResidentPhotos(prepared, prepared.indices("train"), 32, 24, progress=False)
    for batch in islice(training_batches(prepared, photos, batch_size=16, seed=0), 3):
        assert batch["image"].shape == (16, 32, 24, 3) and batch["image"].dtype == np.uint8
        assert np.array_equal(batch["image"], photos(batch["row"]))
        assert np.array_equal(batch["image"], resident(batch["row"]))
        assert np.array_equal(batch["label"], prepared.labels[batch["row"]])
        assert batch["valid"].all()


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [8, 16, 64])
def test_evaluation_sees_every_row_exactly_once(prepared, processes, batch_size):
    rows = prepared.indices("test")
    per_process = [
        list(evaluation_batches(prepared, None, rows, batch_size=batch_size, process_index=p, num_processes=processes))
        for p in range(processes)
    ]
    assert len({len(batches) for batches in per_process}) == 1
    seen = [b["row"][b["valid"]] for batches in per_process for b in batches]
    assert np.array_equal(np.sort(np.concatenate(seen)), rows)
    assert all(len(b["row"]) == batch_size // processes for batches in per_process for b in batches)


def test_storage_is_chosen_by_what_fits():
    size = {"num_photos": 1000, "height": 80, "width": 60}
    assert choose_storage("auto", **size, device_bytes=0) == "host"
    assert choose_storage("auto", **size, device_bytes=10**9) == "device"
    assert choose_storage("auto", **size, device_bytes=10**6) == "host"
    assert choose_storage("auto", num_photos=10**9, height=80, width=60, device_bytes=10**9) == "stream"
    assert choose_storage("stream", **size, device_bytes=10**9) == "stream"


@pytest.mark.parametrize(
    ("folder", "limit", "used", "cache"),
    [
        (".", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_a_containers_limit_counts(tmp_path, monkeypatch, folder, limit, used, cache):
    group = tmp_path / folder
    group.mkdir(exist_ok=True)
    monkeypatch.setattr(loader, "_CONTROL_GROUP", tmp_path)
    assert loader._free_memory() > 50_000_000
    (group / "memory.stat").write_text(f"anon 1\n{cache} 5000\n")
    (group / limit).write_text("40000000\n")
    (group / used).write_text("30000000\n")
    assert loader._free_memory() == 10_005_000
    (group / limit).write_text("max\n")
    assert loader._free_memory() > 50_000_000
