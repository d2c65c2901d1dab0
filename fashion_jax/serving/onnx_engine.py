"""Prediction on CPUs with onnxruntime, without compiling. Only this file and `label_photo.py` import `onnxruntime`.

The graph is made from the package's checked weights when it is first needed, in about a tenth of a second. It is never
stored, so it can neither be damaged nor belong to another package.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future

import numpy as np
import onnxruntime

from fashion_jax.serving.engine import CPU_CORE_PIXELS, MOST_PHOTOS, Engine, NetworkOutputs
from fashion_jax.serving.onnx_graph import PHOTOS, write_graph
from fashion_jax.serving.package import Package
from fashion_jax.system.process import num_cores
from fashion_jax.system.threads import thread_pool

_ERRORS_ONLY = 3  # severity of onnxruntime's messages


class OnnxEngine(Engine):
    """Runs parts of a batch at the same time, one on each core. This is faster than one part at a time on all cores."""

    name = "onnx"
    dtype = "float32"

    def __init__(self, package: Package) -> None:
        self._package = package
        self._sessions: dict[bool, onnxruntime.InferenceSession] = {}
        self._lock = threading.Lock()
        height, width = package.preprocessing["height"], package.preprocessing["width"]
        self._part = max(1, min(MOST_PHOTOS, CPU_CORE_PIXELS // (height * width)))
        self.batch_size = min(MOST_PHOTOS, self._part * num_cores())

    def run(self, batches: Iterable[np.ndarray], flip: bool) -> Iterator[NetworkOutputs]:
        before: list[Future[NetworkOutputs]] = []  # The threads compute it while the next batch is read.
        for images in batches:
            part = min(self._part, -(-max(len(images), 1) // num_cores()))
            starts = range(0, max(len(images), 1), part)
            now = [thread_pool().submit(self._compute, images[start : start + part], flip) for start in starts]
            if before:
                yield NetworkOutputs.join([future.result() for future in before])
            before = now
        if before:
            yield NetworkOutputs.join([future.result() for future in before])

    def _compute(self, images: np.ndarray, flip: bool) -> NetworkOutputs:
        session = self._session(flip)
        names = [output.name for output in session.get_outputs()]
        # Without a photo, a black one gives arrays of the right shapes.
        given = images if len(images) else np.zeros((1, *images.shape[1:]), np.uint8)
        values = session.run(names, {PHOTOS: np.ascontiguousarray(given)})
        found = {name: value[: len(images)] for name, value in zip(names, values, strict=True)}
        return NetworkOutputs(
            logits={name: found[f"logits/{name}"] for name in self._package.vocabularies},
            tags={name: found[f"logits/{name}"] for name in self._package.tags},
            features=found["features"],
            energies=found["energies"],
            embeddings=found["embedding"],
            colour_features=found.get("colour_features", np.zeros((len(images), 0), np.float32)),
        )

    def _session(self, flip: bool) -> onnxruntime.InferenceSession:
        with self._lock:
            if flip not in self._sessions:
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = options.inter_op_num_threads = 1
                options.log_severity_level = _ERRORS_ONLY
                graph = write_graph(self._package, flip=flip)
                self._sessions[flip] = onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])
            return self._sessions[flip]
