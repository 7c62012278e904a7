"""The settings of a training run, what it gives back, and how it fails."""

from dataclasses import dataclass, field

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the step, the batch, the remedy and the last good checkpoint."""


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation settings; the defaults are the paper's (section 4.2) where it gives them.

    Attributes:
        steps: optimiser steps.
        batch_size: rows (pairs, or single windows) a step, over all processes.
        tokens_per_batch: if not 0, a step's rows are as many as fit into so many tokens, both sides and
            padding to the batch's longest row counted, instead of ``batch_size``.
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
        compile: ``torch.compile`` the model (with dynamic lengths); pays on a GPU, after minutes of compiling.
        pad_multiple: lengths are rounded up to a multiple of it.
        log_every, evaluate_every, save_every: in steps; 0 never evaluates or saves on the way.
        keep: how many checkpoints stay beside the best weights.
        tracker: a tracker that Accelerate knows, by name, such as ``tensorboard`` or ``wandb``; it must be installed.
    """

    steps: int
    batch_size: int = 32
    tokens_per_batch: int = 0
    share_source: bool = False
    learning_rate: float = 3e-5
    warmup: float = 0.1
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    seed: int = 42
    precision: str = "auto"
    accumulation: int = 1
    gradient_checkpointing: bool = False
    compile: bool = False
    pad_multiple: int = 32
    log_every: int = 10
    evaluate_every: int = 0
    save_every: int = 0
    keep: int = 1
    tracker: str = ""

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; allowed: {', '.join(PRECISIONS)}")
        for name in ("steps", "batch_size", "accumulation", "log_every", "pad_multiple", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("tokens_per_batch", "evaluate_every", "save_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if not 0 <= self.warmup <= 1 or self.learning_rate <= 0:
            raise ValueError("warmup must be 0 to 1 and learning_rate above 0")


@dataclass
class TrainingResult:
    """What a run gives back.

    Attributes:
        log: its lines.
        seconds: of training.
        best_score, best_step: the best validation score and its step, where the run was validated.
        data: a key of the training questions (:meth:`~xsta_lib.protocols.ProtocolData.digest`).
        peak_memory_bytes, provenance: of the process that finished the training.
    """

    log: list[dict] = field(default_factory=list)
    seconds: float = 0.0
    best_score: float | None = None
    best_step: int | None = None
    data: str = ""
    peak_memory_bytes: int = 0
    provenance: dict = field(default_factory=dict)
