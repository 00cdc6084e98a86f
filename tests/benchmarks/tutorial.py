"""One plain training script, as tutorials write it: ``python tutorial.py TASK``, a pickle that tutorials.py writes.

The script imports, reads images, builds a network and a loader, trains with the whole network at each step even if most of it
is frozen, and tests once at the end. It shares nothing with other scripts. It prints the seconds since the end of the imports,
and the accuracy.
"""

from __future__ import annotations

import pickle
import sys
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from time import perf_counter

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from xferbench.core.interventions import BATCHNORM_EVAL
from xferbench.core.pipeline import WeightsFile
from xferbench.lab.data import datasets, preprocessing
from xferbench.lab.models import backbones, checkpoint_reader, checkpoints


class Images(torch.utils.data.Dataset):
    """Decoded images of the right size, which are normalized one by one as the loader reads them."""

    def __init__(self, split, transform):
        self.split, self.transform = split, transform

    def __len__(self):
        return len(self.split.labels)

    def __getitem__(self, index):
        image = torch.from_numpy(self.split.images[index : index + 1].copy())
        return preprocessing.to_tensor(image, self.transform)[0], int(self.split.labels[index])


def main():
    """Train and test the network of one training spec."""
    spec, trainable_names, head, test_size, cache = pickle.loads(Path(sys.argv[1]).read_bytes())
    start = perf_counter()
    dataset = datasets.load_dataset(spec.data.dataset, spec.data.preprocessing, test_size, cache)
    train = Images(
        datasets.take(dataset.train, datasets.train_validation_indices(dataset, spec.data.train_size, spec.seed)[0]),
        spec.data.preprocessing,
    )
    test = DataLoader(Images(dataset.test, spec.data.preprocessing), batch_size=256)
    torch.manual_seed(spec.seed)
    network = backbones.build(spec.network.arch, len(dataset.classes), spec.network.code)
    if isinstance(spec.network.start, WeightsFile):
        checkpoints.load_backbone(network, checkpoint_reader.read_checkpoint(Path(spec.network.start.path)), head)
    for phase, names in zip(spec.procedure.phases, trainable_names, strict=True):
        for name, parameter in network.named_parameters():
            parameter.requires_grad = name in names
        optimizer_type = {"adamw": torch.optim.AdamW, "sgd": partial(torch.optim.SGD, momentum=0.9)}[phase.optimizer]
        optimizer = optimizer_type(
            (parameter for parameter in network.parameters() if parameter.requires_grad),
            phase.lr,
            weight_decay=phase.weight_decay,
        )
        network.train(phase.batchnorm != BATCHNORM_EVAL)
        has_full_batch = len(train) >= phase.batch_size
        loader = DataLoader(train, batch_size=phase.batch_size, shuffle=True, drop_last=has_full_batch, num_workers=0)
        for x, y in islice(chain.from_iterable(repeat(loader)), phase.steps):
            optimizer.zero_grad()
            cross_entropy(network(x), y).backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        correct = sum(int((network(x).argmax(1) == y).sum()) for x, y in test)
    print(perf_counter() - start, correct / len(dataset.test.labels))


if __name__ == "__main__":
    main()
