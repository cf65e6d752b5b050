"""The rows of tests/bench/run --device: weft, weft with its step captured as a graph, PyTorch eager and
PyTorch compiled on one GPU. One process of each a row; they take turns, each waits for the device at the end of its turn."""
import datetime
import os
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SIDES = ("weft", "weft graph", "eager", "compiled")


def encoder(batch, patches=256, d=768, layers=12):
    n = patches + 1
    return batch * (layers * (2 * n * d * d * 4 + 2 * n * d * 4 * d * 2 + 2 * 2 * n * n * d) + 2 * patches * 588 * d)


def compressor(batch):
    return batch * 256 * 2 * (768 * 384 + 384 * 128)


def language(rows, n, d=384, layers=7, ff=1024, vocab=32768):
    tokens = rows * n
    return tokens * (layers * (2 * 4 * d * d + 2 * 3 * d * ff) + 2 * vocab * d) + rows * layers * 2 * 2 * n * n * d / 2


# name, title, floating-point operations of its products, bytes. The ceilings come first, then what matters most.
ROWS = [
    ("product_8192", "Product 8192 x 8192 x 8192", 2 * 8192 ** 3, None),
    ("copy_512", "Copy of 512 x 1024 x 1024 numbers", None, 2 * 512 << 20),
    ("phase2_64", "Phase-2 step, 64 pictures (LoRA of rank 16 and compressor train)", 2 * encoder(64) + 3 * compressor(64), None),
    ("forward_64", "DINOv2-base forward, 64 pictures, 224 px", encoder(64), None),
    ("phase2_256", "Phase-2 step, 256 pictures", 2 * encoder(256) + 3 * compressor(256), None),
    ("phase1_64", "Phase-1 step, 64 pictures (encoder frozen)", encoder(64) + 3 * compressor(64), None),
    ("forward_1", "DINOv2-base forward, 1 picture", encoder(1), None),
    ("forward_8", "DINOv2-base forward, 8 pictures", encoder(8), None),
    ("lm_64", "25M language model step, 64 x 128 tokens", 3 * language(64, 128), None),
    ("stage1_8", "Stage-1 step, 8 pairs, all losses, phase 2", None, None),
    ("forward_256", "DINOv2-base forward, 256 pictures", encoder(256), None),
]
NOT_COMPILED = ("product", "copy")


