"""The training loop, on Accelerate: precision, accumulation, checkpoints, exact resume, selection of the best."""

import json
import math
import resource
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import get_linear_schedule_with_warmup

from .batching import Part, Row, collate, endless_batches, rows_of
from .checkpoints import load_checkpoint, model_tensors, newest_checkpoint, save_checkpoint

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the step, the batch and the last good checkpoint."""


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation settings; the defaults are the paper's (section 4.2) where it gives them.

    Attributes:
        steps: optimiser steps.
        batch_size: rows (pairs, or single windows) a step.
        learning_rate: peak of the linear schedule.
        warmup: share of the steps with rising learning rate.
        weight_decay: AdamW's, not on biases, norms, w and b.
        max_grad_norm: clipping of the global gradient norm.
        seed: of the batch order and of dropout.
        precision: ``auto`` is bf16 where the machine has it, else fp32.
        accumulation: a step's rows are read in this many parts.
        log_every, evaluate_every, save_every: in steps; 0 never evaluates or saves on the way.
    """

    steps: int
    batch_size: int = 32
    learning_rate: float = 3e-5
    warmup: float = 0.1
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    seed: int = 42
    precision: str = "auto"
    accumulation: int = 1
    log_every: int = 10
    evaluate_every: int = 0
    save_every: int = 0

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; allowed: {', '.join(PRECISIONS)}")
        for name in ("steps", "batch_size", "accumulation", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.warmup <= 1 or self.learning_rate <= 0:
            raise ValueError("warmup must be 0 to 1 and learning_rate above 0")


@dataclass
class TrainingResult:
    """What a run gives back: the log's lines, seconds, the best validation score and its step."""

    log: list[dict] = field(default_factory=list)
    seconds: float = 0.0
    best_score: float | None = None
    best_step: int | None = None


def has_bf16(device: torch.device | str = "cpu") -> bool:
    """Whether bfloat16 is worth using on a device."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.device(device).type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def peak_memory_bytes() -> int:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW, fused; no weight decay on biases, norms and the scalars w and b (everything with fewer than 2 axes)."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def to_device(inputs: dict, device: torch.device) -> dict:
    """A batch's tensors, nested ones included, moved to a device."""
    if isinstance(inputs, dict):
        return {name: to_device(value, device) for name, value in inputs.items()}
    return inputs.to(device, non_blocking=True) if isinstance(inputs, Tensor) else inputs


class Trainer:
    """Trains one model on the rows of some parts.

    Args:
        model: an :class:`~xsta_lib.modeling.XStaForQuestionAnswering`.
        parts: the data, one part a language (see :mod:`~xsta_lib.batching`).
        config: the settings.
        pad_id: the tokenizer's padding id.
        folder: where log, checkpoints and the best weights go; ``None`` keeps nothing.
        evaluate: returns the selection score of the model as it is (mean F1 over the validation languages).
        rows: the rows to train on; all rows of the parts by default.
        run: a name that a checkpoint must carry to be resumed; the settings by default.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: Sequence[Part],
        config: TrainingConfig,
        pad_id: int,
        folder: Path | str | None = None,
        evaluate: Callable[[], float] | None = None,
        rows: Sequence[Row] | None = None,
        run: str = "",
    ):
        precision = config.precision
        if precision == "auto":
            precision = "bf16" if has_bf16("cuda" if torch.cuda.is_available() else "cpu") else "fp32"
        mixed = "no" if precision == "fp32" else precision
        known = AcceleratorState._shared_state.get("_mixed_precision")
        if known not in (None, mixed):  # accelerate keeps one precision a process unless told to forget it
            AcceleratorState._reset_state()
        self.accelerator = Accelerator(mixed_precision=mixed)
        self.parts, self.config, self.pad_id, self.evaluate = parts, config, pad_id, evaluate
        self.rows = list(rows) if rows is not None else rows_of(parts)
        self.folder = Path(folder) if folder else None
        self.run = run or json.dumps(asdict(config), sort_keys=True)
        self.plain_model = model
        model, optimizer = self.accelerator.prepare(model, make_optimizer(model, config))
        self.model, self.optimizer = model, optimizer
        self.schedule = get_linear_schedule_with_warmup(
            optimizer, math.ceil(config.warmup * config.steps), config.steps
        )
        self.step = 0
        self.result = TrainingResult()

    # -- one step -------------------------------------------------------------------------------------------------

    def _pieces(self, batch: Sequence[Row]) -> list[Sequence[Row]]:
        count = min(self.config.accumulation, len(batch))
        size = -(-len(batch) // count)
        return [batch[i : i + size] for i in range(0, len(batch), size)]

    def train_step(self, batch: Sequence[Row]) -> dict[str, float]:
        """One optimiser step on one batch; returns the loss, its terms, lambda and the teacher's column sum."""
        self.model.train()
        totals: dict[str, float] = {}
        for piece in self._pieces(batch):
            inputs = to_device(collate(self.parts, piece, self.pad_id), self.accelerator.device)
            output = self.model(**inputs)
            share = len(piece) / len(batch)
            if not torch.isfinite(output.loss):
                self._stop_on_nan(batch)
            self.accelerator.backward(output.loss * share)
            values = {"loss": output.loss.detach(), **output.losses}
            if output.teacher_mass is not None:
                values["teacher_mass"] = output.teacher_mass.detach().mean()
            if output.mixing is not None:
                values["lambda"] = output.mixing.mean()
            for name, value in values.items():
                totals[name] = totals.get(name, 0.0) + share * value.item()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        totals["learning_rate"] = self.schedule.get_last_lr()[0]
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return totals | {"grad_norm": float(norm)}

    def _stop_on_nan(self, batch: Sequence[Row]) -> None:
        part = self.parts[batch[0].part]
        ids = [part.target.id_of(row.target) for row in batch[:5]]
        saved = newest_checkpoint(self.folder / "checkpoints") if self.folder else None
        raise TrainingError(
            f"the loss is not finite at step {self.step + 1} ({part.language}, ids {ids}, ...); lower learning_rate or "
            f"use precision='fp32'. Last good checkpoint: {saved or 'none'}"
        )

    # -- the loop -------------------------------------------------------------------------------------------------

    def train(self, progress: bool = True, resume: bool = True) -> TrainingResult:
        """Run all steps, from the newest checkpoint if there is one.

        Ctrl-C saves a checkpoint first (if there is a folder) and says how to go on.
        """
        torch.manual_seed(self.config.seed)
        saved = newest_checkpoint(self.folder / "checkpoints") if self.folder and resume else None
        if saved:
            self._restore(saved)
        batches = endless_batches(self.parts, self.rows, self.config.batch_size, self.config.seed, skip=self.step)
        bar = tqdm(total=self.config.steps, initial=self.step, desc="training", unit="step", disable=not progress)
        began, before = time.perf_counter(), self.result.seconds
        window: list[dict] = []
        try:
            while self.step < self.config.steps:
                epoch, batch = next(batches)
                window.append(self.train_step(batch))
                bar.set_postfix(loss=f"{window[-1]['loss']:.3f}", refresh=False)
                bar.update()
                self.result.seconds = before + time.perf_counter() - began
                if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                    self._log(window, epoch)
                    window = []
                self._evaluate_and_save()
        except KeyboardInterrupt:
            if self.folder:
                self._save()
                print(f"interrupted at step {self.step}; saved. Run the same command again to go on.")
            raise
        finally:
            bar.close()
        self._load_best()
        return self.result

    def _log(self, window: list[dict], epoch: int) -> None:
        names = sorted({name for line in window for name in line})
        means = {}
        for name in names:
            values = [line[name] for line in window if name in line]
            means[name] = round(sum(values) / len(values), 6)
        line = {"step": self.step, "epoch": epoch, "seconds": round(self.result.seconds, 2), **means}
        self.result.log.append(line)
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.config.steps)

    def _evaluate_and_save(self) -> None:
        if self.evaluate is not None and self._due(self.config.evaluate_every):
            score = self.evaluate()
            self.result.log.append({"step": self.step, "validation_f1": score})
            if self.result.best_score is None or score > self.result.best_score:
                self.result.best_score, self.result.best_step = score, self.step
                if self.folder and self.step < self.config.steps:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    temporary = self.folder / ".best.safetensors.part"
                    save_file(model_tensors(self.plain_model), str(temporary))
                    temporary.replace(self.folder / "best.safetensors")
        if self.folder and self.config.save_every and self._due(self.config.save_every):
            self._save()

    def _save(self) -> None:
        result = asdict(self.result)
        state = {"step": self.step, "run": self.run, "result": result}
        save_checkpoint(self.folder / "checkpoints", self.plain_model, self.optimizer, state)

    def _restore(self, path: Path) -> None:
        state = load_checkpoint(path, self.plain_model, self.optimizer, self.run)
        self.step = state["step"]
        self.result = TrainingResult(**state["result"])
        with warnings.catch_warnings():  # torch takes the schedule running ahead of the optimiser for a mistake
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(self.step):
                self.schedule.step()
        log = self.folder / "metrics.jsonl"  # lines written after the checkpoint will be written again
        if log.exists():
            kept = [line for line in log.read_text("utf-8").splitlines() if json.loads(line)["step"] <= self.step]
            log.write_text("".join(line + "\n" for line in kept), "utf-8")

    def _load_best(self) -> None:
        best = self.folder / "best.safetensors" if self.folder else None
        if best and best.exists() and self.result.best_step not in (None, self.config.steps):
            self.plain_model.load_state_dict(load_file(str(best)))
