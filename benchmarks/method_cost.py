"""What each part of the method costs: one training step and one prediction on the same sequences.

Trans-train reads source and target windows one by one, the others read them as pairs, so all methods see the same
tokens. Methods take turns in every round; the medians and the ratios to trans-train of the same round are printed and
written to ``benchmarks/results/method-cost-<machine>.json``. Trans-train against itself shows the noise.

    python benchmarks/method_cost.py [--rounds 4] [--rows 8] [--device cpu]
"""

import argparse
import statistics
import time

import torch
from accelerate.utils import send_to_device
from throughput import RESULTS, machine_name, write_record

from xsta_lib.baselines.mixup import MixupConfig, MixupForQuestionAnswering
from xsta_lib.data.batches import Part, collate, rows_of
from xsta_lib.data.protocols import load_protocol
from xsta_lib.data.windows import build_windows, pair_windows
from xsta_lib.encoders.backbones import load_tokenizer
from xsta_lib.model.configuration import XStaConfig
from xsta_lib.model.modeling import XStaForQuestionAnswering
from xsta_lib.prediction.evaluation import provenance
from xsta_lib.training.configuration import TrainingConfig
from xsta_lib.training.cpu import clear_gradients, tuned
from xsta_lib.training.machine import has_bf16
from xsta_lib.training.passes import Passes
from xsta_lib.training.trainer import make_optimizer

CONFIGS = {
    "trans-train": XStaConfig.plain(),
    "x-mixup": MixupConfig(),
    "x-sta": XStaConfig(),
    "x-sta w/o gdks": XStaConfig(without=["gdks"]),
    "x-sta w/o atgc and rep_norm": XStaConfig(without=["atgc", "rep_norm"]),
    "x-sta w/o alignment": XStaConfig(without=["alignment_sentence", "alignment_token"]),
}


def pair_batch(tokenizer, rows: int) -> dict:
    """One batch of English-German pairs of the embedded corpus."""
    data = load_protocol("demo")
    source = build_windows(data.parallel_source, tokenizer)
    target = build_windows(data.parallel["de"], tokenizer)
    parts = [Part("de", target, source, pair_windows(target, source, by_answer=True))]
    return collate(parts, rows_of(parts)[:rows], tokenizer.pad_token_id)


def alone(inputs: dict) -> dict:
    """One side of a pair, to be read without the other."""
    return {name: value for name, value in inputs.items() if name not in ("source", "passages")}


class Bench:
    """One method with its own model and optimiser on the shared batch."""

    def __init__(self, name: str, backbone: str, batch: dict, device: str):
        torch.manual_seed(0)
        made = MixupForQuestionAnswering if name == "x-mixup" else XStaForQuestionAnswering
        self.model, _ = made.from_backbone(backbone, CONFIGS[name], ["en", "de"], dropout=0.0)
        self.model.to(device)
        self.optimizer = make_optimizer(self.model, TrainingConfig(steps=1))
        self.pairs, self.batch, self.device = CONFIGS[name].reads_pairs, batch, device
        self.bf16 = has_bf16(device)
        self.passes = Passes(self.model)

    def losses(self) -> list[torch.Tensor]:
        """The loss of the pair, or of its two sides read one by one."""
        if self.pairs:
            return [self.passes(**self.batch).loss]
        source = {**self.batch["source"], "language": "en"}
        return [self.model(**source).loss, self.model(**alone(self.batch)).loss]

    def _sync(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def train(self) -> float:
        """Seconds of one optimiser step."""
        self.model.train()
        self._sync()
        began = time.perf_counter()
        with torch.autocast(self.device.split(":")[0], dtype=torch.bfloat16, enabled=self.bf16):
            loss = sum(self.losses())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        clear_gradients(self.model, self.optimizer)
        self._sync()
        return time.perf_counter() - began

    @torch.inference_mode()
    def predict(self) -> float:
        """Seconds of one prediction of the target (trans-train: without source)."""
        self.model.eval()
        self._sync()
        began = time.perf_counter()
        with torch.autocast(self.device.split(":")[0], dtype=torch.bfloat16, enabled=self.bf16):
            inputs = {name: self.batch[name] for name in ("input_ids", "attention_mask", "language")}
            if self.pairs:
                inputs["source"] = {name: self.batch["source"][name] for name in ("input_ids", "attention_mask")}
            self.passes(**inputs)
        self._sync()
        return time.perf_counter() - began


def measure(name: str, backbone: str, batch: dict, device: str, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of one method, and its ratios to trans-train, which takes turns with it in every round."""
    bench, reference = Bench(name, backbone, batch, device), Bench("trans-train", backbone, batch, device)
    found: dict[str, list[float]] = {"train": [], "train_ratio": [], "predict": [], "predict_ratio": []}
    with tuned(bench.model, bench.bf16), tuned(reference.model, reference.bf16):
        for warm in (bench, reference):
            warm.train(), warm.predict()
        for _ in range(rounds):
            for kind in ("train", "predict"):
                own, base = getattr(bench, kind)(), getattr(reference, kind)()
                found[kind].append(own)
                found[f"{kind}_ratio"].append(own / base)
    return {
        kind: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for kind, values in found.items()
    }


def main() -> None:
    """Run the rounds, print a line a method, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--backbone", default="e5-small-q4")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    batch = send_to_device(pair_batch(load_tokenizer(args.backbone), args.rows), torch.device(args.device))
    methods = {}
    for name in CONFIGS:
        methods[name] = measure(name, args.backbone, batch, args.device, args.rounds)
        print(name, {kind: round(values["median"], 3) for kind, values in methods[name].items()}, flush=True)
    record = {
        "what": "seconds of one step on the same pairs; ratios to trans-train in the same round",
        "rows": args.rows,
        "tokens": {"target": list(batch["input_ids"].shape), "source": list(batch["source"]["input_ids"].shape)},
        "rounds": args.rounds,
        "backbone": args.backbone,
        "methods": methods,
        "provenance": provenance(),
    }
    write_record(record, RESULTS / f"method-cost-{machine_name(args.device)}.json")


if __name__ == "__main__":
    main()
