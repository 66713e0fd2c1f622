"""Model files: exact round trips, and no damage that goes unnoticed."""

import io
import json
import math
import os
import pickle
import stat
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kernelpot import model_file
from kernelpot.model_file import ModelFileError, read, read_header, write

HEADER = {"zeta": 4, "sigma": 0.1 + 0.2, "species": [1, 8], "name": "wäßrig", "none": None}
ARRAYS = {"weights_m": np.array([1.5, -2.5]), "block/i": np.array([[1], [2]], dtype=np.int32)}


@pytest.fixture
def path(tmp_path):
    write(tmp_path / "m.kpot", HEADER, ARRAYS)
    return tmp_path / "m.kpot"


def same(a, b):
    """Bit for bit."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_what_is_written_is_read(path):
    header, arrays = read(path)
    assert header == HEADER == read_header(path)
    assert list(arrays) == list(ARRAYS)
    assert all(same(arrays[name], ARRAYS[name]) for name in ARRAYS)


def test_the_file_is_a_stored_npz(path):
    with np.load(path, allow_pickle=False) as npz:
        np.testing.assert_array_equal(npz["weights_m"], ARRAYS["weights_m"])
        np.testing.assert_array_equal(npz["block/i"], ARRAYS["block/i"])
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        assert [m.filename for m in members] == ["header.json", "weights_m.npy", "block/i.npy"]
        assert {m.compress_type for m in members} == {zipfile.ZIP_STORED}
        record = json.loads(archive.read("header.json"))
    assert record["format"] == model_file.FORMAT
    assert record["format_version"] == model_file.FORMAT_VERSION


def test_equal_content_gives_equal_files_of_little_more_than_its_size(tmp_path, path):
    write(tmp_path / "again.kpot", HEADER, ARRAYS)
    assert (tmp_path / "again.kpot").read_bytes() == path.read_bytes()
    write(tmp_path / "big.kpot", {}, {"x": np.zeros(10_000)})
    assert (tmp_path / "big.kpot").stat().st_size < 80_000 + 1_000


def test_arrays_come_back_contiguous_and_writable(tmp_path):
    arrays = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(10)[::-3],
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3)),
        "big_endian": np.arange(3, dtype=">i4"),
        "text": np.array(["Si", "Ge"]),
        "bits": np.array([True, False]),
        "complex": np.array([1 + 2j]),
        "record": np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        "negative_nan": np.array([-np.nan, -0.0, np.inf]),
    }
    write(tmp_path / "m", {}, arrays)
    for name, array in read(tmp_path / "m")[1].items():
        assert same(array, arrays[name]), name
        assert array.flags["C_CONTIGUOUS"], name
        assert array.flags["WRITEABLE"], name


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda entries: st.lists(entries, max_size=4) | st.dictionaries(st.text(), entries, max_size=4),
    max_leaves=12,
)
DTYPES = (
    hnp.integer_dtypes()
    | hnp.floating_dtypes()
    | hnp.boolean_dtypes()
    | hnp.complex_number_dtypes()
)
NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,12}", fullmatch=True)


def identical(a, b):
    """Equal with types, signs of zero and NaN."""
    if isinstance(a, dict):
        return list(a) == list(b) and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(identical, a, b))
    if isinstance(a, float):
        return isinstance(b, float) and ((math.isnan(a) and math.isnan(b)) or a.hex() == b.hex())
    return type(a) is type(b) and a == b


@settings(max_examples=80, deadline=None)
@given(
    header=st.dictionaries(st.text(), JSON, max_size=5),
    arrays=st.dictionaries(
        NAMES, hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, min_side=0, max_side=4)), max_size=4
    ),
)
def test_any_content_survives(header, arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "m.kpot"
    write(path, header, arrays)
    header_again, arrays_again = read(path)
    assert identical(header, header_again)
    assert list(arrays) == list(arrays_again)
    assert all(same(arrays[name], arrays_again[name]) for name in arrays)


# Damage


def test_every_changed_byte_is_noticed(path):
    content = path.read_bytes()
    unnoticed = []
    for i in range(len(content)):
        for flip in (0x01, 0xFF):
            damaged = bytearray(content)
            damaged[i] ^= flip
            path.write_bytes(damaged)
            try:
                read(path)
            except ModelFileError:
                continue
            unnoticed.append((i, flip))
    assert unnoticed == []


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_truncation_insertion_and_removal_are_noticed(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "m.kpot"
    write(path, HEADER, ARRAYS)
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.integers(1, len(content)))
    extra = data.draw(st.binary(min_size=1, max_size=20))
    kind = data.draw(st.sampled_from(["truncate", "remove", "insert", "append", "zeros"]))
    damaged = {
        "truncate": content[:at],
        "remove": content[:at] + content[at + length :],
        "insert": content[:at] + extra + content[at:],
        "append": content + extra,
        "zeros": content[:at] + bytes(min(length, len(content) - at)) + content[at + length :],
    }[kind]
    path.write_bytes(damaged)
    if damaged == content:
        assert read_header(path) == HEADER
        return
    for function in (read, read_header):
        with pytest.raises(ModelFileError, match=r"truncated or altered|empty|not a kernelpot"):
            function(path)


def test_every_truncation_is_noticed(path):
    content = path.read_bytes()
    for size in range(1, len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(ModelFileError):
            read(path)
    path.write_bytes(content[:-9])
    with pytest.raises(ModelFileError, match=r"m\.kpot is truncated or altered"):
        read(path)


@settings(max_examples=80, deadline=None)
@given(content=st.binary(min_size=1, max_size=400), as_zip=st.booleans())
def test_rubbish_is_no_model(content, as_zip, tmp_path_factory):
    path = tmp_path_factory.mktemp("rubbish") / "m.kpot"
    path.write_bytes((b"PK\x03\x04" if as_zip else b"") + content)
    with pytest.raises(ModelFileError):
        read(path)


def test_an_empty_file_says_so(path):
    path.write_bytes(b"")
    with pytest.raises(ModelFileError, match="is empty"):
        read(path)


def test_a_missing_file_says_where_it_looked(path):
    with pytest.raises(FileNotFoundError, match=r"Did you mean m\.kpot"):
        read(path.with_name("n.kpot"))
    with pytest.raises(FileNotFoundError, match="Looked in"):
        read_header(path.with_name("quite-another"))
    with pytest.raises(FileNotFoundError, match="does not exist either"):
        read(path.parent / "nowhere" / "m.kpot")
    with pytest.raises(ModelFileError, match="is a folder"):
        read(path.parent)


def test_other_files_are_named_for_what_they_are(tmp_path):
    path = tmp_path / "other"
    np.savez(tmp_path / "other.npz", x=np.arange(3))
    with pytest.raises(ModelFileError, match=r"not a kernelpot model file \(a zip or npz"):
        read(tmp_path / "other.npz")
    path.write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(ModelFileError, match="probably a pickle"):
        read(path)
    path.write_text("2\n\nH 0 0 0\nH 0 0 1\n")
    with pytest.raises(ModelFileError, match="some other file"):
        read(path)


def sealed(path, members):
    """A file whose checksum agrees, of any members."""
    with open(path, "w+b") as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
            archive.comment = model_file._MARK + b"0" * model_file._DIGITS
        model_file._seal(file)


def record(**changes):
    content = {
        "format": model_file.FORMAT,
        "format_version": model_file.FORMAT_VERSION,
        "header": {},
    } | changes
    return json.dumps(content).encode()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"header.json": record(format_version=4)}, "version 4; .* up to version 3. Upgrade"),
        ({"header.json": record(format_version=1)}, "version 1, of a development .* Fit the model"),
        ({"header.json": record(format="other")}, "format 'other'"),
        ({"header.json": b"{}"}, "no model file that this library wrote"),
        ({"header.json": b"[1"}, "no model file that this library wrote"),
        ({"x.npy": b""}, "no model file that this library wrote"),
        ({"header.json": record(), "x.npy": b"abc"}, "no model file that this library wrote"),
        ({"header.json": record(), "x.npy": npy(np.array([{}]))}, "[Oo]bject arrays"),
        ({"header.json": record(), "x.npy": npy(np.ones(4))[:-8]}, "no model file that"),
    ],
)
def test_whole_files_that_are_no_models_are_refused(members, words, tmp_path):
    sealed(tmp_path / "m.kpot", members)
    with pytest.raises(ModelFileError, match=words):
        read(tmp_path / "m.kpot")


# Refused content


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": {"b": [1, np.int64(3)]}}, r"header\['a'\]\['b'\]\[1\] is int64"),
        ({"a": np.zeros(2)}, r"header\['a'\] is ndarray"),
        ({"a": {1: 2}}, "keys must be strings"),
        ({"a": {1, 2}}, r"header\['a'\] is set"),
    ],
)
def test_headers_hold_json_only(header, words, tmp_path):
    with pytest.raises(ModelFileError, match=words):
        write(tmp_path / "m", header, {})
    assert list(tmp_path.iterdir()) == []


def test_tuples_and_numpy_floats_are_stored_as_json_has_them(tmp_path):
    write(tmp_path / "m", {"a": (1, np.float64(0.1))}, {})
    assert read_header(tmp_path / "m") == {"a": [1, 0.1]}


def test_object_arrays_are_refused(tmp_path):
    for array in (np.array([{}, None]), np.array([(1, None)], dtype=[("a", "i4"), ("b", "O")])):
        with pytest.raises(ModelFileError, match="'bad' holds Python objects"):
            write(tmp_path / "m", {}, {"bad": array})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "/x", "a b", "a\0", "ä", 3, ".x", "x\n"])
def test_array_names_are_plain(name, tmp_path):
    with pytest.raises(ModelFileError, match="array name"):
        write(tmp_path / "m", {}, {name: np.zeros(1)})


# Writing


@pytest.mark.parametrize("step", ["_write_members", "_seal"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(path, monkeypatch, step, error):
    content = path.read_bytes()
    whole = getattr(model_file, step)

    def fail(*arguments):
        whole(*arguments)
        raise error

    monkeypatch.setattr(model_file, step, fail)
    with pytest.raises(type(error)):
        write(path, {"new": 1}, {})
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_replacement_leaves_nothing_behind(path, monkeypatch):
    def fail(*arguments):
        raise PermissionError("in use")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PermissionError):
        write(path.with_name("new.kpot"), {}, {})
    assert list(path.parent.iterdir()) == [path]


def test_an_old_file_is_replaced(path):
    write(str(path), {"new": 1}, {})
    assert read(path) == ({"new": 1}, {})


def test_folders_and_links(path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        write(path.parent / "nowhere" / "m.kpot", {}, {})
    with pytest.raises(ModelFileError, match="is a folder"):
        write(path.parent, {}, {})
    link = path.with_name("latest.kpot")
    link.symlink_to(path)
    write(link, {"through": "link"}, {})
    assert link.is_symlink()
    assert read_header(path) == {"through": "link"}


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_the_file_has_the_usual_permissions(path):
    plain = path.with_name("plain")
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
