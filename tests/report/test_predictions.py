"""Classes, neighbours and confusions of a sample, on embeddings where the right answer is known."""

import json

import numpy as np

from clipjax.report.predictions import Gallery, classification, retrieval

NAMES = ["cat", "dog", "owl"]
CLASSES = np.eye(3, dtype=np.float32)


def gallery(image, label, text=None, tokens=None, pair_id=None):
    image = np.asarray(image, np.float32)
    n = len(image)
    text = image if text is None else np.asarray(text, np.float32)
    return Gallery(
        image,
        text,
        np.arange(n)[:, None] if tokens is None else np.asarray(tokens)[:, None],
        np.arange(n),
        np.asarray(label),
        np.full(n, -1) if pair_id is None else np.asarray(pair_id),
        lambda row: (f"picture {row}", f"caption {row}", f"key {row}"),
    )


def test_probabilities_are_a_softmax_of_scaled_cosines_and_the_right_class_is_marked():
    found = classification(gallery([[0.6, 0.8, 0.0]], [0]), CLASSES, NAMES, [0, 1, 2], 5.0)
    (sample,) = found["samples"]
    powers = np.exp(5.0 * np.array([0.6, 0.8, 0.0]))
    assert [bar[0] for bar in sample["bars"]] == ["dog", "cat", "owl"]
    np.testing.assert_allclose([bar[1] for bar in sample["bars"]], (powers / powers.sum())[[1, 0, 2]], rtol=1e-6)
    assert [bar[2] for bar in sample["bars"]] == [False, True, False]
    assert sample["rank"] == 2 and found["top1"] == 0.0


def test_the_right_class_is_shown_even_where_it_is_not_among_the_most_probable():
    names = [str(i) for i in range(10)]
    found = classification(gallery([np.arange(10)], [0]), np.eye(10, dtype=np.float32), names, range(10), 1.0)
    bars = found["samples"][0]["bars"]
    assert [bar[0] for bar in bars] == ["9", "8", "7", "6", "5", "0"] and bars[-1][2]
    assert found["samples"][0]["rank"] == 10


def test_ties_and_scores_without_numbers_count_against_the_model():
    found = classification(gallery([[1, 1, 1], [np.nan, 1, 0]], [0, 1]), CLASSES, NAMES, [0, 1, 2], 1.0)
    assert found["top1"] == 0.0
    assert [sample["rank"] for sample in found["samples"]] == [3, 3]
    assert found["samples"][1]["bars"] == []
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_labels_are_lines_of_the_class_names_and_records_without_one_are_left_out():
    images = gallery([[0, 1, 0], [1, 0, 0], [0, 0, 1]], [0, -1, 7])
    found = classification(images, CLASSES, NAMES, [1, 0, 2], 1.0)
    assert found["images"] == 1 and found["top1"] == 1.0, "label 0 is line 1, the dog"
    assert classification(gallery([[0, 1, 0]], [-1]), CLASSES, NAMES, [0, 1, 2], 1.0) is None


def test_confusions_are_ordered_by_count_with_a_picture_of_both_classes():
    cat, dog = [1, 0, 0], [0, 1, 0]
    images = gallery([dog, dog, cat, dog, cat], [0, 0, 0, 1, 2])
    found = classification(images, CLASSES, NAMES, [0, 1, 2], 1.0)["confusions"]
    assert [(c["label"], c["predicted"], c["count"], c["of"]) for c in found] == [
        ("cat", "dog", 2, 3),
        ("owl", "cat", 1, 1),
    ]
    assert (found[0]["image"], found[0]["other"]) == ("picture 0", "picture 3")
    assert found[1]["other"] == "picture 0"


def test_a_confused_class_without_an_image_in_the_sample_has_no_picture():
    found = classification(gallery([[0, 0, 1]], [0]), CLASSES, NAMES, [0, 1, 2], 1.0)["confusions"]
    assert found[0]["predicted"] == "owl" and found[0]["other"] is None


def test_right_answers_of_retrieval_are_the_pair_its_repeats_and_equal_pair_ids():
    eye = np.eye(5, dtype=np.float32)
    found = retrieval(gallery(eye, [-1] * 5, tokens=[0, 0, 2, 3, 4], pair_id=[-1, -1, 7, 7, -1]))
    assert found["records"] == 5
    marked = [[hit["image"] for hit in query["hits"] if hit["right"]] for query in found["by_text"]]
    assert [set(m) for m in marked] == [
        {"picture 0", "picture 1"}, {"picture 0", "picture 1"}, {"picture 2", "picture 3"},
        {"picture 2", "picture 3"}, {"picture 4"},
    ]  # fmt: skip
    assert all(query["hits"][0]["right"] and query["rank"] == 1 for query in found["by_image"])


def test_a_rank_counts_wrong_answers_that_do_not_score_lower():
    image = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    found = retrieval(gallery(image, [-1] * 3, text=[[0, 1], [1, 0], [1, 0]]))
    assert [query["rank"] for query in found["by_text"]] == [3, 2, 3]


def test_retrieval_without_a_finite_embedding_has_no_queries():
    found = retrieval(gallery(np.full((2, 3), np.nan), [-1, -1]))
    assert found == {"records": 2, "by_text": [], "by_image": []}
