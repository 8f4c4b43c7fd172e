"""The toys' pictures can be drawn, moved and animated."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from eosslib import pictures, toys


@pytest.fixture
def ax() -> Axes:
    return plt.subplots()[1]


@pytest.mark.parametrize(("lr", "word"), [(0.3, "converges"), (0.8, "jumps across and converges"), (1.1, "diverges")])
def test_the_parabola_names_its_regime_and_shows_the_iterates(ax: Axes, lr: float, word: str) -> None:
    pictures.quadratic(ax, lr=lr)
    assert ax.get_title().splitlines()[-1] == word
    expected = toys.descend(toys.quadratic(2.0), 1.0, lr, 12)
    np.testing.assert_allclose(ax.lines[1].get_xdata(), expected)


def test_an_iterate_that_has_left_every_picture_is_not_drawn(ax: Axes) -> None:
    pictures.quadratic(ax, lr=3.0, steps=5_000)
    assert np.isfinite(ax.lines[1].get_ydata()).all()


def test_the_two_points_are_marked_where_the_origin_is_unstable(ax: Axes) -> None:
    pictures.flat_tails(ax, lr=1.3)
    marks = sorted(float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() == "s")
    assert marks == pytest.approx([-toys.two_cycle(1.3), toys.two_cycle(1.3)])
    pictures.flat_tails(plt.subplots()[1], lr=0.9)  # there are none, and no error


def test_there_is_no_distance_of_the_cycle_where_the_origin_is_stable_and_nothing_is_drawn(ax: Axes) -> None:
    with pytest.raises(ValueError, match="the origin is stable"):
        pictures.distance(ax, lr=1.0)
    assert not ax.lines


@pytest.mark.parametrize("picture", [pictures.distance, pictures.valley, pictures.power_iteration])
def test_every_picture_can_be_drawn_with_its_defaults(ax: Axes, picture) -> None:
    picture(ax)
    assert ax.get_xlabel()
    assert ax.get_ylabel()


def test_an_animation_is_a_gif_with_a_frame_for_each_setting_and_is_embedded(tmp_path: Path) -> None:
    element = pictures.animate(pictures.quadratic, [{"lr": 0.3}, {"lr": 0.8}, {"lr": 1.1}], "moving", tmp_path)
    written = (tmp_path / "moving.gif").read_bytes()
    image = Image.open(io.BytesIO(written))
    assert image.format == "GIF"
    assert image.n_frames == 3
    assert base64.b64encode(written).decode() in element
    assert 'alt="Animation: Gradient descent on a parabola, seen from the side."' in element


def test_an_animation_of_a_notebook_opened_by_hand_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures.animate(pictures.quadratic, [{"lr": 0.3}], "moving", None)
    assert not list(tmp_path.iterdir())


def test_sliders_start_at_the_pictures_defaults_and_move_it() -> None:
    seen = []

    def picture(ax: Axes, lr: float = 0.8, curvature: float = 2.0) -> None:
        pictures.quadratic(ax, lr=lr, curvature=curvature)
        seen.append((lr, curvature))

    widget = pictures.explore(picture, lr=(0.1, 1.2, 0.1), curvature=(1.0, 4.0, 0.5))
    sliders = {child.description: child for child in widget.children[:-1]}
    assert {name: slider.value for name, slider in sliders.items()} == {"lr": 0.8, "curvature": 2.0}
    sliders["lr"].value = 1.2
    widget.update()
    assert seen[-1] == (1.2, 2.0)
