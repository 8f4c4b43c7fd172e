"""From presets to figures: train -> notebook -> html -> index.

snakemake --cores 4 all                           the digits preset
snakemake --cores 4 all --config preset=cifar10   another one
snakemake --cores 4 all --config device=cpu       no GPU even if there is one
snakemake --cores 4 all --config runs=committed   figures and pages from the committed runs, nothing trained
snakemake --workflow-profile profiles/slurm all --config preset=cifar10 seeds_per_job=1
"""

import json
import os
import shutil
import sys
from glob import glob

from snakemake.exceptions import WorkflowError

from eosslib import catalogue, figures
from eosslib import config as presets
from eosslib.errors import ConfigError

# What a training's numbers come from; an edit of any of these files trains again, an edit of a figure's code does not.
ENGINE = [
    f"eosslib/{module}.py"
    for module in (
        "automatic curvature datasets devices dynamics eigen flat lanczos layers losses models objective predicted probing products sampling"
        " stepping streams training updates"
    ).split()
]
MEASURE = sorted(f"eosslib/measure/{module}.py" for module in glob_wildcards("eosslib/measure/{module,[a-z]+}.py").module)
ENGINE += MEASURE
# What notebooks call besides.
DRAWING = [
    f"eosslib/{module}.py"
    for module in "analysis catalogue examples findings gaplines jackknife optimizers panels papers pictures plotting powerlaw prose record runs theory toys tracker".split()
] + sorted(glob("data/paper/*"))

# Whose docstrings make the API reference.
PUBLIC = (
    "catalogue tracker examples optimizers predicted theory toys analysis powerlaw jackknife gaplines findings papers prose record"
    " figures plotting panels settings config runs datasets models losses curvature eigen objective flat automatic errors"
).split()
PRIVATE = sorted({*glob_wildcards("eosslib/{module,[a-z]+}.py").module, "__main__"} - {*PUBLIC})

UNKNOWN = set(config) - {"preset", "device", "seeds_per_job", "runs"}
if UNKNOWN:
    raise WorkflowError(f"--config: unknown key '{min(UNKNOWN)}'; there are preset, runs, device and seeds_per_job")
if config.get("runs", "trained") not in ("trained", "committed"):
    raise WorkflowError(f"--config: runs is '{config['runs']}', neither 'trained' nor 'committed'")
PRESET_NAME = config.get("preset", "digits")  # or its file
try:
    PRESET = presets.load_preset(PRESET_NAME)
except ConfigError as error:
    raise WorkflowError(str(error)) from None
PRESET_FILE = os.path.relpath(presets.preset_path(PRESET_NAME))
DEVICE = config.get("device", "auto")
# A job trains so many seeds of a group stacked, all by default; one each makes more and shorter jobs for a cluster.
STACK = config.get("seeds_per_job", len(PRESET.seeds))
if not isinstance(STACK, int) or STACK < 1:
    raise WorkflowError(f"--config: seeds_per_job is {STACK!r}, not an integer above 0")
SEED_PARTS = [PRESET.seeds[start : start + STACK] for start in range(0, len(PRESET.seeds), STACK)]
COMMITTED = config.get("runs", "trained") == "committed"
RUNS = f"data/reference/{PRESET.name}" if COMMITTED else f"data/runs/{PRESET.name}"
FIGURES = f"figures/{PRESET.name}"
LOGS = f"logs/{PRESET.name}"

# The jobs' python is the one that runs Snakemake, also where its environment is not activated.
os.environ.update(PATH=os.pathsep.join([os.path.dirname(sys.executable), *os.get_exec_path()]))

# --cores may promise more than the machine has; jobs of one thread each then only get in each other's way.
workflow.global_resources.setdefault("cpu", os.cpu_count())


def group_files(groups):
    """Name the run files of some groups; of committed ones those that are there."""
    files = [f"{RUNS}/{group.name}/seed{run.seed}.parquet" for group in groups for run in group.runs]
    return [file for file in files if os.path.exists(file)] if COMMITTED else files


# A figure of which no run is committed is not drawn from committed runs.
NOTEBOOKS = [name for name, entries in PRESET.notebooks.items() if not entries or group_files(PRESET.select(entries))]


