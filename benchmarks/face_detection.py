"""Which faces `restore face` finds, how well it places their landmarks, and what the way there and back costs.

    python benchmarks/face_detection.py ../shared/data/faces_synthetic

needs the folders `scenes` (photographs of synthetic people) and `val` (aligned faces). Three parts, printed as Markdown:

1. Every scene, and scikit-image's astronaut: what is found.
2. A picture composed of aligned faces, turned by up to 40 degrees, of many sizes, some cut by the border. Where their landmarks
   lie is known from those of the aligned face, found upright and sharp, and from how it was placed: the error is what turning,
   scaling and cutting cost, and not the detector's own habit, which no landmarks drawn by hand are at hand to tell.
3. Warp there, a network that changes nothing, warp back, onto the picture at 1, 2 and 4 times its size.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.data import astronaut
from skimage.transform import SimilarityTransform

from restore.faces.alignment import apply, enlarged, fit_similarity, inverse, scale_of, warp, warp_face
from restore.faces.detection import Face, detect_faces
from restore.faces.paste import paste, soft_mask
from restore.images.interpolation import resize

CANVAS = (1100, 1600)
COUNT = 40
Pixels = NDArray[np.float32]


def read(path: Path) -> Pixels:
    return np.asarray(Image.open(path).convert("RGB"), np.float32) / 255


def found_in_scenes(folder: Path) -> list[tuple[Pixels, Face]]:
    """Print what is found; returns the largest face of each scene."""
    print("| picture | faces (score, box) | of these below 0.95 | cascade |\n|---|---|---|---|")
    largest = []
    pictures = [(path.stem, read(path)) for path in sorted(folder.glob("*.jpg"))]
    for name, picture in [*pictures, ("astronaut", astronaut().astype(np.float32) / 255)]:
        faces = detect_faces(picture)
        shown = "; ".join(f"{each.score:.2f} {', '.join(f'{edge:.0f}' for edge in each.box)}" for each in faces)
        doubtful = sum(each.score < 0.95 for each in faces)
        print(f"| {name} | {shown or 'none'} | {doubtful or ''} | {len(detect_faces(picture, detector='cascade'))} |", flush=True)
        if faces and name != "astronaut":
            largest.append((picture, max(faces, key=lambda each: each.size)))
    return largest


def composed(folder: Path) -> tuple[Pixels, list[tuple[NDArray[np.float64], float, float, float]]]:
    """A picture of many faces; of each the landmarks, its degrees, the distance of its eyes and the part that shows."""
    rng = np.random.default_rng(7)
    height, width = CANVAS
    picture = resize(rng.uniform(0.25, 0.6, (12, 16, 3)).astype(np.float32), CANVAS, "bicubic", antialias=True)
    truth = []
    paths = sorted(folder.glob("*.jpg"))
    for place in range(COUNT):
        face = read(paths[place * len(paths) // COUNT])
        (upright, *_) = sorted(detect_faces(face, threshold=0.5), key=lambda each: -each.size)
        assert upright.landmarks is not None
        degrees, row, column = rng.uniform(-40, 40), *divmod(place, 8)
        edge = 200 * float(rng.choice([0.2, 0.4, 0.7, 1.0]))
        middle = np.array([(column + 0.5) * width / 8, (row + 0.5) * height / 5])
        if column == 0:
            middle[0] = 0.16 * edge  # the border cuts off a part
        turn = SimilarityTransform(scale=edge / 256, rotation=np.radians(degrees))
        way = turn.params[:2].copy()
        way[:, 2] = middle - apply(way, np.array([127.5, 138.0]))
        points = apply(way, upright.landmarks)
        patch = warp(face, way, CANVAS)
        y, x = np.mgrid[:height, :width].astype(np.float64)
        inside = apply(inverse(way), np.stack((x, y), -1))
        distance = (np.abs((inside - 127.5) / 122) ** 4).sum(axis=-1) ** 0.25
        mask = np.clip((1 - distance) / 0.08, 0, 1).astype(np.float32)[..., None]
        picture += mask * (patch - picture)
        shows = float(((points >= 0) & (points < (width, height))).all(axis=1).mean())
        truth.append((points, degrees, float(np.linalg.norm(points[1] - points[0])), shows))
    return np.clip(np.rint(picture * 255) / 255, 0, 1).astype(np.float32), truth


def landmarks_in_composed(folder: Path) -> None:
    picture, truth = composed(folder)
    faces = detect_faces(picture)
    rows, taken = [], set()
    for points, degrees, eyes, shows in truth:
        errors = [np.linalg.norm(each.landmarks - points, axis=1).mean() for each in faces if each.landmarks is not None]
        best = int(np.argmin(errors)) if errors else -1
        hit = best >= 0 and errors[best] < eyes and best not in taken
        taken |= {best} if hit else set()
        rows.append((abs(degrees), eyes, shows, errors[best] if hit else np.nan))
    table = np.array(rows)
    print(f"\n{len(taken)} of {len(truth)} composed faces found, {len(faces) - len(taken)} boxes beside them.\n")
    print("| faces | found | landmark error, px | in % of the eyes' distance (largest) |\n|---|---|---|---|")
    groups = [("whole, turned up to 20°", (table[:, 0] <= 20) & (table[:, 2] == 1))]
    groups += [("whole, turned 20 to 30°", (table[:, 0] > 20) & (table[:, 0] <= 30) & (table[:, 2] == 1))]
    groups += [("whole, turned 30 to 40°", (table[:, 0] > 30) & (table[:, 2] == 1)), ("cut by the border", table[:, 2] < 1)]
    groups += [
        (f"eyes {low} to {high} px apart", (table[:, 1] >= low) & (table[:, 1] < high))
        for low, high in ((0, 15), (15, 40), (40, 99))
    ]
    for name, which in groups:
        part = table[which]
        seen = part[~np.isnan(part[:, 3])]
        relative = seen[:, 3] / seen[:, 1] * 100
        figures = f"{seen[:, 3].mean():.2f} | {relative.mean():.1f} ({relative.max():.1f})" if len(seen) else "|"
        print(f"| {name} | {len(seen)} of {len(part)} | {figures} |")
    Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save("composed_faces.png")


def there_and_back(scenes: list[tuple[Pixels, Face]]) -> None:
    print("\n| network's face | scale | mean error, grey levels | 99th percentile | faces smaller / larger than the network's |")
    print("|---|---|---|---|---|")
    smaller = [
        (half(picture), Face(each.box, each.landmarks / 2 - 0.25, 1.0))
        for picture, each in scenes[::3]
        if each.landmarks is not None
    ]
    for size in (256, 512):
        for scale in (1, 2, 4):
            errors, ratios = [], []
            for picture, face in [*scenes[::3], *smaller]:
                assert face.landmarks is not None
                matrix = fit_similarity(face.landmarks, size)
                ground = resize(picture, (picture.shape[0] * scale, picture.shape[1] * scale), "bicubic", antialias=True)
                result, aligned = ground.copy(), np.clip(warp_face(picture, matrix, size), 0, 1)
                paste(result, aligned, aligned, matrix, scale)
                y, x = np.mgrid[: len(ground), : ground.shape[1]].astype(np.float64)
                inside = soft_mask(apply(inverse(enlarged(inverse(matrix), scale)), np.stack((x, y), -1)), size) == 1
                errors.append(np.abs(result - ground)[inside].ravel() * 255)
                ratios.append(scale_of(matrix))
            every = np.concatenate(errors)
            more = int(np.sum(np.array(ratios) >= 1))
            means = [float(each.mean()) for each in errors]
            counts = f"{more} / {len(ratios) - more}"
            figures = f"{np.mean(means):.2f} (largest {max(means):.2f}) | {np.percentile(every, 99):.2f} | {counts}"
            print(f"| {size} | {scale} | {figures} |", flush=True)


def half(picture: Pixels) -> Pixels:
    height, width = (side // 2 * 2 for side in picture.shape[:2])
    return resize(picture[:height, :width], (height // 2, width // 2), "bicubic", antialias=True)


if __name__ == "__main__":
    data = Path(sys.argv[1])
    landmarks_in_composed(data / "val")
    there_and_back(found_in_scenes(data / "scenes"))
