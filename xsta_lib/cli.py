"""The command ``xsta``: download, train, evaluate, answer, figures; thin over the library.

The library is imported by the command that needs it, so that ``--help`` answers at once.
"""

import argparse
import errno
import gc
import io
import json
import os
import sys
import threading
import warnings
from functools import partial
from pathlib import Path

from .options import build_parser

DEMO_BYTES, DEMO_STEPS = 1_000_000_000, 40  # one model of 470 MB


def _download(args: argparse.Namespace) -> None:
    from .data.download import fetch
    from .data.squad import CorpusError, read_squad

    paths, faults = fetch(args.what, args.languages or None), 0
    for path in paths:
        try:
            print(read_squad(path, repeats="first")[1] if path.suffix == ".json" else path)
        except CorpusError as error:
            print(error, file=sys.stderr)
            faults += 1
    if faults:
        raise ValueError(f"{faults} of {len(paths)} files cannot be read, see above; delete them to fetch them again")


def _check(args: argparse.Namespace) -> None:
    from .data.check import check

    findings = check(args.what, args.source_language)
    print(findings)
    count = len(findings.faults if args.strict else findings.errors)
    if count:
        raise ValueError(f"{args.what}: {count} things to mend, see above")


def _train(args: argparse.Namespace) -> None:
    from .data.protocols import load_protocol
    from .experiments.experiment import experiment
    from .experiments.run import run_experiment
    from .training.machine import peak_memory_bytes

    exp = experiment(**{name: value for name, value in vars(args).items() if name not in ("command", "strict")})
    source = {"source_language": exp.source_language}
    data = load_protocol(args.protocol, strict=True, **source) if "strict" in vars(args) else None
    for path in run_experiment(exp, data):
        print(path)
    print(f"peak memory {peak_memory_bytes() / 2**30:.1f} GiB")


def _demo(args: argparse.Namespace) -> None:
    from .data.download import require_space
    from .data.protocols import load_protocol
    from .experiments.run import runs_folder
    from .reader import Reader
    from .training.machine import peak_memory_bytes

    place, test = runs_folder(), load_protocol("demo").tests[0]
    need = "2 to 5 minutes on 2 cores, up to 4 GiB of memory, 1 GB of disk"
    print(f"A trained reader answers, then another one is trained for some steps: {need} in {place}", flush=True)
    require_space(place, DEMO_BYTES)
    reader = Reader()
    english = {question.id: question for question in test.source}
    for language, (question, *_) in test.questions.items():
        source = english[question.id]
        beside = None if language == test.source_language else (source.question, source.context)
        answer = reader.answer(question.question, question.context, language, beside)
        gold = " | ".join(question.golds)
        print(f"{language}: {question.question} -> {answer.text} (gold: {gold}; score {answer.score:.2f})", flush=True)
    _score_reader(reader, test, place / "figures" / "demo-reader.png")
    _train_live(place / "figures" / "demo-training.png")
    print(f"peak memory {peak_memory_bytes() / 2**30:.1f} GiB")


def _score_reader(reader: "Reader", test: "TestSet", picture: Path) -> None:  # noqa: F821  (imported when it runs)
    """The reader's F1 on a test set, with English beside and alone, as a table and a picture."""
    from .experiments.packing import score_table
    from .plotting.results import reading_bars
    from .plotting.style import save
    from .prediction.evaluation import evaluate_model

    model, tokenizer = reader.predictor.model, reader.predictor.tokenizer
    metrics = {source: evaluate_model(model, tokenizer, test, source).metrics for source in ("gold", "none")}
    print("\n" + score_table({test.name: metrics}) + "\n")
    print(save(reading_bars(metrics, f"{reader.name} on the test set {test.name}"), picture))


