"""The training loop, on Accelerate: precision, accumulation, many processes, checkpoints, resume, selection."""

import json
import math
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm
from transformers import get_linear_schedule_with_warmup

from . import parallel
from .baselines import gold_probability
from .batching import Part, Row, collate, collate_shared, endless_batches, rows_of
from .checkpoints import load_checkpoint, model_tensors, newest_checkpoint, random_state, save_checkpoint
from .machine import interrupted_once, is_out_of_memory, to_device
from .passes import clear_gradients, tune_passes
from .reporting import RunLog, means
from .training_config import TrainingConfig, TrainingError, TrainingResult

__all__ = ["Trainer", "TrainingConfig", "TrainingError", "TrainingResult", "make_optimizer"]


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW, fused; no weight decay on biases, norms and the scalars w and b (everything with fewer than 2 axes)."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


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
        on_log: takes all log lines so far after each new one (a live curve).

    Under ``torchrun`` every rank makes the same trainer and calls the same methods; each reads its share of a batch's
    rows, and the steps are those of one process with the whole batch.

    Raises:
        ValueError: a tracker that is not installed; ``share_source`` in several processes or with back-translations.
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
        on_log: Callable[[Sequence[dict]], None] | None = None,
    ):
        self.folder = Path(folder) if folder else None
        self.accelerator = parallel.make_accelerator(config, self.folder)
        if config.share_source and parallel.world_size() > 1:
            raise ValueError("share_source works in one process; leave it off under torchrun")
        if config.share_source and any(part.back is not None for part in parts):
            raise ValueError("share_source reads gold English for all languages, not back-translations; leave it off")
        self.parts, self.config, self.pad_id, self.evaluate = parts, config, pad_id, evaluate
        self.rows = list(rows) if rows is not None else rows_of(parts)
        self.run = run or json.dumps(asdict(config), sort_keys=True)
        self.on_log, self.plain_model = on_log, model
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._tune()
        if config.compile:
            model.compile(dynamic=True)
        model, optimizer = self.accelerator.prepare(model, make_optimizer(model, config))
        self.model, self.optimizer = model, optimizer
        self.schedule = get_linear_schedule_with_warmup(
            optimizer, math.ceil(config.warmup * config.steps), config.steps
        )
        self.step = 0
        self.result = TrainingResult()

    def _tune(self) -> None:
        tune_passes(self.plain_model, self.accelerator.device, self.accelerator.mixed_precision == "bf16")

    # -- one step -------------------------------------------------------------------------------------------------

    def _pieces(self, batch: Sequence[Row]) -> list[Sequence[Row]]:
        if self.config.share_source and batch[0].source >= 0:  # rows of one source stay together
            batch = sorted(batch, key=lambda row: row.source)
        count = min(self.config.accumulation, len(batch))
        size = -(-len(batch) // count)
        return [batch[i : i + size] for i in range(0, len(batch), size)]

    def _inputs(self, rows: Sequence[Row], back_translated: bool) -> dict:
        if self.config.share_source and rows[0].source >= 0:
            inputs = collate_shared(self.parts, rows, self.pad_id, self.config.pad_multiple)
        else:
            inputs = collate(self.parts, rows, self.pad_id, self.config.pad_multiple, back_translated)
        return to_device(inputs, self.accelerator.device)

    def reads_back_translation(self, batch: Sequence[Row]) -> bool:
        """Whether this step's source is back-translated English: X-MIXUP's scheduled sampling, fixed by the seed."""
        if batch[0].source < 0 or not self.parts[batch[0].part].has_back(batch):
            return False
        return np.random.default_rng([self.config.seed, self.step]).random() >= gold_probability(self.step)

    def train_step(self, batch: Sequence[Row]) -> dict[str, float]:
        """One optimiser step on one global batch; returns the loss, its terms, lambda and the teacher's column sum.

        Raises:
            TrainingError: the loss or its gradient is not finite, or memory is exhausted; weights are those before the
                step.
        """
        self.model.train()
        back, pieces = self.reads_back_translation(batch), self._pieces(batch)
        totals: dict[str, torch.Tensor] = {}
        try:
            for number, piece in enumerate(pieces, 1):
                self._read(piece, len(batch), back, number == len(pieces), totals)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                self._stop_on_memory(batch, error)
            raise
        values = self._over_ranks(totals)
        if not math.isfinite(values["loss"]):
            self._stop_on_nan(batch, "loss")
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        if self.accelerator.scaler is None and not math.isfinite(float(norm)):  # a scaler leaves such a step out itself
            self._stop_on_nan(batch, "gradient")
        self.optimizer.step()
        values["learning_rate"] = self.schedule.get_last_lr()[0]
        self.schedule.step()
        clear_gradients(self.plain_model, self.optimizer)
        self.step += 1
        return values | {"grad_norm": float(norm)}

    def _read(self, piece: Sequence[Row], rows: int, back: bool, last: bool, totals: dict[str, torch.Tensor]) -> None:
        """Forward and backward of this rank's share of some rows; a piece with too few rows is read by every rank."""
        world = parallel.world_size()
        few = len(piece) < world
        mine = piece if few else piece[parallel.rank() :: world]
        share = len(mine) / rows / (world if few else 1)
        syncing = nullcontext() if last else self.accelerator.no_sync(self.model)
        with syncing, parallel.alone() if few else nullcontext():
            output = self.model(**self._inputs(mine, back))
            self.accelerator.backward(output.loss * (share * world))  # gradients are averaged over ranks
        if few:  # every rank had its own dropout, and so its own statistics
            parallel.same_buffers(self.plain_model)
        values = {"loss": output.loss.detach(), **output.losses}
        if output.teacher_mass is not None:
            values["teacher_mass"] = output.teacher_mass.detach().mean()
        if output.mixing is not None:
            values["lambda"] = output.mixing.mean()
        for name, value in values.items():
            totals[name] = totals.get(name, 0.0) + share * value.detach().float()

    def _over_ranks(self, totals: dict[str, torch.Tensor]) -> dict[str, float]:
        """A step's values over all ranks, fetched from the device at once."""
        return dict(zip(totals, parallel.sum_over_ranks(torch.stack(list(totals.values()))).tolist(), strict=True))

    def _saved(self) -> str:
        saved = newest_checkpoint(self.folder / "checkpoints") if self.folder else None
        return f"Last good checkpoint: {saved or 'none'}"

    def _stop_on_nan(self, batch: Sequence[Row], what: str) -> None:
        language = self.parts[batch[0].part].language
        ids = [self.parts[row.part].target.id_of(row.target) for row in batch[:5]]
        raise TrainingError(
            f"the {what} is not finite at step {self.step + 1} ({language}, ids {ids}, ...); lower learning_rate or "
            f"use precision='fp32'. {self._saved()}"
        )

    def _stop_on_memory(self, batch: Sequence[Row], error: BaseException) -> None:
        raise TrainingError(
            f"out of memory at step {self.step + 1}, a batch of {len(batch)} rows: raise accumulation (now "
            f"{self.config.accumulation}), set gradient_checkpointing, or lower batch_size. {self._saved()}"
        ) from error

    # -- the loop -------------------------------------------------------------------------------------------------

    def train(self, progress: bool = True, resume: bool = True) -> TrainingResult:
        """Run all steps, from the newest checkpoint if there is one; without ``resume`` older ones are deleted.

        Ctrl-C ends the step (and the evaluation that is due after it), saves a checkpoint if there is a folder, and
        says how to go on; a second one breaks off at once, and the last checkpoint counts.
        """
        torch.manual_seed(self.config.seed + parallel.rank())
        clear_gradients(self.plain_model, self.optimizer)
        main = self.accelerator.is_main_process
        self.log = RunLog(self.folder if main else None, progress and main, self.config.steps, *self._watchers(main))
        if self.folder and not resume and main:
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        parallel.wait()
        saved = newest_checkpoint(self.folder / "checkpoints") if self.folder else None
        if saved:
            self._restore(saved)
        self.log.restart(self.step)
        options = {"tokens": self.config.tokens_per_batch, "share_source": self.config.share_source}
        batches = endless_batches(self.parts, self.rows, self.config.batch_size, self.config.seed, self.step, **options)
        bar = tqdm(total=self.config.steps, initial=self.step, desc="training", unit="step", disable=not self.log.show)
        try:
            with interrupted_once(parallel.world_size()) as interrupted:
                self._run(batches, bar, interrupted)
        except KeyboardInterrupt:
            self._say_how_to_go_on()
            raise
        finally:
            bar.close()
            self.plain_model.zero_grad(set_to_none=True)  # answering needs no gradients
            for tracker in self.accelerator.trackers:
                tracker.finish()
        self._load_best()
        return self.result

    def _run(self, batches: Iterator, bar: tqdm, interrupted: threading.Event) -> None:
        began, before = time.perf_counter(), self.result.seconds
        window: list[dict] = []
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
            if interrupted.is_set():  # the one place where weights, statistics, random numbers and scores agree
                if window:
                    self._log(window, epoch)
                if self.folder:
                    self._save()
                raise KeyboardInterrupt

    def _watchers(self, main: bool) -> tuple:
        if not self.config.tracker:
            return None, self.on_log if main else None
        self.accelerator.init_trackers("xsta", config=asdict(self.config))
        return self.accelerator.log, self.on_log if main else None

    def _say_how_to_go_on(self) -> None:
        if not self.accelerator.is_main_process:
            return
        saved = newest_checkpoint(self.folder / "checkpoints") if self.folder else None
        if saved and int(saved.name.removeprefix("step-")) == self.step:
            print(f"interrupted at step {self.step}; saved. Run the same command again to go on.")
        else:
            print(f"interrupted at step {self.step}. {self._saved()}; run the same command again to go on from it.")

    def _log(self, window: list[dict], epoch: int) -> None:
        line = {"step": self.step, "epoch": epoch, "seconds": round(self.result.seconds, 2), **means(window)}
        self.result.log.append(line)
        self.log.add(self.result.log)

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.config.steps)

    def _evaluate_and_save(self) -> None:
        if self.evaluate is not None and self._due(self.config.evaluate_every):
            score = self.evaluate()
            self._tune()  # answering may read in another precision
            self.result.log.append({"step": self.step, "validation_f1": score})
            self.log.add(self.result.log)
            if self.result.best_score is None or score > self.result.best_score:
                self.result.best_score, self.result.best_step = score, self.step
                if self.folder and self.step < self.config.steps and self.accelerator.is_main_process:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    temporary = self.folder / ".best.safetensors.part"
                    save_file(model_tensors(self.plain_model), str(temporary))
                    temporary.replace(self.folder / "best.safetensors")
        if self.folder and self.config.save_every and self._due(self.config.save_every):
            self._save()

    def _save(self) -> None:
        scaler = self.accelerator.scaler
        state = {"step": self.step, "run": self.run, "result": asdict(self.result)}
        state["scaler"] = scaler.state_dict() if scaler is not None else {}
        randoms = parallel.gather_objects(random_state())
        if self.accelerator.is_main_process:
            folder = self.folder / "checkpoints"
            save_checkpoint(folder, self.plain_model, self.optimizer, state, randoms, self.config.keep)
        parallel.wait()

    def _restore(self, path: Path) -> None:
        state = load_checkpoint(path, self.plain_model, self.optimizer, self.run, parallel.rank())
        self.step = state["step"]
        self.result = TrainingResult(**state["result"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        with warnings.catch_warnings():  # torch takes the schedule running ahead of the optimiser for a mistake
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(self.step):
                self.schedule.step()

    def _load_best(self) -> None:
        parallel.wait()  # rank 0 may still be writing
        best = self.folder / "best.safetensors" if self.folder else None
        if best and parallel.agreed(best.exists()) and self.result.best_step not in (None, self.config.steps):
            self.plain_model.load_state_dict(load_file(str(best)))
