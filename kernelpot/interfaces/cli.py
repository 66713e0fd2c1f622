"""The command line: ``kernelpot demo | fit | compare | evaluate | dimers | md | info``.

It parses and prints. Heavy modules are imported inside the commands, so that ``--help`` answers
at once.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kernelpot.interfaces.console import one_line_errors, out, progress_bar, say, say_model

if TYPE_CHECKING:
    from ase import Atoms

    from kernelpot.interfaces.dynamics import Sample
    from kernelpot.interfaces.settings import FitSettings
    from kernelpot.report import Comparison

__all__ = ["app", "main"]

app = typer.Typer(
    name="kernelpot",
    help="Interatomic potentials from a few hundred DFT calculations, with uncertainty.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


_DEMO_MODEL = {"n_environments": 60, "n_tangents": 10}
_DEMO_STEPS = 200


class Ensemble(str, Enum):
    """What is held constant in molecular dynamics."""

    nve = "nve"
    nvt = "nvt"
    npt = "npt"


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]
Key = Annotated[str | None, typer.Option(help="Name of the label in info or arrays.")]
ModelFile = Annotated[Path, typer.Argument(help="File of a fitted model.", show_default=False)]


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="File of the model.")] = Path(
        "si.kpot"
    ),
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Fit silicon, test it, and run molecular dynamics: a first look in about a minute."""
    with one_line_errors(debug, "the demo is not finished"):
        _refuse_to_overwrite(output, force)
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
        _say_errors(model, test, "Errors on the test structures", by_group=True)

        crystal = bulk("Si", "diamond", a=5.47, cubic=True).repeat(2)
        _drive(
            model, crystal, "nve", temperature=600.0, timestep=1.0, steps=_DEMO_STEPS,
            log_interval=5, title="Molecular dynamics, NVE",
        )  # fmt: skip
        say(
            f"\nNext: kernelpot info {output}; kernelpot fit --example > settings.toml; or in"
            f' Python: atoms.calc = kernelpot.Calculator("{output}")'
        )


