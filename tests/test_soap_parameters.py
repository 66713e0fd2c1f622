"""SOAP's parameters: settings, scikit-learn's contract, and errors that teach."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ase import Atoms
from sklearn.base import clone

from kernelpot.descriptors import DscribePoly, ShiftedCosine, SmoothBump, Soap, Willatt
from kernelpot.descriptors.radial import SCALINGS, SMOOTHINGS
from kernelpot.descriptors.soap import COMPRESSIONS

SETTINGS = [
    Soap(cutoff=5.0),
    Soap(cutoff=4.7, n_max=np.int64(3), sigma=1 / 3, smoothing=SmoothBump(width=0.1 + 0.2)),
    Soap(cutoff=4, scaling=None, smoothing=DscribePoly(c=1.0, m=2.0, r0=3.9)),
    Soap(cutoff=5.0, smoothing=None, scaling=Willatt(radius=2.2, exponent=3.0)),
    Soap(cutoff=5.0, weighting={"function": "poly", "c": 1, "m": 2.5, "r0": 4.0, "w0": 0.1}),
    Soap(cutoff=5.0, compression="mu2", species_weights={"H": 0.1, 8: 1 / 3}, basis="polynomial"),
    Soap(cutoff=5.0, species_mixing=0.7, n_contracted=6, centre_similarity=0.9),
    Soap(cutoff=5.0, species_mixing={"H": [0.1, 1 / 3], 8: [1.0, -0.5]}),
]


@pytest.mark.parametrize("soap", SETTINGS, ids=repr)
def test_settings_round_trip(soap):
    text = json.dumps(soap.to_settings())
    again = Soap.from_settings(json.loads(text))
    assert again == soap
    assert json.dumps(again.to_settings()) == text
    assert again != clone(soap).set_params(sigma=0.77)


@pytest.mark.parametrize("soap", SETTINGS, ids=repr)
def test_scikit_learn_can_clone_it(soap):
    copied = clone(soap)
    assert copied == soap
    assert copied is not soap


def test_set_params():
    soap = Soap(cutoff=5.0).set_params(smoothing__width=0.7, n_max=4)
    assert soap.smoothing == ShiftedCosine(width=0.7)
    assert soap.get_params()["smoothing__width"] == 0.7
    assert soap.get_params(deep=False)["n_max"] == 4
    assert Soap(cutoff=5.0).smoothing == ShiftedCosine(width=1.0)
    soap.set_params(scaling__exponent=4.0, scaling=Willatt(radius=2.0))
    assert soap.scaling == Willatt(radius=2.0, exponent=4.0)
    with pytest.raises(ValueError, match="no parameter 'nmax'; there are cutoff, n_max"):
        soap.set_params(nmax=3)
    with pytest.raises(ValueError, match="has no parameter 'depth'"):
        soap.set_params(smoothing__depth=3)


def test_repr_shows_what_is_not_default():
    soap = Soap(cutoff=5.0, n_max=6, scaling=None)
    assert repr(soap) == "Soap(cutoff=5.0, n_max=6, scaling=None)"
    assert eval(repr(soap)) == soap


def test_every_weight_can_be_a_setting():
    for known in (SMOOTHINGS, SCALINGS):
        for name, cls in known.items():
            assert cls.__name__ == name


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"cutoff": 1.0}, "gto basis needs a cutoff above 1 A, got 1; raise it or"),
        ({"cutoff": -1.0, "basis": "polynomial"}, "cutoff must be a positive length"),
        ({"cutoff": "5"}, "cutoff must be a positive length in A, got '5'"),
        ({"sigma": 0.0}, "sigma must be a positive length in A, got 0.0"),
        ({"n_max": 0}, "n_max must be a whole number from 1"),
        ({"n_max": 4.0}, "n_max must be a whole number"),
        ({"l_max": 21}, "l_max must be a whole number from 0 to 20, got 21"),
        ({"l_max": -1}, "l_max must be a whole number from 0 to 20"),
        ({"basis": "bessel"}, "basis must be one of gto, polynomial, got 'bessel'"),
        ({"compression": "on"}, "compression must be one of off, crossover, mu1nu1, mu2"),
        ({"engine": "gpu"}, "engine must be one of auto, numba, dscribe"),
        ({"engine": "dscribe"}, "computes values only"),
        ({"smoothing": ShiftedCosine(width=6.0)}, r"at most the cutoff \(5 A\), got 6.0"),
        ({"smoothing": ShiftedCosine(width=0.0)}, "width must be above 0"),
        ({"smoothing": "cosine"}, "smoothing must be None or one of ShiftedCosine"),
        ({"scaling": ShiftedCosine()}, "scaling must be None or one of Willatt"),
        ({"weighting": {"w0": 1.0}, "scaling": None}, "weighting takes the place of"),
        ({"weighting": {"function": "cos"}}, "function must be one of poly, pow, exp"),
        ({"species_weights": {"H": 1.0}}, "species_weights has no entry for O; it names H"),
        ({"species_weights": {"H": 1.0, "O": -1.0}}, "weight of O must be a number from 0 on"),
        ({"species_weights": {"H": 1.0, "Xy": 1.0}}, "'Xy' is neither a chemical symbol"),
        ({"centre_similarity": -0.1}, "centre_similarity must be a number from 0"),
        ({"centre_similarity": True}, "centre_similarity must be a number from 0"),
        ({"species_mixing": 1.5}, "the similarity of any two species, from 0"),
        ({"species_mixing": "alike"}, "must be a number from 0 to 1, or a dict"),
        ({"species_mixing": {"H": [1.0]}}, "species_mixing has no entry for O; it names H"),
        ({"species_mixing": {"H": [1.0], "O": 1.0}}, "weights of O .* must be a list"),
        ({"species_mixing": {"H": [1.0], "O": []}}, "weights of O .* must be a list"),
        ({"species_mixing": {"H": [1.0], "O": [1.0, 0.5]}}, "as many weights .* H 1, O 2"),
        ({"species_mixing": 0.5, "compression": "mu2"}, "both say how channels are combined"),
        ({"n_contracted": 0}, "n_contracted must be a whole number from 1 to 64"),
        ({"n_contracted": 4, "compression": "mu1nu1"}, "both say how channels are combined"),
        ({"n_max": 20, "basis": "polynomial"}, "lower n_max or raise cutoff"),
    ],
    ids=str,
)
def test_errors_teach(params, message):
    with pytest.raises(ValueError, match=message):
        Soap(**{"cutoff": 5.0, **params}).bind((1, 8))


def test_errors_of_create_and_settings():
    atoms = Atoms("Si")
    with pytest.raises(ValueError, match="dscribe has neither smoothing=ShiftedCosine"):
        Soap(cutoff=5.0, engine="dscribe").create(atoms)
    with pytest.raises(ValueError, match="mixes up the species weights of mu2"):
        Soap(
            cutoff=5.0, smoothing=None, scaling=None, basis="polynomial", compression="mu2",
            species_weights={"Si": 1.0}, engine="dscribe",
        ).create(atoms)  # fmt: skip
    with pytest.raises(ValueError, match="dscribe does not mix species"):
        Soap(cutoff=5.0, smoothing=None, scaling=None, species_mixing=0.5, engine="dscribe").create(
            atoms
        )
    with pytest.raises(ValueError, match="the structure has Si, the descriptor knows H"):
        Soap(cutoff=5.0).create(atoms, species=["H"])
    with pytest.raises(ValueError, match="no species; give the atomic numbers"):
        Soap(cutoff=5.0).bind([])
    with pytest.raises(ValueError, match=r"unknown \['radius'\]"):
        Soap.from_settings({"cutoff": 5.0, "radius": 2.0})
    with pytest.raises(ValueError, match="need cutoff"):
        Soap.from_settings({})
    with pytest.raises(ValueError, match="smoothing must be one of ShiftedCosine"):
        Soap.from_settings({"cutoff": 5.0, "smoothing": {"name": "Step"}})


def test_features_are_as_many_as_dscribe_has():
    for compression, expected in zip(COMPRESSIONS, (1200, 432, 768, 144), strict=True):
        bound = Soap(cutoff=5.0, n_max=8, l_max=3, compression=compression).bind((8, 1, 6))
        assert bound.species == (1, 6, 8)
        assert bound.cutoff == 5.0
        assert bound.n_features == expected
