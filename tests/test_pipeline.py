"""The real Snakefile, end to end, on the smoke preset, in a copy of the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from eosslib import runs
from eosslib.config import load_preset

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("checkout")
    for part in ("eosslib", "config", "profiles", "notebooks"):
        shutil.copytree(ROOT / part, target / part, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copytree(ROOT / "data/paper", target / "data/paper")
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(ROOT / name, target / name)
    return target


def snakemake(checkout: Path, *arguments: str, config: tuple[str, ...] = ("preset=smoke",)) -> subprocess.CompletedProcess:
    # The copy's own eosslib, in Snakemake, in its jobs and in the notebooks' kernels.
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", "snakemake", "--cores", "4", *arguments, "--config", *config]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=1500)


def planned(result: subprocess.CompletedProcess) -> dict[str, int]:
    """Jobs a rule of a dry run's table."""
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", result.stdout + result.stderr, re.MULTILINE)}


@pytest.fixture(scope="module")
def built(checkout) -> Path:
    result = snakemake(checkout, "all")
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return checkout


def test_one_command_makes_runs_figures_pages_and_index(built):
    preset = load_preset("smoke")
    for group in preset.groups.values():
        for run in group.runs:
            runs.load(runs.run_path(built / "data/runs/smoke", group, run), expect=run)
    figures = built / "figures/smoke"
    for notebook in preset.notebooks:
        for kind in ("png", "pdf", "json", "html"):
            assert (figures / f"{notebook}.{kind}").stat().st_size > 100
        assert f'src="{notebook}.png"' in (figures / "index.html").read_text()


def test_the_site_links_the_preset_and_the_api_reference(built):
    page = (built / "figures/index.html").read_text()
    for link in ("smoke/index.html", "api/index.html"):
        assert f'href="{link}"' in page
        assert (built / "figures" / link).is_file()


def test_a_page_shows_filled_words_and_no_template(built):
    for page in (built / "figures/smoke").glob("[0-9]*.html"):
        text = page.read_text()
        assert "What you should have seen" in text, page
        assert not re.search(r"\{\{|\{%|record\.say", text), page


def test_committed_runs_are_drawn_without_training_and_figures_without_any_are_left_out(built):
    shown = load_preset("smoke").notebooks
    kept = "fc-tanh"
    shutil.copytree(built / f"data/runs/smoke/{kept}", built / f"data/reference/smoke/{kept}")
    drawn = [name for name, entries in shown.items() if not entries or kept in entries]
    try:
        jobs = planned(snakemake(built, "-n", "--forceall", "all", config=("preset=smoke", "runs=committed")))
    finally:
        shutil.rmtree(built / "data/reference")
    assert 0 < len(drawn) < len(shown)
    assert jobs["notebook"] == len(drawn)
    assert "train" not in jobs


def test_the_pages_need_no_network_and_name_no_folder_of_this_machine(built):
    for page in (built / "figures/smoke").glob("*.html"):
        text = page.read_text()
        assert not re.search(r"<(script|link)[^>]+(src|href)=\"https?:", text), page
        assert str(built) not in text, page


def test_every_image_of_a_page_says_what_it_shows(built):
    for page in (built / "figures/smoke").glob("[0-9]*.html"):
        said = re.findall(r"<img\b[^>]*?\balt=\"([^\"]*)\"", page.read_text())
        assert len(said) == page.read_text().count("<img ") > 0, page
        assert all(len(text) > 10 and "No description" not in text for text in said), (page, said)


def test_nothing_is_left_to_do_after_a_run(built):
    result = snakemake(built, "-n", "all")
    assert "Nothing to be done" in result.stdout + result.stderr


def test_a_report_can_be_made(built):
    result = snakemake(built, "--report", "report.html")
    assert result.returncode == 0, result.stderr[-2000:]
    assert (built / "report.html").stat().st_size > 10_000


def test_a_changed_setting_trains_only_that_run_again(built):
    path = built / "config/presets/smoke.yaml"
    text = path.read_text()
    try:
        path.write_text(text.replace("cnn-ce: {model: cnn,", "cnn-ce: {model: cnn, lr: 0.1, batch_size: [20, full],"))
        result = snakemake(built, "-n", "all")
        jobs = planned(result)
        assert jobs["train"] == 2
        assert jobs["notebook"] == 1
        touched = set(re.findall(r"data/runs/smoke/([\w-]+)/", "\n".join(re.findall(r"output: .*", result.stdout))))
        assert touched == {"cnn-ce"}
    finally:
        path.write_text(text)


def test_an_edit_of_a_figures_code_trains_nothing(built):
    module = built / "eosslib/plotting.py"
    text = module.read_text()
    try:
        module.write_text(text + "\n# edited\n")
        jobs = planned(snakemake(built, "-n", "all"))
        assert jobs["notebook"] == len(load_preset("smoke").notebooks)
        assert "train" not in jobs
    finally:
        module.write_text(text)


