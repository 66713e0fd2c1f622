"""Input files of LAMMPS for `test_lammps`: every number with all its digits."""

import numpy as np

HEAD = """
clear
units metal
atom_style charge
boundary {boundary}
newton on
read_data {data}
"""

TAIL = """
compute pe all pe/atom pair
compute vir all stress/atom NULL pair
dump out all custom 1 {out}.dump id fx fy fz c_pe c_vir[*]
dump_modify out format float %.17g sort id first yes
thermo_modify norm no
run 0
undump out
print "$(pe:%.17g) $(pxx:%.17g) $(pyy:%.17g) $(pzz:%.17g) $(pxy:%.17g) $(pxz:%.17g) $(pyz:%.17g)" &
  file {out}.txt screen no
"""


def write_data(path, atoms, numbers, charges=None):
    """Write a data file of a structure whose cell is lower triangular; types in the given order."""
    cell = atoms.cell.array
    assert np.allclose(cell, np.tril(cell), atol=0)
    if charges is None:
        charges = np.zeros(len(atoms))
    lines = [
        "",
        "",
        f"{len(atoms)} atoms",
        f"{len(numbers)} atom types",
        f"0 {cell[0, 0]:.17g} xlo xhi",
        f"0 {cell[1, 1]:.17g} ylo yhi",
        f"0 {cell[2, 2]:.17g} zlo zhi",
    ]
    if np.count_nonzero(cell) > 3:
        lines.append(f"{cell[1, 0]:.17g} {cell[2, 0]:.17g} {cell[2, 1]:.17g} xy xz yz")
    lines += ["", "Masses", ""]
    lines += [f"{k + 1} {mass:.17g}" for k, mass in enumerate(_masses(numbers))]
    lines += ["", "Atoms # charge", ""]
    for n, (z, q, r) in enumerate(zip(atoms.numbers, charges, atoms.positions, strict=True)):
        place = " ".join(f"{x:.17g}" for x in r)
        lines.append(f"{n + 1} {list(numbers).index(z) + 1} {q:.17g} {place}")
    path.write_text("\n".join(lines) + "\n")


def _masses(numbers):
    from ase.data import atomic_masses

    return [atomic_masses[z] for z in numbers]


def case(folder, name, atoms, numbers, pair, charges=None):
    """One block of input, and its data file; it leaves ``name.dump`` and ``name.txt``."""
    write_data(folder / f"{name}.data", atoms, numbers, charges)
    boundary = " ".join("p" if periodic else "f" for periodic in atoms.pbc)
    head = HEAD.format(boundary=boundary, data=folder / f"{name}.data")
    return head + pair + TAIL.format(out=folder / name)


def results(folder, name):
    """Energy, pressure tensor (bar, LAMMPS's order), and per atom: forces, energy, virial."""
    energy, *pressure = np.loadtxt(folder / f"{name}.txt")
    table = np.loadtxt(folder / f"{name}.dump", skiprows=9, ndmin=2)
    np.testing.assert_array_equal(table[:, 0], np.arange(1, len(table) + 1))
    return energy, np.array(pressure), table[:, 1:4], table[:, 4], table[:, 5:11]
