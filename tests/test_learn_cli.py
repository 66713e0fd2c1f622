"""``kernelpot learn``: its settings file, runs, interruptions, and how it fails."""

from __future__ import annotations

import dataclasses
import inspect
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from kernelpot import load
from kernelpot.active import FileOracle, LearnerSettings, Pool, Rattle, label_all
from kernelpot.active.history import History
from kernelpot.active.journal import Journal, read_entries
from kernelpot.active.scores import low_energy, violations
from kernelpot.descriptors import Soap
from kernelpot.interfaces import learn_parts
from kernelpot.interfaces import learn_schema as schema
from kernelpot.interfaces.learn_example import learn_example
from kernelpot.interfaces.learn_parts import (
    make_explorers,
    make_laws,
    make_observable,
    make_oracle,
    make_relevance,
    make_start,
)
from kernelpot.interfaces.learn_settings import (
    check_learn_settings,
    learner_settings,
    unfitted_model,
)
from kernelpot.interfaces.settings import SettingsError, tomllib
from kernelpot.interfaces.settings_errors import _allowed
from kernelpot.potential import KernelPotential

from .test_cli import call, fails_with

LEAST = {
    "start": {"structure": {"crystal": "Cu"}},
    "oracle": {"kind": "emt"},
    "explore": [{"kind": "dynamics"}],
}
COPPER = """
[start]
structure = { crystal = "Cu", cubic = true }

[oracle]
kind = "emt"

[learn]
tolerance = 0.002
batch = 2
n_initial = 3
most_labels = 7
final_steps = 0

[[explore]]
kind = "dynamics"
temperature = [300, 900]
n_steps = 40

[[explore]]
kind = "rattle"
displacement = 0.2
n = 4

[descriptor]
cutoff = 4.0
n_max = 4
l_max = 3

[model]
n_environments = 20
n_tangents = 4
"""


def settings_of(**sections):
    return check_learn_settings({**LEAST, **sections})


def message_of(**sections) -> str:
    with pytest.raises(SettingsError) as caught:
        settings_of(**sections)
    return str(caught.value)


def labels_in(folder: Path) -> list[bytes]:
    """What was labelled, and what came, to the bit and in the order of the rounds."""
    images = read(folder / "labels.xyz", ":")
    return sorted(a.positions.tobytes() + a.get_forces().tobytes() for a in images)


# ------------------------------------------------------------------------------- the settings


def test_every_parameter_of_the_classes_has_a_key():
    fields = {field.name for field in dataclasses.fields(LearnerSettings)}
    # It stands beside the function whose tolerance it is.
    assert set(schema._LEARN) == fields - {"observable_tolerance"}
    for kind, cls in schema.EXPLORERS.items():
        keys = set(schema._EXPLORERS[kind][1]) - {"index"}
        assert keys == {field.name for field in dataclasses.fields(cls)} - {"oracle"}, kind
    keys = set(inspect.signature(FileOracle).parameters) - {"read", "write"}
    assert set(schema._ORACLES["files"][1]) == keys


def test_defaults_are_those_of_the_classes():
    settings = settings_of()
    assert learner_settings(settings) == LearnerSettings()
    assert unfitted_model(settings).get_params(deep=False) == {
        **KernelPotential().get_params(deep=False),
        "descriptor": Soap(),
    }
    without = {"band", "pool"}  # they need files
    for kind in schema.EXPLORERS.keys() - without:
        (explorer,) = make_explorers(settings_of(explore=[{"kind": kind}]).explore)
        assert explorer == schema.EXPLORERS[kind]()


def test_the_example_is_valid_and_complete():
    text = learn_example()
    said = check_learn_settings(tomllib.loads(text))
    assert learner_settings(said) == LearnerSettings(coverage=0.99)
    assert unfitted_model(said).get_params(deep=False) == unfitted_model(settings_of()).get_params(
        deep=False
    )
    assert len(make_start(said.start)[0][0]) == 32
    (explorer,) = make_explorers(said.explore)
    assert explorer.temperature == (300.0, 900.0)
    tables = [t for of in schema.LEARN_LAYOUT.tables.values() for t in of.values()]
    for section in (*schema.LEARN_LAYOUT.sections.values(), *tables):
        for key in section.model_fields:
            assert f"\n{key} = " in text or f"# {key} =" in text, key


