"""What ``kernelpot learn`` does.

Heavy modules are imported inside the functions, so that ``kernelpot --help`` answers at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from kernelpot.interfaces.commands import refuse_to_overwrite
from kernelpot.interfaces.console import out, say, say_model

__all__ = ["how_to_resume", "learn", "print_learn_example", "replay_run"]

_SETTINGS = "settings.toml"
"""Copy of the settings in the folder of the run."""


def print_learn_example() -> None:
    """Print a settings file with all defaults."""
    from kernelpot.interfaces.learn_example import learn_example

    typer.echo(learn_example(), nl=False)


def how_to_resume(config: Path | None, folder: Path | None) -> str:
    """What to say after Ctrl-C.

    Parameters
    ----------
    config : Path | None
        The settings file.
    folder : Path | None
        Of the run, where the command line gave it.

    Returns
    -------
    str
        With the command that goes on.
    """
    where = "" if folder is None else f" --folder {folder}"
    return (
        "what is labelled is kept, and"
        f" `kernelpot learn {config or 'config.toml'} --resume{where}` goes on"
    )


def learn(config: Path | None, given: Mapping[str, Mapping[str, Any]], *, resume: bool) -> None:
    """Run active learning to its end.

    Parameters
    ----------
    config : Path | None
        The settings file.
    given : Mapping[str, Mapping[str, Any]]
        Settings that win over those of the file, by section and key; None where nothing was given.
    resume : bool
        Whether to go on with the run in the folder, or to begin one.

    Raises
    ------
    ValueError
        If settings cannot be used, or no label of the first round succeeded.
    FileExistsError
        If there is a run already, or another process writes it.
    """
    if config is None:
        raise ValueError(
            "name the settings: `kernelpot learn config.toml`"
            " (`kernelpot learn --example` prints one)"
        )
    from kernelpot.active.journal import RunLockedError
    from kernelpot.active.learner import ActiveLearner
    from kernelpot.active.plan import NothingLearnedError
    from kernelpot.active.watching import Watching
    from kernelpot.interfaces.learn_parts import (
        make_explorers,
        make_laws,
        make_observable,
        make_oracle,
        make_relevance,
        make_start,
    )
    from kernelpot.interfaces.learn_settings import (
        learner_settings,
        read_learn_settings,
        unfitted_model,
    )

    settings = read_learn_settings(config, given)
    folder = Path(settings.output.folder)
    start, labelled = make_start(settings.start)
    oracle = make_oracle(settings.oracle[0])
    explorers = make_explorers(settings.explore)
    observable, laws = make_observable(settings.observable), make_laws(settings.law)
    if resume:
        _compare_oracles(folder, settings)
    else:
        _begin(folder, config)
    try:
        with Watching(folder, out) as tell:
            outcome = ActiveLearner(
                unfitted_model(settings), oracle, start, explorers, folder,
                settings=learner_settings(settings), images=labelled, observable=observable,
                laws=laws, relevance=make_relevance(settings.relevance), tell=tell,
            ).run(resume)  # fmt: skip
    except RunLockedError as error:
        raise FileExistsError(str(error)) from error
    except NothingLearnedError as error:
        raise ValueError(str(error)) from error
    failed = f", {outcome.n_failed} failed" if outcome.n_failed else ""
    say(f"\nEnded: {outcome.why}. {outcome.n_labels} labels were learned{failed}.")
    for criterion in outcome.criteria:
        say(f"  {criterion.name}: {criterion.text}")
    say(f"The model is {folder / 'model.kpot'}, its labels are {folder / 'labels.xyz'}.")


def replay_run(folder: Path, output: Path, force: bool) -> None:
    """The model of a run from its journal, without the oracle.

    Parameters
    ----------
    folder : Path
        Of the run.
    output : Path
        File of the model.
    force : bool
        Whether it may be there already.

    Raises
    ------
    FileNotFoundError
        If the folder has no settings.
    """
    from kernelpot.active.learner import replay
    from kernelpot.interfaces.learn_settings import read_learn_settings, unfitted_model

    settings = folder / _SETTINGS
    if not settings.is_file():
        raise FileNotFoundError(
            f"{folder} has no {_SETTINGS}, which says what the model is: it is no run of"
            " `kernelpot learn`. In Python: kernelpot.active.replay(folder, model)"
        )
    refuse_to_overwrite(output, force)
    model = replay(folder, unfitted_model(read_learn_settings(settings)))
    model.save(output)
    say_model(model)
    say(f"\nSaved {output}.")


def _compare_oracles(folder: Path, settings: Any) -> None:
    """An oracle may have been mended; but labels of two potentials spoil a model."""
    from kernelpot.interfaces.learn_settings import read_learn_settings

    with contextlib.suppress(ValueError, OSError):  # of another version, or begun in Python
        before, now = read_learn_settings(folder / _SETTINGS).oracle[0], settings.oracle[0]
        if before != now:
            typer.echo(
                "kernelpot: warning: [oracle] is another than in"
                f" {folder / _SETTINGS}, with which the run began: was {before!r}, now {now!r}. Go"
                " on only if it gives the same labels",
                err=True,
            )


def _begin(folder: Path, config: Path) -> None:
    """A folder that has no run yet, with the settings of this one."""
    from kernelpot.active.journal import read_entries
    from kernelpot.whole_files import replacing

    if (folder / "journal.jsonl").exists() and any(read_entries(folder)):
        raise FileExistsError(
            f"{folder} has a run already: --resume goes on with it, or give another --folder"
        )
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file; a run needs a folder")
    folder.mkdir(parents=True, exist_ok=True)
    content = config.read_bytes()
    with replacing(folder / _SETTINGS) as file:
        file.write(content)
