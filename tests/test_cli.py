"""The command line, by typer's runner: what it writes, what it says, how it fails."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from rich.console import Console
from typer.testing import CliRunner

from kernelpot.interfaces import cli, commands, console
from kernelpot.potential import load

runner = CliRunner()
SMALL = ["--cutoff", "4", "--n-max", "4", "--l-max", "3", "--n-environments", "20"]
SMALL += ["--n-tangents", "4"]


def rattled(seed: int) -> Atoms:
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", "fcc", a=3.6, cubic=True)
    atoms.set_cell(
        atoms.cell.array @ (np.eye(3) + rng.normal(scale=0.02, size=(3, 3))), scale_atoms=True
    )
    atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
    atoms.calc = EMT()
    results = {
        "energy": atoms.get_potential_energy(),
        "forces": atoms.get_forces(),
        "stress": atoms.get_stress(),
    }
    atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.info["group"] = "odd" if seed % 2 else "even"
    return atoms


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Training and test structures, and a model fitted to them by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    write(folder / "train.xyz", [rattled(seed) for seed in range(16)], format="extxyz")
    write(folder / "test.xyz", [rattled(seed) for seed in range(16, 22)], format="extxyz")
    write(folder / "start.vasp", bulk("Cu", "fcc", a=3.6, cubic=True), format="vasp")
    result = call("fit", folder / "train.xyz", "-o", folder / "cu.kpot", *SMALL)
    assert result.exit_code == 0, result.output
    return folder


def call(*arguments: object):
    return runner.invoke(cli.app, [str(argument) for argument in arguments])


def fails_with(*arguments: object, code: int = 2) -> str:
    """The one line that an error leaves."""
    result = call(*arguments)
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("kernelpot: ")
    assert "Traceback" not in result.output
    return lines[0]


def test_help_names_the_commands_and_is_quick():
    result = call("--help")
    assert result.exit_code == 0
    for command in ("demo", "fit", "compare", "evaluate", "calibrate", "md", "info"):
        assert command in result.stdout


def test_the_module_of_the_command_line_imports_nothing_heavy():
    # kernelpot itself may import what it likes; the commands must not add to it.
    code = (
        "import sys, types; package = types.ModuleType('kernelpot');"
        f"package.__path__ = [{str(Path(cli.__file__).parents[1])!r}];"
        "sys.modules['kernelpot'] = package; import kernelpot.interfaces.cli;"
        "heavy = {'numpy', 'ase', 'numba', 'sklearn', 'matplotlib', 'pydantic', 'dscribe'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_fit_says_what_it_chose(folder):
    result = call(
        "fit", folder / "train.xyz", "-o", folder / "again.kpot", "--test", folder / "test.xyz",
        "--plot", folder / "plots", "--sigma-forces", "0.02", "--seed", "3", *SMALL,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for words in ("Soap(cutoff=4.0, n_max=4, l_max=3)", "20 environments", "forces 0.02 eV/A",
                  "baseline", "16 structures", "training MAE", "Errors on the test structures",
                  "even", "odd", "parity.png", "Saved"):  # fmt: skip
        assert words in result.stdout
    assert (folder / "plots" / "parity.png").stat().st_size > 10_000
    model = load(folder / "again.kpot")
    assert (model.sigma_forces, model.random_state, model.n_environments) == (0.02, 3, 20)


def test_fit_from_settings(folder):
    (folder / "fit.toml").write_text(
        f'[data]\ntrain = "{folder / "train.xyz"}"\nindex = "::2"\n'
        "[descriptor]\ncutoff = 4.0\nn_max = 4\nl_max = 3\n"
        "[model]\nn_environments = 10\nn_tangents = 3\n"
        f'[output]\nmodel = "{folder / "toml.kpot"}"\n'
    )
    result = call("fit", folder / "fit.toml", "--n-tangents", "2")
    assert result.exit_code == 0, result.output
    assert "8 structures" in result.stdout
    model = load(folder / "toml.kpot")
    assert (model.n_environments, model.n_tangents) == (10, 2)


def test_compare_says_which_model_the_data_prefer(folder):
    soap = "cutoff = 4.0\nn_max = 4\nl_max = 3\n"
    size = "[model]\nn_environments = 10\nn_tangents = 3\n"
    (folder / "soap.toml").write_text(f"[descriptor]\n{soap}{size}")
    (folder / "sum.toml").write_text(
        # What a file says of its own data does not count here, but for the names of labels.
        f'[data]\ntrain = "nowhere.xyz"\nindex = "::5"\n'
        f'[[descriptor]]\n{soap}[[descriptor]]\nkind = "pairs"\ncutoff = 5.0\n{size}'
    )
    tables = (folder / "soap.toml", folder / "sum.toml")
    result = call("compare", *tables, folder / "train.xyz", "--index", ":12")
    assert result.exit_code == 0, result.output
    for words in ("12 structures", "soap", "sum", "log evidence", "data fit", "Occam factor",
                  "behind the best", "left-out RMSE, forces, meV/A", "inducing variables",
                  "prediction, us/atom", "fit, s", "The evidence prefers", "Left-out"):  # fmt: skip
        assert words in result.stdout
    assert "two settings files or more" in fails_with("compare", tables[0], folder / "train.xyz")
    assert "two settings files or more" in fails_with("compare", *tables)
    assert "two settings files or more" in fails_with(
        "compare", tables[0], tables[0], folder / "train.xyz"
    )
    (folder / "wrong.toml").write_text('[descriptor]\nkind = "triples"\n')
    line = fails_with("compare", tables[0], folder / "wrong.toml", folder / "train.xyz")
    assert "wrong.toml: [descriptor] kind: 'triples' was given" in line


def test_a_sum_says_what_it_is(folder):
    (folder / "small.toml").write_text(
        f'[data]\ntrain = "{folder / "train.xyz"}"\n[[descriptor]]\ncutoff = 4.0\nn_max = 3\n'
        'l_max = 2\n[[descriptor]]\nkind = "pairs"\nn_splines = 20\n'
        "[model]\nn_environments = 5\nn_tangents = 2\n"
    )
    result = call("fit", folder / "small.toml", "-o", folder / "small.kpot")
    assert result.exit_code == 0, result.output
    for words in ("PairSplines(cutoff=5.0, n_splines=20)", "zeta 4 / 1", "5 environments (fps)",
                  "10 tangents, 21 features of linear descriptors"):  # fmt: skip
        assert words in result.stdout
    line = fails_with("fit", folder / "small.toml", "-o", folder / "no.kpot", "--cutoff", 4)
    assert "--cutoff: the settings file has it for each descriptor by itself" in line


def test_fit_auto_says_what_it_tried(folder):
    target = folder / "auto.kpot"
    result = call("fit", folder / "train.xyz", "--auto", "--time", 25, "--cost", 900, "-o", target)
    assert result.exit_code == 0, result.output
    for words in (
        "errors of structures left out",
        "start",
        "descriptor: ",
        "tangents each",
        "Saved",
    ):
        assert words in result.output
    assert load(target).auto_["trials"]
    result = call("fit", folder / "train.xyz", "--auto", "--zeta", 2, "-o", folder / "no.kpot")
    assert result.exit_code == 2
    assert "--auto chooses zeta: leave these settings out" in " ".join(result.output.split())
    result = call("fit", folder / "train.xyz", "--time", 25, "-o", folder / "no.kpot")
    assert "budgets of --auto" in result.output
    assert not (folder / "no.kpot").exists()


@pytest.mark.parametrize(("option", "parameter"), [("--time", "time_budget"), ("--cost", "cost")])
def test_budgets_of_auto_are_positive(folder, option, parameter):
    # A time of 0 was taken for the default of half an hour.
    line = fails_with("fit", folder / "train.xyz", "--auto", option, 0, "-o", folder / "no.kpot")
    assert f"{parameter} must be positive; got 0.0" in line


def test_a_dry_run_says_what_a_fit_takes(folder, monkeypatch):
    monkeypatch.setattr(
        "kernelpot.training.prepare", lambda *_: pytest.fail("something was fitted")
    )
    before = sorted(folder.iterdir())
    result = call("fit", folder / "train.xyz", "--dry-run", "--memory", "2 GB", *SMALL)
    assert result.exit_code == 0, result.output
    for words in ("nothing was fitted", "rows", "posterior", "training errors", "GFLOP", "memory",
                  "16 structures, 64 atoms", "192 forces",
                  "keeps within the budget of 2 GB"):  # fmt: skip
        assert words in result.stdout
    result = call("fit", folder / "train.xyz", "--dry-run", "--memory", "50 MB", *SMALL)
    assert "It would not begin: this fit needs" in result.stdout
    assert sorted(folder.iterdir()) == before
    assert "give one of them" in fails_with("fit", folder / "train.xyz", "--dry-run", "--auto")


def test_a_fit_keeps_to_its_memory_or_refuses(folder):
    target = folder / "memory.kpot"
    line = fails_with("fit", folder / "train.xyz", "-o", target, "--memory", "50 MB", *SMALL)
    assert "this fit needs" in line
    assert "budget is 50 MB" in line
    assert not target.exists()
    assert "such as '2GB'" in fails_with("fit", folder / "train.xyz", "--memory", "much", *SMALL)
    result = call("fit", folder / "train.xyz", "-o", target, "--memory", "2GB", *SMALL)
    assert result.exit_code == 0, result.output
    assert load(target).memory == "2GB"


def test_the_time_left_is_that_of_all_stages():
    expected = {"features": 2.0, "selection": 4.0, "whitening": 1.0, "rows": 10.0, "posterior": 3.0}
    told = [("features", 1, 4), ("features", 4, 4), ("tangents", 1, 2), ("tangents", 2, 2),
            ("rows", 0, 8), ("rows", 4, 8), ("posterior", 1, 1)]  # fmt: skip
    over = [console.seconds_done(expected, *one) for one in told]
    assert over == [2.5, 4.0, 5.0, 6.0, 7.0, 12.0, 20.0]
    assert console.seconds_done(expected, "race", 1, 2) == 0.0


def test_a_terminal_shows_the_time_left(folder, monkeypatch):
    terminal = Console(force_terminal=True, width=100, highlight=False, file=io.StringIO())
    monkeypatch.setattr(console, "out", terminal)
    monkeypatch.setattr(commands, "out", terminal)
    result = call("fit", folder / "train.xyz", "-o", folder / "bar.kpot", *SMALL)
    assert result.exit_code == 0, result.output
    shown = terminal.file.getvalue()
    for words in ("all, in s", "left", "rows", "posterior", "training errors", "16/16"):
        assert words in shown


def test_fit_prints_an_example(folder):
    result = call("fit", "--example")
    assert result.exit_code == 0
    (folder / "example.toml").write_text(result.stdout)
    assert "train.xyz" in fails_with("fit", folder / "example.toml", "-o", folder / "e.kpot")


def test_fit_with_labels_under_other_names(folder):
    images = read(folder / "train.xyz", ":")
    for atoms in images:
        atoms.info["REF_energy"] = atoms.get_potential_energy()
        atoms.arrays["REF_forces"] = atoms.get_forces()
        atoms.calc = None
    write(folder / "named.xyz", images, format="extxyz")
    target = folder / "named.kpot"
    assert "REF_energy" in fails_with("fit", folder / "named.xyz", "-o", target, *SMALL)
    assert not target.exists()
    keys = ("--energy-key", "REF_energy", "--forces-key", "REF_forces")
    result = call("fit", folder / "named.xyz", "-o", target, *keys, *SMALL)
    assert result.exit_code == 0, result.output
    result = call("evaluate", target, folder / "named.xyz")  # the model remembers the names
    assert result.exit_code == 0, result.output


def test_fit_refuses_before_the_work(folder):
    before = (folder / "cu.kpot").read_bytes()
    line = fails_with("fit", folder / "train.xyz", "-o", folder / "cu.kpot", *SMALL)
    assert "exists: --force overwrites it" in line
    assert (folder / "cu.kpot").read_bytes() == before
    line = fails_with("fit", folder / "train.xyz", "-o", folder / "no" / "x.kpot")
    assert "the folder of" in line
    target = folder / "never.kpot"
    assert "There is no file" in fails_with("fit", folder / "trian.xyz", "-o", target)
    line = fails_with("fit", folder / "train.xyz", "-o", target, "--zeta", 0)
    assert "[model] zeta: 0 was given" in line
    line = fails_with("fit", folder / "train.xyz", "-o", target, "--selector", "best")
    assert "'best' was given; allowed: 'fps'" in line
    assert "name what to fit" in fails_with("fit")
    line = fails_with("fit", folder / "train.xyz", "-o", target, "--plot", folder / "figures")
    assert "give --test" in line
    assert not target.exists()


def test_ctrl_c_leaves_nothing_behind(folder, monkeypatch):
    from kernelpot.potential import KernelPotential

    def interrupted(self, images):
        raise KeyboardInterrupt

    monkeypatch.setattr(KernelPotential, "fit", interrupted)
    line = fails_with("fit", folder / "train.xyz", "-o", folder / "cut.kpot", code=130)
    assert line == "kernelpot: interrupted; no model was written"
    assert not list(folder.glob("cut.kpot*"))


def test_debug_shows_the_error_itself(folder):
    result = call("info", folder / "train.xyz", "--debug")
    assert isinstance(result.exception, ValueError)
    assert "kernelpot: " in fails_with("info", folder / "train.xyz")


def test_evaluate(folder):
    result = call(
        "evaluate", folder / "cu.kpot", folder / "test.xyz", "--by-group",
        "--plot", folder / "figures", "--train", folder / "train.xyz",
        "--csv", folder / "errors.csv", "--json", folder / "errors.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = json.loads((folder / "errors.json").read_text())
    assert {row["group"] for row in rows} == {"all", "even", "odd"}
    forces = next(row for row in rows if row["kind"] == "forces" and row["group"] == "all")
    model, images = load(folder / "cu.kpot"), read(folder / "test.xyz", ":")
    errors = [
        np.abs(ours - atoms.get_forces()).ravel()
        for ours, atoms in zip(model.predict(images).forces, images, strict=True)
    ]
    assert forces["mae"] == pytest.approx(1e3 * np.concatenate(errors).mean())
    assert (folder / "errors.csv").read_text().count("\n") == 1 + len(rows)
    for name in ("parity.png", "learning_curve.png", "reliability.png", "errors.png"):
        assert (folder / "figures" / name).stat().st_size > 10_000
    assert "16 training structures: MAE energy" in result.stdout


def test_calibrate_and_evaluate(folder):
    kept = (folder / "cu.kpot").read_bytes()
    result = call("evaluate", folder / "cu.kpot", folder / "test.xyz", "--no-std")
    assert "calibration error" not in result.stdout
    result = call("evaluate", folder / "cu.kpot", folder / "test.xyz")
    assert "as the fit has them" in result.stdout
    assert "expected calibration error" in result.stdout
    target = folder / "calibrated.kpot"
    result = call(
        "calibrate", folder / "cu.kpot", folder / "train.xyz", "--left-out", "-o", target
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "leave-one-out" in result.stdout
    assert (folder / "cu.kpot").read_bytes() == kept
    model = load(target)
    assert model.calibration_.source == "leave-one-out"
    assert model.calibration_.scale_of("forces").n_structures == 16
    assert model.progress is None
    result = call("evaluate", target, folder / "test.xyz", "--against", folder / "train.xyz")
    assert result.exit_code == 0, result.output
    assert "calibrated by leave-one-out" in result.stdout
    for word in ("Mahalanobis", "grade", "nearest", "contact", "novelty"):
        assert word in result.stdout
    assert re.search(r"\d of 6 structures have an atom beyond a limit", result.stdout)
    said = fails_with("calibrate", folder / "cu.kpot", folder / "test.xyz", "-o", target)
    assert "--force overwrites it" in said
    result = call("calibrate", folder / "cu.kpot", folder / "test.xyz", "-o", target, "--force")
    assert load(target).calibration_.source == "held-out"


def test_squeezed_structures_are_called_far(folder):
    squeezed = [rattled(seed) for seed in (30, 31)]
    for atoms in squeezed:
        results = atoms.calc.results
        atoms.set_cell(0.8 * atoms.cell.array, scale_atoms=True)
        atoms.calc = SinglePointCalculator(atoms, **results)
    write(folder / "squeezed.xyz", squeezed, format="extxyz")
    result = call(
        "evaluate", folder / "cu.kpot", folder / "squeezed.xyz", "--no-std", "--against",
        folder / "train.xyz",
    )  # fmt: skip
    assert "2 of 2 structures have an atom beyond a limit" in result.stdout
    assert "Cu-Cu" in result.stdout
    assert "shortest in training" in result.stdout.replace("\n", " ")


def test_md_writes_a_trajectory_and_resumes(folder):
    arguments = (
        "md", folder / "cu.kpot", folder / "start.vasp", "-o", folder / "traj.extxyz",
        "--steps", 20, "--timestep", 2, "--log-interval", 5, "--supercell", "2x1x1",
        "--temperature", 400, "--ensemble", "nvt",
    )  # fmt: skip
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert "Molecular dynamics, NVT: 8 atoms, 20 steps of 2 fs" in result.stdout
    assert "Conserved energy:" in result.stdout
    assert len(read(folder / "traj.extxyz", ":")) == 5
    assert "exists" in fails_with(*arguments)
    result = call(*arguments, "--resume")
    assert result.exit_code == 0, result.output
    frames = read(folder / "traj.extxyz", ":")
    assert [atoms.info["kernelpot_step"] for atoms in frames] == list(range(0, 41, 5))
    assert "ensemble" in call(*arguments, "--ensemble", "nvq").output


def test_md_npt_and_its_errors(folder):
    molecule = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.3]])
    write(folder / "dimer.xyz", molecule)
    target = folder / "npt.extxyz"
    arguments = ("md", folder / "cu.kpot", folder / "start.vasp", "-o", target, "--steps", 5)
    result = call(*arguments, "--ensemble", "npt", "--pressure", 1, "--supercell", 2)
    assert result.exit_code == 0, result.output
    assert "npt needs a cell" in fails_with(
        "md", folder / "cu.kpot", folder / "dimer.xyz", "-o", folder / "d.extxyz",
        "--ensemble", "npt",
    )  # fmt: skip
    assert "not three whole numbers" in fails_with(*arguments, "--force", "--supercell", "2x2")
    write(folder / "gold.vasp", bulk("Au", cubic=True), format="vasp")
    line = fails_with("md", folder / "cu.kpot", folder / "gold.vasp", "-o", folder / "a.extxyz")
    assert "contains Au, but the model was fitted with Cu only" in line


def test_info(folder):
    result = call("info", folder / "cu.kpot")
    assert result.exit_code == 0, result.output
    for words in ("cu.kpot (", "species", "Cu", "20 environments (fps)", "zeta 4", "sha256",
                  "numpy", "left-out RMSE", "log evidence", "Occam factor",
                  "16 structures, 64 atoms", "this model", "Lennard-Jones", "DFT, 1000 atoms",
                  "kernel", "as in the training data", "GFLOP/s", "Rev. Mod. Phys. 64, 1045",
                  "11 valence electrons"):  # fmt: skip
        assert words in result.stdout
    assert "nothing.kpot" in fails_with("info", folder / "nothing.kpot")


def test_demo(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "_DEMO_MODEL", {"n_environments": 8, "n_tangents": 2})
    monkeypatch.setattr(commands, "_DEMO_STEPS", 10)
    target = tmp_path / "si.kpot"
    result = call("demo", "-o", target)
    assert result.exit_code == 0, result.output
    for words in ("Silicon:", "Errors on the test structures", "64 atoms, 10 steps", "Next:"):
        assert words in result.stdout
    assert load(target).species_ == (14,)
    assert "exists" in fails_with("demo", "-o", target)