def commented(heading):
    """What the example says of sections that are commented out."""
    blocks = [b for b in learn_example().split("\n\n") if f"# {heading}" in b.splitlines()]
    for block in blocks:
        lines = block.splitlines()
        lines = lines[lines.index(f"# {heading}") :]
        yield tomllib.loads("\n".join(line.removeprefix("# ") for line in lines))


@pytest.mark.parametrize("name", ["oracle", "explore", "law"])
def test_tables_of_the_example_are_valid_too(name):
    heading = {"oracle": "[oracle]"}.get(name, f"[[{name}]]")
    kinds = schema.LEARN_LAYOUT.tables[name]
    said = list(commented(heading))
    assert len(said) == len(kinds) - (name != "law")
    for raw in said:
        checked = getattr(settings_of(**raw), name)
        assert [type(one) for one in checked] == [kinds[checked[0].kind]]


def test_the_relevance_of_the_example_is_valid_too():
    (raw,) = commented("[relevance]")
    assert make_relevance(settings_of(**raw).relevance) is low_energy
    assert make_relevance(settings_of().relevance) is None


def test_the_observable_of_the_example_is_valid_too():
    (raw,) = commented("[observable]")
    assert learner_settings(settings_of(**raw)).observable_tolerance == 0.1
    assert learner_settings(settings_of()).observable_tolerance is None


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"oracle": {}}, "[oracle] kind: missing; allowed: 'emt' or 'tblite' or"),
        ({"oracle": {"kind": "vasp"}}, "[oracle] kind: 'vasp' was given; allowed: 'emt' or"),
        ({"oracle": {"kind": "emt", "method": "x"}}, 'it belongs to kind = "tblite"'),
        ({"oracle": {"kind": "python"}}, "[oracle] function: missing (file and name"),
        ({"oracle": {"kind": "tblite", "method": "GFN3"}}, "allowed: 'GFN2-xTB', 'GFN1-xTB' or"),
        ({"oracle": [{"kind": "emt"}] * 2}, "was given; allowed: a section [oracle]"),
        ({"explore": []}, "explore: an empty list was given; allowed: one table or more"),
        ({"explore": [{"kind": "md"}]}, "[explore] kind: 'md' was given; allowed: 'dynamics'"),
        ({"explore": [LEAST["explore"][0], {"kind": "band", "final": 3}]}, "[explore 2] final: 3"),
        ({"explore": {"kind": "dynamics", "steps": 9}}, "steps: there is no such key; the nearest"),
        ({"explore": {"kind": "dynamics", "cell": True}}, 'it belongs to kind = "relaxation"'),
        ({"explore": {"kind": "dynamics", "temperature": [3]}}, "or a list of at least 2 (K;"),
        ({"learn": {"tolerance": -1}}, "[learn] tolerance: -1 was given; allowed: greater than 0"),
        ({"learn": {"n_steps": 3}}, "[learn] n_steps: there is no such key; it belongs under"),
        ({"observable": {"function": "a.py:f"}}, "[observable] tolerance: missing (by how much"),
        ({"observable": {"function": 3, "tolerance": 1.0}}, "[observable] function: 3 was given"),
        ({"observable": 3}, "observable: 3 was given; allowed: a section [observable] with keys"),
        ({"relevance": {}}, '[relevance] function: missing ("low_energy", or file and'),
        ({"learn": {"threshold": "vasp"}}, "threshold: 'vasp' was given; allowed: 'errors' or"),
        ({"law": {"kind": "energy_below"}}, "[law] minimum: missing (no structure has"),
        ({"law": {"kind": "newton"}}, "[law] kind: 'newton' was given; allowed: 'energy_below'"),
        ({"lern": {}}, "[lern]: there is no such section; the nearest is [learn]"),
        ({"data": {"train": "a"}}, "[data]: there is no such section; there are descriptor,"),
        ({"batch": 3}, "batch stands outside of its section: put it under [learn]"),
        ({"start": {"structure": {"crystl": "Cu"}}}, "crystl: there is no such key"),
        ({"descriptor": {"cutoff": -1}}, "[descriptor] cutoff: -1 was given"),
    ],
)
def test_errors_name_the_key(sections, message):
    assert message in message_of(**sections)


