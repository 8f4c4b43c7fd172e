"""MiniBS and its gap at other batch sizes than the run's, at the same parameters: at the start and at the end of a run."""

from __future__ import annotations

from eosslib.measure.drawn import Draws, Estimate
from eosslib.measure.minibatch import minibatch_sharpness
from eosslib.measure.moment import Columns, Measurement, Moment


def _compute(moment: Moment) -> Columns:
    settings, pairs, columns = moment.settings, moment.pairs, Columns()
    for size in settings.static_sizes:
        draws = Draws(size, settings.minibs_draws, moment.keys(f"static {size}"), settings.sampling)
        where = (moment.point, pairs.vectors[:, 0], draws)
        found = minibatch_sharpness(*where, tol=settings.eig_tol, sharpness=pairs.values[:, 0])
        columns |= found.value.columns(f"static_minibs_{size:04d}") | found.gap.columns(f"static_gap_{size:04d}")
    return columns


STATIC = Measurement(
    settings=("static_sizes", "minibs_draws", "sampling", "eig_tol", "steps"),
    columns={
        **Estimate.described("static_minibs_{}", "E[λ_max(H_B)] at this batch size", "loss/θ²"),
        **Estimate.described("static_gap_{}", "E[λ_max(H_B)] − λ_max(H) at this batch size", "loss/θ²"),
    },
    due=lambda moment: bool(moment.settings.static_sizes) and moment.step in (0, moment.settings.steps),
    compute=_compute,
)
