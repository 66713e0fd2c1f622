"""Parameters of a descriptor by name: scikit-learn's contract and JSON settings.

Written by hand so that scikit-learn is imported where its base classes matter only.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from typing import Any

import numpy as np

from kernelpot.conventions import Settings
from kernelpot.descriptors.radial import SCALINGS, SMOOTHINGS

__all__ = ["Parameters"]


class Parameters:
    """Base of descriptors whose constructor stores its arguments unchanged, and nothing else."""

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        signature = inspect.signature(cls.__init__)
        return {k: v.default for k, v in signature.parameters.items() if k != "self"}

    @classmethod
    def _names(cls) -> tuple[str, ...]:
        return tuple(cls._defaults())

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name.

        Parameters
        ----------
        deep : bool
            Also those of smoothing and scaling, as ``smoothing__width``.

        Returns
        -------
        dict[str, Any]
            The parameters, as they were given.
        """
        params = {name: getattr(self, name) for name in self._names()}
        if deep:
            for name in ("smoothing", "scaling"):
                if dataclasses.is_dataclass(params.get(name)):
                    for field in dataclasses.fields(params[name]):
                        params[f"{name}__{field.name}"] = getattr(params[name], field.name)
        return params

    def set_params(self, **params: Any) -> Parameters:
        """Set parameters by name.

        Parameters
        ----------
        **params : Any
            Names of the constructor, or ``smoothing__width`` and the like.

        Returns
        -------
        Parameters
            Itself.

        Raises
        ------
        ValueError
            If there is no such parameter.
        """
        who, known = type(self).__name__, self._names()
        # Whole objects first: smoothing__width may speak of a smoothing given in the same call.
        for name in sorted(params, key=lambda name: "__" in name):
            head, _, field = name.partition("__")
            value = params[name]
            if field and head in ("smoothing", "scaling") and head in known:
                part = getattr(self, head)
                fields = [] if part is None else [f.name for f in dataclasses.fields(part)]
                if field not in fields:
                    raise ValueError(f"{who}: {head}={part!r} has no parameter {field!r}: {fields}")
                value = dataclasses.replace(part, **{field: value})
            elif name not in known:
                raise ValueError(f"{who}: no parameter {name!r}; there are {', '.join(known)}")
            setattr(self, head, value)
        return self

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.get_params(deep=False) == other.get_params(deep=False)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        params, defaults = self.get_params(deep=False), self._defaults()
        shown = [f"{k}={v!r}" for k, v in params.items() if k == "cutoff" or v != defaults[k]]
        return f"{type(self).__name__}({', '.join(shown)})"

    def to_settings(self) -> Settings:
        """JSON-ready settings.

        Returns
        -------
        Settings
            Parameters by name; ``from_settings`` makes an equal object of them.
        """
        settings = {name: _plain(value) for name, value in self.get_params(deep=False).items()}
        for name in ("smoothing", "scaling"):
            part = getattr(self, name, None)
            if part is not None:
                fields = {k: _plain(v) for k, v in dataclasses.asdict(part).items()}
                settings[name] = {"name": type(part).__name__, **fields}
        for name in _BY_SPECIES:
            if isinstance(settings.get(name), dict):
                settings[name] = {str(k): v for k, v in settings[name].items()}
        return settings

    @classmethod
    def from_settings(cls, settings: Settings) -> Parameters:
        """Make a descriptor from settings.

        Parameters
        ----------
        settings : Settings
            What ``to_settings`` returned, perhaps by way of JSON.

        Returns
        -------
        Parameters
            The descriptor.

        Raises
        ------
        ValueError
            If a parameter, or the name of a smoothing or scaling, is unknown.
        """
        who, names = cls.__name__, cls._names()
        unknown = sorted(set(settings) - set(names))
        if unknown or "cutoff" not in settings:
            raise ValueError(
                f"{who} settings: need cutoff and any of {', '.join(names)}; unknown {unknown}"
            )
        params = copy.deepcopy(dict(settings))
        for name, known in (("smoothing", SMOOTHINGS), ("scaling", SCALINGS)):
            part = params.get(name)
            if part is not None:
                kind = part.pop("name", None)
                if kind not in known:
                    raise ValueError(
                        f"{who} settings: {name} must be one of {', '.join(known)}, got {kind!r}"
                    )
                params[name] = known[kind](**part)
        for name in _BY_SPECIES:
            if isinstance(params.get(name), dict):
                params[name] = {int(k) if k.isdigit() else k: v for k, v in params[name].items()}
        return cls(**params)


_BY_SPECIES = ("species_weights", "species_mixing")
"""Parameters that may be dictionaries with atomic numbers as keys, which JSON does not have."""


def _plain(value: Any) -> Any:
    """NumPy scalars as Python's; dictionaries and lists copied."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
