"""What wrong serving costs published CIFAR-10 networks with the same weights, and what others publish.

    python tests/benchmarks/serving.py --shared FOLDER [--out reports/benchmarks]

FOLDER has ``data/cifar10.npz``, ``data/cifar10_jpeg.npz`` and ``weights/resnet*.th``.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from xferbench.core import files
from xferbench.core.interventions import PRETRAINED, ZERO_HEAD, SourceHead
from xferbench.core.pipeline import AuxiliaryDataset, Data, WeightsFile
from xferbench.core.plugin import DataProfile, ModelProfile, Profile
from xferbench.core.trial import (
    ComputeContext,
    EvaluationSpec,
    InitialNetwork,
    ModelSpec,
    TrainingData,
    TrainingProcedure,
    TrainingSpec,
    Trial,
)
from xferbench.core.version import LAB_VERSION
from xferbench.data import inputs
from xferbench.lab.worker import run_trials
from xferbench.lab.worker.profile import CIFAR_PREPROCESSING
from xferbench.plugins.preprocessing_variants import normalized_twice, preprocessing_mistakes
from xferbench.runner.environment import processor_name, torch_version

RIGHT = replace(CIFAR_PREPROCESSING, resize=None, crop=None)
PUBLISHED = {
    "twice-normalised": "ResNet-50: 95.25 to 68.51 % (open_clip issue 204)",
    "bgr": "VGG-16 on photographs: 65 to 49 % (KotlinDL)",
}


def serving_variants():
    """Return the preprocessing of each variant of serving."""
    profile = Profile(
        model=ModelProfile(parameters=0, groups=(), head="", batchnorm=(), size=(32, 32)),
        data=DataProfile(classes=(), train=0, validation=0, test=0, test_groups=None),
        preprocessing=RIGHT,
    )
    wrong = preprocessing_mistakes(RIGHT, profile)
    assert wrong["twice-normalised"] == normalized_twice(RIGHT)
    return {"as trained": RIGHT} | {name: wrong[name] for name in ("twice-normalised", "raw", "unnormalised", "bgr", "zoom")}


def accuracy(arch, weights, dataset, preprocessing, cache):
    """Return the accuracy of a checkpoint with its own head."""
    spec = TrainingSpec(
        network=InitialNetwork(arch=arch, init=PRETRAINED, start=weights, head=ZERO_HEAD),
        data=TrainingData(dataset=dataset, train_size=None, preprocessing=RIGHT),
        procedure=TrainingProcedure(phases=()),
        seed=0,
    )
    view = EvaluationSpec(preprocessing=preprocessing, domain=AuxiliaryDataset(data=dataset, classes=tuple(range(10))))
    context = ComputeContext(device="cpu", torch=torch_version(), lab=LAB_VERSION)
    trial = Trial(model=ModelSpec(base=spec, edits=(SourceHead(),)), view=view, context=context)
    (record,), _ = run_trials.run_trials([trial], frozenset([trial.key]), cache)
    assert not record.error, record.error
    return float((record.predictions.predicted == record.predictions.label).mean())


def main():
    parser = argparse.ArgumentParser(description="Measure what wrong serving costs.")
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        lossless = arguments.shared / "data" / "cifar10.npz"
        lossy = Path(folder) / "jpeg.npz"
        np.savez(lossy, **dict(np.load(lossless)) | dict(np.load(arguments.shared / "data" / "cifar10_jpeg.npz")))
        for path in sorted(arguments.shared.glob("weights/resnet*.th")):
            depth = path.name.partition("-")[0].removeprefix("resnet")
            weights = WeightsFile(digest=files.sha256(path), path=str(path))
            for kind, file in (("lossless", lossless), ("JPEG", lossy)):
                dataset: Data = inputs.digest_data(f"npz:{file}")
                accuracies = {
                    name: accuracy(f"cifar-resnet{depth}", weights, dataset, preprocessing, Path(folder) / "cache")
                    for name, preprocessing in serving_variants().items()
                }
                rows += [
                    {
                        "network": f"ResNet-{depth}",
                        "test images": kind,
                        "served": name,
                        "accuracy": f"{100 * value:.1f}",
                        "drop": f"{100 * (accuracies['as trained'] - value):.1f}",
                        "published elsewhere": PUBLISHED.get(name, ""),
                    }
                    for name, value in accuracies.items()
                ]
                print(depth, kind, {name: f"{value:.3f}" for name, value in accuracies.items()}, flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "serving.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (arguments.out / "serving.md").write_text(page(rows), encoding="utf-8")


def page(rows):
    """Return the page of the table."""
    head = f"""# What wrong serving costs, with the same weights

The published CIFAR-10 networks of the kind of He et al. (ResNet-20, -32, -44) on the first 1000 test images of CIFAR-10,
lossless and after lossy JPEG. Accuracy is in percent, and the drop in percentage points. "as trained" is one normalisation with
the mean and standard deviation of ImageNet. The published figures are of other networks and images. On a CPU
({processor_name()}). Again:
`python tests/benchmarks/serving.py --shared FOLDER`.
"""
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0]), *(" | ".join(row.values()) for row in rows)]
    return head + "\n" + "\n".join(f"| {line} |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
