"""A made-up study for tests of the page of `tessera bench --report`."""

from __future__ import annotations

import dataclasses

import numpy as np

from benchmarks.records import Delta, ImageInfo, Pixels, Point, Results, Sample, Series, Speed

BUDGETS = (0.05, 0.1, 0.2)
EVIL = "<script>alert('x')</script>.png"
NAMES = ("first.png", EVIL, "third & last.png")
CODECS = {"tessera": "Tessera", "webp": "WebP", "webp-scaled": "WebP, best scale", "jpeg": "JPEG"}
SIZE = (96, 64)


def label(rate: float) -> str:
    return f"{rate:g} bpp"


def fits(codec: str, image: str, rate: float) -> bool:
    """WebP misses the lowest rate for two images, JPEG nearly all rates."""
    return {"webp": rate > 0.05 or image == NAMES[0], "jpeg": rate > 0.1 and image != NAMES[2]}.get(codec, True)


def metrics_at(codec: str, rate: float) -> dict[str, float]:
    better = {"tessera": 0.1, "webp-scaled": 0.05}.get(codec, 0)
    return {"lpips": 0.6 - rate - better, "psnr": 24 + 20 * rate - 10 * better, "ms_ssim": 0.8 + rate / 2}


def sample_at(codec: str, rate: float, image: str) -> Sample:
    data = f"{codec} {rate} {image}".encode().ljust(int(rate * SIZE[0] * SIZE[1] / 8), b".")
    scale = 0.5 if codec.endswith("scaled") else 1.0
    return Sample(data, f"quality {100 * rate:.0f}", scale, rate, metrics_at(codec, rate))


def made_up(**changes: object) -> Results:
    """Three images and four codecs at three rates, one codec missing, one image unreadable."""
    samples = {
        (image, codec, label(rate)): sample_at(codec, rate, image)
        for image in NAMES for codec in CODECS for rate in BUDGETS if fits(codec, image, rate)
    }  # fmt: skip
    series = []
    for codec, title in CODECS.items():
        counts = [(rate, sum(fits(codec, image, rate) for image in NAMES)) for rate in BUDGETS]
        points = tuple(Point(label(rate), count, rate, metrics_at(codec, rate)) for rate, count in counts if count)
        series.append(Series(codec, title, f"{title} 1.0, method <6>", points, "the <eye>"))
    results = Results(
        command="tessera bench 'a <b>' --report out.html",
        images=tuple(ImageInfo(name, f"/nowhere/{name}", *SIZE) for name in NAMES),
        metrics=("lpips", "psnr", "ms_ssim"),
        budgets=BUDGETS,
        series=tuple(series),
        missing={"jxl": "JPEG XL needs pillow-jxl-plugin"},
        failed={"broken.png": "not an image"},
        anchor="webp",
        deltas=(
            Delta("tessera", "lpips", -31.26, 0.3, 0.55, ""),
            Delta("tessera", "psnr", 12.0, 25.0, 27.5, ""),
            Delta("jpeg", "lpips", None, None, None, "JPEG has 0 of the 3 points that are needed"),
        ),
        speeds=(
            Speed("tessera", 3.14159, 2.5, 1.25, 640.4, "400 tokens per block"),
            Speed("webp", 20.0, 100.0, 0.3, 60.0, "quality 20"),
        ),
        speed_note="1 thread on a <processor>",
        versions={"torch": "2.14.1"},
        settings={"Rates": "the best file that is no larger"},
        samples=samples,
    )
    return dataclasses.replace(results, **changes)


def original(name: str) -> Pixels:
    return np.full((SIZE[1], SIZE[0], 3), 40 + 60 * NAMES.index(name), np.uint8)


def decoded(image: str, codec: str, sample: Sample) -> Pixels:
    """A flat colour that identifies the codec."""
    colours = {"tessera": (200, 40, 40), "webp": (40, 200, 40), "webp-scaled": (40, 40, 200), "jpeg": (200, 200, 40)}
    return np.full((SIZE[1], SIZE[0], 3), colours[codec], np.uint8)