TOY = [
    'preset = "smoke"\nruns_folder = None\nfigures_folder = None',
    """
import matplotlib.pyplot as plt
from eosslib.record import open_figure

record = open_figure("90_toy", preset, runs_folder)
fig, ax = plt.subplots()
ax.plot(record.frame.groupby("step").loss.mean())
""",
    """
record.findings.number("loss", "loss at the start", record.frame.loss.iloc[0], paper="one")
record.claim({"the loss is positive": (record.frame.loss > 0).all()})
texts = {"title": "Toy", "caption": "Loss.", "answer": "{{ loss }}", "expected": "{{ paper.one }}"}
record.save(figures_folder, fig, texts)
""",
]


def test_a_figure_is_its_notebook_and_its_row(built):
    rows, notebook = built / "config/figures.yaml", built / "notebooks/90_toy.ipynb"
    text, toy = rows.read_text(), nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}})
    toy.cells = [nbformat.v4.new_code_cell(code.strip()) for code in TOY]
    toy.cells[0].metadata["tags"] = ["parameters"]
    try:
        rows.write_text(f"{text}\n90_toy:\n  question: Does the loss fall?\n  paper: [one]\n  runs: {{smoke: [cnn-mse]}}\n")
        nbformat.write(toy, notebook)
        jobs = planned(snakemake(built, "-n", "all"))
        assert (jobs["notebook"], "train" in jobs) == (1, False)
        result = snakemake(built, "figures/smoke/index.html")
        assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
        assert "Does the loss fall?" in (built / "figures/smoke/index.html").read_text()
    finally:
        rows.write_text(text)
        for path in [notebook, *(built / "figures/smoke").glob("90_toy.*")]:
            path.unlink(missing_ok=True)


def test_a_failing_notebook_leaves_its_traceback_and_the_half_executed_notebook(built):
    notebook = built / "notebooks/03_cross_entropy_negative_result.ipynb"
    text = notebook.read_text()
    try:
        notebook.write_text(text.replace("end.round(2)", "raise RuntimeError('on purpose')"))
        result = snakemake(built, "figures/smoke/03_cross_entropy_negative_result.png")
        assert result.returncode != 0
        assert "on purpose" in (built / "logs/smoke/03_cross_entropy_negative_result.log").read_text()
        assert "on purpose" in (built / "logs/smoke/03_cross_entropy_negative_result.failed.ipynb").read_text()
    finally:
        notebook.write_text(text)


@pytest.mark.parametrize(
    ("argument", "message"),
    [("preset=nope", "no preset 'nope'"), ("presset=smoke", "unknown key 'presset'"), ("runs=mine", "runs is 'mine'")],
)
def test_a_wrong_config_argument_is_refused_by_name(checkout, argument, message):
    result = snakemake(checkout, "-n", "all", config=(argument,))
    assert result.returncode != 0
    assert message in result.stdout + result.stderr


def test_the_snakefile_is_lint_clean(checkout):
    result = snakemake(checkout, "--lint")
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_job_trains_as_many_seeds_as_it_is_told(checkout):
    groups = len(load_preset("smoke").groups)
    both = planned(snakemake(checkout, "-n", "--forceall", "all"))
    single = planned(snakemake(checkout, "-n", "--forceall", "all", config=("preset=smoke", "seeds_per_job=1")))
    assert (both["train"], "train1" in both) == (groups, False)
    assert (single["train"], single["train1"]) == (groups, groups)
    refused = snakemake(checkout, "-n", "all", config=("preset=smoke", "seeds_per_job=0"))
    assert refused.returncode != 0
    assert "seeds_per_job is 0, not an integer above 0" in refused.stdout + refused.stderr


@pytest.mark.parametrize(("device", "gpus"), [("cuda", ["--gpus=1"]), ("cpu", [])])
def test_a_slurm_cluster_gets_a_job_for_each_seed_and_a_gpu_for_it_where_the_device_is_one(
    checkout, tmp_path, monkeypatch, device, gpus
):
    refuse = f'printf "%s\\n" "$*" >> {tmp_path}/submitted; echo a stand-in >&2; exit 1'
    for name, does in {"sbatch": refuse, **dict.fromkeys(("squeue", "sacct", "sinfo", "scancel"), "exit 0")}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    wanted = [f"data/runs/slurm/fc-tanh/b0020/seed{seed}.parquet" for seed in (0, 1)]
    preset = (checkout / "config/presets/smoke.yaml").read_text().replace("name: smoke", "name: slurm\nnotebooks: smoke")
    (checkout / "config/presets/slurm.yaml").write_text(preset)  # of which nothing is trained yet
    options = ["--workflow-profile", "profiles/slurm", "--retries", "0", "--slurm-init-seconds-before-status-checks", "1", *wanted]
    result = snakemake(checkout, *options, config=("preset=slurm", "seeds_per_job=1", f"device={device}"))
    assert "The error message was 'a stand-in'" in result.stdout + result.stderr
    submitted = (tmp_path / "submitted").read_text().splitlines()
    assert len(submitted) == 2
    assert {re.search(r"--target-jobs '(\S+)'", job)[1] for job in submitted} == {
        f"{r}:group=fc-tanh/b0020" for r in ("train", "train1")
    }
    assert [re.findall(r"--gpus\S+", job) for job in submitted] == [gpus, gpus]
    trained = re.findall(r"eosslib train slurm fc-tanh/b0020 --seeds (.+?) --out", result.stdout + result.stderr)
    assert set(trained) == {"0", "1"}
