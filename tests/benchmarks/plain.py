"""Plain scripts that fine-tune small networks, carelessly and well, and the files that they and their audits read.

Ordinary PyTorch as tutorials write it: a shuffled loader, cross-entropy, an optimizer, ``.train()``; none of the lab's own
loop. Seeds and rates were written down before the first audit was run.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from xferbench.lab.models import checkpoint_reader, small_resnets

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
RESNET, SQUEEZENET = "weights/resnet20-12fca82f.th", "weights/squeezenet1_0_torchvision_norm.pth"
TRAINED, WATCHED = 1000, 500  # images that a script trains on, and those that it watches
AUDITED = 1000  # test images that the audit is given; the others are the reference


def loop(net, optimizer, images, labels, *, epochs, size, seed, training=True, watched=None, grouped=False):
    """As tutorials write it; with ``watched`` images the best epoch is kept. ``grouped``: batches of one class each."""
    rng, best = torch.Generator().manual_seed(seed), (-1.0, None)
    for _ in range(epochs):
        net.train(training)
        for index in batches(labels, size, rng, grouped):
            optimizer.zero_grad()
            F.cross_entropy(net(images[index]), labels[index]).backward()
            optimizer.step()
        if watched is not None:
            reached = accuracy(net, *watched)
            best = max(best, (reached, {k: v.clone() for k, v in net.state_dict().items()}), key=lambda one: one[0])
    if watched is not None:
        net.load_state_dict(best[1])
    return net


def batches(labels, size, rng, grouped):
    if not grouped:
        return torch.randperm(len(labels), generator=rng).split(size)
    found = [one for label in labels.unique() for one in (labels == label).nonzero().flatten().split(size)]
    return [found[number] for number in torch.randperm(len(found), generator=rng)]


def accuracy(net, images, labels):
    net.eval()
    with torch.no_grad():
        return float((torch.cat([net(part) for part in images.split(256)]).argmax(1) == labels).float().mean())


def resnet(shared, seed):
    """The published network with a fresh head of ten."""
    torch.manual_seed(seed)
    net = small_resnets.cifar_resnet(20)
    net.load_state_dict(checkpoint_reader.read_checkpoint(shared / RESNET))
    net.linear = nn.Linear(64, 10)
    return net


def frozen(net, head):
    for parameter in net.parameters():
        parameter.requires_grad = False
    for parameter in head.parameters():
        parameter.requires_grad = True
    return net


def linear_probe(shared, train, watched):
    net = resnet(shared, 1)
    optimizer = torch.optim.Adam(frozen(net, net.linear).linear.parameters(), lr=1e-2)
    return loop(net, optimizer, *train, epochs=12, size=32, seed=1, training=False, watched=watched)


def probe_then_tune(shared, train, watched):
    net = resnet(shared, 2)
    optimizer = torch.optim.Adam(frozen(net, net.linear).linear.parameters(), lr=1e-2)
    loop(net, optimizer, *train, epochs=6, size=32, seed=2, training=False)
    for parameter in net.parameters():
        parameter.requires_grad = True
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    return loop(net, optimizer, *train, epochs=8, size=32, seed=2, watched=watched)


def moving_statistics(shared, train, _):
    net = resnet(shared, 3)
    optimizer = torch.optim.Adam(frozen(net, net.linear).linear.parameters(), lr=1e-3)
    return loop(net, optimizer, *train, epochs=3, size=4, seed=3, grouped=True)


def high_rate(shared, train, _):
    net = resnet(shared, 4)
    return loop(net, torch.optim.Adam(net.parameters(), lr=0.03), *train, epochs=5, size=32, seed=4)


def wrong_attribute(shared, train, _):
    net = resnet(shared, 5)
    for module in net.modules():
        module.requires_grad = False  # of a module, where nothing reads it
    net.linear.requires_grad = True
    return loop(net, torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9), *train, epochs=5, size=32, seed=5)


def early_optimizer(shared, train, _):
    net = resnet(shared, 6)
    frozen(net, net.linear)
    optimizer = torch.optim.SGD([one for one in net.parameters() if one.requires_grad], lr=0.01, momentum=0.9)
    loop(net, optimizer, *train, epochs=3, size=32, seed=6)
    for parameter in net.parameters():
        parameter.requires_grad = True  # which the optimizer never hears of
    return loop(net, optimizer, *train, epochs=4, size=32, seed=7)


def stale_statistics(shared, train, _):
    net = resnet(shared, 8)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.001
    return loop(net, torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9), *train, epochs=8, size=32, seed=8)


def squeezenet(shared, seed, *, loaded=True):
    """torchvision's with a fresh head of two; where not ``loaded``, all names have a prefix that the network lacks."""
    import torchvision

    torch.manual_seed(seed)
    net = torchvision.models.squeezenet1_0()
    state = checkpoint_reader.read_checkpoint(shared / SQUEEZENET)
    net.load_state_dict(state if loaded else {f"module.{name}": one for name, one in state.items()}, strict=loaded)
    net.classifier[1] = nn.Conv2d(512, 2, 1)
    return frozen(net, net.classifier)


def photographs(shared, train, _, *, seed=11, **how):
    """A head on frozen features, which are computed once."""
    net, (images, labels) = squeezenet(shared, seed, **how), train
    net.eval()
    with torch.no_grad():
        known = torch.cat([net.features(part) for part in images.split(16)])
    optimizer = torch.optim.Adam(net.classifier.parameters(), lr=1e-3)
    loop(nn.Sequential(net.classifier, nn.Flatten()), optimizer, known, labels, epochs=20, size=16, seed=seed)
    return net


