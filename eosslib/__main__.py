"""The command line: train runs of a preset or a queue, list them, fetch data, describe a file, build index, site and scoreboard.

python -m eosslib train digits                     whole preset, resumable
python -m eosslib train digits fc-tanh/b0050       one group; --seeds 0 2 for some of its runs
python -m eosslib queue config/queue.txt --jobs 2   trainings of several presets, in order; --list says what is left
python -m eosslib list cifar10                     its groups
python -m eosslib fetch cifar10                    data/cifar10_5k.npz
python -m eosslib describe data/runs/digits/fc-tanh/b0050/seed0.parquet
python -m eosslib index figures/digits digits      figures/digits/index.html, results.md
python -m eosslib site                             figures/index.html
python -m eosslib readme                           the scoreboard of README.md
python -m eosslib schema                           eosslib/preset.schema.json, from the settings of a run
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import signal
import sys
import time
from pathlib import Path

from eosslib import runs
from eosslib.config import PRESET_FOLDER, SCHEMA_FILE, Group, Preset, load_preset, write_schema
from eosslib.errors import ConfigError, EosslibError, Interrupted
from eosslib.processes import end_with

log = logging.getLogger("eosslib")


def _threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of threads: give a whole number from 1 on")
    return int(text)


def _jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of trainings: give a whole number from 1 on")
    return int(text)


def _gibibytes(text: str) -> int:
    """Return bytes."""
    size = _finite(text)
    if not size > 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of GiB: give one above 0, such as 0.5")
    return int(size * 2**30)


def _seconds(text: str) -> float:
    seconds = _finite(text)
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds: give one from 0 on, such as 500")
    return seconds


def _finite(text: str) -> float:
    """Return a number, NaN where the text is none or an infinite one."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eosslib", description="Train and describe the runs of the companion.")
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train groups of a preset, one Parquet file a run; skips what is there")
    train.add_argument("preset", help="name of a preset under config/presets/, or a YAML file")
    train.add_argument(
        "groups", nargs="*", metavar="group", help="e.g. fc-tanh/b0050, or fc-tanh for all of its batch sizes; default: all"
    )
    train.add_argument("--seeds", type=int, nargs="+", help="which of the preset's seeds (default: all, stacked)")
    train.add_argument("--out", type=Path, help="folder of the run files (default data/runs/<preset>)")
    train.add_argument("--data", type=Path, help="folder of the data sets (default data/)")
    train.add_argument("--device", default="auto", help="auto (cuda if there, else cpu), cpu, cuda, cuda:1, …")
    train.add_argument("--threads", type=_threads, default=1, help="CPU threads (default 1: start several processes instead)")
    train.add_argument("--memory", type=_gibibytes, help="GiB of kept passes (default 4, on a GPU a third of its memory)")
    train.add_argument("--force", action="store_true", help="train again what is there, from the start")
    train.add_argument("--max-seconds", type=_seconds, help="write a checkpoint and stop after so long; exit status 75")
    train.add_argument("--checkpoint-seconds", type=_seconds, default=30.0, help="time between checkpoints (default 30)")
    train.add_argument("--parent", type=int, metavar="PID", help="stop as by SIGTERM when this process, the parent, ends")
    train.set_defaults(run=_train)

    queue = commands.add_parser("queue", help="train what a file names, in order, in processes of their own; resumable")
    queue.add_argument("file", type=Path, help="rows preset/entry/variant or preset/entry/variant/seed; # begins a comment")
    queue.add_argument("--jobs", type=_jobs, default=1, help="trainings at a time, each on one thread (default 1)")
    instead = queue.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="say what is left and about how long it takes, and train nothing")
    instead.add_argument("--export", type=Path, metavar="FOLDER", help="write slim checkpoints of what is under way")
    instead.add_argument(
        "--import", type=Path, metavar="FOLDER", dest="imported", help="go on from slim checkpoints; train nothing"
    )
    queue.add_argument("--out", type=Path, help="folder of the presets' run files (default data/runs)")
    queue.add_argument("--data", type=Path, help="folder of the data sets (default data/)")
    queue.add_argument("--device", default="auto", help="as for train")
    queue.add_argument("--checkpoint-seconds", type=_seconds, default=30.0, help="as for train")
    queue.set_defaults(run=_queue)

    listing = commands.add_parser("list", help="list the groups of a preset")
    listing.add_argument("preset")
    listing.set_defaults(run=_list)

    fetch = commands.add_parser("fetch", help="download a data set and check it")
    fetch.add_argument("dataset", choices=["cifar10"])
    fetch.add_argument("--data", type=Path, help="folder of the data sets (default data/)")
    fetch.set_defaults(run=_fetch)

    describe = commands.add_parser("describe", help="print a run file's configuration, provenance and last row")
    describe.add_argument("file", type=Path)
    describe.set_defaults(run=_describe)

    index = commands.add_parser("index", help="write the page that shows all figures of a folder, and the table of their numbers")
    index.add_argument("folder", type=Path)
    index.add_argument("preset")
    index.set_defaults(run=_index)

    site = commands.add_parser("site", help="write the page that links all presets that are drawn")
    site.set_defaults(run=_site)

    readme = commands.add_parser("readme", help="write the scoreboard of README from the records of the figures")
    readme.set_defaults(run=_readme)

    schema = commands.add_parser("schema", help="write the JSON schema with which editors complete and check presets")
    schema.set_defaults(run=_schema)
    return parser


