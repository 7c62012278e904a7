"""The trainer of each method, and what some need first: another task's rows, readers of folds, a pre-training."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
    FoldAnswers,
    PhraseEdges,
    answered_windows,
    fold_of,
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
from ..training.trainer import Trainer, TrainingConfig, TrainingResult

FOLDS = 2  # of English; each reader is trained without one, so that it answers that one's questions as unseen ones
COUNTED = ("steps", "sequences", "tokens", "seconds")


def spent(result: TrainingResult) -> dict[str, float]:
    """What a training run cost; one from before steps were counted has them in its log."""
    found = {name: getattr(result, name) for name in COUNTED}
    return found | {"steps": max(result.steps, result.log[-1]["step"] if result.log else 0)}


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


def prepare_calibrator(
    model: CalibreNetForQuestionAnswering,
    english: Part,
    data: ProtocolData,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainingConfig,
    folder: Path,
    run: str,
    fresh: Callable[[], XStaForQuestionAnswering],
    progress: bool,
) -> tuple[FoldAnswers, dict[str, dict[str, float]]]:
    """CalibreNet's stages before its fine-tuning: answers of the folds' readers, then boundary recovery.

    Args:
        model: the calibrator; it comes back pre-trained.
        english: the English rows of ``data.train``.
        config: of the fine-tuning; the folds' readers have as many steps together, the pre-training half as many.
        folder, run: of the whole run; each stage has a file, and while it goes on a folder, of its own in there.
        fresh: gives a base reader before its training.
    """
    contexts, windows, stages = [question.context for question in data.train], english.target, {}
    folds = fold_of(contexts, FOLDS)[windows.row]
    if set(folds.tolist()) != set(range(FOLDS)):
        raise ValueError(f"calibrenet needs at least {FOLDS} different English training passages")
    answers = np.zeros((len(windows), 2), dtype=int)
    unwatched = replace(config, evaluate_every=0, tracker="")

    def read_fold(fold: int) -> tuple[dict[str, Tensor], TrainingResult]:
        rows = [row for row in rows_of([english]) if folds[row.target] != fold]
        few = replace(unwatched, steps=-(-config.steps // FOLDS))
        named = {"rows": rows, "run": f"{run} fold {fold}"}
        trainer = Trainer(fresh(), [english], few, tokenizer.pad_token_id, folder / f"fold-{fold}", **named)
        result = trainer.train(progress)
        found = answered_windows(trainer.model, tokenizer, windows, np.flatnonzero(folds == fold))
        return {"answers": torch.from_numpy(found)}, result

    for fold in range(FOLDS):
        kept, stages[f"fold {fold}"] = once(folder / f"fold-{fold}.safetensors", lambda fold=fold: read_fold(fold))
        answers[folds == fold] = kept["answers"].numpy()

    def recover_boundaries() -> tuple[dict[str, Tensor], TrainingResult]:
        passages = training_passages(data, tokenizer, WindowSpec())
        edges, few = PhraseEdges(passages), replace(unwatched, steps=-(-config.steps // 2))
        parts, named = [found.part for found in passages], {"rows": edges.rows, "spans": edges}
        place = tokenizer.pad_token_id, folder / "boundaries"
        result = CalibreTrainer(model, parts, few, *place, run=f"{run} boundaries", **named).train(progress)
        return model_tensors(model), result

    kept, stages["boundary recovery"] = once(folder / "boundaries.safetensors", recover_boundaries)
    model.load_state_dict(kept)
    return FoldAnswers(windows, contexts, answers), stages


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
        fresh, progress: see :func:`prepare_calibrator`.
        named: see :class:`~xsta_lib.training.trainer.Trainer`, as for the other arguments.
    """
    given = model, parts, config, tokenizer.pad_token_id, folder
    if method.startswith("lakm"):
        tasks = lakm_tasks(data, tokenizer, model.config.mix_mrc)
        return LakmTrainer(*given, **named, **tasks, tokenizer=tokenizer), {}
    if method == "aa-cl":
        return AaclTrainer(*given, **named), {}
    if method == "calibrenet":
        base, result = first()
        model.base.load_state_dict(base.state_dict())
        stages = folder / "stages", named["run"], fresh, progress
        answers, costs = prepare_calibrator(model, parts[0], data, tokenizer, config, *stages)
        return CalibreTrainer(*given, **named, spans=answers), {"base reader": spent(result), **costs}
    return Trainer(*given, **named), {}
