"""Times what `clipjax train` does before its first step: import, open, restore, compile, first evaluation, first step.

    python -m benchmarks.startup                            # the quickstart's model
    python -m benchmarks.startup --model=clip_vit_l14 --rounds=1
    python -m benchmarks.startup --model=clip_vit_l14 --depth=2

Each start is a process of its own, on drawn scenes, and ends after its first step. The cases are a new run without the
cache of compiled programs, one that fills it, one that finds everything in it, and a restart from a checkpoint that
does. They take turns; the script prints medians by phase, how many programs were compiled, and the peak of memory, and
writes benchmarks/results/startup_MODEL.json. `clipjax --help`, `clipjax train --help` and a mistyped flag come first.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.machine import command, machine

ROOT = Path(__file__).parent.parent
PHASES = ("Python and imports", "open", "new or restored state", "compile", "first evaluation", "first step")
CASES = ("no cache", "first start", "second start", "second restart")
END_OF_TEXT = 1  # the id that build_data's tokenizer gives it
COMMANDS = (["--help"], ["train", "--help"], ["train", "--wokdir=runs/x"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="quickstart", help="quickstart, or a preset")
    parser.add_argument("--depth", type=int, default=0, help="of both towers; 0: the model's own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=0, help="0: the quickstart's, or 4 for a preset")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return start(args.model, args.depth, args.batch, *args.worker)
    commands = {" ".join(arguments): time_command(arguments, args.rounds) for arguments in COMMANDS}
    for name, seconds in commands.items():
        print(f"clipjax {name}: {seconds:.2f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        build_data(Path(folder))
        samples = run_cases(args, Path(folder))
    medians = {case: medians_of(starts) for case, starts in samples.items()}
    print(table(medians))
    result = {"model": args.model, "depth": args.depth, "command": command("benchmarks.startup"), "machine": machine()}
    args.out.mkdir(exist_ok=True)
    out = args.out / f"startup_{args.model}{f'_depth_{args.depth}' if args.depth else ''}.json"
    out.write_text(json.dumps(result | {"commands": commands, "medians": medians, "samples": samples}, indent=2) + "\n")
    print(f"Wrote {out}")


def run_cases(args: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """{case: what each of its starts measured}."""
    samples: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    arguments = [f"--model={args.model}", f"--depth={args.depth}", f"--batch={args.batch}"]
    for number in range(args.rounds):
        cache, saved = folder / f"cache-{number}", folder / "saved"
        shutil.rmtree(saved, ignore_errors=True)

        def one(workdir: Path, end: str, cache: Path | None = cache) -> dict[str, Any]:
            env = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
            env |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)}
            env |= {} if cache else {"JAX_ENABLE_COMPILATION_CACHE": "false"}
            worker = ["--worker", str(folder), str(workdir), end, repr(time.time())]
            program = [sys.executable, "-m", "benchmarks.startup", *arguments, *worker]
            output = subprocess.run(program, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
            return json.loads(output.splitlines()[-1])

        for case, cached in (("no cache", None), ("first start", cache), ("second start", cache)):
            samples[case].append(one(folder / f"{case}-{number}".replace(" ", "-"), "leave", cached))
        one(saved, "save")
        copied = folder / "copied"
        for case in ("", "second restart"):  # the first restart compiles what restores
            shutil.rmtree(copied, ignore_errors=True)
            shutil.copytree(saved, copied)
            restart = one(copied, "leave")
            if case:
                samples[case].append(restart)
        for case in CASES:
            phases = "  ".join(f"{name} {seconds:.1f}" for name, seconds in samples[case][-1]["seconds"].items())
            print(f"round {number + 1}/{args.rounds}, {case}: {phases}", flush=True)
    return samples


def start(model: str, depth: int, batch: int, folder: str, workdir: str, end: str, began: str) -> None:
    """A worker: trains until its first step, and prints what it measured as JSON.

    end: "leave" at once, or "save" a checkpoint. began: time.time() before the process was started.
    """
    from clipjax.machine import environment

    environment.prepare("train")  # as clipjax/__main__.py does
    import jax

    from clipjax.commands import train
    from clipjax.machine.compilation_cache import open_cache

    marks = {"Python and imports": time.time()}
    counts: collections.Counter = collections.Counter()
    jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.rpartition("/")[2]]))
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: counts.update([event.rpartition("/")[2]])
    )
    open_cache()

    def marked(name: str, mark: str, before: str = "") -> None:
        """Notes when train's function `name` ends as `mark`, and when it begins as `before`."""
        function = getattr(train, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if before:
                marks[before] = time.time()
            result = jax.block_until_ready(function(*args, **kwargs))
            marks[mark] = time.time()
            return result

        setattr(train, name, call)

    marked("restore_or_create", "new or restored state", before="open")
    marked("compile_step", "compile")
    loop = train.loop

    def one_step(config: Any, state: Any, step_fn: Any, *args: Any, **kwargs: Any) -> Any:
        marks["first evaluation"] = time.time()

        def step(state: Any, data: Any) -> Any:
            result = jax.block_until_ready(step_fn(state, data))
            marks.setdefault("first step", time.time())
            if end == "leave":
                print(json.dumps(measured(float(began), marks, counts)), flush=True)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGTERM)  # save, and leave
            return result

        return loop(config, state, step, *args, **kwargs)

    train.loop = one_step
    train.run(experiment(model, depth, batch, Path(folder)), workdir)
    print(json.dumps(measured(float(began), marks, counts)), flush=True)


