"""The PyTorch side of the benchmark on a device: one row a process, eager or compiled, answering as
tests/bench/gpu.lua does. All of a model is in the dtype that is asked for, the fastest that it has.
Usage: gpu.py ROW DEVICE DTYPE eager|compiled [tiny]   (started by tests/bench/run --device)"""
import os
import re
import sys
import time
import warnings

warnings.filterwarnings("ignore")

import torch
import torch.nn.functional as F

import stage1
from language import Language

row, device, dtype, how = sys.argv[1:5]
tiny, compiled = "tiny" in sys.argv[5:], how == "compiled"
DTYPE = getattr(torch, dtype)
SIDE = 56 if tiny else 224
if tiny:
    ENCODER = {"width": 64, "layers": 2, "heads": 2, "image": 70, "patch": 14}
    LORA = {"rank": 4, "alpha": 8, "dropout": 0}
    COMPRESS = {"hidden": 48, "width": 32, "dropout": 0}
    LANGUAGE = {"vocab": 64, "width": 48, "layers": 3, "ff": 96, "heads": 3, "rope_theta": 10000, "eps": 1e-6}
    FUSION, SLOTS, DIM, QUEUE, LENGTH = {"layers": 2, "heads": 2, "ff": 64}, 4, 24, 16, 12
else:
    ENCODER = {"width": 768, "layers": 12, "heads": 12, "image": 518, "patch": 14}
    LORA = {"rank": 16, "alpha": 32, "dropout": 0.1}
    COMPRESS = {"hidden": 384, "width": 128, "dropout": 0.1}
    LANGUAGE = {"vocab": 32768, "width": 384, "layers": 7, "ff": 1024, "heads": 6, "rope_theta": 10000, "eps": 1e-6}
    FUSION, SLOTS, DIM, QUEUE, LENGTH = {"layers": 4, "heads": 4, "ff": 512}, 32, 256, 64, 40
WEIGHTS = {"itc": 1, "itm": 0.5, "lm": 1, "memory": 0.1}


def wait():
    if device != "cpu":
        torch.cuda.synchronize()


def moved(module):
    return module.to(device, DTYPE)


def randn(*shape):
    return torch.randn(*shape, device=device).to(DTYPE)


def built(fn, **options):
    return torch.compile(fn, dynamic=False, **options) if compiled else fn


def adamw(*modules):
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.05, fused=True), parameters


def forward(n):
    model = moved(stage1.encoder(ENCODER)).eval().requires_grad_(False)
    pixels = randn(n, 3, SIDE, SIDE)
    # few launches matter most where there is little to compute: those are replayed as a CUDA graph
    fast = built(model, **({"mode": "reduce-overhead"} if n <= 8 and device != "cpu" else {}))

    @torch.no_grad()
    def step():
        fast(pixel_values=pixels)
    return step


