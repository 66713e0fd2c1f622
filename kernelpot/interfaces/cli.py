"""The command line: ``kernelpot demo``, ``fit``, ``learn``, ``compare``, ``evaluate`` and others.

It parses; what the commands do is in `commands`, `commands_learn` and `commands_report`.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from kernelpot.interfaces import commands, commands_learn, commands_report
from kernelpot.interfaces.console import one_line_errors, say

__all__ = ["app", "main"]

app = typer.Typer(
    name="kernelpot",
    help="Interatomic potentials from a few hundred DFT calculations, with uncertainty.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

lammps_app = typer.Typer(help="LAMMPS with the pair style kernelpot.", no_args_is_help=True)
app.add_typer(lammps_app, name="lammps")


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
        commands.demo(output, force)


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
    memory: Annotated[
        str | None, typer.Option(help="Most that the process may take, as in 2GB.")
    ] = None,
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
    dask: Annotated[
        str | None,
        typer.Option(
            help="Fit on the workers of the Dask scheduler at this address; they read the files.",
            metavar="ADDRESS",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what the fit would take of time and memory, and stop."),
    ] = False,
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
            "reference_source": reference_source, "robust": robust or None, "memory": memory,
        },
        "output": {"model": output, "plots": plot, "force": force or None},
    }  # fmt: skip
    with one_line_errors(debug, "no model was written"):
        if example:
            commands.print_example()
            return
        if dry_run and auto:
            raise ValueError(
                "--dry-run says what a fit with given settings takes; --auto chooses the settings, "
                "and keeps within --time: give one of them"
            )
        if dry_run and dask is not None:
            raise ValueError(
                "--dry-run says what a fit in one process takes, after a look at the structures "
                "and at this machine; --dask fits on others: give one of them"
            )
        if dry_run:
            commands.dry_run(source, given)
            return
        budget = {"time_budget": time, "cost": cost}
        budget = {name: value for name, value in budget.items() if value is not None}
        if budget and not auto:
            raise ValueError("--time and --cost are budgets of --auto: give that too")
        if auto and dask is not None:
            raise ValueError(
                "--auto tries many small fits, in one process: find the settings with it on a part "
                "of the data, then fit all of them with --dask"
            )
        commands.fit(source, given, budget if auto else None, dask, debug)


@app.command()
def learn(
    config: Annotated[
        Path | None, typer.Argument(help="Settings, TOML.", show_default=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Of the run. [run]", show_default=False)
    ] = None,
    labels: Annotated[int | None, typer.Option(help="Labels after which to end.")] = None,
    time: Annotated[float | None, typer.Option(help="Seconds after which to end.")] = None,
    replay: Annotated[
        Path | None,
        typer.Option(help="Make the model of the run in this folder from its journal alone."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="With --replay: file of the model. [model.kpot]"),
    ] = None,
    force: Force = False,
    example: Annotated[
        bool, typer.Option("--example", help="Print a settings file with all defaults, and stop.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Learn a model from few labels: explore, label where it is unsure, stop when it is sure."""
    given = {
        "learn": {"most_labels": labels, "most_seconds": time},
        "output": {"folder": None if folder is None else str(folder)},
    }
    kept = "no model was written" if replay else commands_learn.how_to_resume(config, folder)
    with one_line_errors(debug, kept):
        if example:
            commands_learn.print_learn_example()
            return
        if replay is not None:
            if config is not None or resume:
                raise ValueError(
                    "--replay takes the settings from the folder of the run: leave the file, and"
                    " --resume, out"
                )
            commands_learn.replay_run(replay, output or Path("model.kpot"), force)
        elif output is not None or force:
            raise ValueError(
                "--output and --force belong to --replay; a run writes model.kpot into its folder:"
                " --folder"
            )
        else:
            commands_learn.learn(config, given, resume=resume)


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
    keys = {
        "energy_key": energy_key, "forces_key": forces_key, "stress_key": stress_key,
        "virial_key": virial_key,
    }  # fmt: skip
    with one_line_errors(debug, "the comparison is not finished"):
        commands.compare(sources, index, keys)


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
    against: Annotated[
        Path | None,
        typer.Option(help="Training structures: how far are the others from them?"),
    ] = None,
    std: Annotated[bool, typer.Option(help="Judge standard deviations, too.")] = True,
    csv: Annotated[Path | None, typer.Option(help="Write the table to this file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the table to this file.")] = None,
    energy_key: Key = None,
    forces_key: Key = None,
    stress_key: Key = None,
    virial_key: Key = None,
    debug: Debug = False,
) -> None:
    """Compare a model with labelled structures: tables, parity figure, learning curve."""
    keys = {
        "energy_key": energy_key, "forces_key": forces_key, "stress_key": stress_key,
        "virial_key": virial_key,
    }  # fmt: skip
    with one_line_errors(debug, "the comparison is not finished"):
        commands_report.evaluate(
            model_file, structures, index=index, by_group=by_group, plot=plot, train=train,
            against=against, std=std, csv=csv, json=json, keys=keys,
        )  # fmt: skip


