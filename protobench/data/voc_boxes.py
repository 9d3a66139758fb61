"""PASCAL VOC's boxes, from the XML files of a VOCdevkit, as the challenge distributes it and as
MMDetection reads it."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.parsers import expat

import numpy as np

from protobench.data import published, voc
from protobench.data.boxes import BoxList, Objects, presence
from protobench.data.image_list import pair
from protobench.runtime.errors import UserError
from protobench.runtime.progress import progress

LARGEST = 1_000_000
"""Bytes of an annotation; the challenge's have a few thousand."""

UNSAID = ("", "unspecified")
"""How labelme and CVAT leave open whether an object is difficult. It then counts, as where the
element is missing."""


def read(data: Path, year: int, split: str) -> BoxList:
    """The images of ``split`` (trainval or test) of VOC2007 or VOC2012 and their objects.

    UserError for a list or annotation that is missing, and for each thing that :func:`objects`
    refuses."""
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
    number = {title: label for label, title in enumerate(classes)}
    found = [
        objects(notes / f"{name}.xml", number)
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
            presence(found, len(classes)),
            classes,
            objects=tuple(found),
        )
    )


def read_both(data: Path, training: str) -> tuple[BoxList, BoxList]:
    """The training images of "voc07" or "voc07+12" (both trainval splits) and VOC07's test
    images."""
    train, test = read(data, 2007, "trainval"), read(data, 2007, "test")
    if training == "voc07+12":
        more = read(data, 2012, "trainval")
        if more.classes != train.classes:
            raise UserError(
                "VOC2007 and VOC2012 have different classes", at=more.root, hint="unpack both again"
            )
        train = replace(
            train,
            name="voc07+12-trainval-boxes",
            paths=train.paths + more.paths,
            labels=np.concatenate([train.labels, more.labels]),
            objects=train.objects + more.objects,
        )
    pair(train, test)
    return train, test


def objects(path: Path, number: dict[str, int]) -> Objects:
    """An annotation's objects; ``number`` tells each class's label. Boxes are the file's less 1, as
    in MMDetection: inclusive pixels from 0. Fractions are cut off, as there.

    UserError, with the line, for a file that is missing, over 1 MB, no XML or has a DOCTYPE or
    entities, and for an object of unknown class, without a box, or whose box is empty or reaches
    beyond the image."""
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
    root = _parse(content, path)
    size = root.only("size", path)
    width, height = (size.number(side, path) for side in ("width", "height"))
    if width < 1 or height < 1 or width % 1 or height % 1:
        raise _wrong(f"an image of {width:g} x {height:g} pixels", path, size)
    boxes, labels, ignored = [], [], []
    for thing in root.all("object"):
        title = thing.only("name", path)
        if title.text not in number:
            raise _wrong(f"unknown class {title.text[:40]!r}", path, title)
        flag = thing.only("difficult", path) if thing.all("difficult") else None
        difficult = 0 if flag is None or flag.text.lower() in UNSAID else flag.number("", path)
        if difficult not in (0, 1):
            raise _wrong(f"difficult must be 0 or 1, not {difficult:g}", path, flag or thing)
        box = thing.only("bndbox", path)
        xmin, ymin, xmax, ymax = corners = [
            int(box.number(side, path)) for side in ("xmin", "ymin", "xmax", "ymax")
        ]
        if xmin >= xmax or ymin >= ymax:
            raise _wrong(f"an empty box: {corners}", path, box)
        if (
            xmin < 1 or ymin < 1 or xmax > width + 1 or ymax > height + 1
        ):  # as far as GluonCV lets the challenge's files reach
            from_0 = "; VOC counts pixels from 1, some tools from 0" if min(xmin, ymin) == 0 else ""
            raise _wrong(
                f"the box {corners} reaches beyond the image of {width:g} x {height:g}"
                f" pixels{from_0}",
                path,
                box,
            )
        boxes.append([value - 1 for value in corners])
        labels.append(number[title.text])
        ignored.append(difficult == 1)
    return Objects(
        int(width),
        int(height),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.array(ignored, bool),
    )


@dataclass
class _Element:
    """An XML element that knows its line."""

    tag: str
    line: int
    text: str = ""
    children: list["_Element"] = field(default_factory=list)

    def all(self, tag: str) -> list["_Element"]:
        return [child for child in self.children if child.tag == tag]

    def only(self, tag: str, path: Path) -> "_Element":
        if len(found := self.all(tag)) != 1:
            raise _wrong(f"<{self.tag}> has {len(found)} <{tag}>, not one", path, self)
        return found[0]

    def number(self, tag: str, path: Path) -> float:
        """Of the child ``tag``, or of this element where that is empty."""
        element = self.only(tag, path) if tag else self
        try:
            value = float(element.text)
        except ValueError:
            value = float("nan")
        if not np.isfinite(value):
            raise _wrong(
                f"<{element.tag}> must hold a number, not {element.text[:40]!r}", path, element
            )
        return value


def _wrong(what: str, path: Path, element: _Element) -> UserError:
    return UserError(
        what,
        at=f"{path}, line {element.line}",
        hint="take the challenge's annotation, or mend this line",
    )


def _parse(content: bytes, path: Path) -> _Element:
    """The tree below <annotation>. Only elements and text: what else XML offers is not in these
    files, and some of it is dangerous."""
    parser = expat.ParserCreate()
    stack = [_Element("", 0)]

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = _Element(tag, parser.CurrentLineNumber)
        stack[-1].children.append(element)
        stack.append(element)

    def end(tag: str) -> None:
        element = stack.pop()
        element.text = element.text.strip()

    def text(data: str) -> None:
        stack[-1].text += data

    def refuse(*_) -> None:
        raise UserError(
            "this XML declares a document type, which VOC's annotations never do",
            at=path,
            hint="take the challenge's file: entities can fill the memory or read other files",
        )

    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = (
        start,
        end,
        text,
    )
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(content, True)
    except expat.ExpatError as failure:
        raise UserError(
            f"no well-formed XML: {expat.ErrorString(failure.code)}",
            at=f"{path}, line {failure.lineno}",
            hint="take the challenge's file; this one may be cut short",
        ) from failure
    except (
        LookupError,
        ValueError,
    ) as failure:  # of an encoding with several bytes a character, or that nobody knows
        raise UserError(
            f"this XML is in an encoding that cannot be read: {failure}",
            at=path,
            hint="save it as UTF-8, and say so in its first line",
        ) from failure
    return stack[0].only("annotation", path)
