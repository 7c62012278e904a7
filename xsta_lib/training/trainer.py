"""The training loop, on Accelerate: precision, accumulation, many processes, checkpoints, resume, selection."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import recursively_apply, send_to_device
from accelerate.utils.memory import should_reduce_batch_size
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm

from ..data.batches import Part, Row, amount, collate, collate_shared, endless_batches, rows_of
from ..data.files import replacing
from ..model.modeling import XStaForQuestionAnswering
from . import ranks
from .checkpoints import load_checkpoint, model_tensors, newest_checkpoint, random_state, save_checkpoint
from .configuration import TrainingConfig, learning_rate
from .cpu import clear_gradients, tuned
from .log import RunLog, TrainingResult, gradient_shares, means
from .machine import interrupted_once, release_memory
from .passes import Passes

WATCH_EVERY = 25  # every so many steps a batch of pairs tells where its gradient comes from and what it looks at
TRIM_EVERY = 10  # steps on a CPU: blocks of ever other sizes tear holes into the heap, half a GiB in so many steps


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the step, the batch, the remedy and the last good checkpoint."""


@dataclass(frozen=True)
class _Pending:
    """A step whose values are still on the device.

    Attributes:
        number, batch, task, rate: of the step; steps are counted from 1.
        names, values: of its loss, terms and counts, in one order.
    """

    number: int
    batch: Sequence[Row]
    task: str
    rate: float
    names: list[str]
    values: torch.Tensor


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW, fused; no weight decay on biases, norms and the scalars w and b (everything with fewer than 2 axes)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