def test_braces_in_a_fault_are_no_places_to_fill():
    fault = {"type": "value_error", "msg": "Value error, {x} of {", "within": ()}
    assert _allowed(fault) == "Value error, {x} of {"


def test_what_is_missing_is_named():
    with pytest.raises(SettingsError) as caught:
        check_learn_settings({})
    assert str(caught.value).splitlines() == [
        "[start] is missing; needed is at least start.structures or start.structure",
        '[oracle] is missing; needed is at least oracle.kind, such as "tblite"',
        '[explore] is missing; needed is at least a table [[explore]] with kind = "dynamics"',
    ]


# -------------------------------------------------------------- structures, explorers, oracles


def test_starts(tmp_path):
    def start(**section):
        return make_start(settings_of(start=section).start)

    (crystal,), labelled = start(
        structure={"crystal": "Si", "a": 5.43, "cubic": True, "supercell": "2x1x1"}
    )
    assert (len(crystal), labelled) == (16, [])
    assert np.allclose(crystal.cell.lengths(), [10.86, 5.43, 5.43], rtol=1e-12)
    ((ethanol,), _) = start(structure={"molecule": "CH3CH2OH"})
    assert ethanol == molecule("CH3CH2OH")
    images = [copper(seed) for seed in range(4)]
    write(tmp_path / "some.xyz", images, format="extxyz")
    some = str(tmp_path / "some.xyz")
    found, labelled = start(structures=some, index="::2", labelled=[some])
    assert np.allclose([a.positions for a in found], [a.positions for a in images[::2]], atol=1e-8)
    assert all(a.calc is None for a in found)
    assert np.allclose(labelled[3].get_forces(), images[3].get_forces(), atol=1e-8)
    for section, words in [
        ({}, "needs either structures, files, or structure"),
        ({"structures": some, "structure": {"crystal": "Cu"}}, "needs either structures"),
        ({"structure": {}}, "needs either crystal or molecule"),
        ({"structure": {"molecule": "caffeine"}}, "ASE does not know 'caffeine'"),
        ({"structure": {"crystal": "NaCl", "a": 5.6}}, "[start] structure: "),
        ({"structure": {"crystal": "Cu", "supercell": "2x2"}}, "three whole numbers"),
    ]:
        with pytest.raises(SettingsError) as caught:
            start(**section)
        assert words in str(caught.value)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        start(structures=str(tmp_path / "nowhere.xyz"))


def copper(seed):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=seed)
    atoms.calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    atoms.calc = SinglePointCalculator(atoms, **results, stress=atoms.get_stress())
    return atoms


def test_explorers_that_read_files(tmp_path):
    write(tmp_path / "some.xyz", [copper(seed) for seed in range(4)], format="extxyz")
    some = str(tmp_path / "some.xyz")
    tables = [
        {"kind": "pool", "structures": some, "index": "1:", "n_most": 2},
        {"kind": "rattle", "structures": [some]},
        {"kind": "rattle"},
        {"kind": "band", "final": some, "n_images": 3},
    ]
    pool, rattle, plain, band = make_explorers(settings_of(explore=tables).explore)
    assert isinstance(pool, Pool)
    assert (len(pool.structures), pool.n_most, len(rattle.structures)) == (3, 2, 4)
    assert plain == Rattle()
    assert np.allclose(band.final.positions, copper(3).positions, atol=1e-8)
    wrong = settings_of(explore=[{"kind": "pool", "structures": some}, WRONG]).explore
    with pytest.raises(SettingsError, match=r"\[explore 2\] symbols is a formula, .* got 'Xy3'"):
        make_explorers(wrong)