def _select(preset: Preset, source: str, names: list[str], seeds: list[int] | None) -> list[Group]:
    chosen = list(preset.groups.values()) if not names else []
    for name in names:
        matching = [group for group in preset.groups.values() if name in (group.name, group.entry)]
        if not matching:
            raise ConfigError(f"preset {source} has no group '{name}'; `python -m eosslib list {source}` names them")
        chosen += [group for group in matching if group not in chosen]
    for seed in seeds or ():
        if seed not in preset.seeds:
            raise ConfigError(f"--seeds: preset {preset.name} has no seed {seed}; it has {', '.join(map(str, preset.seeds))}")
    return [Group(g.name, tuple(run for run in g.runs if seeds is None or run.seed in seeds)) for g in chosen]


def _keep_freed_memory() -> None:
    """Tell glibc to keep what is freed: to return it after every step and get it back costs up to a quarter of the time."""
    import ctypes

    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library, which does as it likes
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    mallopt(mmap_threshold, 32 << 20)  # the largest it takes
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 64 << 20)


def _train(args: argparse.Namespace) -> int:
    if args.parent is not None:
        end_with(args.parent)
    preset = load_preset(args.preset)
    groups = _select(preset, args.preset, args.groups, args.seeds)
    deadline = time.monotonic() + args.max_seconds if args.max_seconds is not None else None
    _keep_freed_memory()
    import torch  # seconds of imports that errors in the preset need not wait for

    from eosslib.devices import choose_device
    from eosslib.jobs import Options, train_group

    torch.set_num_threads(args.threads)
    torch.set_num_interop_threads(1)
    options = Options(
        folder=args.out or runs.ROOT / "data" / "runs" / preset.name,
        device=str(choose_device(args.device)),
        data_folder=args.data,
        force=args.force,
        checkpoint_seconds=args.checkpoint_seconds,
        memory=args.memory,
        deadline=deadline,
    )
    for group in groups:
        train_group(group, options)
    return 0


def _queue(args: argparse.Namespace) -> int:
    import torch

    from eosslib import queue, workers
    from eosslib.devices import choose_device

    torch.set_num_threads(1)
    where = {"folder": args.out} if args.out else {}
    device = str(choose_device(args.device))
    settings = queue.Settings(
        data_folder=args.data, device=device, jobs=args.jobs, checkpoint_seconds=args.checkpoint_seconds, **where
    )
    trainings = queue.read(args.file)
    if args.export or args.imported:
        move, folder = (queue.export_all, args.export) if args.export else (queue.import_all, args.imported)
        for line in move(trainings, settings, folder):
            print(line)
    else:
        print(*queue.listing(trainings, settings), sep="\n", flush=True)
        if not args.list:
            workers.run(trainings, settings)
    return 0


def _list(args: argparse.Namespace) -> int:
    for group in load_preset(args.preset).groups.values():
        run = group.runs[0]
        print(f"{group.name:28} {run.steps} steps, η {run.lr:g}, seeds {', '.join(str(r.seed) for r in group.runs)}")
    return 0


def _fetch(args: argparse.Namespace) -> int:
    from eosslib.datasets import fetch_cifar10

    print(fetch_cifar10(args.data))
    return 0


def _describe(args: argparse.Namespace) -> int:
    run = runs.load(args.file)
    last = {key: value if math.isfinite(value) else None for key, value in run.frame.iloc[-1].dropna().items()}
    print(json.dumps({"config": run.config.to_dict(), "provenance": run.provenance, "last": last}, indent=2))
    return 0


def _index(args: argparse.Namespace) -> int:
    from eosslib.gallery import write_index, write_results

    preset = load_preset(args.preset)
    print(write_index(args.folder, preset), write_results(args.folder, preset), sep="\n")
    return 0


def _site(args: argparse.Namespace) -> int:
    from eosslib.gallery import write_site

    print(write_site(runs.ROOT / "figures", [load_preset(path) for path in sorted(PRESET_FOLDER.glob("*.yaml"))]))
    return 0


def _readme(args: argparse.Namespace) -> int:
    from eosslib.gallery import scoreboard, write_readme

    print(write_readme(runs.ROOT / "README.md", scoreboard(runs.ROOT / "figures")))
    return 0


def _schema(args: argparse.Namespace) -> int:
    print(write_schema(SCHEMA_FILE))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 1 an error in one line, 75 stopped with a checkpoint, 130 Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args = _parser().parse_args(arguments)

    def terminate(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    started = time.monotonic()
    try:
        status = int(args.run(args))
        sys.stdout.flush()  # here, where a reader that has gone away is no error
        return status
    except Interrupted as error:
        log.error("%s", error)
        limit = getattr(args, "max_seconds", None)
        return 75 if limit is not None and time.monotonic() - started >= limit else 130
    except EosslibError as error:
        log.error("error: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("stopped")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