class Trainer:
    """Trains one model on the rows of some parts.

    Args:
        model: an :class:`~xsta_lib.model.modeling.XStaForQuestionAnswering`.
        parts: the data, one part a language (see :mod:`~xsta_lib.data.batches`).
        config: the settings.
        pad_id: the tokenizer's padding id.
        folder: where log, checkpoints and the best weights go; ``None`` keeps nothing.
        evaluate: returns the selection score of the model as it is (mean F1 over the validation languages). The weights
            that score best come back at the end; without a folder the last ones stay, and scores are only logged.
        rows: the rows to train on; all rows of the parts by default.
        run: a name that a checkpoint must carry to be resumed; the settings by default.
        on_log: takes all log lines so far after each new one (a live curve).
        gold_probability: how often a step of a given number reads the gold source where a back-translated one is at
            hand too; always, by default.

    Under ``torchrun`` every rank makes the same trainer and calls the same methods; each reads its share of a batch's
    rows, and the steps are those of one process with the whole batch.

    Raises:
        ValueError: no steps or no rows; a tracker that is not installed; ``share_source`` in several processes, with
            back-translations or with parts that have not one source.
    """

    def __init__(
        self,
        model: XStaForQuestionAnswering,
        parts: Sequence[Part],
        config: TrainingConfig,
        pad_id: int,
        folder: Path | str | None = None,
        evaluate: Callable[[], float] | None = None,
        rows: Sequence[Row] | None = None,
        run: str = "",
        on_log: Callable[[Sequence[dict]], None] | None = None,
        gold_probability: Callable[[int], float] = lambda step: 1.0,
    ):
        if config.steps < 1:
            raise ValueError(f"steps is {config.steps}; it must be at least 1")
        self.folder = Path(folder) if folder else None
        self.accelerator = ranks.make_accelerator(config.precision, config.tracker, self.folder)
        if config.share_source and ranks.world_size() > 1:
            raise ValueError("share_source works in one process; leave it off under torchrun")
        if config.share_source and any(part.back is not None for part in parts):
            raise ValueError("share_source reads gold sources for all languages, not back-translations; leave it off")
        if config.share_source and len({id(part.source) for part in parts if part.source is not None}) > 1:
            raise ValueError("share_source needs parts that all have the same Windows as their source; leave it off")
        self.parts, self.config, self.pad_id, self.evaluate = parts, config, pad_id, evaluate
        self.rows = list(rows) if rows is not None else rows_of(parts)
        if not self.rows:
            raise ValueError("there are no rows to train on; give parts that hold windows")
        self.run = run or json.dumps(asdict(config), sort_keys=True)
        self.on_log, self.model, self.gold_probability = on_log, model, gold_probability
        if config.gradient_checkpointing:
            name = "activation_checkpointing_enable"  # versions of transformers before 5.23 have another one
            getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")({"use_reentrant": False})
        model.encoder.get_input_embeddings().weight.requires_grad_(not config.freeze_embeddings)
        passes = Passes(model)
        if config.compile:
            passes.compile(dynamic=True)
        self.passes, self.optimizer = self.accelerator.prepare(passes, make_optimizer(model, config))
        self.fetches = self.accelerator.device.type == "cpu"  # elsewhere every step's values would cost a wait
        self.step, self.broken = 0, None
        self.pending: list[_Pending] = []
        self.result = TrainingResult()

    # -- one step -------------------------------------------------------------------------------------------------

    def _pieces(self, batch: Sequence[Row]) -> list[Sequence[Row]]:
        if self.config.share_source and batch[0].source >= 0:  # rows of one source stay together
            batch = sorted(batch, key=lambda row: row.source)
        count = min(self.config.accumulation, len(batch))
        size = -(-len(batch) // count)
        return [batch[i : i + size] for i in range(0, len(batch), size)]

    def _batches(self) -> Iterator[tuple[int, list[Row]]]:
        """``(epoch, rows)`` of every step from this one on; a method that alternates between tasks has its own."""
        order = self.config.batch_size, self.config.seed, self.step, self.config.share_source
        return endless_batches(self.parts, self.rows, *order)

    def _inputs(self, rows: Sequence[Row], back_translated: bool) -> dict:
        """The model's arguments for some rows of this step; a method that reads something else has its own."""
        if self.config.share_source and rows[0].source >= 0:
            inputs = collate_shared(self.parts, rows, self.pad_id)
        else:
            inputs = collate(self.parts, rows, self.pad_id, back_translated=back_translated)
        return inputs

    def reads_back_translation(self, batch: Sequence[Row]) -> bool:
        """Whether this step's source is a back-translated one: scheduled sampling, fixed by the seed."""
        if batch[0].source < 0 or not self.parts[batch[0].part].has_back(batch):
            return False
        return np.random.default_rng([self.config.seed, self.step]).random() >= self.gold_probability(self.step)

    def train_step(self, batch: Sequence[Row]) -> dict[str, float]:
        """One optimiser step on one global batch; returns the loss, its terms, lambda and the teacher's column sum.

        Raises:
            TrainingError: the loss or its gradient is not finite, or memory is exhausted; weights are those before the
                step (running averages have moved with what was read, by finite statistics alone).
        """
        self._step(batch)
        return self._fetch()[0]

    def _step(self, batch: Sequence[Row]) -> None:
        """:meth:`train_step`, whose values stay on the device, which computes on meanwhile, until :meth:`_fetch`."""
        task, rate = self.task(), learning_rate(self.config, self.step)
        try:
            names, values = self._update(batch, rate)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or should_reduce_batch_size(error):
                raise TrainingError(
                    f"out of memory at step {self.step + 1}, a batch of {len(batch)} rows: raise accumulation (now "
                    f"{self.config.accumulation}), set gradient_checkpointing, or lower batch_size. {self._saved()}"
                ) from error
            raise
        self.step += 1
        self.pending.append(_Pending(self.step, batch, task, rate, names, values))

    def _update(self, batch: Sequence[Row], rate: float) -> tuple[list[str], torch.Tensor]:
        """A batch's gradients and the weights' step; the names of its loss, terms and counts, and their values."""
        self.passes.train()
        back, pieces = self.reads_back_translation(batch), self._pieces(batch)
        totals: dict[str, torch.Tensor] = {}
        for number, piece in enumerate(pieces, 1):
            self._read(piece, len(batch), back, number == len(pieces), totals)
        norm = self.accelerator.clip_grad_norm_(self.passes.parameters(), self.config.max_grad_norm)
        totals["grad_norm"] = norm.detach() / ranks.world_size()  # the same on every rank
        values = ranks.sum_over_ranks(torch.stack([value.float() for value in totals.values()]))
        if self.accelerator.scaler is None:  # a scaler leaves a step with infinite gradients out itself
            finite = values[[*totals].index("loss")].isfinite() & norm.isfinite()
            self.broken = (~finite).float() if self.broken is None else torch.maximum(self.broken, (~finite).float())
            self.optimizer.optimizer.found_inf = self.broken  # the fused AdamW then changes nothing, from here on
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        clear_gradients(self.model, self.optimizer)
        return list(totals), values

    def _fetch(self) -> list[dict[str, float]]:
        """The values of the steps since the last call, fetched from the device at once, and counted."""
        pending, self.pending, lines = self.pending, [], []
        numbers = torch.cat([step.values for step in pending]).tolist() if pending else []
        for step in pending:
            own, numbers = numbers[: len(step.names)], numbers[len(step.names) :]
            line = dict(zip(step.names, own, strict=True)) | {"learning_rate": step.rate}
            if not math.isfinite(line["loss"]):
                self._stop_on_nan(step, "loss")
            if not math.isfinite(line["grad_norm"]):
                if self.accelerator.scaler is None:
                    self._stop_on_nan(step, "gradient")
                del line["grad_norm"]  # the scaler left this step out
            counts = {"steps": 1} | {name: round(line.pop(name)) for name in ("sequences", "tokens")}
            for name, count in counts.items():
                setattr(self.result, name, getattr(self.result, name) + count)
                if step.task:
                    extra = self.result.extra.setdefault(step.task, dict.fromkeys(counts, 0))
                    extra[name] += count
            lines.append(line)
        return lines

    def task(self) -> str:
        """What this step learns beside answering; a method that alternates between tasks names the others."""
        return ""

    def _read(self, piece: Sequence[Row], rows: int, back: bool, last: bool, totals: dict[str, torch.Tensor]) -> None:
        """Forward and backward of this rank's share of some rows; a piece with too few rows is read by every rank."""
        world = ranks.world_size()
        few = len(piece) < world
        mine = piece if few else piece[ranks.rank() :: world]
        share = len(mine) / rows / (world if few else 1)
        syncing = nullcontext() if last else self.accelerator.no_sync(self.passes)
        with syncing, ranks.alone() if few else ranks.one_batch():
            inputs = self._inputs(mine, back)
            for name, count in amount(inputs).items():
                value = torch.full((), count / (world if few else 1), device=self.accelerator.device)
                totals[name] = totals.get(name, 0.0) + value
            if watched := not few and self._watches(inputs):
                inputs["explain"] = True
            output = self.passes(**self._send(inputs))
            shares = gradient_shares(self.model, output.losses) if watched else {}
            self.accelerator.backward(output.loss * (share * world))  # gradients are averaged over ranks
        if few:  # every rank had its own dropout, and so its own statistics
            ranks.same_buffers(self.model)
        terms = {**output.losses, "uniform_gap": output.uniform_gap, "teacher_mass": output.teacher_mass}
        alone = "source" not in inputs and "targets" not in inputs
        if alone and self.model.config.reads_pairs:  # S = T: terms of another size under their own names
            terms = {name if name == "target" else f"own_{name}": value for name, value in terms.items()}
        values = {"loss": output.loss, **terms, **shares}
        values |= {"lambda": output.mixing, "content_mass": output.content_mass}
        for name, value in values.items():
            if value is not None:
                totals[name] = totals.get(name, 0.0) + share * value.detach().float().mean()

    def _watches(self, inputs: Mapping) -> bool:
        """Whether gradients and attention are looked at: of one process that reads one language's pairs.

        A compiled backward pass frees what further ones need; in float16 gradients vanish without the scaler's factor.
        """
        due = self.step % WATCH_EVERY == 0 and ranks.world_size() == 1
        due = due and not self.config.compile and self.accelerator.scaler is None
        return due and "source" in inputs and "targets" not in inputs

    def _send(self, inputs: dict) -> dict:
        """A batch on its way to the device, which a GPU fetches while this process goes on."""
        if self.accelerator.device.type == "cuda":
            inputs = recursively_apply(torch.Tensor.pin_memory, inputs)
        return send_to_device(inputs, self.accelerator.device, non_blocking=True)

    def _newest(self) -> Path | None:
        return newest_checkpoint(self.folder / "checkpoints") if self.folder else None

    def _saved(self) -> str:
        return f"Last good checkpoint: {self._newest() or 'none'}"

    def _stop_on_nan(self, step: _Pending, what: str) -> None:
        self.step, self.broken = step.number - 1, None  # weights are those before it: a later call goes on there
        language = self.parts[step.batch[0].part].language
        ids = [self.parts[row.part].target.id_of(row.target) for row in step.batch[:5]]
        raise TrainingError(
            f"the {what} is not finite at step {step.number} ({language}, ids {ids}, ...); lower learning_rate or "
            f"use precision='fp32'. {self._saved()}"
        )

    # -- the loop -------------------------------------------------------------------------------------------------

    def train(self, progress: bool = True) -> TrainingResult:
        """Run all steps, from the newest checkpoint on if there is one.

        Ctrl-C ends the step (and the evaluation that is due after it), saves a checkpoint if there is a folder, and
        says how to go on; a second one breaks off at once, and the last checkpoint counts.
        """
        torch.manual_seed(self.config.seed + ranks.rank())
        self.model.zero_grad(set_to_none=True)
        main = self.accelerator.is_main_process
        self.log = RunLog(self.folder if main else None, progress and main, self.config.steps, *self._watchers(main))
        if saved := ranks.agreed(self._newest()):
            self._restore(saved)
        self.log.restart(self.step)
        batches = self._batches()
        bar = tqdm(total=self.config.steps, initial=self.step, desc="training", unit="step", disable=not self.log.show)
        try:
            with self._tuned(), interrupted_once(ranks.world_size()) as interrupted:
                self._run(batches, bar, interrupted)
        except KeyboardInterrupt:
            self._say_how_to_go_on()
            raise
        finally:
            bar.close()
            self.model.zero_grad(set_to_none=True)  # answering needs none
            for tracker in self.accelerator.trackers:
                tracker.finish()
        self._load_best()
        return self.result

    def _tuned(self) -> AbstractContextManager:
        """How the model reads while it trains; a compiled one reads as it was compiled."""
        bf16 = self.accelerator.mixed_precision == "bf16"
        return nullcontext() if self.config.compile else tuned(self.model, bf16)

    def _run(self, batches: Iterator, bar: tqdm, interrupted: threading.Event) -> None:
        began, before = time.perf_counter(), self.result.seconds
        window: list[dict] = []
        while self.step < self.config.steps:
            epoch, batch = next(batches)
            self._step(batch)
            bar.update()
            logs = self.step % self.config.log_every == 0 or self.step == self.config.steps
            if self.fetches or logs or self._due_now():
                window += self._fetch()
                bar.set_postfix(loss=f"{window[-1]['loss']:.3f}", refresh=False)
            self.result.seconds = before + time.perf_counter() - began
            if logs:
                self._log(window, epoch)
                window = []
            self._evaluate_and_save()
            if self.step % TRIM_EVERY == 0 and self.model.device.type == "cpu":
                release_memory()
            if interrupted.is_set():  # the one place where weights, statistics, random numbers and scores agree
                window += self._fetch()
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
        saved = self._newest()
        if saved and int(saved.name.removeprefix("step-")) == self.step:
            print(f"interrupted at step {self.step}; saved. Run the same command again to go on.")
        else:
            print(f"interrupted at step {self.step}. {self._saved()}; run the same command again to go on from it.")

    def _log(self, window: list[dict], epoch: int) -> None:
        line = {"step": self.step, "epoch": epoch, "seconds": round(self.result.seconds, 2), **means(window)}
        self.result.log.append(line)
        self.log.add(self.result.log)

    def _due_now(self) -> bool:
        """Whether an evaluation or a checkpoint comes after this step."""
        return self._due(self.config.evaluate_every) or self._due(self.config.save_every)

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.config.steps)

    def _evaluate_and_save(self) -> None:
        if self.evaluate is not None and self._due(self.config.evaluate_every):
            score = self.evaluate()
            self.result.log.append({"step": self.step, "validation_f1": score})
            self.log.add(self.result.log)
            if self.folder and (self.result.best_score is None or score > self.result.best_score):
                self.result.best_score, self.result.best_step = score, self.step
                if self.step < self.config.steps and self.accelerator.is_main_process:
                    with replacing(self.folder / "best.safetensors") as temporary:
                        save_file(model_tensors(self.model), str(temporary))
        if self.folder and self._due(self.config.save_every):
            self._save()

    def _save(self) -> None:
        scaler = self.accelerator.scaler
        state = {"step": self.step, "run": self.run, "result": asdict(self.result)}
        state["scaler"] = scaler.state_dict() if scaler is not None else {}
        randoms = ranks.gather_objects(random_state())
        if self.accelerator.is_main_process:
            folder = self.folder / "checkpoints"
            save_checkpoint(folder, self.model, self.optimizer, state, randoms, self.config.keep)
        ranks.wait()

    def _restore(self, path: Path) -> None:
        state = load_checkpoint(path, self.model, self.optimizer, self.run, ranks.rank())
        self.step, self.pending, self.broken = state["step"], [], None
        self.result = TrainingResult(**state["result"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _load_best(self) -> None:
        ranks.wait()  # rank 0 may still be writing
        best = self.folder / "best.safetensors" if self.folder else None
        if best and ranks.agreed(best.exists()) and self.result.best_step not in (None, self.config.steps):
            self.model.load_state_dict(load_file(str(best)))
