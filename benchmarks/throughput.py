"""How fast training and evaluation are, as ratios to the plain way of doing the same, in one run on one machine.

The plain way is the same code by flags: windows padded to 384, float32, eager attention, English pairs read twice, and
at evaluation the source read again for every target language. Both ways train on the same 256 rows of a protocol in the
same batches from the same weights, dropout off, and take turns batch by batch; both answer the same questions.

    python benchmarks/throughput.py [--protocol parallel] [--rows 256] [--questions 48]

``benchmarks/results/throughput-<machine>.json``, of another protocol than ``parallel`` with its name behind, also holds
pairs, tokens and questions a second, the share of the machine's measured matrix product rate that the model reaches,
peak memory, how time grows with languages and data, and what sharing a source pass between languages saves.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import send_to_device

from xsta_lib.data.batches import Row, collate, collate_shared, epoch_batches, rows_of
from xsta_lib.data.files import write_text_atomically
from xsta_lib.data.protocols import ProtocolData, load_protocol
from xsta_lib.data.squad import CorpusError
from xsta_lib.data.windows import window_cache
from xsta_lib.experiments.experiment import experiment
from xsta_lib.experiments.run import training_parts
from xsta_lib.model.configuration import XStaConfig
from xsta_lib.model.modeling import XStaForQuestionAnswering
from xsta_lib.prediction.evaluation import provenance
from xsta_lib.prediction.predictor import Predictor
from xsta_lib.training.configuration import TrainingConfig
from xsta_lib.training.cpu import clear_gradients, tuned
from xsta_lib.training.machine import has_bf16, peak_memory_bytes
from xsta_lib.training.passes import Passes
from xsta_lib.training.trainer import make_optimizer

RESULTS = Path(__file__).resolve().parent / "results"
PLAIN_LENGTH = 384


def matmul_rate(device: torch.device) -> float:
    """Floating point operations a second of large square products in the training precision, the best of five."""
    size = 2048 if device.type == "cpu" else 8192
    dtype = torch.bfloat16 if has_bf16(device) else torch.float32
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):  # the first one warms up
        began = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def training_flops(model: torch.nn.Module, lengths: Sequence[int]) -> float:
    """Arithmetic of reading windows of some lengths forward and backward: the encoder's products, nothing else.

    A multiply and an add count as two; backward costs twice forward. Embeddings, padding, the span head, the teacher
    and the losses are left out.

    Args:
        model: an :class:`~xsta_lib.model.modeling.XStaForQuestionAnswering`.
        lengths: real tokens of each window.
    """
    weights = sum(p.numel() for p in model.encoder.encoder.parameters() if p.ndim == 2)
    config = model.config.encoder
    attention = 4 * config.num_hidden_layers * config.hidden_size
    return 3 * sum(2 * weights * length + attention * length**2 for length in lengths)


class PlainPredictor(Predictor):
    """Answers with the model as it is, batches read whole."""

    @contextmanager
    def passes(self) -> Iterator[None]:
        """Passes without gradients, and nothing else."""
        self.model.eval()
        with torch.inference_mode():
            yield


class Way:
    """One way to train and to answer: X-STA with its own weights and optimiser.

    Args:
        plain: the plain way.
        data, backbone, device: what is read, by which encoder, where.
    """

    def __init__(self, plain: bool, data: ProtocolData, backbone: str, device: str):
        torch.manual_seed(0)
        languages = ["en", *data.parallel]
        self.model, self.tokenizer = XStaForQuestionAnswering.from_backbone(backbone, XStaConfig(), languages, 0.0)
        self.plain, self.device = plain, torch.device(device)
        self.model.to(self.device)
        self.optimizer = make_optimizer(self.model, TrainingConfig(steps=1, learning_rate=1e-4))
        self.bf16 = not plain and has_bf16(self.device)
        self.multiple = PLAIN_LENGTH if plain else 32
        make, multiple = (PlainPredictor, PLAIN_LENGTH) if plain else (Predictor, 8)
        options = {"cache": window_cache(), "autocast": self.bf16, "multiple": multiple}
        self.predictor = make(self.model, self.tokenizer, **options)
        self.passes = Passes(self.model)
        if plain:
            self.model.encoder.set_attn_implementation("eager")

    def clock(self) -> float:
        """Seconds, once the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def loss(self, inputs: dict) -> torch.Tensor:
        """The objective of one batch; the plain way reads an English pair as two windows."""
        loss = self.passes(**inputs).loss
        if self.plain and "source" not in inputs:
            alpha = self.model.config.alpha
            return alpha * loss + (1 - alpha) * self.passes(**inputs).loss
        return loss

    def train(self, parts: Sequence, batch: Sequence[Row], shared: bool = False) -> tuple[float, float]:
        """One optimiser step: its seconds, collating included, and its loss."""
        self.model.train()
        began = self.clock()
        make = collate_shared if shared else collate
        inputs = send_to_device(make(parts, batch, self.tokenizer.pad_token_id, self.multiple), self.device)
        autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)
        with autocast:
            loss = self.loss(inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        clear_gradients(self.model, self.optimizer)
        return self.clock() - began, loss.item()

    def answer(self, questions: dict, source: list) -> tuple[float, dict]:
        """Answer the questions of all languages: seconds, and texts by language."""
        began = self.clock()
        if not self.plain:
            found = self.predictor.predict(questions, source)["calibrated"]
        else:
            found = {}
            for language, part in questions.items():
                found |= self.predictor.predict({language: part}, source)["calibrated"]
                if language == self.model.config.source_language:  # its pair is English twice
                    self.predictor.predict({language: part}, source)
        return self.clock() - began, {
            language: {key: one.text for key, one in part.items()} for language, part in found.items()
        }


def window_lengths(parts: Sequence, batch: Sequence[Row]) -> list[int]:
    """Real tokens of every window that a batch makes the encoder read."""
    targets = [int(parts[row.part].target.length[row.target]) for row in batch]
    return targets + [int(parts[row.part].source.length[row.source]) for row in batch if row.source >= 0]


def measure_training(fast: Way, plain: Way, parts: Sequence, rows: Sequence[Row]) -> dict:
    """Both ways on the same batches, turn by turn; the first batch warms up and is not counted."""
    batches = epoch_batches(parts, rows, 16, seed=0, epoch=0)
    for way in (fast, plain):
        way.train(parts, batches[0])
    seconds: dict[str, list[float]] = {"fast": [], "plain": []}
    losses: dict[str, list[float]] = {"fast": [], "plain": []}
    for number, batch in enumerate(batches, 1):
        for name, way in (("fast", fast), ("plain", plain)):
            spent, loss = way.train(parts, batch)
            seconds[name].append(spent)
            losses[name].append(loss)
        print(f"training {number}/{len(batches)}: {seconds['plain'][-1] / seconds['fast'][-1]:.1f}x", flush=True)
    ratios = [b / a for a, b in zip(seconds["fast"], seconds["plain"], strict=True)]
    lengths = [window_lengths(parts, batch) for batch in batches]
    tokens = [sum(found) for found in lengths]
    quarters = np.array_split(np.arange(len(batches)), 4)
    per_token = [sum(seconds["fast"][i] for i in part) / sum(tokens[i] for i in part) for part in quarters if len(part)]
    total = sum(seconds["fast"])
    return {
        "train_speedup": sum(seconds["plain"]) / total,
        "train_speedup_by_batch": {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)},
        "train_loss": {name: sum(values) / len(values) for name, values in losses.items()},
        "train_loss_difference": abs(sum(losses["fast"]) / sum(losses["plain"]) - 1),
        "train_pairs_per_second": len(rows) / total,
        "train_tokens_per_second": sum(tokens) / total,
        "train_flops_per_second": sum(training_flops(fast.model, found) for found in lengths) / total,
        "seconds_per_token_by_quarter": per_token,  # equal: time grows with the data, no faster
    }


