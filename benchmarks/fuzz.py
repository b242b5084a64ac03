"""Fuzzing of all file readers: no damaged file may end in a traceback, a hang or a dead process.

``python -m benchmarks.fuzz [--count 2000] [--target NAME ...] [--seed 0]`` gives each reader of a file, and each parser
of words, that many damaged inputs: cut short, with bits flipped, with pieces taken out, doubled or put in, and, where
the format has values, with a value of another type. A reader passes if it takes the input, or refuses it with a
``RoofscaleError``. Each reader works in a separate process, since a damaged file may crash a library.

The counts go to ``benchmarks/results/<date>/fuzz.json``; inputs that failed are kept in a folder, whose
name is printed.
"""

import argparse
import collections
import functools
import json
import logging
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import rasterio
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.transform import from_origin

from benchmarks.climb import described
from benchmarks.measure import ROOT, todays_file
from roofscale.cli.options import split_overrides
from roofscale.config import RunConfig, load
from roofscale.data import folders, geotiff, rid, roofline
from roofscale.data.check import check
from roofscale.data.leaks import fingerprint
from roofscale.errors import RoofscaleError
from roofscale.files import write_json
from roofscale.measurement import Measurement, Outcome
from roofscale.phases.attempt import Attempt, StepFolder
from roofscale.phases.phase_file import load_phase
from roofscale.phases.search.step_search import study_in
from roofscale.runners import events
from roofscale.runners.sagemaker import settings as sagemaker
from roofscale.tracking.outbox import Operation, Outbox, abandoned_outboxes
from roofscale.train import checkpoint

LONGEST_SECONDS = 20.0  # that a reader may take for one small file before it counts as hung
_SIDE = 32


@dataclass(frozen=True)
class Target:
    """A reader and how to write a valid file for it."""

    file: str  # file name
    make: Callable[[Path], object]  # writes a valid file
    read: Callable[[Path], object]
    values: str = ""  # 'json', 'jsonl' or 'yaml' where the file has values that can be exchanged
    is_named: bool = True  # whether a refusal has to name the file; command-line words have none


def _raster(file: Path, bands: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 2 if bands == 1 else 255, (bands, _SIDE, _SIDE), np.uint8)
    place = {"crs": "EPSG:32632", "transform": from_origin(500000, 5300000, 0.1, 0.1)}
    shape = {"count": bands, "height": _SIDE, "width": _SIDE, "dtype": "uint8", "compress": "deflate"}
    with rasterio.open(file, "w", driver="GTiff", **shape, **place) as dataset:
        dataset.write(pixels)


def _png(file: Path) -> None:
    ids = np.random.default_rng(0).integers(0, rid.SEGMENT_BACKGROUND + 1, (_SIDE, _SIDE), np.uint8)
    Image.fromarray(ids).save(file)


def _imdb(file: Path) -> None:
    random_ = np.random.default_rng(0)
    with h5py.File(file, "w") as handle:
        for name, most in (("images", 256), ("elements", 2)):
            values = random_.integers(0, most, (4, 3, 16, 16), np.uint8)
            handle.create_dataset(f"imdb/{name}", data=values, chunks=(1, 3, 16, 16), compression="gzip")


def _read_imdb(file: Path) -> None:
    source = roofline.open_file(file)
    source.fingerprints()
    for index in range(min(4, len(source))):
        source.read(index)


def _read_image(file: Path) -> None:
    fingerprint(file)
    geotiff.read_rgb(file)


def _read_events(file: Path) -> None:
    found = events.drop_superseded(events.EventTail(file).read())
    events.steps(found)
    events.validations(found)


def _write_events(file: Path) -> None:
    step = {"step": 1, "epoch": 0, "dataset": "rid", "samples": 2, "loss": 1.0, "grad_norm": 1.0, "lr": 0.1,
            "seconds": 1.0, "wait_seconds": 0.0}  # fmt: skip
    seen = {"step": 0, "epoch": 0, "dataset": "rid", "sample_ids": ["1"], "losses": [1.0], "constant_losses": [1.0],
            "metrics": {"loss": 1.0}, "seconds": 1.0}  # fmt: skip
    events = [
        {"event": "start", "facts": {"device": "cpu"}, "inputs": [], "steps_planned": 2, "batch_size": 2},
        {"event": "validation", "validation": seen},
        {"event": "step", **step},
        {"event": "resumed", "step": 0},
        {"event": "step", **step},
        {"event": "metrics", "metrics": {"speed/data_stall": 0.1}},
        {"event": "end", "outcome": "ok", "detail": "1 step"},
    ]
    file.write_text("".join(json.dumps({"time": 1.0, **event}) + "\n" for event in events))


def _read_step(file: Path) -> None:
    folder = StepFolder(file.parent)
    look = {"run.json": lambda: (folder.run_id, folder.config), "measurement.json": lambda: folder.finished_measurement,
            "verdict.json": lambda: folder.verdict}  # fmt: skip
    look[file.name]()


def _verdict(file: Path) -> None:
    criterion = {"name": "stable", "verdict": "passed", "evidence": "fine", "numbers": {"a": 1.0}, "role": "decides"}
    write_json(file, {"verdict": "passed", "criteria": [criterion], "comparisons": []})


