"""Plain scripts that fine-tune small networks, carelessly and well, and the files that they and their audits read.

The scripts are ordinary PyTorch as tutorials write it: a shuffled loader, cross-entropy, an optimizer, ``.train()``. They
do not use the loop of the lab. Seeds and rates were written down before the first audit.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from xferbench.lab.models import checkpoint_reader, small_resnets

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
RESNET, SQUEEZENET = "weights/resnet20-12fca82f.th", "weights/squeezenet1_0_torchvision_norm.pth"
TRAINING_IMAGES, VALIDATION_IMAGES = 1000, 500  # of a script
AUDITED_IMAGES = 1000  # test images of the audit; the others are the reference


def train_loop(net, optimizer, images, labels, *, epochs, size, seed, training=True, validation=None, grouped=False):
    """Train as tutorials do.

    Args:
        net, optimizer: the network and its optimizer.
        images, labels: the training images.
        epochs, size, seed: the number of epochs, the batch size and the seed of the order.
        training: the mode of the network.
        validation: images and labels that select the best epoch, or None for the last one.
        grouped: whether each batch has images of one class only.
    """
    rng, best_accuracy, best_state = torch.Generator().manual_seed(seed), -1.0, None
    for _ in range(epochs):
        net.train(training)
        for index in batches(labels, size, rng, grouped):
            optimizer.zero_grad()
            F.cross_entropy(net(images[index]), labels[index]).backward()
            optimizer.step()
        if validation is not None and (epoch_accuracy := accuracy(net, *validation)) > best_accuracy:
            best_accuracy = epoch_accuracy
            best_state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    if validation is not None:
        net.load_state_dict(best_state)
    return net


def batches(labels, size, rng, grouped):
    """Return the indices of the batches of an epoch in random order."""
    if not grouped:
        return torch.randperm(len(labels), generator=rng).split(size)
    by_class = [batch for label in labels.unique() for batch in (labels == label).nonzero().flatten().split(size)]
    return [by_class[number] for number in torch.randperm(len(by_class), generator=rng)]


def accuracy(net, images, labels):
    """Return the accuracy of a network in eval mode."""
    net.eval()
    with torch.no_grad():
        return float((torch.cat([net(part) for part in images.split(256)]).argmax(1) == labels).float().mean())


def resnet(shared, seed):
    """Return the published network with a new head of ten outputs."""
    torch.manual_seed(seed)
    net = small_resnets.cifar_resnet(20)
    net.load_state_dict(checkpoint_reader.read_checkpoint(shared / RESNET))
    net.linear = nn.Linear(64, 10)
    return net


def freeze_below(net, head):
    """Freeze all parameters but those of the head, and return the network."""
    for parameter in net.parameters():
        parameter.requires_grad = False
    for parameter in head.parameters():
        parameter.requires_grad = True
    return net


def linear_probe(shared, train, validation):
    net = resnet(shared, 1)
    optimizer = torch.optim.Adam(freeze_below(net, net.linear).linear.parameters(), lr=1e-2)
    return train_loop(net, optimizer, *train, epochs=12, size=32, seed=1, training=False, validation=validation)


def probe_then_tune(shared, train, validation):
    net = resnet(shared, 2)
    optimizer = torch.optim.Adam(freeze_below(net, net.linear).linear.parameters(), lr=1e-2)
    train_loop(net, optimizer, *train, epochs=6, size=32, seed=2, training=False)
    for parameter in net.parameters():
        parameter.requires_grad = True
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    return train_loop(net, optimizer, *train, epochs=8, size=32, seed=2, validation=validation)


def moving_statistics(shared, train, _):
    net = resnet(shared, 3)
    optimizer = torch.optim.Adam(freeze_below(net, net.linear).linear.parameters(), lr=1e-3)
    return train_loop(net, optimizer, *train, epochs=3, size=4, seed=3, grouped=True)


def high_rate(shared, train, _):
    net = resnet(shared, 4)
    return train_loop(net, torch.optim.Adam(net.parameters(), lr=0.03), *train, epochs=5, size=32, seed=4)


def wrong_attribute(shared, train, _):
    net = resnet(shared, 5)
    for module in net.modules():
        module.requires_grad = False  # on a module, where the attribute has no effect
    net.linear.requires_grad = True
    return train_loop(net, torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9), *train, epochs=5, size=32, seed=5)


def early_optimizer(shared, train, _):
    net = resnet(shared, 6)
    freeze_below(net, net.linear)
    optimizer = torch.optim.SGD([parameter for parameter in net.parameters() if parameter.requires_grad], lr=0.01, momentum=0.9)
    train_loop(net, optimizer, *train, epochs=3, size=32, seed=6)
    for parameter in net.parameters():
        parameter.requires_grad = True  # unknown to the optimizer
    return train_loop(net, optimizer, *train, epochs=4, size=32, seed=7)


def stale_statistics(shared, train, _):
    net = resnet(shared, 8)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.001
    return train_loop(net, torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9), *train, epochs=8, size=32, seed=8)


def squeezenet(shared, seed, *, loaded=True):
    """Return torchvision's network with a new head of two outputs; unless ``loaded``, the names have an unknown prefix."""
    import torchvision

    torch.manual_seed(seed)
    net = torchvision.models.squeezenet1_0()
    state = checkpoint_reader.read_checkpoint(shared / SQUEEZENET)
    net.load_state_dict(state if loaded else {f"module.{name}": tensor for name, tensor in state.items()}, strict=loaded)
    net.classifier[1] = nn.Conv2d(512, 2, 1)
    return freeze_below(net, net.classifier)


