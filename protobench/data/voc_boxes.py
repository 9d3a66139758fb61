"""PASCAL VOC's boxes, from the XML files of a VOCdevkit, as the challenge distributes it and as
MMDetection reads it. The data sets voc07 and voc07+12 are declared here."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError
from xml.parsers import expat

import numpy as np
from defusedxml import DefusedXmlException, ElementTree

from protobench.data import published, voc
from protobench.data.boxes import BoxList, Objects, presence
from protobench.data.dataset import Dataset, Split, class_hash
from protobench.data.image_list import pair
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress

LARGEST = 1_000_000
"""The largest annotation accepted, in bytes; the challenge's have a few thousand."""

UNSPECIFIED = ("", "unspecified")
"""How labelme and CVAT write that nobody said whether an object is difficult. It then counts, as
where the element is missing."""


def read(data: Path, year: int, split: str) -> BoxList:
    """The images of ``split`` (trainval or test) of VOC2007 or VOC2012 and their objects.

    UserError for a missing list or annotation, and for whatever :func:`objects` refuses."""
    kit = voc.devkit(data).parent
    folder = voc.devkit(data) if year == 2007 else kit / f"VOC{year}"
    main = folder / "ImageSets" / "Main"
    if not main.is_dir():
        raise UserError(
            f"no VOC{year} here",
            at=main,
            hint=f"unpack VOC {year} (VOCtrainval_11-May-2012.tar) beside VOC2007",
        )
    names, classes = voc.names(main, split), voc.classes(main, split)
    notes = folder / "Annotations"
    if not notes.is_dir():
        raise UserError(
            f"VOC{year} has no Annotations folder", at=notes, hint=f"unpack VOC {year} again, whole"
        )
    if split == "test" and not (notes / f"{names[0]}.xml").is_file():
        raise UserError(
            "VOC2007's test images have no annotations here",
            at=notes / f"{names[0]}.xml",
            hint=voc.TEST_ANNOTATIONS,
        )
    label_of = {title: label for label, title in enumerate(classes)}
    all_objects = [
        objects(notes / f"{name}.xml", label_of)
        for name in progress(
            names, desc=f"VOC{year} {split} annotations", unit=" files", total=len(names)
        )
    ]
    paths = tuple(f"{folder.name}/{path}" for path in voc.pictures(folder, names))
    return published.check(
        BoxList(
            f"voc{year % 100:02d}-{split}-boxes",
            kit,
            paths,
            presence(all_objects, len(classes)),
            classes,
            objects=tuple(all_objects),
        )
    )


def read_07_and_12(data: Path) -> BoxList:
    """The trainval images of VOC2007, then those of VOC2012."""
    first, second = read(data, 2007, "trainval"), read(data, 2012, "trainval")
    if second.classes != first.classes:
        raise UserError(
            "VOC2007 and VOC2012 have different classes", at=second.root, hint="unpack both again"
        )
    return replace(
        first,
        name="voc07+12-trainval-boxes",
        paths=[*first.paths, *second.paths],
        labels=np.concatenate([first.labels, second.labels]),
        objects=first.objects + second.objects,
    )


def objects(path: Path, label_of: dict[str, int]) -> Objects:
    """The objects of one annotation. Boxes are the file's minus 1, as in MMDetection: inclusive
    pixels from 0. Fractions are truncated, as there.

    UserError for a file that is missing, larger than 1 MB, not XML, or has a DOCTYPE, and for an
    object of unknown class, without a box, or whose box is empty or reaches beyond the image."""
    root = _parse(path)
    size = _only(root, "size", path)
    width, height = (_number(_only(size, side, path), path) for side in ("width", "height"))
    if width < 1 or height < 1 or width % 1 or height % 1:
        raise _invalid(f"an image of {width:g} x {height:g} pixels", path)
    boxes, labels, ignored = [], [], []
    for element in root.findall("object"):
        title = _text(_only(element, "name", path))
        if title not in label_of:
            raise _invalid(f"unknown class {title[:40]!r}", path)
        boxes.append([value - 1 for value in _corners(element, title, width, height, path)])
        labels.append(label_of[title])
        ignored.append(_difficult(element, title, path))
    return Objects(
        int(width),
        int(height),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.array(ignored, bool),
    )


