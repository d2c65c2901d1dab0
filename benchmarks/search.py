"""Search side by side: fashion_jax.Index and the fastest libraries of PyPI, which take turns in one process.

    pip install -e '.[bench]'
    fashion-jax embed --model small --source photos/ --out embeddings.npz
    python benchmarks/search.py --embeddings embeddings.npz --clustered 200000

Every library builds an index and is measured at several settings. Of the settings with recall@10 of 0.95 at least, the
fastest one for batches and the fastest one for single queries then take part in rounds: in each round every library
answers the same batch, and the same single queries. A ratio is taken within a round, so that a change of the machine's
speed affects all libraries. The queries are not in the index. Batches use all cores.

Writes results.json (machine, versions, medians, quartiles), table.md and search.png. The table names libraries that
were left out because they are not installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from turns import machine

K = 10
RECALL = 0.95
SHARES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
SINGLES = 60  # queries of a block that are asked alone; the first ten of them fill the caches
PACKAGES = ("scann", "faiss-cpu", "hnswlib", "usearch", "voyager", "pyvsag", "numpy", "jax")
Search = Callable[[np.ndarray], np.ndarray]
OURS: dict[tuple[int, int], Any] = {}  # number of rows, batch -> the base of the index that `build_ours` made


@dataclasses.dataclass
class Setting:
    """A library at one of its settings."""

    name: str
    search: Search  # queries (n, dim) -> positions (n, K)
    prepare: Callable[[], object] = lambda: None  # what a library needs before it searches at this setting
    recall: float = 0.0
    batch_us: float = math.inf  # a query
    single_us: float = math.inf


def main() -> None:
    """Runs every library on every set of vectors and writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", type=Path, help="npz with `embeddings`, as `fashion-jax embed` writes it")
    parser.add_argument("--clustered", type=int, nargs="*", default=[], help="sizes of drawn sets, such as 200000")
    parser.add_argument("--dim", type=int, default=256, help="of the drawn sets")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--builds", type=int, default=3, help="times that ours and raw ScaNN are built")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--no-filters", action="store_true", help="leaves out searches with filters")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search"))
    flags = parser.parse_args()
    from fashion_jax.system import files

    flags.out.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {"machine": machine(), "versions": versions(), "k": K, "recall": RECALL, "results": []}
    for name, vectors in data_sets(flags):
        about["results"].append({"data": name, **measure(*hold_out(vectors, flags.queries), flags)})
        files.write_text(flags.out / "results.json", json.dumps(about, indent=1))
        (flags.out / "table.md").write_text(table(about))
        draw(about, flags.out / "search.png")
    print((flags.out / "table.md").read_text())


def measure(queries: np.ndarray, rows: np.ndarray, flags: argparse.Namespace) -> dict[str, Any]:
    """Measures all libraries on one set of vectors."""
    wanted = nearest_scores(rows, queries)
    libraries: dict[str, dict[str, Any]] = {}
    settings: dict[str, list[Setting]] = {}
    for peer in flags.peers:
        print(f"{peer}: builds", flush=True)
        before, begin = resident(), time.perf_counter()
        try:
            made = PEERS[peer](rows)
            first = next(made)  # the generator builds when it is first asked
        except ImportError as error:
            libraries[peer] = {"left out": f"{error.name} is not installed"}
            continue
        built, memory = time.perf_counter() - begin, resident() - before
        settings[peer] = [first, *made]
        for setting in settings[peer]:
            sound_out(setting, rows, queries, wanted)
        points = [{f.name: getattr(s, f.name) for f in dataclasses.fields(s) if f.type in ("str", "float")}
                  for s in settings[peer]]  # fmt: skip
        libraries[peer] = {"build_seconds": [built], "memory_mb": memory / 2**20, "points": points}
    chosen = {kind: {peer: best for peer, found in settings.items() if (best := fastest(found, kind, queries))}
              for kind in ("batch_us", "single_us")}  # fmt: skip
    for kind, contestants in chosen.items():
        times = take_turns(contestants, queries, kind, flags.rounds)
        for peer, values in times.items():
            setting = contestants[peer]
            ratios = np.array(times["fashion_jax"]) / np.array(values) if "fashion_jax" in times else np.ones(1)
            libraries[peer][kind] = {
                "setting": setting.name,
                "recall": setting.recall,
                **spread(values),
                "ours_over_it": spread(ratios.tolist()),
            }
    over = {}
    for place, kind in enumerate(("single_us", "batch_us")):  # the index that is built for it, and the library behind
        if "the library behind ours" in settings:
            pair = {peer: settings[peer][place] for peer in ("fashion_jax", "the library behind ours")}
            ours, raw = (np.array(times) for times in take_turns(pair, queries, kind, 2 * flags.rounds).values())
            over[kind] = {"more_us": spread((ours - raw).tolist()), "ratio": spread((ours / raw).tolist())}
    for _ in range(flags.builds - 1):
        for peer in ("fashion_jax", "ScaNN"):
            if peer in settings:
                begin = time.perf_counter()
                next(PEERS[peer](rows))
                libraries[peer]["build_seconds"].append(time.perf_counter() - begin)
    result = {"rows": len(rows), "queries": len(queries), "libraries": libraries, "over_raw": over}
    if "fashion_jax" in settings and not flags.no_filters:
        result["filtered"] = filtered(rows, queries)
    return result


