"""Run files: what is written is what is read, whole or not at all, and everything else is told in one line."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eosslib import runs
from eosslib.config import load_preset
from eosslib.errors import ConfigError, ConfigMismatch, RunFileError
from eosslib.runs import Run
from eosslib.settings import RunConfig

Settings = Callable[..., RunConfig]
PROVENANCE = {"diverged_at": None, "device": "CPU, 1 threads", "git_commit": "0123456789", "theta_sha256": "ab", "residual": 1e-4}


def make(config: RunConfig, scale: float = 1.0) -> Run:
    columns = {"step": [0, 5, 10], "loss": [scale, 0.5 * scale, 0.1 + 0.2], "sharpness": [1.0, math.pi, math.nan]}
    return Run(config, dict(PROVENANCE), pd.DataFrame(columns))


def save(run: Run, path: Path) -> None:
    runs.write(run.config, run.provenance, pa.Table.from_pandas(run.frame, preserve_index=False), path)


@pytest.fixture
def saved(tmp_path: Path, tiny: Settings) -> Path:
    path = tmp_path / "group" / "seed0.parquet"
    save(make(tiny()), path)
    return path


def refusal(path: Path, error: type[RunFileError] = RunFileError, **options: Any) -> str:
    with pytest.raises(error) as caught:
        runs.load(path, **options)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_is_read_as_it_was_written(saved: Path, tiny: Settings) -> None:
    run = runs.load(saved)
    assert run.config == tiny()
    assert run.provenance == PROVENANCE
    assert run.diverged_at is None
    pd.testing.assert_frame_equal(run.frame, make(tiny()).frame, check_exact=True)
    assert runs.load(str(saved), expect=tiny()).config == tiny()


def test_a_diverged_run_says_when(tmp_path: Path, tiny: Settings) -> None:
    run = make(tiny())
    run.provenance["diverged_at"] = 10
    save(run, tmp_path / "run.parquet")
    assert runs.load(tmp_path / "run.parquet").diverged_at == 10


def test_saving_leaves_nothing_but_the_file_readable_by_all(saved: Path) -> None:
    assert list(saved.parent.iterdir()) == [saved]
    assert saved.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error")])
def test_a_failing_write_leaves_the_old_file_and_no_other(
    error: OSError, saved: Path, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def write_half(table: pa.Table, path: Path, **options: Any) -> None:
        Path(path).write_bytes(b"PAR1 half a file")
        raise error

    monkeypatch.setattr(pq, "write_table", write_half)
    with pytest.raises(RunFileError, match=rf"cannot write .*seed0\.parquet: {error.strerror}"):
        save(make(tiny(), scale=2.0), saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_an_interrupted_write_leaves_the_old_file_and_no_other(saved: Path) -> None:
    before = saved.read_bytes()

    def write_half() -> None:
        with runs.atomic(saved) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), OSError(errno.EROFS, "Read-only file system")])
def test_a_folder_that_cannot_be_written_to_is_told_in_one_line(
    error: OSError, tmp_path: Path, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(runs.tempfile, "mkstemp", refuse)
    with pytest.raises(RunFileError) as caught:
        save(make(tiny()), tmp_path / "run.parquet")
    assert str(caught.value) == f"cannot write {tmp_path / 'run.parquet'}: {error.strerror}"


def test_a_folder_that_is_a_file_is_told_in_one_line(tmp_path: Path, tiny: Settings) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFileError, match=r"cannot write .*file/run\.parquet"):
        save(make(tiny()), tmp_path / "file" / "run.parquet")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    assert "does not exist: train it first" in refusal(tmp_path / "none.parquet")


def test_a_folder_is_no_run_file(tmp_path: Path) -> None:
    assert "is a folder: name one of the run files in it" in refusal(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_recognised(share: float, saved: Path) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(len(whole) * share)])
    assert "is not a whole Parquet file" in refusal(saved)


def test_a_foreign_parquet_file_is_recognised(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1, 2]}).to_parquet(tmp_path / "foreign.parquet")
    assert "not a run written by eosslib" in refusal(tmp_path / "foreign.parquet")


METADATA: dict[str, bytes] = {
    "no json": b"{half",
    "no mapping": b"[1, 2]",
    "no configuration": b'{"provenance": {}}',
    "a configuration of another version": json.dumps({"config": {"momentum": 0.9}, "provenance": {}}).encode(),
    "settings that are refused": json.dumps({"config": {"lr": -1}, "provenance": {}}).encode(),
}


@pytest.mark.parametrize("payload", METADATA.values(), ids=METADATA.keys())
def test_metadata_that_is_not_a_runs_is_recognised(payload: bytes, tmp_path: Path) -> None:
    table = pa.table({"step": [0]}).replace_schema_metadata({runs.METADATA_KEY: payload})
    pq.write_table(table, tmp_path / "odd.parquet")
    refusal(tmp_path / "odd.parquet")


@pytest.mark.parametrize(
    ("change", "words"), [({"lr": 0.2}, "lr is 0.1, not 0.2"), ({"noise": "gaussian"}, "noise is 'sgd', not 'gaussian'")]
)
def test_a_run_of_other_settings_is_refused_by_key_and_values(
    change: dict[str, Any], words: str, saved: Path, tiny: Settings
) -> None:
    assert words in refusal(saved, ConfigMismatch, expect=tiny(**change))


# --- finding and collecting --------------------------------------------------------------------------------------------------


@pytest.fixture
def preset(write_preset: Callable[..., Path]) -> Any:
    return load_preset(write_preset(runs={"one": {"batch_size": [8, "full"]}, "two": {"loss": "cross-entropy"}}))


def fill(preset: Any, folder: Path, entries: tuple[str, ...] = ("one", "two")) -> None:
    for group in preset.select(entries):
        for config in group.runs:
            save(make(config, scale=config.batch_size + config.seed), runs.run_path(folder, group, config))


def test_collect_makes_a_tidy_table_of_all_runs(preset: Any, tmp_path: Path) -> None:
    fill(preset, tmp_path / "runs")
    found = runs.collect(preset, ("one", "two"), tmp_path / "runs")
    table = found.frame
    assert len(table) == 3 * 2 * 3  # three groups of two seeds, three rows each
    columns = {"step", "loss", "sharpness", "entry", "loss_name", "threshold", "edge", "diverged", *runs.COLUMNS}
    assert (set(table), len(table.columns)) == (columns, len(columns))
    assert list(table.index) == list(range(18))
    first = table[table.step == 0]
    assert list(first.loss) == list(first.batch_size + first.seed), "every row stands beside its own run's settings"
    assert table.groupby("entry").size().to_dict() == {"one": 12, "two": 6}
    assert set(table[table.full_batch].batch_size) == {40}
    assert set(table[table.entry == "two"].loss_name) == {"cross-entropy"}
    assert set(table.threshold) == {20.0} == set(table.edge)
    assert {(r.dataset, r.width, r.depth, r.init_scale) for r in table.itertuples()} == {("digits", 4, 2, 1.0)}
    assert not table.diverged.any()
    assert "CPU" in found.source


@pytest.mark.parametrize(("entries", "words"), [((), "no entries of preset mini were named"), (("six",), "no runs named 'six'")])
def test_entries_that_are_not_there_or_not_named_are_refused(entries: tuple[str, ...], words: str, preset: Any) -> None:
    for find in (runs.locate, runs.collect):
        with pytest.raises(ConfigError, match=words):
            find(preset, entries)


def test_collect_refuses_runs_of_other_settings(preset: Any, tmp_path: Path, write_preset: Callable[..., Path]) -> None:
    fill(preset, tmp_path / "runs")
    changed = load_preset(write_preset(runs={"one": {"lr": 0.3}}, notebooks={"n": ["one"]}))
    said = (
        r"one/b0008/seed0\.parquet was trained with other settings: lr is 0\.1, not 0\.3; `python -m eosslib train mini one/b0008`"
    )
    with pytest.raises(ConfigMismatch, match=said):
        runs.collect(changed, ("one",), tmp_path / "runs")


def test_a_run_that_is_not_there_is_named_with_the_command_that_trains_it(preset: Any, tmp_path: Path) -> None:
    fill(preset, tmp_path / "runs", ("one",))
    with pytest.raises(RunFileError, match=r"two/b0008/seed0\.parquet does not exist: .*`python -m eosslib train mini two/b0008`"):
        runs.collect(preset, ("one", "two"), tmp_path / "runs")
    assert len(runs.collect(preset, ("one",), tmp_path / "runs").frame) == 12


def test_committed_runs_may_be_incomplete_and_say_so(preset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    committed = tmp_path / "data/reference/mini"
    fill(preset, committed)
    assert runs.collect(preset, ("one", "two")).missing == ""
    (committed / "two/b0008/seed1.parquet").unlink()
    for seed in (0, 1):
        (committed / f"one/full/seed{seed}.parquet").unlink()
    found = runs.collect(preset, ("one", "two"))
    assert found.missing == "one full (seed 0, 1); two b0008 (seed 1)"
    assert "not trained yet: one full" in found.source
    assert not found.frame.full_batch.any()
    (committed / "two/b0008/seed0.parquet").unlink()
    assert runs.collect(preset, ("one", "two")).missing == "one full (seed 0, 1); all of two"
    for path in committed.rglob("*.parquet"):
        path.unlink()
    with pytest.raises(RunFileError, match="does not exist"):
        runs.collect(preset, ("one", "two"))


def test_freshly_trained_runs_are_preferred_to_committed_ones_if_all_are_there(
    preset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    fresh, committed = (tmp_path / "data" / kind / "mini" for kind in ("runs", "reference"))
    fill(preset, committed)
    assert runs.locate(preset, ("one", "two")) == committed
    fill(preset, fresh, ("one",))
    assert runs.locate(preset, ("one",)) == fresh
    assert runs.locate(preset, ("one", "two")) == committed
    fill(preset, fresh)
    assert runs.locate(preset, ("one", "two")) == fresh
    assert runs.locate(preset, ("one",), committed) == committed