@app.command()
def fit(
    source: Annotated[
        Path | None,
        typer.Argument(help="settings.toml, or a file of labelled structures.", show_default=False),
    ] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="File of the model. [model.kpot]")
    ] = None,
    test: Annotated[str | None, typer.Option(help="Labelled structures to test on.")] = None,
    index: Annotated[str | None, typer.Option(help="Frames to fit, as in ASE: '::10'.")] = None,
    energy_key: Key = None,
    forces_key: Key = None,
    stress_key: Key = None,
    virial_key: Key = None,
    cutoff: Annotated[float | None, typer.Option(help="Radius of an environment, A.")] = None,
    n_max: Annotated[int | None, typer.Option(help="Radial functions.")] = None,
    l_max: Annotated[int | None, typer.Option(help="Highest angular momentum.")] = None,
    width: Annotated[
        float | None, typer.Option("--sigma", help="Width of an atom's density, A.")
    ] = None,
    zeta: Annotated[int | None, typer.Option(help="Exponent of the kernel.")] = None,
    n_environments: Annotated[int | None, typer.Option(help="Inducing environments.")] = None,
    n_tangents: Annotated[int | None, typer.Option(help="Tangents of each.")] = None,
    selector: Annotated[str | None, typer.Option(help="fps, cur, leverage, ...")] = None,
    sigma_energy: Annotated[float | None, typer.Option(help="Noise, eV/atom.")] = None,
    sigma_forces: Annotated[float | None, typer.Option(help="Noise, eV/A.")] = None,
    sigma_stress: Annotated[float | None, typer.Option(help="Noise, eV/A^3.")] = None,
    reference_source: Annotated[str | None, typer.Option(help="Has the zero of energy.")] = None,
    robust: Annotated[bool, typer.Option("--robust", help="Weigh labels in doubt less.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of random choices.")] = None,
    plot: Annotated[str | None, typer.Option(help="Folder for a parity figure.")] = None,
    auto: Annotated[
        bool,
        typer.Option("--auto", help="Choose all settings of descriptor and model by the data."),
    ] = False,
    time: Annotated[
        float | None, typer.Option(help="With --auto: seconds for all of it. [1800]")
    ] = None,
    cost: Annotated[
        float | None, typer.Option(help="With --auto: most us/atom that a prediction may cost.")
    ] = None,
    force: Force = False,
    example: Annotated[
        bool, typer.Option("--example", help="Print a settings file with all defaults, and stop.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Fit a model. Options win over the settings file."""
    given = {
        "data": {
            "test": test, "index": index, "energy_key": energy_key, "forces_key": forces_key,
            "stress_key": stress_key, "virial_key": virial_key,
        },
        "descriptor": {"cutoff": cutoff, "n_max": n_max, "l_max": l_max, "sigma": width},
        "model": {
            "zeta": zeta, "n_environments": n_environments, "n_tangents": n_tangents,
            "selector": selector, "sigma_energy": sigma_energy, "sigma_forces": sigma_forces,
            "sigma_stress": sigma_stress, "random_state": seed,
            "reference_source": reference_source, "robust": robust or None,
        },
        "output": {"model": output, "plots": plot, "force": force or None},
    }  # fmt: skip
    with one_line_errors(debug, "no model was written"):
        from kernelpot.interfaces import settings

        if example:
            typer.echo(settings.example(), nl=False)
            return
        if not auto and (time is not None or cost is not None):
            raise ValueError("--time and --cost are budgets of --auto: give that too")
        checked = settings.check_settings(settings.combine(source, given))
        budget = {"time_budget": time or 1800.0, "cost": cost} if auto else None
        _fit(checked, debug, budget)


def _fit(settings: FitSettings, debug: bool, budget: dict[str, float | None] | None) -> None:
    from kernelpot.interfaces.console import say_auto
    from kernelpot.interfaces.settings import fit_automatically, make_model

    target = Path(settings.output.model)
    if settings.output.plots and not settings.data.test:
        raise ValueError("a parity figure needs structures to test on: give --test or [data] test")
    _refuse_to_overwrite(target, settings.output.force)
    train = _read(settings.data.train, settings.data.index)
    test = _read(settings.data.test) if settings.data.test else []
    with progress_bar() as progress:
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
            compared = _say_errors(model, test, "Errors on the test structures", by_group=True)
            if settings.output.plots:
                title = f"{target.name}, test structures"
                _save_parity(compared, Path(settings.output.plots), title)


@app.command()
def compare(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="settings.toml of each model, then files of labelled structures.",
            show_default=False,
        ),
    ],
    index: Annotated[str, typer.Option(help="Frames to fit, as in ASE: '::10'.")] = ":",
    energy_key: Key = None,
    forces_key: Key = None,
    stress_key: Key = None,
    virial_key: Key = None,
    debug: Debug = False,
) -> None:
    """Fit several settings files to the same structures: which one do the data prefer?"""
    given = {
        "energy_key": energy_key, "forces_key": forces_key, "stress_key": stress_key,
        "virial_key": virial_key, "index": index,
    }  # fmt: skip
    with one_line_errors(debug, "the comparison is not finished"):
        from kernelpot.comparison import comparison_table, fit_and_compare, verdict
        from kernelpot.interfaces import settings

        tables = [path for path in sources if path.suffix.lower() == ".toml"]
        files = [str(path) for path in sources if path not in tables]
        if len(set(tables)) < 2 or not files:
            raise ValueError(
                "name two settings files or more and the structures to fit: "
                "`kernelpot compare a.toml b.toml train.xyz`"
            )
        checked = settings.check_files(tables, {"data": given | {"train": files}})
        train = _read(files, index)
        with progress_bar() as progress:
            models = {n: settings.make_model(one, progress) for n, one in checked.items()}
            rows = fit_and_compare(models, train)
        out.print(comparison_table(rows, f"Fitted to {len(train)} structures"))
        say(verdict(rows))


