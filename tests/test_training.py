"""The loop: the loss falls, a killed run resumes bit for bit, bad checkpoints and losses stop with a reason."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import write_tiny_e5

from xsta_lib import XStaConfig, XStaForQuestionAnswering
from xsta_lib.batching import Part, epoch_batches, row_length
from xsta_lib.checkpoints import CheckpointError, newest_checkpoint, replace_folder
from xsta_lib.features import WindowSpec, build_windows, pair_windows
from xsta_lib.machine import is_out_of_memory
from xsta_lib.protocols import load_protocol
from xsta_lib.training import Trainer, TrainingConfig, TrainingError, make_optimizer

STEPS = 12


def make_trainer(folder: Path, backbone: Path, languages=("de",), dropout=0.1, **changes) -> Trainer:
    """A trainer of a tiny X-STA (dropout on) on 24 English rows and 24 pairs a language, batches of 8."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = XStaConfig(sharing_layer=2)
    model, tokenizer = XStaForQuestionAnswering.from_backbone(
        str(backbone), config, ["en", *languages], dropout=dropout
    )
    data, spec = load_protocol("demo"), WindowSpec(max_length=192, stride=32)
    source = build_windows(data.train[:24], tokenizer, spec)
    parts = [Part("en", source)]
    for language in languages:
        target = build_windows(data.parallel[language][:24], tokenizer, spec)
        parts.append(Part(language, target, source, pair_windows(target, source, by_answer=True)))
    settings = {"steps": STEPS, "batch_size": 8, "learning_rate": 3e-3, "save_every": 3, "log_every": 1} | changes
    return Trainer(model, parts, TrainingConfig(**settings), tokenizer.pad_token_id, folder)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    data = load_protocol("demo")
    texts = [q.context for q in (*data.train, *data.parallel["de"])]
    return write_tiny_e5(tmp_path_factory.mktemp("tiny") / "tiny.bin", texts=texts)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, backbone) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Weights and log of an uninterrupted run."""
    trainer = make_trainer(tmp_path_factory.mktemp("whole"), backbone)
    result = trainer.train(progress=False)
    return {name: value.clone() for name, value in trainer.plain_model.state_dict().items()}, result.log


def test_loss_falls_and_is_logged(tmp_path, backbone):
    trainer = make_trainer(tmp_path, backbone, steps=40, save_every=0, log_every=5)
    log = trainer.train(progress=False).log
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    pairs = [line for line in log if "teacher" in line]
    assert pairs and {"source", "target", "sentence", "token", "lambda", "teacher_mass"} <= set(pairs[0])
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert written == log


RUNNER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_training import make_trainer
make_trainer(Path({folder!r}), Path({backbone!r})).train(progress=False)
"""


@pytest.mark.parametrize("seen", ["step-0000003", ".step-0000006.part", "step-0000009"])
def test_killed_run_resumes_bit_for_bit(tmp_path, backbone, whole, seen):
    code = RUNNER.format(tests=str(Path(__file__).parent), folder=str(tmp_path), backbone=str(backbone))
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent.parent)
    until = time.monotonic() + 120
    while not (tmp_path / "checkpoints" / seen).exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.0005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() in (-signal.SIGKILL, 0)
    trainer = make_trainer(tmp_path, backbone)
    before = newest_checkpoint(tmp_path / "checkpoints")
    result = trainer.train(progress=False)
    assert before is not None and int(before.name[5:]) in (3, 6, 9, 12)
    weights, log = whole
    for name, value in trainer.plain_model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    timeless = [{k: v for k, v in line.items() if k != "seconds"} for line in result.log]
    assert timeless == [{k: v for k, v in line.items() if k != "seconds"} for line in log]


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path, backbone):
    make_trainer(tmp_path, backbone, steps=3).train(progress=False)
    with pytest.raises(CheckpointError, match="another run"):
        make_trainer(tmp_path, backbone, steps=3, seed=7).train(progress=False)
    path = newest_checkpoint(tmp_path / "checkpoints") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        make_trainer(tmp_path, backbone, steps=3).train(progress=False)


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal: a job in the background inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_in_step(trainer: Trainer, number: int, times: int = 1) -> None:
    """Send Ctrl-C in the middle of a step: behind its forward pass, which moves statistics and draws random numbers."""
    backward = trainer.accelerator.backward

    def interrupted(loss: torch.Tensor) -> None:
        for _ in range(times if trainer.step == number else 0):
            os.kill(os.getpid(), signal.SIGINT)
        backward(loss)

    trainer.accelerator.backward = interrupted