WRONG = {"kind": "random", "symbols": "Xy3"}
ORACLES = {
    "emt": {"kind": "emt"},
    "ase": {"kind": "ase", "calculator": "ase.calculators.emt.EMT"},
    "function": {"kind": "python", "function": "label"},
    "maker": {"kind": "python", "function": "make"},
    "calculator": {"kind": "python", "function": "calculator"},
}


@pytest.mark.parametrize("name", ORACLES)
def test_oracles_label(name, tmp_path):
    (tmp_path / "beside.py").write_text("from ase.calculators.emt import EMT\n")
    (tmp_path / "oracle.py").write_text(
        "from beside import EMT\ncalculator = EMT()\n\n"
        "def make():\n    return EMT()\n\n"
        "def label(atoms):\n    atoms.calc = EMT()\n    return atoms\n"
    )
    table = dict(ORACLES[name])
    if "function" in table:
        table["function"] = f"{tmp_path / 'oracle.py'}:{table['function']}"
    oracle = make_oracle(settings_of(oracle=table).oracle[0])
    expected = copper(1)
    (label,) = label_all(oracle, [expected])
    assert label.reason == ""
    # The same code in another process: equal to the bit.
    assert np.array_equal(label.atoms.get_forces(), expected.get_forces())
    assert label.atoms.get_potential_energy() == expected.get_potential_energy()


def test_parameters_reach_the_calculator():
    table = {
        "kind": "ase",
        "calculator": "ase.calculators.lj.LennardJones",
        "parameters": {"sigma": 2.0, "epsilon": 0.2, "rc": 5.0},
    }
    (label,) = label_all(make_oracle(settings_of(oracle=table).oracle[0]), [molecule("N2")])
    table["parameters"]["epsilon"] = 0.4
    (twice,) = label_all(make_oracle(settings_of(oracle=table).oracle[0]), [molecule("N2")])
    ratio = twice.atoms.get_potential_energy() / label.atoms.get_potential_energy()
    np.testing.assert_allclose(ratio, 2.0, rtol=1e-12)


def test_tblite_labels():
    pytest.importorskip("tblite")
    energies = [
        label_all(make_oracle(settings_of(oracle=table).oracle[0]), [molecule("H2O")])[0]
        for table in ({"kind": "tblite"}, {"kind": "tblite", "method": "GFN1-xTB"})
    ]
    assert [one.reason for one in energies] == ["", ""]
    gfn2, gfn1 = (one.atoms.get_potential_energy() for one in energies)
    # Hartree of the tblite program: -5.0704 (GFN2), -5.7687 (GFN1), close to these geometries.
    assert -138.5 < gfn2 < -137.5
    assert -157.5 < gfn1 < -156.5


def test_gpaw_gets_its_parameters(monkeypatch):
    class GPAW:
        def __init__(self, **given):
            self.given = given

    monkeypatch.setitem(sys.modules, "gpaw", types.SimpleNamespace(GPAW=GPAW))
    monkeypatch.setattr(learn_parts, "find_spec", lambda name: name)
    mode = {"name": "pw", "ecut": 300}
    table = {"kind": "gpaw", "mode": mode, "kpts": [2, 2, 2], "parameters": {"nbands": -8}}
    made = make_oracle(settings_of(oracle=table).oracle[0])()
    assert made.given == {
        "txt": None, "mode": mode, "xc": "PBE", "kpts": [2, 2, 2], "nbands": -8,
    }  # fmt: skip


@pytest.mark.parametrize("library", ["tblite", "gpaw"])
def test_a_missing_library_names_the_extra(library, monkeypatch):
    monkeypatch.setattr(learn_parts, "find_spec", lambda name: None)
    table = {"kind": library} | ({"mode": "lcao"} if library == "gpaw" else {})
    with pytest.raises(ImportError, match=rf"pip install 'kernelpot\[{library}\]'"):
        make_oracle(settings_of(oracle=table).oracle[0])