def take_turns(contestants: dict[str, Setting], queries: np.ndarray, kind: str, rounds: int) -> dict[str, list[float]]:
    """Returns microseconds a query of each library, one value a round, without the first round."""
    times: dict[str, list[float]] = {peer: [] for peer in contestants}
    random = np.random.default_rng(3)
    for turn in range(rounds + 1):
        some = queries[random.choice(len(queries), min(SINGLES, len(queries)), replace=False)]
        for peer in random.permutation(list(contestants)).tolist():  # nobody always follows the same one
            setting = contestants[peer]
            setting.prepare()
            value = batch_us(setting.search, queries) if kind == "batch_us" else single_us(setting.search, some)
            if turn:
                times[peer].append(value)
    return times


def batch_us(search: Search, queries: np.ndarray) -> float:
    """Returns the microseconds a query in one batch."""
    begin = time.perf_counter()
    search(queries)
    return (time.perf_counter() - begin) / len(queries) * 1e6


def single_us(search: Search, queries: np.ndarray) -> float:
    """Returns the median microseconds of a query alone."""
    times = []
    for query in queries:
        begin = time.perf_counter()
        search(query[None])
        times.append(time.perf_counter() - begin)
    return float(np.median(times[10:])) * 1e6


def sound_out(setting: Setting, rows: np.ndarray, queries: np.ndarray, wanted: np.ndarray) -> None:
    """Measures recall, and roughly the times."""
    setting.prepare()
    setting.recall = recall(rows, queries, setting.search(queries), wanted)
    setting.batch_us = min(batch_us(setting.search, queries) for _ in range(3))
    setting.single_us = min(single_us(setting.search, queries[at : at + SINGLES]) for at in (0, 100, 200))


def fastest(settings: list[Setting], kind: str, queries: np.ndarray) -> Setting | None:
    """Returns the setting with enough recall that is the fastest in turns with the others of its library."""
    good = [setting for setting in settings if setting.recall >= RECALL]
    if not good:
        return None
    limit = 2 * min(getattr(setting, kind) for setting in good)
    close = {str(place): setting for place, setting in enumerate(good) if getattr(setting, kind) <= limit}
    times = take_turns(close, queries, kind, 5)
    return close[min(times, key=lambda place: float(np.median(times[place])))]


def spread(values: list[float]) -> dict[str, float]:
    """Returns the median and the quartiles."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}


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


def nearest_scores(rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Returns the similarities of the K nearest rows of each query, best first."""
    parts = []
    for start in range(0, len(queries), 100):
        scores = queries[start : start + 100] @ rows.T
        parts.append(-np.sort(-np.partition(scores, -min(K, len(rows)), axis=1)[:, -K:], axis=1))
    return np.concatenate(parts)


