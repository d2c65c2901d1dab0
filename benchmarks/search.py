"""Side by side: fashion_jax.Index, raw ScaNN, faiss, hnswlib and usearch on the same vectors and machine, in one run.

    pip install faiss-cpu hnswlib usearch
    python benchmarks/search.py --embeddings embeddings.npz --clustered 200000 1000000 --out benchmarks/results/search

Each library builds and searches in a process of its own, so that memory is its own. Queries are held out of what is
indexed. Writes results.json, table.md and search.png. Times are medians; batches use all cores, single queries come
one after the other. A library that is not installed is left out, and said so.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

K = 10
SHARES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
PEERS = {
    "fashion_jax": "fashion_jax.search.index",
    "ScaNN": "scann.scann_ops.py.scann_ops_pybind",
    "ScaNN, spherical": "scann.scann_ops.py.scann_ops_pybind",
    "faiss flat": "faiss",
    "faiss HNSW": "faiss",
    "faiss IVF-PQ fast-scan": "faiss",
    "hnswlib": "hnswlib",
    "usearch": "usearch",
}
Search = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    """Runs every peer on every set of vectors and writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", type=Path, help="npz with `embeddings`, as `fashion-jax embed` writes it")
    parser.add_argument("--clustered", type=int, nargs="*", default=[], help="sizes of drawn sets, such as 200000")
    parser.add_argument("--dim", type=int, default=256, help="of the drawn sets")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search"))
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        work(flags.worker[0], Path(flags.worker[1]))
        return
    from fashion_jax.system import files  # not for the workers, whose memory is measured

    about: dict = {"machine": machine(), "k": K, "results": []}
    results = about["results"]
    flags.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, vectors in data_sets(flags):
            queries, rows = hold_out(vectors, flags.queries)
            place = Path(folder) / "data.npz"
            np.savez(place, rows=rows, queries=queries, truth=exact(rows, queries))
            del rows
            for peer in flags.peers:
                result = run_peer(peer, place)
                results.append({"data": name, "peer": peer, **result})
                print(json.dumps({**results[-1], "points": len(result.get("points", []))}), flush=True)
                # After every peer: what a stopped run has measured is not lost.
                files.write_text(flags.out / "results.json", json.dumps(about, indent=1))
    (flags.out / "table.md").write_text(table(about))
    draw(about, flags.out / "search.png")
    print((flags.out / "table.md").read_text())


