"""What the commands do that fit models or run them: ``demo``, ``fit``, ``compare``, ``md``.

Heavy modules are imported inside the functions, so that ``kernelpot --help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from kernelpot.interfaces.commands_report import save_parity, say_errors
from kernelpot.interfaces.console import (
    one_line_errors,
    out,
    progress_bar,
    say,
    say_auto,
    say_model,
)
from kernelpot.interfaces.console_cost import say_fit_cost

if TYPE_CHECKING:
    from ase import Atoms

    from kernelpot.dynamics import Sample
    from kernelpot.interfaces.settings import FitSettings
    from kernelpot.potential import KernelPotential

__all__ = [
    "Run",
    "compare",
    "demo",
    "dry_run",
    "fit",
    "md",
    "print_example",
    "refuse_to_overwrite",
]

_DEMO_MODEL = {"n_environments": 60, "n_tangents": 10}
_DEMO_STEPS = 200


class Run(NamedTuple):
    """Molecular dynamics as `dynamics.run` takes it."""

    ensemble: str
    temperature: float  # K
    timestep: float  # fs
    steps: int
    pressure: float = 0.0  # GPa
    log_interval: int = 10  # steps
    seed: int = 0


def demo(output: Path, force: bool) -> None:
    """Fit the bundled silicon, test the model, and run molecular dynamics with it.

    Parameters
    ----------
    output : Path
        File of the model.
    force : bool
        Whether it may be there already.
    """
    refuse_to_overwrite(output, force)
    from ase.build import bulk

    from kernelpot import datasets
    from kernelpot.descriptors.soap import Soap
    from kernelpot.potential import KernelPotential

    train, test = datasets.load_silicon("train"), datasets.load_silicon("test")
    say(f"Silicon: {len(train)} structures to fit, {len(test)} to test.")
    with progress_bar() as progress:
        model = KernelPotential(Soap(cutoff=5.0), **_DEMO_MODEL, progress=progress)
        model.fit(train)
    model.save(output)
    say_model(model)
    say(f"\nSaved {output}.")
    say_errors(model, test, "Errors on the test structures")

    crystal = bulk("Si", "diamond", a=5.47, cubic=True).repeat(2)
    run = Run("nve", temperature=600.0, timestep=1.0, steps=_DEMO_STEPS, log_interval=5)
    _drive(model, crystal, run)
    say(
        f"\nNext: kernelpot info {output}; kernelpot fit --example > settings.toml; or in"
        f' Python: atoms.calc = kernelpot.Calculator("{output}")'
    )


def print_example() -> None:
    """Print a settings file with all defaults."""
    from kernelpot.interfaces.settings import example

    typer.echo(example(), nl=False)


def fit(
    source: Path | None,
    given: Mapping[str, Mapping[str, Any]],
    budget: Mapping[str, float] | None,
    scheduler: str | None,
    debug: bool,
) -> None:
    """Fit a model, save it, and test it where there is something to test on.

    Parameters
    ----------
    source : Path | None
        A settings file or a file of structures.
    given : Mapping[str, Mapping[str, Any]]
        Settings that win over those of the file, by section and key; None where nothing was given.
    budget : Mapping[str, float] | None
        Of an automatic fit, ``time_budget`` and ``cost`` where they are given; None to fit with
        the settings.
    scheduler : str | None
        Address of a Dask scheduler, whose workers then read the structures and fit them.
    debug : bool
        Whether errors after the model is saved keep their traceback.

    Raises
    ------
    ValueError
        If settings cannot be used, or a figure of a test is wanted without a test.
    """
    from kernelpot.interfaces.settings import (
        check_settings,
        combine,
        fit_automatically,
        make_model,
    )

    settings = check_settings(combine(source, given))
    target = Path(settings.output.model)
    if settings.output.plots and not settings.data.test:
        raise ValueError("a parity figure needs structures to test on: give --test or [data] test")
    refuse_to_overwrite(target, settings.output.force)
    test = _read(settings.data.test) if settings.data.test else []
    if scheduler is not None:
        model = _fit_on_cluster(scheduler, settings)
    else:
        train = _read(settings.data.train, settings.data.index)
        expected = None
        if budget is None and out.is_terminal:
            cost = make_model(settings).estimate_fit(train).cost()
            expected = {stage.name: stage.seconds for stage in cost.stages}
        with progress_bar(expected) as progress:
            if budget is None:
                model = make_model(settings, progress).fit(train)
            else:
                model = fit_automatically(settings, train, progress, **budget)
    # Before anything else can fail: a fit may have taken hours.
    model.save(target)
    with one_line_errors(debug, f"{target} is saved"):
        if budget is not None:
            say_auto(model)
        say_model(model)
        say(f"\nSaved {target}.")
        if test:
            compared = say_errors(model, test, "Errors on the test structures")
            if settings.output.plots:
                title = f"{target.name}, test structures"
                save_parity(compared, Path(settings.output.plots), title)


def _fit_on_cluster(scheduler: str, settings: FitSettings) -> KernelPotential:
    """Fit where the workers of a scheduler are; this process reads no training structures."""
    from kernelpot.distributed import connect
    from kernelpot.interfaces.settings import make_model

    paths, index = settings.data.train, settings.data.index
    paths = paths if isinstance(paths, list) else [paths]
    with connect(scheduler) as client, progress_bar() as progress:
        n_workers = len(client.nthreads())
        say(f"Scheduler at {scheduler}: {n_workers} workers" + ("" if n_workers else ", waiting"))
        files = paths if index == ":" else [f"{path}@{index}" for path in paths]
        return make_model(settings, progress).fit(files, client=client)


def dry_run(source: Path | None, given: Mapping[str, Mapping[str, Any]]) -> None:
    """Say what a fit would take, by a look at some of the structures.

    Parameters
    ----------
    source : Path | None
        A settings file or a file of structures.
    given : Mapping[str, Mapping[str, Any]]
        Settings that win over those of the file, by section and key; None where nothing was given.

    Raises
    ------
    ValueError
        If settings cannot be used.
    """
    from kernelpot.interfaces.settings import check_settings, combine, make_model

    settings = check_settings(combine(source, given))
    train = _read(settings.data.train, settings.data.index)
    say_fit_cost(make_model(settings).estimate_fit(train).cost())


def compare(sources: Sequence[Path], index: str, keys: Mapping[str, str | None]) -> None:
    """Fit several settings files to the same structures, and say which one the data prefer.

    Parameters
    ----------
    sources : Sequence[Path]
        Two settings files or more, and files of labelled structures.
    index : str
        Which frames of the structures.
    keys : Mapping[str, str | None]
        Names of the labels, by parameter of the model.

    Raises
    ------
    ValueError
        If there are fewer than two settings files, or no structures.
    """
    from kernelpot.comparison import comparison_table, fit_and_compare, verdict
    from kernelpot.interfaces import settings

    tables = [path for path in sources if path.suffix.lower() == ".toml"]
    files = [str(path) for path in sources if path not in tables]
    if len(set(tables)) < 2 or not files:
        raise ValueError(
            "name two settings files or more and the structures to fit: "
            "`kernelpot compare a.toml b.toml train.xyz`"
        )
    checked = settings.check_files(tables, {"data": {**keys, "index": index, "train": files}})
    train = _read(files, index)
    with progress_bar() as progress:
        models = {n: settings.make_model(one, progress) for n, one in checked.items()}
        rows = fit_and_compare(models, train)
    out.print(comparison_table(rows, f"Fitted to {len(train)} structures"))
    say(verdict(rows))


def md(
    model_file: Path,
    start: Path,
    output: Path,
    run: Run,
    *,
    supercell: str | None,
    resume: bool,
    force: bool,
) -> None:
    """Run molecular dynamics with a model.

    Parameters
    ----------
    model_file : Path
        Of the model.
    start : Path
        Structure to start from; its last frame.
    output : Path
        Trajectory.
    run : Run
        What is to be run.
    supercell : str | None
        Repetitions of the start, as in 2x2x2.
    resume : bool
        Whether to go on from the last frame of the trajectory instead.
    force : bool
        Whether the trajectory may be overwritten.
    """
    from kernelpot.data import read_images
    from kernelpot.dynamics import bare_copy, parse_supercell, resume_from
    from kernelpot.potential import load

    model = load(model_file)
    if resume:
        atoms, first_step = resume_from(output)
    else:
        refuse_to_overwrite(output, force)
        output.unlink(missing_ok=True)
        atoms, first_step = bare_copy(read_images(start, "-1")[0]), 0
        atoms = atoms.repeat(parse_supercell(supercell)) if supercell else atoms
    _drive(model, atoms, run, output, first_step)
    say(f"\nWrote {output}.")


def refuse_to_overwrite(path: Path, force: bool) -> None:
    """Before the work, not after it.

    Parameters
    ----------
    path : Path
        File that is to be written.
    force : bool
        Whether it may be there already.

    Raises
    ------
    FileExistsError
        If it is there.
    FileNotFoundError
        If its folder is not.
    """
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists: --force overwrites it, or choose another --output")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of {path} does not exist: make it first")


def _read(paths: str | list[str], index: str = ":") -> list[Atoms]:
    from kernelpot.data import read_images

    paths = paths if isinstance(paths, list) else [paths]
    return [atoms for path in paths for atoms in read_images(path, index)]


def _drive(
    model: KernelPotential,
    atoms: Atoms,
    run: Run,
    trajectory: Path | None = None,
    first_step: int = 0,
) -> None:
    """Run dynamics: a line now and then, and the drift at the end."""
    from kernelpot import dynamics
    from kernelpot.calculator import Calculator

    atoms.calc = Calculator(model)
    if not first_step:
        dynamics.thermalise(atoms, run.temperature, run.seed)
    say(
        f"\nMolecular dynamics, {run.ensemble.upper()}: {len(atoms)} atoms, {run.steps} steps of"
        f" {run.timestep:g} fs"
    )
    say(dynamics.HEADING)
    lines_every = max(1, run.steps // run.log_interval // 10)
    with progress_bar() as progress:

        def on_sample(sample: Sample, first: Sample) -> None:
            progress("steps", sample.step - first_step, run.steps)
            if (sample.step // run.log_interval) % lines_every == 0:
                say(dynamics.line(sample, first, len(atoms)))

        samples = dynamics.run(
            atoms, **run._asdict(), on_sample=on_sample, trajectory=trajectory,
            first_step=first_step,
        )  # fmt: skip
    drift = dynamics.energy_drift(
        [s.time for s in samples], [s.conserved for s in samples], len(atoms)
    )
    say(
        f"Conserved energy: {drift.change:+.3g} meV/atom over the run"
        f" ({drift.slope:+.3g} meV/atom/ps), fluctuation {drift.fluctuation:.3g} meV/atom"
    )
