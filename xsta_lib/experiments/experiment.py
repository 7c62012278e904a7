"""What an experiment is: a frozen configuration with a name and a fingerprint; each protocol's settings; the grids."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from ..baselines.aacl import AaclConfig, AaclForQuestionAnswering
from ..baselines.calibrenet import CalibreNetConfig, CalibreNetForQuestionAnswering
from ..baselines.lakm import LakmConfig, LakmForQuestionAnswering
from ..baselines.mixup import MixupConfig, MixupForQuestionAnswering
from ..data.protocols import LOADERS, PARALLEL
from ..encoders.backbones import local_path
from ..model.configuration import ABLATIONS, XStaConfig
from ..model.modeling import XStaForQuestionAnswering
from ..training.configuration import ABOVE_0, TrainingConfig, check_numbers

# The compared systems in the paper's order: the model's class, and what makes its configuration.
METHODS = {
    "zero-shot": (XStaForQuestionAnswering, XStaConfig.plain),
    "calibrenet": (CalibreNetForQuestionAnswering, CalibreNetConfig),
    "trans-train": (XStaForQuestionAnswering, XStaConfig.plain),
    "lakm": (LakmForQuestionAnswering, LakmConfig),
    "lakm_mixmrc": (LakmForQuestionAnswering, partial(LakmConfig, mix_mrc=True)),
    "aa-cl": (AaclForQuestionAnswering, AaclConfig),
    "pairs": (XStaForQuestionAnswering, XStaConfig.plain),  # X-STA's batches and span losses, all its parts off
    "x-mixup": (MixupForQuestionAnswering, MixupConfig),
    "x-mixup_content": (MixupForQuestionAnswering, partial(MixupConfig, sharing_keys="content")),
    "x-sta": (XStaForQuestionAnswering, XStaConfig),
}
SOURCE_ONLY = ("zero-shot", "calibrenet")  # read no translations' answers
ROW_BY_ROW = ("trans-train", "lakm", "lakm_mixmrc")  # read translations without their source
PAIRED = ("pairs", "x-mixup", "x-mixup_content", "x-sta")  # read each translation beside its source

# Optimisation of each protocol: every method of a comparison gets the same.
SETTINGS = {
    "demo": {"learning_rate": 1e-4, "batch_size": 16, "epochs": 0.4, "dropout": 0.0, "english_epochs": 3.0},
    **{name: {"learning_rate": 1e-4, "batch_size": 16, "epochs": 1.0, "dropout": 0.0} for name in PARALLEL},
    **{name: {} for name in LOADERS if name.startswith("paper-")},  # the paper's are the defaults
    **{name: {"steps": 24_000} for name in LOADERS if name.startswith("paper-mlqa")},  # the release's script
}
FOLDER_SETTINGS = SETTINGS["parallel"]  # a folder of your own files
# What shapes a result: its config's fields, some of them of TrainingConfig. Those that came later, here with the value
# that changes nothing, are left out of fingerprints where they have it, so that older results stay valid.
RECORDED = (
    *("protocol", "method", "without", "switches", "backbone", "seed", "epochs", "english_epochs", "learning_rate"),
    *("batch_size", "dropout", "precision"),
)
LATER = {"accumulation": 1, "share_source": False, "steps": 0, "equal_tokens": False, "freeze_embeddings": False}
LATER |= {"warmup": 0.1, "weight_decay": 1e-4, "max_grad_norm": 1.0, "source_language": "en", "evaluate_every": 0}
# ways to train that are compared as systems of one setting
WAYS = ("share_source", "equal_tokens")
RANGES = {"epochs": (float, ABOVE_0, 10_000), "english_epochs": (float, 0, 10_000)}
NO_SWITCHES = {"encoder", "languages", "source_language", "without"}  # data, backbone and ``without`` decide these
NO_FOLDERS = (*SETTINGS, "translation")  # a folder of your own may not be called so: its results would lie among others
LONGEST_NAME = 120  # in bytes: with seed, fingerprint and what kind of file it is, a name may have 255


@dataclass(frozen=True)
class Experiment:
    """One training run and its evaluation.

    Attributes:
        protocol: what data (see :mod:`~xsta_lib.data.protocols`).
        method: a key of ``METHODS``.
        without: ablations of Table 4 (x-sta only).
        switches: fields of :class:`~xsta_lib.model.configuration.XStaConfig` that differ from the paper, as pairs.
        backbone: see :func:`~xsta_lib.encoders.backbones.load_backbone`; a local one's path is made absolute.
        dropout: the encoder's; ``None`` keeps the backbone's own.
        epochs: times the batches of the pair setting (rows by ``batch_size``, each language pair rounded up) are the
            optimiser steps, the same for every method, unless ``training`` gives ``steps``.
        equal_tokens: trans-train goes on until it has read as many tokens as the pair setting would in the steps above.
        english_epochs: epochs on the source language alone before, shared by all methods (the demo's head start).
        source_language: the language that teaches; of the demo and of folders it may be another than English.
        training: the optimisation; answers are read in bfloat16 wherever the device has it, whatever its precision.
    """

    protocol: str
    method: str
    without: tuple[str, ...] = ()
    switches: tuple[tuple[str, object], ...] = ()
    backbone: str = "e5-small-q4"
    dropout: float | None = None
    epochs: float = 1.0
    english_epochs: float = 0.0
    equal_tokens: bool = False
    source_language: str = "en"
    training: TrainingConfig = TrainingConfig()

    def __post_init__(self):
        object.__setattr__(self, "without", tuple(sorted(set(self.without))))  # in any order, one experiment
        if path := local_path(self.backbone):
            object.__setattr__(self, "backbone", str(path.resolve()))
        floats = {name for name, default in vars(XStaConfig).items() if isinstance(default, float)}
        switches = [(name, float(value) if name in floats else value) for name, value in self.switches]  # 0 is 0.0
        object.__setattr__(self, "switches", tuple(sorted(switches)))
        if self.protocol not in SETTINGS and self.place in NO_FOLDERS:
            raise ValueError(f"{self.protocol}: results/{self.place} holds what is measured otherwise; rename it")
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; allowed: {', '.join(METHODS)}")
        if (self.without or self.switches) and self.method != "x-sta":
            raise ValueError("without and switches belong to the method x-sta")
        check_numbers(self, RANGES if self.dropout is None else RANGES | {"dropout": (float, 0, 0.99)})
        if self.equal_tokens and self.method != "trans-train":
            raise ValueError("equal_tokens belongs to the method trans-train: others read pairs or the source alone")
        if self.training.share_source and self.method not in PAIRED:
            raise ValueError(f"share_source belongs to methods that read pairs: {', '.join(PAIRED)}")
        if "sharing_dropout" in dict(self.switches) and self.dropout is not None:
            raise ValueError("sharing_dropout follows dropout; only with dropout=None it has a value of its own")
        self.model_config()  # refuses unknown switches

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "Experiment":
        """An experiment from flat values, those of ``training`` among them: the inverse of :meth:`to_dict`."""
        own = {field.name for field in fields(cls)} - {"training"}
        training = TrainingConfig(**{name: value for name, value in values.items() if name not in own})
        return cls(**{name: value for name, value in values.items() if name in own}, training=training)

    def to_dict(self) -> dict[str, object]:
        """The flat values that shape a result, as its ``config`` keeps them; 1 and 1.0 are one experiment."""
        values = vars(self.training) | vars(self)
        every = (*fields(self), *fields(self.training))
        floats = {f.name for f in every if f.type in (float, float | None) and values[f.name] is not None}
        return {name: float(values[name]) if name in floats else values[name] for name in (*RECORDED, *LATER)}

    def on_the_source(self) -> "Experiment":
        """The plain reader with the same settings that learns from the source language alone."""
        training = replace(self.training, share_source=False)
        return replace(self, method="zero-shot", without=(), switches=(), equal_tokens=False, training=training)

    def model_config(self) -> XStaConfig:
        """The model's configuration, without encoder."""
        unknown = {name for name, _ in self.switches} - (set(XStaConfig.__annotations__) - NO_SWITCHES)
        if unknown:
            raise ValueError(f"unknown switches {sorted(unknown)}; see XStaConfig")
        given = {"source_language": self.source_language, "without": list(self.without)}
        return METHODS[self.method][1](**given, **dict(self.switches))

    @property
    def name(self) -> str:
        """A readable file name: what differs from the protocol's settings is in it, so nothing overwrites another.

        A long one is cut and has the fingerprint instead of the rest.
        """
        parts = [self.method, *(f"without-{name}" for name in self.without)]
        parts += [f"{name}-{value}" for name, value in self.switches]
        parts += filter(None, [backbone_tag(self.backbone)])
        parts += [f"{name}-{value}" for name, value in changed_settings(self.to_dict()).items()]
        name = "_".join(parts).replace("/", "-")
        if len(name.encode()) > LONGEST_NAME:
            name = f"{name.encode()[: LONGEST_NAME - 20].decode(errors='ignore')}_{self.fingerprint}"
        return f"{name}_seed{self.training.seed}"

    @property
    def place(self) -> str:
        """The folder's name under ``results`` and ``runs``: the protocol, without the path where it is a folder."""
        return place_of(self.protocol)

    @property
    def fingerprint(self) -> str:
        """A key of everything that shapes the result."""
        values = self.to_dict() | {"protocol": self.place}  # a folder is the same however its path is written
        values = {name: value for name, value in values.items() if (name, value) not in LATER.items()}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


DEFAULTS = Experiment("demo", "zero-shot").to_dict()


def place_of(protocol: str) -> str:
    """The name of a protocol's folder under ``results`` and ``runs``; of a folder of your own files its last part."""
    return Path(protocol).resolve().name


def backbone_tag(backbone: str | None) -> str:
    """A short name of a backbone for files and headings, empty for the usual one, which ``None`` means too."""
    if backbone in (None, Experiment.backbone):
        return ""
    if path := local_path(backbone):
        path = path.resolve()
        return f"{path.name.removesuffix('.bin')}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"
    return backbone.replace("/", "-")


def changed_settings(config: Mapping[str, object]) -> dict[str, object]:
    """Fields of a result's ``config`` that differ from the protocol's settings.

    Left out are those that tables have a place for: protocol, method, ablations, switches, backbone and seed.
    """
    placed = ("protocol", "method", "without", "switches", "backbone", "seed")
    usual = DEFAULTS | SETTINGS.get(str(config["protocol"]), FOLDER_SETTINGS)
    changed = {name: config[name] for name, value in usual.items() if config.get(name, value) != value}
    return {name: value for name, value in changed.items() if name not in placed}


def setting_of(config: Mapping[str, object]) -> str:
    """Backbone and optimisation where they are not the protocol's own, such as ``mbert, epochs=2.0``; else empty.

    Results compare within one setting. Ways to train one method (``WAYS``) and switches are not part of it.
    """
    tag = backbone_tag(str(config["backbone"]))
    changed = [f"{name}={value}" for name, value in changed_settings(config).items() if name not in WAYS]
    return ", ".join(filter(None, (tag, *changed)))


def experiment(protocol: str, method: str, **changes) -> Experiment:
    """An experiment with its protocol's optimisation settings.

    Args:
        protocol, method: see :class:`Experiment`.
        changes: overrule single fields of the experiment or of its ``training``, those that shape the result
            (``seed=43``) and those that say how to run (``compile=True``, ``save_every=50``).

    Raises:
        ValueError: ``protocol`` is neither a known name nor a folder; steps and epochs both, or no steps; or see
            :class:`Experiment`.
    """
    if protocol not in SETTINGS and not Path(protocol).is_dir():
        raise ValueError(f"unknown protocol {protocol!r}; the protocols are {', '.join(SETTINGS)}, or a folder")
    check_numbers(SimpleNamespace(steps=changes.get("steps", 1)), {"steps": (int, 1, 1_000_000_000)})
    if "steps" in changes and "epochs" in changes:
        raise ValueError("steps (--steps) and epochs (--epochs) both say how long to train; give one of them")
    settings = {"save_every": 0 if protocol == "demo" else 100} | SETTINGS.get(protocol, FOLDER_SETTINGS)
    if "epochs" in changes and "steps" not in changes:
        settings = settings | {"steps": 0}  # the protocol's own steps would overrule them
    return Experiment.from_dict({"protocol": protocol, "method": method, **settings, **changes})


SEEDS = (42, 43, 44)
GAMMAS = (0.0, 0.01, 0.05, 0.1, 0.5)  # Figure 7
LAYERS = tuple(range(1, 13))  # Figure 8; on real data every second one, for time
OTHER_FORMS = (  # switches of docs/method.md, section 6, and weights that the paper does not compare
    {"source_rows": "span"},
    {"zeta": 0.0, "eta": 0.0},
    {"zeta": 0.5, "eta": 0.5},
    {"sharing_keys": "content"},
    {"token_alignment_gradient": False},
    {"sentence_states": "normalised"},
    {"normalisation": "shared"},
    {"teacher": "raw"},
    {"teacher_gradient": False},
)


def grid(
    name: str, protocol: str, backbone: str = Experiment.backbone, source_language: str = "en"
) -> list[Experiment]:
    """The experiments of a grid; the paper's own setting among them is the plain method, measured once for all.

    Args:
        name: ``methods`` (the compared systems), ``ablations`` (Table 4; "w/o ATGC inference" is a reading of the full
            method and needs no run), ``gamma`` (Figure 7), ``layers`` (Figure 8), ``seeds`` (methods by seeds) or
            ``variants`` (what the paper does not have: the source read once for all languages of a question, frozen
            word embeddings, trans-train with as many tokens as pairs have, and ``OTHER_FORMS``).
        protocol, backbone, source_language: of all of them, see :class:`Experiment`.

    Raises:
        ValueError: unknown name.
    """

    def switched(switch: str, values: Iterable[object]) -> list[dict[str, object]]:
        usual = getattr(XStaConfig, switch)
        return [{} if value == usual else {"switches": ((switch, value),)} for value in values]

    grids = {
        "methods": [{"method": method} for method in METHODS],
        "ablations": [{}, *({"without": (part,)} for part in ABLATIONS if part != "atgc_inference")],
        "gamma": switched("gamma", GAMMAS),
        "layers": switched("sharing_layer", LAYERS if protocol == "demo" else LAYERS[1::2]),
        "seeds": [{"method": method, "seed": seed} for seed in SEEDS for method in METHODS],
        "variants": [
            *({}, {"share_source": True}, {"freeze_embeddings": True}, {"method": "trans-train", "equal_tokens": True}),
            *({"switches": tuple(form.items())} for form in OTHER_FORMS),
        ],
    }
    if name not in grids:
        raise ValueError(f"unknown grid {name!r}; the grids are {', '.join(grids)}")
    shared = {"method": "x-sta", "backbone": backbone, "source_language": source_language}
    return [experiment(protocol, **shared | one) for one in grids[name]]
