"""Weights and radial basis: derivatives, continuity, and the table."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kernelpot.descriptors import Soap, basis, radial
from kernelpot.descriptors._soap_dscribe import gto_basis, polynomial_basis
from kernelpot.descriptors._spline import radial_and_slope
from kernelpot.descriptors.radial import (
    SCALINGS,
    SMOOTHINGS,
    ShiftedCosine,
    SmoothBump,
    Willatt,
    from_weighting,
    weight_and_derivative,
)
from tests.naive import soap as naive

CUTOFF = 5.0
PADDED = 6.5
# Parameters of classes that cannot be made without; a class that is missing here fails.
REQUIRED = {
    "DscribePoly": {"c": 1.3, "m": 2.0, "r0": 4.5},
    "DscribePow": {"c": 1.3, "d": 0.8, "m": 3.0, "r0": 2.0},
    "DscribeExp": {"c": 1.3, "d": 0.5, "r0": 2.5},
}
WEIGHTS = [cls(**REQUIRED.get(name, {})) for name, cls in [*SMOOTHINGS.items(), *SCALINGS.items()]]
WEIGHTS += [ShiftedCosine(width=CUTOFF), SmoothBump(width=3.0), Willatt(radius=3.1, exponent=3.5)]


def reach(part):
    return part.reach(CUTOFF, PADDED) if hasattr(part, "reach") else PADDED


@pytest.mark.parametrize("part", WEIGHTS, ids=repr)
def test_derivative_is_the_slope(part):
    part.check(CUTOFF)
    r_p = np.linspace(0.3, reach(part) - 1e-3, 401)
    if isinstance(part, ShiftedCosine):  # its second derivative jumps where the switch begins
        r_p = r_p[np.abs(r_p - (CUTOFF - part.width)) > 1e-3]
    h = 1e-5
    _, dw_p = part.value_and_derivative(r_p, CUTOFF)
    up, down = (part.value_and_derivative(r_p + s, CUTOFF)[0] for s in (h, -h))
    np.testing.assert_allclose(dw_p, (up - down) / (2 * h), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", SMOOTHINGS)
def test_smooth_cutoffs_end_without_a_step(name):
    part = SMOOTHINGS[name](**REQUIRED.get(name, {}))
    end = part.reach(CUTOFF, PADDED)
    if name in ("DscribePow", "DscribeExp"):  # these do, by dscribe's definition
        assert end == PADDED
        assert weight_and_derivative(part, None, np.array([end]), CUTOFF, end)[0][0] == 0.0
        return
    w_p, dw_p = weight_and_derivative(
        part, None, np.array([end - 1e-6, end, end + 0.3]), CUTOFF, end
    )
    np.testing.assert_allclose(w_p, 0.0, atol=1e-10)
    np.testing.assert_allclose(dw_p, 0.0, atol=1e-4)


@pytest.mark.parametrize("scaling", [None, *(cls() for cls in SCALINGS.values())], ids=repr)
@pytest.mark.parametrize("name", SMOOTHINGS)
def test_product_rule(name, scaling):
    part = SMOOTHINGS[name](**REQUIRED.get(name, {}))
    end = part.reach(CUTOFF, PADDED)
    r_p, h = np.linspace(0.4, end - 0.013, 97), 1e-5
    _, dw_p = weight_and_derivative(part, scaling, r_p, CUTOFF, end)
    up, down = (weight_and_derivative(part, scaling, r_p + s, CUTOFF, end)[0] for s in (h, -h))
    np.testing.assert_allclose(dw_p, (up - down) / (2 * h), rtol=1e-6, atol=2e-5)


def test_weights_equal_their_formulas():
    r_p = np.linspace(0.1, 4.99, 50)
    for width in (0.5, 2.0):
        for cls, formula in (
            (ShiftedCosine, naive.shifted_cosine),
            (SmoothBump, naive.smooth_bump),
        ):
            expected = [formula(r, CUTOFF, width) for r in r_p]
            got, _ = cls(width=width).value_and_derivative(r_p, CUTOFF)
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-15)
    expected = [naive.willatt(r, 2.5, 2.0) for r in r_p]
    np.testing.assert_allclose(Willatt().value_and_derivative(r_p, CUTOFF)[0], expected, rtol=1e-15)


def test_weight_of_the_central_atom():
    zero = np.zeros(1)
    for part in (ShiftedCosine(), SmoothBump(), Willatt(), ShiftedCosine(width=CUTOFF)):
        assert part.value_and_derivative(zero, CUTOFF)[0][0] == 1.0
    pow_half = radial.DscribePow(c=1.0, d=2.0, m=0.5, r0=1.0)  # infinite slope, no warning
    assert pow_half.value_and_derivative(zero, CUTOFF)[0][0] == 0.5


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (ShiftedCosine(width=0.0), "ShiftedCosine: width must be above 0"),
        (ShiftedCosine(width=5.1), "at most the cutoff"),
        (SmoothBump(width=-1.0), "SmoothBump: width"),
        (Willatt(radius=0.0), "Willatt: radius must be a positive number"),
        (Willatt(exponent=0.5), "exponent must be at least 1"),
        (radial.DscribePoly(c=-1.0, m=2.0, r0=4.0), "c must not be negative"),
        (radial.DscribePoly(c=1.0, m=2.0, r0=0.0), "r0 must be a positive number"),
        (radial.DscribePow(c=1.0, d=0.0, m=2.0, r0=1.0), "d must be a positive number"),
        (radial.DscribeExp(c=1.0, d=-1.0, r0=1.0), "d must not be negative"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value),
)
def test_impossible_parameters_are_named(part, message):
    with pytest.raises(ValueError, match=message):
        part.check(CUTOFF)


@pytest.mark.parametrize(
    ("weighting", "message"),
    [
        ({"function": "gauss"}, "poly, pow, exp"),
        ({"function": "poly", "c": 1, "m": 2}, r"missing \['r0'\]"),
        ({"function": "exp", "c": 1, "d": 2, "r0": 1, "m": 2}, r"unknown \['m'\]"),
        ({"w0": -1.0}, "w0 must not be negative"),
    ],
)
def test_weighting_dictionary_is_checked(weighting, message):
    with pytest.raises(ValueError, match=message):
        from_weighting(weighting)


def gto(n_max=8, l_max=6, sigma=0.5):
    alpha_ln, beta_lnk = gto_basis(CUTOFF, n_max, l_max)
    return lambda r_p: basis.gto_functions(alpha_ln, beta_lnk, sigma, r_p)


def polynomial(n_max=8, l_max=6, sigma=0.5):
    nodes_x, basis_nx = polynomial_basis(CUTOFF, n_max)
    return lambda r_p: basis.polynomial_functions(nodes_x, basis_nx, CUTOFF, sigma, l_max, r_p)


@pytest.mark.parametrize("make", [gto, polynomial])
@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.0])
def test_derivatives_of_the_radial_functions(make, sigma):
    functions = make(4, 5, sigma)
    r_p, h = np.linspace(0.0, 6.0, 31)[1:], 1e-5
    _, first, second = functions(r_p)
    up, down = functions(r_p + h), functions(r_p - h)
    for exact, k in ((first, 0), (second, 1)):
        numerical = (up[k] - down[k]) / (2 * h)
        np.testing.assert_allclose(numerical, exact, rtol=0, atol=1e-8 * np.abs(exact).max())


@pytest.mark.parametrize(("make", "name"), [(gto, "gto"), (polynomial, "polynomial")])
def test_radial_functions_are_the_integrals(make, name):
    g = getattr(naive, f"{name}_basis")(CUTOFF, 3, 4)
    end = CUTOFF if name == "polynomial" else 3 * CUTOFF
    r_p = np.array([0.2, 1.1, 2.9, 5.2])
    values = make(3, 4, 0.5)(r_p)[0]
    for k, r in enumerate(r_p):
        for ell in range(5):
            for n in range(3):
                integral = naive.radial_integral(g[ell][n], ell, r, 0.5, end)
                assert values[k, ell, n] * r**ell == pytest.approx(integral, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("make", [gto, polynomial])
def test_table_is_accurate_small_and_consistent(make):
    functions, n_pad, l_max = make(8, 8), 8, 8
    table = basis.tabulate(functions, CUTOFF, n_pad)
    assert table.values.nbytes < 600_000

    # Of a plan, only what concerns the table is used here.
    plan = (
        Soap(cutoff=CUTOFF)
        .bind([14])
        ._plan._replace(
            table=table.values.ravel(),
            row=(l_max + 1) * n_pad,
            n_nodes=len(table.values),
            inverse_step=1.0 / table.step,
        )
    )
    r_p = np.linspace(0.01, CUTOFF - 1e-9, 333)
    f_pj, df_pj = np.empty((2, len(r_p), plan.row))
    for p, r in enumerate(r_p):
        radial_and_slope(plan, 0, r, 1.0, 0.0, f_pj[p], df_pj[p], 0)
    exact = functions(r_p).reshape(3, len(r_p), l_max + 1, n_pad)
    power = (r_p / CUTOFF)[:, None, None] ** np.arange(l_max + 1)[:, None]
    for got, want, allowed in ((f_pj, exact[0], 1e-11), (df_pj, exact[1], 1e-8)):
        error = np.abs(got.reshape(want.shape) - want) * power
        assert np.all(error.max(axis=(0, 2)) < allowed * np.abs(want * power).max(axis=(0, 2)))
    # The slope is that of the interpolant itself, also across a node.
    h, r = 1e-4, 40 * table.step
    above, below, slope = (np.empty(plan.row) for _ in range(3))
    scratch = np.empty(plan.row)
    for q in (r, r + 0.3 * table.step):
        radial_and_slope(plan, 0, q + h, 1.0, 0.0, above, scratch, 0)
        radial_and_slope(plan, 0, q - h, 1.0, 0.0, below, scratch, 0)
        radial_and_slope(plan, 0, q, 1.0, 0.0, scratch, slope, 0)
        np.testing.assert_allclose(slope, (above - below) / (2 * h), rtol=1e-5, atol=1e-4)


def test_many_orbitals_do_not_make_the_table_grow_without_end():
    table = basis.tabulate(gto(10, 8, 0.4), CUTOFF, 12)
    assert len(table.values) < 600


def test_orbitals_that_cannot_be_orthonormalised():
    with pytest.raises(ValueError, match="lower n_max or raise cutoff"):
        polynomial_basis(CUTOFF, 14)


def test_reach():
    assert ShiftedCosine().reach(CUTOFF, PADDED) == CUTOFF
    assert radial.DscribePoly(c=1.0, m=1.0, r0=9.0).reach(CUTOFF, PADDED) == PADDED
    assert math.isclose(radial.DscribePoly(c=1.0, m=1.0, r0=4.0).reach(CUTOFF, PADDED), 4.0)
