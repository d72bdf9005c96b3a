import pytest
import torch
from accelerate import Accelerator
from torch import nn

import surgery
from surgery.training.block_distillation import distillation_options
from surgery.training.recipe import TrainSettings
from surgery.training.segmentation_task import PixelLoss, SemanticSegmentation
from tests.models.test_pspnet import SMALL


def test_loss_is_the_mean_over_labelled_pixels():
    torch.manual_seed(0)
    main, other = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    labels = torch.randint(0, 3, (2, 4, 5))
    labels[0, :2] = 255
    expected = []
    for logits in (main, other):
        losses = [
            -logits[n, :, i, j].log_softmax(0)[labels[n, i, j]]
            for n in range(2)
            for i in range(4)
            for j in range(5)
            if labels[n, i, j] != 255
        ]
        expected.append(torch.stack(losses).mean())
    loss = PixelLoss(auxiliary_weight=0.4, smoothing=0.0)
    torch.testing.assert_close(loss((main, other), labels), expected[0] + 0.4 * expected[1])
    torch.testing.assert_close(loss(main, labels), expected[0])


def test_nothing_labelled_is_no_loss():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = PixelLoss(0.4, 0.1)(logits, torch.full((1, 2, 2), 255))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_distillation_by_hand():
    torch.manual_seed(0)
    teacher = surgery.create("pspnet", **SMALL).eval()
    student = surgery.convert(teacher, zeta=4, input_size=(3, 32, 32)).eval()
    settings = TrainSettings(distill_weight=0.25, temperature=2.0)
    segmenting, options = SemanticSegmentation(), distillation_options(settings, Accelerator(cpu=True))
    task = segmenting.distillation(student, teacher, blocks=(), criterion=segmenting.criterion(settings), **options)
    images, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 5, (2, 32, 32))
    with torch.no_grad():
        result = task(images, labels)
        student_logits, teacher_logits = student(images), teacher(images)
        p, q = (
            logits.permute(0, 2, 3, 1).reshape(-1, 5).div(2).softmax(1) for logits in (teacher_logits, student_logits)
        )
        distilled = 4 * (p * (p.log() - q.log())).sum(1).mean()
        own = nn.functional.cross_entropy(student_logits, labels)
    assert not hasattr(student, "pretrained_cfg")
    torch.testing.assert_close(result["loss"], 0.75 * own + 0.25 * distilled, rtol=1e-4, atol=1e-5)


def test_evaluation_is_exact_over_images_of_all_sizes():
    model = surgery.create("pspnet", **SMALL).eval()
    loader = [(torch.randn(1, 3, 24 + n, 32), torch.randint(0, 5, (1, 24 + n, 32))) for n in range(2)]
    with torch.no_grad():
        hits = [(model(x).argmax(1), y) for x, y in loader]
    result = torch.cat([a.flatten() for a, _ in hits]), torch.cat([b.flatten() for _, b in hits])
    ious = [
        100 * ((result[0] == c) & (result[1] == c)).sum() / ((result[0] == c) | (result[1] == c)).sum()
        for c in range(5)
    ]
    accelerator = Accelerator(cpu=True)
    assert SemanticSegmentation().evaluate(accelerator, model, loader) == pytest.approx(sum(ious).item() / 5, abs=1e-3)
