"""Downloads, against a local stand-in of the clients: they return a folder of the layout that the hubs have."""

from __future__ import annotations

import sys
import types

import pytest

from drawn_products import write_products
from fashion_jax.data.catalog import open_catalog
from fashion_jax.data.hub import download, is_hub_source
from fashion_jax.errors import UserError


def client(monkeypatch, module: str, **functions) -> None:
    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**functions))


@pytest.fixture
def shop(tmp_path):
    return write_products(tmp_path / "shop", 60).parent


def test_kaggle(monkeypatch, shop):
    asked = []
    client(monkeypatch, "kagglehub", dataset_download=lambda name: asked.append(name) or str(shop))
    assert len(open_catalog("kaggle:owner/fashion-products").products) == 60
    assert asked == ["owner/fashion-products"]


def test_hugging_face(monkeypatch, shop):
    asked = []
    client(monkeypatch, "huggingface_hub", snapshot_download=lambda **kwargs: asked.append(kwargs) or str(shop))
    assert len(open_catalog("hf:owner/name").products) == 60
    assert asked[0]["repo_id"] == "owner/name"
    assert asked[0]["repo_type"] == "dataset"
    assert "*.parquet" in asked[0]["allow_patterns"]


@pytest.mark.parametrize("source", ["kaggle:x", "hf:", "kaggle:../etc/passwd", "hf:a/b/c", "hf:-x/y", "kaggle:a/.."])
def test_names_are_checked_before_anything_is_asked(source):
    assert is_hub_source(source)
    with pytest.raises(UserError, match="OWNER/NAME"):
        download(source)


def test_offline_is_a_sentence(monkeypatch):
    def fail(name):
        raise ConnectionError("Name or service not known\nmore")

    client(monkeypatch, "kagglehub", dataset_download=fail)
    with pytest.raises(UserError, match=r"could not be downloaded .*ConnectionError: Name or service not known"):
        download("kaggle:a/b")


@pytest.mark.parametrize(("source", "module"), [("kaggle:a/b", "kagglehub"), ("hf:a/b", "huggingface_hub")])
def test_without_the_extra_it_is_named(monkeypatch, source, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"fashion-jax\[hub\]"):
        download(source)
