"""What an experiment is: a frozen configuration with a name and a fingerprint, and each protocol's settings."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path

from .configuration import XStaConfig
from .protocols import LOADERS

METHODS = ("zero-shot", "trans-train", "x-mixup", "x-sta")
DEMO_METHODS = ("zero-shot", "trans-train", "x-sta")  # what `make demo` has time for

# Optimisation of each protocol: every method of a comparison gets the same.
SETTINGS = {
    "demo": {"learning_rate": 1e-4, "batch_size": 16, "epochs": 0.4, "dropout": 0.0, "english_epochs": 3.0},
    "compact": {"learning_rate": 1e-4, "batch_size": 16, "epochs": 1.0, "dropout": 0.0},
    **{name: {} for name in LOADERS if name.startswith("paper-")},  # the paper's are the defaults below
    **{name: {"steps": 24_000} for name in LOADERS if name.startswith("paper-mlqa")},  # the release's script
}
# Fields that came later, with the value that changes nothing: left out of fingerprints, so older results stay valid.
LATER_FIELDS = (("accumulation", 1), ("tokens_per_batch", 0), ("share_source", False), ("steps", 0))
WAYS = ("share_source",)  # ways to train that are compared as systems of one setting
NO_SWITCHES = {"encoder", "languages", "source_language", "without"}  # data, backbone and ``without`` decide these
FOLDER_SETTINGS = SETTINGS["compact"]  # a folder of your own files


@dataclass(frozen=True)
class Experiment:
    """One training run and its evaluation.

    Attributes:
        protocol: what data (see :mod:`~xsta_lib.protocols`).
        method: ``zero-shot``, ``trans-train``, ``x-mixup`` or ``x-sta``.
        without: ablations of Table 4 (x-sta only).
        switches: fields of :class:`~xsta_lib.configuration.XStaConfig` that differ from the paper, as pairs.
        backbone: see :func:`~xsta_lib.backbones.load_backbone`.
        accumulation, tokens_per_batch, share_source: see :class:`~xsta_lib.training_config.TrainingConfig`.
        precision: of training; answers are read in bfloat16 wherever the device has it.
        epochs: times the rows of the pair setting, by ``batch_size``, are the optimiser steps, the same for every
            method. The last batch of a language pair may be smaller, so an epoch may be a few batches short.
        steps: optimiser steps, instead of ``epochs``, if not 0.
        english_epochs: epochs on the source language alone before, shared by all methods (the demo's head start).
    """

    protocol: str
    method: str
    without: tuple[str, ...] = ()
    switches: tuple[tuple[str, object], ...] = ()
    backbone: str = "e5-small-q4"
    seed: int = 42
    epochs: float = 1.0
    english_epochs: float = 0.0
    learning_rate: float = 3e-5
    batch_size: int = 32
    dropout: float | None = None
    precision: str = "auto"
    accumulation: int = 1
    tokens_per_batch: int = 0
    share_source: bool = False
    steps: int = 0

    def __post_init__(self):
        for name in ("epochs", "english_epochs", "learning_rate", "dropout"):  # 1 and 1.0 are one experiment
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else float(value))
        object.__setattr__(self, "without", tuple(sorted(set(self.without))))  # in any order, one experiment
        object.__setattr__(self, "switches", tuple(sorted(map(_as_default, map(tuple, self.switches)))))
        if self.protocol not in SETTINGS and self.place in SETTINGS:
            raise ValueError(f"{self.protocol}: a folder called like the protocol {self.place!r}; rename it")
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; allowed: {', '.join(METHODS)}")
        if (self.without or self.switches) and self.method != "x-sta":
            raise ValueError("without and switches belong to the method x-sta")
        if "sharing_dropout" in dict(self.switches) and self.dropout is not None:
            raise ValueError("sharing_dropout follows dropout; only with dropout=None it has a value of its own")
        self.model_config()  # refuses unknown switches

    def model_config(self) -> XStaConfig:
        """The model configuration, without encoder."""
        if self.method != "x-sta":
            return XStaConfig.mixup() if self.method == "x-mixup" else XStaConfig.plain()
        unknown = {name for name, _ in self.switches} - (set(XStaConfig.__annotations__) - NO_SWITCHES)
        if unknown:
            raise ValueError(f"unknown switches {sorted(unknown)}; see XStaConfig")
        return XStaConfig(without=list(self.without), **dict(self.switches))

    @property
    def name(self) -> str:
        """A readable file name: what differs from the protocol's settings is in it, so nothing overwrites another."""
        parts = [self.method, *(f"without-{name}" for name in self.without)]
        parts += [f"{name}-{value}" for name, value in self.switches]
        tag = backbone_tag(self.protocol, self.backbone)
        parts += [tag] if tag else []
        parts += [f"{name}-{value}" for name, value in changed_settings(asdict(self)).items()]
        return "_".join([*parts, f"seed{self.seed}"]).replace("/", "-")

    @property
    def place(self) -> str:
        """The folder's name under ``results`` and ``runs``: the protocol, without the path where it is a folder."""
        return place_of(self.protocol)

    @property
    def fingerprint(self) -> str:
        """A key of everything that shapes the result."""
        values = {name: value for name, value in asdict(self).items() if (name, value) not in LATER_FIELDS}
        values["protocol"] = self.place  # a folder is the same however its path is written
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _as_default(switch: tuple[str, object]) -> tuple[str, object]:
    """A switch with its value in the type of the default: 0 and 0.0 are one experiment."""
    name, value = switch
    return name, float(value) if isinstance(XStaConfig.__dict__.get(name), float) else value


def _usual(protocol: str) -> dict[str, object]:
    """The protocol's value of every field that has one."""
    values = {field.name: field.default for field in fields(Experiment) if field.default is not MISSING}
    return values | SETTINGS.get(protocol, FOLDER_SETTINGS)


def place_of(protocol: str) -> str:
    """The name of a protocol's folder under ``results`` and ``runs``; of a folder of your own files its last part."""
    return Path(protocol).resolve().name


def backbone_tag(protocol: str, backbone: str) -> str:
    """A short name of a backbone for files and headings, empty for the protocol's own."""
    if backbone == _usual(protocol)["backbone"]:
        return ""
    if backbone.startswith((".", "/", "~")) or backbone.count("/") > 1 or backbone.endswith(".bin"):  # a path
        return f"{Path(backbone).name.removesuffix('.bin')}-{hashlib.sha256(backbone.encode()).hexdigest()[:6]}"
    return backbone.replace("/", "-")


def changed_settings(config: Mapping[str, object]) -> dict[str, object]:
    """Fields of an experiment, or of a result's ``config``, that differ from the protocol's settings.

    Left out are those that tables have a place for: method, ablations, switches, backbone and seed.
    """
    usual = _usual(str(config["protocol"]))
    for name in ("without", "switches", "backbone", "seed"):
        del usual[name]
    return {name: config[name] for name, value in usual.items() if config.get(name, value) != value}


def setting_of(config: Mapping[str, object]) -> str:
    """Backbone and optimisation where they are not the protocol's own, such as ``mbert, epochs=2.0``; else empty.

    Results compare within one setting. Ways to train one method (``WAYS``) and switches are not part of it.
    """
    tag = backbone_tag(str(config["protocol"]), str(config["backbone"]))
    changed = [f"{name}={value}" for name, value in changed_settings(config).items() if name not in WAYS]
    return ", ".join(filter(None, (tag, *changed)))


def experiment(protocol: str, method: str, **changes) -> Experiment:
    """An experiment with its protocol's optimisation settings; ``changes`` overrule single fields.

    Raises:
        ValueError: ``protocol`` is neither a known name nor a folder; or see :class:`Experiment`.
    """
    if protocol not in SETTINGS and not Path(protocol).is_dir():
        raise ValueError(f"unknown protocol {protocol!r}; the protocols are {', '.join(SETTINGS)}, or a folder")
    settings = SETTINGS.get(protocol, FOLDER_SETTINGS)
    if "epochs" in changes and "steps" not in changes:
        settings = settings | {"steps": 0}  # the protocol's own steps would overrule them
    return Experiment(protocol, method, **{**settings, **changes})


def replace_method(exp: Experiment, method: str) -> Experiment:
    """The same experiment with another method, the paper's variant of it."""
    return replace(exp, method=method, without=(), switches=())