def _corners(element: Element, title: str, width: float, height: float, path: Path) -> list[int]:
    """xmin, ymin, xmax, ymax of an object's box, as written: inclusive pixels from 1."""
    box = _only(element, "bndbox", path)
    xmin, ymin, xmax, ymax = corners = [
        int(_number(_only(box, side, path), path)) for side in ("xmin", "ymin", "xmax", "ymax")
    ]
    if xmin >= xmax or ymin >= ymax:
        raise _invalid(f"an empty box of a {title}: {corners}", path)
    # the challenge's own files reach one pixel beyond, which GluonCV allows too
    if xmin < 1 or ymin < 1 or xmax > width + 1 or ymax > height + 1:
        from_0 = "; VOC counts pixels from 1, some tools from 0" if min(xmin, ymin) == 0 else ""
        raise _invalid(
            f"the box {corners} of a {title} reaches beyond the image of {width:g} x {height:g}"
            f" pixels{from_0}",
            path,
        )
    return corners


def _difficult(element: Element, title: str, path: Path) -> bool:
    if element.find("difficult") is None:
        return False
    flag = _only(element, "difficult", path)
    value = 0.0 if _text(flag).lower() in UNSPECIFIED else _number(flag, path)
    if value not in (0, 1):
        raise _invalid(f"difficult must be 0 or 1, not {value:g}, for a {title}", path)
    return value == 1


def _only(element: Element, tag: str, path: Path) -> Element:
    """The one child with this tag."""
    if len(children := element.findall(tag)) != 1:
        raise _invalid(f"<{element.tag}> has {len(children)} <{tag}>, not one", path)
    return children[0]


def _text(element: Element) -> str:
    return (element.text or "").strip()


def _number(element: Element, path: Path) -> float:
    try:
        value = float(_text(element))
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise _invalid(f"<{element.tag}> must hold a number, not {_text(element)[:40]!r}", path)
    return value


def _invalid(what: str, path: Path) -> UserError:
    return UserError(what, at=path, hint="take the challenge's annotation, or correct this file")


def _parse(path: Path) -> Element:
    """The element <annotation>. DOCTYPEs are refused: VOC has none, and entities are dangerous."""
    try:
        content = path.read_bytes() if path.stat().st_size <= LARGEST else None
    except OSError as failure:
        raise UserError(
            f"cannot read this annotation: {failure.strerror}",
            at=path,
            hint="every image of the list needs one; unpack VOC again",
        ) from failure
    if content is None:
        raise UserError(
            f"an annotation of more than {LARGEST:,} bytes",
            at=path,
            hint="take the challenge's file",
        )
    try:
        root: Element = ElementTree.fromstring(content, forbid_dtd=True)
    except DefusedXmlException as failure:
        raise UserError(
            "this XML declares a document type, which VOC's annotations never do",
            at=path,
            hint="take the challenge's file: entities can exhaust memory or read other files",
        ) from failure
    except ParseError as failure:
        raise UserError(
            f"not well-formed XML: {expat.ErrorString(failure.code)}",
            at=f"{path}, line {failure.position[0]}",
            hint="take the challenge's file; this one may be truncated",
        ) from failure
    except (LookupError, ValueError) as failure:  # an unknown or a multi-byte encoding
        raise UserError(
            f"this XML is in an encoding that cannot be read: {failure}",
            at=path,
            hint="save it as UTF-8, and declare that in its first line",
        ) from failure
    if root.tag != "annotation":
        raise _invalid(f"the root element is <{root.tag[:40]}>, not <annotation>", path)
    return root


_HASH = class_hash(voc.CLASSES)
_TEST = Split("voc07-test", "VOC2007", 4952, 20, _HASH)


def _both(data: Path, name: str) -> tuple[BoxList, BoxList]:
    train = read(data, 2007, "trainval") if name == "voc07" else read_07_and_12(data)
    return pair(train, read(data, 2007, "test"))


DATASETS = (
    Dataset(
        "voc07",
        partial(voc.read, split="trainval"),
        partial(voc.read, split="test"),
        splits=(Split("voc07-trainval", "VOC2007", 5011, 20, _HASH), _TEST),
        folders=("VOCdevkit", "VOC2007", "ImageSets"),
        read_boxes=partial(_both, name="voc07"),
        edition=voc.edition,
    ),
    Dataset(
        "voc07+12",
        read_07_and_12,
        partial(read, year=2007, split="test"),
        splits=(
            Split("voc07+12-trainval", "VOC2007 and VOC2012", 16_551, 20, _HASH),
            Split("voc12-trainval", "VOC2012", 11_540, 20, _HASH),
        ),
        folders=("VOCdevkit/VOC2012", "VOC2012"),
        read_boxes=partial(_both, name="voc07+12"),
        edition=voc.edition,
    ),
)
"""voc07 is read with image labels for classification, and with boxes for detection."""
