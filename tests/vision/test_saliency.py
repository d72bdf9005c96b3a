"""The figures of saliency maps, against what their papers say, computed here in another way."""

import numpy as np
import pytest

from surgery.vision.saliency import constant_figures, f_curve, figures, image_scores, max_f, mean_mask

MASK = np.zeros((4, 5), np.uint8)
MASK[1:3, 1:3] = 255
EPS = np.spacing(1)


def drawn(seed):
    return np.random.default_rng(seed).integers(0, 256, MASK.shape, dtype=np.uint8)


def stretched(prediction):
    shares = prediction / 255
    return (shares - shares.min()) / (shares.max() - shares.min())


def f_measure(binary, truth):
    hits = (binary & truth).sum()
    if not hits:
        return 0.0
    precision, recall = hits / binary.sum(), hits / truth.sum()
    return 1.3 * precision * recall / (0.3 * precision + recall)


def e_measure(binary, truth):
    """Enhanced alignment, pixel by pixel."""
    a, b = binary - binary.mean(), truth - truth.mean()
    aligned = 2 * a * b / (a**2 + b**2 + EPS)
    return ((aligned + 1) ** 2 / 4).sum() / (truth.size - 1)


def likeness(x, y):
    """The structural part of an image's quarter."""
    mean, truth, n = x.mean(), y.mean(), x.size
    covariance = ((x - mean) * (y - truth)).sum() / (n - 1)
    spread = (((x - mean) ** 2).sum() + ((y - truth) ** 2).sum()) / (n - 1)
    top, bottom = 4 * mean * truth * covariance, (mean**2 + truth**2) * spread
    return top / (bottom + EPS) if top else float(bottom == 0)


def s_measure(x, truth):
    def alike(values):
        return 2 * values.mean() / (values.mean() ** 2 + 1 + values.std(ddof=1))

    objects = truth.mean() * alike(x[truth]) + (1 - truth.mean()) * alike(1 - x[~truth])
    row, column = (int(np.round(index.mean())) + 1 for index in np.nonzero(truth))
    quarters = [np.s_[:row, :column], np.s_[:row, column:], np.s_[row:, :column], np.s_[row:, column:]]
    regions = sum(likeness(x[part], truth[part].astype(float)) * x[part].size for part in quarters) / x.size
    return (objects + regions) / 2


@pytest.mark.parametrize("seed", range(3))
def test_one_map_by_hand(seed):
    x, truth = stretched(drawn(seed)), MASK > 128
    levels = [np.floor(255 * x) >= threshold for threshold in range(255, -1, -1)]
    adaptive = x >= min(2 * x.mean(), 1)
    result = figures([image_scores(drawn(seed), MASK)])
    curve = [f_measure(binary, truth) for binary in levels]
    np.testing.assert_allclose(f_curve(drawn(seed), MASK), curve, atol=1e-9)
    assert result.max_f == pytest.approx(100 * max(curve))
    assert result.adaptive_f == pytest.approx(100 * f_measure(adaptive, truth))
    assert result.mae == pytest.approx(100 * np.abs(x - truth).mean())
    assert result.mean_e == pytest.approx(100 * np.mean([e_measure(binary, truth) for binary in levels]))
    assert result.adaptive_e == pytest.approx(100 * e_measure(adaptive, truth))
    assert result.s == pytest.approx(100 * s_measure(x, truth))


def test_the_best_threshold_is_one_for_all_images():
    curves = [f_curve(drawn(seed), MASK) for seed in range(3)]
    assert max_f(curves) == pytest.approx(100 * np.mean(curves, 0).max())
    assert max_f(curves) < 100 * np.mean([curve.max() for curve in curves])
    assert figures([image_scores(drawn(seed), MASK) for seed in range(3)]).max_f == pytest.approx(max_f(curves))


def test_the_mask_itself_is_the_best_map():
    result = figures([image_scores(MASK, MASK)])
    assert (result.max_f, result.adaptive_f, result.mae) == (pytest.approx(100), pytest.approx(100), 0)
    assert result.s == pytest.approx(100)
    assert list(result.by_name()) == ["max F", "adaptive F", "MAE", "S", "mean E", "adaptive E"]


@pytest.mark.parametrize("value", [0, 128, 255])
def test_maps_and_masks_without_contrast_have_figures(value):
    flat = np.full(MASK.shape, value, np.uint8)
    for prediction, mask in ((flat, MASK), (drawn(0), flat), (flat, flat)):
        assert np.isfinite(image_scores(prediction, mask)).all()


def test_an_image_without_a_structure_measure_is_left_out_of_its_mean():
    edge = np.zeros_like(MASK)
    edge[:, -1] = 255
    scores = [image_scores(drawn(0), edge), image_scores(drawn(0), MASK)]
    assert np.isnan(scores[0][1])
    assert figures(scores).s == figures(scores[1:]).s
    assert figures(scores).mae == pytest.approx((100 * scores[0][0] + 100 * scores[1][0]) / 2)
    assert np.isnan(figures(scores[:1]).s)


def test_sizes_that_differ():
    with pytest.raises(ValueError, match="Shape mismatch"):
        f_curve(drawn(0), MASK[:3])


def test_the_mean_of_masks_is_where_objects_are():
    left, middle = (np.zeros((8, 12), np.uint8) for _ in range(2))
    left[:, :6] = 255
    middle[2:6, 3:9] = 255
    prior = mean_mask([left, middle], 4)
    assert (prior.shape, prior.dtype, prior.max()) == ((4, 4), np.uint8, 255)
    assert prior[1, 1] == 255
    assert prior[0, 3] < 10
    assert 100 < prior[0, 0] < 200
    assert mean_mask([np.zeros((3, 3), np.uint8)], 2).tolist() == [[0, 0], [0, 0]]
    with pytest.raises(ValueError, match="no masks: at least one"):
        mean_mask([], 4)


def test_one_map_for_images_of_all_sizes():
    prior = mean_mask([np.kron(MASK, np.ones((4, 4), np.uint8))], 32)
    result = constant_figures(prior, [np.kron(MASK, np.ones((n, n), np.uint8)) for n in (3, 5)])
    assert result.max_f > 90
    assert result.mae < 10
