"""Shared set-up: eight CPU devices, strict JAX, small catalogues drawn by the tests themselves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", os.environ.get("FASHION_TEST_PLATFORM", "cpu"))
# Compiled steps are kept between runs of the suite, and never in the user's cache, by the processes that tests start
# too. What is tested is not changed by it.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).resolve().parent.parent / ".cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import pytest

from drawn_products import make_tiny_config, write_products
from parsing import parse_without_collections

ROOT = Path(__file__).resolve().parent.parent

if os.environ["JAX_PLATFORMS"] == "cpu":
    # Small networks compile for seconds and then run for milliseconds. Without LLVM's optimisation, and with the older
    # of the two ways to emit fused loops, a training step compiles in a third of the time; its losses stay equal on any
    # number of devices.
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    if jax.__version_info__ < (0, 11):  # XLA ends the process at a flag that it does not know
        quick += " --xla_cpu_use_fusion_emitters=false"
    # Without AMX, so that "auto" means float32 on every machine.
    os.environ["XLA_FLAGS"] = f"{quick} --xla_cpu_max_isa=AVX512 {os.environ.get('XLA_FLAGS', '')}".strip()

parse_without_collections()

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def short_ends():
    """Shortens what a run does after training, which would take longer than training does here."""
    from fashion_jax.run import finish, session
    from fashion_jax.system import compilation

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "_SHEET_PHOTOS", 4)
        patch.setattr(finish, "NOT_PRODUCTS_PER_KIND", 2)
        patch.setattr(session, "EVALUATION_BATCH_SIZE", 8)  # one compilation for every catalogue
        patch.setattr(compilation, "_started", True)  # this process has a cache, and tests read standard error
        yield


@pytest.fixture(scope="session")
def products_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's catalogue of 120 drawn products, some without a kind."""
    return write_products(tmp_path_factory.mktemp("shop"), 120, missing=0.1)


@pytest.fixture(scope="session")
def prepared(products_csv: Path, tmp_path_factory: pytest.TempPathFactory):
    """The records of `products_csv`."""
    from fashion_jax.data.prepare import prepare

    return prepare(products_csv, tmp_path_factory.mktemp("records") / "out", progress=False)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with Kaggle's photos; tests that need it skip where there is none."""
    folder = Path(os.environ.get("FASHION_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "fashion-product-images-small.tar.xz").is_file():
        pytest.skip(
            f"no real catalogue in {folder}; set FASHION_DATA to a folder with fashion-product-images-small.tar.xz"
        )
    return folder


@pytest.fixture(scope="session")
def tiny_config(prepared) -> Callable:
    """Makes a configuration that trains on `prepared` in seconds; `train__seed=1` sets config.train.seed."""

    def make(**changes):
        return make_tiny_config(prepared.folder, **changes)

    return make
