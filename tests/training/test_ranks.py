"""Two gloo processes do what one process does: the same losses, weights, checkpoints and answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from xsta_lib.baselines.aacl import AaclConfig, AaclForQuestionAnswering, AaclTrainer
from xsta_lib.data.batches import Part
from xsta_lib.data.protocols import TestSet, load_protocol
from xsta_lib.data.windows import WindowSpec, build_windows, pair_windows
from xsta_lib.model.configuration import XStaConfig
from xsta_lib.model.modeling import XStaForQuestionAnswering
from xsta_lib.prediction import evaluation
from xsta_lib.prediction.evaluation import evaluate_once
from xsta_lib.training import ranks
from xsta_lib.training.checkpoints import newest_checkpoint
from xsta_lib.training.configuration import TrainingConfig
from xsta_lib.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
STEPS = 10
pytestmark = pytest.mark.heavy  # it starts processes
TOLERANCE = 2e-5  # float32 sums in another order, over ten steps


def train(folder: Path, backbone: Path, kind=XStaForQuestionAnswering, config=None, trainer=Trainer, **changes):
    """Train a tiny X-STA (or another model) without dropout; every rank calls this. Returns model and tokenizer.

    25 English rows and 17 pairs in batches of 6: the last batches have one and five rows, fewer and unevenly more than
    there are ranks.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = config or XStaConfig(sharing_layer=2)
    model, tokenizer = kind.from_backbone(str(backbone), config, ["en", "de"], dropout=0.0)
    torch.nn.init.normal_(model.qa_outputs.weight, std=0.5)
    data, spec = load_protocol("demo"), WindowSpec(max_length=128, stride=16)
    source = build_windows(data.train[:40], tokenizer, spec)
    target = build_windows(data.parallel["de"][:40], tokenizer, spec)
    parts = [Part("en", source), Part("de", target, source, pair_windows(target, source, by_answer=True))]
    settings = {"steps": STEPS, "batch_size": 6, "learning_rate": 3e-3, "log_every": 1, "precision": "fp32"} | changes
    trainer = trainer(model, parts, TrainingConfig(**settings), tokenizer.pad_token_id, folder)
    english, others = ([row for row in trainer.rows if row.part == part] for part in (0, 1))
    trainer.rows = english[:25] + others[:17]
    trainer.train(progress=False)
    return model, tokenizer


def train_aacl(folder: Path, backbone: Path) -> None:
    """Train a tiny AA-CL: five steps of each of its stages."""
    train(folder, backbone, AaclForQuestionAnswering, AaclConfig(), AaclTrainer)


