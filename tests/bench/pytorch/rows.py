"""The PyTorch side of the benchmark: one row a process. It prepares the row, prints "ready", and for
each line "run" on its input prints what one run took; "peak" prints memory in MiB.
Usage: rows.py ROW   (started by tests/bench/run)"""
import os
import sys
import time
import warnings

warnings.filterwarnings("ignore", category=FutureWarning)

import torch
import torch.nn.functional as F

os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

ENCODER = {"width": 768, "layers": 12, "heads": 12, "image": 518, "patch": 14}
LORA = {"rank": 16, "alpha": 32, "dropout": 0.1}
COMPRESS = {"hidden": 384, "width": 128, "dropout": 0.1}
LANGUAGE = {"vocab": 32768, "width": 384, "layers": 7, "ff": 1024, "heads": 6, "rope_theta": 10000, "eps": 1e-6}
WEIGHTS = {"itc": 1, "itm": 0.5, "lm": 1, "memory": 0.1}
CONFIG = {"encoder": ENCODER, "lora": LORA, "compress": COMPRESS, "language": LANGUAGE,
          "fusion": {"layers": 4, "heads": 4, "ff": 512}, "memory": {"slots": 32}, "itc": {"dim": 256, "tau": 0.07}}


def timed(fn):
    def run():
        start = time.perf_counter()
        fn()
        return time.perf_counter() - start
    return run


def adamw(*modules):
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.05, fused=True), parameters


def forward(batch):
    def prepare():
        import stage1
        model = stage1.encoder(ENCODER).eval().requires_grad_(False)
        pixels = torch.randn(batch, 3, 224, 224)

        @torch.no_grad()
        def run():
            model(pixel_values=pixels)
        return timed(run)
    return prepare


def phase(lora):
    def prepare():
        import stage1
        model = stage1.encoder(ENCODER)
        model = stage1.lora(model, LORA) if lora else model.requires_grad_(False)
        compress = stage1.Compressor(768, COMPRESS)
        model.train()
        optimizer, _ = adamw(model, compress)
        pixels, target = torch.randn(8, 3, 224, 224), torch.randn(8, 256, 128)

        def run():
            optimizer.zero_grad()
            F.mse_loss(compress(model(pixel_values=pixels).last_hidden_state[:, 1:]), target).backward()
            optimizer.step()
        return timed(run)
    return prepare


def language():
    from language import Language
    model = Language(LANGUAGE)
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.02)
    return model


def lm():
    model = language().train()
    optimizer, _ = adamw(model)
    ids = torch.randint(32768, (16, 64))

    def run():
        optimizer.zero_grad()
        model.loss(model(ids), ids).backward()
        optimizer.step()
    return timed(run)


def greedy():
    model, prompt = language().eval(), torch.randint(32768, (1, 16))
    return timed(lambda: model.greedy(prompt, 64))


def whole():
    import stage1
    model = stage1.Stage1(CONFIG).train()
    for name, p in model.named_parameters():
        if name.endswith("gate"):
            p.data.fill_(0.3)
        elif "lora_B" in name:
            p.data.normal_(std=0.02)
        elif name.startswith("language") and p.dim() > 1:
            p.data.normal_(std=0.02)
    lengths = torch.tensor([40 - b * 3 % 37 for b in range(31)])
    mask = torch.arange(40) < lengths[:, None]
    ids = torch.randint(3, 32768, (31, 40)) * mask
    batch = {"pixels": torch.randn(8, 3, 224, 224), "ids": ids[:8], "mask": mask[:8], "image_ids": torch.arange(1, 9),
             "caption_ids": torch.tensor([1, 1, 3, 4, 5, 6, 7, 8])}
    queue = {"image": F.normalize(torch.randn(62, 256)), "text": F.normalize(torch.randn(62, 256)),
             "ids": torch.cat((torch.arange(100, 131), torch.arange(2, 33))),
             "captions": torch.cat((torch.arange(100, 131), torch.arange(2, 33))),
             "tokens": ids.repeat(2, 1), "mask": mask.repeat(2, 1),
             "patches": torch.randn(62, 256, 128, dtype=torch.bfloat16)}
    optimizer, parameters = adamw(model)

    def run():
        optimizer.zero_grad()
        stage1.total(model.losses(batch, queue), WEIGHTS).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1)
        optimizer.step()
    return timed(run)


def repeated(fn, n):
    def run():
        best = float("inf")
        for _ in range(20):
            start = time.perf_counter()
            fn(n)
            best = min(best, (time.perf_counter() - start) / n)
        return best
    return run


def operator(tape):
    def prepare():
        x, w = torch.randn(4), torch.randn(4, requires_grad=tape)

        def many(n):
            for _ in range(n):
                x * w
        return repeated(many, 2000)
    return prepare


def chain():
    x = torch.randn(4, requires_grad=True)

    def many(n):
        y = x
        for _ in range(n):
            y = y * x
        y.sum().backward()
        x.grad = None
    return repeated(many, 500)


def sgemm():
    a, b = torch.randn(2056, 768), torch.randn(3072, 768)
    return timed(lambda: a @ b.T)


def linear():
    x, w = torch.randn(8, 257, 768), torch.randn(3072, 768)
    return timed(lambda: F.linear(x, w))


def opened(pixels):
    def prepare():
        from transformers import AutoModel
        x = torch.randn(1, 3, 224, 224)

        @torch.no_grad()
        def run():
            model = AutoModel.from_pretrained(os.environ["BENCH_FILES"] + "/model").eval()
            if pixels:
                model(pixel_values=x)
        return timed(run)
    return prepare


def features():
    """What `weft features` does: a folder of pictures to a file of CLS vectors, the next batch decoded ahead."""
    from concurrent.futures import ThreadPoolExecutor
    from PIL import Image
    from safetensors.torch import save_file
    from transformers import AutoImageProcessor, AutoModel
    files = os.environ["BENCH_FILES"]
    reader = ThreadPoolExecutor(1)

    @torch.no_grad()
    def run():
        processor = AutoImageProcessor.from_pretrained(files + "/model")
        model = AutoModel.from_pretrained(files + "/model").eval()

        def decode(names):
            return processor(images=[Image.open(files + "/pictures/" + n).convert("RGB") for n in names], return_tensors="pt")
        names = sorted(os.listdir(files + "/pictures"))
        batches = [names[i:i + 8] for i in range(0, len(names), 8)]
        out, ahead = [], reader.submit(decode, batches[0])
        for k in range(len(batches)):
            inputs = ahead.result()
            if k + 1 < len(batches):
                ahead = reader.submit(decode, batches[k + 1])
            out.append(model(**inputs).pooler_output)
        save_file({"pooler_output": torch.cat(out)}, files + "/pytorch.safetensors", {"names": str(names)})
    return timed(run)


ROWS = {"forward1": forward(1), "forward8": forward(8), "phase1": phase(False), "phase2": phase(True), "lm": lm,
        "greedy": greedy, "stage1": whole, "operator": operator(False), "operator_tape": operator(True), "chain": chain,
        "sgemm": sgemm, "linear": linear, "open": opened(False), "first": opened(True), "features": features}

if __name__ == "__main__":
    run = ROWS[sys.argv[1]]()
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "run":
            print("%.9g 0" % run(), flush=True)
        elif line.strip() == "peak":
            with open("/proc/self/status") as f:
                peak = next(int(s.split()[1]) for s in f if s.startswith("VmHWM"))
            print("%.1f" % (peak / 1024), flush=True)
