"""One plain training script, as tutorials write it: ``python tutorial.py ASKED``, a pickle of what tutorials.py asks.

Interpreter, imports, images, network, a loader, epochs through the whole network even where it is frozen, one test at the
end. Nothing is shared with any other script. It prints the seconds from the end of the imports on.
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
    """Decoded images of the right size, normalised one by one as a loader asks for them."""

    def __init__(self, split, ready):
        self.split, self.ready = split, ready

    def __len__(self):
        return len(self.split.labels)

    def __getitem__(self, index):
        image = torch.from_numpy(self.split.images[index : index + 1].copy())
        return preprocessing.to_tensor(image, self.ready)[0], int(self.split.labels[index])


def main():
    """Train and test what one fit asks for."""
    fit, trained, head, test_size, cache = pickle.loads(Path(sys.argv[1]).read_bytes())
    begun = perf_counter()
    dataset = datasets.load_dataset(fit.data, fit.preprocessing, test_size, cache)
    train = Images(
        datasets.take(dataset.train, datasets.train_validation_indices(dataset, fit.train_size, fit.seed)[0]), fit.preprocessing
    )
    test = DataLoader(Images(dataset.test, fit.preprocessing), batch_size=256)
    torch.manual_seed(fit.seed)
    network = backbones.build(fit.arch, len(dataset.classes), fit.code)
    if isinstance(fit.start, WeightsFile):
        checkpoints.load_backbone(network, checkpoint_reader.read_checkpoint(Path(fit.start.path)), head)
    for phase, names in zip(fit.phases, trained, strict=True):
        for name, parameter in network.named_parameters():
            parameter.requires_grad = name in names
        kind = {"adamw": torch.optim.AdamW, "sgd": partial(torch.optim.SGD, momentum=0.9)}[phase.optimizer]
        optimizer = kind((one for one in network.parameters() if one.requires_grad), phase.lr, weight_decay=phase.weight_decay)
        network.train(phase.batchnorm != BATCHNORM_EVAL)
        whole = len(train) >= phase.batch_size
        loader = DataLoader(train, batch_size=phase.batch_size, shuffle=True, drop_last=whole, num_workers=0)
        for x, y in islice(chain.from_iterable(repeat(loader)), phase.steps):
            optimizer.zero_grad()
            cross_entropy(network(x), y).backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        right = sum(int((network(x).argmax(1) == y).sum()) for x, y in test)
    print(perf_counter() - begun, right / len(dataset.test.labels))


if __name__ == "__main__":
    main()