class Side:
    """One process; `why` is set once it has failed."""

    def __init__(self, name, row, o):
        self.name, self.why, self.count, self.times, self.issued = name, "", 1, [], []
        small = ["tiny"] if o.tiny else []
        env = dict(os.environ, PYTHONDONTWRITEBYTECODE="1", HF_HUB_OFFLINE="1",
                   TORCHINDUCTOR_CACHE_DIR=os.path.join(ROOT, "build/bench-compiled"))
        if name in SIDES[:2]:
            command = ["luajit", "tests/bench/gpu.lua", row, o.device, o.dtype, *small, *name.split()[1:]]
            if "LUA_PATH" not in env:
                build = os.path.join(ROOT, os.environ.get("BENCH_BUILD") or "build")
                env["LUA_PATH"] = "%s/lua/?.lua;%s/lua/?/init.lua;%s/generated/lua/?.lua;;" % (ROOT, ROOT, build)
                env["LUA_CPATH"] = build + "/?.so;;"
        else:
            place = "cpu" if o.device in ("cpu", "cuda-sim") else o.device
            command = [o.python, "tests/bench/pytorch/gpu.py", row, place, o.dtype, name, *small]
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.errors, text=True)

    def read(self):
        """The next line of numbers; None where the process ended."""
        line = "" if self.why else self.process.stdout.readline()
        while line.strip() and not line.strip() == "ready" and not line.strip()[0].isdigit():
            line = self.process.stdout.readline()
        if line.strip():
            return line.split()
        if not self.why:
            self.process.wait()
            self.errors.seek(0)
            said = [l.strip() for l in self.errors.read().splitlines() if l.strip()]
            self.why = next((l for l in reversed(said) if "rror" in l), said[-1] if said else "ended")[:160]
        return None

    def ask(self, what):
        if self.why:
            return None
        try:
            self.process.stdin.write(what + "\n")
            self.process.stdin.flush()
        except OSError:
            pass
        answer = self.read()
        return [float(x) for x in answer] if answer else None

    def warm(self, seconds):
        """Until it is warm; then how many steps a turn takes."""
        for _ in range(3):
            last = self.ask("run 1")
        if last:
            self.count = max(1, min(500, int(seconds / max(last[0], 1e-6))))
            self.ask("run %d" % max(1, self.count // 4))
            self.ask("reset")

    def turn(self):
        answer = self.ask("run %d" % self.count)
        if answer:
            self.times.append(answer[0])
            self.issued.append(answer[1])

    def close(self):
        try:
            self.process.stdin.close()
        except OSError:
            pass
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def sides_of(row, o):
    if row.split("_")[0] in NOT_COMPILED:
        return ("weft", "eager")
    return SIDES if o.device.startswith("cuda") else [s for s in SIDES if s != "weft graph"]


def measure(row, o):
    sides = [Side(name, row, o) for name in sides_of(row, o)]
    try:
        for side in sides:
            side.read()
        for side in sides:
            side.warm(o.turn)
        for number in range(o.rounds):
            order = sides[number % len(sides):] + sides[:number % len(sides)]
            for side in order:
                side.turn()
        for side in sides:
            side.peak = side.ask("peak")
            side.launches = side.ask("launches")
    finally:
        for side in sides:
            side.close()
    return sides


def compile_ahead(rows, o):
    """Compiles what is to be compiled, several programs at a time; their results are kept on disk."""
    def one(row):
        side = Side("compiled", row, o)
        side.read()
        side.ask("run 1")
        side.close()
        return side.why
    with ThreadPoolExecutor(max(1, min(4, (os.cpu_count() or 2) // 3))) as pool:
        return list(pool.map(one, rows))


def table(results, rows):
    ceiling, bandwidth = 0, 0
    for name, _, flops, moved in ROWS:
        for side in results.get(name, []):
            if side.times and name.startswith("product"):
                ceiling = max(ceiling, flops / min(side.times))
            if side.times and name.startswith("copy"):
                bandwidth = max(bandwidth, moved * side.size / min(side.times))
    lines = ["Ceilings, the better of both: products %.1f TFLOP/s, copies %.2f TB/s (read and written).\n" % (ceiling * 1e-12, bandwidth * 1e-12),
             "| what | side | ms a step, least (median) | issued after ms | time / weft's | TFLOP/s | of the ceiling | live MiB at most | held MiB | launches | GPU idle |",
             "|---|---|---|---|---|---|---|---|---|---|---|"]
    for name, title, flops, moved in rows:
        sides = results.get(name)
        if not sides:
            continue
        weft = min(sides[0].times) if sides[0].times else None
        for side in sides:
            if not side.times:
                lines.append("| %s | %s | failed: %s | | | | | | | | |" % (title, side.name, side.why.replace("|", "/")))
                continue
            least = min(side.times)
            faster = "%.2f" % (least / weft) if weft and side.name != "weft" else ""
            rate = "%.2f" % (flops / least * 1e-12) if flops else "%.2f TB/s" % (moved * side.size / least * 1e-12) if moved else ""
            share = "%.0f %%" % (100 * flops / least / ceiling) if flops and ceiling else ""
            peak, count = side.peak or [0, 0], side.launches or [0, 0, 0]
            idle = "%.0f %%" % (100 * max(0.0, 1 - count[2] / least)) if count[2] else ""
            lines.append("| %s | %s | %.4g (%.4g) | %.4g | %s | %s | %s | %.0f | %.0f | %s | %s |" % (
                title, side.name, least * 1e3, statistics.median(side.times) * 1e3, min(side.issued) * 1e3, faster, rate, share,
                *peak, "%d" % count[0] if count[0] else "", idle))
    return lines


def main(o, head):
    rows = [r for r in ROWS if not o.rows or r[0] in o.rows.split(",")]
    if o.rows and not o.tiny and len(rows) != len(o.rows.split(",")):
        raise SystemExit("run: rows of a device are " + ", ".join(r[0] for r in ROWS))
    if o.tiny:    # any batch, to try this program
        known = {r[0]: r for r in ROWS}
        rows = [known.get(r, (r, r, None, None)) for r in o.rows.split(",")] if o.rows else rows
    began, results, left_out = time.time(), {}, []
    print("\n".join(head), flush=True)
    compiled = [r[0] for r in rows if r[0].split("_")[0] not in NOT_COMPILED]
    if compiled:
        for row, why in zip(compiled, compile_ahead(compiled, o)):
            if why:
                print("compiling %s failed: %s" % (row, why), flush=True)
        print("compiled in %.0f s" % (time.time() - began), flush=True)
    def write():
        lines = head + table(results, rows) + (["\nNot measured, for want of time: " + ", ".join(left_out)] if left_out else [])
        os.makedirs(os.path.dirname(os.path.abspath(o.out)), exist_ok=True)
        with open(o.out, "w") as f:
            f.write("\n".join(lines) + "\n")
        return lines
    for row in rows:
        if time.time() - began > o.budget:
            left_out.append(row[0])
            continue
        sides = results[row[0]] = measure(row[0], o)
        for side in sides:
            side.size = {"float32": 4, "float64": 8}.get(o.dtype, 2)
        print("%s: %s" % (row[0], ", ".join("%s %s" % (s.name, "%.4g ms" % (min(s.times) * 1e3) if s.times else "failed: " + s.why)
                                            for s in sides)), flush=True)
        write()
    print("\n" + "\n".join(write()[len(head):]))
    print("\nwritten to %s, %s" % (o.out, datetime.date.today()))
    return 1 if any(s.name in SIDES[:2] and not s.times for sides in results.values() for s in sides) else 0
