"""Two gloo processes do what one process does: the same losses, weights, checkpoints and answers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from tiny import write_tiny_e5

from xsta_lib import XStaConfig, XStaForQuestionAnswering, evaluation, parallel
from xsta_lib.batching import Part
from xsta_lib.checkpoints import newest_checkpoint
from xsta_lib.evaluation import evaluate_once
from xsta_lib.features import WindowSpec, build_windows, pair_windows
from xsta_lib.protocols import TestSet, load_protocol
from xsta_lib.training import Trainer, TrainingConfig

ROOT = Path(__file__).resolve().parent.parent
STEPS = 10
TOLERANCE = 2e-5  # float32 sums in another order, over ten steps


def train_and_answer(folder: Path, backbone: Path, **changes) -> dict[str, torch.Tensor]:
    """Train a tiny X-STA without dropout, answer some questions; every rank calls this. Returns the weights.

    25 English rows and 17 pairs in batches of 6: the last batches have one and five rows, fewer and unevenly more than
    there are ranks.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, tokenizer = XStaForQuestionAnswering.from_backbone(
        str(backbone), XStaConfig(sharing_layer=2), ["en", "de"], dropout=0.0
    )
    torch.nn.init.normal_(model.qa_outputs.weight, std=0.5)
    data, spec = load_protocol("demo"), WindowSpec(max_length=128, stride=16)
    source = build_windows(data.train, tokenizer, spec)
    target = build_windows(data.parallel["de"], tokenizer, spec)
    parts = [Part("en", source), Part("de", target, source, pair_windows(target, source, by_answer=True))]
    settings = {"steps": STEPS, "batch_size": 6, "learning_rate": 3e-3, "log_every": 1, "precision": "fp32"} | changes
    trainer = Trainer(model, parts, TrainingConfig(**settings), tokenizer.pad_token_id, folder)
    english, pairs = ([row for row in trainer.rows if (row.source >= 0) == paired] for paired in (False, True))
    trainer.rows = english[:25] + pairs[:17]
    trainer.train(progress=False)
    test = data.tests[0]
    questions = {language: test.questions[language][:7] for language in ("en", "de", "zh")}
    few = TestSet("demo", "mlqa", questions, questions["en"])
    with patch.object(evaluation, "has_bf16", return_value=False):  # it would round flat distributions to other answers
        found, _ = evaluate_once(folder / "predictions", model, tokenizer, few, "gold", ("calibrated",), progress=False)
    assert {language: values["n"] for language, values in found["calibrated"].metrics.items()} == dict.fromkeys(
        questions, 7
    )
    return model.state_dict()


RUNNER = """
import sys
from pathlib import Path
from unittest.mock import patch
sys.path.insert(0, {tests!r})
from test_parallel import train_and_answer
from xsta_lib import parallel
parallel.start()
assert parallel.world_size() == 2
for folder, changes in {runs!r}:
    train_and_answer(Path(folder), Path({backbone!r}), **changes)
"""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    data = load_protocol("demo")
    texts = [q.context for q in (*data.train, *data.parallel["de"])]
    return write_tiny_e5(tmp_path_factory.mktemp("tiny") / "tiny.bin", texts=texts)


def log(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, backbone) -> dict[str, Path]:
    """One process's run, two processes' run, and a run of two that was stopped half way and resumed."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("one", "two", "resumed")}
    train_and_answer(made["one"], backbone, save_every=STEPS)
    runs = [(str(made["two"]), {"save_every": STEPS}), (str(made["resumed"]), {"save_every": STEPS // 2, "keep": 2})]
    code = made["two"] / "run.py"
    code.write_text(RUNNER.format(tests=str(Path(__file__).parent), runs=runs, backbone=str(backbone)), "utf-8")
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


def test_two_processes_give_the_weights_and_statistics_of_one(folders):
    one, two = (
        load_file(str(newest_checkpoint(folders[n] / "checkpoints") / "model.safetensors")) for n in ("one", "two")
    )
    moved = 0
    for name, value in one.items():
        if name == "qa_outputs.bias" or name.endswith("key.bias"):
            continue  # softmax takes no notice of them: their gradients are rounding, which Adam makes large
        assert torch.allclose(value.float(), two[name].float(), atol=1e-3 if "running" not in name else 1e-4), name
        moved += "running" in name
    assert moved == 2


def test_answers_of_two_processes_are_merged_whole(folders):
    one, two = (
        json.loads((folders[name] / "predictions" / "demo.gold.json").read_text("utf-8")) for name in ("one", "two")
    )
    assert two["answers"] == one["answers"]
    assert {language: len(texts) for language, texts in two["answers"]["calibrated"].items()} == {
        "en": 7,
        "de": 7,
        "zh": 7,
    }


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


def test_one_process_is_all_ranks():
    value = torch.ones(2, requires_grad=True)
    assert parallel.sum_over_ranks(value) is value and parallel.gather_objects(3) == [3]
    assert (parallel.world_size(), parallel.rank(), parallel.agreed(True)) == (1, 0, True)