def train_and_answer(folder: Path, backbone: Path, **changes) -> dict[str, torch.Tensor]:
    """Train a tiny X-STA and answer some questions; every rank calls this. Returns the weights."""
    (model, tokenizer), test = train(folder, backbone, **changes), load_protocol("demo").tests[0]
    questions = {language: test.questions[language][:7] for language in ("en", "de", "zh")}
    few = TestSet("demo", "mlqa", questions, questions["en"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "has_bf16", lambda device: False)  # it would round flat ones to other answers
        found, _ = evaluate_once(folder / "predictions", model, tokenizer, few, "gold", ("calibrated",), progress=False)
    assert [values["n"] for values in found["calibrated"].metrics.values()] == [7, 7, 7]
    place = folder / ("elsewhere" if ranks.rank() else "predictions")  # kept answers are rank 0's, for all
    again, _ = evaluate_once(place, None, tokenizer, few, "gold", ("calibrated",), progress=False)
    assert again["calibrated"] == found["calibrated"]
    return model.state_dict()


RUNNER = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from test_ranks import train, train_aacl, train_and_answer
from xsta_lib.training import ranks, trainer
ranks.start()
assert ranks.world_size() == 2
for folder, changes in {runs!r}:
    train_and_answer(Path(folder), Path({backbone!r}), **changes)
train_aacl(Path({aacl!r}), Path({backbone!r}))
folder, changes = {runs!r}[0]
if ranks.rank():  # it does not see the checkpoint yet that rank 0 goes on from
    trainer.newest_checkpoint = lambda folder: None
train(Path(folder), Path({backbone!r}), **changes)
"""


def log(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    apart = ("seconds", "content_mass", "share_")  # the last two are looked at in one process only
    return [{name: value for name, value in line.items() if not name.startswith(apart)} for line in lines]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, backbone) -> dict[str, Path]:
    """One process's run, two processes' run, and a run of two that was stopped half way and resumed."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("one", "two", "resumed", "aa-cl", "aa-cl of two")}
    train_and_answer(made["one"], backbone, save_every=STEPS)
    train_aacl(made["aa-cl"], backbone)
    runs = [(str(made["two"]), {"save_every": STEPS}), (str(made["resumed"]), {"save_every": STEPS // 2, "keep": 2})]
    code = made["two"] / "run.py"
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    names = {"backbone": str(backbone), "aacl": str(made["aa-cl of two"])}
    code.write_text(RUNNER.format(paths=paths, runs=runs, **names), "utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(code)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[:4000]
    return made


def test_two_processes_give_the_losses_of_one(folders):
    one, two = log(folders["one"]), log(folders["two"])
    assert [line["step"] for line in one] == [line["step"] for line in two] == list(range(1, STEPS + 1))
    assert any("teacher" in line for line in one) and any("teacher" not in line for line in one)
    for left, right in zip(one, two, strict=True):
        assert right == pytest.approx(left, rel=1e-4, abs=TOLERANCE), left["step"]


def test_two_processes_give_the_losses_of_aacl_in_one(folders):
    one, two = log(folders["aa-cl"]), log(folders["aa-cl of two"])
    assert {"margin", "contrast"} < {name for line in one for name in line}
    for left, right in zip(one, two, strict=True):
        assert right == pytest.approx(left, rel=1e-4, abs=TOLERANCE), left["step"]


def test_two_processes_give_the_weights_and_statistics_of_one(folders):
    newest = (newest_checkpoint(folders[name] / "checkpoints") for name in ("one", "two"))
    one, two = (load_file(str(folder / "model.safetensors")) for folder in newest)
    moved = 0
    for name, value in one.items():
        if name == "qa_outputs.bias" or name.endswith(("key.bias", "layer.1.output.LayerNorm.bias")):
            continue  # softmax and Rep-Norm take no notice of them: Adam makes their gradients' rounding large
        assert torch.allclose(value.float(), two[name].float(), atol=1e-3), name
        moved += "running" in name
    assert moved == 2


def test_answers_of_two_processes_are_merged_whole(folders):
    files = (folders[name] / "predictions" / "demo.gold.json" for name in ("one", "two"))
    one, two = (json.loads(path.read_text("utf-8")) for path in files)
    assert two["answers"] == one["answers"]
    assert [len(two["answers"]["calibrated"][language]) for language in ("en", "de", "zh")] == [7, 7, 7]


def test_every_rank_keeps_its_random_numbers(folders):
    kept = sorted(path.name for path in (folders["resumed"] / "checkpoints").iterdir())
    assert kept == ["step-0000005", "step-0000010"]
    randoms = load_file(str(folders["resumed"] / "checkpoints" / kept[0] / "random.safetensors"))
    assert {name for name in randoms if name.endswith("cpu")} == {"0.cpu", "1.cpu"}
    assert not torch.equal(randoms["0.cpu"], randoms["1.cpu"])


def test_shares_of_a_test_set_are_disjoint_and_complete():
    test = load_protocol("demo").tests[0]
    shares = [test.share(rank, 3) for rank in range(3)]
    for language, questions in test.questions.items():
        found = [question.id for share in shares for question in share.questions[language]]
        assert sorted(found) == sorted(question.id for question in questions)
    assert all({q.id for q in share.questions["de"]} <= {q.id for q in share.source} for share in shares)