@pytest.mark.usefixtures("ctrl_c")
def test_interrupted_run_resumes_bit_for_bit(tmp_path, backbone, whole, capsys):
    trainer = make_trainer(tmp_path, backbone, save_every=0)
    interrupt_in_step(trainer, 4)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(progress=False)
    assert newest_checkpoint(tmp_path / "checkpoints").name == "step-0000005"
    assert "same command again" in capsys.readouterr().out
    resumed = make_trainer(tmp_path, backbone, save_every=0)
    resumed.train(progress=False)
    for name, value in resumed.plain_model.state_dict().items():
        assert torch.equal(value, whole[0][name]), name


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_interrupt_breaks_off_and_the_last_checkpoint_counts(tmp_path, backbone, capsys):
    trainer = make_trainer(tmp_path, backbone)
    interrupt_in_step(trainer, 4, times=2)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(progress=False)
    assert newest_checkpoint(tmp_path / "checkpoints").name == "step-0000003"
    assert "again breaks off" in capsys.readouterr().out and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


@pytest.mark.usefixtures("ctrl_c")
def test_interrupt_in_the_last_step_waits_for_its_evaluation(tmp_path, backbone):
    results = []
    for place, number in (("whole", -1), ("stopped", STEPS - 1)):
        trainer = make_trainer(tmp_path / place, backbone, save_every=0, evaluate_every=6)
        trainer.evaluate = lambda trainer=trainer: 10.0 + trainer.step  # the last weights are the best
        interrupt_in_step(trainer, number)
        if number > 0:
            with pytest.raises(KeyboardInterrupt):
                trainer.train(progress=False)
            trainer = make_trainer(tmp_path / place, backbone, save_every=0, evaluate_every=6)
        found = trainer.train(progress=False)
        results.append((found.best_step, trainer.plain_model.state_dict()))
    assert results[0][0] == results[1][0] == STEPS
    assert all(torch.equal(value, results[1][1][name]) for name, value in results[0][1].items())


def test_nan_stops_with_step_and_ids(tmp_path, backbone):
    trainer = make_trainer(tmp_path, backbone, learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"step \d+ \((en|de), ids"):
        trainer.train(progress=False)


def test_a_gradient_that_is_not_finite_touches_no_weight(backbone):
    trainer = make_trainer(None, backbone, precision="fp32")
    before = {name: value.clone() for name, value in trainer.plain_model.named_parameters()}
    trainer.plain_model.qa_outputs.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match=r"the gradient is not finite at step 1 \(en, ids"):
        trainer.train_step(trainer.rows[:4])
    assert all(torch.equal(value, before[name]) for name, value in trainer.plain_model.named_parameters())


