"""The settings of a training run, and the learning rate of a step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
ABOVE_0, LEAST = math.nextafter(0, 1), 1e-9  # what is less than that moves no weight
RANGES = {  # of TrainingConfig's numbers: kind, smallest, largest
    **dict.fromkeys(("batch_size", "accumulation", "keep"), (int, 1, 1_000_000)),
    "log_every": (int, 1, 1_000_000_000),
    **dict.fromkeys(("steps", "evaluate_every", "save_every"), (int, 0, 1_000_000_000)),
    "seed": (int, 0, 2**32 - 1),
    "learning_rate": (float, LEAST, 1),
    "warmup": (float, 0, 1),
    "weight_decay": (float, 0, 1),
    "max_grad_norm": (float, LEAST, 1_000_000),
}


def check_numbers(config: object, ranges: Mapping[str, tuple[type, float, float]]) -> None:
    """Refuse, with a ValueError, fields that are no number of their kind, not finite or out of their range."""
    for name, (kind, low, high) in ranges.items():
        value = getattr(config, name)
        number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        if not (number and low <= value <= high):  # nan is in no range
            least = "above 0" if low == ABOVE_0 else f"{low} or more"
            raise ValueError(
                f"{name} (--{name.replace('_', '-')}) is {value!r}; it must be a "
                f"{'whole ' if kind is int else ''}number, {least} and at most {high:,}"
            )


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation settings; the defaults are the paper's (section 4.2) where it gives them.

    Attributes:
        steps: optimiser steps; 0 leaves them open, which no :class:`Trainer` takes.
        batch_size: rows (pairs, or single windows) a step, over all processes.
        share_source: a batch of pairs holds all languages of its source windows; one source pass serves them.
        learning_rate: peak of the linear schedule.
        warmup: share of the steps with rising learning rate.
        weight_decay: AdamW's, not on biases, norms, w and b.
        max_grad_norm: clipping of the global gradient norm.
        seed: of the batch order and of dropout.
        precision: ``auto`` is bf16 where the machine has it, else fp32.
        accumulation: a step's rows are read in this many parts, to save memory; contrastive negatives and
            normalisation statistics are then those of a part.
        gradient_checkpointing: keep fewer activations and compute them again backwards.
        freeze_embeddings: leave the word embeddings as the backbone has them.
        compile: experimental: ``torch.compile`` the model (with dynamic lengths), minutes of compiling first, anew for
            every language; whether that pays was not measured.
        log_every, evaluate_every, save_every: in steps; 0 never evaluates or saves on the way.
        keep: how many checkpoints stay beside the best weights.
        tracker: a tracker that Accelerate knows, by name, such as ``tensorboard`` or ``wandb``; it must be installed.
    """

    steps: int = 0
    batch_size: int = 32
    share_source: bool = False
    learning_rate: float = 3e-5
    warmup: float = 0.1
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    seed: int = 42
    precision: str = "auto"
    accumulation: int = 1
    gradient_checkpointing: bool = False
    freeze_embeddings: bool = False
    compile: bool = False
    log_every: int = 10
    evaluate_every: int = 0
    save_every: int = 0
    keep: int = 1
    tracker: str = ""

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; allowed: {', '.join(PRECISIONS)}")
        check_numbers(self, RANGES)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The rate of a step, counted from 0: a linear rise over the warm-up's steps, then a linear fall to 0.

    The first step's rate is 0; a single step has no warm-up, or it would train nothing.
    """
    rising = math.ceil(config.warmup * config.steps) if config.steps > 1 else 0
    share = step / rising if step < rising else max(0.0, (config.steps - step) / max(1, config.steps - rising))
    return config.learning_rate * share