def _attempt(file: Path) -> None:
    write_json(file, {"plan": "abc", "run_id": "1", "created": "now", "steps": ["a"], "source": {}, "notes": []})


def _read_attempt(file: Path) -> None:
    content = Attempt(file.parent).content
    assert {"plan", "run_id", "created", "steps"} <= content.keys()


def _outbox(file: Path) -> None:
    box = Outbox(file.parent, "http://127.0.0.1:9")
    box.keep(Operation("batch", "0" * 32, {"metrics": [["a", 1.0, 1, 1]], "tags": {"a": "b"}}))
    box.keep(Operation("status", "0" * 32, {"status": "FINISHED", "ended": 1}))
    box.leave()
    shutil.move(box.folder / "operations.jsonl", file)
    shutil.rmtree(box.folder)


def _read_outbox(file: Path) -> None:
    with abandoned_outboxes(file.parent.parent) as found:
        for left in found:
            assert isinstance(left.server, str)


def _journal(file: Path) -> None:
    study = study_in("", file.parent, "a")
    for number in range(2):
        trial = study.ask()
        study.tell(trial, float(trial.suggest_int("batch_size", 1, 4) + number))


def _read_journal(file: Path) -> None:
    study_in("", file.parent, "a")


def _tracked(name: str) -> Callable[[Path], object]:
    return lambda file: shutil.copyfile(ROOT / name, file)


def _settings(file: Path) -> None:
    role = "arn:aws:iam::123456789012:role/R"
    file.write_text(f"role: {role}\nbucket: roofs\nimage: i\nsubnets: [a]\nsecurity_groups: [b]\ntags: {{a: b}}\n")


TARGETS = {
    "image": Target("a.tif", lambda file: _raster(file, 3), _read_image),
    "label": Target("a.tif", lambda file: _raster(file, 1), geotiff.read_band),
    "mask": Target("a.png", _png, lambda file: geotiff.read_mask_png(file, rid.SEGMENT_BACKGROUND)),
    "imdb": Target("imdb.mat", _imdb, _read_imdb),
    "imdb_check": Target("imdb.mat", _imdb, lambda file: check(file.parent).as_dict()),
    "split_file": Target("val.txt", lambda file: file.write_text("1.png\nb.tif\nü.png\n"), folders.read_names),
    "phase_file": Target("phase3.yaml", _tracked("experiments/phase3.yaml"), load_phase, "yaml"),
    "run_config": Target(
        "config.yaml", lambda file: file.write_text(yaml.safe_dump(RunConfig().as_dict())), load, "yaml"
    ),
    "sagemaker_yaml": Target(
        "sagemaker.yaml", _settings, lambda file: sagemaker.load({sagemaker.FILE_VARIABLE: str(file)}), "yaml"
    ),
    "checkpoint": Target(
        "checkpoint.pt",
        lambda file: checkpoint.save({"fingerprint": "f", "model": {"w": torch.ones(50)}, "step": 3}, file),
        lambda file: checkpoint.load(file, "f"),
    ),
    "events": Target("events.jsonl", _write_events, _read_events, "jsonl"),
    "measurement": Target(
        "measurement.json",
        lambda file: Measurement(Outcome.OK, "5 steps", "f", metrics={"memory/peak_mib": 1.0}).save(file),
        _read_step,
        "json",
    ),
    "run_json": Target(
        "run.json", lambda file: write_json(file, {"run_id": "1", "config": RunConfig().as_dict()}), _read_step, "json"
    ),
    "verdict": Target("verdict.json", _verdict, _read_step, "json"),
    "attempt": Target("attempt.json", _attempt, _read_attempt, "json"),
    "search_journal": Target("study.journal", _journal, _read_journal, "jsonl"),
    "words": Target(
        "words.txt",
        lambda file: file.write_text("batch_size=4 encoder=resnet18 datasets=rid,airs lr=1e-3 data_root='a b' ema=0.9"),
        lambda file: load(None, split_overrides((file.read_text(errors="surrogateescape"),), "")),
        is_named=False,
    ),
    "outbox": Target("operations.jsonl", _outbox, _read_outbox, "jsonl"),
}

_odd_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def damaged(original: bytes, values: str) -> st.SearchStrategy[bytes]:
    """Return a strategy for damaged contents of a file."""
    places = st.integers(0, max(0, len(original) - 1))

    def cut(at: int) -> bytes:
        return original[:at]

    def flipped(bits: list[tuple[int, int]]) -> bytes:
        content = bytearray(original)
        for at, bit in bits:
            content[at] ^= 1 << bit
        return bytes(content)

    def replaced(at: int, length: int, put: bytes) -> bytes:
        return original[:at] + put + original[at + length :]

    ways = [
        places.map(cut),
        st.lists(st.tuples(places, st.integers(0, 7)), min_size=1, max_size=8).map(flipped),
        st.builds(replaced, places, st.integers(0, 64), st.binary(max_size=32)),
        st.builds(lambda at, n: replaced(at, 0, original[at : at + n]), places, st.integers(1, 256)),
        st.binary(max_size=64),
    ]
    if values:
        exchanged = functools.partial(_exchanged, original, values)
        ways.append(st.builds(exchanged, st.integers(0, 500), _odd_values))
    return st.one_of(ways)


