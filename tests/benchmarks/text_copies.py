"""How many altered copies of texts the search finds, what it finds where nothing is planted, and how long it takes.

    python tests/benchmarks/text_copies.py [--texts ../shared/data/text] [--out reports/benchmarks]

``--texts`` has TREC's questions, Pang and Lee's movie reviews and their subjectivity data as ``TREC.train.all``,
``TREC.test.all``, ``rt-polarity.all`` and ``subj.all``: the label, then the text. Without it the table has only the invented
texts. The table is committed; no test asserts a time.
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np

from xferbench.core.suite import TEXT_COPY_KINDS
from xferbench.data import altered_texts, language, text_duplicates, text_fingerprints
from xferbench.data.raw import TextExample
from xferbench.runner.environment import processor_name

COPIES = 200  # of each kind, at most
SIZES = ((500, 5000), (1000, 10_000), (10_000, 100_000))  # test and training texts
ROUNDS = 3


def read_lines(file):
    """Return the texts of a file whose lines are a label and a text."""
    lines = file.read_text(encoding="latin-1").split("\n")
    return [TextExample(line.partition(" ")[2].strip()) for line in lines if line.strip()]


def sets(folder):
    """Yield the name and the training and test texts of each dataset."""
    if folder.is_dir():
        yield "TREC", read_lines(folder / "TREC.train.all"), read_lines(folder / "TREC.test.all")
        for name, file in (("reviews", "rt-polarity.all"), ("subjectivity", "subj.all")):
            texts = read_lines(folder / file)
            order = np.random.default_rng(0).permutation(len(texts))
            yield name, [texts[index] for index in order[1000:]], [texts[index] for index in order[:1000]]
    for name in ("near", "letters", "number"):
        train, test = (language.generate(name, split, count)[0] for split, count in (("train", 4000), ("test", 1000)))
        yield f"synthetic:text-{name}", [*map(TextExample, train)], [*map(TextExample, test)]


def measure(name, train, test):
    """Return the sizes, the recall of each kind, the matches by kind without planted copies, and the wrong matches."""
    train_prints, test_prints = text_fingerprints.fingerprint_texts(train), text_fingerprints.fingerprint_texts(test)
    unplanted = text_duplicates.find_duplicates(test_prints, train_prints)
    for index in np.flatnonzero(unplanted.kind == "near"):
        print(f"{name}: {1 - unplanted.distance[index]:.2f} | {test[index].text} | {train[unplanted.index[index]].text}")
    unique, recall, wrong = np.flatnonzero(~unplanted.found), [], 0
    for kind in TEXT_COPY_KINDS:
        rng = np.random.default_rng(0)
        chosen = rng.permutation(unique)[:COPIES]
        donors = np.roll(chosen, 1)
        pairs = zip(chosen, donors, strict=True)
        copies = [altered_texts.alter_text(test[index], kind, rng, test[donor]) for index, donor in pairs]
        kept = np.sort(rng.permutation(len(train))[len(chosen) :])
        others = [text_fingerprints.take(train_prints, kept), text_fingerprints.fingerprint_texts(copies)]
        matches = text_duplicates.find_duplicates(
            text_fingerprints.take(test_prints, chosen), text_fingerprints.concatenate(others), searched=len(test)
        )
        is_hit = matches.found & (matches.index == len(kept) + np.arange(len(chosen)))
        recall.append(float(is_hit.mean()))
        wrong += int((matches.found & ~is_hit).sum())
    return len(train), len(test), recall, [int((unplanted.kind == kind).sum()) for kind in ("exact", "near")], wrong


def search_seconds(test, train):
    """Return the median processor times of the fingerprints and of the search of texts of random words."""
    rng = np.random.default_rng(0)
    words = np.array(language.vocabulary_lines())
    shares = 1 / np.arange(1, len(words) + 1)  # as in a language (Zipf)

    def generate(count):
        lengths = rng.integers(5, 30, count)
        drawn = rng.choice(words, lengths.sum(), p=shares / shares.sum())
        return [TextExample(" ".join(part)) for part in np.split(drawn, np.cumsum(lengths)[:-1])]

    texts, times = (generate(test), generate(train)), []
    for _ in range(ROUNDS):
        start = process_time()
        prints = [text_fingerprints.fingerprint_texts(part) for part in texts]
        middle = process_time()
        text_duplicates.find_duplicates(*prints)
        times.append((middle - start, process_time() - middle))
    return tuple(median(column) for column in zip(*times, strict=True))


def main():
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "data" / "text")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    arguments = parser.parse_args()
    results = {name: measure(name, train, test) for name, train, test in sets(arguments.texts)}
    times = {size: search_seconds(*size) for size in SIZES}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "text-copies.md").write_text(page(results, times), encoding="utf-8")


def page(results, times):
    """Return the page of the tables."""
    values = results.values()
    lines = [f"| | {' | '.join(results)} |", f"|---|{'---:|' * len(results)}"]
    lines.append(f"| train, test texts | {' | '.join(f'{train:,}, {test:,}' for train, test, *_ in values)} |")
    for number, kind in enumerate(TEXT_COPY_KINDS):
        lines.append(f"| {kind} | {' | '.join(f'{100 * recall[number]:.0f}' for _, _, recall, *_ in values)} |")
    for number, label in enumerate(("identical", "near")):
        lines.append(f"| {label}, nothing planted | {' | '.join(str(found[number]) for *_, found, _ in values)} |")
    lines.append(f"| other matches that are wrong, all searches | {' | '.join(str(wrong) for *_, wrong in values)} |")
    rows = [f"| {test:,} × {train:,} | {first:.1f} | {second:.1f} |" for (test, train), (first, second) in times.items()]
    table, seconds = "\n".join(lines), "\n".join(rows)
    machine = f"NumPy {np.__version__}, {os.cpu_count()} cores ({processor_name()}), Python {platform.python_version()}"
    return f"""# The search for copies of texts

Again: `python tests/benchmarks/text_copies.py`.

## What it finds

Recall in % of {COPIES} altered copies of each kind, which replace training texts. TREC, the reviews and the subjectivity
data were used to develop the method. A match without a planted copy may be a copy of the dataset itself. By eye, three of the
four near copies of TREC ask the same ("What is the birthstone for June?", "What is June's birthstone?"), and one does not
("What is plastic made of?", "How is plastic made?"); the three of the subjectivity data are copies.

{table}

## How long it takes

Texts of 5 to 29 words; {machine}; medians of {ROUNDS} processor times on one thread.

| test × train | fingerprints s | search s |
|---|---:|---:|
{seconds}
"""


if __name__ == "__main__":
    main()