def photographs(shared, train, _, *, seed=11, loaded=True):
    """Train a head on frozen features, which are computed once."""
    net, (images, labels) = squeezenet(shared, seed, loaded=loaded), train
    net.eval()
    with torch.no_grad():
        features = torch.cat([net.features(part) for part in images.split(16)])
    optimizer = torch.optim.Adam(net.classifier.parameters(), lr=1e-3)
    train_loop(nn.Sequential(net.classifier, nn.Flatten()), optimizer, features, labels, epochs=20, size=16, seed=seed)
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


def train_networks(work, shared):
    """Run each script whose network is not in the work folder, and save its network there."""
    for data in ("fashion", "ants"):
        of_data = [name for name in SCRIPTS if name.startswith("photographs") == (data == "ants")]
        missing = [name for name in of_data if not (work / f"{name}.pt").exists()]
        examples = script_examples(shared, work, data) if missing else ()
        for name in missing:
            torch.save(SCRIPTS[name](shared, *examples).state_dict(), work / f"{name}.pt")


def prepare_files(shared, work):
    """Write the files of all audits and references to a folder; the photographs are links."""
    fashion, cifar = shuffled_fashion(shared), np.load(shared / "data" / "cifar10.npz")
    train = {f"train_{name}": fashion[f"train_{name}"][:TRAINING_IMAGES] for name in ("images", "labels")}
    for name, part in {"fashion": slice(AUDITED_IMAGES), "fashion-reference": slice(AUDITED_IMAGES, None)}.items():
        test = {f"test_{key}": fashion[f"test_{key}"][part] for key in ("images", "labels")}
        np.savez(work / f"{name}.npz", **train, **test)
        as_strings = np.argsort(sorted(range(10), key=lambda label: str(label + 1)))  # 1, 10, 2, 3 …
        labels = {key: as_strings[value] for key, value in (train | test).items() if key.endswith("labels")}
        np.savez(work / f"{name.replace('fashion', 'fashion-strings')}.npz", **(train | test | labels))
    for name, part in {"cifar": slice(500), "cifar-reference": slice(500, None)}.items():
        test = {f"test_{key}": cifar[f"test_{key}"][part] for key in ("images", "labels")}
        np.savez(work / f"{name}.npz", **dict(cifar) | test)
    for name, source in {"cifar-whole": "cifar10", "jpeg": "cifar10_jpeg"}.items():
        (work / f"{name}.npz").symlink_to(shared.resolve() / "data" / f"{source}.npz")
    leaked = {f"test_{key}": cifar[f"train_{key}"][:AUDITED_IMAGES] for key in ("images", "labels")}
    np.savez(work / "leaked.npz", **leaked)
    photo_folder = shared.resolve() / "data" / "hymenoptera"
    for kind in ("ants", "bees"):
        for number, path in enumerate(sorted((photo_folder / "train" / kind).iterdir())):
            is_reference = bool(number % 2)
            for name in ("ants", "ants-bgr", "ants-reference", "ants-bgr-reference"):
                if not is_reference or name.endswith("reference"):
                    folder = work / name / ("val" if is_reference else "train") / kind
                    add_photograph(folder, path, swapped=is_reference and "bgr" in name)
        for path in sorted((photo_folder / "val" / kind).iterdir()):
            for name in ("ants", "ants-bgr"):
                add_photograph(work / name / "val" / kind, path, swapped="bgr" in name)


def shuffled_fashion(shared):
    """Return Fashion-MNIST in random order; its file is sorted by class."""
    fashion = np.load(shared / "data" / "fashion_mnist.npz")
    order = {kind: np.random.default_rng(0).permutation(len(fashion[f"{kind}_labels"])) for kind in ("train", "test")}
    return {f"{kind}_{name}": fashion[f"{kind}_{name}"][order[kind]] for kind in order for name in ("images", "labels")}


def add_photograph(folder, path, *, swapped):
    """Link to a photograph, or write it with its channels in reverse order; a file that is no image is only linked."""
    from PIL import Image, UnidentifiedImageError

    folder.mkdir(parents=True, exist_ok=True)
    if swapped:
        try:
            Image.fromarray(np.asarray(Image.open(path).convert("RGB"))[:, :, ::-1].copy()).save(folder / f"{path.stem}.png")
        except UnidentifiedImageError:
            return
    else:
        (folder / path.name).symlink_to(path)


def transform_images(images, size):
    """Return images as the transforms of a script make them."""
    from torchvision import transforms

    normalize = transforms.Normalize(MEAN, STD)
    transform = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor(), normalize])
    return torch.stack([transform(image.convert("RGB")) for image in images])


def script_examples(shared, work, data):
    """Return the training examples of a script and its validation examples, each as images and labels."""
    from PIL import Image

    if data == "fashion":
        fashion, count = shuffled_fashion(shared), TRAINING_IMAGES + VALIDATION_IMAGES
        images = transform_images([Image.fromarray(image) for image in fashion["train_images"][:count]], 32)
        labels = torch.from_numpy(fashion["train_labels"][:count]).long()
        return (images[:TRAINING_IMAGES], labels[:TRAINING_IMAGES]), (images[TRAINING_IMAGES:], labels[TRAINING_IMAGES:])
    paths = [
        (path, label)
        for label, kind in enumerate(("ants", "bees"))
        for path in sorted((work / data / "train" / kind).iterdir())
    ]
    images = transform_images([Image.open(path) for path, _ in paths], 128)
    return (images, torch.tensor([label for _, label in paths])), None