def recall(rows: np.ndarray, queries: np.ndarray, found: np.ndarray, wanted: np.ndarray) -> float:
    """Returns the mean share of different rows found that are as near as the last of the true neighbours.

    Of rows that are equally near (the same photo twice) any counts, for all libraries alike.
    """
    shares = []
    for query, ours, scores in zip(queries, found, wanted, strict=True):
        there = np.unique(ours[(ours >= 0) & (ours < len(rows))])
        shares.append(min(1.0, (rows[there] @ query >= scores[-1] - 1e-6).sum() / len(scores)))
    return float(np.mean(shares))


def resident() -> int:
    """Returns the bytes of this process that are in memory."""
    import psutil

    return psutil.Process().memory_info().rss


# ---- the libraries; each yields settings, the first one after building


def build_ours(rows: np.ndarray) -> Iterator[Setting]:
    """Our index, built for single queries and for batches; then with other settings, for the figure."""
    from fashion_jax import Index

    for batch in (1, 1000):  # the number of queries that the user says to send at once
        index = Index.build(rows, np.arange(len(rows)), target_recall=RECALL, batch=batch)
        base = index.snapshot.base
        OURS[len(rows), batch] = base
        coded = " with codes" if getattr(base.index, "coded", False) else ""
        name = f"{base.backend}{coded}, built for batches of {batch:,}"
        yield Setting(name, lambda queries, index=index: index.search(queries, K).ids)
    if base.approximate is None:
        return
    snapshot, curve = index.snapshot, Index(index.snapshot, index._settings)

    def use(some: Any) -> None:
        curve._snapshot = some

    for name, tuned in more_settings(base.approximate, base.vectors):
        other = dataclasses.replace(snapshot, base=dataclasses.replace(base, index=tuned))
        yield Setting(name, lambda queries: curve.search(queries, K).ids, partial(use, other))