def measure_sharing(fast: Way, parts: Sequence, rows: Sequence[Row], size: int) -> dict:
    """Pairs of all languages of some questions: one source pass for them against one for each."""
    pairs: dict[int, list[Row]] = {}
    for row in rows:
        if row.source >= 0:
            pairs.setdefault(row.source, []).append(row)
    most = sorted(pairs.values(), key=len, reverse=True)
    chosen = [row for unit in most for row in unit][:size]
    seconds = {}
    for shared in (False, True):
        batches = epoch_batches(parts, chosen, 16, seed=0, epoch=0, share_source=shared)
        fast.train(parts, batches[0], shared)
        seconds[shared] = sum(fast.train(parts, batch, shared)[0] for batch in batches)
    languages = len(chosen) / len({row.source for row in chosen})
    return {"share_source_speedup": seconds[False] / seconds[True], "share_source_languages": languages}


def measure_answering(fast: Way, plain: Way, questions: dict, source: list) -> dict:
    """Both ways on the same questions, and the fast way on single target languages with their source."""
    count = sum(map(len, questions.values()))
    plain.model.load_state_dict(fast.model.state_dict())  # after so many steps two readers answer differently
    for way in (fast, plain):
        way.answer({"en": source[:4]}, source[:4])
    spent, answers = fast.answer(questions, source)
    print(f"answering: {count / spent:.1f} questions a second", flush=True)
    singles = [fast.answer({language: part}, source)[0] for language, part in questions.items() if language != "en"]
    again, _ = fast.answer(questions, source)
    slow, others = plain.answer(questions, source)
    print(f"answering: {slow / spent:.1f}x", flush=True)
    same = [answers[language][key] == text for language, texts in others.items() for key, text in texts.items()]
    best = statistics.mean((spent, again))
    return {
        "eval_speedup": slow / best,
        "eval_speedup_noise": max(spent, again) / min(spent, again),  # the fast way against itself
        "eval_questions_per_second": count / best,
        "eval_same_answers": sum(same) / len(same),
        "eval_languages": len(questions),
        "eval_all_to_single": best / statistics.mean(singles),
    }