def _exchanged(original: bytes, values: str, number: int, value: Any) -> bytes:
    """Return the file with its ``number``-th value, nested ones included, replaced by ``value``."""
    text = original.decode()
    documents = [json.loads(line) for line in text.splitlines()] if values == "jsonl" else [yaml.safe_load(text)]
    spots = [spot for document in documents for spot in _spots(document)]
    holder, key = spots[number % len(spots)]
    holder[key] = value
    if values == "yaml":
        return yaml.safe_dump(documents[0], allow_unicode=True).encode(errors="surrogatepass")
    return "".join(json.dumps(document) + "\n" for document in documents).encode()


def _spots(node: Any) -> Iterator[tuple[Any, Any]]:
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in list(inner):
        yield node, key
        yield from _spots(child)


def verdict_of(target: Target, content: bytes, folder: Path) -> str:
    """Read one content; return 'taken', 'refused', or the traceback of any other exception."""
    file = folder / "box" / target.file
    file.write_bytes(content)
    try:
        target.read(file)
    except RoofscaleError as error:
        named = target.file in str(error) or not target.is_named
        return "refused" if named else f"an error that does not name the file: {error}"
    except Exception:
        return traceback.format_exc(limit=-3)
    return "taken"


def contents(target: Target, count: int, number: int, folder: Path) -> list[bytes]:
    """Return damaged contents, the same for the same seed."""
    (folder / "box").mkdir(parents=True, exist_ok=True)
    sound = folder / "box" / target.file
    target.make(sound)
    original, drawn = sound.read_bytes(), []

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(damaged(original, target.values))
    def draw(content: bytes) -> None:
        drawn.append(content)

    while len(drawn) < count:  # hypothesis stops early if it believes it has covered all
        draw()
        number += 1
    return drawn[:count]


def _work(name: str, drawn: list[bytes], folder: Path, results: Any) -> None:
    """Read the contents in a child process, and send each result."""
    logging.disable()  # an outbox logs the lines that it skips
    for index, content in enumerate(drawn):
        results.send((index, verdict_of(TARGETS[name], content, folder)))
    results.close()


def fuzz(name: str, count: int, number: int, folder: Path) -> dict[str, Any]:
    """Fuzz a reader with ``count`` damaged contents; return the counts of each result, and the inputs that failed."""
    drawn = contents(TARGETS[name], count, number, folder)
    random.Random(number).shuffle(drawn)
    counts: collections.Counter[str] = collections.Counter()
    bad: list[tuple[bytes, str]] = []
    done, begun = 0, time.monotonic()
    while done < len(drawn):
        mine, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=_work, args=(name, drawn[done:], folder, theirs))
        process.start()
        theirs.close()
        first = done
        try:
            while mine.poll(LONGEST_SECONDS):
                index, result = mine.recv()
                done = first + index + 1
                counts[result if result in ("taken", "refused") else "not met well"] += 1
                if result not in ("taken", "refused"):
                    bad.append((drawn[done - 1], result))
            process.kill()
            ended = "it hung"
        except EOFError:
            process.join()
            ended = f"its process ended with {process.exitcode}"
        process.join()
        if done < len(drawn):
            bad.append((drawn[done], ended))
            counts["not met well"] += 1
            done += 1
    return {"counts": dict(counts), "seconds": round(time.monotonic() - begun, 1), "bad": bad}


def main() -> int:
    """Fuzz each selected reader; return 1 if an input failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", nargs="+", choices=sorted(TARGETS), default=sorted(TARGETS))
    parser.add_argument("--out", type=Path, default=todays_file("fuzz.json"))
    asked = parser.parse_args()
    rows = json.loads(asked.out.read_text())["targets"] if asked.out.exists() else {}
    all_met = True
    for name in asked.target:
        with tempfile.TemporaryDirectory() as folder:
            found = fuzz(name, asked.count, asked.seed, Path(folder))
        bad = found.pop("bad")
        rows[name] = {**found, "inputs": asked.count, "seed": asked.seed}
        write_json(asked.out, {**described(), "targets": rows})
        print(f"{name}: {found['counts']} in {found['seconds']:.0f} s", file=sys.stderr)
        if bad:
            all_met = False
            kept = Path(tempfile.mkdtemp(prefix=f"roofscale-fuzz-{name}-"))
            for number, (content, said) in enumerate(bad):
                (kept / f"{number}-{TARGETS[name].file}").write_bytes(content)
                (kept / f"{number}.txt").write_text(said)
            kinds = collections.Counter(said.strip().splitlines()[-1][:120] for _, said in bad)
            for kind, times in kinds.most_common(8):
                print(f"  {times} x {kind}", file=sys.stderr)
            print(f"  kept in {kept}", file=sys.stderr)
    return 0 if all_met else 1


if __name__ == "__main__":
    sys.exit(main())