def data_sets(flags: argparse.Namespace) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and vectors of length 1."""
    if flags.embeddings:
        with np.load(flags.embeddings, allow_pickle=False) as arrays:
            yield f"{len(arrays['ids']):,} real x {arrays['embeddings'].shape[1]}", unit(arrays["embeddings"])
    for count in flags.clustered:
        yield f"{count:,} clustered x {flags.dim}", clustered(count, flags.dim)


def clustered(count: int, dim: int) -> np.ndarray:
    """Returns vectors around cluster centres of unequal weight, in fewer directions than they have features."""
    random = np.random.default_rng(0)
    clusters, inner = max(50, count // 200), 32
    basis = np.linalg.qr(random.normal(size=(dim, inner)))[0].astype(np.float32)
    weights = random.pareto(1.5, clusters) + 0.1
    centres = random.normal(size=(clusters, inner)).astype(np.float32)
    vectors = np.empty((count, dim), np.float32)
    for start in range(0, count, 50_000):
        size = min(50_000, count - start)
        chosen = random.choice(clusters, size, p=weights / weights.sum())
        inside = centres[chosen] + 0.5 * random.normal(size=(size, inner)).astype(np.float32)
        vectors[start : start + size] = inside @ basis.T + 0.05 * random.normal(size=(size, dim)).astype(np.float32)
    return unit(vectors)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Returns float32 rows of length 1."""
    vectors = vectors.astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def hold_out(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns queries, and the other rows."""
    chosen = np.zeros(len(vectors), bool)
    chosen[np.random.default_rng(1).choice(len(vectors), count, replace=False)] = True
    return np.ascontiguousarray(vectors[chosen]), np.ascontiguousarray(vectors[~chosen])


def exact(rows: np.ndarray, queries: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Returns the positions of the K nearest rows."""
    places = np.arange(len(rows)) if mask is None else np.flatnonzero(mask)
    chosen, best = rows[places], []
    for start in range(0, len(queries), 100):
        scores = queries[start : start + 100] @ chosen.T
        width = min(K, scores.shape[1])
        top = np.argpartition(-scores, width - 1, axis=1)[:, :width]
        order = np.argsort(-np.take_along_axis(scores, top, 1), axis=1)
        best.append(places[np.take_along_axis(top, order, 1)])
    return np.concatenate(best)


def run_peer(peer: str, place: Path) -> dict:
    """Runs one library in a process of its own."""
    module = PEERS[peer].partition(".")[0]
    if importlib.util.find_spec(module) is None:
        return {"left out": f"{module} is not installed"}
    done = subprocess.run(
        [sys.executable, __file__, "--worker", peer, str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"left out": f"it failed: {done.stderr[-500:]}"}
    return json.loads(done.stdout.splitlines()[-1])


def work(peer: str, place: Path) -> None:
    """Builds and searches with one library, and prints what was measured as JSON."""
    with np.load(place) as arrays:
        rows, queries, truth = arrays["rows"], arrays["queries"], arrays["truth"]
    importlib.import_module(PEERS[peer])
    before = resident()
    begin = time.perf_counter()
    points = BUILD[peer](rows)
    first = next(points)  # the generator builds when it is first asked
    build_seconds = time.perf_counter() - begin
    memory = resident() - before
    measured = []
    # One after the other: a library's settings hold from when they are yielded until the next.
    for setting, search in itertools.chain([first], points):
        found = search(queries)
        measured.append(
            {
                "setting": setting,
                "recall": recall(rows, queries, found, truth),
                "batch_qps": len(queries) / seconds(lambda: search(queries)),  # noqa: B023
                "single_qps": 1 / single(search, queries),
            }
        )
    result = {"build_seconds": build_seconds, "memory_mb": memory / 2**20, "points": measured}
    if peer == "fashion_jax":
        result.update(ours(rows, queries))
    print(json.dumps(result))


def recall(rows: np.ndarray, queries: np.ndarray, found: np.ndarray, truth: np.ndarray) -> float:
    """Returns the mean share of different rows found that are as near as the last of the true neighbours.

    Of rows that are equally near (the same photo twice) any counts, for all libraries alike.
    """
    shares = []
    for query, ours, theirs in zip(queries, found, truth, strict=True):
        if len(theirs):
            there = np.unique(ours[(ours >= 0) & (ours < len(rows))])
            shares.append(((rows[there] @ query) >= (rows[theirs] @ query).min() - 1e-6).sum() / len(theirs))
    return min(1.0, float(np.mean(shares))) if shares else 1.0


def seconds(run: Callable[[], object], least: float = 1.0) -> float:
    """Returns the median time of a call, repeated for a second at least."""
    run()
    times: list[float] = []
    while sum(times) < least or len(times) < 3:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def single(search: Search, queries: np.ndarray, least: float = 1.0) -> float:
    """Returns the median time of one query, over a second at least: a shared machine's speed changes by the moment."""
    times: list[float] = []
    for query in queries[:50]:
        search(query[None])
    while sum(times) < least:
        for query in queries[:500]:
            begin = time.perf_counter()
            search(query[None])
            times.append(time.perf_counter() - begin)
    return float(np.median(times))


def resident() -> int:
    """Returns the bytes of this process that are in memory."""
    import psutil

    return psutil.Process().memory_info().rss


# ---- the libraries; each yields (setting, search), the first one after building


def build_ours(rows: np.ndarray) -> Iterator[tuple[str, Search]]:
    """Our index at several asked recalls."""
    from fashion_jax import Index
    from fashion_jax.search.scann import ScannSearcher
    from fashion_jax.search.tuning import tune

    index = Index.build(rows, np.arange(len(rows)), target_recall=0.95)
    yield "target 0.95", lambda queries: index.search(queries, K).ids
    snapshot = index.snapshot
    base = snapshot.base
    if not isinstance(base.index, ScannSearcher):
        return
    assert base.sample is not None
    for target in (0.8, 0.9, 0.97, 0.98, 0.99, 0.995):
        tuned = base.index.with_points(tune(base.index, base.vectors, base.sample, target))
        index._snapshot = dataclasses.replace(snapshot, base=dataclasses.replace(base, index=tuned))
        yield f"target {target:g}", lambda queries: index.search(queries, K).ids
    index._snapshot = snapshot


def build_scann(rows: np.ndarray, spherical: bool = False) -> Iterator[tuple[str, Search]]:
    """Raw ScaNN as its guide says: a tree of sqrt(n) leaves, asymmetric hashing, reordering.

    Args:
        rows: (n, dim), of length 1.
        spherical: whether the leaves' centres have length 1, as in our index; not ScaNN's default.
    """
    from scann.scann_ops.py import scann_ops_pybind

    leaves = round(len(rows) ** 0.5)
    builder = scann_ops_pybind.builder(rows, K, "dot_product").tree(
        leaves, leaves // 10, min(len(rows), 250_000), spherical=spherical
    )
    searcher = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100).build()

    def make(searched: int, reorder: int) -> Search:
        def search(queries: np.ndarray) -> np.ndarray:
            if len(queries) == 1:
                return searcher.search(queries[0], K, reorder, searched)[0][None]
            return searcher.search_batched_parallel(queries, K, reorder, searched)[0]

        return search

    for share in (0.005, 0.01, 0.02, 0.04, 0.08, 0.16):
        for reorder in (20, 40, 100):
            searched = max(1, round(share * leaves))
            yield f"{searched} leaves, {reorder} reordered", make(searched, reorder)


def build_faiss_flat(rows: np.ndarray) -> Iterator[tuple[str, Search]]:
    """All rows compared."""
    import faiss

    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    yield "exact", lambda queries: index.search(queries, K)[1]


def build_faiss_hnsw(rows: np.ndarray) -> Iterator[tuple[str, Search]]:
    """A graph of 32 links."""
    import faiss

    index = faiss.IndexHNSWFlat(rows.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 100
    index.add(rows)

    def search(queries: np.ndarray) -> np.ndarray:
        return index.search(queries, K)[1]

    for ef in (10, 16, 24, 32, 48, 64, 128, 256):
        index.hnsw.efSearch = ef
        yield f"ef {ef}", search


def build_faiss_fast_scan(rows: np.ndarray) -> Iterator[tuple[str, Search]]:
    """Four-bit codes of pairs of features in sqrt(n) lists, candidates compared exactly."""
    import faiss

    dim, lists = rows.shape[1], round(len(rows) ** 0.5)
    index = faiss.index_factory(dim, f"IVF{lists},PQ{dim // 2}x4fs,RFlat", faiss.METRIC_INNER_PRODUCT)
    index.train(rows[np.random.default_rng(0).permutation(len(rows))[:100_000]])
    index.add(rows)
    coarse = faiss.downcast_index(index.base_index)

    def search(queries: np.ndarray) -> np.ndarray:
        return index.search(queries, K)[1]

    for probes in (1, 2, 4, 8, 16, 32, 64):
        for factor in (2, 4, 10, 30):
            coarse.nprobe, index.k_factor = probes, factor
            yield f"{probes} lists, {K * factor} refined", search


def build_hnswlib(rows: np.ndarray) -> Iterator[tuple[str, Search]]:
    """A graph of 16 links."""
    import hnswlib

    index = hnswlib.Index("ip", rows.shape[1])
    index.init_index(len(rows), M=16, ef_construction=200)
    index.add_items(rows)
    for ef in (10, 16, 24, 32, 48, 64, 128, 256):
        index.set_ef(ef)
        yield f"ef {ef}", lambda queries: index.knn_query(queries, K)[0]


def build_usearch(rows: np.ndarray) -> Iterator[tuple[str, Search]]:
    """A graph of 16 links."""
    from usearch.index import Index

    index = Index(ndim=rows.shape[1], metric="ip", dtype="f32", connectivity=16)
    index.add(np.arange(len(rows)), rows)

    def search(queries: np.ndarray) -> np.ndarray:
        return np.asarray(index.search(queries, K).keys).reshape(len(queries), -1).astype(np.int64)

    for expansion in (16, 32, 64, 128, 256):
        index.expansion_search = expansion
        yield f"expansion {expansion}", search


BUILD: dict[str, Callable[[np.ndarray], Iterator[tuple[str, Search]]]] = {
    "fashion_jax": build_ours,
    "ScaNN": build_scann,
    "ScaNN, spherical": partial(build_scann, spherical=True),
    "faiss flat": build_faiss_flat,
    "faiss HNSW": build_faiss_hnsw,
    "faiss IVF-PQ fast-scan": build_faiss_fast_scan,
    "hnswlib": build_hnswlib,
    "usearch": build_usearch,
}


def ours(rows: np.ndarray, queries: np.ndarray) -> dict:
    """Measures what our API costs on top of the same ScaNN searcher, and filtered search against exact search.

    Exact search is asked twice: by the same API over an exact index, and by hand, without ids, checks and filters: one
    call over rows that were gathered before the clock ran.
    """
    from fashion_jax import Index
    from fashion_jax.search.exact import search_rows
    from fashion_jax.search.planner import plan
    from fashion_jax.search.scann import ScannSearcher

    share = np.random.default_rng(2).random(len(rows))
    columns = {"share": share.tolist()}
    index = Index.build(rows, np.arange(len(rows)), columns)
    flat = Index.build(rows, np.arange(len(rows)), columns, backend="exact")
    base = index.snapshot.base
    result: dict = {}
    if isinstance(base.index, ScannSearcher):
        raw, point = base.index._searcher, next(point for point in base.points if point.neighbours >= K)
        apart: list[float] = []
        batches: list[float] = []
        # Turn and turn about, so that a change of the machine's speed falls on both.
        for query in np.concatenate([queries[:50], queries]):
            one, begin = query[None], time.perf_counter()
            raw.search(query, K, point.reorder, point.leaves)
            middle = time.perf_counter()
            index.search(one, K)
            apart.append(time.perf_counter() - middle - (middle - begin))
        for _ in range(60):
            begin = time.perf_counter()
            raw.search_batched_parallel(queries, K, point.reorder, point.leaves, 256)
            middle = time.perf_counter()
            index.search(queries, K)
            batches.append((time.perf_counter() - middle) / (middle - begin))
        result["over_raw"] = {"single_us": float(np.median(apart[50:])) * 1e6, "batch": float(np.median(batches))}
    filtered = []
    for selectivity in SHARES:
        mask = share < selectivity
        truth = exact(rows, queries, mask)
        where = f"share < {selectivity}"

        def search(some: np.ndarray, where: str = where) -> np.ndarray:
            return index.search(some, K, where=where).ids

        def search_flat(some: np.ndarray, where: str = where) -> np.ndarray:
            return flat.search(some, K, where=where).ids

        places = np.flatnonzero(mask)
        passing = rows if mask.all() else rows[places]  # gathered before the clock runs, as ours is

        def brute(some: np.ndarray, passing: np.ndarray = passing, places: np.ndarray = places) -> np.ndarray:
            return places[search_rows(passing, some, min(K, len(places)))[1]]

        found = search(queries)
        for query in queries[:20]:  # a filter's first searches prepare the later ones
            search(query[None]), search_flat(query[None])
        filtered.append(
            {
                "selectivity": selectivity,
                "passing": int(mask.sum()),
                "recall": recall(rows, queries, found, truth),
                "complete": bool(((found >= 0).sum(1) == min(K, mask.sum())).all()),
                "plan": {
                    name: type(plan(base, count, K, index.snapshot.select(where).base)).__name__
                    for name, count in (("single", 1), ("batch", len(queries)))
                },
                **singles_in_turn(
                    queries, {"single_us": search, "exact_single_us": search_flat, "bare_single_us": brute}
                ),
                **batches_in_turn(queries, {"batch_us": search, "exact_batch_us": search_flat, "bare_batch_us": brute}),
            }
        )
    result["filtered"] = filtered
    return result


def batches_in_turn(queries: np.ndarray, searches: dict[str, Search]) -> dict[str, float]:
    """Returns microseconds a query in batches, medians of runs turn and turn about."""
    times: dict[str, list[float]] = {name: [] for name in searches}
    for turn in range(8):
        for name, search in searches.items():
            begin = time.perf_counter()
            search(queries)
            if turn:
                times[name].append((time.perf_counter() - begin) / len(queries) * 1e6)
    return {name: float(np.median(values)) for name, values in times.items()}


def singles_in_turn(queries: np.ndarray, searches: dict[str, Search], least: float = 4.0) -> dict[str, float]:
    """Returns microseconds of one query alone: medians of blocks of queries, turn and turn about, over some seconds."""
    times: dict[str, list[float]] = {name: [] for name in searches}
    begin = time.perf_counter()
    while time.perf_counter() - begin < least:
        for name, search in searches.items():
            for place, query in enumerate(queries[:60]):
                start = time.perf_counter()
                search(query[None])
                if place >= 10:  # the block before has filled the caches with rows of its own
                    times[name].append((time.perf_counter() - start) * 1e6)
    return {name: float(np.median(values)) for name, values in times.items()}


def machine() -> str:
    """Returns what the figures were measured on."""
    model = (
        next(
            (
                line.split(":")[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if "model name" in line
            ),
            platform.processor(),
        )
        if Path("/proc/cpuinfo").exists()
        else platform.processor()
    )
    return f"{os.cpu_count()} cores, {model}, Python {platform.python_version()}"


def at_recall(points: list[dict], kind: str, least: float = 0.95) -> dict | None:
    """Returns the fastest point of at least a recall."""
    good = [point for point in points if point["recall"] >= least]
    return max(good, key=lambda point: point[kind]) if good else None


def table(about: dict) -> str:
    """Returns Markdown: per library, the fastest setting of recall 0.95 at least; then filters and overheads."""
    lines = [f"Measured on {about['machine']}; k = {about['k']}.", ""]
    lines.append("| vectors | library | build | memory | batch, recall >= 0.95 | single, recall >= 0.95 |")
    lines.append("|" + "---|" * 6)
    for item in about["results"]:
        if "left out" in item:
            lines.append(f"| {item['data']} | {item['peer']} | {item['left out']} | | | |")
            continue
        cells = []
        for kind in ("batch_qps", "single_qps"):
            best = at_recall(item["points"], kind)
            cells.append(f"{best[kind]:,.0f}/s at {best['recall']:.3f} ({best['setting']})" if best else "not reached")
        lines.append(
            f"| {item['data']} | {item['peer']} | {item['build_seconds']:.1f} s | {item['memory_mb']:,.0f} MB "
            f"| {cells[0]} | {cells[1]} |"
        )
    for item in about["results"]:
        if "over_raw" in item:
            over = item["over_raw"]
            lines += [
                "",
                f"{item['data']}: our API over the same ScaNN searcher: one query {over['single_us']:+.1f} us, "
                f"a batch x{over['batch']:.3f}.",
            ]
        if "filtered" in item:
            lines += [
                "",
                f"Filtered, {item['data']}:",
                "",
                "| share | rows | recall | complete | one query | exact index | by hand | batch, a query | exact index "
                "| by hand | by |",
                "|" + "---|" * 11,
            ]
            lines += [
                f"| {f['selectivity']:g} | {f['passing']:,} | {f['recall']:.3f} | {'yes' if f['complete'] else 'NO'} "
                f"| {f['single_us']:,.0f} us | {f['exact_single_us']:,.0f} us | {f['bare_single_us']:,.0f} us "
                f"| {f['batch_us']:,.1f} us | {f['exact_batch_us']:,.1f} us | {f['bare_batch_us']:,.1f} us "
                f"| {f['plan']['single']}, {f['plan']['batch']} |"
                for f in item["filtered"]
            ]
    return "\n".join(lines) + "\n"


def draw(about: dict, path: Path) -> None:
    """Draws queries per second against recall, a row per set of vectors: batches at the left, single at the right."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(item["data"] for item in about["results"]))
    figure, axes = plt.subplots(len(names), 2, figsize=(12, 4.2 * len(names)), squeeze=False, layout="constrained")
    for row, name in enumerate(names):
        for column, (kind, title) in enumerate((("batch_qps", "batches of 1,000"), ("single_qps", "one at a time"))):
            axis = axes[row][column]
            for item in about["results"]:
                if item["data"] != name or "left out" in item:
                    continue
                points = sorted(item["points"], key=lambda point: -point["recall"])
                front, best = [], 0.0
                for point in points:
                    if point[kind] > best:
                        best = point[kind]
                        front.append(point)
                mine = item["peer"] == "fashion_jax"
                axis.plot(
                    [p["recall"] for p in front], [p[kind] for p in front], marker="o", label=item["peer"],
                    linewidth=3 if mine else 1.3, zorder=5 if mine else 2,
                )  # fmt: skip
            axis.set(title=f"{name}, {title}", xlabel="recall@10", ylabel="queries/s", yscale="log", xlim=(0.7, 1.005))
            axis.axvline(0.95, color="#999999", linestyle=":")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
