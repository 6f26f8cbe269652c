"""Looks at every image file of a data set once: what is damaged, changed by the policy of decoding, or there twice."""

import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import NamedTuple

from datamodules.decoding import notes_on, read_image
from datamodules.fingerprint import digest_of_file
from datamodules.folders import SPLITS, FolderDataModule, ImageList, is_image, is_left_out, walk

EXAMPLES = 3  # file names of each finding
CHUNK = 4096  # files that wait for a thread at a time
LONG = 3  # times the shorter side: a square crop shows less than a third of such an image


class Look(NamedTuple):
    """What was found out about one file."""

    path: str
    problem: str = ""  # why it cannot be read; "" = it can
    notes: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)  # width, height; zeros where it cannot be read
    digest: bytes = b""  # of its contents


class Group(NamedTuple):
    """A finding and the files it is about."""

    text: str
    paths: list[str]


def look(path: str, image_size: int) -> Look:
    """Decodes a file. `image_size`: pixels of the shorter side that training would have."""
    try:
        width, height = size = read_image(path).size
    except (ValueError, OSError) as error:
        return Look(path, str(error))
    shapes = {
        f"shorter side below {image_size} pixels, enlarged": min(size) < image_size,
        f"more than {LONG} times as long as wide, mostly cut off": max(width, height) > LONG * min(width, height),
    }
    try:
        notes = notes_on(path)
    except Exception:  # by format, see there
        notes = ["EXIF or later frames are damaged, the first is read upright"]
    notes += [text for text, holds in shapes.items() if holds]
    return Look(path, "", tuple(notes), size, digest_of_file(path))


def looks(data: FolderDataModule) -> Iterator[Look]:
    """Of every file of both splits, decoded by a thread a core."""
    paths = [path for split in SPLITS for path in data.files[split].paths]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), CHUNK):
            yield from pool.map(lambda path: look(path, data.config.image_size), paths[start : start + CHUNK])


def summary(files: dict[str, ImageList], found: list[Look]) -> list[str]:
    """Numbers of images, classes and pixels."""
    lines = []
    for split in SPLITS:
        images = files[split]
        counts = images.labels.bincount(minlength=len(images.classes)).tolist()
        classes = f"{len(counts)} classes of {min(counts):,} to {max(counts):,}" if len(counts) > 1 else "one class"
        lines.append(f"{split}: {len(images.paths):,} images, {classes}")
    if sizes := [one.size for one in found if not one.problem]:
        sides = sorted(min(size) for size in sizes)
        lines.append(f"shorter side: {sides[0]} to {sides[-1]} pixels, median {median(sides):.0f}")
    return lines


def unusual(data: FolderDataModule, found: list[Look]) -> list[Group]:
    """What is to be known of images that can be read, most files first, and of files that are not read at all."""
    groups: dict[str, list[str]] = defaultdict(list)
    for one in found:
        for note in one.notes:
            groups[note].append(one.path)
    is_val = set(data.files["val"].paths)
    by_content: dict[bytes, list[str]] = defaultdict(list)
    for one in found:
        if one.digest:
            by_content[one.digest].append(one.path)
    for paths in by_content.values():
        if len({path in is_val for path in paths}) == 2:
            groups["the same file in training and in validation"] += paths
        elif len(paths) > 1:
            groups["the same file more than once"] += paths
    for root in sorted({data.folder(split) for split in SPLITS}):
        for path in sorted(not_read(root, {one.path for one in found})):
            groups["not read: " + reason(path)].append(path)
    return [Group(text, paths) for text, paths in sorted(groups.items(), key=lambda group: -len(group[1]))]


def not_read(root: Path, read: set[str]) -> Iterator[str]:
    """Files that are not among those `read`, and folders that are left out, below `root`."""
    yield from (path for path in walk(root) if path not in read)
    for parent, folders, _ in os.walk(root):
        yield from (os.path.join(parent, name) for name in folders if is_left_out(name) and name != ".fingerprints")
        folders[:] = [name for name in folders if not is_left_out(name)]


def reason(path: str) -> str:
    if os.path.isdir(path):
        return "hidden folders and caches"
    if is_image(path):
        return "images beside the class folders"
    return f"files of other kinds ({os.path.splitext(path)[1].lower() or 'no ending'})"


def lines_of(groups: list[Group], root: Path) -> Iterator[str]:
    """A line a finding, with some names."""
    for text, paths in groups:
        names = ", ".join(os.path.relpath(path, root) for path in paths[:EXAMPLES])
        yield f"  {len(paths):,} {text}: {names}{', ...' * (len(paths) > EXAMPLES)}"
