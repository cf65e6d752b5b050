"""Writes N pictures of 640 x 480 as JPEG, as busy as photographs are: about 90 kB each.
Usage: pictures.py FOLDER N   (started by tests/bench/run)"""
import os
import sys

import numpy as np
from PIL import Image

folder, n = sys.argv[1], int(sys.argv[2])
os.makedirs(folder, exist_ok=True)
rng = np.random.default_rng(1)
for i in range(n):
    # noise of many scales, the coarse ones stronger
    picture = np.zeros((480, 640, 3))
    for size in (3, 6, 12, 24, 60, 120, 240):
        layer = Image.fromarray(rng.integers(0, 256, (size, size * 4 // 3, 3), dtype=np.uint8)).resize((640, 480), Image.BICUBIC)
        picture += (np.asarray(layer, dtype=float) - 128) * (6 / size) ** 0.5
    Image.fromarray(np.clip(picture + 128, 0, 255).astype(np.uint8)).save("%s/%03d.jpg" % (folder, i), quality=90)