def test_a_run_from_the_start_leaves_nothing_of_an_older_one(tmp_path, backbone):
    make_trainer(tmp_path, backbone, steps=6, save_every=2).train(progress=False)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "lo')  # a line cut off by a full disk
    trainer = make_trainer(tmp_path, backbone, steps=4, save_every=2)
    trainer.train(progress=False, resume=False)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000004"]
    lines = (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_a_checkpoint_is_replaced_only_by_a_whole_one(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
        replace_folder(tmp_path / name, tmp_path / "step-1")
    assert (tmp_path / "step-1" / "weights").read_text() == "second"
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "missing", tmp_path / "step-2")
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_best_weights_come_back(tmp_path, backbone):
    trainer = make_trainer(tmp_path, backbone, steps=6, evaluate_every=2, save_every=0)
    kept, scores = {}, iter([10.0, 30.0, 20.0])

    def evaluate() -> float:
        kept[trainer.step] = {name: value.clone() for name, value in trainer.plain_model.state_dict().items()}
        return next(scores)

    trainer.evaluate = evaluate
    result = trainer.train(progress=False)
    assert (result.best_score, result.best_step) == (30.0, 4)
    for name, value in trainer.plain_model.state_dict().items():
        assert torch.equal(value, kept[4][name]), name
    assert set(load_file(str(tmp_path / "best.safetensors"))) == set(kept[4])


def test_no_decay_on_scalars_biases_and_norms(backbone):
    trainer = make_trainer(None, backbone)
    model = trainer.plain_model
    decayed, plain = make_optimizer(model, trainer.config).param_groups
    assert {id(p) for p in decayed["params"]} == {id(p) for p in model.parameters() if p.ndim >= 2}
    assert any(p is model.sharing_layer.mixing_weight for p in plain["params"]) and plain["weight_decay"] == 0


def test_accumulation_gives_the_same_step_without_contrast(backbone):
    losses = []
    for accumulation in (1, 2):
        trainer = make_trainer(None, backbone, accumulation=accumulation, precision="fp32")
        trainer.plain_model.config.zeta = 0.0
        trainer.plain_model.config.gamma = 0.0
        trainer.rows = [row for row in trainer.rows if row.source < 0]
        losses.append(trainer.train_step(trainer.rows[:8])["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)  # dropout draws differ


@pytest.mark.parametrize(
    ("change", "message"),
    [({"precision": "int4"}, "allowed"), ({"steps": 0}, "at least 1"), ({"warmup": 2.0}, "warmup")],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**{"steps": 1, **change})


def test_two_precisions_in_one_process(backbone):
    for precision in ("fp32", "bf16", "fp32"):
        trainer = make_trainer(None, backbone, precision=precision)
        losses = trainer.train_step(trainer.rows[:4])
        assert trainer.accelerator.mixed_precision == {"fp32": "no"}.get(precision, precision)
        assert losses["loss"] == losses["loss"]


def test_one_source_pass_serves_all_languages_with_the_same_loss(backbone):
    options = {"languages": ("de", "es"), "dropout": 0.0, "precision": "fp32"}
    trainer, apart = (make_trainer(None, backbone, share_source=share, **options) for share in (True, False))
    rows = {part: {row.source: row for row in trainer.rows if row.part == part and row.source >= 0} for part in (1, 2)}
    both = sorted(rows[1].keys() & rows[2].keys())[:4]
    batch = [rows[part][source] for source in both for part in (1, 2)]
    apart.plain_model.train()
    losses = [apart.plain_model(**apart._inputs([rows[part][s] for s in both], False)).loss.item() for part in (1, 2)]
    passes = []
    encode = trainer.plain_model.encode
    trainer.plain_model.encode = lambda *given, **named: (
        passes.append(len(given[0] if given else named["input_ids"])) or (encode(*given, **named))
    )
    assert trainer.train_step(batch)["loss"] == pytest.approx(sum(losses) / 2, rel=1e-4)
    assert passes == [4, 4, 4]  # English once, German, Spanish


def test_back_translations_are_not_shared(backbone):
    with pytest.raises(ValueError, match="share_source reads gold English"):
        trainer = make_trainer(None, backbone)
        part = trainer.parts[1]
        part = Part(part.language, part.target, part.source, part.paired, part.source, part.paired)
        Trainer(trainer.plain_model, [part], TrainingConfig(steps=1, share_source=True), trainer.pad_id)


@pytest.mark.parametrize("share_source", [False, True])
def test_batches_by_tokens_hold_every_row_once_and_no_more_tokens(backbone, share_source):
    trainer = make_trainer(None, backbone)
    batches = epoch_batches(trainer.parts, trainer.rows, 8, 1, 0, tokens=900, share_source=share_source)
    assert Counter(row for batch in batches for row in batch) == Counter(trainer.rows)
    for batch in batches:
        sides = 2 if batch[0].source >= 0 else 1
        longest = max(row_length(trainer.parts, row) for row in batch)
        assert len(batch) * longest * sides <= 900 or len({row.source for row in batch}) == 1
    assert len({len(batch) for batch in batches}) > 1


def test_running_out_of_memory_says_what_to_lower(backbone, monkeypatch):
    trainer = make_trainer(None, backbone)

    def exhausted(*given, **named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(trainer, "model", exhausted)
    trainer.plain_model.train()
    monkeypatch.setattr(exhausted, "train", lambda: None, raising=False)
    with pytest.raises(TrainingError, match="a batch of 5 rows: raise accumulation .* lower batch_size"):
        trainer.train_step(trainer.rows[:5])
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value) and not is_out_of_memory(RuntimeError("shapes differ"))


def test_trackers_go_by_name(tmp_path, backbone):
    with pytest.raises(ValueError, match="nonsense"):
        make_trainer(tmp_path, backbone, tracker="nonsense")
    make_trainer(tmp_path, backbone, steps=2, save_every=0, tracker="tensorboard").train(progress=False)
    assert [path.stat().st_size > 100 for path in tmp_path.rglob("events.out.tfevents*")].count(True) >= 1


def test_a_line_a_log_step_says_what_is_left(tmp_path, backbone, capsys):
    lines = []
    trainer = make_trainer(tmp_path, backbone, steps=4, log_every=2, save_every=0)
    trainer.train(progress=True)
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(shown) == 2 and shown[0].startswith("step 2/4: loss ") and shown[1].endswith("0:00 left")
    trainer = make_trainer(tmp_path, backbone, steps=4, log_every=2, save_every=0)
    trainer.on_log = lambda log: lines.append(len(log))
    trainer.train(progress=True, resume=False)
    assert lines == [1, 2] and "step 2/4" not in capsys.readouterr().out


@pytest.mark.parametrize("option", ["gradient_checkpointing", "compile"])
def test_ways_to_run_change_nothing(backbone, option, monkeypatch):
    losses = []
    for changes in ({}, {option: True}):
        trainer = make_trainer(None, backbone, precision="fp32", dropout=0.0, **changes)
        if option == "compile":
            trainer.plain_model.compile(backend="eager", dynamic=True)  # inductor takes minutes
        losses.append([trainer.train_step(trainer.rows[i : i + 4])["loss"] for i in (0, 24, 28)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_newest_checkpoints_stay_beside_the_best_weights(tmp_path, backbone):
    trainer = make_trainer(tmp_path, backbone, steps=8, save_every=2, keep=3, evaluate_every=2)
    scores = iter([1.0, 5.0, 2.0, 3.0])
    trainer.evaluate = lambda: next(scores)
    result = trainer.train(progress=False)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [f"step-000000{n}" for n in (4, 6, 8)]
    assert result.best_step == 4 and (tmp_path / "best.safetensors").exists()
