"""Settings of ``kernelpot fit``: defaults from the signatures, errors that name the key."""

from __future__ import annotations

import inspect

import pytest

from kernelpot.descriptors import PairSplines, Soap
from kernelpot.interfaces import settings as module
from kernelpot.interfaces import settings_schema as schema
from kernelpot.interfaces.settings import (
    SettingsError,
    check_settings,
    combine,
    example,
    make_model,
    read_toml,
)
from kernelpot.potential import KernelPotential

LEAST = {"data": {"train": "train.xyz"}}


def message_of(raw: dict) -> str:
    with pytest.raises(SettingsError) as caught:
        check_settings(raw)
    return str(caught.value)


def test_every_parameter_of_the_classes_has_a_key():
    of_model = set(inspect.signature(KernelPotential).parameters)
    elsewhere = {"descriptor", "progress", *schema.LABEL_KEYS}
    assert set(schema._MODEL) | elsewhere == of_model
    assert set(schema._DESCRIPTOR) == set(inspect.signature(Soap).parameters)
    assert set(schema._PAIRS) == set(inspect.signature(PairSplines).parameters)


def test_defaults_are_those_of_the_classes():
    model = make_model(check_settings(LEAST))
    assert model.get_params(deep=False) == {
        **KernelPotential().get_params(deep=False),
        "descriptor": Soap(cutoff=5.0),
    }


def test_the_example_is_valid_and_says_the_defaults(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text(example(), encoding="utf-8")
    said, silent = check_settings(read_toml(path)), check_settings(LEAST)
    assert (said.data, said.output) == (silent.data, silent.output)
    assert make_model(said).get_params(deep=False) == make_model(silent).get_params(deep=False)
    text = example()
    for section in ("[data]", "[descriptor]", "[model]", "[output]"):
        assert f"\n{section}\n" in text
    for key in (*schema._MODEL, *schema._DESCRIPTOR, *schema._PAIRS, "virial_key", "test"):
        assert f"\n{key} = " in text or f"\n# {key} =" in text


def test_the_sum_of_the_example_is_valid_too():
    lines = example().splitlines()
    first = lines.index("# [[descriptor]]")
    block = lines[first : lines.index("", first)]
    text = "\n".join(line.removeprefix("# ") for line in block)
    raw = module.tomllib.loads('[data]\ntrain = "a.xyz"\n' + text)
    assert make_model(check_settings(raw)).descriptor == PairSplines()


SUM = [{"cutoff": 4.0, "zeta": 2}, {"kind": "pairs", "cutoff": 6.0, "delta": 0.5}]


def test_several_descriptors_are_a_sum():
    model = make_model(check_settings({**LEAST, "descriptor": SUM, "model": {"n_tangents": 8}}))
    assert model.descriptor == [Soap(cutoff=4.0), PairSplines(cutoff=6.0)]
    assert model.zeta == [2, 1]
    assert model.n_tangents == [8, 0]
    assert model.delta == [None, 0.5]
    assert model.n_environments == 300
    one = make_model(check_settings({**LEAST, "descriptor": SUM[:1]}))
    assert one.get_params(deep=False) == {
        **KernelPotential().get_params(deep=False),
        "descriptor": Soap(cutoff=4.0),
        "zeta": 2,
    }
    alone = make_model(check_settings({**LEAST, "descriptor": {"kind": "pairs"}}))
    assert (alone.descriptor, alone.zeta, alone.n_tangents) == (PairSplines(), 1, 0)


def test_several_descriptors_in_a_file(tmp_path):
    path = tmp_path / "sum.toml"
    path.write_text(
        '[[descriptor]]\ncutoff = 4.0\nzeta = 2\n\n[[descriptor]]\nkind = "pairs"\n'
        'cutoff = 6.0\ndelta = 0.5\n\n[data]\ntrain = "a.xyz"\n'
    )
    raw = combine(path, {"model": {"n_tangents": 8}, "descriptor": {"cutoff": None}})
    assert raw["descriptor"] == SUM
    assert raw["model"] == {"n_tangents": 8}
    for section, key in (("descriptor", "cutoff"), ("model", "zeta")):
        with pytest.raises(SettingsError, match=f"--{key}: .* for each descriptor by itself"):
            combine(path, {section: {key: 3}})
    path.write_text('[[descriptor]]\nkind = "pairs"\n')
    raw = combine(path, {"descriptor": {"cutoff": 4.5}})
    assert raw["descriptor"] == {"kind": "pairs", "cutoff": 4.5}


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([{}, {"cutoff": -1.0}], "[descriptor 2] cutoff: -1.0 was given; allowed: greater than 0"),
        ([{"zeta": 0}], "[descriptor] zeta: 0 was given; allowed: greater than or equal to 1"),
        ([{}, {"kind": "pair"}], "[descriptor 2] kind: 'pair' was given; allowed: 'soap' or 'pai"),
        ({"kind": 2}, "[descriptor] kind: 2 was given; allowed: 'soap' or 'pairs'"),
        ({"kind": "pairs", "zeta": 4}, "[descriptor] zeta: 4 was given; allowed: 1 (pairs are a"),
        ({"kind": "pairs", "n_max": 4}, 'n_max: there is no such key; it belongs to kind = "soap"'),
        ({"n_splines": 4}, 'n_splines: there is no such key; it belongs to kind = "pairs"'),
        ({"selector": "fps"}, "selector: there is no such key; it belongs under [model]"),
        ({"kind": "pairs", "n_spline": 9}, "n_spline: there is no such key; the nearest is n_spl"),
        ([{}, {"kind": "pairs", "n_splines": 2}], "[descriptor 2] PairSplines: n_splines must be"),
        ([], "descriptor: an empty list was given"),
        ([{}, 3], "descriptor: 3 was given; allowed: a section [descriptor 2] with keys"),
    ],
)
def test_errors_of_descriptors_say_which(tables, message):
    found = message_of({**LEAST, "descriptor": tables})
    assert message in found
    assert "\n" not in found