@app.command()
def evaluate(
    model_file: ModelFile,
    structures: Annotated[Path, typer.Argument(help="Labelled structures.", show_default=False)],
    index: Annotated[str, typer.Option(help="Which frames, as in ASE.")] = ":",
    by_group: Annotated[
        bool, typer.Option("--by-group", help="Also a row for every info['group'].")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Folder for figures.")] = None,
    train: Annotated[
        Path | None,
        typer.Option(help="Training structures: refit on parts of them for a learning curve."),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table to this file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the table to this file.")] = None,
    energy_key: Key = None,
    forces_key: Key = None,
    stress_key: Key = None,
    virial_key: Key = None,
    debug: Debug = False,
) -> None:
    """Compare a model with labelled structures: tables, parity figure, learning curve."""
    with one_line_errors(debug, "the comparison is not finished"):
        from kernelpot import report
        from kernelpot.data import LabelKeys
        from kernelpot.potential import load

        named = (energy_key, forces_key, stress_key, virial_key)
        keys = LabelKeys(*named) if any(named) else None
        model = load(model_file)
        test = _read(structures, index)
        compared = report.compare_model(model, test, keys=keys)
        rows = report.error_table(compared, by_group=by_group)
        out.print(report.rich_table(rows, f"{model_file.name} on {structures.name}"))
        for path, write in ((csv, report.csv_table), (json, report.json_table)):
            if path is not None:
                path.write_text(write(rows), encoding="utf-8")
                say(f"Wrote {path}.")
        if plot is not None:
            _save_parity(compared, plot, f"{model_file.name} on {structures.name}")
        if train is not None:
            _learning_curve(model, _read(train), test, keys, plot)


@app.command()
def dimers(
    model_file: ModelFile,
    plot: Annotated[Path | None, typer.Option(help="Folder for a figure.")] = None,
    debug: Debug = False,
) -> None:
    """Scan two atoms over their distance: does the model keep them apart?"""
    with one_line_errors(debug, "the scan is not finished"):
        from kernelpot.potential import load
        from kernelpot.report_dimers import dimer_scan, dimer_table

        scan = dimer_scan(load(model_file))
        title = f"{model_file.name}, two atoms alone"
        out.print(dimer_table(scan, title))
        holes = [dimer.name for dimer in scan if not dimer.repulsive]
        least = min(scan, key=lambda dimer: dimer.energies[0])
        say(f"Not repulsive at short range: {', '.join(holes)}." if holes else "No holes.")
        say(
            f"Least energy at {least.distances[0]:g} A: {least.energies[0]:.3g} eV ({least.name});"
            " between nuclei it is tens to thousands of eV."
        )
        if plot is not None:
            from kernelpot.report_figures import dimer_figure

            plot.mkdir(parents=True, exist_ok=True)
            dimer_figure(scan, title=title).savefig(plot / "dimers.png", dpi=150)
            say(f"Wrote {plot / 'dimers.png'}.")


@app.command()
def md(
    model_file: ModelFile,
    start: Annotated[Path, typer.Argument(help="Structure to start from.", show_default=False)],
    temperature: Annotated[float, typer.Option(help="K; momenta are drawn at it.")] = 300.0,
    timestep: Annotated[float, typer.Option(help="fs.")] = 1.0,
    steps: Annotated[int, typer.Option(help="How many.")] = 1000,
    ensemble: Annotated[Ensemble, typer.Option(help="What is held constant.")] = Ensemble.nve,
    pressure: Annotated[float, typer.Option(help="GPa, for npt.")] = 0.0,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Trajectory, extended XYZ.")
    ] = Path("traj.extxyz"),
    log_interval: Annotated[int, typer.Option(help="Steps from frame to frame.")] = 10,
    supercell: Annotated[
        str | None, typer.Option(help="Repeat the start, as in 2x2x2.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the momenta and the thermostat.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last frame of the trajectory.")
    ] = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Run molecular dynamics with a model."""
    kept = f"the frames so far are in {output}, --resume goes on from the last"
    with one_line_errors(debug, kept):
        from kernelpot.interfaces.dynamics import bare_copy, parse_supercell, resume_from
        from kernelpot.potential import load

        model = load(model_file)
        if resume:
            atoms, first_step = resume_from(output)
        else:
            _refuse_to_overwrite(output, force)
            output.unlink(missing_ok=True)
            atoms, first_step = bare_copy(_read(start, "-1")[0]), 0
            atoms = atoms.repeat(parse_supercell(supercell)) if supercell else atoms
        _drive(
            model, atoms, ensemble.value, temperature=temperature, timestep=timestep,
            steps=steps, pressure=pressure, log_interval=log_interval, seed=seed,
            trajectory=output, first_step=first_step,
            title=f"Molecular dynamics, {ensemble.value.upper()}",
        )  # fmt: skip
        say(f"\nWrote {output}.")


@app.command()
def info(model_file: ModelFile, debug: Debug = False) -> None:
    """Say what a model file holds."""
    with one_line_errors(debug, "nothing was read"):
        from kernelpot.potential import load

        model = load(model_file)
        say(f"{model_file} ({model_file.stat().st_size / 1e6:.1f} MB)")
        say_model(model)


def main() -> None:
    """Entry point of the console script."""
    app()


def _refuse_to_overwrite(path: Path, force: bool) -> None:
    """Before the work, not after it."""
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists: --force overwrites it, or choose another --output")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of {path} does not exist: make it first")


def _read(paths: str | Path | list[str], index: str = ":") -> list[Atoms]:
    from kernelpot.data import read_images

    paths = paths if isinstance(paths, list) else [paths]
    return [atoms for path in paths for atoms in read_images(path, index)]


def _say_errors(
    model: Any, images: list[Atoms], title: str, by_group: bool = False
) -> tuple[Comparison, ...]:
    from kernelpot import report

    compared = report.compare_model(model, images)
    out.print(report.rich_table(report.error_table(compared, by_group=by_group), title))
    return compared


def _save_parity(compared: tuple[Comparison, ...], folder: Path, title: str) -> None:
    from kernelpot.report_figures import parity_figure

    folder.mkdir(parents=True, exist_ok=True)
    parity_figure(compared, title=title).savefig(folder / "parity.png", dpi=150)
    say(f"Wrote {folder / 'parity.png'}.")


def _learning_curve(
    model: Any, train: list[Atoms], test: list[Atoms], keys: Any, folder: Path | None
) -> None:
    from kernelpot import report
    from kernelpot.report_figures import learning_curve_figure

    with progress_bar() as progress:
        curve = report.learning_curve(model, train, test, keys=keys, progress=progress)
    for size, rows in zip(curve.sizes, curve.tables, strict=True):
        errors = ", ".join(f"{row.kind} {row.mae:.3g} {row.unit}" for row in rows)
        say(f"{size:6d} training structures: MAE {errors}")
    if folder is not None:
        learning_curve_figure(curve).savefig(folder / "learning_curve.png", dpi=150)
        say(f"Wrote {folder / 'learning_curve.png'}.")


def _drive(
    model: Any,
    atoms: Atoms,
    ensemble: str,
    *,
    title: str,
    trajectory: Path | None = None,
    first_step: int = 0,
    **options: Any,
) -> None:
    """Run dynamics: a line now and then, and the drift at the end."""
    from kernelpot.interfaces import dynamics
    from kernelpot.interfaces.ase import Calculator

    atoms.calc = Calculator(model)
    if not first_step:
        dynamics.thermalise(atoms, options["temperature"], options.get("seed", 0))
    say(f"\n{title}: {len(atoms)} atoms, {options['steps']} steps of {options['timestep']:g} fs")
    say(dynamics.HEADING)
    lines_every = max(1, options["steps"] // options["log_interval"] // 10)
    with progress_bar() as progress:

        def on_sample(sample: Sample, first: Sample) -> None:
            progress("steps", sample.step - first_step, options["steps"])
            if (sample.step // options["log_interval"]) % lines_every == 0:
                say(dynamics.line(sample, first, len(atoms)))

        samples = dynamics.run(
            atoms, ensemble, on_sample=on_sample, trajectory=trajectory, first_step=first_step,
            **options,
        )  # fmt: skip
    drift = dynamics.energy_drift(
        [s.time for s in samples], [s.conserved for s in samples], len(atoms)
    )
    say(
        f"Conserved energy: {drift.change:+.3g} meV/atom over the run"
        f" ({drift.slope:+.3g} meV/atom/ps), fluctuation {drift.fluctuation:.3g} meV/atom"
    )
