"""A full disk is told in one sentence, whatever a writer raises, and leaves nothing half written."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from fashion_jax.search.index import Index
from fashion_jax.serving import embed
from fashion_jax.serving.shards import Shards
from fashion_jax.system.downloads import download_error
from fashion_jax.system.errors import exit_on_user_error

FULL = [
    OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError("1048576 requested and 4096 written"), RuntimeError("write() failed: No space left on device"),
    ValueError("RESOURCE_EXHAUSTED: Disk quota exceeded [28]"),
]  # fmt: skip
PLACE = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=16m tmpfs "$1" && shift && exec "$@"', "sh"]


@pytest.fixture(scope="module")
def exact_index() -> Index:
    return Index.build(np.eye(4, dtype=np.float32), list("abcd"), {}, backend="exact")


@pytest.fixture(scope="module")
def scann_index() -> Index:
    pytest.importorskip("scann")
    vectors = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Index.build(vectors, [f"i{n}" for n in range(300)], {}, backend="scann")


@pytest.mark.parametrize("error", FULL, ids=repr)
@pytest.mark.parametrize("writer", ["shard", "embeddings", "vectors of an index", "columns of an index", "scann"])
def test_every_foreign_writer_tells_a_full_disk(writer, error, tmp_path, monkeypatch, capsys, request):
    fails, out = Mock(side_effect=type(error)(*error.args)), tmp_path / "out"
    if writer == "scann":
        index = request.getfixturevalue("scann_index")
        monkeypatch.setattr(index.snapshot.base.index, "_searcher", Mock(serialize=fails))
    else:
        monkeypatch.setattr(np, "save" if writer == "vectors of an index" else "savez", fails)
    if writer == "shard":
        write = partial(Shards(out, "key").write, {"a": np.zeros(3)})
    elif writer == "embeddings":
        run = SimpleNamespace(out=out, catalog=Mock(name_photos=dict))
        found = SimpleNamespace(records=[], ids=np.zeros(0), embeddings=np.zeros((0, 2)))
        for name, value in {"SourceRun": run, "run_embedding": found, "open_shards": Mock()}.items():
            monkeypatch.setattr(embed, name, Mock(return_value=value))
        write = partial(embed.embed_source, Mock(), "source", out)
    else:
        write = partial(request.getfixturevalue("scann_index" if writer == "scann" else "exact_index").save, out)
    assert exit_on_user_error(write) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("error: the disk is full at ") and str(out) in sentence
    assert fails.called and not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]


@pytest.mark.slow
def test_every_writer_meets_the_end_of_a_real_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if not shutil.which("unshare") or subprocess.run([*PLACE, str(disk), "true"], capture_output=True).returncode:
        pytest.skip("this machine lets no test mount a small disk (unshare -rm, mount -t tmpfs)")
    pytest.importorskip("scann")
    script = Path(__file__).with_name("full_disk.py")
    run = subprocess.run([*PLACE, str(disk), sys.executable, str(script), str(disk)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    for row in rows:
        if row["code"]:
            (sentence,) = row["said"].splitlines()
            assert row["code"] == 2 and sentence.startswith(f"error: the disk is full at {disk}/out"), row
            assert not row["left"], row
    tried = Counter((row["name"], row["code"]) for row in rows)
    names = {name for name, _ in tried}
    assert len(names) == 10 and all(tried[name, 0] and tried[name, 2] for name in names)


def test_a_full_disk_is_no_failed_connection():
    assert "the disk is full" in str(download_error("hf:a/b", OSError(errno.ENOSPC, "No space left on device")))


def test_output_that_cannot_be_written_is_a_sentence():
    code = "import sys; from fashion_jax.system.errors import exit_on_user_error as e; sys.exit(e(lambda: print(X)))"
    for text in ("1", "'x' * 1_000_000"):  # it stays in the buffer until the end, or does not
        for target, said in (("> /dev/full", "the disk is full"), ("| exec true", "the program that reads the output")):
            begin = "sleep 0.5; " if "true" in target else ""
            command = f'{{ {begin}"{sys.executable}" -c "{code.replace("X", text)}"; echo "code $?" >&2; }} {target}'
            run = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
            sentence, end = run.stderr.splitlines()
            assert said in sentence and end == "code 2"
