"""``benchmarks/gpu.sh`` from its first line to its last, in its smallest size, on the CPU."""

import json
import subprocess

from project import BIN, copy_project, write_corpus
from tiny import write_tiny_e5

from xsta_lib.experiments.experiment import backbone_tag


def test_one_command_measures_trains_and_draws(tmp_path):
    environment = copy_project(tmp_path, "benchmarks/gpu.sh", "benchmarks/throughput.py", "data/paper")
    texts = write_corpus(tmp_path / "own" / "mine", 10)
    tiny = write_tiny_e5(tmp_path / "tiny.bin", texts=texts, layers=8)
    environment |= {
        "PROTOCOL": str(tmp_path / "own" / "mine"),
        "METHODS": "zero-shot x-sta",
        "GRIDS": "",
        "PAPER_SIZE": "",
        "BENCHMARK": f"--backbone {tiny} --rows 12 --questions 2 --device cpu",
        "TRAIN": f"--backbone {tiny} --epochs 0.5 --batch-size 4 --precision fp32",
    }
    command = ["bash", str(tmp_path / "benchmarks" / "gpu.sh"), str(BIN)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(next((tmp_path / "benchmarks" / "results").glob("throughput-cpu-*.json")).read_text("utf-8"))
    assert record["protocol"] == "mine" and record["train_speedup"] > 0
    results = [json.loads(path.read_text("utf-8")) for path in (tmp_path / "results" / "mine").glob("*.json")]
    found = sorted((result["method"], result["source"]) for result in results)
    assert found == [("x-sta", "gold"), ("x-sta", "none"), ("zero-shot", "none")]
    setting = f"{backbone_tag(str(tiny))}-epochs-0.5-batch_size-4-precision-fp32"
    assert (tmp_path / "figures" / f"figure3-mine-{setting}.png").exists()
    assert (tmp_path / "results" / "mine" / f"tables-{setting}.md").exists()
    assert "mine' need" in done.stderr
