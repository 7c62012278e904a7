"""The trainer of each method, and what some need first: another task's rows, readers of folds, a pre-training."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..baselines.aacl import AaclTrainer
from ..baselines.calibrenet import (
    CalibreNetForQuestionAnswering,
    CalibreTrainer,
    PhraseEdges,
    Spans,
    answered_windows,
    fold_of,
    fold_spans,
)
from ..baselines.lakm import LakmTrainer, lakm_tasks
from ..baselines.phrases import training_passages
from ..data.batches import Part, rows_of
from ..data.files import replacing
from ..data.protocols import ProtocolData
from ..data.windows import WindowSpec
from ..model.modeling import XStaForQuestionAnswering
from ..training import ranks
from ..training.checkpoints import model_tensors
from ..training.configuration import TrainingConfig
from ..training.log import TrainingResult
from ..training.trainer import Trainer

FOLDS = 2  # of the source; each reader is trained without one, so that it answers that one's questions as unseen ones
COUNTED = ("steps", "sequences", "tokens", "seconds")


def spent(result: TrainingResult) -> dict[str, float]:
    """What a training run cost."""
    return {name: getattr(result, name) for name in COUNTED}


def add_stages(result: TrainingResult, stages: Mapping[str, Mapping[str, float]]) -> None:
    """Count stages that came before a run as part of it."""
    result.extra |= stages
    for name in COUNTED:
        setattr(result, name, getattr(result, name) + sum(stage[name] for stage in stages.values()))


def once(
    path: Path, work: Callable[[], tuple[dict[str, Tensor], TrainingResult]]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The tensors that a stage leaves and what it cost, kept in ``path`` (safetensors): done once, then read.

    A stage that was stopped goes on from its checkpoints, in the folder of the path's stem, which goes at the end.
    """
    if not ranks.agreed(path.exists()):
        tensors, result = work()
        if ranks.rank() == 0:
            with replacing(path) as temporary:
                save_file(tensors, str(temporary), {"spent": json.dumps(spent(result))})
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        ranks.wait()
    with safe_open(path, "pt") as file:
        return load_file(str(path)), json.loads(file.metadata()["spent"])


@dataclass(frozen=True)
class Stages:
    """CalibreNet's stages before its fine-tuning; each leaves a file, and while it goes on has a folder of its own.

    Attributes:
        config: the fine-tuning's settings; boundary recovery has half as many steps, the folds as many together.
        tokenizer: the model's.
        folder, run: where the stages lie, and the name that their checkpoints bear.
        progress: see :class:`~xsta_lib.training.trainer.Trainer`.
    """

    config: TrainingConfig
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    run: str
    progress: bool

    def _train(
        self, kind: type[Trainer], name: str, share: int, model, parts: Sequence[Part], **named
    ) -> TrainingResult:
        """Train for one ``share``-th of the fine-tuning's steps."""
        config = replace(self.config, steps=-(-self.config.steps // share), evaluate_every=0, tracker="")
        given = model, parts, config, self.tokenizer.pad_token_id, self.folder / name
        return kind(*given, run=f"{self.run} {name}", **named).train(self.progress)

    def recover_boundaries(self, model: CalibreNetForQuestionAnswering, data: ProtocolData) -> dict[str, float]:
        """Pre-train the calibrator on the phrases of all training languages; returns the cost."""

        def work() -> tuple[dict[str, Tensor], TrainingResult]:
            passages = training_passages(data, self.tokenizer, WindowSpec())
            edges, parts = PhraseEdges(passages), [found.part for found in passages]
            result = self._train(CalibreTrainer, "boundaries", 2, model, parts, rows=edges.rows, spans=edges)
            return {name: value for name, value in model_tensors(model).items() if not name.startswith("base.")}, result

        tensors, cost = once(self.folder / "boundaries.safetensors", work)
        model.load_state_dict(tensors, strict=False)
        return cost

    def answer_folds(
        self, source: Part, contexts: Sequence[str], fresh: Callable[[], XStaForQuestionAnswering]
    ) -> tuple[Spans, dict[str, dict[str, float]]]:
        """Each fold of the source's rows answered by a reader trained on the others, and the cost by fold.

        Args:
            source: the rows. contexts: by question.
            fresh: gives a reader before its training.

        Raises:
            ValueError: there are fewer passages than folds.
        """
        windows, costs = source.target, {}
        folds, answers = fold_of(contexts, FOLDS)[windows.row], np.zeros((len(windows), 2), dtype=int)
        if len(set(folds.tolist())) < FOLDS:
            raise ValueError(f"calibrenet needs {FOLDS} or more training passages in {source.language}; add some")

        def work(fold: int) -> tuple[dict[str, Tensor], TrainingResult]:
            reader, rows = fresh(), [row for row in rows_of([source]) if folds[row.target] != fold]
            result = self._train(Trainer, f"fold-{fold}", FOLDS, reader, [source], rows=rows)
            found = answered_windows(reader, self.tokenizer, windows, np.flatnonzero(folds == fold))
            return {"answers": torch.from_numpy(found)}, result

        for fold in range(FOLDS):
            kept, costs[f"fold {fold}"] = once(self.folder / f"fold-{fold}.safetensors", partial(work, fold))
            answers[folds == fold] = kept["answers"].numpy()
        return partial(fold_spans, windows, contexts, answers), costs


def make_trainer(
    method: str,
    model: XStaForQuestionAnswering,
    parts: Sequence[Part],
    config: TrainingConfig,
    data: ProtocolData,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    first: Callable[[], tuple[XStaForQuestionAnswering, TrainingResult]],
    fresh: Callable[[], XStaForQuestionAnswering],
    progress: bool,
    **named,
) -> tuple[Trainer, dict[str, dict[str, float]]]:
    """The trainer of a method, and what the stages before it cost, by their names.

    Args:
        first: gives CalibreNet's base reader, trained.
        fresh: gives CalibreNet a base reader before its training.
        named: see :class:`~xsta_lib.training.trainer.Trainer`, as for the other arguments.
    """
    given = model, parts, config, tokenizer.pad_token_id, folder
    if method.startswith("lakm"):
        tasks = lakm_tasks(data, tokenizer, model.config.mix_mrc)
        return LakmTrainer(*given, **named, **tasks, tokenizer=tokenizer), {}
    if method == "aa-cl":
        return AaclTrainer(*given, **named), {}
    if method == "calibrenet":
        stages = Stages(config, tokenizer, folder / "stages", named["run"], progress)
        costs = {"boundary recovery": stages.recover_boundaries(model, data)}
        base, result = first()
        model.base.load_state_dict(base.state_dict())
        costs["base reader"] = spent(result)
        answers, by_fold = stages.answer_folds(parts[0], [question.context for question in data.train], fresh)
        return CalibreTrainer(*given, **named, spans=answers), costs | by_fold
    return Trainer(*given, **named), {}