def _train_live(picture: Path) -> None:
    """X-STA from the pretrained encoder, a few steps on the embedded corpus: the loss falls; answers take longer."""
    from .data.protocols import load_protocol
    from .experiments.experiment import experiment
    from .experiments.run import train_experiment
    from .plotting.lessons import training_curves
    from .plotting.style import save

    exp = experiment(
        "demo", "x-sta", english_epochs=0.0, steps=DEMO_STEPS, batch_size=8, log_every=4, freeze_embeddings=True
    )
    print(f"\nTraining X-STA anew on the embedded corpus: {DEMO_STEPS} steps of 8 rows, to see the loss fall")
    _, _, result = train_experiment(exp, load_protocol("demo"))
    first, last = (line["loss"] for line in (result.log[0], result.log[-1]))
    print(f"loss {first:.2f} in the first steps, {last:.2f} in the last, after {result.seconds:.0f} seconds")
    print(save(training_curves(result.log), picture))


def _reader(args: argparse.Namespace) -> None:
    from .experiments.packing import check_reader, make_reader, score_table

    if args.make:
        from .plotting.results import write_reader_figure

        print(score_table(make_reader()["metrics"]))
        print(write_reader_figure())
        return
    scores, differ = check_reader()
    print(score_table(scores["metrics"]))
    if differ:
        raise ValueError("other answers than when it was packed, on another kind of machine?\n  " + "\n  ".join(differ))
    print("the answers are those of the model card, every one")


def _grid(args: argparse.Namespace) -> None:
    from .experiments.run import run_grid

    backbone = {"backbone": args.backbone} if args.backbone else {}
    for result in run_grid(args.name, args.protocol, source_language=args.source_language, **backbone):
        print(result["method"], *result["without"], *result["config"]["switches"], "seed", result["seed"])


def _evaluate(args: argparse.Namespace) -> None:
    from .data.squad import read_golds
    from .prediction.metrics import aggregate, compare_ids, read_predictions, score

    if args.rule == "mlqa" and not args.language:
        raise ValueError("--rule mlqa needs --language, the language of the contexts")
    golds, report = read_golds(args.gold)
    predictions = read_predictions(args.predictions)
    matching = compare_ids(predictions, dict(golds), Path(args.predictions).name)
    for found in [report, *([matching] if matching.faults() else [])]:
        print(found, file=sys.stderr)
    if args.strict and report.faults() + matching.faults():
        raise ValueError("--strict: not scored, as not every question and prediction counts")
    scores = [score(predictions.get(key), texts, args.language or "", args.rule) for key, texts in golds]
    print(json.dumps(aggregate(dict(enumerate(scores)))))


def _load_detector() -> None:
    from py3langid import classify

    classify("")


def _open_reader(model: str | None, detects: bool) -> "Reader":  # noqa: F821  (imported below, it takes seconds)
    """The reader, as fast as it can be had."""
    if detects:  # the half a second of loading that passes beside the rest
        threading.Thread(target=_load_detector, daemon=True).start()
    gc.disable()  # nothing of what is imported and loaded is garbage; looking for some takes two seconds
    try:
        from transformers.utils.logging import disable_progress_bar

        from .reader import Reader

        disable_progress_bar()  # of weights that are there in a second
        return Reader(model)
    finally:
        gc.freeze()
        gc.enable()


def _folder(model: str | None) -> Path:
    """The folder that a reader's name means, such as that of the box; of an id on a hub there is none."""
    from .data.files import BOX, is_boxed

    return BOX if is_boxed(model) else Path(model).expanduser().absolute()