def more_settings(searcher: Any, vectors: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Yields names and our searcher at other settings, for the curves of the figure."""
    from fashion_jax.search.tuning import draw_sample, tune

    if searcher.backend == "hnsw":
        point = searcher.points[0]
        for effort in (10, 14, 20, 28, 40, 60):
            found = dataclasses.replace(point, effort=effort)
            yield f"hnsw, effort {effort}", searcher.with_points((found, *searcher.points[1:]))
        return
    sample = draw_sample(vectors)
    for target in (0.8, 0.9, 0.98, 0.99, 0.995):
        if points := tune(searcher.with_points(()), vectors, sample, target):
            yield f"scann, target {target}", searcher.with_points(points)


def build_one_backend(rows: np.ndarray, backend: str) -> Iterator[Setting]:
    """Our index with a backend that is asked for."""
    from fashion_jax import Index

    index = Index.build(rows, np.arange(len(rows)), target_recall=RECALL, backend=backend)
    coded = " with codes" if getattr(index.snapshot.base.index, "coded", False) else ""
    yield Setting(f"{backend}{coded}, target {RECALL}", lambda queries: index.search(queries, K).ids)


def build_raw(rows: np.ndarray) -> Iterator[Setting]:
    """The library behind our index, with the same settings. The difference is the cost of our own code."""
    for batch in (1, 1000):
        base = OURS[len(rows), batch]
        point = next((point for point in base.points if point.neighbours >= K), None)
        if point is None:  # exact search was faster
            continue
        yield Setting(f"{base.backend}, effort {point.effort}", raw_search(base.index, point))


def raw_search(searcher: Any, point: Any) -> Search:
    """Returns a search by the library behind a searcher of ours."""
    if searcher.backend == "scann":
        library = searcher._searcher

        def search(queries: np.ndarray) -> np.ndarray:
            if len(queries) == 1:
                return library.search(queries[0], K, point.reorder, point.effort)[0][None]
            return library.search_batched_parallel(queries, K, point.reorder, point.effort, 256)[0]

        return search
    import faiss

    asked, width = faiss.SearchParametersHNSW(efSearch=point.effort), max(K, point.effort) if searcher.coded else K
    return lambda queries: searcher._index.search(queries, width, params=asked)[1]


def build_scann(rows: np.ndarray, spherical: bool = False) -> Iterator[Setting]:
    """Raw ScaNN as its guide says: a tree of sqrt(n) leaves, asymmetric hashing, reordering.

    Args:
        rows: (n, dim), of length 1.
        spherical: whether the leaves' centres have length 1, as in our index; not ScaNN's default.
    """
    from scann.scann_ops.py import scann_ops_pybind

    leaves = round(len(rows) ** 0.5)
    builder = scann_ops_pybind.builder(rows, K, "dot_product").tree(
        leaves, max(1, leaves // 10), min(len(rows), 250_000), spherical=spherical
    )
    searcher = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100).build()

    def search(queries: np.ndarray, searched: int, reorder: int) -> np.ndarray:
        if len(queries) == 1:
            return searcher.search(queries[0], K, reorder, searched)[0][None]
        return searcher.search_batched_parallel(queries, K, reorder, searched)[0]

    for share in (0.005, 0.01, 0.02, 0.04, 0.08):
        for reorder in (20, 40, 100):
            searched = max(1, round(share * leaves))
            yield Setting(
                f"{searched} leaves, {reorder} reordered", partial(search, searched=searched, reorder=reorder)
            )


def build_faiss_hnsw(rows: np.ndarray, links: int = 16, effort: int = 100) -> Iterator[Setting]:
    """A graph of `links` links, twice as many on the lowest level."""
    import faiss

    index = faiss.IndexHNSWFlat(rows.shape[1], links, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = effort
    index.add(rows)
    for ef in (10, 12, 16, 24, 32, 48, 64, 128):
        use = partial(setattr, index.hnsw, "efSearch", ef)
        yield Setting(f"{links} links, ef {ef}", lambda queries: index.search(queries, K)[1], use)


def build_faiss_fast_scan(rows: np.ndarray) -> Iterator[Setting]:
    """Four-bit codes of pairs of features in sqrt(n) lists, candidates compared exactly."""
    import faiss

    dim, lists = rows.shape[1], round(len(rows) ** 0.5)
    index = faiss.index_factory(dim, f"IVF{lists},PQ{dim // 2}x4fs,RFlat", faiss.METRIC_INNER_PRODUCT)
    index.train(rows[np.random.default_rng(0).permutation(len(rows))[:100_000]])
    index.add(rows)
    coarse = faiss.downcast_index(index.base_index)

    def use(probes: int, factor: int) -> None:
        coarse.nprobe, index.k_factor = probes, factor

    for probes in (1, 2, 4, 8, 16, 32):
        for factor in (4, 10, 30):
            name = f"{probes} lists, {K * factor} refined"
            yield Setting(name, lambda queries: index.search(queries, K)[1], partial(use, probes, factor))


def build_hnswlib(rows: np.ndarray, links: int = 16) -> Iterator[Setting]:
    """A graph of `links` links, twice as many on the lowest level."""
    import hnswlib

    index = hnswlib.Index("ip", rows.shape[1])
    index.init_index(len(rows), M=links, ef_construction=200)
    index.add_items(rows)
    for ef in (10, 12, 16, 24, 32, 48, 64, 128):
        name = f"{links} links, ef {ef}"
        yield Setting(name, lambda queries: index.knn_query(queries, K)[0].astype(np.int64), partial(index.set_ef, ef))


def build_usearch(rows: np.ndarray) -> Iterator[Setting]:
    """A graph of 16 links."""
    from usearch.index import Index

    index = Index(ndim=rows.shape[1], metric="ip", dtype="f32", connectivity=16)
    index.add(np.arange(len(rows)), rows)

    def search(queries: np.ndarray) -> np.ndarray:
        return np.asarray(index.search(queries, K).keys).reshape(len(queries), -1).astype(np.int64)

    for expansion in (10, 16, 32, 64, 128):
        yield Setting(f"expansion {expansion}", search, partial(setattr, index, "expansion_search", expansion))


def build_voyager(rows: np.ndarray) -> Iterator[Setting]:
    """A graph of 12 links."""
    import voyager

    index = voyager.Index(voyager.Space.InnerProduct, rows.shape[1], M=12, ef_construction=200)
    index.add_items(rows)

    def search(queries: np.ndarray, ef: int) -> np.ndarray:
        return index.query(queries, K, query_ef=ef)[0].astype(np.int64)

    for ef in (10, 12, 16, 24, 32, 48, 64):
        yield Setting(f"12 links, ef {ef}", partial(search, ef=ef))


def build_vsag(rows: np.ndarray) -> Iterator[Setting]:
    """HGraph with codes of one byte, and exact comparison of the best; a thread a core for batches."""
    from concurrent.futures import ThreadPoolExecutor

    import pyvsag

    pyvsag.set_logger_off()
    dim, cores = rows.shape[1], os.cpu_count() or 1
    detail = {
        "base_quantization_type": "sq8", "use_reorder": True, "precise_quantization_type": "fp32", "max_degree": 24,
        "ef_construction": 100, "build_thread_count": cores,
    }  # fmt: skip
    about = {"dtype": "float32", "metric_type": "ip", "dim": dim, "index_param": detail}
    index = pyvsag.Index("hgraph", json.dumps(about))
    index.build(vectors=rows.reshape(-1), ids=np.arange(len(rows)), num_elements=len(rows), dim=dim)
    pool = ThreadPoolExecutor(cores)

    def search(queries: np.ndarray, asked: str) -> np.ndarray:
        if len(queries) == 1:
            return index.knn_search(vector=queries[0], k=K, parameters=asked)[0][None]

        def some(part: np.ndarray) -> list[np.ndarray]:
            return [index.knn_search(vector=query, k=K, parameters=asked)[0] for query in part]

        return np.concatenate([np.array(found) for found in pool.map(some, np.array_split(queries, cores))])

    for ef in (10, 16, 24, 32, 48, 64):
        yield Setting(f"sq8, ef {ef}", partial(search, asked=json.dumps({"hgraph": {"ef_search": ef}})))


PEERS: dict[str, Callable[[np.ndarray], Iterator[Setting]]] = {
    "fashion_jax": build_ours,
    "fashion_jax, scann": partial(build_one_backend, backend="scann"),
    "fashion_jax, hnsw": partial(build_one_backend, backend="hnsw"),
    "the library behind ours": build_raw,
    "ScaNN": build_scann,
    "ScaNN, spherical": partial(build_scann, spherical=True),
    "faiss HNSW": build_faiss_hnsw,
    "faiss HNSW, as ours": partial(build_faiss_hnsw, links=12, effort=200),
    "faiss IVF-PQ fast-scan": build_faiss_fast_scan,
    "hnswlib": build_hnswlib,
    "hnswlib, 8 links": partial(build_hnswlib, links=8),
    "usearch": build_usearch,
    "voyager": build_voyager,
    "pyvsag HGraph": build_vsag,
}


def filtered(rows: np.ndarray, queries: np.ndarray) -> list[dict[str, Any]]:
    """Measures filtered search and an exact index, which take turns, at every share of rows that pass."""
    from fashion_jax import Index
    from fashion_jax.search.planner import plan

    share = np.random.default_rng(2).random(len(rows))
    columns = {"share": share.tolist()}
    ids = np.arange(len(rows))
    index, flat = (Index.build(rows, ids, columns, backend=backend) for backend in ("auto", "exact"))
    results = []
    for selectivity in SHARES:
        mask, where = share < selectivity, f"share < {selectivity}"
        passing = np.flatnonzero(mask)
        wanted = nearest_scores(rows[passing], queries)

        def search(some: np.ndarray, of: Index, where: str = where) -> np.ndarray:
            return of.search(some, K, where=where).ids

        contestants = {"ours": Setting("", partial(search, of=index)), "exact": Setting("", partial(search, of=flat))}
        for setting in contestants.values():  # a filter's first searches prepare the later ones
            for query in queries[:20]:
                setting.search(query[None])
        found = search(queries, index)
        rounds = 5 if selectivity > 0.05 else 11
        times = {kind: take_turns(contestants, queries, kind, rounds) for kind in ("single_us", "batch_us")}
        selected = index.snapshot.select(where).base
        results.append({
            "selectivity": selectivity,
            "passing": len(passing),
            "recall": recall(rows, queries, found, wanted),
            "complete": bool(((found >= 0).sum(1) == min(K, len(passing))).all()),
            "plan": [type(plan(index.snapshot.base, n, K, selected)).__name__ for n in (1, len(queries))],
            **{kind: {"ours": spread(t["ours"]), "exact": spread(t["exact"]),
                      "ours_over_exact": spread((np.array(t["ours"]) / np.array(t["exact"])).tolist())}
               for kind, t in times.items()},
        })  # fmt: skip
    return results


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that are installed."""
    there = {}
    for name in PACKAGES:
        try:
            there[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return there


def table(about: dict[str, Any]) -> str:
    """Returns Markdown: times a query and their ratios to ours, builds, and filters."""
    least = f"k = {about['k']}, recall@{about['k']} >= {about['recall']}"
    lines = [f"Measured on {about['machine']}; {least}. Times are medians with quartiles, in microseconds a query."]
    lines.append("ours / it: the time of fashion_jax, divided by the time of the library.")
    for item in about["results"]:
        lines += ["", f"**{item['data']}**, {item['queries']:,} queries", ""]
        lines.append("| library | build | batch | ours / it | single | ours / it | settings |")
        lines.append("|" + "---|" * 7)
        for peer, found in item["libraries"].items():
            if "left out" in found:
                lines.append(f"| {peer} | {found['left out']} | | | | | |")
                continue
            cells, names = [], []
            for kind in ("batch_us", "single_us"):
                if kind not in found:
                    cells += ["not reached", ""]
                    continue
                one, ratio = found[kind], found[kind]["ours_over_it"]
                cells.append(f"{one['median']:.1f} ({one['low']:.1f}-{one['high']:.1f})")
                cells.append(f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})")
                names.append(f"{one['setting']} (recall {one['recall']:.3f})")
            built = f"{np.median(found['build_seconds']):.1f} s"
            lines.append(f"| {peer} | {built} | {' | '.join(cells)} | {'; '.join(dict.fromkeys(names))} |")
        if item["over_raw"]:
            more, ratio = item["over_raw"]["single_us"]["more_us"], item["over_raw"]["batch_us"]["ratio"]
            lines += ["", f"Our API over the library behind it: a single query {more['median']:+.1f} us "
                      f"({more['low']:+.1f} to {more['high']:+.1f}), a batch x{ratio['median']:.3f} "
                      f"({ratio['low']:.3f}-{ratio['high']:.3f})."]  # fmt: skip
        if "filtered" in item:
            lines += [
                "",
                "Filters: times over those of exact search; what searched single queries, and batches (host: exactly).",
            ]
            lines += ["", "| share that passes | recall | complete | single / exact | batch / exact | by |"]
            lines.append("|" + "---|" * 6)
            for f in item["filtered"]:
                single, batch = (f[kind]["ours_over_exact"]["median"] for kind in ("single_us", "batch_us"))
                complete = "yes" if f["complete"] else "NO"
                cells = f"{f['selectivity']:g} | {f['recall']:.3f} | {complete} | {single:.2f} | {batch:.2f}"
                lines.append(f"| {cells} | {', '.join(name.removesuffix('Searcher').lower() for name in f['plan'])} |")
    return "\n".join(lines) + "\n"


def draw(about: dict[str, Any], path: Path) -> None:
    """Draws queries per second against recall, a row per set of vectors: batches at the left, single at the right."""
    import matplotlib.pyplot as plt

    results = about["results"]
    figure, axes = plt.subplots(len(results), 2, figsize=(12, 4.2 * len(results)), squeeze=False, layout="constrained")
    for row, item in enumerate(results):
        for column, (kind, title) in enumerate((("batch_us", "batches"), ("single_us", "one at a time"))):
            axis = axes[row][column]
            for peer, found in item["libraries"].items():
                front: list[dict[str, float]] = []
                for point in sorted(found.get("points", ()), key=lambda point: -point["recall"]):
                    if not front or point[kind] < front[-1][kind]:
                        front.append(point)
                mine = peer == "fashion_jax"
                axis.plot(
                    [p["recall"] for p in front], [1e6 / p[kind] for p in front], marker="o", label=peer,
                    linewidth=3 if mine else 1.3, zorder=5 if mine else 2,
                )  # fmt: skip
            axis.set(title=f"{item['data']}, {title}", xlabel="recall@10", ylabel="queries/s", yscale="log")
            axis.set_xlim(0.7, 1.005)
            axis.axvline(RECALL, color="#999999", linestyle=":")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7)
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    main()
