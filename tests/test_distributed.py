"""Fits on a Dask cluster: the same weights, whoever does the work and whoever dies."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import threading

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits
from typer.testing import CliRunner

from kernelpot import KernelPotential, load, read_images
from kernelpot._machine import one_thread, side_by_side
from kernelpot.data import DataError, structures_from_atoms
from kernelpot.distributed import blocks_of, paths_of
from kernelpot.interfaces import cli
from kernelpot.workers import shares

MISSING = "needs Dask: pip install 'kernelpot[dask]'"
SIZES = {"n_environments": 8, "n_tangents": 3}
GIVEN = {"sigma_energy": 2e-3, "sigma_forces": 0.04, "sigma_stress": 1e-3, "delta": 5.0}
"""Where the data hardly tell them, the search for noise levels makes more of rounding than 1e-8."""
ROADS = ("file", "memory")


@pytest.fixture(scope="module")
def cluster():
    """Two workers, each a process with one thread."""
    distributed = pytest.importorskip("distributed", reason=MISSING)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.CRITICAL
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    import distributed

    with distributed.Client(cluster) as client:
        client.wait_for_workers(2)
        yield client


@pytest.fixture(scope="module")
def train_file(tmp_path_factory, emt_images):
    """Periodic cells of two sources, clusters, and an isolated atom of each species."""
    images = []
    for k, atoms in enumerate(emt_images[::2]):
        images.append(atoms.copy())
        results = dict(atoms.calc.results)
        if k % 3 == 0:
            images[-1].info["source"] = "coarse"
            results["energy"] += 2.0 * len(atoms)
        images[-1].calc = SinglePointCalculator(images[-1], **results)
    for symbol, energy in (("Cu", 0.3), ("Au", 0.4)):
        alone = Atoms(symbol, positions=[[0.0, 0.0, 0.0]])
        alone.calc = SinglePointCalculator(alone, energy=energy, forces=np.zeros((1, 3)))
        images.insert(4, alone)
    path = tmp_path_factory.mktemp("dask") / "train.xyz"
    write(path, images, format="extxyz")
    return path


@pytest.fixture(scope="module")
def model(emt_soap):
    """Makes unfitted models."""
    return lambda **more: KernelPotential(emt_soap, **(SIZES | GIVEN | more))


@pytest.fixture(scope="module")
def one_process(train_file, model):
    """What the others must be equal to."""
    return model().fit(read_images(train_file))


def images_of(road, path):
    return path if road == "file" else read_images(path)


def assert_same_fit(found, expected):
    scale = np.abs(expected.fitted_.weights_m).max()
    np.testing.assert_allclose(
        found.fitted_.weights_m, expected.fitted_.weights_m, rtol=0, atol=1e-8 * scale
    )
    assert found.source_shifts_ == {
        source: pytest.approx(shifts, rel=1e-8)
        for source, shifts in expected.source_shifts_.items()
    }
    assert found.leave_out_errors_ == pytest.approx(expected.leave_out_errors_, rel=1e-8)
    assert found.fitted_.noise == pytest.approx(expected.fitted_.noise, rel=1e-8)
    assert found.delta_ == pytest.approx(expected.delta_, rel=1e-8)
    assert found.log_evidence_ == pytest.approx(expected.log_evidence_, rel=1e-8)
    assert found.repulsion_ == expected.repulsion_
    assert found.baseline_.energies == pytest.approx(expected.baseline_.energies, rel=1e-12)
    ours, theirs = found.training_summary_, expected.training_summary_
    for exact in ("n_structures", "n_atoms", "n_labels", "data_hash"):
        assert ours[exact] == theirs[exact]
    assert ours["neighbours"] == pytest.approx(theirs["neighbours"], rel=1e-12)
    assert ours["volume"] == pytest.approx(theirs["volume"], rel=1e-12)
    for measured in ("mae", "rmse"):
        assert ours[measured] == pytest.approx(theirs[measured], rel=1e-8)
    assert [d["name"] for d in ours["doubts"]] == [d["name"] for d in theirs["doubts"]]


class Witness:
    """A client that notes what is sent, to whom and by which way."""

    def __init__(self, client):
        self.client, self.submitted, self.scattered = client, [], []

    def __getattr__(self, name):
        return getattr(self.client, name)

    def submit(self, function, *given, **options):
        # Futures are names of what lies on the workers already.
        self.submitted.append(pickle.dumps((function, _bare(given))))
        return self.client.submit(function, *given, **options)

    def scatter(self, data, **options):
        assert options["direct"], "not by way of the scheduler"
        self.scattered += [pickle.dumps(one) for one in data]
        return self.client.scatter(data, **options)


def _bare(given):
    from distributed import Future

    if isinstance(given, (list, tuple)) and not hasattr(given, "_fields"):
        return [_bare(one) for one in given]
    return "future" if isinstance(given, Future) else given


@pytest.mark.parametrize("road", ROADS)
def test_two_workers_give_the_weights_of_one_process(road, train_file, model, one_process, client):
    witness = Witness(client)
    told = []
    found = model(progress=lambda *stage: told.append(stage)).fit(
        images_of(road, train_file), client=witness
    )
    assert_same_fit(found, one_process)
    n = one_process.training_summary_["n_structures"]
    for stage in ("rows", "training errors", "distances") + ("reading",) * (road == "file"):
        done = [k for name, k, total in told if name == stage and total == n]
        assert done == sorted(done)
        assert done[-1] == n
        assert len(done) > 4, stage

    structures = structures_from_atoms(read_images(train_file))
    marks = [s.positions_nc.tobytes() for s in structures if s.n_atoms > 1]
    # No structure goes through the scheduler; from a file none leaves this process at all.
    assert not any(mark in sent for mark in marks for sent in witness.submitted)
    times = [sum(mark in sent for sent in witness.scattered) for mark in marks]
    assert times == [road == "memory"] * len(marks)


def test_a_fit_on_workers_goes_on_like_any_other(train_file, model, one_process, client, tmp_path):
    some = read_images(train_file)[:3]
    found = model().fit(str(train_file), client=client)
    found.save(tmp_path / "dask.kpot")
    np.testing.assert_allclose(
        load(tmp_path / "dask.kpot").predict(some, return_std=True).energy_std,
        one_process.predict(some, return_std=True).energy_std,
        rtol=1e-6,
    )


def test_noise_levels_are_found_on_workers_too(emt_images, emt_soap, client):
    one, two = (
        KernelPotential(emt_soap, **SIZES, sigma_stress=1e-3).fit(emt_images, **more)
        for more in ({}, {"client": client})
    )
    assert one.sigma_energy is None
    assert_same_fit(two, one)


@pytest.mark.parametrize("road", ROADS)
def test_a_worker_killed_half_way_loses_nothing(road, train_file, model, one_process, client):
    pids = client.run(os.getpid)
    killed = []

    def kill(stage, done, total):
        if stage == "rows" and 2 * done >= total and not killed:
            killed.append(next(iter(pids.values())))
            os.kill(killed[0], signal.SIGKILL)

    found = model(progress=kill).fit(images_of(road, train_file), client=client)
    assert killed
    assert_same_fit(found, one_process)
    client.wait_for_workers(2)
    assert killed[0] not in client.run(os.getpid).values()


def test_the_tree_is_fixed(train_file, model, client):
    first, again = (
        model().fit(images_of(road, train_file), client=client).fitted_.weights_m for road in ROADS
    )
    np.testing.assert_array_equal(first, again)


def test_labels_in_doubt_count_less_on_workers_too(train_file, model, client):
    images = read_images(train_file)
    images[7].calc.results["energy"] += 20.0
    alone, together = (model(robust=True).fit(images, **k) for k in ({}, {"client": client}))
    assert alone.doubts_
    assert together.doubts_[0].weight == pytest.approx(alone.doubts_[0].weight, rel=1e-6)
    assert_same_fit(together, alone)


def test_the_client_looks_closely_at_a_sample_only(train_file, model, client, monkeypatch):
    from kernelpot import workers

    fetched = []
    pick = workers.Workers.some

    def some(self, indices):
        fetched.append(set(indices))
        return pick(self, indices)

    monkeypatch.setattr(workers.Workers, "some", some)
    monkeypatch.setattr("kernelpot.summary._SOME", 5)
    few = model(selection_sample=6)
    few.fit(str(train_file), client=client)
    chosen, counted = fetched
    assert 1 < len(counted) <= 5, "in which the summary counts neighbours"
    assert 6 <= len(chosen) <= 8
    assert chosen > {4, 5}, "isolated atoms are always among them"
    assert_same_fit(few, model(selection_sample=6).fit(read_images(train_file)))


def test_one_thread_for_each_task(client):
    from kernelpot.workers import alone

    threads = client.submit(alone, threads_in_use, pure=False).result()
    assert threads == (1, 1)


def threads_in_use():
    """Of BLAS (the most of any library), and those among which work is divided."""
    blas = [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]
    return max(blas), len(set(side_by_side(lambda _: threading.get_ident(), range(4))))


def test_files_that_are_read_whole_and_several_of_them(train_file, model, one_process, client):
    compressed = train_file.with_suffix(".xyz.xz")
    write(compressed, read_images(train_file, ":10"), format="extxyz")
    found = model().fit([compressed, f"{train_file}@10:"], client=client)
    assert_same_fit(found, one_process)


@pytest.mark.parametrize(
    ("files", "more", "error", "words"),
    [
        ("missing.xyz", {}, FileNotFoundError, "no file"),
        ("train.xyz@100:", {}, DataError, "no frame at index"),
        ("train.xyz", {"energy_key": "REF_energy"}, DataError, "No structure has the energy key"),
        ("bare.xyz", {}, DataError, "No structure has an energy"),
        ("train.xyz", {"basis": "full", "n_tangents": 3}, ValueError, "fitted in one process"),
    ],
)
def test_errors_of_workers_are_those_of_one_process(
    files, more, error, words, train_file, model, client
):
    bare = [Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.2]]) for _ in range(3)]
    write(train_file.with_name("bare.xyz"), bare, format="extxyz")
    with pytest.raises(error, match=words):
        model(**more).fit(train_file.with_name(files), client=client)


def test_command_line(train_file, model, client, tmp_path):
    arguments = [
        "fit", str(train_file), "-o", str(tmp_path / "m.kpot"), "--dask", client.scheduler.address,
        "--cutoff", "4", "--n-max", "4", "--l-max", "3", "--sigma", "0.5", "--sigma-stress", "1e-3",
        "--sigma-energy", "2e-3", "--sigma-forces", "0.04", "--n-environments", "8",
        "--n-tangents", "3",
    ]  # fmt: skip
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert "2 workers" in done.stdout
    found, expected = load(tmp_path / "m.kpot"), model(delta=None).fit(read_images(train_file))
    some = read_images(train_file)[:4]
    np.testing.assert_allclose(found.predict(some).energy, expected.predict(some).energy, rtol=1e-5)


# Without a cluster


def test_a_budget_of_memory_is_that_of_one_process(train_file, model):
    images = read_images(train_file)
    with pytest.raises(ValueError, match=r"one process.*--memory-limit"):
        model(memory="2GB").fit(images, client=object())
    arguments = ["fit", str(train_file), "--dry-run", "--dask", "tcp://x:1"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 2
    assert "give one of them" in done.stderr


def test_without_dask_the_extra_is_named(train_file, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "distributed", None)
    done = CliRunner().invoke(
        cli.app, ["fit", str(train_file), "-o", str(tmp_path / "m.kpot"), "--dask", "tcp://x:1"]
    )
    assert done.exit_code == 2
    assert "pip install 'kernelpot[dask]'" in done.stderr
    assert not (tmp_path / "m.kpot").exists()


def test_one_thread_until_the_last_has_left():
    with threadpool_limits(2, "blas"):
        before = threads_in_use()
        with one_thread():
            with one_thread():
                assert threads_in_use() == (1, 1)
            assert threads_in_use()[0] == 1
        assert threads_in_use() == before


def test_an_automatic_fit_is_none_for_a_cluster(train_file):
    done = CliRunner().invoke(cli.app, ["fit", str(train_file), "--auto", "--dask", "tcp://x:1"])
    assert done.exit_code == 2
    assert "--auto tries many small fits" in done.stderr


def test_paths_need_workers(train_file, model):
    with pytest.raises(TypeError, match="read_images"):
        model().fit(str(train_file))


def test_what_is_a_path():
    assert paths_of([Atoms("Cu")]) == []
    assert paths_of(Atoms("Cu") for _ in range(2)) == []
    (only,) = paths_of("a.xyz@::2")
    assert os.path.isabs(only)
    assert only.endswith("a.xyz@::2")


def test_blocks_depend_on_data_and_model_alone(model):
    options = model()._options()
    n_atoms_s = np.random.default_rng(0).integers(1, 20, 5000)
    blocks = blocks_of(n_atoms_s, options)
    np.testing.assert_array_equal(np.concatenate(blocks), np.arange(5000))
    rows_b = np.array([(3 * n_atoms_s[mine] + 7).sum() for mine in blocks])
    n_columns = SIZES["n_environments"] * (1 + SIZES["n_tangents"])
    # Enough rows in each of five folds that joining triangles costs little beside making them.
    assert rows_b[:-1].min() > 0.5 * 10 * n_columns
    assert rows_b.max() < 1.5 * 10 * n_columns
    assert len(blocks_of(np.full(400, 8), model(n_environments=4000)._options())) == 16
    (only,) = blocks_of(np.array([8]), options)
    assert only.tolist() == [0]


@given(
    rows_s=st.lists(st.integers(1, 1000), min_size=1, max_size=60),
    largest=st.floats(0.1, 5000.0),
)
def test_shares_are_runs_of_about_equal_numbers_of_rows(rows_s, largest):
    rows_s = np.array(rows_s)
    found = shares(rows_s, largest)
    np.testing.assert_array_equal(np.concatenate(found), np.arange(len(rows_s)))
    assert all(len(mine) for mine in found)
    # A run may lack half a structure at its end, or have one too many.
    assert all(rows_s[mine].sum() <= max(1.0, largest) + rows_s.max() for mine in found)
    assert len(found) <= rows_s.sum() / max(1.0, largest) + 1