def test_faults_of_oracles(tmp_path):
    path = tmp_path / "oracle.py"
    path.write_text("number = 3\n")
    for table, error, words in [
        ({"kind": "ase", "calculator": "EMT"}, SettingsError, "allowed: .module.Class."),
        ({"kind": "ase", "calculator": "ase.nowhere.EMT"}, ImportError, "ase.nowhere cannot be"),
        ({"kind": "ase", "calculator": "ase.build.EMT"}, SettingsError, "no class EMT in ase.buil"),
        ({"kind": "python", "function": "label"}, SettingsError, "allowed: .file.py:name"),
        ({"kind": "python", "function": "no.py:label"}, FileNotFoundError, "no file no.py"),
        ({"kind": "python", "function": f"{path}:label"}, SettingsError, "defines no label"),
        ({"kind": "python", "function": f"{path}:number"}, SettingsError, "but int"),
    ]:
        with pytest.raises(error, match=words):
            make_oracle(settings_of(oracle=table).oracle[0])
    table = {"kind": "files", "folder": "queue", "output": "vasprun.xml"}
    made = make_oracle(settings_of(oracle=table).oracle[0])
    assert made == FileOracle("queue", output="vasprun.xml")


def test_laws_and_observables(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def volume(frames):\n    return [atoms.get_volume() for atoms in frames]\n\n"
        "def too_small(atoms):\n    return max(12.0 - atoms.get_volume() / len(atoms), 0.0)\n\n"
        "number = 3\n"
    )
    broken, without = tmp_path / "broken.py", tmp_path / "without.py"
    broken.write_text("def volume(frames:\n")
    without.write_text("import nixda\n")
    tables = [
        {"kind": "energy_below", "minimum": -3.5, "tolerance": 0.1},
        {"kind": "python", "function": f"{path}:too_small", "tolerance": 0.1, "weight": 2.0},
    ]
    laws = make_laws(settings_of(law=tables).law)
    assert [law.weight for law in laws] == [1.0, 2.0]
    assert [law.tolerance for law in laws] == [0.1, 0.1]
    atoms = bulk("Cu", a=3.6, cubic=True)  # of 11.664 A^3 for each atom
    atoms.calc = SinglePointCalculator(atoms, energy=-15.0)  # -3.75 eV for each
    violation_sk = violations(laws, [atoms])
    np.testing.assert_allclose(violation_sk, [[0.25, 12.0 - 11.664]], rtol=1e-12)
    said = {"function": f"{path}:volume", "tolerance": 0.1}
    observable = make_observable(settings_of(observable=said).observable)
    np.testing.assert_allclose(observable([atoms, atoms]), 46.656)
    assert make_observable(settings_of().observable) is None
    assert make_laws(settings_of().law) == []
    said_too = {"function": f"{path}:too_small"}
    relevance = make_relevance(settings_of(relevance=said_too).relevance)
    np.testing.assert_allclose(relevance(atoms), 12.0 - 11.664)
    for function, error, words in [
        ("volume", SettingsError, "allowed: .file.py:name., the name of a function"),
        ("no.py:volume", FileNotFoundError, "no file no.py"),
        (f"{path}:density", SettingsError, "defines no density"),
        (f"{path}:number", SettingsError, "is no function, but int"),
        (f"{broken}:volume", SettingsError, "broken.py fails, SyntaxError: .*line 1"),
        (f"{without}:volume", SettingsError, "fails, ModuleNotFoundError: No module named 'nix"),
    ]:
        law = {"kind": "python", "function": function, "tolerance": 0.1}
        with pytest.raises(error, match=words) as raised:
            make_laws(settings_of(law=[tables[0], law]).law)
        assert str(raised.value).startswith("[law 2] function")
        with pytest.raises(error, match=words) as raised:
            make_observable(settings_of(observable={**said, "function": function}).observable)
        assert str(raised.value).startswith("[observable] function")
        with pytest.raises(error, match=words) as raised:
            make_relevance(settings_of(relevance={"function": function}).relevance)
        assert str(raised.value).startswith("[relevance] function")