def test_values_reach_the_model():
    raw = {
        "data": {"train": ["a.xyz", "b.xyz"], "energy_key": "REF_energy"},
        "descriptor": {
            "cutoff": 4,
            "smoothing": {"name": "SmoothBump", "width": 2.0},
            "scaling": "none",
            "species_weights": {"H": 0.5, "8": 1.0},
        },
        "model": {
            "sigma_forces": {"pbe": 0.05, "default": 0.1},
            "n_environments": {"H": 20, "O": 10},
        },
    }
    settings = check_settings(raw)
    model = make_model(settings)
    assert settings.data.train == ["a.xyz", "b.xyz"]
    assert model.energy_key == "REF_energy"
    assert model.descriptor.cutoff == 4.0
    assert repr(model.descriptor.smoothing) == "SmoothBump(width=2.0)"
    assert model.descriptor.scaling is None
    assert model.descriptor.species_weights == {"H": 0.5, 8: 1.0}
    assert model.sigma_forces == {"pbe": 0.05, "default": 0.1}
    assert model.n_environments == {"H": 20, "O": 10}


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("model", "zeta", "four", ["[model] zeta: 'four' was given; allowed: a valid integer"]),
        ("model", "zeta", 0, ["[model] zeta: 0 was given", "greater than or equal to 1"]),
        ("model", "sigma_forces", -0.1, ["sigma_forces: -0.1 was given", "greater than 0"]),
        ("model", "sigma_forces", {"pbe": 0.0}, ["sigma_forces", "pbe: greater than 0"]),
        ("model", "selector", "fsp", ["selector: 'fsp' was given; allowed: 'fps', 'cur'"]),
        ("model", "n_tangents", 2.5, ["n_tangents: 2.5 was given"]),
        ("model", "n_environment", 5, ["no such key; the nearest is n_environments"]),
        ("model", "cutoff", 5.0, ["[model] cutoff: there is no such key", "under [descriptor]"]),
        ("data", "zeta", 4, ["[data] zeta: there is no such key", "under [model]"]),
        ("model", "n_environments", 0, ["allowed: greater than or equal to 1 or a valid dict"]),
        ("model", "xyzzy", 1, ["there are basis, zeta, delta, n_environments"]),
        ("descriptor", "n-max", 8, ["[descriptor] n-max", "the nearest is n_max"]),
        ("descriptor", "cutoff", "5 A", ["cutoff: '5 A' was given", "a valid number"]),
        ("descriptor", "basis", "sto", ["basis: 'sto' was given; allowed: 'gto' or 'polynomial'"]),
        ("descriptor", "smoothing", "cosine", ["smoothing: 'cosine'", "a valid dictionary"]),
        ("descriptor", "smoothing", {"name": "Cosine"}, ["must be one of", "got 'Cosine'"]),
        ("descriptor", "smoothing", {"name": "ShiftedCosine", "wide": 1}, ["[descriptor]", "wide"]),
        ("descriptor", "cutoff", 0.5, ["[descriptor] Soap", "cutoff above 1 A"]),
        ("data", "trian", "x.xyz", ["[data] trian", "the nearest is train"]),
        ("data", "index", 5, ["[data] index: 5 was given; allowed: a valid string"]),
        ("output", "force", "yes", ["[output] force: 'yes' was given; allowed: a valid boolean"]),
    ],
)
def test_an_error_names_the_key_what_was_given_and_what_is_allowed(section, key, value, words):
    raw = {"data": {"train": "train.xyz"}}
    raw[section] = {**raw.get(section, {}), key: value}
    message = message_of(raw)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_errors_of_sections():
    assert message_of({}) == "[data] is missing; needed is at least data.train"
    assert message_of({"data": {}}).startswith("[data] train: missing (files of")
    assert "the nearest is [model]" in message_of({**LEAST, "modell": {"zeta": 4}})
    assert "put it under [descriptor]" in message_of({**LEAST, "cutoff": 5.0})
    assert "model: 3 was given; allowed: a section [model]" in message_of({**LEAST, "model": 3})
    assert "there are data, descriptor, model, output" in message_of({**LEAST, "zzz": {}})


def test_all_faults_are_reported_at_once():
    message = message_of({**LEAST, "model": {"zeta": 0, "delta": -1.0}, "output": {"modle": "x"}})
    assert [line.split(":")[0] for line in message.splitlines()] == [
        "[model] zeta", "[model] delta", "[output] modle",
    ]  # fmt: skip


def test_toml_errors_have_their_line(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("[data]\ntrain = train.xyz\n")
    with pytest.raises(SettingsError, match=r"broken.toml is not valid TOML: .*line 2"):
        read_toml(path)


def test_the_command_line_wins_over_the_file(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text('[data]\ntrain = "a.xyz"\n[model]\nzeta = 3\nn_tangents = 5\n')
    given = {"model": {"zeta": 2, "delta": None}, "data": {"test": "b.xyz"}, "output": {}}
    assert combine(path, given) == {
        "data": {"train": "a.xyz", "test": "b.xyz"},
        "model": {"zeta": 2, "n_tangents": 5},
    }
    assert combine("c.xyz", {})["data"] == {"train": "c.xyz"}
    with pytest.raises(SettingsError, match="name what to fit"):
        combine(None, {})