@app.command()
def calibrate(
    model_file: ModelFile,
    structures: Annotated[
        Path, typer.Argument(help="Labelled, and not fitted to.", show_default=False)
    ],
    index: Annotated[str, typer.Option(help="Which frames, as in ASE.")] = ":",
    left_out: Annotated[
        bool,
        typer.Option("--left-out", help="The model was fitted to these: leave out each in turn."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Of the calibrated model.", show_default="MODEL_FILE"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    energy_key: Key = None,
    forces_key: Key = None,
    stress_key: Key = None,
    virial_key: Key = None,
    debug: Debug = False,
) -> None:
    """Learn from errors how wide standard deviations and intervals have to be."""
    keys = {
        "energy_key": energy_key, "forces_key": forces_key, "stress_key": stress_key,
        "virial_key": virial_key,
    }  # fmt: skip
    with one_line_errors(debug, "the model is as it was"):
        commands_report.calibrate(
            model_file, structures, output or model_file, index=index, left_out=left_out,
            force=force, keys=keys,
        )  # fmt: skip


@app.command()
def dimers(
    model_file: ModelFile,
    plot: Annotated[Path | None, typer.Option(help="Folder for a figure.")] = None,
    debug: Debug = False,
) -> None:
    """Scan two atoms over their distance: does the model keep them apart?"""
    with one_line_errors(debug, "the scan is not finished"):
        commands_report.dimers(model_file, plot)


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
        run = commands.Run(
            ensemble.value, temperature, timestep, steps, pressure, log_interval, seed
        )
        commands.md(model_file, start, output, run, supercell=supercell, resume=resume, force=force)


@app.command()
def info(model_file: ModelFile, debug: Debug = False) -> None:
    """Say what a model file holds."""
    with one_line_errors(debug, "nothing was read"):
        commands_report.info(model_file)


@lammps_app.command("run", context_settings={"ignore_unknown_options": True})
def lammps_run(
    input_file: Annotated[Path, typer.Argument(help="Input of LAMMPS.", show_default=False)],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Arguments of LAMMPS: -var T 300 -log none.", show_default=False),
    ] = None,
    debug: Debug = False,
) -> None:
    """Run an input file; with several processes: mpiexec -n 4 kernelpot lammps run in.file."""
    from kernelpot.interfaces import lammps

    with one_line_errors(debug, "LAMMPS has not finished"):
        lammps.run(input_file, arguments or ())


@lammps_app.command("build")
def lammps_build(debug: Debug = False) -> None:
    """Compile the pair style for the LAMMPS of this environment, and say where it is."""
    from kernelpot.interfaces import lammps

    with one_line_errors(debug, "the pair style was not compiled"):
        say(f"The pair style is {lammps.build_plugin()}")


def main() -> None:
    """Entry point of the console script."""
    app()
