"""Compares a step that weft wrote down (dump.lua) with the same step here: every loss to 1e-5, every
gradient to 1e-4, relative. Usage: parity.py FOLDER. Exit status 1 when anything differs."""
import json
import sys
import warnings

warnings.filterwarnings("ignore", category=FutureWarning)

import torch
from safetensors.torch import load_file

import stage1

LOSS, GRADIENT = 1e-5, 1e-4
# A bias of keys shifts all scores of a query alike: its gradient is 0 but for rounding.
ZERO = 1e-6


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def main(folder):
    with open(folder + "/config.json") as f:
        config = json.load(f)
    tensors = {part: load_file(folder + "/%s.safetensors" % part) for part in ("model", "batch", "given", "expected")}
    model = stage1.Stage1(config)
    names = stage1.load(model, tensors["model"])
    model.train()
    parameters = dict(model.named_parameters())
    for name, p in parameters.items():
        p.requires_grad_(not name.startswith("vision.") or "lora_" in name)

    batch = {k: v for k, v in tensors["batch"].items() if not k.startswith("queue.")}
    queue = {k[6:]: v for k, v in tensors["batch"].items() if k.startswith("queue.")}
    given = {"columns": torch.stack([tensors["given"]["columns.1"], tensors["given"]["columns.2"]]),
             "noise": [tensors["given"]["noise.1"].flatten(0, -2), tensors["given"]["noise.2"].flatten(0, -2)]}
    losses = model.losses(batch, queue, given)
    stage1.total(losses, config["weights"]).backward()

    expected, bad, worst = tensors["expected"], [], (0, "")
    for name, value in losses.items():
        off = relative(value.detach(), expected["loss." + name][0])
        print("%-8s weft %.8f  PyTorch %.8f  relative difference %.1e" % (name, expected["loss." + name], value.detach(), off))
        if not off <= LOSS:
            bad.append("loss %s: %.1e" % (name, off))
    gradients = {k[5:]: v for k, v in expected.items() if k.startswith("grad.")}
    mine = {name for name, p in parameters.items() if p.requires_grad}
    if {names[k] for k in gradients} != mine:
        bad.append("not the same parameters train: %s" % sorted({names[k] for k in gradients} ^ mine))
    whole = torch.stack([g.double().norm() for g in gradients.values()]).norm().item()
    for name, g in gradients.items():
        other = parameters[names[name]].grad
        if name.endswith("k_proj.bias"):
            if max(g.norm().item(), other.norm().item()) > ZERO * whole:
                bad.append("gradient of %s is not 0" % name)
            continue
        off = relative(g, other)
        worst = max(worst, (off, name))
        if not off <= GRADIENT:
            bad.append("gradient of %s: %.1e" % (name, off))
    print("%d gradients, the furthest %.1e (%s)" % (len(gradients), *worst))
    for line in bad:
        print("differs: " + line)
    return 1 if bad else 0


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(main(sys.argv[1]))
