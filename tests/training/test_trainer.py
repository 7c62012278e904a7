"""The loop: the loss falls, a killed run resumes bit for bit, bad checkpoints and losses stop with a reason."""

import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file
from toy import both_passes

from xsta_lib.data import files
from xsta_lib.data.batches import Part, epoch_batches
from xsta_lib.data.protocols import load_protocol
from xsta_lib.data.windows import WindowSpec, build_windows, pair_windows
from xsta_lib.experiments.experiment import OTHER_FORMS
from xsta_lib.model.configuration import XStaConfig
from xsta_lib.model.modeling import XStaForQuestionAnswering
from xsta_lib.training.checkpoints import CheckpointError, newest_checkpoint, save_checkpoint
from xsta_lib.training.configuration import TrainingConfig, learning_rate
from xsta_lib.training.log import RunLog
from xsta_lib.training.trainer import Trainer, TrainingError, make_optimizer

STEPS = 12


def make_trainer(folder: Path, backbone: Path, languages=("de",), dropout=0.1, form=None, **changes) -> Trainer:
    """A trainer of a tiny X-STA (dropout on) on 24 English rows and 24 pairs a language, batches of 8."""
    torch.manual_seed(0)
    config = XStaConfig(sharing_layer=2, **(form or {}))
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
def whole(tmp_path_factory, backbone) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Weights and log of an uninterrupted run."""
    trainer = make_trainer(tmp_path_factory.mktemp("whole"), backbone)
    result = trainer.train(progress=False)
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}, result.log


def timeless(log: list[dict]) -> list[dict]:
    """Log lines without the seconds."""
    return [{name: value for name, value in line.items() if name != "seconds"} for line in log]


def test_loss_falls_and_is_logged(tmp_path, backbone):
    trainer = make_trainer(tmp_path, backbone, steps=24, save_every=0, log_every=4)
    log = trainer.train(progress=False).log
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    pairs = [line for line in log if "teacher" in line]
    assert pairs and {"source", "target", "sentence", "token", "lambda", "teacher_mass"} <= set(pairs[0])
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert written == log


@pytest.mark.parametrize("form", OTHER_FORMS, ids=str)
def test_every_form_takes_a_step_that_is_watched(backbone, form):
    trainer = make_trainer(None, backbone, form=form)
    values = trainer.train_step([row for row in trainer.rows if row.source >= 0][:4])
    shares = {name: value for name, value in values.items() if name.startswith("share_")}
    assert all(map(math.isfinite, shares.values())) and (shares["share_teacher"] == 0) == ("teacher_gradient" in form)


def kill(*given) -> None:
    """The process ends where it is."""
    os.kill(os.getpid(), signal.SIGKILL)


def die(place: str, folder: Path, backbone: Path) -> None:
    """Train until a kill: behind the fourth step, or where the first or second checkpoint is about to be complete."""
    trainer = make_trainer(folder, backbone)
    if place == "step":
        trainer.on_log = lambda log: len(log) < 4 or kill()
    elif place == "first checkpoint":
        files.os.replace = kill
    else:
        trainer.on_log = lambda log: len(log) < 6 or setattr(files.os, "replace", kill)
    trainer.train(progress=False)
    os._exit(0)


DYING = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from test_trainer import die
for place, folder in {runs!r}.items():
    child = os.fork()
    if not child:
        die(place, Path(folder), Path({backbone!r}))
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""
LAST = {"step": 3, "first checkpoint": 0, "second checkpoint": 3}  # the step of the last whole checkpoint


@pytest.fixture(scope="module")
def killed(tmp_path_factory, backbone) -> dict[str, Path]:
    """Folders of killed runs, by the place of the kill; one process imports all and forks."""
    runs = {place: str(tmp_path_factory.mktemp("killed")) for place in LAST}
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    code = DYING.format(paths=paths, runs=runs, backbone=str(backbone))
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
    return {place: Path(folder) for place, folder in runs.items()}


@pytest.mark.heavy
@pytest.mark.parametrize("place", LAST)
def test_killed_run_resumes_bit_for_bit(killed, backbone, whole, place):
    folder = killed[place] / "checkpoints"
    before = newest_checkpoint(folder)
    assert (int(before.name[5:]) if before else 0) == LAST[place]
    assert bool(list(folder.glob(".*.part"))) == (place != "step")
    trainer = make_trainer(killed[place], backbone)
    result = trainer.train(progress=False)
    weights, log = whole
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert timeless(result.log) == timeless(log)


def test_checkpoints_follow_their_steps_whatever_their_digits(tmp_path, backbone):
    trainer = make_trainer(None, backbone)
    for name in ("step-0000050", "step-9999999", "step-10000000"):
        (tmp_path / name).mkdir()
    assert newest_checkpoint(tmp_path).name == "step-10000000"
    save_checkpoint(tmp_path, trainer.model, trainer.optimizer, {"step": 10**7 + 1}, [], keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {"step-10000000", "step-10000001"}


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
            signal.raise_signal(signal.SIGINT)
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
    for name, value in resumed.model.state_dict().items():
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
        results.append((found.best_step, trainer.model.state_dict()))
    assert results[0][0] == results[1][0] == STEPS
    assert all(torch.equal(value, results[1][1][name]) for name, value in results[0][1].items())


def test_nan_stops_with_step_and_ids(tmp_path, backbone):
    trainer = make_trainer(tmp_path, backbone)
    trainer.model.qa_outputs.weight.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"step \d+ \((en|de), ids"):
        trainer.train(progress=False)


def test_states_that_are_not_finite_touch_nothing(backbone):
    """Neither weights nor running averages, though these move before the loss is known; logged late, as on a GPU."""
    trainer = make_trainer(None, backbone, precision="fp32", steps=3, log_every=3)
    trainer.fetches, before = False, {name: value.clone() for name, value in trainer.model.state_dict().items()}
    fault = trainer.model.encoder.embeddings.register_forward_hook(lambda module, given, states: states * float("nan"))
    with pytest.raises(TrainingError, match="the loss is not finite at step 1"):
        trainer.train(progress=False)
    assert trainer.step == 0
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    fault.remove()
    assert trainer.train(progress=False).steps == 3
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


def test_a_gradient_that_is_not_finite_touches_no_weight(backbone):
    trainer = make_trainer(None, backbone, precision="fp32", steps=3)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    fault = trainer.model.qa_outputs.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match=r"the gradient is not finite at step 1 \(en, ids"):
        trainer.train_step(trainer.rows[:4])
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())
    fault.remove()
    assert trainer.train(progress=False).steps == 3  # from the step that failed on
    assert not torch.equal(trainer.model.qa_outputs.weight, before["qa_outputs.weight"])


def test_a_step_that_the_scaler_leaves_out_has_no_norm(backbone):
    """With a scaler, as float16 has it: Infinity is no JSON, and would be the mean of a whole line."""
    trainer = make_trainer(None, backbone, precision="fp32", steps=3)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    trainer.optimizer = AcceleratedOptimizer(trainer.optimizer.optimizer, scaler=trainer.accelerator.scaler)
    pairs = [row for row in trainer.rows if row.source >= 0][:4]
    fault = trainer.model.qa_outputs.weight.register_hook(lambda gradient: gradient * float("inf"))
    values = trainer.train_step(pairs)
    assert "grad_norm" not in values and all(map(math.isfinite, values.values()))
    assert not [name for name in values if name.startswith("share_")]  # its gradients would be without the factor
    fault.remove()
    assert trainer.train_step(pairs)["grad_norm"] > 0


def test_a_run_from_the_start_leaves_nothing_of_an_older_log(tmp_path, backbone):
    make_trainer(tmp_path, backbone, steps=6, save_every=0).train(progress=False)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "lo')  # a line cut off by a full disk
    make_trainer(tmp_path, backbone, steps=4, save_every=0).train(progress=False)
    lines = (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_best_weights_come_back(tmp_path, backbone):
    trainer = make_trainer(tmp_path, backbone, steps=8, evaluate_every=2, save_every=2, keep=3)
    kept, scores = {}, iter([10.0, 30.0, 20.0, 25.0])

    def evaluate() -> float:
        kept[trainer.step] = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        return next(scores)

    trainer.evaluate = evaluate
    result = trainer.train(progress=False)
    assert (result.best_score, result.best_step) == (30.0, 4)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, kept[4][name]), name
    assert set(load_file(str(tmp_path / "best.safetensors"))) == set(kept[4])
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [f"step-000000{n}" for n in (4, 6, 8)]


def test_without_a_folder_no_step_is_called_the_best(backbone):
    trainer = make_trainer(None, backbone, steps=2, evaluate_every=1, save_every=0)
    trainer.evaluate = lambda: 10.0 - trainer.step
    result = trainer.train(progress=False)
    assert [line["validation_f1"] for line in result.log if "validation_f1" in line] == [9.0, 8.0]
    assert (result.best_score, result.best_step) == (None, None)


def test_no_decay_on_scalars_biases_and_norms(backbone):
    trainer = make_trainer(None, backbone)
    model = trainer.model
    decayed, plain = make_optimizer(model, trainer.config).param_groups
    assert {id(p) for p in decayed["params"]} == {id(p) for p in model.parameters() if p.ndim >= 2}
    assert any(p is model.sharing_layer.mixing_weight for p in plain["params"]) and plain["weight_decay"] == 0


def test_accumulation_gives_the_same_step_without_contrast(backbone):
    losses = []
    for accumulation in (1, 2):
        trainer = make_trainer(None, backbone, accumulation=accumulation, precision="fp32", dropout=0.0)
        values = trainer.train_step([row for row in trainer.rows if row.source < 0][:8])
        losses.append((values["loss"], values["grad_norm"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({"precision": "int4"}, "allowed"), ({"steps": -1}, "0 or more"), ({"warmup": 2.0}, "warmup")),
        ({"learning_rate": 1e-320}, "1e-09 or more"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**{"steps": 1, **change})


def test_a_single_step_is_trained_at_the_full_rate():
    assert learning_rate(TrainingConfig(steps=1, learning_rate=1e-4), 0) == 1e-4
    assert [learning_rate(TrainingConfig(steps=2, learning_rate=1.0), step) for step in range(3)] == [0, 1, 0]


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
    apart.model.train()
    single = [apart._inputs([rows[part][s] for s in both], False) for part in (1, 2)]
    losses = [both_passes(apart.model, inputs).loss.item() for inputs in single]
    passes = []
    words = trainer.model.encoder.get_input_embeddings()
    words.register_forward_hook(lambda module, inputs, states: passes.append(len(states)))
    assert trainer.train_step(batch)["loss"] == pytest.approx(sum(losses) / 2, rel=1e-4)
    assert passes == [4, 4, 4]  # English once, German, Spanish


def test_back_translations_are_not_shared(backbone):
    with pytest.raises(ValueError, match="share_source reads gold sources"):
        trainer = make_trainer(None, backbone)
        part = trainer.parts[1]
        part = Part(part.language, part.target, part.source, part.paired, part.source, part.paired)
        Trainer(trainer.model, [part], TrainingConfig(steps=1, share_source=True), trainer.pad_id)


def test_two_sources_are_not_shared_and_no_rows_not_trained_on(backbone):
    trainer = make_trainer(None, backbone)
    english, part = trainer.parts
    other = Part("es", part.target, part.target, part.paired)
    with pytest.raises(ValueError, match="share_source needs parts that all have the same Windows"):
        Trainer(trainer.model, [english, part, other], TrainingConfig(steps=1, share_source=True), trainer.pad_id)
    with pytest.raises(ValueError, match="no rows to train on"):
        Trainer(trainer.model, trainer.parts, trainer.config, trainer.pad_id, rows=[])


def test_batches_that_share_sources_hold_every_row_once_and_units_whole(backbone):
    trainer = make_trainer(None, backbone, languages=("de", "es"))
    batches = epoch_batches(trainer.parts, trainer.rows, 7, 1, 0, share_source=True)
    assert Counter(row for batch in batches for row in batch) == Counter(trainer.rows)
    assert max(len(batch) for batch in batches) <= 7
    for batch in batches:
        read = {row.source for row in batch if row.source >= 0}
        assert sum(row.source in read for row in trainer.rows) in (0, len(batch))


def test_running_out_of_memory_says_what_to_lower(backbone, monkeypatch):
    trainer = make_trainer(None, backbone)

    def exhausted(*given, **named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(trainer.optimizer, "step", exhausted)  # AdamW's moments, twice the weights, come with the first
        with pytest.raises(TrainingError, match="out of memory at step 1, a batch of 5 rows"):
            trainer.train_step(trainer.rows[:5])
    monkeypatch.setattr(trainer.passes, "forward", exhausted)
    with pytest.raises(TrainingError, match="a batch of 5 rows: raise accumulation .* lower batch_size"):
        trainer.train_step(trainer.rows[:5])
    monkeypatch.setattr(trainer.passes, "forward", lambda **inputs: torch.empty(2**60))  # the CPU's own words
    with pytest.raises(TrainingError, match="out of memory"):
        trainer.train_step(trainer.rows[:5])


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
    trainer.train(progress=True)
    assert lines == [1, 2] and "step 2/4" not in capsys.readouterr().out


def test_a_line_shows_what_every_method_learns_by():
    names = ("target", "teacher", "own_teacher", "own_token", "distance", "margin", "contrast", "knowledge")
    line = RunLog(None, False, 4).text({"step": 1, "seconds": 1.0, "grad_norm": 2.0, **dict.fromkeys(names, 0.5)})
    assert line == f"step 1/4: {', '.join(name.replace('_', ' ') + ' 0.5' for name in names)}, 00:03 left"


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("option", ["gradient_checkpointing", pytest.param("compile", marks=pytest.mark.heavy)])
def test_ways_to_run_change_nothing(backbone, option):
    losses = []
    for changes in ({}, {option: True}):
        trainer = make_trainer(None, backbone, precision="fp32", dropout=0.0, **changes)
        if option == "compile":
            trainer.passes.compile(backend="eager", dynamic=True)  # inductor takes minutes
        pairs = [row for row in trainer.rows if row.source >= 0]
        values = [trainer.train_step(rows) for rows in (pairs[:4], trainer.rows[:4], pairs[4:8])]
        assert ("share_teacher" in values[0]) == ("compile" not in changes)  # that needs a second backward pass
        losses.append([one["loss"] for one in values])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
