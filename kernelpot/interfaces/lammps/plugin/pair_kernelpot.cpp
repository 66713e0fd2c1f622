// SPDX-License-Identifier: GPL-2.0-only
// Pair style kernelpot: see pair_kernelpot.h.

#include "pair_kernelpot.h"

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "update.h"

#include <cmath>
#include <cstdio>
#include <cstring>

using namespace LAMMPS_NS;

// Centres that are handed over at once: enough that a call from C to Python and back (a fraction of
// a millisecond) does not count, few enough that memory does not grow with the number of atoms.
static constexpr int BLOCK = 2048;

static kernelpot_open_t engine_open = nullptr;
static kernelpot_evaluate_t engine_evaluate = nullptr;
static kernelpot_close_t engine_close = nullptr;

extern "C" void kernelpot_connect(kernelpot_open_t open, kernelpot_evaluate_t evaluate,
                                  kernelpot_close_t close)
{
  engine_open = open;
  engine_evaluate = evaluate;
  engine_close = close;
}

/* ---------------------------------------------------------------------- */

PairKernelpot::PairKernelpot(LAMMPS *lmp)
    : Pair(lmp), handle(-1), has_novelty(0), novelty_read(false), novelty_triggered(false),
      novelty_flag(0), cutoff(0.0), least(0.0)
{
  single_enable = 0;
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  // The virial is summed from each centre's part, which the virial per atom needs anyway.
  no_virial_fdotr_compute = 1;
  centroidstressflag = CENTROID_NOTAVAIL;
}

PairKernelpot::~PairKernelpot()
{
  if (copymode) return;
  close();
  if (allocated) {
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }
}

void PairKernelpot::close()
{
  if (handle >= 0 && engine_close) engine_close(handle);
  handle = -1;
}

/* ----------------------------------------------------------------------
   pair_style kernelpot
------------------------------------------------------------------------- */

void PairKernelpot::settings(int narg, char **)
{
  if (narg != 0)
    error->all(FLERR, "pair_style kernelpot takes no arguments: model file and elements are those "
                      "of pair_coeff * * model.kpot Si O");
  if (strcmp(update->unit_style, "metal") != 0)
    error->all(FLERR, "pair_style kernelpot needs units metal (eV, angstrom), not units {}",
               update->unit_style);
  if (!engine_open)
    error->all(FLERR, "pair_style kernelpot is loaded without kernelpot: run the input by "
                      "'kernelpot lammps in.file', or from Python with "
                      "kernelpot.interfaces.lammps.connect(lmp)");
}

/* ----------------------------------------------------------------------
   pair_coeff * * model.kpot element of type 1, element of type 2, ...
------------------------------------------------------------------------- */

void PairKernelpot::coeff(int narg, char **arg)
{
  const int n_types = atom->ntypes;
  if (narg != 3 + n_types || strcmp(arg[0], "*") != 0 || strcmp(arg[1], "*") != 0)
    error->all(FLERR, "pair_style kernelpot needs pair_coeff * * model.kpot and an element, or "
                      "NULL, for each of the {} atom types", n_types);
  if (!allocated) {
    allocated = 1;
    memory->create(setflag, n_types + 1, n_types + 1, "pair:setflag");
    memory->create(cutsq, n_types + 1, n_types + 1, "pair:cutsq");
    map = new int[n_types + 1];
  }
  map_element2type(narg - 3, arg + 3);

  close();
  char message[KERNELPOT_MESSAGE] = "";
  numbers.assign(nelements, 0);
  const int status = engine_open(arg[2], nelements, elements, numbers.data(), &cutoff, &least,
                                 &has_novelty, message);
  agree(status, message);
  handle = status;
}

void PairKernelpot::init_style()
{
  if (force->newton_pair == 0)
    error->all(FLERR, "pair_style kernelpot needs newton pair on: ghosts have forces");
  for (int k = 1; k < 4; k++)
    if (atom->molecular != Atom::ATOMIC && force->special_lj[k] == 0.0 &&
        force->special_coul[k] == 0.0)
      error->all(FLERR, "pair_style kernelpot needs all neighbours, but special_bonds takes bonded "
                        "ones off the list: use special_bonds lj/coul 1.0 1.0 1.0");
  neighbor->add_request(this, NeighConst::REQ_FULL);
}

