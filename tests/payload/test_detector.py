"""Detectors: the embedded one on real photos, and any other with TF Hub's interface."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_hub
from PIL import Image

from enclave_payload.detector import Box, Detection, Detector, ModelError
from enclave_payload.imaging import decode_image
from necli.models import InstalledModel

MAX_PIXELS = 50_000_000


@pytest.fixture(scope="module")
def detector(embedded_model: InstalledModel) -> Detector:
    detector = Detector.load(embedded_model.path)
    detector.warm_up()
    return detector


@pytest.fixture(scope="module")
def sample(embedded_model: InstalledModel) -> bytes:
    assert embedded_model.sample
    return embedded_model.sample.read_bytes()


def detect(detector: Detector, photo: bytes, *, reduced: bool = True) -> list[Detection]:
    input_size = detector.input_size if reduced else None
    return detector.detect(decode_image(photo, max_pixels=MAX_PIXELS, input_size=input_size).pixels)


def sure(detections: list[Detection], score: float = 0.5) -> list[Detection]:
    return [each for each in detections if each.score >= score]


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""

    def area(ymin: float, xmin: float, ymax: float, xmax: float) -> float:
        return max(0, ymax - ymin) * max(0, xmax - xmin)

    shared = area(*map(max, one[:2], other[:2]), *map(min, one[2:], other[2:]))
    return shared / (area(*one) + area(*other) - shared)


# The embedded model


def test_the_sample_shows_a_man_and_a_glass(detector: Detector, sample: bytes) -> None:
    found = sure(detect(detector, sample))

    assert {each.name: each.score for each in found} == pytest.approx({"cup": 0.65, "person": 0.64}, abs=0.05)


def test_the_air_show_has_five_airplanes_and_nothing_else(detector: Detector, air_show: bytes) -> None:
    found = sure(detect(detector, air_show))

    assert [each.name for each in found] == ["airplane"] * 5
    assert [each.score for each in found] == pytest.approx([0.736, 0.682, 0.637, 0.618, 0.586], abs=0.03)


def test_reduced_decoding_finds_the_same(detector: Detector, air_show: bytes) -> None:
    full, reduced = (sure(detect(detector, air_show, reduced=each)) for each in (False, True))

    for one, other in zip(full, reduced, strict=True):
        assert one.name == other.name
        assert one.score == pytest.approx(other.score, abs=0.025)
        assert one.box == pytest.approx(other.box, abs=0.005)


def test_detections_come_best_first_with_boxes_inside_the_picture(detector: Detector, sample: bytes) -> None:
    found = detect(detector, sample)

    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert found[-1].score > 0
    for ymin, xmin, ymax, xmax in (each.box for each in found):
        assert 0 <= ymin <= ymax <= 1
        assert 0 <= xmin <= xmax <= 1


@pytest.mark.parametrize("at", [(0, 0), (852, 0), (0, 632), (426, 1264)])
def test_boxes_are_fractions_of_the_whole_picture(
    detector: Detector, sample: bytes, at: tuple[int, int]
) -> None:
    """Whatever its shape: the sample on a grey ground is found where it was put."""
    photo = Image.open(io.BytesIO(sample))
    ground = Image.new("RGB", (photo.width + at[0], photo.height + at[1]), (114, 114, 114))
    ground.paste(photo, at)
    (alone,) = (each for each in sure(detect(detector, sample)) if each.name == "person")

    found = next(each for each in detector.detect(np.asarray(ground)) if each.name == "person")

    ymin, xmin, ymax, xmax = alone.box
    expected = (
        (ymin * photo.height + at[1]) / ground.height,
        (xmin * photo.width + at[0]) / ground.width,
        (ymax * photo.height + at[1]) / ground.height,
        (xmax * photo.width + at[0]) / ground.width,
    )
    assert overlap(found.box, expected) > 0.75


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (7, 5000)])
def test_a_picture_of_any_shape_is_taken(detector: Detector, shape: tuple[int, int]) -> None:
    detector.detect(np.zeros((*shape, 3), np.uint8))


def test_several_threads_get_the_same(detector: Detector, sample: bytes) -> None:
    expected = detect(detector, sample)
    answers: list[list[Detection]] = []
    threads = [threading.Thread(target=lambda: answers.append(detect(detector, sample))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == [expected] * 4


def test_tensorflow_hub_loads_it_with_equal_results(embedded_model: InstalledModel) -> None:
    images = tf.constant(np.random.default_rng(1).integers(0, 256, (1, 90, 120, 3), np.uint8))

    by_hub, directly = (
        load(str(embedded_model.path)).signatures["uint8"](images=images)["detection_scores"].numpy()
        for load in (tensorflow_hub.load, tf.saved_model.load)
    )

    np.testing.assert_array_equal(by_hub, directly)


# Any other


def hub_detector(folder: Path) -> Path:
    """A model as TF Hub's detectors are: TensorFlow 1's format, a table of names, no input size.

    It finds a dog as sure as the picture is bright, then a cat half as sure.
    """
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        images = tf.compat.v1.placeholder(tf.float32, [1, None, None, 3], "images")
        keys, values = tf.constant([1, 2], tf.int64), tf.constant(["Cat", "Dog"])
        names = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), "Nothing")
        brightness = tf.reduce_mean(images)
        labels = tf.constant([1, 2, 3], tf.int64)
        outputs = {
            "detection_boxes": tf.constant([[0.0, 0.0, 1.0, 1.0], [0.1, 0.2, 0.3, 1.4], [0, 0, 0, 0]]),
            "detection_scores": tf.stack([brightness / 2, brightness, 0.0]),
            "detection_class_entities": names.lookup(labels),
            "detection_class_names": tf.constant(["/m/01yrx", "/m/0bt9lr", "/m/0"]),
            "detection_class_labels": labels,
        }
        session.run(tf.compat.v1.tables_initializer())
        save(folder, session, "default", {"images": images}, outputs)
    return folder


def save(folder: Path, session: Any, signature: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    definition = tf.compat.v1.saved_model.predict_signature_def(inputs, outputs)
    builder = tf.compat.v1.saved_model.Builder(str(folder))
    builder.add_meta_graph_and_variables(
        session, [], {signature: definition}, main_op=tf.compat.v1.tables_initializer()
    )
    builder.save()


def test_a_detector_in_the_format_of_tf_hubs_is_run(tmp_path: Path) -> None:
    detector = Detector.load(hub_detector(tmp_path / "hub"))
    detector.warm_up()

    assert detector.input_size is None
    dog, cat = detector.detect(np.full((20, 30, 3), 204, np.uint8))
    assert dog == Detection("Dog", pytest.approx(0.8), pytest.approx((0.1, 0.2, 0.3, 1.0)))  # type: ignore[arg-type]
    assert cat == Detection("Cat", pytest.approx(0.4), (0.0, 0.0, 1.0, 1.0))  # type: ignore[arg-type]


def test_a_model_without_the_default_signature_is_refused(tmp_path: Path) -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        images = tf.compat.v1.placeholder(tf.float32, [1, None, None, 3], "images")
        save(tmp_path / "other", session, "serving_default", {"images": images}, {"scores": images * 2})

    with pytest.raises(ModelError, match=r"no signature called default, only \['serving_default'\]"):
        Detector.load(tmp_path / "other")


def test_a_model_that_detects_nothing_is_refused(tmp_path: Path) -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        images = tf.compat.v1.placeholder(tf.float32, [1, None, None, 3], "images")
        save(tmp_path / "other", session, "default", {"images": images}, {"logits": images * 2})

    with pytest.raises(ModelError, match="no object detector: it has no output detection_boxes"):
        Detector.load(tmp_path / "other")


@pytest.mark.parametrize("content", [None, b"", b"no graph"])
def test_a_folder_without_a_model_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "saved_model.pb").write_bytes(content)

    with pytest.raises(ModelError, match="holds no SavedModel that loads"):
        Detector.load(tmp_path)