def measured(began: float, marks: dict[str, float], counts: collections.Counter) -> dict[str, Any]:
    """{"seconds": {phase: seconds}, "programs": needed, "found": of them in the cache, "peak_mb": of memory}."""
    times = [began, *(marks[phase] for phase in PHASES)]
    return {
        "seconds": {phase: after - before for phase, before, after in zip(PHASES, times, times[1:], strict=False)},
        "processor_seconds": time.process_time(),
        "programs": counts["backend_compile_duration"],
        "found": counts["cache_hits"],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def experiment(model: str, depth: int, batch: int, folder: Path) -> Any:
    """The quickstart on build_data's data, with another model where one is named."""
    from clipjax.commands.flags import read_config
    from clipjax.models.presets import get_preset

    config = read_config([f"--config={ROOT / 'experiments' / 'quickstart.py'}"])
    towers = config.model
    if model != "quickstart":
        towers = get_preset(model)
        own = {"eos_id": END_OF_TEXT} if getattr(towers.text, "pool", "") == "eos" else {}
        towers = replace(towers, text=replace(towers.text, vocab_size=config.model.text.vocab_size, **own))
    if depth:
        shallow = {
            name: replace(tower, depth=depth)
            for name, tower in (("image", towers.image), ("text", towers.text))
            if hasattr(tower, "depth")
        }
        towers = replace(towers, **shallow)
    eval_batch = config.eval.batch_size if model == "quickstart" else 4
    source = replace(config.data.train, path=str(folder / "scenes"))
    evaluators = {
        name: replace(one, source=replace(one.source, path=str(folder / "scenes")))
        for name, one in config.eval.evaluators.items()
    }
    return replace(
        config,
        model=towers,
        global_batch_size=batch or (config.global_batch_size if model == "quickstart" else 4),
        data=replace(config.data, train=source),
        tokenizer=replace(config.tokenizer, path=str(folder / "scenes.model")),
        eval=replace(config.eval, evaluators=evaluators, batch_size=eval_batch),
        log=replace(config.log, figures=False),
    )


def build_data(folder: Path) -> None:
    """folder/scenes and folder/scenes.model, smaller than the quickstart's."""
    from data_pipelines import scenes, train_tokenizer

    with open(os.devnull, "w") as nothing:
        stdout, sys.stdout = sys.stdout, nothing
        try:
            scenes.build(folder / "scenes", train=512, validation=32, compositional=16, relations=16)
            train_tokenizer.build(folder / "scenes.model", records=folder / "scenes", vocab_size=256, model_type="bpe")
        finally:
            sys.stdout = stdout


def time_command(arguments: list[str], rounds: int) -> float:
    """The median time of `clipjax ARGUMENTS`."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        program = [sys.executable, "-m", "clipjax", *arguments]
        subprocess.run(program, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def medians_of(starts: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of several starts, in the form of one."""
    phases = {phase: statistics.median(one["seconds"][phase] for one in starts) for phase in PHASES}
    others = {name: statistics.median(one[name] for one in starts) for name in starts[0] if name != "seconds"}
    return {"seconds": phases, "total": sum(phases.values())} | others


def table(medians: dict[str, dict[str, Any]]) -> str:
    """Phases by cases, as Markdown."""
    lines = ["| seconds | " + " | ".join(medians) + " |", "| --- |" + " --- |" * len(medians)]
    rows = {phase: [f"{case['seconds'][phase]:.2f}" for case in medians.values()] for phase in PHASES}
    rows["all"] = [f"{case['total']:.2f}" for case in medians.values()]
    rows["of the processor"] = [f"{case['processor_seconds']:.2f}" for case in medians.values()]
    rows["programs, found in the cache"] = [f"{case['programs']:.0f}, {case['found']:.0f}" for case in medians.values()]
    rows["peak of memory, MB"] = [f"{case['peak_mb']:.0f}" for case in medians.values()]
    return "\n".join(lines + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()])


if __name__ == "__main__":
    main()
