"""The lines through mean gaps take the batch sizes that their rule says."""

from __future__ import annotations

import pandas as pd
import pytest
from test_analysis import family

from eosslib import analysis, gaplines
from eosslib.findings import Findings

BY = ["entry", "model", "threshold", "batch_size"]
NONE = pd.DataFrame({"batch_size": []})


def lines(points: pd.DataFrame = NONE, **changes: float) -> gaplines.GapLines:
    """Lines through gaps of 100/b at b = 10, 20, 50, 100, 200; keywords, as in ``b50=3.0``, are other gaps."""
    runs = analysis.gaps(analysis.plateaus(family()))
    for size, gap in changes.items():
        runs.loc[runs.batch_size == int(size[1:]), "gap"] = gap
    return gaplines.fit(analysis.mean_gaps(runs, BY), runs, points)


def test_without_points_of_the_paper_a_line_is_through_all_positive_gaps():
    whole = lines(b50=-1.0).whole["fc-tanh"]
    assert (whole.x.tolist(), whole.excluded.tolist()) == ([10, 20, 100, 200], [50])
    assert whole.slope == pytest.approx(-1.0)


def test_with_points_of_the_paper_a_line_is_through_their_batch_sizes_and_names_those_it_lacks():
    found = lines(pd.DataFrame({"batch_size": [10, 20, 30, 100]}), b50=70.0, b200=70.0)
    assert found.whole["fc-tanh"].x.tolist() == [10, 20, 100]
    assert found.whole["fc-tanh"].slope == pytest.approx(-1.0)
    assert (found.lacking, found.outside) == ({"fc-tanh": [30]}, [50, 200])
    assert found.gap.batch_size[~found.gap.fitted].tolist() == [50, 200]


def test_the_line_up_to_750_is_there_beside_points_of_the_paper_alone():
    assert lines().to_750 == {}
    assert lines(pd.DataFrame({"batch_size": [10, 20, 100]})).to_750["fc-tanh"].x.tolist() == [10, 20, 100]


def test_the_first_gap_behind_the_clear_ones_stands_beside_what_their_line_has_there():
    record = Findings({})
    lines(b200=0.0).record(record, "fc-tanh", "FC-tanh", None, None)
    assert (record["end.b.fc_tanh"].ours, record["end.gap.fc_tanh"].ours) == (200, 0)
    assert record["end.line.fc_tanh"].ours == pytest.approx(100 / 200)