double PairKernelpot::init_one(int i, int j)
{
  if (setflag[i][j] == 0) error->all(FLERR, "All pair coeffs are not set");
  return cutoff;
}

/* ---------------------------------------------------------------------- */

void PairKernelpot::compute(int eflag, int vflag)
{
  ev_init(eflag, vflag);
  place.assign(atom->nlocal + atom->nghost, -1);
  const bool wanted = novelty_read && (!novelty_triggered || novelty_flag);
  if (wanted) novelty.assign(atom->nmax, 0.0);

  char message[KERNELPOT_MESSAGE] = "";
  int status = 0;
  for (int first = 0; first < list->inum && status >= 0;) {
    first = gather(first, message);
    if (first < 0)
      status = -1;
    else if (block.first_n.size() > 1)
      status = engine_evaluate(handle, block.atoms.size(), block.first_n.size() - 1,
                               block.i_p.size(), block.numbers.data(), block.i_p.data(),
                               block.j_p.data(), block.D_pc.data(), block.r_p.data(),
                               block.first_n.data(), block.energies.data(), block.forces.data(),
                               block.strain.data(),
                               wanted ? block.novelty.data() : nullptr, message);
    if (status >= 0) scatter(wanted);
    for (int atom_of : block.atoms) place[atom_of] = -1;
  }
  agree(status, message);
}

/* ----------------------------------------------------------------------
   fill the block with centres from `first` on; returns the next one, or -1 with a message
------------------------------------------------------------------------- */

int PairKernelpot::gather(int first, char *message)
{
  double **x = atom->x;
  int *type = atom->type;
  auto &b = block;
  b.atoms.clear();
  b.numbers.clear();
  b.i_p.clear();
  b.j_p.clear();
  b.D_pc.clear();
  b.r_p.clear();
  b.first_n.assign(1, 0);

  auto enter = [&](int i) {
    place[i] = b.atoms.size();
    b.atoms.push_back(i);
    b.numbers.push_back(numbers[map[type[i]]]);
  };
  int next = first;
  for (; next < list->inum && (int) b.atoms.size() < BLOCK; next++) {
    const int i = list->ilist[next];
    if (map[type[i]] >= 0) enter(i);
  }
  const int n_centres = b.atoms.size();
  for (int k = 0; k < n_centres; k++) {
    const int i = b.atoms[k];
    const int *neighbours = list->firstneigh[i];
    for (int jj = 0; jj < list->numneigh[i]; jj++) {
      const int j = neighbours[jj] & NEIGHMASK;
      if (map[type[j]] < 0) continue;
      double D[3], square = 0.0;
      for (int c = 0; c < 3; c++) {
        D[c] = x[j][c] - x[i][c];
        square += D[c] * D[c];
      }
      // The list of LAMMPS reaches further by its skin.
      if (square >= cutoff * cutoff) continue;
      if (!(square >= least * least)) {    // or not a number
        snprintf(message, KERNELPOT_MESSAGE,
                 "atoms %lld and %lld are %.3g A apart (less than %g A): one of them stands there "
                 "twice, or the simulation has exploded", (long long) atom->tag[i],
                 (long long) atom->tag[j], std::sqrt(square), least);
        return -1;
      }
      if (place[j] < 0) enter(j);
      b.i_p.push_back(k);
      b.j_p.push_back(place[j]);
      b.D_pc.insert(b.D_pc.end(), D, D + 3);
      b.r_p.push_back(std::sqrt(square));
    }
    b.first_n.push_back(b.i_p.size());
  }
  b.energies.resize(n_centres);
  b.novelty.resize(n_centres);
  b.strain.resize(9 * n_centres);
  b.forces.resize(3 * b.atoms.size());
  return next;
}

/* ----------------------------------------------------------------------
   add the block's results; LAMMPS sends the forces on ghosts home
------------------------------------------------------------------------- */

