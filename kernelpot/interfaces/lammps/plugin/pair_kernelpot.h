// SPDX-License-Identifier: GPL-2.0-only
// Pair style kernelpot: LAMMPS keeps atoms, ghosts and neighbours, kernelpot computes energies and
// forces. A plugin; see LICENSE in this folder.

#ifndef LMP_PAIR_KERNELPOT_H
#define LMP_PAIR_KERNELPOT_H

#include "pair.h"

#include <cstdint>
#include <vector>

// What kernelpot gives to the plugin: functions of arrays, which know nothing of LAMMPS. A status
// below zero means failure, and `message` (KERNELPOT_MESSAGE bytes) says why.

#define KERNELPOT_MESSAGE 4096

extern "C" {

// Opens a model file for the given elements. Gives a handle, the elements' atomic numbers, the
// cutoff and the least distance of two atoms (angstrom), and whether the model has a novelty.
typedef int (*kernelpot_open_t)(const char *path, int n_elements, const char *const *elements,
                                intptr_t *numbers, double *cutoff, double *least, int *has_novelty,
                                char *message);

// Energies (eV) of the first n_centres of n_atoms atoms, forces (eV/angstrom) that these exert on
// all, each centre's 3x3 part of dE/dstrain (eV), and each centre's novelty unless it is null.
typedef int (*kernelpot_evaluate_t)(int handle, intptr_t n_atoms, intptr_t n_centres,
                                    intptr_t n_pairs, const intptr_t *numbers, const intptr_t *i_p,
                                    const intptr_t *j_p, const double *D_pc, const double *r_p,
                                    const intptr_t *first_n, double *energies, double *forces,
                                    double *strain, double *novelty, char *message);

typedef void (*kernelpot_close_t)(int handle);

void kernelpot_connect(kernelpot_open_t, kernelpot_evaluate_t, kernelpot_close_t);
}

namespace LAMMPS_NS {

class PairKernelpot : public Pair {
 public:
  PairKernelpot(class LAMMPS *);
  ~PairKernelpot() override;
  void compute(int, int) override;
  void settings(int, char **) override;
  void coeff(int, char **) override;
  void init_style() override;
  double init_one(int, int) override;
  void *extract(const char *, int &) override;
  void *extract_peratom(const char *, int &) override;
  double memory_usage() override;

 private:
  // Some centres and their neighbours, with indices of their own: centres first.
  struct Block {
    std::vector<int> atoms;    // index in LAMMPS of each
    std::vector<intptr_t> numbers, i_p, j_p, first_n;
    std::vector<double> D_pc, r_p;
    std::vector<double> energies, forces, strain, novelty;
  };

  int handle;
  int has_novelty;
  bool novelty_read;         // whether anybody reads it
  bool novelty_triggered;    // whether only where novelty_flag says so
  int novelty_flag;
  double cutoff, least;
  std::vector<intptr_t> numbers;    // atomic number of each element of `map`
  std::vector<int> place;           // index in the block of each atom of LAMMPS, or -1
  std::vector<double> novelty;      // of each local atom
  Block block;

  void close();
  int gather(int first, char *message);
  void scatter(bool wanted);
  void agree(int status, const char *message);
};

}    // namespace LAMMPS_NS

#endif