# ------------------------------------------------------------------------------------- the runs


@pytest.fixture(scope="module")
def copper_run(tmp_path_factory):
    """A run from the beginning to its budget, undisturbed."""
    folder = tmp_path_factory.mktemp("learn")
    (folder / "copper.toml").write_text(COPPER)
    result = call("learn", folder / "copper.toml", "--folder", folder / "run")
    assert result.exit_code == 0, result.output
    return folder, result.stdout


def test_a_run_ends_with_a_model(copper_run):
    folder, said = copper_run
    for words in (
        "round 0: learned 4 labels (fit",
        "dynamics from 300 to 900 K",
        "rattling by 0.2 A",
        "inside 90 %",
        "7 of 7 labels are used",
        "7 labels were learned",
        "model.kpot",
    ):
        assert words in said
    assert len(labels_in(folder / "run")) == 7
    assert (folder / "run" / "settings.toml").read_text() == COPPER
    model = load(folder / "run" / "model.kpot")
    assert model.n_environments == 20
    image = copper(5)
    error = model.predict([image]).forces[0] - image.get_forces()
    assert np.sqrt(np.mean(error**2)) < 0.5 * np.sqrt(np.mean(image.get_forces() ** 2))


def test_a_second_start_says_how_to_go_on(copper_run):
    folder, _ = copper_run
    before = (folder / "run" / "journal.jsonl").read_bytes()
    line = fails_with("learn", folder / "copper.toml", "--folder", folder / "run")
    assert "has a run already: --resume goes on with it" in line
    assert (folder / "run" / "journal.jsonl").read_bytes() == before


def test_the_journal_alone_gives_the_model(copper_run):
    folder, _ = copper_run
    target = folder / "again.kpot"
    result = call("learn", "--replay", folder / "run", "-o", target)
    assert result.exit_code == 0, result.output
    ours, theirs = load(target), load(folder / "run" / "model.kpot")
    assert np.array_equal(ours.fitted_.weights_m, theirs.fitted_.weights_m)
    assert "--force" in fails_with("learn", "--replay", folder / "run", "-o", target)
    line = fails_with("learn", "--replay", folder, "-o", folder / "other.kpot")
    assert "has no settings.toml" in line


def test_ctrl_c_says_how_to_go_on_and_nothing_is_lost(copper_run, tmp_path, monkeypatch):
    folder, _ = copper_run
    append, labels = Journal.append, []

    def interrupted(journal, kind, content):
        entry = append(journal, kind, content)
        labels.extend([entry] if kind == "label" else [])
        if len(labels) == 5:
            raise KeyboardInterrupt
        return entry

    monkeypatch.setattr(Journal, "append", interrupted)
    where = ("learn", folder / "copper.toml", "--folder", tmp_path / "run")
    result = call(*where)
    assert result.exit_code == 130
    command = f"`kernelpot learn {folder / 'copper.toml'} --resume --folder {tmp_path / 'run'}`"
    assert result.stderr.strip() == (
        f"kernelpot: interrupted; what is labelled is kept, and {command} goes on"
    )
    kept = sum(entry.kind == "label" for entry in read_entries(tmp_path / "run"))
    assert kept == 5
    monkeypatch.setattr(Journal, "append", append)
    result = call(*where, "--resume")
    assert result.exit_code == 0, result.output
    assert labels_in(tmp_path / "run") == labels_in(folder / "run")
    # With another budget the same run goes further.
    result = call(*where, "--resume", "--labels", 8)
    assert result.exit_code == 0, result.output
    assert set(labels_in(folder / "run")) < set(labels_in(tmp_path / "run"))
    assert len(labels_in(tmp_path / "run")) == 8


