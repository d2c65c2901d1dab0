"""The line that a person watches while a run trains."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from fashion_jax.system.progress import progress_bar


class ProgressLine:
    """Shows step, epoch, images per second, loss and the time left on standard error."""

    def __init__(self, *, start: int, total: int, batch_size: int, num_examples: int, show: bool) -> None:
        """Starts the clock.

        Args:
            start: steps done in earlier runs.
            batch_size: images per step, over all processes.
            num_examples: images per epoch.
            show: False on processes other than the first, and where a caller wants quiet.
        """
        self._batch_size, self._num_examples = batch_size, num_examples
        self._bar = progress_bar(
            total,
            "training",
            show=show,
            initial=start,
            bar_format="{desc} step {n}/{total} |{bar:20}| {elapsed}<{remaining}{postfix}",
            dynamic_ncols=True,
        )
        self._steps = 0
        self._since = time.monotonic()
        self._rate = 0.0

    def update(self, step: int, loss: float) -> None:
        """Tells of one finished step and its loss."""
        self._steps += 1
        seconds = time.monotonic() - self._since
        if self._steps > 1:
            self._rate = self._steps * self._batch_size / max(seconds, 1e-9)
        epoch = (step + 1) * self._batch_size / max(self._num_examples, 1)
        self._bar.set_postfix_str(f"epoch {epoch:.2f}, {self._rate:,.0f} images/s, loss {loss:.4f}", refresh=False)
        self._bar.update()

    def rates(self) -> dict[str, float]:
        """Returns `images_per_second` since the last call, and starts anew."""
        rate = self._rate
        self._steps, self._since = 0, time.monotonic()
        return {"images_per_second": rate} if rate else {}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of the block out of the rate."""
        begin = time.monotonic()
        yield
        self._since += time.monotonic() - begin

    def close(self) -> None:
        """Ends the line."""
        self._bar.close()