def _answer(args: argparse.Namespace) -> None:
    from .data.files import BOX, read_text, weights_key, without_secrets
    from .prediction.lines import answer_lines, as_json, read_requests

    if bool(args.source_question) != bool(args.source_context):
        raise ValueError("--source-question and --source-context belong together: give both or neither")
    single = [args.question, args.context, args.source_question]
    if args.batch and any(single) or not args.batch and not all(single[:2]):
        raise ValueError("give a question and a text file (- for standard input), or --batch and a file of questions")
    if args.project and not (args.batch or args.source_context or args.translate):
        need = "give --source-question and --source-context, or --translate"
        raise ValueError(f"--project needs a source version: {need}")
    if args.output and not args.batch:
        raise ValueError("--output belongs to --batch; without it, send the answer on with > FILE")
    model, count = args.model or BOX.name, args.n_best
    open_reader = partial(_open_reader, args.model, detects=not args.language)
    options = {"n_best": count or 3, "translate": args.translate, "project": args.project}
    if args.batch:
        output = Path(args.output) if args.output else None
        weights = weights_key(_folder(args.model))
        model += f" with {without_secrets(args.translate or '')}" * bool(args.translate) + ", projected" * args.project
        requests = read_requests(args.batch)
        if output and output.exists() and output.samefile(args.batch):
            raise ValueError(f"--output {output}: is the file of questions itself; name another one for the answers")
        answer_lines(requests, open_reader, model, output, args.language, weights=weights, **options)
        return
    context = read_text("/dev/stdin" if args.context == "-" else args.context)
    source = (args.source_question, read_text(args.source_context)) if args.source_context else None
    answer = open_reader().answer(args.question, context, args.language, source, **options)
    if answer.detected:
        print(f"xsta: read as {answer.language!r}; --language sets another", file=sys.stderr)
    if answer.source and not args.json:
        print("xsta: read beside " + " | ".join(answer.source), file=sys.stderr)
    if answer.reason:
        print(f"xsta: no answer: {answer.reason}", file=sys.stderr)
    if args.json:
        print(as_json({"model": model} | answer.to_dict(), sys.stdout))
    elif count:
        for span in answer.alternatives:
            print(f"{span.score:.3f}\t{span.text}")
    else:
        print(answer.text)


def _figures(args: argparse.Namespace) -> None:
    from .experiments.inspection import TEXTS, inspect_models
    from .experiments.packing import boxed_experiment
    from .experiments.results import results_folder
    from .plotting.projections import write_projection_figures
    from .plotting.results import write_figures, write_reader_figure

    if args.backbone and not args.inspect:
        raise ValueError("--backbone belongs to --inspect; the figures show the protocol's own backbone")
    if args.inspect and not inspect_models(args.protocol, backbone=args.backbone):
        need = f"its own x-sta run on this machine and a test set with its source ({', '.join(TEXTS)})"
        print(f"xsta: Figures 4 to 6 of {args.protocol!r} need {need}; the others are drawn", file=sys.stderr)
    for path in write_figures(args.protocol):
        print(path)
    if args.protocol == boxed_experiment().protocol:  # whose files the reader in the box and its projector were made of
        print(write_reader_figure())
        if (results_folder() / "translation" / "projection.json").exists():
            print(*write_projection_figures(), sep="\n")


def _llm(args: argparse.Namespace) -> None:
    from .experiments.frames import metrics_frame
    from .experiments.llm import run_llm
    from .experiments.tables import markdown, results_block

    given = {name: value for name, value in vars(args).items() if name != "command"}
    path, record = run_llm(**given)
    frame = metrics_frame([record])
    for dataset, shares in record["contains_gold"].items():
        print("\n" + markdown(results_block(frame, dataset)[1]))
        print("contains the gold text: " + ", ".join(f"{name} {share:.1f} %" for name, share in shares.items()))
    counts = {name.replace("_", " "): record[name] for name in ("refused", "cut", "too_long", "tokens")}
    print("\n" + ", ".join(f"{name} {count:,}" for name, count in counts.items()) + f", {record['seconds']:,.0f} s")
    if record["too_long"]:
        print(f"xsta: did not fit the model, asked again next time: {record['too_long_ids']}", file=sys.stderr)
    print(path)