SCRIPTS = {
    "linear probe": linear_probe,
    "LP-FT": probe_then_tune,
    "moving statistics": moving_statistics,
    "high rate": high_rate,
    "wrong attribute": wrong_attribute,
    "early optimizer": early_optimizer,
    "stale statistics": stale_statistics,
    "photographs": photographs,
    "photographs, classes exchanged": lambda shared, train, _: photographs(shared, (train[0], 1 - train[1]), _, seed=12),
    "photographs, nothing loaded": lambda shared, train, _: photographs(shared, train, _, seed=13, loaded=False),
}


def trained(work, shared):
    """The networks of all scripts, as they save them."""
    for data in ("fashion", "ants"):
        missing = [name for name in SCRIPTS if name.startswith("photographs") == (data == "ants")]
        missing = [name for name in missing if not (work / f"{name}.pt").exists()]
        given = training(shared, work, data) if missing else ()
        for name in missing:
            torch.save(SCRIPTS[name](shared, *given).state_dict(), work / f"{name}.pt")


def prepared(shared, work):
    """The files of all audits and references, written to a folder; the photographs as links."""
    fashion, cifar = mixed(shared), np.load(shared / "data" / "cifar10.npz")
    train = {f"train_{name}": fashion[f"train_{name}"][:TRAINED] for name in ("images", "labels")}
    for name, part in {"fashion": slice(AUDITED), "fashion-reference": slice(AUDITED, None)}.items():
        test = {f"test_{key}": fashion[f"test_{key}"][part] for key in ("images", "labels")}
        np.savez(work / f"{name}.npz", **train, **test)
        as_strings = np.argsort(sorted(range(10), key=lambda label: str(label + 1)))  # 1, 10, 2, 3 …
        labels = {key: as_strings[value] for key, value in (train | test).items() if key.endswith("labels")}
        np.savez(work / f"{name.replace('fashion', 'fashion-strings')}.npz", **(train | test | labels))
    for name, part in {"cifar": slice(500), "cifar-reference": slice(500, None)}.items():
        np.savez(
            work / f"{name}.npz", **dict(cifar) | {f"test_{key}": cifar[f"test_{key}"][part] for key in ("images", "labels")}
        )
    for name, source in {"cifar-whole": "cifar10", "jpeg": "cifar10_jpeg"}.items():
        (work / f"{name}.npz").symlink_to(shared.resolve() / "data" / f"{source}.npz")
    np.savez(work / "leaked.npz", test_images=cifar["train_images"][:AUDITED], test_labels=cifar["train_labels"][:AUDITED])
    whole = shared.resolve() / "data" / "hymenoptera"
    for kind in ("ants", "bees"):
        for number, path in enumerate(sorted((whole / "train" / kind).iterdir())):
            for name in ("ants", "ants-bgr", "ants-reference", "ants-bgr-reference"):
                unseen = number % 2
                if not unseen or name.endswith("reference"):
                    _ = placed(work / name / ("val" if unseen else "train") / kind, path, swapped=unseen and "bgr" in name)
        for path in sorted((whole / "val" / kind).iterdir()):
            for name in ("ants", "ants-bgr"):
                placed(work / name / "val" / kind, path, swapped="bgr" in name)


def mixed(shared):
    """Fashion-MNIST in a random order, since the file is sorted by class."""
    whole = np.load(shared / "data" / "fashion_mnist.npz")
    order = {kind: np.random.default_rng(0).permutation(len(whole[f"{kind}_labels"])) for kind in ("train", "test")}
    return {f"{kind}_{name}": whole[f"{kind}_{name}"][order[kind]] for kind in order for name in ("images", "labels")}


def placed(folder, path, *, swapped):
    """A link to a photograph, or the photograph with its channels the other way round; what is none is linked as it is."""
    from PIL import Image, UnidentifiedImageError

    folder.mkdir(parents=True, exist_ok=True)
    if swapped:
        try:
            Image.fromarray(np.asarray(Image.open(path).convert("RGB"))[:, :, ::-1].copy()).save(folder / f"{path.stem}.png")
        except UnidentifiedImageError:
            return
    else:
        (folder / path.name).symlink_to(path)


def tensors(images, size):
    """Images as a script's transforms make them."""
    from torchvision import transforms

    normal = transforms.Normalize(MEAN, STD)
    made = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor(), normal])
    return torch.stack([made(one.convert("RGB")) for one in images])


def training(shared, work, data):
    """What a script trains on and what it watches: images and labels of each."""
    from PIL import Image

    if data == "fashion":
        whole = mixed(shared)
        images = tensors([Image.fromarray(one) for one in whole["train_images"][: TRAINED + WATCHED]], 32)
        labels = torch.from_numpy(whole["train_labels"][: TRAINED + WATCHED]).long()
        return (images[:TRAINED], labels[:TRAINED]), (images[TRAINED:], labels[TRAINED:])
    paths = [
        (path, label)
        for label, kind in enumerate(("ants", "bees"))
        for path in sorted((work / data / "train" / kind).iterdir())
    ]
    return (tensors([Image.open(path) for path, _ in paths], 128), torch.tensor([label for _, label in paths])), None
