"""Downloads, against a local stand-in of the clients: they return a folder of the layout that the hubs have."""

from __future__ import annotations

import shutil
import sys
import types

import pandas as pd
import pytest

from drawn_products import write_products
from fashion_jax.data.catalog import open_catalog
from fashion_jax.data.sources import download, find_source
from fashion_jax.system.errors import UserError


def client(monkeypatch, module: str, **functions) -> None:
    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**functions))


def test_kaggle(monkeypatch, tmp_path):
    asked, shop = [], write_products(tmp_path / "shop", 60).parent
    client(monkeypatch, "kagglehub", dataset_download=lambda name: asked.append(name) or str(shop))
    assert len(open_catalog("kaggle:owner/fashion-products").records) == 60
    assert asked == ["owner/fashion-products"]


def test_hugging_face(monkeypatch, tmp_path):
    # The hub's cache keeps a snapshot's files as links into a folder of blobs beside it.
    repository = tmp_path / "hub/datasets--owner--name"
    snapshot, blobs = repository / "snapshots/0123abc", repository / "blobs"
    (snapshot / "data").mkdir(parents=True)
    blobs.mkdir()
    shop = write_products(tmp_path / "shop", 60)
    table = pd.read_csv(shop)
    table["image"] = [{"bytes": (shop.parent / name).read_bytes(), "path": name} for name in table["file"]]
    table.drop(columns="file").to_parquet(blobs / "beef")
    secret = shutil.copy(blobs / "beef", tmp_path / "secret.parquet")
    (snapshot / "data/train-00000-of-00001.parquet").symlink_to("../../../blobs/beef")
    (snapshot / "data/train-00001-of-00001.parquet").symlink_to(secret)
    asked = []
    client(monkeypatch, "huggingface_hub", snapshot_download=lambda **kwargs: asked.append(kwargs) or str(snapshot))
    assert len(open_catalog("hf:owner/name").records) == 60  # and not 120: links elsewhere are not followed
    assert (asked[0]["repo_id"], asked[0]["repo_type"]) == ("owner/name", "dataset")
    assert "*.parquet" in asked[0]["allow_patterns"]


@pytest.mark.parametrize("source", ["kaggle:x", "hf:", "kaggle:../etc/passwd", "hf:a/b/c", "hf:-x/y", "kaggle:a/.."])
def test_names_are_checked_before_anything_is_asked(source):
    with pytest.raises(UserError, match="OWNER/NAME"):
        download(source)


def test_offline_is_a_sentence(monkeypatch):
    def fail(name):
        raise ConnectionError("Name or service not known\nmore")

    client(monkeypatch, "kagglehub", dataset_download=fail)
    with pytest.raises(UserError, match=r"ConnectionError: Name or service not known"):
        download("kaggle:a/b")


@pytest.mark.parametrize(("source", "module"), [("kaggle:a/b", "kagglehub"), ("hf:a/b", "huggingface_hub")])
def test_without_the_extra_it_is_named(monkeypatch, source, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"\[hub\]"):
        download(source)


def test_the_hubs_splits_are_kept(tmp_path):
    shop = write_products(tmp_path / "shop", 60)
    table = pd.read_csv(shop, dtype=str)
    table["image"] = [{"bytes": (shop.parent / name).read_bytes(), "path": name} for name in table["file"]]
    (tmp_path / "hub/data").mkdir(parents=True)
    for place, name in enumerate(("test", "train", "validation")):
        part = table.drop(columns="file")[place::3]
        part.to_parquet(tmp_path / f"hub/data/{name}-00000-of-00001.parquet")
    catalog = open_catalog(tmp_path / "hub")
    assert catalog.schema.split_column == "split"
    assert [record.split for record in catalog.records] == ["test"] * 20 + ["train"] * 20 + ["validation"] * 20
    assert any("split" in repair for repair in catalog.repairs)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["a.csv", "data/train-00000-of-00001.parquet"], 1), (["a.csv", "b/c.csv"], 0), (["a.csv", "b/c.parquet"], 0),
        (["a.csv", "0000.parquet"], 1), (["a.jsonl", "b.csv"], 1), (["styles.csv", "b.parquet"], 0),
        (["products.csv", "sales.parquet"], r"\(products.csv, sales.parquet\); give"),
        (["a.csv", "b.csv"], r"of them$"),
        (["train.csv", "test.csv"], "join them into one table with a column 'split'"), (["a.tsv", "b.csv"], "several"),
    ],
)  # fmt: skip
def test_the_table_of_several(tmp_path, names, chosen):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    if isinstance(chosen, int):
        assert find_source(str(tmp_path), labelled=True).tables == [names[chosen]]
    else:
        with pytest.raises(UserError, match=chosen):
            find_source(str(tmp_path), labelled=True)