def _translate(args: argparse.Namespace) -> None:
    from .translation.corpus import translate_test, translate_training

    folder, options = Path(args.folder), {"overwrite": args.overwrite}
    try:
        if args.test:
            if args.back or args.threshold is not None:
                raise ValueError("--back and --threshold belong to training files, not to --test")
            if len(args.to) > 1:
                raise ValueError(f"--to {' '.join(args.to)}: --test writes one language, the source of training")
            files = translate_test(folder, args.languages, args.engine, *args.to, **options)
        else:
            if len(args.languages) > 1:
                raise ValueError(f"--from {' '.join(args.languages)}: training files are made of one language's")
            options |= {"source": (args.languages or ["en"])[0], "threshold": args.threshold, "back": args.back}
            files = translate_training(folder, args.to, args.engine, **options)
        for made in files:
            print(made, flush=True)
    except KeyboardInterrupt:
        print("\nxsta: stopped; what was translated is kept: run the same command again to go on", file=sys.stderr)
        raise


def _measure_projected(model: str | None) -> None:
    """A reader's answers with the source's mixed in: its scores, a row a reading."""
    from .data.files import read_json, weights_key
    from .experiments.packing import score_table
    from .experiments.projected import measure_projected
    from .reader import Reader

    reader = Reader(model)
    folder = _folder(model)
    name = (folder.parent if folder.name == "model" else folder).name
    path = measure_projected(reader.predictor, name, weights=weights_key(folder))
    print(score_table({"xquad": read_json(path)["metrics"]}, rows_are="answer read from"))
    print(path)


def _projection(args: argparse.Namespace) -> None:
    if args.model and not args.answers or args.fit and args.answers:
        raise ValueError("--model belongs to --answers, --fit does not")
    if args.answers:
        return _measure_projected(args.model)
    from .experiments.projection import fit_projector, measure_all, projection_table
    from .plotting.projections import write_projection_figures

    if args.fit:
        print(fit_projector())
    print(path := measure_all())
    print(projection_table(path).round(1).to_string())
    print(*write_projection_figures(), sep="\n")


RUNS = _download, _check, _train, _demo, _reader, _grid, _evaluate, _answer, _llm, _translate, _projection, _figures
COMMANDS = {run.__name__[1:]: run for run in RUNS}


def _complain(error: Exception, fault: str = "") -> int:
    """Say in a line what went wrong; 1, the exit status. ``XSTA_DEBUG`` in the environment shows where instead."""
    if os.environ.get("XSTA_DEBUG"):
        raise error
    remedy = "; make room there, or write somewhere else" if getattr(error, "errno", 0) == errno.ENOSPC else ""
    print(f"xsta: {fault}{str(error) or type(error).__name__}{remedy}", file=sys.stderr)
    return 1


def _flush(status: int) -> int:
    """Write what is left to write, and the exit status: ``status``, or 1 where it was 0 and nothing can be written."""
    try:
        sys.stdout.flush()
        return status
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries again when it ends
        if status or isinstance(error, BrokenPipeError):
            return status or 1
        return _complain(error, "standard output cannot be written: ")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit status.

    0: done; 1: it cannot be done, and a line says why; 2: options that cannot be read; 130: stopped with Ctrl-C.
    """
    if sys.stderr is None:  # closed: what is said must not go where answers go
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (for as long as the process lives)
    if sys.stdout is None:
        return _complain(OSError("standard output is closed; send it to a file or to /dev/null"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for a console that lacks an answer's letters
    warnings.formatwarning = lambda message, *_: f"xsta: {message}\n"
    args = build_parser(__doc__.splitlines()[0]).parse_args(arguments)
    try:
        COMMANDS[args.command](args)
        return _flush(0)
    except BrokenPipeError:  # whoever read the output, such as head, has enough
        return _flush(1)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        return _flush(_complain(error))
    except KeyboardInterrupt:
        return _flush(130)
    except Exception as error:
        fault = f"a fault of xsta's own; please report it with what XSTA_DEBUG=1 shows: {type(error).__name__}: "
        return _flush(_complain(error, fault))


if __name__ == "__main__":
    sys.exit(main())