wildcard_constraints:
    group="|".join(PRESET.groups),
    notebook="|".join(NOTEBOOKS),


def group_settings(wildcards):
    """Everything that determines the runs of a group, so that a changed setting trains again, and only that group."""
    return json.dumps([run.to_dict() for run in PRESET.groups[wildcards.group].runs])


def group_data(wildcards):
    """The data file a group needs, if its data come with no package."""
    file = catalogue.DATASETS[PRESET.groups[wildcards.group].runs[0].dataset].file
    return ancient(f"data/{file}") if file else []


def turn(wildcards):
    """Figures come in their order, each as soon as its runs are there, and so do the runs."""
    first_to_last = list(PRESET.notebooks)
    if "group" in wildcards.keys():
        entry = PRESET.groups[wildcards.group].entry
        shows = [name for name in first_to_last if entry in PRESET.notebooks[name]]
    else:
        shows = [wildcards.notebook]
    return len(first_to_last) - first_to_last.index(shows[0]) if shows else 0


def notebook_runs(wildcards):
    """The run files a notebook shows."""
    return group_files(PRESET.select(PRESET.notebooks[wildcards.notebook]))


def figure_row(wildcards):
    """What config/figures.yaml says of a figure, so that a change draws it again, and only it."""
    return str(figures.rows().get(wildcards.notebook))


def output_folder(wildcards, output):
    """The folder a rule writes to."""
    return os.path.dirname(output[0])


def runs_folder(wildcards, output):
    """The folder of the preset's run files, above the group's two."""
    return os.path.normpath(os.path.join(output[0], "../../.."))


def seen_from_notebooks(path):
    """A path as the notebooks see it; relative, so that no page names a folder of this machine."""
    return os.path.relpath(path, "notebooks")


def notebook_figures(wildcards, output):
    """The folder of the figures as the notebooks see it."""
    return seen_from_notebooks(os.path.dirname(output.png))


def notebook_run_folder(wildcards, input):
    """The folder of the run files as the notebooks see it."""
    return seen_from_notebooks(RUNS)


def failed_notebook(wildcards, output):
    """Where a half-executed notebook is kept."""
    return output.executed.replace(".ipynb", ".failed.ipynb")


def gpus(wildcards):
    """One GPU a training where it will use one; the profile says how many there are to share."""
    wanted = DEVICE.startswith("cuda") or (DEVICE == "auto" and shutil.which("nvidia-smi") is not None)
    return int(wanted)


localrules:
    all,
    fetch,
    index,
    site,


rule all:
    """All figures and pages of the preset, its index and that of all presets."""
    input:
        f"{FIGURES}/index.html",
        "figures/index.html",
        "figures/api/index.html",
        group_files(PRESET.groups.values()),


rule fetch:
    """Download CIFAR-10, check it and cut it to the 5,000 + 1,000 images; done where the file is already there."""
    output:
        "data/cifar10_5k.npz",
    log:
        "logs/fetch.log",
    conda:
        "environment.yml"
    shell:
        "python -m eosslib fetch cifar10 2> {log}"


for part, seeds in enumerate(SEED_PARTS):

    rule:
        """Train the seeds of one part of a group, stacked, one run file a seed. Resumes from its checkpoint."""
        name:
            f"train{part or ''}"
        input:
            engine=ENGINE,
            data=group_data,
        output:
            expand(f"data/runs/{PRESET.name}/{{{{group}}}}/seed{{seed}}.parquet", seed=seeds),
        log:
            f"{LOGS}/train/{{group}}{part or ''}.log",
        priority: turn
        conda:
            "environment.yml"
        threads: 1
        resources:
            gpu=gpus,
            cpu=1,
        params:
            settings=group_settings,
            preset=PRESET_NAME,
            seeds=" ".join(map(str, seeds)),
            runs=runs_folder,
            device=DEVICE,
        shell:
            "python -m eosslib train {params.preset} {wildcards.group} --seeds {params.seeds} --out {params.runs}"
            " --device {params.device} --threads {threads} 2> {log}"


