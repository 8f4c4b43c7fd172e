"""The list of measurements. A new one is a file with a ``Measurement`` and its row here: run files and tracker then have it."""

from __future__ import annotations

from collections.abc import Iterable

from eosslib.measure import batch, loss, minibatch, noise, overlap, preconditioned, sharpness, static, windows
from eosslib.measure.moment import Columns, Measurement, Moment

MEASUREMENTS: tuple[Measurement, ...] = (
    loss.LOSS,
    loss.TEST_ACCURACY,
    sharpness.SHARPNESS,
    preconditioned.PRECONDITIONED,
    noise.NOISE,
    batch.BATCH_SHARPNESS,
    minibatch.MINIBS,
    overlap.OVERLAP,
    static.STATIC,
    windows.WINDOW,
    windows.RAW_ALPHA,
)


def measured(moment: Moment, which: Iterable[Measurement]) -> Columns:
    """Make those of some measurements that are due: their columns, each (R,)."""
    columns: Columns = {}
    for measurement in which:
        if measurement.due(moment):
            columns |= measurement.compute(moment)
    return columns