def test_another_oracle_is_warned_of(copper_run, tmp_path):
    folder, _ = copper_run
    shutil.copytree(folder / "run", tmp_path / "run")
    config = tmp_path / "copper.toml"
    table = 'kind = "ase"\ncalculator = "ase.calculators.lj.LennardJones"'
    config.write_text(COPPER.replace('kind = "emt"', table))
    result = call("learn", config, "--folder", tmp_path / "run", "--resume")
    assert result.exit_code == 0, result.output
    assert "[oracle] is another than in" in result.stderr
    assert "LennardJones" in result.stderr
    result = call("learn", folder / "copper.toml", "--folder", tmp_path / "run", "--resume")
    assert "[oracle]" not in result.stderr


def test_runs_that_cannot_begin(copper_run, tmp_path):
    folder, _ = copper_run
    config = folder / "copper.toml"
    assert "kernelpot learn --example" in fails_with("learn")
    assert "belong to --replay" in fails_with("learn", config, "-o", tmp_path / "model.kpot")
    assert "leave the file" in fails_with("learn", config, "--replay", folder / "run")
    assert "no run in" in fails_with("learn", config, "--resume", "--folder", tmp_path / "none")
    assert "nowhere.toml" in fails_with("learn", tmp_path / "nowhere.toml")
    (tmp_path / "bad.toml").write_text("[start\n")
    assert "`kernelpot learn --example`" in fails_with("learn", tmp_path / "bad.toml")
    line = fails_with("learn", config, "--labels", 0, "--folder", tmp_path / "zero")
    assert "[learn] most_labels: 0 was given" in line
    assert not (tmp_path / "zero").exists()
    with Journal(folder / "run"):
        line = fails_with("learn", config, "--resume", "--folder", folder / "run")
    assert "open in this process already" in line
    other = tmp_path / "other.toml"
    other.write_text(COPPER.replace("n_tangents = 4", "n_tangents = 5"))
    result = call("learn", other, "--resume", "--folder", folder / "run")
    assert result.exit_code == 2
    assert "has another n_tangents" in result.stderr


def test_an_observable_and_laws_of_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def volume(frames):\n    return [atoms.get_volume() for atoms in frames]\n\n"
        "def never(atoms):\n    return 0.0\n"
    )
    config = tmp_path / "copper.toml"
    config.write_text(
        COPPER
        + f'\n[observable]\nfunction = "{path}:volume"\ntolerance = 0.1\n'
        + f'\n[[law]]\nkind = "python"\nfunction = "{path}:never"\ntolerance = 0.1\n'
    )
    result = call("learn", config, "--folder", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "\n  observable" in result.stdout
    history = History(read_entries(tmp_path / "run"))
    assert [law["name"] for law in history.settings["laws"]] == [f"{path}:never"]
    assert history.settings["observable_tolerance"] == 0.1
    dynamics = [one.explored[0] for one in history.rounds if one.explored]  # of a fixed cell
    means = [found["observable"]["mean"] for found in dynamics if found["observable"]]
    np.testing.assert_allclose(means, bulk("Cu", cubic=True).get_volume() * np.ones(len(means)))
    assert means


def test_an_oracle_that_always_fails_is_an_error_in_a_line(tmp_path):
    config, path = tmp_path / "copper.toml", tmp_path / "oracle.py"
    path.write_text("def label(atoms):\n    raise ValueError('no licence')\n")
    table = f'kind = "python"\nfunction = "{path}:label"'
    config.write_text(COPPER.replace('kind = "emt"', table))
    result = call("learn", config, "--folder", tmp_path / "run")
    assert result.exit_code == 2
    assert result.stdout.count("ValueError: no licence") == 4
    (line,) = result.stderr.strip().splitlines()
    assert "of the first round succeeded" in line
    assert "no licence" in line


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = call("learn", "--example")
    assert printed.exit_code == 0
    assert printed.stdout == learn_example()
    Path("config.toml").write_text(printed.stdout)
    result = call("learn", "config.toml", "--labels", "3")
    assert result.exit_code == 0, result.output
    assert "3 of 3 labels are used" in result.stdout
    assert load("run/model.kpot").species_ == (29,)