void PairKernelpot::scatter(bool wanted)
{
  double **f = atom->f;
  for (size_t k = 0; k < block.atoms.size(); k++)
    for (int c = 0; c < 3; c++) f[block.atoms[k]][c] += block.forces[3 * k + c];

  // LAMMPS's order: xx yy zz xy xz yz; its virial is minus the derivative by strain.
  static constexpr int ENTRY[6] = {0, 4, 8, 1, 2, 5};
  for (size_t k = 0; k + 1 < block.first_n.size(); k++) {
    const int i = block.atoms[k];
    if (wanted) novelty[i] = block.novelty[k];
    if (eflag_global) eng_vdwl += block.energies[k];
    if (eflag_atom) eatom[i] += block.energies[k];
    for (int v = 0; v < 6; v++) {
      const double part = -block.strain[9 * k + ENTRY[v]];
      if (vflag_global) virial[v] += part;
      if (vflag_atom) vatom[i][v] += part;
    }
  }
}

/* ----------------------------------------------------------------------
   an error of one process ends all of them, with its message
------------------------------------------------------------------------- */

void PairKernelpot::agree(int status, const char *message)
{
  int mine = status < 0 ? comm->me : comm->nprocs;
  int first = 0;
  MPI_Allreduce(&mine, &first, 1, MPI_INT, MPI_MIN, world);
  if (first == comm->nprocs) return;
  char text[KERNELPOT_MESSAGE] = "";
  if (comm->me == first) strncpy(text, message, KERNELPOT_MESSAGE - 1);
  MPI_Bcast(text, KERNELPOT_MESSAGE, MPI_CHAR, first, world);
  error->all(FLERR, "pair_style kernelpot: {}", text);
}

/* ----------------------------------------------------------------------
   fix ID all pair N kernelpot novelty 1: computed on every Nth step; with 0 on every step
------------------------------------------------------------------------- */

void *PairKernelpot::extract(const char *name, int &dimension)
{
  dimension = 0;
  if (strcmp(name, "novelty_flag") != 0) return nullptr;
  novelty_triggered = true;
  return &novelty_flag;
}

void *PairKernelpot::extract_peratom(const char *name, int &n_columns)
{
  if (strcmp(name, "novelty") != 0) return nullptr;
  if (handle >= 0 && !has_novelty)
    error->all(FLERR, "pair_style kernelpot: novelty compares environments with inducing ones, "
                      "which a linear kernel does not do: fit with zeta of 2 or more");
  n_columns = 0;
  novelty_read = true;
  if ((int) novelty.size() < atom->nmax) novelty.resize(atom->nmax, 0.0);
  return novelty.data();
}

double PairKernelpot::memory_usage()
{
  const auto &b = block;
  double bytes = Pair::memory_usage();
  bytes += sizeof(int) * (place.capacity() + b.atoms.capacity());
  bytes += sizeof(intptr_t) * (b.numbers.capacity() + b.i_p.capacity() + b.j_p.capacity() +
                               b.first_n.capacity());
  bytes += sizeof(double) * (b.D_pc.capacity() + b.r_p.capacity() + b.energies.capacity() +
                             b.forces.capacity() + b.strain.capacity() + b.novelty.capacity() +
                             novelty.capacity());
  return bytes;
}

/* ----------------------------------------------------------------------
   the plugin's door; the struct is that of LAMMPS's lammpsplugin.h
------------------------------------------------------------------------- */

extern "C" {

struct Plugin {
  const char *version, *style, *name, *info, *author;
  void *(*creator)(void *);
  void *handle;
};

void lammpsplugin_init(void *lmp, void *handle, void *registers)
{
  Plugin plugin = {((LAMMPS *) lmp)->version, "pair", "kernelpot", "kernelpot pair style",
                   "the kernelpot developers",
                   [](void *owner) -> void * { return new PairKernelpot((LAMMPS *) owner); },
                   handle};
  ((void (*)(Plugin *, void *)) registers)(&plugin, lmp);
}
}