def machine_name(device: str) -> str:
    """A device's name as files have it."""
    return f"cpu-{platform.machine()}" if device == "cpu" else torch.cuda.get_device_name().replace(" ", "-")


def write_record(record: dict, path: Path) -> None:
    """Write a benchmark's measurements, and print those that are single numbers."""
    write_text_atomically(path, json.dumps(record, indent=1) + "\n")
    print(json.dumps({name: value for name, value in record.items() if isinstance(value, (int, float))}, indent=1))
    print(path.name)


def load(protocol: str) -> ProtocolData:
    """The protocol's data; the embedded corpus where ``parallel``'s files are not there."""
    try:
        return load_protocol(protocol)
    except CorpusError as error:
        print(f"{error}\nusing the protocol demo instead")
        return load_protocol("demo")


def run(args: argparse.Namespace) -> dict:
    """All measurements as one record."""
    data = load(args.protocol)
    fast, plain = (Way(kind, data, args.backbone, args.device) for kind in (False, True))
    parts = training_parts(experiment("demo", "x-sta"), data, fast.tokenizer)
    rows = rows_of(parts)
    chosen = [rows[i] for i in np.random.default_rng(0).choice(len(rows), min(args.rows, len(rows)), replace=False)]
    test = data.tests[0]
    questions = {language: part[: args.questions] for language, part in test.questions.items()}
    rate = matmul_rate(torch.device(args.device))
    record = {"protocol": data.name, "rows": len(chosen), "questions": args.questions, "backbone": args.backbone}
    with tuned(fast.model, fast.bf16):
        record |= measure_training(fast, plain, parts, chosen)
        record |= measure_sharing(fast, parts, rows, min(96, args.rows))
    record["matmul_flops_per_second"] = rate
    record["matmul_utilisation"] = record["train_flops_per_second"] / rate
    record |= measure_answering(fast, plain, questions, test.source[: args.questions])
    record["peak_memory_bytes"] = peak_memory_bytes()  # of the process, with both ways' models
    if args.device != "cpu":
        record["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
    return record | {"provenance": provenance()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocol", default="parallel")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--questions", type=int, default=48, help="of each language")
    parser.add_argument("--backbone", default="e5-small-q4")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    record = run(args)
    own = "" if record["protocol"] == "parallel" else f"-{record['protocol']}"  # other data: another record
    write_record(record, args.results / f"throughput-{machine_name(args.device)}{own}.json")


if __name__ == "__main__":
    main()