def phase(n, with_lora):
    model = stage1.encoder(ENCODER)
    model = stage1.lora(model, LORA) if with_lora else model.requires_grad_(False)
    model, compress = moved(model).train(), moved(stage1.Compressor(ENCODER["width"], COMPRESS)).train()
    optimizer, _ = adamw(model, compress)
    pixels, target = randn(n, 3, SIDE, SIDE), randn(n, (SIDE // 14) ** 2, COMPRESS["width"])

    @built
    def loss():
        return F.mse_loss(compress(model(pixel_values=pixels).last_hidden_state[:, 1:]), target)

    def step():
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return step


def lm(n):
    model = Language(LANGUAGE)
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.02)
    model = moved(model).train()
    optimizer, _ = adamw(model)
    ids = torch.randint(LANGUAGE["vocab"], (n, 12 if tiny else 128)).to(device)
    loss = built(lambda: model.loss(model(ids), ids))

    def step():
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return step


def whole(n):
    model = stage1.Stage1({"encoder": ENCODER, "lora": LORA, "compress": COMPRESS, "language": LANGUAGE, "fusion": FUSION,
                           "memory": {"slots": SLOTS}, "itc": {"dim": DIM, "tau": 0.07}}).train()
    for name, p in model.named_parameters():
        if name.endswith("gate"):
            p.data.fill_(0.3)
        elif "lora_B" in name or (name.startswith("language") and p.dim() > 1):
            p.data.normal_(std=0.02)
    moved(model)
    model.memory.float()
    model.itc.tau.data = model.itc.tau.data.float()
    half = QUEUE // 2 - 1
    rows = max(n, 2 * half)
    lengths = torch.tensor([LENGTH - b * 3 % (LENGTH - 3) for b in range(rows)])
    mask = (torch.arange(LENGTH) < lengths[:, None]).to(device)
    ids = torch.randint(3, LANGUAGE["vocab"], (rows, LENGTH)).to(device) * mask
    numbers = torch.arange(1, n + 1, device=device)
    captions = numbers.clone()
    captions[1] = 1
    batch = {"pixels": randn(n, 3, SIDE, SIDE), "ids": ids[:n], "mask": mask[:n], "image_ids": numbers, "caption_ids": captions}
    before = torch.cat((torch.arange(100, 100 + half), torch.arange(2, 2 + half))).to(device)
    queue = {"image": F.normalize(randn(2 * half, DIM)), "text": F.normalize(randn(2 * half, DIM)), "ids": before,
             "captions": before, "tokens": ids[:2 * half], "mask": mask[:2 * half],
             "patches": randn(2 * half, (SIDE // 14) ** 2, COMPRESS["width"])}
    optimizer, parameters = adamw(model)
    if compiled:    # what surrounds these branches on data
        model.vision.compile(dynamic=False)
        model.compress.compile(dynamic=False)

    def step():
        optimizer.zero_grad()
        stage1.total(model.losses(batch, queue), WEIGHTS).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1)
        optimizer.step()
    return step


def product(n):
    a, b = randn(n, n), randn(n, n)
    return lambda: a @ b


def copy(n):
    a = randn(n, 1024, 1024)
    return lambda: a.clone()


ROWS = {"forward": forward, "phase1": lambda n: phase(n, False), "phase2": lambda n: phase(n, True), "lm": lm,
        "stage1": whole, "product": product, "copy": copy}


def launches(step):
    """Kernels and copies of one step and the seconds in which one of them ran, by PyTorch's profiler; 0 where it
    has none. BENCH_PROFILE=FOLDER: a table of them by name, in a file."""
    try:
        from torch.profiler import ProfilerActivity, profile
        with profile(activities=[ProfilerActivity.CUDA]) as p:
            step()
            wait()
        spans = sorted((e.time_range.start, e.time_range.end) for e in p.events()
                       if e.device_type == torch.autograd.DeviceType.CUDA)
        busy = until = 0
        for start, end in spans:
            busy, until = busy + max(0, end - max(start, until)), max(until, end)
        if "BENCH_PROFILE" in os.environ:
            with open(os.path.join(os.environ["BENCH_PROFILE"], "%s-%s.txt" % (row, how)), "w") as f:
                f.write(p.key_averages().table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=100))
        return len(spans), busy * 1e-6
    except Exception as e:
        print("no profile: %s" % e, file=sys.stderr)
        return 0, 0


def main():
    name, n = re.match(r"^([a-z]+\d?)_(\d+)$", row).groups()
    torch.manual_seed(1)
    step = ROWS[name](int(n))
    wait()
    print("ready", flush=True)
    for line in sys.stdin:
        words = line.split()
        if words[0] == "run":
            count = int(words[1]) if len(words) > 1 else 1
            start = time.perf_counter()
            for _ in range(count):
                step()
            issued = time.perf_counter() - start
            wait()
            answer = "%.9g %.9g" % ((time.perf_counter() - start) / count, issued / count)
        elif words[0] == "reset":
            if device != "cpu":
                torch.cuda.reset_peak_memory_stats()
            answer = "0"
        elif words[0] == "peak":
            cuda = device != "cpu"
            answer = "%.1f %.1f" % (torch.cuda.max_memory_allocated() / 2**20 if cuda else 0,
                                    torch.cuda.max_memory_reserved() / 2**20 if cuda else 0)
        else:
            count, busy = launches(step) if device != "cpu" else (0, 0)
            answer = "%d 0 %.9g" % (count, busy)
        print(answer, flush=True)


main()
