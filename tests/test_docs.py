"""The documentation: its code and commands run, and its tables agree with the package."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import kernelpot
from kernelpot import conventions
from kernelpot.gp import inducing
from kernelpot.interfaces import cli
from kernelpot.model_file import FORMAT_VERSION

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES_THAT_RUN = (
    ROOT / "README.md",
    *(DOCS / f"{p}.md" for p in ("quickstart", "extending", "uneven", "uncertainty", "active")),
)
# test_cli runs the demo, which takes a minute in full, test_lammps what is optional.
NOT_RUN = {"demo", "lammps"}


@pytest.fixture
def selectors():
    """Selectors that a page registers are gone afterwards."""
    before = dict(inducing.SELECTORS)
    yield
    inducing.SELECTORS.clear()
    inducing.SELECTORS.update(before)


@pytest.mark.parametrize("page", PAGES_THAT_RUN, ids=lambda page: page.name)
def test_code_of_the_page_runs(page, tmp_path, monkeypatch, selectors):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert blocks
    namespace = {"__name__": "page"}
    for block in blocks:
        language, code = block.groups()
        line = text.count("\n", 0, block.start()) + 1
        if language == "python":
            # Blank lines first, so that a traceback names the line of the page.
            exec(compile("\n" * line + code, str(page), "exec"), namespace)
        else:
            for command in code.splitlines():
                run_command(command, f"{page.name}, line {line}")


def run_command(text, where):
    """Run a line of a console block if it is a command of this package."""
    assert text.startswith("$ "), f"{where}: a command starts with '$ '"
    words = shlex.split(text[2:])
    if words[0] != "kernelpot" or words[1] in NOT_RUN:
        return
    target = None
    if ">" in words:
        target = words[-1]
        words = words[: words.index(">")]
    result = CliRunner().invoke(cli.app, words[1:])
    assert result.exit_code == 0, f"{where}: {text}\n{result.output}\n{result.exception!r}"
    if target is not None:
        Path(target).write_text(result.stdout, encoding="utf-8")


def test_quickstart_leaves_what_it_promises():
    text = (DOCS / "quickstart.md").read_text(encoding="utf-8")
    assert "plots/parity.png" in text
    for command in commands() - NOT_RUN:
        assert f"$ kernelpot {command}" in text


def commands():
    single = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    return single | {group.name for group in cli.app.registered_groups}


def test_readme_names_every_command():
    rows = re.findall(r"^\| `kernelpot (\w+)`", (ROOT / "README.md").read_text("utf-8"), re.M)
    assert set(rows) == commands()


def test_conventions_page_agrees_with_the_module():
    page = (DOCS / "conventions.md").read_text(encoding="utf-8")
    in_page = dict(re.findall(r"^\| `([a-z])` \| (.+?) \|", page, re.M))
    table = re.findall(r"^``([a-z])``\s+(.+)$", conventions.__doc__, re.M)
    assert len(table) > 5
    for letter, axis in table:
        assert in_page.get(letter, "").startswith(axis.split(" (")[0]), letter
    for letter in re.findall(r"``([a-z])``", conventions.__doc__.split("GP matrices")[0]):
        assert letter in in_page, letter
    assert "xx yy zz yz xz xy" in page
    assert str(conventions.MIN_DISTANCE) in page
    assert f"format version is {FORMAT_VERSION}" in page


def test_api_page_has_every_public_name():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    missing = [
        name
        for name in kernelpot.__all__
        if not re.search(rf"auto\w+:: kernelpot\.(\w+\.)*{name}$", page, re.M)
    ]
    assert not missing


def test_design_page_names_every_module():
    page = (DOCS / "design.md").read_text(encoding="utf-8")
    table = page.split("\n## ")[1]
    assert table.startswith("The rooms")
    named = set(re.findall(r"`(\w+(?:\.py|/))`", table))
    package = ROOT / "kernelpot"
    rooms = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    rooms |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    rooms |= {path.name for path in package.glob("interfaces/**/*.py")} - {"__init__.py"}
    assert sorted(rooms - named) == []
    assert sorted(named - rooms - {path.name for path in package.rglob("*.py")}) == []


def test_design_page_has_the_layers_of_the_contract():
    page = (DOCS / "design.md").read_text(encoding="utf-8")
    block = re.search(r"^```text\n(.*?)^```$", page, re.M | re.S).group(1)
    layers = setup_cfg()["importlinter:contract:layers"]["layers"]
    assert block.strip() == layers.strip().replace(" : ", ", ")


def setup_cfg():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    return settings


def test_change_log_begins_with_this_version():
    headings = re.findall(r"^## (\S+)", (DOCS / "changes.md").read_text(encoding="utf-8"), re.M)
    assert headings[0] == setup_cfg()["metadata"]["version"]


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name
)
def test_links_between_pages_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = [page.parent / name for name in re.findall(r"\]\(([^):#]+)\)", text)]
    targets += [DOCS / f"{name}.md" for name in re.findall(r"\{doc\}`([a-z]+)`", text)]
    assert [str(target) for target in targets if not target.exists()] == []
