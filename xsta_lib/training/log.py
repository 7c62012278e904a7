"""What a training run tells: its lines, in ``metrics.jsonl``, a tracker, a live curve; at its end, what it took."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data.files import write_text_atomically
from ..model.modeling import XStaForQuestionAnswering

SHOWN = ("loss", "source", "target", "teacher", "sentence", "token", "own_teacher", "own_sentence", "own_token")
SHOWN += ("distance", "margin", "contrast", "knowledge", "lambda", "learning_rate")


@dataclass
class TrainingResult:
    """What a run gives back.

    Attributes:
        log: its lines.
        seconds: from the first step to the end of the last one: with the validations and checkpoints between them,
            without those that come after it.
        steps, sequences, tokens: made and read by all steps together, both sides of pairs, without padding.
        extra: the part of these four that a method spends beside the span batches it is compared on, by what it does
            there (another task's steps, a stage that comes first).
        best_score, best_step: the best validation score and its step, where the run was validated and has a folder.
        data: a key of the training questions, behind it of those that selected (``digest`` and ``selection`` of
            :class:`~xsta_lib.data.protocols.ProtocolData`), and of a local backbone's weights.
        peak_memory_bytes, provenance: of the process that finished the training.
    """

    log: list[dict] = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0
    sequences: int = 0
    tokens: int = 0
    extra: dict[str, dict[str, float]] = field(default_factory=dict)
    best_score: float | None = None
    best_step: int | None = None
    data: str = ""
    peak_memory_bytes: int = 0
    provenance: dict = field(default_factory=dict)


def means(window: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every value over the steps that have it (steps without a source have no teacher, for one)."""
    found = {}
    for name in sorted({name for line in window for name in line}):
        values = [line[name] for line in window if name in line]
        found[name] = round(sum(values) / len(values), 6)
    return found


def gradient_shares(model: XStaForQuestionAnswering, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How strongly each weighted term pulls, beside the span losses: ``share_<term>``, norms' quotients.

    Gradients are taken on the layer below the sharing one, through which all terms go, before accumulation; where
    nothing shares (AA-CL) and there are fewer layers, on the last one. A term that does not reach it pulls with 0.

    Args:
        model: whose terms these are.
        losses: by name, with their graphs, which are kept.

    Returns:
        The shares; none where no term is beside the span losses, or the encoder's layers are not built like BERT's.
    """
    weights, spans = model.weights(losses), ("source", "target")
    layers = getattr(getattr(model.encoder, "encoder", None), "layer", None)
    if not set(losses) - set(spans) or layers is None:
        return {}
    below = [model.encoder.embeddings, *layers][min(model.config.sharing_layer - 1, len(layers))]
    words = model.encoder.get_input_embeddings().weight
    moved = [parameter for parameter in below.parameters() if parameter.requires_grad and parameter is not words]

    def norm(loss: Tensor) -> Tensor:
        pulls = torch.autograd.grad(loss, moved, retain_graph=True, allow_unused=True)
        norms = [pull.float().norm() for pull in pulls if pull is not None]
        return torch.stack(norms).norm() if norms else loss.new_zeros(())

    span = norm(sum(weights[name] * losses[name] for name in spans if name in losses)).clamp_min(1e-12)
    return {f"share_{name}": norm(weights[name] * losses[name]) / span for name in losses if name not in spans}


class RunLog:
    """Takes a run's log lines and passes them on.

    Args:
        folder: where ``metrics.jsonl`` grows; ``None`` writes nothing.
        show: print a line for each.
        steps: of the whole run, for the time left.
        track: takes each line's numbers and the step (Accelerate's ``log``).
        on_log: takes all lines so far, after each new one.
    """

    def __init__(
        self,
        folder: Path | None,
        show: bool,
        steps: int,
        track: Callable[[dict, int], None] | None = None,
        on_log: Callable[[Sequence[dict]], None] | None = None,
    ):
        self.path = folder / "metrics.jsonl" if folder else None
        self.show, self.steps, self.track, self.on_log = show, steps, track, on_log

    def restart(self, step: int) -> None:
        """Drop lines behind a checkpoint's step, which will be written again, and a last one that was cut off."""
        if self.path and self.path.exists():
            lines = self.path.read_text("utf-8").split("\n")[:-1]  # nothing stands behind the last line's end
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            write_text_atomically(self.path, "".join(line + "\n" for line in kept))

    def add(self, lines: Sequence[dict]) -> None:
        """Report the newest of all lines so far."""
        line = lines[-1]
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if self.track:
            self.track({name: value for name, value in line.items() if name != "step"}, line["step"])
        if self.on_log:
            self.on_log(lines)
        elif self.show:
            tqdm.write(self.text(line))

    def text(self, line: Mapping[str, float]) -> str:
        """A log line as a terminal shows it."""
        if "validation_f1" in line:
            return f"step {line['step']}: validation F1 {line['validation_f1']:.2f}"
        shown = [f"{name.replace('_', ' ')} {line[name]:.3g}" for name in SHOWN if name in line]
        left = line["seconds"] / line["step"] * (self.steps - line["step"])
        return f"step {line['step']}/{self.steps}: {', '.join(shown)}, {tqdm.format_interval(left)} left"
