"""The public surface, and rules of the house that a script can check."""

import ast
import pathlib
import subprocess
import sys

import pytest

import kernelpot
from kernelpot import _jit, active

ROOT = pathlib.Path(kernelpot.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))


def test_public_names_are_frozen():
    assert set(kernelpot.__all__) == {
        "ActiveLearner",
        "Calculator",
        "KernelPotential",
        "PairSplines",
        "ShiftedCosine",
        "SmoothBump",
        "Soap",
        "SparseGPRegressor",
        "Willatt",
        "datasets",
        "load",
        "read_images",
    }
    for name in kernelpot.__all__:
        assert hasattr(kernelpot, name)
        assert name in dir(kernelpot)
    with pytest.raises(AttributeError, match="no attribute 'Soup'"):
        _ = kernelpot.Soup


def test_names_of_active_learning_are_frozen():
    assert set(active.__all__) == {
        "ActiveLearner",
        "BiasedDynamics",
        "Candidate",
        "Dynamics",
        "Exploration",
        "Explorer",
        "FileOracle",
        "Label",
        "Law",
        "LearnerSettings",
        "NudgedElasticBand",
        "OnTheFlyCalculator",
        "Outcome",
        "Pool",
        "RandomStructures",
        "Rattle",
        "Relaxation",
        "UnsampledDirections",
        "Verdict",
        "energy_below",
        "label_all",
        "low_energy",
        "replay",
        "sum_differs",
    }
    for name in active.__all__:
        assert getattr(active, name).__name__ == name
        assert name in dir(active)
    assert kernelpot.ActiveLearner is active.ActiveLearner
    with pytest.raises(AttributeError, match="no attribute 'Activ'"):
        _ = active.Activ


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_house_rules(path):
    text = path.read_text()
    assert path.name != "utils.py"
    tree = ast.parse(text)
    if text.strip():
        assert ast.get_docstring(tree), "a module says what it is"
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            # user input is refused with an error that teaches
            raise AssertionError(f"{path.name}:{node.lineno} asserts")
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node) or _is_member(tree, node), f"{node.name} says nothing"
    for word in ("TODO", "FIXME", "XXX", "fastmath=True", "neighbors_"):
        assert word not in text


def _is_member(tree, node):
    """Whether a function stands inside another function, where its name says enough."""
    return any(
        isinstance(parent, (ast.FunctionDef,)) and node in ast.walk(parent) and parent is not node
        for parent in ast.walk(tree)
    )


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import kernelpot.interfaces.cli", ("numba", "sklearn", "matplotlib", "dscribe")),
        # Not gpaw, which `ase.io` imports where it is installed.
        ("from kernelpot import *", ("matplotlib", "dscribe", "tblite")),
        ("from kernelpot.active import *", ("matplotlib", "dscribe", "tblite")),
    ],
)
def test_heavy_modules_are_imported_when_used(code, heavy):
    code += f"; import sys; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_functions_compile_where_no_folder_can_be_written(monkeypatch):
    """Clusters have read-only installations and home folders: Numba refused to decorate there."""
    from numba.core import caching

    cache = getattr(caching, "CacheImpl", None) or caching._CacheImpl  # before Numba 0.62
    monkeypatch.setattr(cache, "_locator_classes", [])

    @_jit.njit
    def double(x):
        return 2.0 * x

    assert double(1.5) == 3.0