rule notebook:
    """Execute a notebook on its runs; it writes its figure and a record of it. A failed one is kept half-executed in logs/."""
    input:
        notebook="notebooks/{notebook}.ipynb",
        runs=notebook_runs,
        code=[*ENGINE, *DRAWING],
    output:
        executed=f"{LOGS}/{{notebook}}.ipynb",
        record=f"{FIGURES}/{{notebook}}.json",
        png=report(f"{FIGURES}/{{notebook}}.png", category="Figures", labels={"figure": "{notebook}"}),
        pdf=f"{FIGURES}/{{notebook}}.pdf",
    log:
        f"{LOGS}/{{notebook}}.log",
    priority: turn
    conda:
        "environment.yml"
    resources:
        cpu=1,
    params:
        preset=seen_from_notebooks(PRESET_FILE),
        runs=notebook_run_folder,
        figures=notebook_figures,
        failed=failed_notebook,
        row=figure_row,
    shell:
        "rm -f {params.failed}; "
        "python -m papermill {input.notebook} {output.executed} --cwd notebooks -k python3 --no-progress-bar --log-output"
        " -p preset {params.preset} -p runs_folder {params.runs} -p figures_folder {params.figures} > {log} 2>&1"
        " || {{ cp {output.executed} {params.failed}; echo 'half-executed notebook: {params.failed}' >> {log}; exit 1; }}; "
        "if grep 'Passed unknown parameter' {log}; then exit 1; fi"


rule html:
    """Turn an executed notebook into a page that needs nothing from the network."""
    input:
        executed=f"{LOGS}/{{notebook}}.ipynb",
        template="eosslib/page.html.j2",
    output:
        report(f"{FIGURES}/{{notebook}}.html", category="Pages", labels={"page": "{notebook}"}),
    log:
        f"{LOGS}/{{notebook}}.html.log",
    priority: turn
    conda:
        "environment.yml"
    resources:
        cpu=1,
    params:
        figures=output_folder,
    shell:
        "python -m nbconvert {input.executed} --to html --template-file {input.template} --output-dir {params.figures} --embed-images"
        " --HTMLExporter.mathjax_url= --HTMLExporter.require_js_url="
        " --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_input_tags=text"
        " --TagRemovePreprocessor.remove_input_tags=record > {log} 2>&1"


rule index:
    """Join all figures with captions and headline numbers in one page."""
    input:
        expand(f"{FIGURES}/{{notebook}}.{{kind}}", notebook=NOTEBOOKS, kind=["json", "png", "pdf", "html"]),
        "config/figures.yaml",
        "eosslib/index.html",
        "eosslib/gallery.py",
    output:
        report(f"{FIGURES}/index.html", category="Pages", labels={"page": "index"}),
        f"{FIGURES}/results.md",
    log:
        f"{LOGS}/index.log",
    conda:
        "environment.yml"
    params:
        figures=output_folder,
        preset=PRESET_FILE,
    shell:
        "python -m eosslib index {params.figures} {params.preset} > {log} 2>&1"


rule site:
    """Link the presets that are drawn, and the API reference, from one page."""
    input:
        f"{FIGURES}/index.html",
        "eosslib/gallery.py",
    output:
        "figures/index.html",
    log:
        "logs/site.log",
    conda:
        "environment.yml"
    shell:
        "python -m eosslib site > {log} 2>&1"


rule api:
    """Make the API reference from the docstrings; its pages name no folder of this machine."""
    input:
        expand("eosslib/{module}.py", module=["__init__", *PUBLIC]),
        MEASURE,
    output:
        "figures/api/index.html",
        report("figures/api/eosslib.html", category="Pages", labels={"page": "API"}),
    log:
        "logs/api.log",
    conda:
        "environment.yml"
    resources:
        cpu=1,
    params:
        folder=output_folder,
        modules=" ".join(["eosslib", *(f"'!eosslib.{module}$'" for module in PRIVATE)]),
    shell:
        "(python -m pdoc -d google --no-show-source --no-search -o {params.folder} {params.modules}"
        ' && find {params.folder} -name "*.html" -exec sed -i "s#$PWD#.#g" {{}} +) > {log} 2>&1'
